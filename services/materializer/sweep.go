package materializer

import (
	"bytes"
	"context"
	"maps"
	"slices"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// sweepRows is how many rows a sweep looks at between two batches of facts.
const sweepRows = 1 << 10

// sweep is a walk over all rows of the clusters whose nodes changed, which publishes the transitions that follow. Until a row is
// reached, reads compute its status from the row and the node table, so that answers are right at once. A sweep that a restart
// interrupts begins again: rows that it reached show no difference any more.
type sweep struct {
	target   int64    // node-events offset that the rows will show; what is to be persisted
	clusters []string // that remain; the first is under way
	after    []byte   // the last client of it that was looked at
}

func (s *sweep) active() bool { return len(s.clusters) > 0 }

// aim begins a sweep if there are node facts that the rows do not show. One under way goes on: its rest uses the newest table, and what
// it has passed is covered by the next.
func (s *sweep) aim(t *nodeTable, swept int64) {
	if s.active() || t.affected <= swept {
		return
	}
	s.target, s.after = t.affected, nil
	for _, cluster := range slices.Sorted(maps.Keys(t.touched)) {
		if t.touched[cluster].offset > swept {
			s.clusters = append(s.clusters, cluster)
		}
	}
}

// noteAllowance has all rows swept if the statuses in them were computed with another allowance: lists and counters go by those.
func (p *partition) noteAllowance() {
	if ms := p.allowanceMS(); p.meta.AllowanceMS != ms {
		p.meta.AllowanceMS, p.meta.SweptNode = ms, -1
	}
}

// sweepChunk looks at the next rows.
func (p *partition) sweepChunk(ctx context.Context) error {
	if err := p.room(ctx); err != nil {
		return err
	}
	defer p.folds.reset()
	s := &p.sweep
	cluster := s.clusters[0]
	table := p.parts.nodes.table()
	b := p.indexes.NewBatch()
	last, err := p.parts.store.Clients(p.id, cluster, s.after, sweepRows, func(client, row []byte) error {
		return p.sweepRow(b, table, cluster, client, row)
	})
	if err != nil {
		return closeBatch(b, err)
	}
	if s.after = last; last == nil {
		if s.clusters = s.clusters[1:]; len(s.clusters) == 0 {
			p.meta.SweptNode = s.target
			p.parts.metrics.sweeps.Inc()
			p.log.Debug("swept after a change of nodes", service.KeyOffset, s.target)
		}
	}
	return p.commit(b, p.folds.out)
}

func (p *partition) sweepRow(b *store.Batch, table *nodeTable, cluster string, client, value []byte) error {
	var r store.Row
	state, err := r.Decode(value)
	if err != nil {
		return err
	}
	if r.State.Empty() {
		return nil // a marker: nothing is said of a client that was forgotten
	}
	indexed := r.Indexed()
	v := presence.Status(&r.State, table.cluster(cluster), p.allowanceMS())
	if !changes(&r.Last, &v) {
		if amend(&r.Last, &v) {
			b.PutRow(client, indexed, &r, state)
		}
		return nil
	}
	version := p.versionNow(&r, table)
	if !r.Latest.Less(version) {
		return nil
	}
	p.transit(&r, &v, version, table.touched[cluster].timeMS, cluster, clientOf(cluster, client), state)
	p.logChange(b, client, &r)
	if r.Dirty {
		r.Dirty = false
		b.ClearDirty(client)
	}
	b.PutRow(client, indexed, &r, state)
	return nil
}

// versionNow is the version of a record that no fact of the client caused.
func (p *partition) versionNow(r *store.Row, table *nodeTable) store.Version {
	return store.Version{Event: max(p.meta.Next-1, r.Latest.Event), Node: table.next - 1}
}

// clusterOf returns the cluster of a key.
func clusterOf(key []byte) string {
	cluster, _, _ := bytes.Cut(key, []byte{'/'})
	return string(cluster)
}

// clientOf returns the client ID of a key.
func clientOf(cluster string, key []byte) string { return string(key[len(cluster)+1:]) }

// checkpoint puts the records of all dirty clients into the outbox, and after them the checkpoint: all states up to the next offset are
// published. It does nothing if the offset has not moved since.
func (p *partition) checkpoint(ctx context.Context) error {
	if !p.parts.cfg.Publish || p.meta.Next == p.meta.Checkpoint {
		return nil
	}
	table := p.parts.nodes.table()
	for {
		if err := p.room(ctx); err != nil {
			return err
		}
		more, err := p.cleanChunk(table)
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
	}
}

// cleanChunk puts the next dirty clients' records into the outbox; with the last of them goes the checkpoint.
func (p *partition) cleanChunk(table *nodeTable) (more bool, err error) {
	defer p.folds.reset()
	b := p.indexes.NewBatch()
	n := 0
	if err := p.parts.store.Dirty(p.id, func(client []byte) (bool, error) {
		if n++; n > sweepRows {
			return false, nil
		}
		return true, p.clean(b, table, client)
	}); err != nil {
		return false, closeBatch(b, err)
	}
	if more = n > sweepRows; !more {
		p.meta.Checkpoint = p.meta.Next
		p.put(&eventlog.ClientState{Checkpoint: true, TimeMS: p.meta.AppliedMS, EventOffset: p.meta.Next, NodeEventOffset: table.next - 1, ClockMS: p.meta.ClockMS})
	}
	return more, p.commit(b, p.folds.out)
}

// clean puts the record of a dirty client into the outbox. If a sweep has not reached the client yet, that is a transition.
func (p *partition) clean(b *store.Batch, table *nodeTable, client []byte) error {
	cluster, clientID, err := eventlog.SplitClientKey(client)
	if err != nil {
		return err
	}
	value, found, err := p.parts.store.AppendRow(nil, p.id, client)
	if err != nil {
		return err
	}
	b.ClearDirty(client)
	if !found {
		return nil
	}
	var r store.Row
	state, err := r.Decode(value)
	if err != nil || r.State.Empty() {
		return err
	}
	indexed := r.Indexed()
	v := presence.Status(&r.State, table.cluster(cluster), p.allowanceMS())
	r.Dirty = false
	if version := p.versionNow(&r, table); changes(&r.Last, &v) {
		p.transit(&r, &v, version, table.touched[cluster].timeMS, cluster, clientID, state)
		p.logChange(b, client, &r)
	} else {
		r.Latest = version
		amend(&r.Last, &v)
		p.emit(&r, &v, false, cluster, clientID, state)
	}
	b.PutRow(client, indexed, &r, state)
	return nil
}

// closeBatch drops a batch that was not filled and returns why.
func closeBatch(b *store.Batch, err error) error {
	if cerr := b.Close(); cerr != nil && err == nil {
		return cerr
	}
	return err
}
