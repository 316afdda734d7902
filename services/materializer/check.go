package materializer

import (
	"context"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// CheckStore compares the indexes and counters of partitions with a scan of all their rows, each partition as it is at one moment. Where
// they differ and repair is set, they are built anew. Indexes that are being built are a difference too. Errors are gRPC statuses, as of
// ListStates.
func (m *Materializer) CheckStore(ctx context.Context, req *presencev1.CheckStoreRequest) (*presencev1.CheckStoreResponse, error) {
	o, err := m.over("", req.GetPartitions())
	if err != nil {
		return nil, storeError(err)
	}
	// Each partition is read in a view of its own: one that is held for long keeps the store from being compacted.
	if err := o.close(); err != nil {
		return nil, storeError(err)
	}
	resp := &presencev1.CheckStoreResponse{NotOwned: o.notOwned, PartitionCount: m.cfg.Kafka.Partitions}
	for _, id := range o.ids {
		c, err := o.parts[id].checkStore(ctx, req.GetRepair())
		if err != nil {
			return nil, storeError(err)
		}
		resp.Checks = append(resp.Checks, c)
	}
	return resp, nil
}

func (p *partition) checkStore(ctx context.Context, repair bool) (*presencev1.StoreCheck, error) {
	view, err := p.parts.store.NewView()
	if err != nil {
		return nil, err
	}
	indexed, err := view.Indexed(p.id)
	var c store.Check
	if err == nil && indexed {
		c, err = view.Check(ctx, p.id)
	}
	if err = closeView(view, err); err != nil {
		return nil, err
	}
	answer := &presencev1.StoreCheck{
		Partition: p.id, Clients: c.Clients, IndexEntries: c.Entries, Counters: c.Counters, Differences: c.Differences, Repairing: !indexed,
	}
	switch {
	case !indexed:
		answer.Differences = []string{"the indexes are not complete: they are being built"}
	case repair && len(c.Differences) > 0:
		p.repair()
		answer.Repairing = true
	}
	return answer, nil
}
