package materializer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// nothing checks that an answer shows nothing of a client.
func nothing(t testing.TB, what string, e *presencev1.StateEntry) {
	t.Helper()
	if e.GetFound() || e.GetConnection() != nil || e.GetNode() != "" || e.GetHistory() != nil || e.GetEvidence() != nil || e.GetReceivedMs() != 0 ||
		e.GetStatusReason() != "never_seen" {
		t.Errorf("%s: the answer shows %v", what, e)
	}
}

func TestForgotten(t *testing.T) {
	past := []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n2", 3000)}
	request := forgotten("a", 10_000, 10_000)
	back := opened("a", "n1", 20_000)
	tests := []struct {
		name      string
		facts     []presence.Fact
		want      []string
		published []string // without transitions of before
	}{
		{"it is gone", slices.Concat(past, []presence.Fact{request}), nil, []string{"unknown 3", "forgotten 3"}},
		{"what comes once more stays out", slices.Concat(past, []presence.Fact{request}, past), nil, []string{"unknown 3", "forgotten 3"}},
		{"what comes for the first time as well", []presence.Fact{past[0], request, past[1], past[2]}, nil, []string{"unknown 1", "forgotten 1"}},
		{"a client never seen", []presence.Fact{request, past[0], past[2]}, nil, []string{"forgotten 0"}},
		{"twice", slices.Concat(past, []presence.Fact{request, request, past[2], request}), nil, []string{"unknown 3", "forgotten 3"}},
		{"again, later", slices.Concat(past, []presence.Fact{request, forgotten("a", 11_000, 11_000), past[2]}), nil, []string{"unknown 3", "forgotten 3", "forgotten 4"}},
		{"again, but of earlier", slices.Concat(past, []presence.Fact{request, forgotten("a", 9_000, 11_000), past[2]}), nil, []string{"unknown 3", "forgotten 3"}},
		{"it comes back", slices.Concat(past, []presence.Fact{request, back}, past), []string{"n1 20000 connected"}, []string{"unknown 3", "forgotten 3", "online 4"}},
		{"it came back before", slices.Concat(past, []presence.Fact{back, request}, past), []string{"n1 20000 connected"}, nil},
		{"it comes back and is forgotten", slices.Concat(past, []presence.Fact{request, back, forgotten("a", 21_000, 21_000), back}), nil,
			[]string{"unknown 3", "forgotten 3", "online 4", "unknown 5", "forgotten 5"}},
		{"ahead of what comes later", []presence.Fact{past[0], forgotten("a", 30_000, 10_000), back, opened("a", "n1", 31_000)}, []string{"n1 31000 connected"},
			[]string{"unknown 1", "forgotten 1", "online 3"}},
		{"between two connections", []presence.Fact{past[0], past[1], opened("a", "n1", 12_000), back, request, past[1], past[0]},
			[]string{"n1 20000 connected", "n1 12000-~20000 superseded"}, nil},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			for _, batch := range []int{len(c.facts), 1, 2} {
				for _, restarted := range []bool{false, true} {
					p := sessionPartition(t, true)
					for i := 0; i < len(c.facts); i += batch {
						foldFacts(t, p, int64(i), c.facts[i:min(i+batch, len(c.facts))]...)
						if restarted {
							restart(t, p)
							p.outbox = newOutbox()
							if err := p.loadOutbox(); err != nil {
								t.Fatal(err)
							}
						}
					}
					what := fmt.Sprintf("batches of %d, restarts %v", batch, restarted)
					e := read(t, p, "a")
					if c.want == nil {
						nothing(t, what, e)
					} else if got := sessions(e); !slices.Equal(got, c.want) {
						t.Errorf("%s: %q, want %q", what, got, c.want)
					}
					if c.want == nil {
						left(t, p, what)
					}
					got := buriedOf(t, p, "a")
					first := slices.IndexFunc(got, func(s string) bool { return slices.Contains(c.published, s) })
					if c.published != nil && (first < 0 || !slices.Equal(got[first:], c.published)) {
						t.Errorf("%s: published %q, want %q at the end", what, got, c.published)
					}
				}
			}
		})
	}
}

// left checks that the store has nothing of client a but the marker, and that the marker names no connection.
func left(t testing.TB, p *partition, what string) {
	t.Helper()
	key := []byte("default/a")
	entries, _, _, err := p.parts.store.Evidence(0, key)
	for i := range entries {
		if entries[i].Fact.Kind != presence.Forgotten {
			t.Errorf("%s: the log has %+v", what, entries[i])
		}
	}
	log, herr := p.parts.store.AppendSessions(nil, 0, key)
	value, found, rerr := p.parts.store.AppendRow(nil, 0, key)
	if err != nil || herr != nil || rerr != nil || !found || len(log) != 0 {
		t.Fatalf("%s: history %x, row found %v, errors %v %v %v", what, log, found, err, herr, rerr)
	}
	var r store.Row
	if _, err := r.Decode(value); err != nil || !r.State.Empty() || r.Last.Node != "" || r.Last.Key != "" || r.Indexed() != (store.Indexed{}) {
		t.Errorf("%s: the marker is %+v, %v", what, r, err)
	}
}

// onDisk returns all keys and values of a world's store, as they are in its files; of those that are merged, all that was written.
func (w *rowWorld) onDisk() map[string]string {
	w.t.Helper()
	w.must(w.db.Sync())
	db, err := pebble.Open("data", &pebble.Options{
		FS: w.fs.CrashClone(vfs.CrashCloneCfg{}), Merger: &pebble.Merger{Name: "presence.evidence.1", Merge: pebble.DefaultMerger.Merge}, Logger: quiet{w.t},
	})
	w.must(err)
	it, err := db.NewIter(nil)
	w.must(err)
	all := map[string]string{}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		w.must(err)
		all[string(it.Key())] = string(value)
	}
	w.must(errors.Join(it.Close(), db.Close()))
	return all
}

// quiet is a logger of Pebble that says nothing.
type quiet struct{ t *testing.T }

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}

func (q quiet) Fatalf(format string, args ...any) { q.t.Fatalf(format, args...) }

// What is in the store after a deletion, key by key: of the client its ID, and of its connections nothing. The outbox is not of the store's
// own: it is empty once all is published.
func TestForgottenLeavesNothingInTheStore(t *testing.T) {
	secret := func(f presence.Fact) presence.Fact {
		f.Node, f.Username, f.Peer, f.RawReason = "node-secret", "user-secret", "peer-secret", "raw-secret"
		return f
	}
	past := []presence.Fact{secret(opened("a", "", 1000)), secret(closedAt("a", "", 1000, 2000)), secret(opened("a", "", 3000)),
		secret(closedAt("a", "", 500, 900)), secret(opened("a", "", 4000))}
	request := forgotten("a", 10_000, 10_000)
	key := eventlog.ClientKey("default", "a")
	id := eventlog.Partition(key, worldPartitions)
	for _, c := range []struct {
		name string
		run  func(w *rowWorld)
	}{
		{"it was folded here", func(w *rowWorld) {}},
		{"evidence and sessions are kept no more", func(w *rowWorld) { w.ps.cfg.EvidencePerClient, w.ps.cfg.SessionsPerClient = 0, 0 }},
		{"the row is dirty, and what is published has to wait", func(w *rowWorld) {
			w.fold(secret(closedAt("a", "", 1, 2)))
			_, err := w.parts[id].cleanChunk(w.nodes.table())
			w.must(err)
			w.fold(secret(closedAt("a", "", 3, 4)))
		}},
		{"a tombstone was read, and the facts come after it", func(w *rowWorld) {
			p := w.parts[id]
			m := &merge{p: p, found: true, unpublished: map[string][]unpublished{}, newest: map[string]record{}}
			r := eventlog.TombstoneRecord(&eventlog.Tombstone{Cluster: "default", ClientID: "a", Reason: eventlog.RemovedForgotten, AsOfMS: request.AsOfMS,
				TimeMS: request.TimeMS, EventOffset: p.meta.Next, NodeEventOffset: -1}, id)
			w.must(m.apply(context.Background(), []*kgo.Record{r}))
			p.meta.Next = 0 // as if the checkpoint were the first
			w.replay(p)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newRowWorld(t, 1)
			for _, p := range w.parts {
				w.must(p.indexChunk(indexRows))
			}
			for _, f := range past {
				w.fold(f)
			}
			if shown := fmt.Sprint(w.onDisk()); strings.Count(shown, "secret") < 10 {
				t.Fatalf("before the deletion the store has only %q", shown)
			}
			c.run(w)
			w.fold(request)
			for _, f := range past {
				w.fold(f)
			}
			all := w.onDisk()
			for k, v := range all {
				const outbox, marker, row, evidence = 0x03, 0x09, 0x10, 0x11
				if k[0] != outbox && strings.Contains(k+v, "secret") {
					t.Errorf("key %q has %q", k, v)
				}
				if strings.HasSuffix(k, string(key)) && !slices.Contains([]byte{marker, row, evidence}, k[0]) {
					t.Errorf("key %q is there, with %q", k, v)
				}
			}
			if _, ok := all[string(append([]byte{0x10, 0, byte(id)}, key...))]; !ok {
				t.Error("there is no marker")
			}
		})
	}
}

// A marker goes once nothing can come back that it keeps out, and not before.
func TestMarkerGoes(t *testing.T) {
	for _, after := range []time.Duration{0, 2 * 24 * time.Hour} {
		p := expiring(t, false, after)
		offset := int64(0)
		fold := func(facts ...presence.Fact) {
			foldFacts(t, p, offset, facts...)
			offset += int64(len(facts))
		}
		// The clock goes by a fact an hour.
		now := dayMS
		fold(opened("b", "n1", 0), opened("b", "n1", now), opened("a", "n1", now-1), forgotten("a", now, now))
		for end := now + markerMS; now < end-2*hourMS; now += hourMS {
			fold(opened("b", "n1", now))
		}
		fold(at(opened("a", "n1", dayMS-2), now)) // as received by a bridge that was away
		walk(t, p)
		left(t, p, "before")
		nothing(t, "before", read(t, p, "a"))
		for end := now + 4*hourMS; now < end; now += hourMS {
			fold(opened("b", "n1", now))
		}
		walk(t, p)
		if _, found, err := p.parts.store.AppendRow(nil, 0, []byte("default/a")); found || err != nil {
			t.Errorf("expire after %v: the marker is there, %v", after, err)
		}
		if last, err := p.parts.store.Markers(0, nil, 10, func(client []byte) error { return fmt.Errorf("%s is marked", client) }); last != nil || err != nil {
			t.Errorf("expire after %v: %v", after, err)
		}
		nothing(t, "after", read(t, p, "a"))
	}
}

// A client that was forgotten, came back and expired is forgotten still.
func TestForgottenStaysForgottenAfterItExpired(t *testing.T) {
	for _, walked := range []bool{false, true} {
		p := expiring(t, true, 24*time.Hour)
		offset := int64(0)
		fold := func(facts ...presence.Fact) {
			foldFacts(t, p, offset, facts...)
			offset += int64(len(facts))
		}
		// The first fact is a day before those that move the clock.
		fold(opened("b", "n1", 0), opened("b", "n1", dayMS), opened("a", "n1", dayMS+1), forgotten("a", dayMS+2, dayMS+3), opened("a", "n1", dayMS+4),
			closedAt("a", "n1", dayMS+4, dayMS+5), opened("b", "n1", dayMS*19/10), opened("b", "n1", dayMS*21/10))
		if walked {
			walk(t, p)
			left(t, p, "walked")
		}
		late := at(opened("a", "n1", dayMS+1), dayMS*21/10) // as received by a bridge that was away
		fold(late)
		what := fmt.Sprintf("walked: %v", walked)
		nothing(t, what, read(t, p, "a"))
		left(t, p, what)
		if got, want := buriedOf(t, p, "a"), "expired"; len(got) == 0 || !strings.HasPrefix(got[len(got)-1], want) {
			t.Errorf("%s: published %q, want %s at the end", what, got, want)
		}
		// A store that is filled from what was published keeps it out as well.
		other := expiring(t, false, 24*time.Hour)
		other.meta.ClockMS = p.meta.ClockMS
		m := &merge{p: other, unpublished: map[string][]unpublished{}, newest: map[string]record{}}
		if err := eachRecord(p.parts.store, 0, func(r *kgo.Record) error { return m.apply(t.Context(), []*kgo.Record{r}) }); err != nil {
			t.Fatal(err)
		}
		foldFacts(t, other, offset, late)
		nothing(t, what+", restored", read(t, other, "a"))
	}
}

// However a deletion and everything else is batched: the same is left.
func TestForgottenIsAFunctionOfTheLog(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for round := range 60 {
		var facts []presence.Fact
		for len(facts) < 40 {
			ms := int64(1+random.IntN(30)) * 1000
			id := string("ab"[random.IntN(2)])
			node := fmt.Sprint("n", random.IntN(2))
			facts = append(facts, []presence.Fact{opened(id, node, ms), closedAt(id, node, ms, ms+500), forgotten(id, ms+100, 60_000)}[random.IntN(20)*3/23])
		}
		whole := sessionPartition(t, true)
		foldFacts(t, whole, 0, facts...)
		split := sessionPartition(t, true)
		for i := 0; i < len(facts); {
			n := min(1+random.IntN(6), len(facts)-i)
			foldFacts(t, split, int64(i), facts[i:i+n]...)
			i += n
		}
		if got, want := dump(t, split), dump(t, whole); got != want {
			t.Fatalf("round %d:\n%s\nwant\n%s", round, got, want)
		}
		for _, id := range []string{"a", "b"} {
			if got, want := sessions(read(t, split, id)), sessions(read(t, whole, id)); !slices.Equal(got, want) {
				t.Fatalf("round %d: %q, want %q", round, got, want)
			}
			if got, want := buriedOf(t, split, id), buriedOf(t, whole, id); !slices.Equal(got, want) {
				t.Fatalf("round %d: published %q, want %q", round, got, want)
			}
		}
	}
}

// history asks a materializer for a client with its connections.
func (i *instance) history(clientID string) *presencev1.StateEntry {
	i.t.Helper()
	resp, err := i.GetStates(i.t.Context(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: clientID}}, History: true, Explain: true})
	if err != nil || len(resp.GetEntries()) != 1 {
		i.t.Fatalf("get %s: %v, %v", clientID, resp, err)
	}
	return resp.GetEntries()[0]
}

// tombstones returns the reasons of a client's tombstones in client-state.
func (l *log) tombstones(clientID string) []string {
	l.t.Helper()
	var out []string
	for _, r := range l.read(eventlog.TopicClientState) {
		var d eventlog.Tombstone
		if ok, err := eventlog.DecodeTombstone(r, &d); r.Value == nil && ok && err == nil && d.ClientID == clientID {
			out = append(out, d.Reason)
		}
	}
	return out
}

// A deletion holds in every store: where it was folded, after a restart, in one that was filled from the log, from client-state and its
// checkpoint, and in a replica that does not publish; whatever comes late.
func TestForgottenStaysForgotten(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	cfg := l.config(fs)
	cfg.CheckpointInterval = 10 * time.Millisecond
	m := l.start(cfg).ready()
	past := []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000)}
	l.facts(past...)
	m.get("a", l.facts(forgotten("a", 10_000, 10_000)))
	l.facts(past...)
	m.published(l)
	nothing(t, "where it was folded", m.history("a"))
	if got := l.transitions("a"); !slices.Equal(got, []string{"online connected", "offline closed", "online connected", "unknown never_seen"}) {
		t.Errorf("transitions %q", got)
	}
	if got := l.tombstones("a"); !slices.Equal(got, []string{"forgotten"}) {
		t.Errorf("tombstones %q", got)
	}
	servicetest.Eventually(t, patience, func() error { return l.checkpointed(eventlog.Partition([]byte("default/a"), l.cfg.Partitions), 7) })
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}

	late := func(what string, m *instance) {
		t.Helper()
		m.caughtUp(l)
		nothing(t, what, m.history("a"))
		m.get("a", l.facts(past[2]))
		nothing(t, what+", late", m.history("a"))
	}
	m = l.start(cfg).ready()
	late("after a restart", m)
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	replica := l.config(vfs.NewMem())
	replica.Publish, replica.Replica, replica.StateAddr = false, "b", "127.0.0.1:2"
	late("in a replica filled from client-state", l.start(replica).ready())
	m = l.start(l.config(vfs.NewMem())).ready()
	late("in a store filled from client-state", m)
	m.get("a", l.facts(opened("a", "n1", 20_000)))
	if got := sessions(m.history("a")); !slices.Equal(got, []string{"n1 20000 connected"}) {
		t.Errorf("it came back: %q", got)
	}
	m.published(l)
	l.states()
}

// checkpointed reports whether a partition has a checkpoint at an offset or later.
func (l *log) checkpointed(partition int32, offset int64) error {
	for _, s := range l.states() {
		if s.Checkpoint && s.EventOffset >= offset {
			return nil
		}
	}
	return fmt.Errorf("no checkpoint at %d", offset)
}

// A store that is filled from the log alone, since client-state has nothing.
func TestForgottenInAFullReplay(t *testing.T) {
	l := newLog(t)
	past := []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000)}
	l.facts(slices.Concat(past, []presence.Fact{forgotten("a", 10_000, 10_000)}, past)...)
	cfg := l.config(vfs.NewMem())
	cfg.Publish = false
	m := l.start(cfg).ready().caughtUp(l)
	nothing(t, "replayed", m.history("a"))
}

// Whoever takes a partition over, with rows of before, removes what was forgotten or expired meanwhile.
func TestTombstonesOfOthers(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	cfg := l.config(fs)
	m := l.start(cfg).ready()
	var last *kgo.Record
	for _, id := range []string{"a", "b"} {
		last = l.facts(opened(id, "n1", 1000), closedAt(id, "n1", 1000, 2000), opened(id, "n1", 3000), closedAt(id, "n1", 3000, 4000))
		m.get(id, last)
	}
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	partition := func(id string) int32 { return eventlog.Partition(eventlog.ClientKey("default", id), l.cfg.Partitions) }
	request := l.facts(forgotten("a", 10_000, 10_000))
	fill := l.facts(opened("b", "n1", 1))
	for _, d := range []eventlog.Tombstone{
		{Cluster: "default", ClientID: "a", Reason: eventlog.RemovedForgotten, AsOfMS: t0 + 10_000, TimeMS: t0 + 10_000, EventOffset: request.Offset, NodeEventOffset: -1},
		{Cluster: "default", ClientID: "b", Reason: eventlog.RemovedExpired, TimeMS: t0 + 10_000, EventOffset: fill.Offset, NodeEventOffset: -1},
	} {
		cl := eventlogtest.NewClient(t, l.cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := cl.ProduceSync(t.Context(), eventlog.TombstoneRecord(&d, partition(d.ClientID))).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	m = l.start(cfg).ready().caughtUp(l)
	nothing(t, "forgotten by another", m.history("a"))
	nothing(t, "expired at another", m.history("b"))
	m.get("a", l.facts(opened("a", "n1", 3000)))
	nothing(t, "forgotten by another, late", m.history("a"))
	m.get("b", l.facts(opened("b", "n1", 30_000)))
	if got := sessions(m.history("b")); !slices.Equal(got, []string{"n1 30000 connected"}) {
		t.Errorf("it came back: %q", got)
	}
}
