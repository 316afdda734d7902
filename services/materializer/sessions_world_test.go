package materializer

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/simulator"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// trueSession is a connection as it was.
type trueSession struct {
	node, key string
	openedMS  int64
	endedMS   int64 // the earliest end that the broker told of; 0 if it told of none
}

// told returns the connections of each client that the broker told of, and what it told of their ends.
func told(h *simulator.History) []map[int]*trueSession {
	all := make([]map[int]*trueSession, len(h.Clients))
	for i := range all {
		all[i] = map[int]*trueSession{}
	}
	for _, e := range h.Events {
		if e.Client < 0 || e.Conn == 0 || e.Kind != simulator.Connected && e.Kind != simulator.Disconnected {
			continue
		}
		s := all[e.Client][e.Conn]
		if s == nil {
			s = &trueSession{node: e.Node, key: e.Key, openedMS: e.ConnectedAtMS}
			if e.Habits.Hidden {
				s.node = ""
			}
			all[e.Client][e.Conn] = s
		}
		if e.Kind == simulator.Disconnected && (s.endedMS == 0 || e.DisconnectedAtMS < s.endedMS) {
			s.endedMS = e.DisconnectedAtMS
		}
	}
	return all
}

// Where a Closed tells which connection it ends and everything is delivered, the history is the truth: every connection that is not current is
// there, with the end that the broker told of, whatever came in which order and in which batches.
func TestSessionsAreTheTruth(t *testing.T) {
	p := sessionPartition(t, false)
	p.parts.cfg.SessionsPerClient = maxSessions
	random := rand.New(rand.NewPCG(7, 8))
	checked, offset := 0, int64(0)
	for _, setup := range simulator.Setups() {
		if !slices.Contains([]string{"emqx", "emqx-5.0", "emqx-4.3", "emqx-4.3-flagged", "emqx-mixed", "tdmq-keyed"}, setup.Name) {
			continue
		}
		for seed := range uint64(300) {
			h := simulator.Run(simulator.NewPlan(&setup, simulator.Exact, seed))
			cluster := strings.ReplaceAll(fmt.Sprintf("%s-%d", setup.Name, seed), ".", "")
			foldHistory(t, p, h, cluster, &offset, random)
			for i, want := range told(h) {
				if c := &h.Clients[i]; c.Collided || c.Forgotten {
					continue
				}
				checked += compareSessions(t, fmt.Sprintf("%s, seed %d, client %d", setup.Name, seed, i), ask(t, p, cluster, h.Clients[i].ID), want)
			}
		}
	}
	if checked < 5000 {
		t.Errorf("only %d connections were compared", checked)
	}
}

// foldHistory folds all facts of a history in any order, some of them twice, with the node table as it is at the end.
func foldHistory(t *testing.T, p *partition, h *simulator.History, cluster string, offset *int64, random *rand.Rand) {
	t.Helper()
	table := *p.parts.nodes.table()
	if table.clusters = maps.Clone(table.clusters); table.clusters == nil {
		table.clusters = map[string]*presence.Cluster{}
	}
	nodes := &presence.Cluster{}
	table.clusters[cluster] = nodes
	var facts []presence.Fact
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		switch {
		case d.IsNode:
			nodes.Apply(&d.Node)
		case d.IsFact && !d.Query:
			f := d.Fact
			f.Cluster = cluster
			facts = append(facts, f)
			if random.IntN(5) == 0 {
				facts = append(facts, f)
			}
		}
	}
	p.parts.nodes.current.Store(&table)
	if random.IntN(3) > 0 {
		random.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
	}
	for len(facts) > 0 {
		var records []*kgo.Record
		for i := range facts[:min(1+random.IntN(30), len(facts))] {
			r := eventlog.FactRecord(&facts[i], eventlog.JSON)
			r.Offset = *offset
			*offset++
			records = append(records, r)
		}
		facts = facts[len(records):]
		if err := p.foldBatch(context.Background(), records); err != nil {
			t.Fatal(err)
		}
	}
}

func ask(t *testing.T, p *partition, cluster, clientID string) *presencev1.StateEntry {
	t.Helper()
	m := &Materializer{cfg: p.parts.cfg, log: p.log, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	r, err := m.GetStates(context.Background(), &presencev1.GetStatesRequest{Cluster: cluster, Keys: []*presencev1.StateKey{{ClientId: clientID}}, History: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetEntries()[0]
}

// compareSessions returns how many connections it compared.
func compareSessions(t *testing.T, what string, e *presencev1.StateEntry, want map[int]*trueSession) int {
	t.Helper()
	current := ""
	if c := e.GetConnection(); c != nil {
		current = fmt.Sprint(e.GetNode(), " ", c.GetKey(), " ", c.GetConnectedAtMs())
	}
	got := map[string]*presencev1.HistorySession{}
	for _, s := range e.GetHistory().GetSessions() {
		got[fmt.Sprint(s.GetNode(), " ", s.GetConnection().GetKey(), " ", s.GetConnection().GetConnectedAtMs())] = s
	}
	n := 0
	for _, w := range want {
		name := fmt.Sprint(w.node, " ", w.key, " ", w.openedMS)
		s := got[name]
		switch delete(got, name); {
		case name == current:
			continue
		case s == nil:
			t.Errorf("%s: %s is not there", what, name)
		case w.endedMS != 0 && (!s.GetStated() || s.GetEndedMs() != w.endedMS):
			t.Errorf("%s: %s ended at %d, stated %v; the broker said %d", what, name, s.GetEndedMs(), s.GetStated(), w.endedMS)
		case w.endedMS == 0 && s.GetStated():
			t.Errorf("%s: %s ended at %d as stated; the broker said nothing", what, name, s.GetEndedMs())
		}
		n++
	}
	for name := range got {
		t.Errorf("%s: %s never was", what, name)
	}
	return n
}
