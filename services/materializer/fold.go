package materializer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// emptyState is the encoding of the state of which nothing is known.
var emptyState = (&presence.State{}).Append(nil)

// noVersion is less than any other.
var noVersion = store.Version{Event: -1, Node: -1}

// foldBatch folds records, in order, and commits what comes of them.
func (p *partition) foldBatch(ctx context.Context, records []*kgo.Record) error {
	if err := p.fold(ctx, records); err != nil {
		return err
	}
	return p.flush()
}

// fold folds records, in order, into the working set. It commits the set by itself where a caller would do so too late: once it has grown to its
// bound, and before it waits for room in the outbox.
func (p *partition) fold(ctx context.Context, records []*kgo.Record) error {
	f := &p.folds
	for len(records) > 0 {
		if err := p.room(ctx); err != nil {
			return err
		}
		if f.empty() {
			f.began = time.Now()
		}
		part := records
		if f.blank {
			// There is nothing to read in order, so what is decoded had better stay in the processor's cache.
			part = records[:min(chunkFacts, len(records))]
		}
		n, err := p.foldPart(ctx, part)
		if err != nil {
			return err
		}
		f.records += n
		if err := p.spill(); err != nil {
			return err
		}
		if records = records[n:]; len(records) > 0 && p.grown() {
			if err := p.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// foldPart folds records until the set has grown to its bound, and returns how many it has folded: all of them, or at least one.
func (p *partition) foldPart(ctx context.Context, records []*kgo.Record) (n int, err error) {
	f := &p.folds
	next := p.decode(records)
	// A dead letter is durable before the offset that passes it is.
	if err := p.parts.dead.send(ctx, f.poison); err != nil {
		return 0, err
	}
	if err := p.readRows(); err != nil {
		return 0, err
	}
	n = len(records)
	table := p.parts.nodes.table()
	for i := range f.facts {
		pf := &f.facts[i]
		tick(&p.meta, pf.Fact.ReceivedMS)
		p.meta.AppliedMS = max(p.meta.AppliedMS, pf.Fact.ReceivedMS)
		p.apply(f.entry(pf.entry), pf, table)
		if p.grown() && i+1 < len(f.facts) {
			// Few facts can make very much, where states are large. What follows is decoded again, and of its dead letters there are two.
			next = pf.Offset + 1
			n, _ = slices.BinarySearchFunc(records, next, func(r *kgo.Record, offset int64) int { return cmp.Compare(r.Offset, offset) })
			break
		}
	}
	p.meta.Next = next
	clear(f.facts)
	f.facts, f.poison = f.facts[:0], nil
	return n, nil
}

// flush commits the working set.
func (p *partition) flush() error {
	f := &p.folds
	if f.empty() {
		return nil
	}
	defer f.reset()
	b, err := p.newBatch()
	if err != nil {
		return errors.Join(err, f.closeSpill())
	}
	order := f.sorted()
	for _, e := range order {
		p.writeRow(b, e)
	}
	// After all rows: keys that ascend are cheaper to write.
	for _, e := range order {
		p.writeEvidence(b, e)
	}
	for _, e := range order {
		if err := p.writeSessions(b, e); err != nil {
			return closeBatch(b, err)
		}
	}
	if p.historyNext && f.firstMS != 0 {
		p.historyNext = false
		b.PutHistory(f.firstMS)
	}
	p.metrics.batchRecords.Observe(float64(f.records))
	if err := p.commit(b, f.out); err != nil {
		return err
	}
	f.blank = false
	return nil
}

// newBatch returns the batch that the working set is written with.
func (p *partition) newBatch() (*store.Batch, error) {
	f := &p.folds
	if f.spill == nil && (f.size < p.loadRows || !f.blank && !p.turn) {
		return p.indexes.NewBatch(), nil
	}
	// With the first facts to the last ones there is nothing left to build.
	b, err := p.indexes.NewLoad(store.Load{First: f.blank, Complete: p.progress.reached(p.meta.Next), Spill: f.spill})
	f.spill = nil
	return b, err
}

// decode fills facts and poison, and adds the facts' entries; it returns the offset after the last record.
func (p *partition) decode(records []*kgo.Record) (next int64) {
	f := &p.folds
	next = p.meta.Next
	for i, r := range records {
		if i%chunkFacts == 0 {
			f.readAhead(records[i:min(i+chunkFacts, len(records))])
		}
		if r.Offset < next {
			continue
		}
		next = r.Offset + 1
		f.facts = append(f.facts, pendingFact{Evidence: store.Evidence{Offset: r.Offset}})
		pf := &f.facts[len(f.facts)-1]
		if n := len(f.facts); n > 1 {
			// Much is the same in the next fact; it need not be in memory twice.
			before := &f.facts[n-2].Fact
			pf.Fact.Cluster, pf.Fact.Node, pf.Fact.Username = before.Cluster, before.Node, before.Username
		}
		if d := p.check(r, &pf.Fact); d != nil {
			f.poison = append(f.poison, d)
			f.facts = f.facts[:len(f.facts)-1]
			continue
		}
		if f.firstMS == 0 {
			f.firstMS = max(pf.Fact.ReceivedMS, 1)
		}
		var added bool
		pf.Fact.Node = f.name(pf.Fact.Node)
		if pf.entry, added = f.add(r.Key, f.hashes[i%chunkFacts]); added && !f.blank {
			f.unread = append(f.unread, pf.entry)
		}
	}
	return next
}

// check decodes a record; it returns a dead letter if the record can never be applied.
func (p *partition) check(r *kgo.Record, f *presence.Fact) *eventlog.DeadLetter {
	if err := eventlog.DecodeFact(r, f); err != nil {
		return poisonOf(r, reasonBadRecord, err.Error())
	}
	n := len(f.Cluster)
	if len(r.Key) != n+1+len(f.ClientID) || string(r.Key[:n]) != f.Cluster || r.Key[n] != '/' || string(r.Key[n+1:]) != f.ClientID {
		return poisonOf(r, reasonKeyMismatch, "the key is not cluster/client_id of the value")
	}
	if eventlog.Partition(r.Key, p.parts.cfg.Kafka.Partitions) != p.id {
		return poisonOf(r, reasonWrongPartition, "the key belongs to another partition by murmur2: use Kafka's default partitioner")
	}
	return nil
}

// readRows reads the rows of new entries in key order.
func (p *partition) readRows() (err error) {
	f := &p.folds
	if len(f.unread) == 0 {
		return nil
	}
	cursor, err := p.parts.store.NewCursor(p.id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cursor.Close()) }()
	slices.SortFunc(f.unread, func(a, b int) int { return strings.Compare(f.entry(a).key, f.entry(b).key) })
	for _, i := range f.unread {
		e := f.entry(i)
		f.key = append(f.key[:0], e.key...)
		if f.scratch, e.found, err = cursor.AppendRow(f.scratch[:0], f.key); err != nil {
			return err
		}
		if !e.found {
			continue
		}
		state, err := e.row.Decode(f.scratch)
		if err != nil {
			return err
		}
		e.before = f.arena.copy(state)
		e.published, e.indexed = e.before, e.row.Indexed()
		f.weigh(e)
	}
	f.unread = f.unread[:0]
	return nil
}

// apply folds one fact and notes the transition that it causes.
func (p *partition) apply(e *entry, pf *pendingFact, table *nodeTable) {
	f := &pf.Fact
	switch {
	case pf.Offset <= e.row.Latest.Event:
		// The row came from client-state and already holds the fact.
		pf.Outcome, pf.Restored = presence.Duplicate, true
	case p.tooOld(f):
		pf.Outcome = presence.TooOld
	default:
		p.applyTo(e, pf, table)
		p.folds.weigh(e)
	}
	p.folds.counted.facts[f.Kind][pf.Outcome]++
	p.note(e, &pf.Evidence)
}

// applyTo folds a fact that counts.
func (p *partition) applyTo(e *entry, pf *pendingFact, table *nodeTable) {
	f := &pf.Fact
	if (!e.row.State.Empty() || e.row.State.ForgottenMS != 0) && p.gone(&e.row) {
		p.expire(e, f, pf.Offset, table)
	}
	if f.ReceivedMS > e.row.ReceivedMS {
		e.row.ReceivedMS, e.touched = f.ReceivedMS, true
	}
	e.settled = false
	cluster := table.cluster(f.Cluster)
	if !e.found && !e.expired && !e.transition && e.row.Last.Version == noVersion {
		// What was said of the client so far, without a record: that it was never seen.
		e.row.Last = p.neverSeen(f.Cluster, 0, table).Last
	}
	keep := p.parts.cfg.SessionsPerClient > 0
	if keep {
		p.noteLeaving(&e.row.State, f, cluster)
	}
	pf.Outcome = e.row.State.Apply(f)
	if keep {
		p.logSessions(e, f, pf.Outcome)
	}
	v := presence.Status(&e.row.State, cluster, p.allowanceMS())
	version := store.Version{Event: pf.Offset, Node: table.next - 1}
	if f.Kind == presence.Forgotten && pf.Outcome == presence.Applied {
		defer p.buryForgotten(e, f, version)
	}
	if !changes(&e.row.Last, &v) {
		amend(&e.row.Last, &v)
		return
	}
	var state []byte
	if p.parts.cfg.Publish {
		state = p.encodeState(&e.row.State)
	}
	p.transit(&e.row, &v, version, eventTime(f), f.Cluster, f.ClientID, state)
	e.published, e.transition, e.settled = state, true, p.parts.cfg.Publish
	pf.Changed, pf.Change = true, changeOf(&e.row.Last)
}

// encodeState returns the state's bytes, in memory of the working set.
func (p *partition) encodeState(s *presence.State) []byte {
	f := &p.folds
	f.state = s.Append(f.state[:0])
	return f.arena.copy(f.state)
}

func (p *partition) allowanceMS() int64 { return p.parts.cfg.Allowance.Milliseconds() }

// eventTime is when a fact happened: on the node's clock, else when it was received.
func eventTime(f *presence.Fact) int64 {
	if f.TimeMS != 0 {
		return f.TimeMS
	}
	return f.ReceivedMS
}

// changes reports whether a verdict is a transition: the status or the current connection is not what was last published.
func changes(l *store.Transition, v *presence.Verdict) bool {
	return v.Status != l.Status || v.Node != l.Node || connectionKey(v) != l.Key
}

// amend brings up to date what a verdict that is no transition says of the status, and reports whether that was needed.
func amend(l *store.Transition, v *presence.Verdict) bool {
	if l.SinceMS == v.SinceMS && l.Reason == v.Reason && l.Belief == v.Belief {
		return false
	}
	l.SinceMS, l.Reason, l.Belief = v.SinceMS, v.Reason, v.Belief
	return true
}

func connectionKey(v *presence.Verdict) string {
	if v.Conn == nil {
		return ""
	}
	return v.Conn.Key
}

// transit makes a verdict the row's last transition and puts its record into the outbox of the batch.
func (p *partition) transit(r *store.Row, v *presence.Verdict, version store.Version, timeMS int64, cluster, clientID string, state []byte) {
	r.Last = store.Transition{
		Status: v.Status, Belief: v.Belief, Previous: r.Last.Status, Reason: v.Reason, SinceMS: v.SinceMS,
		Node: v.Node, Key: connectionKey(v), TimeMS: timeMS, Version: version,
	}
	r.Latest = version
	p.folds.counted.transitions[v.Status]++
	p.emit(r, v, true, cluster, clientID, state)
}

// emit puts the record of a row's latest version into the outbox of the batch.
func (p *partition) emit(r *store.Row, v *presence.Verdict, transition bool, cluster, clientID string, state []byte) {
	if !p.parts.cfg.Publish {
		return
	}
	s := eventlog.ClientState{
		Transition: transition, Cluster: cluster, ClientID: clientID, Status: v.Status, PreviousStatus: r.Last.Previous, Belief: v.Belief,
		StatusReason: v.Reason, SinceMS: v.SinceMS, Node: v.Node, Connection: connectionKey(v), Reason: v.Close, RawReason: v.Raw,
		TimeMS: r.Last.TimeMS, EventOffset: r.Latest.Event, NodeEventOffset: r.Latest.Node, State: state,
	}
	if c := v.Conn; c != nil {
		s.ConnectedAtMS, s.Username, s.Peer = c.OpenedMS, c.Username, c.Peer
	}
	p.put(&s)
}

// put appends a record to the outbox of the batch.
func (p *partition) put(s *eventlog.ClientState) {
	f := &p.folds
	eventlog.FillStateRecord(&f.record, s, p.id, p.parts.cfg.Kafka.Format())
	f.out = store.AppendOutbox(f.out, &f.record)
	f.outSize += len(f.record.Key) + len(f.record.Value)
}

// writeRow writes an entry's row if the set changed it.
func (p *partition) writeRow(b *store.Batch, e *entry) {
	f := &p.folds
	state := e.published
	if !e.settled {
		f.state = e.row.State.Append(f.state[:0])
		state = f.state
	}
	f.key = append(f.key[:0], e.key...)
	if e.expired && e.row.State.Empty() && e.row.State.ForgottenMS == 0 {
		if e.found {
			b.DeleteRow(f.key, e.indexed)
		}
		e.logged, e.sessions, e.forgotten = chain{}, chain{}, false
		return
	}
	changed := !bytes.Equal(state, e.before)
	if !e.found && !changed && !e.transition {
		e.logged, e.sessions = chain{}, chain{} // there is no row, so there is no log
		return
	}
	dirty := !e.settled && !bytes.Equal(state, e.published) || !e.transition && e.row.Dirty
	if !changed && !e.transition && !e.touched {
		return
	}
	if p.parts.cfg.Publish && dirty != e.row.Dirty {
		e.row.Dirty = dirty
		if dirty {
			b.MarkDirty(f.key)
		} else {
			b.ClearDirty(f.key)
		}
	}
	b.PutRow(f.key, e.indexed, &e.row, state)
}
