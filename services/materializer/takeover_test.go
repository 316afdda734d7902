package materializer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// While Kafka takes no transitions, the fold goes on; the store is then cut off as by a loss of power. Whoever goes on from it publishes
// the same bytes.
func TestOutboxSurvivesACrash(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewCrashableMem()
	m := l.start(l.config(fs)).ready()
	l.facts(opened("a", "n1", 0))
	m.published(l)

	refused := make(chan struct{}, 1)
	var lifted atomic.Bool
	l.cluster.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		l.cluster.KeepControl()
		select {
		case refused <- struct{}{}:
		default:
		}
		return nil, errors.New("cut"), !lifted.Load()
	})
	last := l.facts(closedAt("a", "n1", 0, 10), opened("a", "n1", 20))
	m.get("a", last)
	<-refused // the publisher syncs before it publishes
	crashed := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := m.stop(); err != nil && !errors.Is(err, errFenced) {
		t.Fatal(err)
	}
	want := outboxOf(t, crashed, last.Partition)
	if len(want) == 0 {
		t.Fatal("the outbox is empty after the crash")
	}
	lifted.Store(true)
	l.start(l.config(crashed)).ready().published(l)
	got := map[string]bool{}
	for _, r := range l.read(eventlog.TopicClientState) {
		got[string(r.Value)] = true
	}
	for _, v := range want {
		if !got[v] {
			t.Errorf("not published: %s", v)
		}
	}
	if got := l.transitions("a"); len(got) != 3 {
		t.Errorf("transitions: %v", got)
	}
}

// outboxOf returns the values of a partition's outbox in a store that no one has open.
func outboxOf(t *testing.T, fs vfs.FS, partition int32) []string {
	t.Helper()
	s, err := store.Open("data", store.Options{FS: fs, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	var values []string
	err = eachRecord(s, partition, func(r *kgo.Record) error {
		values = append(values, string(r.Value))
		return nil
	})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return values
}

func TestFormerPublisherIsFenced(t *testing.T) {
	l := newLog(t)
	out := &written{}
	m := l.startLogging(l.config(vfs.NewMem()), loggingTo(out)).ready()
	last := l.facts(opened("a", "n1", 0))
	m.published(l)
	former := m.owned()[last.Partition]
	if _, err := newPublisher(t.Context(), former); err != nil {
		t.Fatal(err)
	}
	// The group still says that the partition is ours: it is given up, and acquired again.
	last = l.facts(closedAt("a", "n1", 0, 10))
	servicetest.Eventually(t, patience, func() error {
		if p := m.owned()[last.Partition]; p == nil || p == former {
			return errors.New("still the former")
		}
		return nil
	})
	m.published(l)
	if got := l.transitions("a"); !slices.Equal(got, []string{"online connected", "offline closed"}) {
		t.Errorf("transitions: %v", got)
	}
	if got := out.lines("another materializer publishes the partition"); len(got) != 1 || !strings.Contains(got[0], "presence-materializer-") {
		t.Errorf("lines: %q", got)
	}
}

// Two replicas that publish fence each other, until one of them ends and says what to do.
func TestTwoReplicasThatPublish(t *testing.T) {
	l := newLog(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &written{}
	ended := make(chan error, 2)
	for _, replica := range []string{"a", "b"} {
		cfg := l.config(vfs.NewMem())
		cfg.Replica, cfg.sessionTimeout = replica, time.Second
		m, err := New(cfg, loggingTo(out), newRegistry())
		if err != nil {
			t.Fatal(err)
		}
		go func() { ended <- m.Run(ctx) }()
	}
	deadline := time.After(patience)
	for i := int64(0); ; i++ {
		// What is to be published tells a publisher that it is one no more.
		for _, id := range []string{"a", "b", "c", "d"} {
			l.facts(opened(id, "n1", i))
		}
		select {
		case err := <-ended:
			if !errors.Is(err, errFenced) || !strings.Contains(err.Error(), "set publish to false on all replicas but one") {
				t.Errorf("error is %v", err)
			}
			if got := out.lines("another replica publishes too"); len(got) == 0 {
				t.Error("nothing is said before")
			}
			cancel()
			<-ended
			return
		case <-deadline:
			t.Fatal("both go on")
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// Two members share the partitions. One leaves for longer than the session timeout: the other restores its partitions from client-state
// and goes on. Then the first comes back with its old rows.
func TestPartitionsMoveAndComeBack(t *testing.T) {
	l := newLog(t)
	a, b := l.config(vfs.NewMem()), l.config(vfs.NewMem())
	a.StateAdvertise, b.StateAdvertise = "127.0.0.1:2", "127.0.0.1:3"
	ma := l.start(a).ready()
	var facts []presence.Fact
	for i := range 40 {
		facts = append(facts, opened(fmt.Sprintf("dev%d", i), "n1", 1000))
	}
	l.facts(facts...)
	ma.published(l)
	mb := l.start(b).ready()
	servicetest.Eventually(t, patience, func() error {
		if n, k := len(ma.owned()), len(mb.owned()); n != 2 || k != 2 {
			return fmt.Errorf("%d and %d partitions", n, k)
		}
		return nil
	})
	if err := ma.stop(); err != nil {
		t.Fatal(err)
	}
	l.facts(closedAt("dev0", "n1", 1000, 2000), closedAt("dev1", "n1", 1000, 2000), closedAt("dev2", "n1", 1000, 2000), closedAt("dev3", "n1", 1000, 2000))
	servicetest.Eventually(t, patience, func() error {
		if n := len(mb.owned()); n != 4 {
			return fmt.Errorf("%d partitions", n)
		}
		return mb.Ready(t.Context())
	})
	mb.published(l)
	check := func(m *instance, offline int) {
		t.Helper()
		for i := range 40 {
			want := "online"
			if i < offline {
				want = "offline"
			}
			if e := m.get(fmt.Sprintf("dev%d", i), nil); e.GetStatus() != want {
				t.Errorf("dev%d is %v, want %s", i, e, want)
			}
		}
	}
	check(mb, 4)
	if err := mb.stop(); err != nil {
		t.Fatal(err)
	}
	l.facts(closedAt("dev4", "n1", 1000, 2000))
	ma = l.start(a)
	servicetest.Eventually(t, patience, func() error {
		if n := len(ma.owned()); n != 4 {
			return fmt.Errorf("%d partitions", n)
		}
		return ma.Ready(t.Context())
	})
	ma.published(l)
	check(ma, 5)
	transitions := map[string]int{}
	for _, s := range l.states() {
		if s.Transition {
			transitions[s.ClientID]++
		}
	}
	for i := range 40 {
		want := 1
		if i < 5 {
			want = 2
		}
		if id := fmt.Sprintf("dev%d", i); transitions[id] != want {
			t.Errorf("%s has %d transitions, want %d", id, transitions[id], want)
		}
	}
}

// Random histories, cut by crashes. There are several stores, as of several machines: each round one of them, or an empty one, owns all
// partitions, and some rounds publish nothing before they end, so that what they folded and what later rounds publish part ways. Stores
// lose what was not synced, or come back from an older time. Whatever happens, the published records are in order, chained and
// complete, and say what the fold of all facts says.
func TestCrashes(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4}
	if s, err := strconv.ParseUint(os.Getenv("TEST_SEED"), 10, 64); err == nil {
		seeds = []uint64{s}
	}
	for _, seed := range seeds {
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			crashes(t, rand.New(rand.NewPCG(seed, 0)))
		})
	}
}

func crashes(t *testing.T, r *rand.Rand) {
	l := newLog(t)
	// While the gate is shut, no transaction is committed.
	var gate atomic.Pointer[chan struct{}]
	l.cluster.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		l.cluster.KeepControl()
		if g := gate.Load(); g != nil {
			l.cluster.SleepControl(func() { <-*g })
		}
		return nil, nil, false
	})
	stores := []*vfs.MemFS{vfs.NewCrashableMem()}
	var all []presence.Fact
	var cluster presence.Cluster
	w := world{r: r}
	node := func() {
		n := w.node()
		cluster.Apply(&n)
		l.node(n)
	}
	for range 12 {
		if r.IntN(2) == 0 {
			node()
		}
		if r.IntN(4) == 0 {
			stores = append(stores, vfs.NewCrashableMem())
		}
		i := r.IntN(len(stores))
		fs := stores[i]
		cfg := l.config(fs)
		cfg.CheckpointInterval = []time.Duration{20 * time.Millisecond, time.Hour}[r.IntN(2)]
		m := l.start(cfg).ready()
		shut := make(chan struct{})
		if r.IntN(2) == 0 {
			gate.Store(&shut)
		}
		for range r.IntN(12) {
			if facts := w.facts(); len(facts) > 0 {
				all = append(all, facts...)
				l.facts(facts...)
			}
			if r.IntN(3) == 0 {
				node()
			}
			if r.IntN(3) == 0 {
				m.caughtUp(l)
			}
			if r.IntN(8) == 0 {
				stores = append(stores, fs.CrashClone(vfs.CrashCloneCfg{}))
			}
		}
		if r.IntN(2) == 0 {
			m.caughtUp(l)
		}
		cut := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 50, RNG: r})
		if r.IntN(2) == 0 {
			// Killed: no last checkpoint, and nothing is published any more.
			o := m.owners.Load()
			ids, _ := o.assigned()
			o.release(ids, errLost)
		}
		if err := m.stop(); err != nil {
			t.Fatalf("run: %v", err)
		}
		gate.Store(nil)
		close(shut)
		if r.IntN(2) == 0 {
			stores[i] = cut
		}
	}
	fs := stores[r.IntN(len(stores))]
	m := l.start(l.config(fs)).ready()
	m.published(l)
	servicetest.Eventually(t, patience, func() error {
		for id, p := range m.owned() {
			if meta, _, err := p.parts.store.Meta(id); err != nil || meta.SweptNode < p.parts.nodes.table().affected {
				return fmt.Errorf("partition %d is swept up to %d, %v", id, meta.SweptNode, err)
			}
		}
		return nil
	})
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	states := map[string]*presence.State{}
	for i := range all {
		s := states[all[i].ClientID]
		if s == nil {
			s = &presence.State{}
			states[all[i].ClientID] = s
		}
		s.Apply(&all[i])
	}
	latest := map[string]eventlog.ClientState{}
	for _, s := range l.states() {
		if !s.Checkpoint {
			latest[s.ClientID] = s
		}
	}
	for id, s := range states {
		want := presence.Status(s, &cluster, presence.DefaultAllowanceMS)
		got, ok := latest[id]
		if !ok {
			t.Errorf("%s: nothing is published, want %v", id, want.Status)
			continue
		}
		if got.Status != want.Status || got.Node != want.Node || got.Connection != connectionKey(&want) {
			t.Errorf("%s: published is %v %v at %s %s, want %v %v at %s %s", id, got.Status, got.StatusReason, got.Node, got.Connection,
				want.Status, want.Reason, want.Node, connectionKey(&want))
		}
		if b := s.Append(nil); !slices.Equal(b, got.State) {
			t.Errorf("%s: published state is %x, want %x", id, got.State, b)
		}
	}
}

// world makes facts: clients that connect, are taken over and leave, on nodes that restart and go, told late and twice.
type world struct {
	r     *rand.Rand
	ms    int64
	open  map[string]presence.Fact
	delay []presence.Fact
}

func (w *world) facts() []presence.Fact {
	if w.open == nil {
		w.open = map[string]presence.Fact{}
	}
	var out []presence.Fact
	for range 1 + w.r.IntN(8) {
		w.ms += int64(w.r.IntN(3000))
		id := fmt.Sprintf("dev%d", w.r.IntN(12))
		if old, ok := w.open[id]; ok {
			c := closedAt(id, old.Node, old.ConnectedAtMS-t0, w.ms)
			if w.r.IntN(3) == 0 {
				c.Reason, c.RawReason = presence.ReasonDiscarded, "discarded"
			}
			c.SetID()
			out = append(out, c)
			delete(w.open, id)
		}
		if w.r.IntN(2) == 0 {
			o := opened(id, fmt.Sprintf("n%d", w.r.IntN(3)), w.ms)
			w.open[id] = o
			out = append(out, o)
		}
	}
	if len(out) > 1 && w.r.IntN(3) == 0 {
		w.delay = append(w.delay, out[0])
		out = out[1:]
	}
	if len(w.delay) > 0 && w.r.IntN(2) == 0 {
		out = append(out, w.delay...)
		w.delay = nil
	}
	if len(out) > 0 && w.r.IntN(3) == 0 {
		again := out[w.r.IntN(len(out))]
		again.ReceivedMS -= int64(w.r.IntN(5)) // another bridge's copy
		out = append(out, again)
	}
	return out
}

func (w *world) node() presence.NodeFact {
	w.ms += 10
	f := started(fmt.Sprintf("n%d", w.r.IntN(3)), w.ms)
	switch w.r.IntN(4) {
	case 0:
		f.Kind = presence.NodeAlive
	case 1:
		f.Kind = presence.NodeGone
	case 2:
		f.Kind = presence.NodeSilent
	}
	return f
}
