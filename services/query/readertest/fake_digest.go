package readertest

import (
	"crypto/sha256"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Rewrite folds a fact into the client's state as no log says: the offset stays where it is.
func (f *Fake) Rewrite(fact presence.Fact) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.rows[string(eventlog.ClientKey(fact.Cluster, fact.ClientID))]
	if r == nil {
		r = &row{}
		f.rows[string(eventlog.ClientKey(fact.Cluster, fact.ClientID))] = r
	}
	r.state.Apply(&fact)
}

// Lose drops a client, as no log says.
func (f *Fake) Lose(cluster, clientID string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.rows, string(eventlog.ClientKey(cluster, clientID)))
}

// SetClock sets the clock that digests tell, of all partitions. A client expires a day after its latest fact.
func (f *Fake) SetClock(ms int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clockMS = ms
}

// Restored makes all digests below an offset fail, as those of rows that were restored from later on.
func (f *Fake) Restored(least int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.least = least
}

// stop is a digest that waits for its offset.
type stop struct {
	req  *presencev1.DigestStatesRequest
	done chan []*presencev1.DigestStatesResponse
}

// makeStops makes the digests that wait for the offset at which a partition is. The lock is held.
func (f *Fake) makeStops(p int32) {
	f.stops = slices.DeleteFunc(f.stops, func(s *stop) bool {
		due := s.req.GetPartition() == p && s.req.GetOffset() == f.applied[p]
		if due {
			s.done <- f.digest(s.req)
		}
		return due
	})
}

// DigestStates implements StateService.
func (f *Fake) DigestStates(req *presencev1.DigestStatesRequest, stream grpc.ServerStreamingServer[presencev1.DigestStatesResponse]) error {
	f.mu.Lock()
	p := req.GetPartition()
	if p < 0 || p >= f.partitions || f.owned != nil && !f.owned[p] {
		f.mu.Unlock()
		return status.Errorf(codes.NotFound, "partition %d is not owned", p)
	}
	at := f.applied[p]
	s := &stop{req: req, done: make(chan []*presencev1.DigestStatesResponse, 1)}
	switch {
	case req.Offset == nil || req.GetOffset() == at:
		s.done <- f.digest(req)
	case req.GetOffset() < at:
		f.mu.Unlock()
		return digestError("OFFSET_PASSED", at, 0)
	default:
		f.stops = append(f.stops, s)
	}
	least := f.least
	f.mu.Unlock()
	select {
	case messages := <-s.done:
		for _, m := range messages {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
	case <-stream.Context().Done():
		f.mu.Lock()
		f.stops = slices.DeleteFunc(f.stops, func(o *stop) bool { return o == s })
		f.mu.Unlock()
		return status.FromContextError(stream.Context().Err()).Err()
	}
	if req.Offset != nil && req.GetOffset() < least {
		return digestError("MIN_OFFSET_NOT_REACHED", at, least)
	}
	return nil
}

func digestError(reason string, applied, least int64) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: "presence", Metadata: map[string]string{"applied_offset": fmt.Sprint(applied)}}
	if least > 0 {
		info.Metadata["min_offset"] = fmt.Sprint(least)
	}
	s, err := status.New(codes.FailedPrecondition, reason).WithDetails(info)
	if err != nil {
		return err
	}
	return s.Err()
}

// digest is the digest of a partition as it is. The lock is held.
func (f *Fake) digest(req *presencev1.DigestStatesRequest) []*presencev1.DigestStatesResponse {
	p := req.GetPartition()
	clock := max(f.clockMS, req.GetClockMs())
	messages := []*presencev1.DigestStatesResponse{{Head: &presencev1.DigestHead{Offset: f.applied[p], PartitionCount: f.partitions, ClockMs: f.clockMS}}}
	var b *presencev1.DigestBlock
	sum := sha256.New()
	end := func() {
		if b != nil {
			b.Digest = sum.Sum(nil)[:16]
			messages = append(messages, &presencev1.DigestStatesResponse{Blocks: []*presencev1.DigestBlock{b}})
			b = nil
			sum.Reset()
		}
	}
	for _, key := range slices.Sorted(maps.Keys(f.rows)) {
		r := f.rows[key]
		inRange := strings.Compare(key, string(req.GetAfter())) > 0 && (len(req.GetUntil()) == 0 || key <= string(req.GetUntil()))
		if eventlog.Partition([]byte(key), f.partitions) != p || r.state.Empty() || !inRange || r.receivedMS < clock-24*60*60*1000 {
			continue
		}
		if b == nil {
			b = &presencev1.DigestBlock{}
		}
		b.Last = []byte(key)
		b.Clients++
		fmt.Fprintf(sum, "%d %s %x", len(key), key, r.state.Append(nil))
		h := fnv.New32a()
		h.Write([]byte(key))
		if req.GetEach() || h.Sum32()%8 == 0 {
			end()
		}
	}
	end()
	return messages
}
