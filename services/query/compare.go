package query

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// compareTimeout bounds a comparison of all partitions, comparePartition that of one partition of one replica.
	compareTimeout   = 20 * time.Minute
	comparePartition = 2 * time.Minute
	// maxComparisons is how often a partition is compared again whose difference was gone when it was looked at.
	maxComparisons = 4
)

// replicated is a reader that knows several owners of each partition.
type replicated interface {
	// Replicas are the names, the preferred one first.
	Replicas() []string
	// Partitions is how many there are; 0: not known yet.
	Partitions() int32
	// OwnerIn is who owns a partition in one replica.
	OwnerIn(replica int, partition int32) (presencev1.StateServiceClient, error)
	// Reroute asks for the owners anew.
	Reroute()
}

// CompareReplicas implements the call of both transports. It reads every row of every replica, so one comparison runs at a time.
func (a *answers) CompareReplicas(ctx context.Context, req *presencev1.CompareReplicasRequest) (*presencev1.CompareReplicasResponse, error) {
	for i, p := range req.GetPartitions() {
		if p < 0 {
			return nil, invalid("partitions", fmt.Sprintf("partitions[%d]: %d is negative; partitions count from 0", i, p))
		}
	}
	reader, ok := a.reader.(replicated)
	if !ok {
		return nil, oneReplica()
	}
	names := reader.Replicas()
	if len(names) < 2 {
		return nil, oneReplica()
	}
	count := reader.Partitions()
	if count == 0 {
		return nil, unavailable("the owners of the partitions are not known yet: kafka has not answered; ask again")
	}
	partitions := slices.Compact(slices.Sorted(slices.Values(req.GetPartitions())))
	if n := len(partitions); n > 0 && partitions[n-1] >= count {
		return nil, invalid("partitions", fmt.Sprintf("partitions: there is no partition %d; they count from 0 to %d", partitions[n-1], count-1))
	}
	if len(partitions) == 0 {
		for p := range count {
			partitions = append(partitions, p)
		}
	}
	if !a.comparing.TryAcquire(1) {
		return nil, retryLater(codes.ResourceExhausted, "a comparison of the replicas is under way; ask again when it is done", 10*retryDelay)
	}
	defer a.comparing.Release(1)
	within, cancel := context.WithTimeout(ctx, compareTimeout)
	defer cancel()
	answer := &presencev1.CompareReplicasResponse{Ok: true}
	away := make(map[int]bool)
	for _, p := range partitions {
		for i := 1; i < len(names); i++ {
			c := &comparison{reader: reader, log: a.log, partition: p, replica: i, cluster: a.cfg.Cluster,
				result: &presencev1.ReplicaComparison{Partition: p, Replica: names[i], Reference: names[0]}}
			// One that was away for a partition is not waited for again.
			c.hurry = away[i]
			if err := c.run(within); err != nil {
				away[i] = away[i] || !c.away.IsZero()
				if ctx.Err() != nil {
					return nil, status.FromContextError(ctx.Err()).Err()
				}
				a.log.WarnContext(ctx, "replicas not compared", service.KeyPartition, p, service.KeyError, err)
				c.result.Error = told(err)
			}
			answer.Ok = answer.GetOk() && c.result.GetEqual()
			answer.Comparisons = append(answer.Comparisons, c.result)
		}
	}
	return answer, nil
}

func oneReplica() error {
	return status.Error(codes.FailedPrecondition,
		"this service knows one replica only, there is nothing to compare: name several with --replicas, such as --replicas a,b, of a query service that is a process of its own")
}

// told is what a caller gets to see of why nothing was compared: no address of a machine that a transport's error names.
func told(err error) string {
	// Of an error that was wrapped, status.Convert would return the whole text, "rpc error" and all.
	s := status.Convert(err)
	if carrier := interface{ GRPCStatus() *status.Status }(nil); errors.As(err, &carrier) {
		s = carrier.GRPCStatus()
	}
	switch s.Code() {
	case codes.FailedPrecondition, codes.NotFound, codes.ResourceExhausted:
		return s.Message()
	case codes.Unavailable:
		if retryAfter(s) > 0 {
			return s.Message()
		}
		return "an owner of the partition does not answer"
	case codes.DeadlineExceeded:
		return "there was not enough time"
	case codes.OK, codes.Canceled, codes.Unknown, codes.InvalidArgument, codes.AlreadyExists, codes.PermissionDenied, codes.Aborted, codes.OutOfRange,
		codes.Unimplemented, codes.Internal, codes.DataLoss, codes.Unauthenticated:
	}
	return "the states could not be read; the logs of this service and of the materializers say why"
}

// comparison compares a partition of one replica with that of the first one.
type comparison struct {
	reader    replicated
	log       *slog.Logger
	cluster   string // any: to ask how far the owners are
	partition int32
	replica   int
	result    *presencev1.ReplicaComparison

	clockMS int64     // by which clients have expired on both sides; 0: each goes by its own
	lead    int64     // how far ahead of the newer owner to aim
	least   int64     // the least offset at which both can be compared
	away    time.Time // since when an owner is missing
	hurry   bool      // do not wait for it
	missed  string    // why the last offset was not met; empty: none was missed
}

// run fills the result, or says why there is none. A difference counts if it is there twice: in the blocks, and again in the clients of the first
// blocks that differ, at a later offset. One that is gone by then was none, such as that of a replica that had not read a fact about nodes.
func (c *comparison) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, comparePartition)
	defer cancel()
	for range maxComparisons {
		whole, err := c.compare(ctx, &presencev1.DigestStatesRequest{Partition: c.partition})
		if err != nil {
			return err
		}
		whole.fill(c.result)
		if c.result.Equal = whole.difference == nil; c.result.GetEqual() {
			return nil
		}
		if c.leveled(whole) {
			continue
		}
		near, err := c.compare(ctx, &presencev1.DigestStatesRequest{Partition: c.partition, After: whole.difference.after, Until: whole.difference.until, Each: true})
		if err != nil {
			return err
		}
		if d := near.difference; d != nil && !c.leveled(near) {
			return d.name(c.result)
		}
		c.log.DebugContext(ctx, "a difference of the replicas was gone when it was looked at", service.KeyPartition, c.partition)
	}
	*c.result = presencev1.ReplicaComparison{Partition: c.result.GetPartition(), Replica: c.result.GetReplica(), Reference: c.result.GetReference()}
	return status.Errorf(codes.FailedPrecondition, "the states differed %d times, and each time the difference was gone when it was looked at: is a replica far behind?", maxComparisons)
}

// leveled has both sides go by one clock where their own differ, which a restore can cause; it reports whether they did not before.
func (c *comparison) leveled(r *pair) bool {
	one, two := r.sides[0].head.GetClockMs(), r.sides[1].head.GetClockMs()
	if one == two || max(one, two) <= c.clockMS {
		return false
	}
	// What comes later is to be covered, too.
	c.clockMS = max(one, two) + time.Hour.Milliseconds()
	return true
}

// difference is where two replicas differ first: in a range of clients, or in one client.
type difference struct {
	after, until []byte
	digests      [2][]byte // empty: there is none
}

// name puts a client that differs into the answer.
func (d *difference) name(to *presencev1.ReplicaComparison) error {
	cluster, id, err := eventlog.SplitClientKey(d.until)
	if err != nil {
		return fmt.Errorf("read the key of the client that differs: %w", err)
	}
	to.FirstDifference = &presencev1.ReplicaDifference{
		Cluster: cluster, ClientId: id, ReferenceDigest: hex.EncodeToString(d.digests[0]), Digest: hex.EncodeToString(d.digests[1]),
	}
	return nil
}
