package query

import (
	"context"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// snapshotPage is the number of clients of one page.
const snapshotPage = 500

// firstPage reads the first clients of the snapshot.
func (v *watcher) firstPage(ctx context.Context) (err error) {
	if v.filter.ids != nil {
		v.page, err = v.pageOfIDs(ctx)
	} else {
		v.page, err = v.nextPage(ctx, nil)
	}
	return err
}

// nextPage reads the clients after a place.
func (v *watcher) nextPage(ctx context.Context, after *presencev1.Position) (*presencev1.ListStatesResponse, error) {
	req := &presencev1.ListStatesRequest{
		Cluster: v.filter.cluster, Node: v.filter.node, Username: v.filter.username, ClientIdPrefix: v.filter.prefix, After: after, Limit: snapshotPage,
	}
	if !v.filter.anyStatus {
		req.Status = v.filter.status.String()
	}
	page, err := v.answers.reader.ListStates(ctx, req)
	if err != nil {
		return nil, readError(ctx, err, nil, v.cfg.RequestTimeout)
	}
	return page, nil
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
	for _, e := range answer.GetEntries() {
		if i := int(e.GetIndex()); e.GetFound() && i < len(ids) && v.filter.selectsState(ids[i], e) {
			e.ClientId = ids[i]
			page.Entries = append(page.Entries, e)
		}
	}
	return page, nil
}

// snapshot tells all clients, and then takes up the transitions from the position before them. What changes meanwhile may be told twice, as
// it is in the list and as the transition that made it so.
func (v *watcher) snapshot(ctx context.Context) error {
	page := v.page
	v.page = nil
	v.at = v.from.token()
	for {
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
	err := v.message(&presencev1.WatchClientsResponse{Type: watchSnapshotEnd, ResumeToken: v.at, Freshness: v.fresh.of(ctx, v.filter.cluster)})
	if err != nil {
		return err
	}
	return v.resume(ctx)
}
