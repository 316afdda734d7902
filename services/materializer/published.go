package materializer

import (
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// client-state has what the rows have, but for those that are dirty, only if it is the topic to which the rows were published. Where it was created
// again, or this replica did not publish before, nobody who fills a store from it would get the others: all are published anew.

// republishes reports whether all rows of a partition are to be published anew. Of a topic that was created again nothing is in the rows.
func (p *partition) republishes(found bool) (bool, error) {
	if !p.parts.cfg.Publish || !found {
		return false, nil
	}
	to, err := p.parts.store.Published(p.id)
	if err != nil || to == p.parts.stateTopic {
		return false, err
	}
	if to == ([16]byte{}) {
		p.log.Info("this replica publishes from now on: all states are published", service.KeyTopic, eventlog.TopicClientState)
		return true, nil
	}
	p.log.Warn("the topic was created again: all states are published anew", service.KeyTopic, eventlog.TopicClientState)
	b := p.parts.store.NewBatch(p.id)
	b.PutChangelog(0)
	return true, b.Commit()
}

// markAll marks all rows dirty, so that the next checkpoint publishes them.
func (p *partition) markAll() error {
	p.meta.Checkpoint = 0
	for after, more := []byte(nil), true; more; {
		b := p.indexes.NewBatch()
		last, err := p.parts.store.Rows(p.id, after, sweepRows, func(client, value []byte) error { return p.mark(b, client, value) })
		if err != nil {
			p.folds.reset()
			return closeBatch(b, err)
		}
		err = p.commit(b, p.folds.out)
		if p.folds.reset(); err != nil {
			return err
		}
		after, more = last, last != nil
	}
	return nil
}

// mark marks a row dirty. One that says only that its client was forgotten has no state: its tombstone is published again.
func (p *partition) mark(b *store.Batch, client, value []byte) error {
	var r store.Row
	state, err := r.Decode(value)
	if err != nil {
		return err
	}
	if r.State.Empty() {
		cluster, clientID, err := eventlog.SplitClientKey(client)
		if err != nil {
			return err
		}
		p.bury(&eventlog.Tombstone{Cluster: cluster, ClientID: clientID, Reason: eventlog.RemovedForgotten, AsOfMS: r.State.ForgottenMS, TimeMS: r.State.ForgottenMS,
			EventOffset: max(r.Latest.Event, 0), NodeEventOffset: r.Latest.Node})
		return nil
	}
	indexed := r.Indexed()
	r.Dirty = true
	b.MarkDirty(client)
	b.PutRow(client, indexed, &r, state)
	return nil
}

// notePublished notes where the partition is published from now on.
func (p *partition) notePublished() error {
	to := p.parts.stateTopic
	if !p.parts.cfg.Publish {
		to = [16]byte{}
	}
	if noted, err := p.parts.store.Published(p.id); err != nil || noted == to {
		return err
	}
	b := p.parts.store.NewBatch(p.id)
	b.PutPublished(to)
	return b.Commit()
}
