package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// checkTimeout bounds a check of all indexes, which reads every row.
const checkTimeout = 5 * time.Minute

// GetStates implements StateReader.
func (r *Router) GetStates(ctx context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.RequestTimeout)
	defer cancel()
	keys := req.GetKeys()
	// An owner that has to wait for the offset is no worse for that.
	waits := slices.ContainsFunc(keys, func(k *presencev1.StateKey) bool { return k.MinOffset != nil })
	parts, err := askOwners(ctx, r, question[*presencev1.GetStatesResponse]{
		items: func(*routing) []int { return upTo(len(keys)) },
		partition: func(t *routing, item int) int32 {
			return eventlog.Partition(eventlog.ClientKey(req.GetCluster(), keys[item].GetClientId()), t.partitions)
		},
		ask: func(ctx context.Context, owner presencev1.StateServiceClient, items []int) (*presencev1.GetStatesResponse, error) {
			part := &presencev1.GetStatesRequest{Cluster: req.GetCluster(), Explain: req.GetExplain(), History: req.GetHistory()}
			for _, i := range items {
				part.Keys = append(part.Keys, keys[i])
			}
			return owner.GetStates(ctx, part)
		},
		check: renumber,
		fresh: (*presencev1.GetStatesResponse).GetPartitions,
		hedge: hedgeKeys,
		waits: waits,
	})
	switch {
	case err != nil:
		return nil, err
	case len(parts) == 1:
		return parts[0], nil
	}
	return joinParts(parts, len(keys)), nil
}

// renumber gives a part's entries the indexes of the whole. An owner that passes a key over in silence is not asked again for it.
func renumber(answer *presencev1.GetStatesResponse, items []int) (notOwned []int, err error) {
	for _, e := range answer.GetEntries() {
		if int(e.GetIndex()) >= len(items) {
			return nil, status.Errorf(codes.Internal, "it answered for key %d of %d", e.GetIndex(), len(items))
		}
		e.Index = uint32(items[e.GetIndex()])
	}
	for _, i := range answer.GetNotOwned() {
		if int(i) >= len(items) {
			return nil, status.Errorf(codes.Internal, "it does not own key %d of %d", i, len(items))
		}
		notOwned = append(notOwned, int(i))
	}
	if len(answer.GetEntries())+len(notOwned) < len(items) {
		return nil, status.Error(codes.Internal, "it left keys without an answer")
	}
	return notOwned, nil
}

func upTo(n int) []int {
	items := make([]int, n)
	for i := range items {
		items[i] = i
	}
	return items
}

// byPartition is an answer about partitions.
type byPartition interface {
	GetNotOwned() []int32
	GetPartitionCount() int32
}

// freshByPartition is one that says how fresh it is.
type freshByPartition interface {
	GetPartitions() []*presencev1.PartitionFreshness
}

// ListStates implements StateReader. Each owner lists its partitions; what all of them have read is merged.
func (r *Router) ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.RequestTimeout)
	defer cancel()
	parts, err := askPartitions(ctx, r, req.GetPartitions(), hedgePartitions,
		func(ctx context.Context, owner presencev1.StateServiceClient, partitions []int32) (*presencev1.ListStatesResponse, error) {
			// Made anew: a request must not be changed while another owner's is being sent.
			return owner.ListStates(ctx, &presencev1.ListStatesRequest{
				Cluster: req.GetCluster(), Partitions: partitions, Status: req.GetStatus(), Node: req.GetNode(), Username: req.GetUsername(),
				ClientIdPrefix: req.GetClientIdPrefix(), SinceFromMs: req.SinceFromMs, SinceBeforeMs: req.SinceBeforeMs, After: req.GetAfter(),
				Limit: req.GetLimit(), Count: req.GetCount(),
			})
		})
	if err != nil {
		return nil, err
	}
	return joinLists(parts, byState(req), int(req.GetLimit())), nil
}

// GetCounts implements StateReader.
func (r *Router) GetCounts(ctx context.Context, req *presencev1.GetCountsRequest) (*presencev1.GetCountsResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.RequestTimeout)
	defer cancel()
	parts, err := askPartitions(ctx, r, req.GetPartitions(), hedgePartitions,
		func(ctx context.Context, owner presencev1.StateServiceClient, partitions []int32) (*presencev1.GetCountsResponse, error) {
			return owner.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: req.GetCluster(), Partitions: partitions})
		})
	if err != nil {
		return nil, err
	}
	return joinCounts(parts), nil
}

// ListUsernames implements StateReader.
func (r *Router) ListUsernames(ctx context.Context, req *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, r.cfg.RequestTimeout)
	defer cancel()
	parts, err := askPartitions(ctx, r, req.GetPartitions(), hedgePartitions,
		func(ctx context.Context, owner presencev1.StateServiceClient, partitions []int32) (*presencev1.ListUsernamesResponse, error) {
			return owner.ListUsernames(ctx, &presencev1.ListUsernamesRequest{
				Cluster: req.GetCluster(), Partitions: partitions, After: req.After, Limit: req.GetLimit(),
			})
		})
	if err != nil {
		return nil, err
	}
	return joinUsernames(parts, int(req.GetLimit())), nil
}

// CheckStore implements StateReader.
func (r *Router) CheckStore(ctx context.Context, req *presencev1.CheckStoreRequest) (*presencev1.CheckStoreResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	parts, err := askPartitions(ctx, r, req.GetPartitions(), 0,
		func(ctx context.Context, owner presencev1.StateServiceClient, partitions []int32) (*presencev1.CheckStoreResponse, error) {
			return owner.CheckStore(ctx, &presencev1.CheckStoreRequest{Partitions: partitions, Repair: req.GetRepair()})
		})
	if err != nil {
		return nil, err
	}
	whole := &presencev1.CheckStoreResponse{}
	for _, p := range parts {
		whole.Checks = append(whole.Checks, p.GetChecks()...)
		whole.PartitionCount = p.GetPartitionCount()
	}
	slices.SortFunc(whole.Checks, func(a, b *presencev1.StoreCheck) int { return int(a.GetPartition()) - int(b.GetPartition()) })
	return whole, nil
}

// askPartitions asks the owners of the given partitions, or of all if none is given, and returns one answer for each owner that has any. Hedge is
// that of a question.
func askPartitions[A byPartition](ctx context.Context, r *Router, wanted []int32, hedge time.Duration,
	ask func(ctx context.Context, owner presencev1.StateServiceClient, partitions []int32) (A, error),
) ([]A, error) {
	q := question[A]{
		items: func(t *routing) []int {
			if len(wanted) == 0 {
				return upTo(int(t.partitions))
			}
			items := make([]int, len(wanted))
			for i, p := range wanted {
				items[i] = int(p)
			}
			return items
		},
		partition: func(t *routing, item int) int32 { return min(int32(item), t.partitions-1) },
		ask: func(ctx context.Context, owner presencev1.StateServiceClient, items []int) (A, error) {
			partitions := make([]int32, len(items))
			for i, p := range items {
				partitions[i] = int32(p)
			}
			return ask(ctx, owner, partitions)
		},
		check: func(answer A, items []int) (notOwned []int, err error) {
			for _, p := range answer.GetNotOwned() {
				at := slices.Index(items, int(p))
				if at < 0 {
					return nil, status.Errorf(codes.Internal, "it does not own partition %d, which it was not asked for", p)
				}
				notOwned = append(notOwned, at)
			}
			return notOwned, nil
		},
		hedge: hedge,
	}
	if _, ok := any(*new(A)).(freshByPartition); ok {
		q.fresh = func(answer A) []*presencev1.PartitionFreshness { return any(answer).(freshByPartition).GetPartitions() }
	}
	parts, err := askOwners(ctx, r, q)
	if err != nil {
		return nil, err
	}
	if len(parts) == 0 {
		return nil, errors.New("no partitions")
	}
	for _, p := range parts {
		if p.GetPartitionCount() != parts[0].GetPartitionCount() {
			return nil, fmt.Errorf("materializers count %d and %d partitions", p.GetPartitionCount(), parts[0].GetPartitionCount())
		}
	}
	return parts, nil
}
