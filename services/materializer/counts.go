package materializer

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// GetCounts returns the counters of partitions. Exact is false while their rows do not show a change of nodes yet, of whichever cluster, or
// their indexes are being built, when not all clients are counted yet. Errors are gRPC statuses, as of ListStates.
func (m *Materializer) GetCounts(_ context.Context, req *presencev1.GetCountsRequest) (_ *presencev1.GetCountsResponse, err error) {
	if err := eventlog.ValidCluster(req.GetCluster()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "cluster: %v", err)
	}
	o, err := m.over(req.GetCluster(), req.GetPartitions())
	if err != nil {
		return nil, storeError(err)
	}
	defer o.done(&err)
	// A count is of a cluster and a status, and in the cluster that was asked for of a node.
	type of struct {
		cluster string
		status  presence.Presence
		node    string
	}
	counts, clusters := map[of]int64{}, map[of]int64{}
	for _, id := range o.ids {
		if err := o.view.Places(id, "", func(c store.PlaceCount) error {
			s := o.statusOf(c.Cluster, c.Standing)
			clusters[of{c.Cluster, s, ""}] += c.Clients
			if c.Cluster == o.cluster {
				counts[of{"", s, c.Node}] += c.Clients
			}
			return nil
		}); err != nil {
			return nil, storeError(err)
		}
	}
	list := func(of map[of]int64) []*presencev1.StateCount {
		all := make([]*presencev1.StateCount, 0, len(of))
		for k, n := range of {
			all = append(all, &presencev1.StateCount{Cluster: k.cluster, Status: k.status.String(), Node: k.node, Clients: n})
		}
		slices.SortFunc(all, func(a, b *presencev1.StateCount) int {
			return cmp.Or(cmp.Compare(a.GetCluster(), b.GetCluster()), cmp.Compare(a.GetNode(), b.GetNode()), cmp.Compare(a.GetStatus(), b.GetStatus()))
		})
		return all
	}
	return &presencev1.GetCountsResponse{
		Counts: list(counts), Clusters: list(clusters), Exact: o.built() && o.sweptAll, NotOwned: o.notOwned, Partitions: o.freshness(m),
		Health: o.health(), PartitionCount: m.cfg.Kafka.Partitions,
	}, nil
}

// ListUsernames returns the counters by username of partitions, ascending. Exact is as in ListStates. Errors are gRPC statuses, as of
// ListStates.
func (m *Materializer) ListUsernames(ctx context.Context, req *presencev1.ListUsernamesRequest) (_ *presencev1.ListUsernamesResponse, err error) {
	if err := eventlog.ValidCluster(req.GetCluster()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "cluster: %v", err)
	}
	limit := int(req.GetLimit())
	if limit < 1 || limit > maxListed {
		return nil, status.Errorf(codes.InvalidArgument, "limit: %d is not between 1 and %d", limit, maxListed)
	}
	o, err := m.over(req.GetCluster(), req.GetPartitions())
	if err != nil {
		return nil, storeError(err)
	}
	defer o.done(&err)
	resp := &presencev1.ListUsernamesResponse{
		End: true, Exact: o.exact(), NotOwned: o.notOwned, Partitions: o.freshness(m), Health: o.health(), PartitionCount: m.cfg.Kafka.Partitions,
	}
	if len(o.ids) == 0 {
		return resp, nil
	}
	if err := o.view.Usernames(o.ids, o.cluster, req.After, func(username string, clients int64) (bool, error) {
		if len(resp.GetUsernames()) == limit {
			resp.End = false
			return false, nil
		}
		resp.Usernames = append(resp.Usernames, &presencev1.StateUsername{Username: username, Clients: clients})
		return true, ctx.Err()
	}); err != nil {
		return nil, storeError(err)
	}
	return resp, nil
}
