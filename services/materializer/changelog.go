package materializer

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// changelogSilence is how long the changelog may be silent before its end, which is known to be there.
const changelogSilence = 30 * time.Second

// catchUpChangelog reads what was published to client-state since this store last had it, by others that owned the partition meanwhile or
// just before a crash, and from the beginning if there are no rows. The former publisher is fenced before, so that the end stands.
//
// What is published is the truth: a record that is newer than its row replaces it, and what was folded here but not published gives way,
// client by client, where others published something else. A replaced row lacks facts that were folded here and that its record does not
// hold, so the offset goes back to the first of them; to the latest checkpoint at most, up to which all states are published. Facts that
// a row holds are passed over, see fold.
func (p *partition) catchUpChangelog(ctx context.Context, pub *publisher, found bool, first int64) error {
	next, err := p.parts.store.Changelog(p.id)
	if err != nil {
		return err
	}
	start, end, err := p.changelogBounds(ctx, pub, next)
	if err != nil {
		return err
	}
	// From here on rows change that the partition as it was, which may still be read, does not answer for.
	p.unserve()
	before := p.meta.Next
	m := &merge{p: p, was: p.meta, found: found, unpublished: map[string][]unpublished{}, newest: map[string]record{}}
	if next < end && start < end {
		if err := m.loadUnpublished(); err != nil {
			return err
		}
		if err := m.read(ctx, max(next, start), end); err != nil {
			return err
		}
	}
	if m.outdated(first) {
		if err := p.startAnew(); err != nil {
			return err
		}
		return p.catchUpChangelog(ctx, pub, false, first)
	}
	b := p.indexes.NewBatch()
	if err := m.settle(b); err != nil {
		return closeBatch(b, err)
	}
	if m.checkpoint > p.meta.Next {
		// From here on the clock goes by the facts that come; others have it from those before.
		p.meta.ClockMS, p.meta.AheadMS = max(p.meta.ClockMS, m.clockMS), 0
		p.meta.AppliedMS = max(p.meta.AppliedMS, m.appliedMS)
	}
	if p.meta.Next = max(p.meta.Next, m.checkpoint); p.meta.Next == 0 {
		p.meta.Next = first
	}
	b.PutChangelog(max(next, end))
	if !found || p.meta.Next > before {
		// Others folded the facts before: no log here has them.
		b.PutLogged(p.loggedFrom())
	}
	if !found || m.replaced > 0 || p.meta.Next > before {
		// Nor do they have the sessions, unless there is a fact from the first one on.
		since := p.historyFrom(m.latestMS)
		if p.meta.Next == 0 && since != store.NoHistory {
			since = store.HistoryAll
		}
		b.PutHistory(since)
	}
	b.PutMeta(&p.meta)
	if m.replaced > 0 {
		p.log.Info("rows restored from client-state", service.KeyCount, m.replaced)
	}
	return b.Commit()
}

// changelogBounds returns the first offset and the end of what others have published, all of which is committed or aborted.
func (p *partition) changelogBounds(ctx context.Context, pub *publisher, next int64) (start, end int64, err error) {
	start, end, err = bounds(ctx, p.parts.adm, eventlog.TopicClientState, p.id)
	if err != nil || pub == nil {
		if err == nil {
			start, end, err = committedBounds(ctx, p.parts.adm, eventlog.TopicClientState, p.id)
		}
		return start, end, err
	}
	if next >= end {
		return start, end, nil
	}
	sealed, err := pub.seal(ctx)
	if err != nil {
		return 0, 0, err
	}
	// Kafka may still be completing a transaction of the former publisher, for example one that it had begun to commit before it was
	// restarted: until then the committed end stands before it, and so before the seal.
	ctx, cancel := context.WithTimeout(ctx, changelogSilence)
	defer cancel()
	poll := time.NewTicker(sealPoll)
	defer poll.Stop()
	for {
		if start, end, err = committedBounds(ctx, p.parts.adm, eventlog.TopicClientState, p.id); err != nil || end > sealed {
			return start, end, err
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return 0, 0, away(fmt.Errorf("wait until %s partition %d is committed up to offset %d, it is up to %d: %w", eventlog.TopicClientState, p.id, sealed, end, ctx.Err()))
		}
	}
}

// sealPoll is the time between two looks at the committed end.
const sealPoll = 10 * time.Millisecond

// merge is one reading of the changelog.
type merge struct {
	p          *partition
	was        store.Meta // before the reading
	found      bool       // there are rows that were folded here
	checkpoint int64      // largest checkpoint seen
	clockMS    int64      // the partition's clock at it
	appliedMS  int64      // the largest received time of the facts below it
	latestMS   int64      // the largest received time that a row tells of which was replaced
	replaced   int
	outbox     []store.Chunk
	dropped    []map[int]bool // of each chunk of the outbox, by index of the record
	// unpublished is the outbox by key, newest the newest record of the topic of each of its clients.
	unpublished map[string][]unpublished
	newest      map[string]record
	row         store.Row
	value       []byte
	state       []byte
}

// unpublished is a record of the outbox.
type unpublished struct {
	chunk, index int // where it is
	value        []byte
	version      store.Version
}

// record is the newest record of a client: its state, or a tombstone.
type record struct {
	state     *eventlog.ClientState // nil for a tombstone
	tombstone eventlog.Tombstone
	version   store.Version
	value     []byte
}

// decode reads a record of a client or a checkpoint; it reports false for a tombstone that does not say what it removes.
func (d *record) decode(r *kgo.Record) (ok bool, err error) {
	*d = record{value: r.Value}
	if len(r.Value) == 0 {
		ok, err := eventlog.DecodeTombstone(r, &d.tombstone)
		d.version = store.Version{Event: d.tombstone.EventOffset, Node: d.tombstone.NodeEventOffset}
		return ok, err
	}
	d.state = new(eventlog.ClientState)
	if err := eventlog.DecodeClientState(r, d.state); err != nil {
		return false, err
	}
	d.version = versionOf(d.state)
	return true, nil
}

func (m *merge) loadUnpublished() error {
	return m.p.parts.store.Outbox(m.p.id, func(c store.Chunk) error {
		records, err := c.AppendRecords(nil)
		if err != nil {
			return err
		}
		for i := range records {
			var d record
			r := &records[i]
			if ok, err := d.decode(r); err != nil || !ok {
				return fmt.Errorf("read record %d of chunk %d of the outbox of partition %d: %w", i, c.Seq, m.p.id, err)
			}
			m.unpublished[string(r.Key)] = append(m.unpublished[string(r.Key)], unpublished{chunk: len(m.outbox), index: i, value: r.Value, version: d.version})
		}
		m.outbox, m.dropped = append(m.outbox, c), append(m.dropped, nil)
		return nil
	})
}

// drop notes that a record of the outbox is not to be published.
func (m *merge) drop(u *unpublished) {
	if m.dropped[u.chunk] == nil {
		m.dropped[u.chunk] = map[int]bool{}
	}
	m.dropped[u.chunk][u.index] = true
}

// writeOutbox replaces the chunks of which records were dropped by what is left of them.
func (m *merge) writeOutbox(b *store.Batch) error {
	for i, dropped := range m.dropped {
		if dropped == nil {
			continue
		}
		rest, err := m.outbox[i].Without(func(i int) bool { return dropped[i] })
		if err != nil {
			return err
		}
		if rest.Records == 0 {
			b.DeleteOutbox(rest.Seq, rest.Seq)
		} else {
			b.PutOutbox(&rest)
		}
	}
	return nil
}

// settle decides what becomes of the outbox. A client's entries up to the newest record of the topic are dropped if that record is one of
// them: it was published before a crash. If it is none, others published it, and all entries of the client give way.
func (m *merge) settle(b *store.Batch) error {
	for key, n := range m.newest {
		entries := m.unpublished[key]
		own := slices.IndexFunc(entries, func(u unpublished) bool { return u.version == n.version && bytes.Equal(u.value, n.value) })
		if own < 0 {
			own = len(entries) - 1
			if err := m.replace(b, []byte(key), &n, true); err != nil {
				return err
			}
		}
		for i := range entries[:own+1] {
			m.drop(&entries[i])
		}
	}
	// A checkpoint that was not published may claim what gave way.
	checkpoints := m.unpublished[eventlog.CheckpointKey]
	for i := range checkpoints {
		if u := &checkpoints[i]; m.replaced > 0 || u.version.Event <= m.checkpoint {
			m.drop(u)
		}
	}
	if m.replaced > 0 {
		m.p.meta.Checkpoint = m.checkpoint
	}
	return m.writeOutbox(b)
}

func versionOf(s *eventlog.ClientState) store.Version {
	return store.Version{Event: s.EventOffset, Node: s.NodeEventOffset}
}

// read applies the committed records from an offset to the end.
func (m *merge) read(ctx context.Context, from, end int64) error {
	opts, err := m.p.parts.cfg.Kafka.SharedOpts(m.p.parts.kafkaLog)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicClientState: {m.p.id: kgo.NewOffset().At(from)}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The last record below the end is the marker that ended a transaction: without it the end would not be seen.
		kgo.KeepControlRecords(),
	)...)
	if err != nil {
		return fmt.Errorf("create the consumer of %s: %w", eventlog.TopicClientState, err)
	}
	defer cl.Close()
	for next := from; next < end; {
		pollCtx, cancel := context.WithTimeout(ctx, changelogSilence)
		fetches := cl.PollFetches(pollCtx)
		records := fetches.Records()
		silent := pollCtx.Err() != nil && len(records) == 0
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if silent {
			return away(fmt.Errorf("read %s partition %d: no record from offset %d to the end offset %d within %v", eventlog.TopicClientState, m.p.id, next, end, changelogSilence))
		}
		if err := fetchError(ctx, fetches); err != nil {
			return err
		}
		if err := m.apply(ctx, records); err != nil {
			return err
		}
		if n := len(records); n > 0 {
			next = records[n-1].Offset + 1
		}
	}
	return nil
}

// apply replaces the rows that have newer records. If a crash leaves the reading unfinished, it is done again.
func (m *merge) apply(ctx context.Context, records []*kgo.Record) error {
	latest := map[string]record{}
	var poison []*eventlog.DeadLetter
	for _, r := range records {
		if r.Attrs.IsControl() {
			continue
		}
		var d record
		if ok, err := d.decode(r); err != nil {
			poison = append(poison, poisonOf(r, reasonBadRecord, err.Error()))
			continue
		} else if !ok {
			continue
		}
		if d.state != nil && d.state.Checkpoint {
			if d.state.EventOffset >= m.checkpoint {
				m.checkpoint, m.clockMS, m.appliedMS = d.state.EventOffset, d.state.ClockMS, 0
				if r.Attrs.TimestampType() == 0 { // the publisher's, not Kafka's
					m.appliedMS = max(0, r.Timestamp.UnixMilli())
				}
			}
			continue
		}
		to := latest
		if m.unpublished[string(r.Key)] != nil {
			to = m.newest
		}
		// A transition and the tombstone that follows it have one version: the later record counts.
		if old, ok := to[string(r.Key)]; !ok || !d.version.Less(old.version) {
			to[string(r.Key)] = d
		}
	}
	if err := m.p.parts.dead.send(ctx, poison); err != nil {
		return err
	}
	b := m.p.indexes.NewBatch()
	for key, n := range latest {
		if err := m.replace(b, []byte(key), &n, false); err != nil {
			return closeBatch(b, err)
		}
	}
	if m.found {
		// The offset goes back together with the rows that need it.
		b.PutMeta(&m.p.meta)
	}
	return b.Commit()
}

// replace brings the row of a client to what a record says, if that is newer than the row in the store or if it is to win anyway.
func (m *merge) replace(b *store.Batch, key []byte, n *record, wins bool) error {
	value, found, err := m.p.parts.store.AppendRow(m.value[:0], m.p.id, key)
	m.value = value
	if err != nil {
		return err
	}
	var indexed store.Indexed
	if found {
		if _, err := m.row.Decode(value); err != nil {
			return err
		}
		indexed = m.row.Indexed()
		if !wins && !m.row.Latest.Less(n.version) {
			return nil
		}
	}
	row, err := m.rowOf(n, found)
	if err != nil {
		return fmt.Errorf("restore client of %s partition %d: %w", eventlog.TopicClientState, m.p.id, err)
	}
	switch {
	case found && (n.state == nil || row.State.ForgottenMS > m.row.State.ForgottenMS):
		// What is kept of the client beside the row goes too.
		b.DeleteRow(key, indexed)
		indexed = store.Indexed{}
	case found:
		if m.row.Dirty {
			b.ClearDirty(key)
		}
		m.logReplaced(b, key, n, &row)
	}
	m.state = row.State.Append(m.state[:0])
	b.PutRow(key, indexed, &row, m.state)
	m.replaced++
	m.latestMS = max(m.latestMS, row.ReceivedMS)
	if m.found {
		m.p.meta.SweptNode = -1
		if next := n.version.Event + 1; next < m.p.meta.Next {
			// The row tells of no fact that is not below the offset. Those that are ahead of it say nothing of how far the partition is.
			m.p.meta.Next, m.p.meta.AppliedMS = next, min(m.p.meta.AppliedMS, row.ReceivedMS)
		}
	}
	return nil
}

// rowOf returns the row that a record stands for; found is true if m.row is the one before. That of a client that expired keeps out the facts
// that its tombstone covers, until they are passed.
func (m *merge) rowOf(n *record, found bool) (row store.Row, err error) {
	if n.state == nil {
		t := &n.tombstone
		row = m.p.neverSeen(t.Cluster, t.AsOfMS, m.p.parts.nodes.table())
		row.Latest, row.Last.Version, row.ReceivedMS = n.version, n.version, t.TimeMS
		return row, nil
	}
	s := n.state
	state, err := presence.DecodeState(s.State)
	if err != nil {
		return row, err
	}
	row = store.Row{
		State: state, Latest: n.version, ReceivedMS: latestReceived(&state),
		Last: store.Transition{
			Status: s.Status, Belief: s.Belief, Previous: s.PreviousStatus, Reason: s.StatusReason, SinceMS: s.SinceMS,
			Node: s.Node, Key: s.Connection, TimeMS: s.TimeMS, Version: n.version,
		},
	}
	if found && !s.Transition && m.row.Last.Status == s.Status && m.row.Last.Node == s.Node && m.row.Last.Key == s.Connection {
		row.Last.Version = m.row.Last.Version
	}
	return row, nil
}

// logReplaced logs the connections that a row had and the one that replaces it does not have.
func (m *merge) logReplaced(b *store.Batch, key []byte, n *record, row *store.Row) {
	if m.p.parts.cfg.SessionsPerClient == 0 {
		return
	}
	var log []byte
	table, old := m.p.parts.nodes.table(), &m.row.State
	for i := range old.Nodes {
		x := &old.Nodes[i]
		if x.Known && !holds(&row.State, x.Node, connIDOf(&x.Conn)) && x.Conn.OpenedMS > row.State.ForgottenMS {
			s := sessionOf(old, i, table.cluster(n.state.Cluster), m.p.allowanceMS())
			log = store.AppendSession(log, &s)
		}
	}
	if len(log) > 0 {
		b.AddSessions(key, log)
	}
}

// latestReceived is the largest received time that a state tells of.
func latestReceived(s *presence.State) int64 {
	var ms int64
	for i := range s.Nodes {
		n := &s.Nodes[i]
		ms = max(ms, n.Conn.ReceivedMS, n.End.ReceivedMS)
		for j := range n.Closes {
			ms = max(ms, n.Closes[j].ReceivedMS)
		}
	}
	for i := range s.Observed {
		ms = max(ms, s.Observed[i].QueryEndMS)
	}
	return ms
}

// loadOutbox makes what the store has of the outbox known to the publisher.
func (p *partition) loadOutbox() error {
	if !p.parts.cfg.Publish {
		return nil
	}
	var chunks []store.Chunk
	held := 0
	if err := p.parts.store.Outbox(p.id, func(c store.Chunk) error {
		if held += c.Size(); held > maxOutbox {
			c.Release()
			p.outbox.spill(&c)
		}
		chunks = append(chunks, c)
		return nil
	}); err != nil {
		return err
	}
	p.outbox.push(chunks)
	return nil
}
