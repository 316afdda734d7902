package materializer

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// foreign appends records to client-state as another owner of the partition would have.
func (l *log) foreign(partition int32, states ...eventlog.ClientState) {
	l.t.Helper()
	cl := eventlogtest.NewClient(l.t, l.cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	for i := range states {
		if err := cl.ProduceSync(l.t.Context(), eventlog.StateRecord(&states[i], partition, eventlog.JSON)).FirstErr(); err != nil {
			l.t.Fatal(err)
		}
	}
}

// stateOf is the record of client a after facts.
func stateOf(status, previous presence.Presence, v store.Version, transition bool, facts ...presence.Fact) eventlog.ClientState {
	var s presence.State
	for i := range facts {
		s.Apply(&facts[i])
	}
	return eventlog.ClientState{
		Transition: transition, Cluster: "default", ClientID: "a", Status: status, PreviousStatus: previous, Belief: presence.Offline, Node: "n1",
		Connection: s.Nodes[0].Conn.Key, SinceMS: t0, TimeMS: t0, EventOffset: v.Event, NodeEventOffset: v.Node, State: s.Append(nil),
	}
}

// heartbeats appends n node events that change nothing.
func (l *log) heartbeats(n int) {
	l.t.Helper()
	for i := range n {
		f := started("n1", int64(i))
		f.Kind = presence.NodeAlive
		l.node(f)
	}
}

// kill stops a materializer as its death would: no last checkpoint, nothing more is published.
func (i *instance) kill() {
	i.t.Helper()
	o := i.owners.Load()
	ids, _ := o.assigned()
	o.release(ids, errLost)
	if err := i.stop(); err != nil {
		i.t.Fatal(err)
	}
}

// hold keeps transactions from being committed until the returned function is called.
func (l *log) hold() (release func()) {
	shut := make(chan struct{})
	var open atomic.Bool
	l.cluster.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		l.cluster.KeepControl()
		if !open.Load() {
			l.cluster.SleepControl(func() { <-shut })
		}
		return nil, nil, false
	})
	return func() {
		if open.CompareAndSwap(false, true) {
			close(shut)
		}
	}
}

// lastState returns the state of client a as last published.
func (l *log) lastState() []byte {
	l.t.Helper()
	var b []byte
	for _, s := range l.states() {
		if s.ClientID == "a" {
			b = s.State
		}
	}
	return b
}

// A newer record of another owner replaces a row that holds later facts: they are folded again.
func TestReplacedRowGetsItsLaterFactsAgain(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	cfg := l.config(fs)
	cfg.CheckpointInterval = time.Hour
	m := l.start(cfg).ready()
	open := opened("a", "n1", 1000)
	m.get("a", l.facts(open))
	m.published(l)
	again := open
	again.ReceivedMS--
	last := l.facts(again)
	m.get("a", last)
	m.kill()
	l.heartbeats(4)
	l.foreign(last.Partition, stateOf(presence.Online, presence.Unknown, store.Version{Event: 0, Node: 3}, false, open))
	m = l.start(cfg).ready()
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	var want presence.State
	want.Apply(&open)
	want.Apply(&again)
	if got := l.lastState(); !slices.Equal(got, want.Append(nil)) {
		t.Errorf("published state is %x, want %x", got, want.Append(nil))
	}
}

// What was folded here, but not published, gives way to what another owner published of the client, and comes again after it; so does
// a checkpoint that was not published.
func TestUnpublishedGivesWay(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	cfg := l.config(fs)
	cfg.CheckpointInterval = 10 * time.Millisecond
	m := l.start(cfg).ready()
	open := opened("a", "n1", 1000)
	last := l.facts(open)
	m.get("a", last)
	m.published(l)
	release := l.hold()
	defer release()
	// The transaction of another client's record is held, and everything behind it.
	blocker := opened(sibling("a", last.Partition, l.cfg.Partitions), "n1", 1000)
	l.facts(blocker)
	m.caughtUp(l)
	servicetest.Eventually(t, patience, func() error {
		if n := m.owned()[last.Partition].outbox.depth(); n == 0 {
			return fmt.Errorf("nothing is held")
		}
		return nil
	})
	m.get("a", l.facts(closedAt("a", "n1", 1000, 2000)))
	servicetest.Eventually(t, patience, func() error {
		if n := m.owned()[last.Partition].outbox.depth(); n < 3 {
			return fmt.Errorf("%d records are held, want both transitions and a checkpoint", n)
		}
		return nil
	})
	m.kill()
	release()
	l.heartbeats(4)
	l.foreign(last.Partition, stateOf(presence.Unknown, presence.Online, store.Version{Event: 0, Node: 3}, true, open))
	m = l.start(cfg).ready()
	m.published(l)
	servicetest.Eventually(t, patience, func() error {
		var got []string
		for _, s := range l.states() {
			if s.ClientID == "a" && s.Transition {
				got = append(got, s.PreviousStatus.String()+" to "+s.Status.String())
			}
		}
		if want := []string{"unknown to online", "online to unknown", "unknown to offline"}; !slices.Equal(got, want) {
			return fmt.Errorf("transitions %v, want %v", got, want)
		}
		return nil
	})
}

// sibling returns a client ID of the same partition.
func sibling(id string, partition, partitions int32) string {
	for i := 0; ; i++ {
		s := fmt.Sprintf("%s-%d", id, i)
		if eventlog.Partition(eventlog.ClientKey("default", s), partitions) == partition {
			return s
		}
	}
}

// A row from another owner, who did not know the latest change of nodes, is swept although this store has swept for it before.
func TestReplacedRowIsSwept(t *testing.T) {
	l := newLog(t)
	l.heartbeats(3)
	l.node(started("n1", 5000))
	fs := vfs.NewMem()
	m := l.start(l.config(fs)).ready()
	first := opened(sibling("a", eventlog.Partition(eventlog.ClientKey("default", "a"), l.cfg.Partitions), l.cfg.Partitions), "n2", 0)
	last := l.facts(first)
	m.published(l)
	servicetest.Eventually(t, patience, func() error {
		if meta, _, err := m.shared.Load().store.Meta(last.Partition); err != nil || meta.SweptNode != 3 {
			return fmt.Errorf("swept up to %d, %v", meta.SweptNode, err)
		}
		return nil
	})
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	open := opened("a", "n1", 1000)
	last = l.facts(open)
	l.foreign(last.Partition, stateOf(presence.Online, presence.Unknown, store.Version{Event: last.Offset, Node: 2}, true, open),
		eventlog.ClientState{Checkpoint: true, EventOffset: last.Offset + 1, NodeEventOffset: 2})
	m = l.start(l.config(fs)).ready()
	servicetest.Eventually(t, patience, func() error {
		if got := l.transitions("a"); len(got) != 2 || got[1] != "offline node_restarted" {
			return fmt.Errorf("transitions %v", got)
		}
		return nil
	})
	m.published(l)
}

// A client may be removed by a tombstone of the version of the record before it.
func TestTombstoneOfTheVersionOfATransition(t *testing.T) {
	p := benchPartition(t, true, store.DefaultEvidence)
	open := opened("a", "n1", 1000)
	version := store.Version{Event: 5, Node: 0}
	s := stateOf(presence.Offline, presence.Unknown, version, true, open)
	records := []*kgo.Record{
		eventlog.StateRecord(&s, 0, eventlog.JSON),
		eventlog.TombstoneRecord(&eventlog.Tombstone{Cluster: "default", ClientID: "a", Reason: eventlog.RemovedExpired, TimeMS: t0, EventOffset: version.Event, NodeEventOffset: version.Node}, 0),
	}
	m := &merge{p: p, unpublished: map[string][]unpublished{}, newest: map[string]record{}}
	if err := m.apply(t.Context(), records); err != nil {
		t.Fatal(err)
	}
	nothing(t, "restored", read(t, p, "a"))
}

// A client that was forgotten at another process and came back there: nothing stays here of before.
func TestForgottenElsewhereAndBack(t *testing.T) {
	p := sessionPartition(t, true)
	foldFacts(t, p, 0, opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000))
	request, back := forgotten("a", 10_000, 10_000), opened("a", "n1", 20_000)
	s := stateOf(presence.Online, presence.Unknown, store.Version{Event: 4, Node: 0}, true, request, back)
	m := &merge{p: p, found: true, unpublished: map[string][]unpublished{}, newest: map[string]record{}}
	if err := m.apply(t.Context(), []*kgo.Record{eventlog.StateRecord(&s, 0, eventlog.JSON)}); err != nil {
		t.Fatal(err)
	}
	e := read(t, p, "a")
	if got := sessions(e); !slices.Equal(got, []string{"n1 20000 connected"}) || len(e.GetEvidence().GetFacts()) != 0 {
		t.Errorf("connections %q, facts %v", got, e.GetEvidence().GetFacts())
	}
}

// A fact that a restored row holds causes nothing, even if the nodes changed since.
func TestFactsOfARestoredRowArePassedOver(t *testing.T) {
	p := benchPartition(t, true, store.DefaultEvidence)
	open, end := opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000)
	var r store.Row
	r.State.Apply(&open)
	r.Last = store.Transition{Status: presence.Online, Node: "n1", Key: open.Connection, Version: store.Version{Event: 5, Node: 0}}
	r.Latest = r.Last.Version
	b := p.indexes.NewBatch()
	b.PutRow(eventlog.ClientKey("default", "a"), store.Indexed{}, &r, r.State.Append(nil))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	node := started("n1", 9000)
	record := eventlog.NodeRecord(&node, eventlog.JSON)
	record.Offset = 1
	if err := p.parts.nodes.apply(context.Background(), []*kgo.Record{record}); err != nil {
		t.Fatal(err)
	}
	known, news := eventlog.FactRecord(&open, eventlog.JSON), eventlog.FactRecord(&end, eventlog.JSON)
	known.Offset, news.Offset = 5, 6
	if err := p.foldBatch(context.Background(), []*kgo.Record{known}); err != nil {
		t.Fatal(err)
	}
	if n := p.outbox.depth(); n != 0 {
		t.Errorf("%d records of a fact that is known", n)
	}
	if n := testutil.ToFloat64(p.parts.metrics.facts.WithLabelValues("duplicate", "connected")); n != 1 {
		t.Errorf("%v duplicates, want 1", n)
	}
	if err := p.foldBatch(context.Background(), []*kgo.Record{news}); err != nil {
		t.Fatal(err)
	}
	if n := p.outbox.depth(); n != 1 {
		t.Errorf("%d records of a new fact, want 1", n)
	}
}
