package query

import (
	"context"
	"fmt"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// snapshotPage is the number of clients of one page.
const snapshotPage = 500

// snapshotRetry is the time between two reads of clients that are older than the transitions told already.
const snapshotRetry = 50 * time.Millisecond

// watchNeeds is what must have been applied for all transitions of the hub's sequence to be known.
type watchNeeds struct {
	events []int64 // offsets of client-events up to here, by partition
	nodes  int64   // offsets of node-events up to here
}

func (n *watchNeeds) add(e *watchEntry) {
	n.events[e.partition] = max(n.events[e.partition], e.version[0]+1)
	n.nodes = max(n.nodes, e.version[1]+1)
}

// behind returns a partition that does not know all of them yet.
func (n *watchNeeds) behind(read []*presencev1.PartitionFreshness) (partition int32, is bool) {
	for _, p := range read {
		id := p.GetPartition()
		if p.GetNodeAppliedOffset() < n.nodes || int(id) < len(n.events) && p.GetAppliedOffset() < n.events[id] {
			return id, true
		}
	}
	return 0, false
}

// firstPage reads the first clients of the snapshot.
func (v *watcher) firstPage(ctx context.Context) (err error) {
	if v.filter.ids != nil {
		v.page, err = v.current(ctx, v.pageOfIDs)
	} else {
		v.page, err = v.nextPage(ctx, nil)
	}
	return err
}

// current reads clients until they are not older than the position that the transitions are told from: a client whose last transition is
// before that would stay what it was in the snapshot. A partition lags so while its owner catches up, and on a replica.
func (v *watcher) current(ctx context.Context, read func(context.Context) (*presencev1.ListStatesResponse, error)) (*presencev1.ListStatesResponse, error) {
	patience := time.NewTimer(v.cfg.RequestTimeout)
	defer patience.Stop()
	for {
		page, err := read(ctx)
		if err != nil {
			return nil, err
		}
		partition, behind := v.needs.behind(page.GetPartitions())
		if !behind {
			return page, nil
		}
		retry := time.NewTimer(snapshotRetry)
		select {
		case <-retry.C:
		case <-patience.C:
			err = unavailable(fmt.Sprintf("partition %d has not applied yet what transitions were told of; watch again", partition))
		case <-v.hub.closed:
			err = errHubClosed
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		if retry.Stop(); err != nil {
			return nil, err
		}
	}
}

// nextPage reads the clients after a place.
func (v *watcher) nextPage(ctx context.Context, after *presencev1.Position) (*presencev1.ListStatesResponse, error) {
	return v.current(ctx, func(ctx context.Context) (*presencev1.ListStatesResponse, error) {
		req := &presencev1.ListStatesRequest{
			Cluster: v.filter.cluster, Node: v.filter.node, Username: v.filter.username, ClientIdPrefix: v.filter.prefix, After: after, Limit: snapshotPage,
		}
		if !v.filter.anyStatus {
			req.Status = v.filter.status.String()
		}
		return v.answers.listStates(ctx, req)
	})
}

// pageOfIDs reads the clients that the filter names.
func (v *watcher) pageOfIDs(ctx context.Context) (*presencev1.ListStatesResponse, error) {
	ids := v.filter.clients()
	page := &presencev1.ListStatesResponse{}
	if len(ids) == 0 {
		return page, nil
	}
	req := &presencev1.GetStatesRequest{}
	for _, id := range ids {
		req.Keys = append(req.Keys, &presencev1.StateKey{ClientId: id})
	}
	answer, err := v.answers.ask(ctx, v.filter.cluster, req)
	if err != nil {
		return nil, err
	}
	if len(answer.GetNotOwned()) > 0 {
		return nil, unavailable("nobody owns the partition of some of these clients right now; ask again")
	}
	page.Partitions, page.Health = answer.GetPartitions(), answer.GetHealth()
	for _, e := range answer.GetEntries() {
		if i := int(e.GetIndex()); e.GetFound() && i < len(ids) && v.filter.selectsState(ids[i], e) {
			e.ClientId = ids[i]
			page.Entries = append(page.Entries, e)
		}
	}
	return page, nil
}

// snapshot tells all clients, and then takes up the transitions from the position before them. What changes meanwhile may be told twice, as
// it is in the list and as the transition that made it so. There is no token before the end: a watch that went on from there would lack the
// clients not told yet.
func (v *watcher) snapshot(ctx context.Context) error {
	page := v.page
	v.page = nil
	var fresh []*presencev1.Freshness
	for {
		if len(page.GetPartitions()) > 0 {
			fresh = []*presencev1.Freshness{worst(append(fresh, v.answers.worstOf(page)))}
		}
		for _, e := range page.GetEntries() {
			c := client(v.filter.cluster, e.GetClientId(), e)
			if err := v.message(&presencev1.WatchClientsResponse{Type: watchClient, Client: c}); err != nil {
				return err
			}
			if v.held != nil {
				v.held.saw(clientName{c.GetCluster(), c.GetClientId()}, sight{
					presence.ParsePresence(c.GetStatus()),
					connectionName{e.GetNode(), e.GetConnection().GetKey(), e.GetConnection().GetConnectedAtMs()},
				})
			}
		}
		if err := v.flush(); err != nil {
			return err
		}
		if err := v.stopped(ctx); err != nil {
			return err
		}
		if page.GetReadTo() == nil {
			break
		}
		var err error
		if page, err = v.nextPage(ctx, page.GetReadTo()); err != nil {
			return err
		}
	}
	v.at = v.from.token()
	fresh = append(fresh, v.fresh.of(ctx, v.filter.cluster))
	err := v.message(&presencev1.WatchClientsResponse{Type: watchSnapshotEnd, ResumeToken: v.at, Freshness: worst(fresh)})
	if err != nil {
		return err
	}
	return v.resume(ctx)
}
