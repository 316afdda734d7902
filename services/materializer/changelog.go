package materializer

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// changelogSilence is how long the changelog may be silent before its end, which is known to be there.
const changelogSilence = 30 * time.Second

// catchUpChangelog reads what was published to client-state since this store last had it, at most by others that owned the partition
// meanwhile, and from the beginning if there are no rows. A record that is newer than its row replaces it. The former publisher is
// fenced before, so that the end stands.
//
// What was folded here but not published, and what others published of the same facts, agree by their versions: an unpublished record is
// dropped if its client has one of that version or a later one. A replaced row lacks facts that were folded here and that its record does
// not hold, so the offset goes back to the first of them; to the latest checkpoint at most, up to which all states are published. Facts
// that a row holds are passed over, see fold.
func (p *partition) catchUpChangelog(ctx context.Context, found bool, first int64) error {
	next, err := p.parts.store.Changelog(p.id)
	if err != nil {
		return err
	}
	start, end, err := committedBounds(ctx, p.parts.adm, eventlog.TopicClientState, p.id)
	if err != nil {
		return err
	}
	m := &merge{p: p, found: found, newest: map[string]store.Version{}}
	if next < end && start < end {
		if err := m.loadUnpublished(); err != nil {
			return err
		}
		if err := m.read(ctx, max(next, start), end); err != nil {
			return err
		}
	}
	if m.replaced > 0 {
		p.log.Info("rows restored from client-state", service.KeyCount, m.replaced)
	}
	if p.meta.Next = max(p.meta.Next, m.checkpoint); p.meta.Next == 0 {
		p.meta.Next = first
	}
	p.meta.Checkpoint = max(p.meta.Checkpoint, m.checkpoint)
	b := p.parts.store.NewBatch(p.id)
	for _, e := range m.superseded() {
		b.DeleteOutbox(e.Seq, e.Seq)
	}
	b.PutChangelog(max(next, end))
	b.PutMeta(&p.meta)
	return b.Commit()
}

// merge is one reading of the changelog.
type merge struct {
	p          *partition
	found      bool  // there are rows that were folded here
	checkpoint int64 // largest checkpoint seen
	replaced   int
	// unpublished is the outbox, newest the newest version on the topic of the clients in it.
	unpublished []unpublished
	newest      map[string]store.Version
	row         store.Row
	value       []byte
	state       []byte
}

type unpublished struct {
	store.Entry
	version store.Version
}

func (m *merge) loadUnpublished() error {
	return m.p.parts.store.Outbox(m.p.id, func(e store.Entry) error {
		var s eventlog.ClientState
		if err := eventlog.DecodeClientState(recordOf(&e.Message, m.p.id), &s); err != nil {
			return fmt.Errorf("read entry %d of the outbox of partition %d: %w", e.Seq, m.p.id, err)
		}
		m.unpublished = append(m.unpublished, unpublished{Entry: e, version: versionOf(&s)})
		m.newest[string(e.Key)] = noVersion
		return nil
	})
}

// superseded returns the entries of the outbox that the topic already has, or has something newer for.
func (m *merge) superseded() []unpublished {
	var out []unpublished
	for _, u := range m.unpublished {
		if v := m.newest[string(u.Key)]; !v.Less(u.version) {
			out = append(out, u)
		}
	}
	return out
}

func versionOf(s *eventlog.ClientState) store.Version {
	return store.Version{Event: s.EventOffset, Node: s.NodeEventOffset}
}

// read applies the committed records from an offset to the end.
func (m *merge) read(ctx context.Context, from, end int64) error {
	opts, err := m.p.parts.cfg.Kafka.Opts(m.p.log)
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
			return fmt.Errorf("read %s partition %d: no record from offset %d to the end offset %d within %v", eventlog.TopicClientState, m.p.id, next, end, changelogSilence)
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
	latest := map[string]*eventlog.ClientState{}
	var poison []*eventlog.DeadLetter
	for _, r := range records {
		if r.Attrs.IsControl() || r.Value == nil {
			continue
		}
		s := new(eventlog.ClientState)
		if err := eventlog.DecodeClientState(r, s); err != nil {
			poison = append(poison, poisonOf(r, reasonBadRecord, err.Error()))
			continue
		}
		if s.Checkpoint {
			m.checkpoint = max(m.checkpoint, s.EventOffset)
		}
		if old := latest[string(r.Key)]; old == nil || versionOf(old).Less(versionOf(s)) {
			latest[string(r.Key)] = s
		}
	}
	if err := m.p.parts.dead.send(ctx, poison); err != nil {
		return err
	}
	b := m.p.parts.store.NewBatch(m.p.id)
	for key, s := range latest {
		if old, ok := m.newest[key]; ok && old.Less(versionOf(s)) {
			m.newest[key] = versionOf(s)
		}
		if s.Checkpoint {
			continue
		}
		if err := m.replace(b, []byte(key), s); err != nil {
			return closeBatch(b, err)
		}
	}
	if m.found {
		// The offset goes back together with the rows that need it.
		b.PutMeta(&m.p.meta)
	}
	return b.Commit()
}

// replace writes the row of a record unless the store has one of that version or a later one.
func (m *merge) replace(b *store.Batch, key []byte, s *eventlog.ClientState) error {
	value, found, err := m.p.parts.store.AppendRow(m.value[:0], m.p.id, key)
	m.value = value
	if err != nil {
		return err
	}
	version := versionOf(s)
	if found {
		if _, err := m.row.Decode(value); err != nil {
			return err
		}
		if !m.row.Latest.Less(version) {
			return nil
		}
		if m.row.Dirty {
			b.ClearDirty(key)
		}
	}
	state, err := presence.DecodeState(s.State)
	if err != nil {
		return fmt.Errorf("restore client of %s partition %d: %w", eventlog.TopicClientState, m.p.id, err)
	}
	row := store.Row{
		State: state, Latest: version, ReceivedMS: latestReceived(&state),
		Last: store.Transition{
			Status: s.Status, Belief: s.Belief, Previous: s.PreviousStatus, Reason: s.StatusReason, SinceMS: s.SinceMS,
			Node: s.Node, Key: s.Connection, TimeMS: s.TimeMS, Version: version,
		},
	}
	if found && !s.Transition && m.row.Last.Status == s.Status && m.row.Last.Node == s.Node && m.row.Last.Key == s.Connection {
		row.Last.Version = m.row.Last.Version
	}
	m.state = state.Append(m.state[:0])
	b.PutRow(key, &row, m.state)
	m.replaced++
	if m.found {
		m.p.meta.Next, m.p.meta.SweptNode = min(m.p.meta.Next, version.Event+1), -1
	}
	m.p.meta.AppliedMS = max(m.p.meta.AppliedMS, row.ReceivedMS)
	return nil
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
	var entries []store.Entry
	if err := p.parts.store.Outbox(p.id, func(e store.Entry) error {
		entries = append(entries, e)
		return nil
	}); err != nil {
		return err
	}
	p.outbox.push(entries)
	return nil
}
