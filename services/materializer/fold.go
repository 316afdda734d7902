package materializer

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// fold is the working memory of a partition's batches. A batch reads each row that it touches once, in key order, folds all of its
// facts in offset order, and writes each changed row once.
type fold struct {
	facts   []pendingFact
	entries []entry
	byKey   map[string]int
	order   []int
	arena   []byte // states of this batch; what entries point into
	out     []store.Entry
	poison  []*eventlog.DeadLetter
	logged  []byte // of one client
	key     []byte // of one client

	leaving     []store.Session // what a fact may take out of the state
	sessions    []byte          // logged by this batch
	sessionRefs []sessionRef
}

// pendingFact is a decoded fact, what became of it, and the entry that it goes to.
type pendingFact struct {
	store.Evidence
	entry int
	next  int // 1 + the index of the client's next fact of the batch, 0 for none
}

// entry is a row of the batch.
type entry struct {
	key   string
	found bool
	row   store.Row
	// published is the state as in the client's latest record, as far as this batch knows it: as it was read, or as a transition of
	// the batch left it.
	published  []byte
	before     []byte // as read
	indexed    store.Indexed
	transition bool
	touched    bool // received time grew

	// The client's facts of the batch: 1 + the index of the first and of the last, and how many.
	first, last, logged int
	forgotten           bool // what was logged before them is to go

	expired bool // the row was gone, and what followed was folded onto nothing

	firstSession, lastSession int // 1 + the indexes of the client's first and last sessionRef, 0 for none
}

// emptyState is the encoding of the state of which nothing is known.
var emptyState = (&presence.State{}).Append(nil)

func (f *fold) init() { f.byKey = map[string]int{} }

func (f *fold) reset() {
	// The memory of a large batch is kept for the next large one only.
	if len(f.facts) <= liveBatch && cap(f.facts) > 4*liveBatch {
		*f = fold{byKey: map[string]int{}, logged: f.logged}
		return
	}
	clear(f.facts)
	clear(f.entries)
	clear(f.byKey)
	clear(f.out)
	clear(f.leaving[:cap(f.leaving)])
	f.sessions, f.sessionRefs = f.sessions[:0], f.sessionRefs[:0]
	f.facts, f.entries, f.order, f.arena, f.out, f.poison = f.facts[:0], f.entries[:0], f.order[:0], f.arena[:0], f.out[:0], nil
}

// foldBatch applies records in order and commits what comes of them.
func (p *partition) foldBatch(ctx context.Context, records []*kgo.Record) error {
	if len(records) == 0 {
		return nil
	}
	if err := p.room(ctx); err != nil {
		return err
	}
	f := &p.folds
	defer f.reset()
	next, appliedMS := p.decode(records)
	// A dead letter is durable before the offset that passes it is.
	if err := p.parts.dead.send(ctx, f.poison); err != nil {
		return err
	}
	if err := p.readRows(); err != nil {
		return err
	}
	table := p.parts.nodes.table()
	for i := range f.facts {
		tick(&p.meta, f.facts[i].Fact.ReceivedMS)
		p.apply(&f.facts[i], table)
		f.log(i)
	}
	b := p.indexes.NewBatch()
	for _, i := range f.order {
		p.writeRow(b, &f.entries[i])
	}
	// After all rows: keys that ascend are cheaper to write.
	for _, i := range f.order {
		p.writeEvidence(b, &f.entries[i])
	}
	for _, i := range f.order {
		if err := p.writeSessions(b, &f.entries[i]); err != nil {
			return closeBatch(b, err)
		}
	}
	if p.historyNext && len(f.facts) > 0 {
		p.historyNext = false
		b.PutHistory(max(f.facts[0].Fact.ReceivedMS, 1))
	}
	p.meta.Next, p.meta.AppliedMS = next, appliedMS
	p.metrics.batchRecords.Observe(float64(len(records)))
	return p.commit(b, f.out)
}

// decode fills facts, entries and poison; it returns the offset after the last record and the largest received time so far.
func (p *partition) decode(records []*kgo.Record) (next, appliedMS int64) {
	f := &p.folds
	next, appliedMS = p.meta.Next, p.meta.AppliedMS
	for _, r := range records {
		if r.Offset < next {
			continue
		}
		next = r.Offset + 1
		f.facts = append(f.facts, pendingFact{Evidence: store.Evidence{Offset: r.Offset}})
		fact := &f.facts[len(f.facts)-1]
		if d := p.check(r, &fact.Fact); d != nil {
			f.poison = append(f.poison, d)
			f.facts = f.facts[:len(f.facts)-1]
			continue
		}
		appliedMS = max(appliedMS, fact.Fact.ReceivedMS)
		i, ok := f.byKey[string(r.Key)]
		if !ok {
			i = len(f.entries)
			key := string(r.Key)
			f.entries = append(f.entries, entry{key: key})
			f.byKey[key] = i
		}
		fact.entry = i
	}
	return next, appliedMS
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

// readRows reads the rows of all entries in key order.
func (p *partition) readRows() (err error) {
	f := &p.folds
	cursor, err := p.parts.store.NewCursor(p.id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cursor.Close()) }()
	for i := range f.entries {
		f.order = append(f.order, i)
	}
	slices.SortFunc(f.order, func(a, b int) int {
		return strings.Compare(f.entries[a].key, f.entries[b].key)
	})
	var key []byte
	for _, i := range f.order {
		e := &f.entries[i]
		begin := len(f.arena)
		key = append(key[:0], e.key...)
		if f.arena, e.found, err = cursor.AppendRow(f.arena, key); err != nil {
			return err
		}
		if !e.found {
			e.before, e.published = emptyState, emptyState
			e.row.Last.Version, e.row.Latest = noVersion, noVersion
			continue
		}
		if e.before, err = e.row.Decode(f.arena[begin:len(f.arena):len(f.arena)]); err != nil {
			return err
		}
		e.published, e.indexed = e.before, e.row.Indexed()
	}
	return nil
}

// noVersion is less than any other.
var noVersion = store.Version{Event: -1, Node: -1}

// apply folds one fact and notes the transition that it causes.
func (p *partition) apply(pf *pendingFact, table *nodeTable) {
	f := &pf.Fact
	e := &p.folds.entries[pf.entry]
	counts := &p.metrics.facts[f.Kind]
	if pf.Offset <= e.row.Latest.Event {
		// The row came from client-state and already holds the fact.
		counts[presence.Duplicate].Inc()
		pf.Outcome, pf.Restored = presence.Duplicate, true
		return
	}
	if p.tooOld(f) {
		counts[presence.TooOld].Inc()
		pf.Outcome = presence.TooOld
		return
	}
	if (!e.row.State.Empty() || e.row.State.ForgottenMS != 0) && p.gone(&e.row) {
		p.expire(e, f, pf.Offset, table)
	}
	if f.ReceivedMS > e.row.ReceivedMS {
		e.row.ReceivedMS, e.touched = f.ReceivedMS, true
	}
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
	counts[pf.Outcome].Inc()
	v := presence.Status(&e.row.State, cluster, p.allowanceMS())
	version := store.Version{Event: pf.Offset, Node: table.next - 1}
	if f.Kind == presence.Forgotten && pf.Outcome == presence.Applied {
		defer p.buryForgotten(e, f, version)
	}
	if !changes(&e.row.Last, &v) {
		amend(&e.row.Last, &v)
		return
	}
	state := p.encodeState(&e.row.State)
	p.transit(&e.row, &v, version, eventTime(f), f.Cluster, f.ClientID, state)
	e.published, e.transition = state, true
	pf.Changed, pf.Change = true, changeOf(&e.row.Last)
}

// encodeState returns the state's bytes, in memory of the batch.
func (p *partition) encodeState(s *presence.State) []byte {
	f := &p.folds
	begin := len(f.arena)
	f.arena = s.Append(f.arena)
	return f.arena[begin:len(f.arena):len(f.arena)]
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
	p.metrics.transitions[v.Status].Inc()
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
	f.out = append(f.out, store.Entry{Seq: p.outbox.nextSeq(len(f.out)), Message: messageOf(eventlog.StateRecord(s, p.id, p.parts.cfg.Kafka.Format()))})
}

// writeRow writes an entry's row if the batch changed it.
func (p *partition) writeRow(b *store.Batch, e *entry) {
	state := p.encodeState(&e.row.State)
	if e.expired && e.row.State.Empty() && e.row.State.ForgottenMS == 0 {
		if e.found {
			b.DeleteRow([]byte(e.key), e.indexed)
		}
		e.logged, e.firstSession, e.forgotten = 0, 0, false
		return
	}
	changed := !bytes.Equal(state, e.before)
	if !e.found && !changed && !e.transition {
		e.logged, e.firstSession = 0, 0 // there is no row, so there is no log
		return
	}
	dirty := !bytes.Equal(state, e.published) || !e.transition && e.row.Dirty
	if !changed && !e.transition && !e.touched {
		return
	}
	if p.parts.cfg.Publish && dirty != e.row.Dirty {
		e.row.Dirty = dirty
		if dirty {
			b.MarkDirty([]byte(e.key))
		} else {
			b.ClearDirty([]byte(e.key))
		}
	}
	b.PutRow([]byte(e.key), e.indexed, &e.row, state)
}
