package materializer

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// foldFacts folds facts at ascending offsets, in one batch.
func foldFacts(t *testing.T, p *partition, offset int64, facts ...presence.Fact) {
	t.Helper()
	var records []*kgo.Record
	for i := range facts {
		r := eventlog.FactRecord(&facts[i], eventlog.JSON)
		r.Offset = offset + int64(i)
		records = append(records, r)
	}
	if err := p.foldBatch(context.Background(), records); err != nil {
		t.Fatal(err)
	}
}

// evidence asks for a client of a partition that runs without Kafka.
func evidence(t *testing.T, p *partition, clientID string) *presencev1.StateEntry {
	t.Helper()
	m := &Materializer{cfg: p.parts.cfg, log: p.log, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	return explain(t, m, clientID)
}

func explain(t *testing.T, m *Materializer, clientID string) *presencev1.StateEntry {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	r, err := m.GetStates(ctx, &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: clientID}}, Explain: true})
	if err != nil || len(r.GetEntries()) != 1 {
		t.Fatalf("answer %v, error %v", r, err)
	}
	return r.GetEntries()[0]
}

// outcomes writes the facts of an evidence as "offset outcome".
func outcomes(e *presencev1.Evidence) []string {
	out := []string{}
	for _, f := range e.GetFacts() {
		s := fmt.Sprint(f.GetOffset(), " ", f.GetOutcome())
		if f.GetRestored() {
			s += " restored"
		}
		out = append(out, s)
	}
	return out
}

func versions(e *presencev1.Evidence) []string {
	var out []string
	for _, c := range e.GetTransitions() {
		s := fmt.Sprint(c.GetEventOffset(), "/", c.GetNodeEventOffset(), " ", c.GetStatusReason())
		if c.GetByNode() {
			s += " by node"
		}
		out = append(out, s)
	}
	return out
}

func TestEvidenceTellsWhatBecameOfEachFact(t *testing.T) {
	p := benchPartition(t, true, store.DefaultEvidence)
	first, second := opened("a", "n1", 1000), opened("a", "n1", 5000)
	ghost := closedAt("a", "n1", 1000, 5001)
	foldFacts(t, p, 10, first, opened("b", "n1", 1), second, second, ghost)
	foldFacts(t, p, 20, first)
	e := evidence(t, p, "a").GetEvidence()
	if want := []string{"10 applied", "12 applied", "13 duplicate", "14 ghost", "20 superseded"}; !slices.Equal(outcomes(e), want) {
		t.Errorf("facts %v, want %v", outcomes(e), want)
	}
	if want := []string{"10/-1 connected", "12/-1 connected"}; !slices.Equal(versions(e), want) {
		t.Errorf("transitions %v, want %v", versions(e), want)
	}
	f := e.GetFacts()[3]
	if f.GetType() != "disconnected" || f.GetNode() != "n1" || f.GetConnection() != ghost.Connection || f.GetReason() != ghost.Reason.String() ||
		f.GetTimeMs() != ghost.TimeMS || f.GetReceivedMs() != ghost.ReceivedMS || f.GetDialect() != ghost.Dialect {
		t.Errorf("the ghost is %v", f)
	}
	state, err := presence.DecodeState(e.GetState())
	if err != nil || len(state.Nodes) != 1 || state.Nodes[0].Conn.Key != second.Connection {
		t.Errorf("state %+v, error %v", state, err)
	}
	// Another client's evidence is its own, and without being asked there is none.
	if got := outcomes(evidence(t, p, "b").GetEvidence()); !slices.Equal(got, []string{"11 applied"}) {
		t.Errorf("b has %v", got)
	}
	if e := evidence(t, p, "never"); e.GetEvidence() != nil || e.GetFound() {
		t.Errorf("a client never seen: %v", e)
	}
}

func TestEvidenceIsBounded(t *testing.T) {
	p := benchPartition(t, false, 3)
	var facts []presence.Fact
	for i := range int64(5) {
		facts = append(facts, opened("a", "n1", 1000*(i+1)))
	}
	foldFacts(t, p, 0, facts[:2]...)
	if e := evidence(t, p, "a").GetEvidence(); e.GetCut() || len(e.GetFacts()) != 2 {
		t.Errorf("cut %v, facts %v", e.GetCut(), outcomes(e))
	}
	foldFacts(t, p, 2, facts[2:]...)
	if e := evidence(t, p, "a").GetEvidence(); !e.GetCut() || e.GetLoggedFrom() != 2 || !slices.Equal(outcomes(e), []string{"2 applied", "3 applied", "4 applied"}) {
		t.Errorf("cut %v, from %d, facts %v", e.GetCut(), e.GetLoggedFrom(), outcomes(e))
	}
	foldFacts(t, p, 5, facts...)
	if e := evidence(t, p, "a").GetEvidence(); !e.GetCut() || !slices.Equal(outcomes(e), []string{"7 superseded", "8 superseded", "9 duplicate"}) {
		t.Errorf("cut %v, facts %v", e.GetCut(), outcomes(e))
	}
}

func TestForgottenTakesTheEvidenceAlong(t *testing.T) {
	for _, batches := range []bool{false, true} {
		p := benchPartition(t, false, store.DefaultEvidence)
		forget := presence.Fact{Kind: presence.Forgotten, Cluster: "default", ClientID: "a", AsOfMS: 2000, ReceivedMS: 3000, Source: "dev"}
		facts := []presence.Fact{opened("a", "n1", 1000), forget, opened("a", "n1", 4000)}
		if batches {
			for i := range facts {
				foldFacts(t, p, int64(i), facts[i])
			}
		} else {
			foldFacts(t, p, 0, facts...)
		}
		e := evidence(t, p, "a").GetEvidence()
		if !e.GetCut() || !slices.Equal(outcomes(e), []string{"1 applied", "2 applied"}) {
			t.Errorf("in batches %v: cut %v, facts %v", batches, e.GetCut(), outcomes(e))
		}
	}
}

func TestEvidenceOfFactsThatCameBefore(t *testing.T) {
	p := benchPartition(t, false, store.DefaultEvidence)
	foldFacts(t, p, 0, opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000))
	// The partition goes back: what is folded again is listed as it was the first time.
	p.meta.Next = 1
	foldFacts(t, p, 1, closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000))
	if e := evidence(t, p, "a").GetEvidence(); !slices.Equal(outcomes(e), []string{"0 applied", "1 applied", "2 applied"}) {
		t.Errorf("facts %v", outcomes(e))
	}
}

func TestSweepIsEvidence(t *testing.T) {
	l := newLog(t)
	m := l.start(l.config(vfs.NewMem())).ready()
	m.get("a", l.facts(opened("a", "n1", 1000)))
	l.node(started("n1", 5000))
	servicetest.Eventually(t, patience, func() error {
		e := explain(t, m.Materializer, "a")
		got := e.GetEvidence().GetTransitions()
		if len(got) != 2 || !got[1].GetByNode() || got[1].GetStatusReason() != "node_restarted" || got[1].GetPreviousStatus() != "online" ||
			got[1].GetEventOffset() != e.GetEventOffset() || got[1].GetNodeEventOffset() != e.GetNodeEventOffset() {
			return fmt.Errorf("transitions %v of %v", got, e)
		}
		return nil
	})
}

// Transitions that nodes cause take room as facts do. Where the oldest entry is one, the facts up to its offset are gone.
func TestSweepPushesFactsOut(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	cfg.EvidencePerClient = 1
	m := l.start(cfg).ready()
	last := l.facts(opened("a", "n1", 1000))
	m.get("a", last)
	l.node(started("n1", 5000))
	servicetest.Eventually(t, patience, func() error {
		got := explain(t, m.Materializer, "a").GetEvidence()
		if len(got.GetTransitions()) != 1 || !got.GetTransitions()[0].GetByNode() {
			return fmt.Errorf("transitions %v", got.GetTransitions())
		}
		if !got.GetCut() || len(got.GetFacts()) != 0 || got.GetLoggedFrom() != last.Offset+1 {
			t.Errorf("cut %v, facts %v, from %d; the fact at offset %d is gone", got.GetCut(), outcomes(got), got.GetLoggedFrom(), last.Offset)
		}
		return nil
	})
}

// A store that was filled from client-state has not seen the facts before: it says from where on it has.
func TestRestoredEvidenceSaysWhereItBegins(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	m := l.start(cfg).ready()
	e := explainAfter(t, m, "a", l.facts(opened("a", "n1", 1000)))
	if e.GetEvidence().GetLoggedFrom() != 0 {
		t.Errorf("logged from %d, all facts were", e.GetEvidence().GetLoggedFrom())
	}
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	cfg = l.config(vfs.NewMem())
	m = l.start(cfg).ready()
	last := l.facts(closedAt("a", "n1", 1000, 2000))
	e = explainAfter(t, m, "a", last)
	if got := e.GetEvidence(); got.GetLoggedFrom() != last.Offset || len(got.GetFacts()) != 1 || got.GetFacts()[0].GetOffset() != last.Offset {
		t.Errorf("logged from %d, facts %v; the store was filled up to offset %d", got.GetLoggedFrom(), outcomes(got), last.Offset)
	}
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	// Off, and on again.
	for _, c := range []struct {
		keep  int
		facts []string
	}{{0, []string{}}, {3, []string{fmt.Sprint(last.Offset, " applied"), fmt.Sprint(last.Offset+2, " applied")}}} {
		cfg.EvidencePerClient = c.keep
		m = l.start(cfg).ready()
		last := l.facts(opened("a", "n1", 3000+int64(c.keep)))
		got := explainAfter(t, m, "a", last).GetEvidence()
		from := last.Offset
		if c.keep == 0 {
			from = -1
		}
		if got.GetLoggedFrom() != from || !slices.Equal(outcomes(got), c.facts) {
			t.Errorf("%d kept: logged from %d, facts %v; want from %d, %v", c.keep, got.GetLoggedFrom(), outcomes(got), from, c.facts)
		}
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// explainAfter waits until a record is applied.
func explainAfter(t *testing.T, m *instance, clientID string, after *kgo.Record) *presencev1.StateEntry {
	t.Helper()
	m.get(clientID, after)
	return explain(t, m.Materializer, clientID)
}

// What others folded while they had the partition is in no log here.
func TestEvidenceOfAPartitionThatCameBack(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	m := l.start(cfg).ready()
	open, end, again := opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000)
	m.get("a", l.facts(open))
	m.published(l)
	m.kill()
	l.facts(end)
	last := l.facts(again)
	l.foreign(last.Partition, stateOf(presence.Online, presence.Offline, store.Version{Event: last.Offset, Node: -1}, true, open, end, again),
		eventlog.ClientState{Checkpoint: true, TimeMS: t0, EventOffset: last.Offset + 1, NodeEventOffset: -1})
	m = l.start(cfg).ready()
	next := l.facts(closedAt("a", "n1", 3000, 4000))
	e := explainAfter(t, m, "a", next).GetEvidence()
	if e.GetLoggedFrom() != next.Offset || !slices.Equal(outcomes(e), []string{"0 applied", fmt.Sprint(next.Offset, " applied")}) {
		t.Errorf("logged from %d, facts %v; the partition came back at offset %d", e.GetLoggedFrom(), outcomes(e), next.Offset)
	}
}
