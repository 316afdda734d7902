package materializer

import (
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// indexRows is how many rows are read for the indexes between two batches of facts.
const indexRows = 1 << 10

// repair has the partition build its indexes anew.
func (p *partition) repair() {
	select {
	case p.repairs <- struct{}{}:
	default: // asked for already
	}
}

// toIndex reports whether indexes are to be built: not before the partition has caught up, since that is faster without them.
func (p *partition) toIndex() bool {
	valid := p.indexes.Valid()
	if p.indexed.Swap(valid) && !valid {
		p.log.Warn("indexes are built anew")
	}
	if valid || !p.progress.read().ready {
		return false
	}
	if p.indexing.IsZero() {
		p.indexing = time.Now()
		p.building.Store(0)
	}
	return true
}

// indexChunk builds the indexes of the next rows, of which there are at most as many as given.
func (p *partition) indexChunk(rows int) error {
	table := p.parts.nodes.table()
	if err := p.indexes.Build(rows, func(client []byte, r *store.Row) bool {
		p.building.Add(1)
		// A row that was written before there were indexes may not have the latest since.
		v := presence.Status(&r.State, table.cluster(clusterOf(client)), p.allowanceMS())
		return !changes(&r.Last, &v) && amend(&r.Last, &v)
	}); err != nil {
		return err
	}
	if p.indexes.Valid() {
		p.indexed.Store(true)
		p.log.Debug("indexes are built", service.KeyDuration, time.Since(p.indexing))
		p.indexing = time.Time{}
	}
	return nil
}
