package materializer

import (
	"context"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// Expiry is a function of the log. Each partition has a clock: the largest received time of its facts, with one exception (tick). By it a fact
// is too old, and a row is gone, whether or not its bytes are still there: what is folded onto a row that is gone is folded onto nothing. Bytes
// are removed by a walk over the rows, in the background.

const (
	hourMS = int64(time.Hour / time.Millisecond)
	dayMS  = 24 * hourMS

	// markerMS is how long a marker stays after the time up to which its client was forgotten, by the partition's clock, however soon clients
	// expire: a fact of before that a bridge receives only now is not too old. It can come once more as long as Kafka has it: for the retention of
	// client-events, 7 days, and until the segment that it is in, of 7 days, is full.
	markerMS = 14 * dayMS

	// jumpMS is the largest step ahead that the clock takes on the word of one fact.
	jumpMS = dayMS
)

// expiry is a walk over the rows of a partition.
type expiry struct {
	nextMS int64 // the clock from which on it is due
	active bool
	rows   bool   // past the markers
	after  []byte // the last client that was looked at
}

// tick sets the partition's clock by a fact. If nothing was received for more than jumpMS, or a bridge's clock is far ahead, the clock waits until
// all facts have said so for as long: one bridge with a wrong clock among others moves nothing, and what is right comes a day late, which does no
// harm. It depends on the facts before and on nothing else.
func tick(m *store.Meta, receivedMS int64) {
	switch {
	case receivedMS <= m.ClockMS+jumpMS:
		m.ClockMS, m.AheadMS = max(m.ClockMS, receivedMS), 0
	case m.AheadMS == 0 || receivedMS < m.AheadMS:
		m.AheadMS = receivedMS
	case receivedMS > m.AheadMS+2*jumpMS:
		// Another silence, or a wrong clock: the one before has been confirmed, this one has not.
		m.ClockMS, m.AheadMS = m.AheadMS, receivedMS
	case receivedMS >= m.AheadMS+jumpMS:
		m.ClockMS, m.AheadMS = receivedMS, 0
	}
}

// tooOld reports whether a fact comes too late to count.
func (p *partition) tooOld(f *presence.Fact) bool {
	limit := p.parts.cfg.ExpireAfter.Milliseconds()
	return limit > 0 && f.Kind != presence.Forgotten && f.ReceivedMS > 0 && f.ReceivedMS < p.meta.ClockMS-limit
}

// gone reports whether a row is as if it were not there: nothing was heard for long of a client that is offline, as far as that was decided, or
// of which no connection is known, such as one that only failed logins name; or it is the marker of a deletion that keeps out nothing any more.
func (p *partition) gone(r *store.Row) bool {
	if r.State.Empty() {
		return p.remembered(&r.State) == 0
	}
	limit := p.parts.cfg.ExpireAfter.Milliseconds()
	return limit > 0 && r.ReceivedMS > 0 && r.ReceivedMS < p.meta.ClockMS-limit && (r.Last.Status == presence.Offline || r.Last.Reason == presence.NeverSeen)
}

// remembered returns the time up to which a client was forgotten, 0 if no fact of before can come any more.
func (p *partition) remembered(s *presence.State) int64 {
	if s.ForgottenMS < p.meta.ClockMS-markerMS {
		return 0
	}
	return s.ForgottenMS
}

// expire makes an entry of the working set one of a client never seen, before the fact at an offset is folded onto it.
func (p *partition) expire(e *entry, f *presence.Fact, offset int64, table *nodeTable) {
	asOfMS := p.remembered(&e.row.State)
	if !e.row.State.Empty() {
		// The fact's own version is that of the transition that it causes.
		p.bury(&eventlog.Tombstone{Cluster: f.Cluster, ClientID: f.ClientID, Reason: eventlog.RemovedExpired, AsOfMS: asOfMS, TimeMS: p.meta.ClockMS,
			EventOffset: offset - 1, NodeEventOffset: table.next - 1})
		p.parts.metrics.expired.Inc()
	}
	dirty := e.row.Dirty
	e.row = p.neverSeen(f.Cluster, asOfMS, table)
	e.row.Dirty = dirty
	e.published, e.transition, e.expired, e.forgotten = p.encodeState(&e.row.State), false, true, true
	e.logged, e.sessions = chain{}, chain{}
}

// neverSeen is the row of a client of which nothing is known but up to when it was forgotten, and nothing was published.
func (p *partition) neverSeen(cluster string, forgottenMS int64, table *nodeTable) store.Row {
	v := presence.Status(&presence.State{}, table.cluster(cluster), p.allowanceMS())
	return store.Row{
		State:  presence.State{ForgottenMS: forgottenMS},
		Last:   store.Transition{Status: v.Status, Belief: v.Belief, Reason: v.Reason, Version: noVersion},
		Latest: noVersion,
	}
}

// bury puts a tombstone into the outbox of the working set.
func (p *partition) bury(t *eventlog.Tombstone) {
	if p.parts.cfg.Publish {
		f := &p.folds
		f.out = store.AppendOutbox(f.out, eventlog.TombstoneRecord(t, p.id))
	}
}

// aimExpiry begins a walk if one is due: a tenth of the time after which clients expire has passed by the partition's clock, or an hour.
func (p *partition) aimExpiry() {
	x := &p.expiry
	if x.active || p.meta.ClockMS < x.nextMS || !p.progress.read().ready {
		return
	}
	every := p.parts.cfg.ExpireAfter.Milliseconds() / 10
	*x = expiry{nextMS: p.meta.ClockMS + min(max(every, hourMS), dayMS), active: true}
}

// expiryChunk looks at the next markers, or rows.
func (p *partition) expiryChunk(ctx context.Context) error {
	if err := p.room(ctx); err != nil {
		return err
	}
	defer p.folds.reset()
	x := &p.expiry
	table := p.parts.nodes.table()
	b := p.indexes.NewBatch()
	var last []byte
	var err error
	if x.rows {
		last, err = p.parts.store.Rows(p.id, x.after, sweepRows, func(client, row []byte) error { return p.expireRow(b, table, client, row) })
	} else {
		last, err = p.parts.store.Markers(p.id, x.after, sweepRows, func(client []byte) error { return p.expireMarker(b, table, client) })
	}
	if err != nil {
		return closeBatch(b, err)
	}
	if x.after = last; last == nil {
		if x.rows || p.parts.cfg.ExpireAfter == 0 {
			x.active = false
			p.log.Debug("walked over the rows for those that expired", service.KeyOffset, p.meta.Next)
		}
		x.rows = true
	}
	return p.commit(b, p.folds.out)
}

// expireRow removes the row of a client if it is gone, but for a marker if the client was forgotten not long ago.
func (p *partition) expireRow(b *store.Batch, table *nodeTable, client, value []byte) error {
	var r store.Row
	if _, err := r.Decode(value); err != nil {
		return err
	}
	if !p.gone(&r) {
		return nil
	}
	version := p.versionNow(&r, table)
	if !r.Latest.Less(version) {
		return nil // what was said of it last would hide the tombstone: the next walk is not far
	}
	b.DeleteRow(client, r.Indexed())
	if r.State.Empty() {
		return nil
	}
	cluster, clientID, err := eventlog.SplitClientKey(client)
	if err != nil {
		return err
	}
	asOfMS := p.remembered(&r.State)
	p.bury(&eventlog.Tombstone{Cluster: cluster, ClientID: clientID, Reason: eventlog.RemovedExpired, AsOfMS: asOfMS, TimeMS: p.meta.ClockMS,
		EventOffset: version.Event, NodeEventOffset: version.Node})
	p.parts.metrics.expired.Inc()
	if asOfMS != 0 {
		marker := p.neverSeen(cluster, asOfMS, table)
		b.PutRow(client, store.Indexed{}, &marker, p.encodeState(&marker.State))
	}
	return nil
}

// expireMarker removes a marker that keeps out nothing any more, and the note of one whose client came back.
func (p *partition) expireMarker(b *store.Batch, table *nodeTable, client []byte) error {
	value, found, err := p.parts.store.AppendRow(nil, p.id, client)
	if err != nil {
		return err
	}
	var r store.Row
	if found {
		if _, err := r.Decode(value); err != nil {
			return err
		}
	}
	if !found || !r.State.Empty() {
		b.ClearMarker(client)
		return nil
	}
	return p.expireRow(b, table, client, value)
}
