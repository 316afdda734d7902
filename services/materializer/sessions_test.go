package materializer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// sessionPartition is a partition without Kafka that has been there from the first fact.
func sessionPartition(t testing.TB, publish bool) *partition {
	t.Helper()
	p := benchPartition(t, publish, store.DefaultEvidence)
	b := p.parts.store.NewBatch(0)
	b.PutHistory(store.HistoryAll)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return p
}

// read asks a partition that runs without Kafka.
func read(t testing.TB, p *partition, clientID string) *presencev1.StateEntry {
	t.Helper()
	m := &Materializer{cfg: p.parts.cfg, log: p.log, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	r, err := m.GetStates(context.Background(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: clientID}},
		History: true, Explain: true})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetEntries()[0]
}

// sessions writes an entry's connections, newest first: the current one with its status, then those of the history, each as
// "node opened-ended reason", with "~" before an end that is inferred. Times are relative to t0.
func sessions(e *presencev1.StateEntry) []string {
	var out []string
	if c := e.GetConnection(); c != nil {
		out = append(out, fmt.Sprintf("%s %d %s", e.GetNode(), c.GetConnectedAtMs()-t0, e.GetStatusReason()))
	}
	for _, h := range e.GetHistory().GetSessions() {
		s := fmt.Sprintf("%s %d-", h.GetNode(), h.GetConnection().GetConnectedAtMs()-t0)
		switch {
		case h.GetStated():
			s += fmt.Sprint(h.GetEndedMs() - t0)
		case h.GetEndedMs() != 0:
			s += "~" + fmt.Sprint(h.GetEndedMs()-t0)
		}
		out = append(out, strings.TrimSpace(s+" "+h.GetReason()))
	}
	return out
}

// of changes a fact, and its ID with it.
func of(f presence.Fact, change func(*presence.Fact)) presence.Fact {
	change(&f)
	f.SetID()
	return f
}

// line is a line of Mosquitto's log, in seconds.
func line(kind presence.Kind, seconds int64, order uint32, reason presence.Reason) presence.Fact {
	f := presence.Fact{Kind: kind, Cluster: "default", ClientID: "a", Dialect: presence.DialectMosquitto20, Node: "m", TimeMS: t0 + seconds*1000, Order: order,
		ReceivedMS: t0 + seconds*1000 + 5, Transport: "tcp", Reason: reason}
	if kind != presence.Opened {
		f.Transport = ""
	}
	f.SetID()
	return f
}

// keyed is a fact of a dialect whose Closed tells a key but not when it opened.
func keyed(dialect string, kind presence.Kind, key string, ms int64, reason presence.Reason) presence.Fact {
	f := presence.Fact{Kind: kind, Cluster: "default", ClientID: "a", Dialect: dialect, Node: "r", Connection: key, TimeMS: t0 + ms, ReceivedMS: t0 + ms + 5, Reason: reason}
	f.SetID()
	return f
}

func TestSessions(t *testing.T) {
	takenOver := func(f *presence.Fact) { f.Reason = presence.ReasonTakenOver }
	rmqtt := func(kind presence.Kind, key string, ms int64, reason presence.Reason) presence.Fact {
		return keyed(presence.DialectRMQTT, kind, key, ms, reason)
	}
	aws := func(kind presence.Kind, key string, ms int64, reason presence.Reason, version uint32) presence.Fact {
		return of(keyed(presence.DialectAWS, kind, key, ms, reason), func(f *presence.Fact) { f.Order = version })
	}
	denied := presence.Fact{Kind: presence.Observed, Cluster: "default", ClientID: "a", Dialect: presence.DialectEMQX, Online: presence.Some(false),
		QueryStartMS: t0 + 50_000, QueryEndMS: t0 + 50_010, ReceivedMS: t0 + 50_020}
	const minute, day = int64(60_000), int64(86_400_000)
	tests := []struct {
		name  string
		facts []presence.Fact
		want  []string
	}{
		{"one connection is current", []presence.Fact{opened("a", "n1", 1000)}, []string{"n1 1000 connected"}},
		{"its end does not move it", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000)}, []string{"n1 1000 closed"}},
		{"a connection that ended and came again", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000)},
			[]string{"n1 3000 connected", "n1 1000-2000 normal"}},
		{"a takeover without a word", []presence.Fact{opened("a", "n1", 1000), opened("a", "n1", 3000)}, []string{"n1 3000 connected", "n1 1000-~3000 superseded"}},
		{"its Closed comes as a ghost", []presence.Fact{opened("a", "n1", 1000), opened("a", "n1", 3000), of(closedAt("a", "n1", 1000, 3001), takenOver)},
			[]string{"n1 3000 connected", "n1 1000-3001 taken_over"}},
		{"from node to node", []presence.Fact{opened("a", "n1", 1000), opened("a", "n2", 9000), of(closedAt("a", "n1", 1000, 9001), takenOver)},
			[]string{"n2 9000 connected", "n1 1000-9001 taken_over"}},
		{"from node to node without a word", []presence.Fact{opened("a", "n1", 1000), opened("a", "n2", 9000)}, []string{"n2 9000 connected", "n1 1000-~9000 superseded"}},
		{"and back", []presence.Fact{opened("a", "n1", 1000), opened("a", "n2", 9000), opened("a", "n1", 19_000)},
			[]string{"n1 19000 connected", "n2 9000-~19000 superseded", "n1 1000-~9000 superseded"}},
		{"after more than a day on another node", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n2", 2*day)},
			[]string{"n2 172800000 connected", "n1 1000-2000 normal"}},
		{"ended after more than a day, by its successor there", []presence.Fact{opened("a", "n1", 1000), opened("a", "n2", 2*day), of(closedAt("a", "n1", 1000, 2*day+1), takenOver)},
			[]string{"n2 172800000 connected", "n1 1000-172800001 taken_over"}},
		{"a Closed before its Opened", []presence.Fact{closedAt("a", "n1", 1000, 2000), opened("a", "n1", 1000), opened("a", "n1", 3000)},
			[]string{"n1 3000 connected", "n1 1000-2000 normal"}},
		{"an Opened that comes late", []presence.Fact{opened("a", "n1", 3000), opened("a", "n1", 1000)}, []string{"n1 3000 connected", "n1 1000-~3000 superseded"}},
		{"all backwards", []presence.Fact{opened("a", "n1", 3000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 1000)},
			[]string{"n1 3000 connected", "n1 1000-2000 normal"}},
		{"only Closed", []presence.Fact{closedAt("a", "n1", 1000, 2000), closedAt("a", "n1", 5000, 6000)}, []string{"n1 5000 closed", "n1 1000-2000 normal"}},
		{"ended twice: the first counts", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000), of(closedAt("a", "n1", 1000, 2999), takenOver)},
			[]string{"n1 3000 connected", "n1 1000-2000 normal"}},
		{"a query found it gone", []presence.Fact{opened("a", "n1", 1000), denied, opened("a", "n1", 100_000)},
			[]string{"n1 100000 connected", "n1 1000-~50000 observed"}},
		{"a query found it gone, and then its end came", []presence.Fact{opened("a", "n1", 1000), denied, opened("a", "n1", 100_000), closedAt("a", "n1", 1000, 40_000)},
			[]string{"n1 100000 connected", "n1 1000-40000 normal"}},

		{"a key that comes again", []presence.Fact{rmqtt(presence.Opened, "ip:1", 1000, 0), rmqtt(presence.Opened, "ip:2", 20*minute, 0),
			rmqtt(presence.Closed, "ip:1", 20*minute+9, presence.ReasonTakenOver), rmqtt(presence.Opened, "ip:1", 40*minute, 0)},
			[]string{"r 2400000 connected", "r 1200000-~2400000 superseded", "r 1000-1200009 taken_over"}},
		{"a key that comes again, the end late", []presence.Fact{rmqtt(presence.Opened, "ip:1", 1000, 0), rmqtt(presence.Opened, "ip:1", 40*minute, 0),
			rmqtt(presence.Closed, "ip:1", 20*minute, presence.ReasonNormal)},
			[]string{"r 2400000 connected", "r 1000-1200000 normal"}},
		{"a key, everything late", []presence.Fact{rmqtt(presence.Closed, "ip:1", 20*minute, presence.ReasonNormal), rmqtt(presence.Opened, "ip:2", 40*minute, 0),
			rmqtt(presence.Opened, "ip:1", 1000, 0)}, []string{"r 2400000 connected", "r 1000-1200000 normal"}},
		{"AWS", []presence.Fact{aws(presence.Opened, "s1", 1000, 0, 1), aws(presence.Opened, "s2", 20*minute, 0, 2),
			aws(presence.Closed, "s1", 20*minute-90_000, presence.ReasonTakenOver, 1)},
			[]string{"r 1200000 connected", "r 1000-1110000 taken_over"}},

		{"Mosquitto", []presence.Fact{line(presence.Opened, 1, 2, 0), line(presence.Closed, 5, 1, presence.ReasonNormal), line(presence.Opened, 9, 2, 0)},
			[]string{"m 9000 connected", "m 1000-5000 normal"}},
		{"Mosquitto, three in a second", []presence.Fact{line(presence.Opened, 1, 1, 0), line(presence.Closed, 1, 2, presence.ReasonNormal), line(presence.Opened, 1, 3, 0),
			line(presence.Closed, 1, 4, presence.ReasonNormal), line(presence.Opened, 1, 5, 0), line(presence.Closed, 1, 6, presence.ReasonNormal)},
			[]string{"m 1000 closed", "m 1000-1000 normal", "m 1000-1000 normal"}},
		{"Mosquitto, a takeover", []presence.Fact{line(presence.Opened, 1, 2, 0), line(presence.Closed, 9, 1, presence.ReasonTakenOver), line(presence.Opened, 9, 3, 0)},
			[]string{"m 9000 connected", "m 1000-9000 taken_over"}},
		{"Mosquitto, the end late", []presence.Fact{line(presence.Opened, 1, 2, 0), line(presence.Opened, 9, 2, 0), line(presence.Closed, 5, 1, presence.ReasonNormal)},
			[]string{"m 9000 connected", "m 1000-5000 normal"}},
		{"Mosquitto, all backwards", []presence.Fact{line(presence.Opened, 9, 2, 0), line(presence.Closed, 5, 1, presence.ReasonNormal), line(presence.Opened, 1, 2, 0)},
			[]string{"m 9000 connected", "m 1000-5000 normal"}},
		{"Mosquitto, a stranger's failed login proves nothing", []presence.Fact{line(presence.Opened, 1, 2, 0), line(presence.Opened, 9, 2, 0),
			line(presence.Closed, 5, 1, presence.ReasonNotAuthorized)}, []string{"m 9000 connected", "m 1000-~9000 superseded"}},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			// In one batch, each fact in one of its own, and all of it twice, as after the offset went back.
			for _, batch := range []int{len(c.facts), 1} {
				p := sessionPartition(t, false)
				for again := range int64(2) {
					for i := 0; i < len(c.facts); i += batch {
						foldFacts(t, p, int64(i), c.facts[i:min(i+batch, len(c.facts))]...)
					}
					e := read(t, p, "a")
					if got := sessions(e); !slices.Equal(got, c.want) {
						t.Errorf("batches of %d, again %d:\ngot  %q\nwant %q", batch, again, got, c.want)
					}
					if e.GetHistory().GetCompleteSinceMs() != 0 {
						t.Errorf("complete since %d", e.GetHistory().GetCompleteSinceMs())
					}
					p.meta.Next = 0
				}
			}
		})
	}
}

// setNodes makes a partition without Kafka know nodes.
func setNodes(p *partition, facts ...presence.NodeFact) {
	c := &presence.Cluster{}
	for i := range facts {
		c.Apply(&facts[i])
	}
	p.parts.nodes.current.Store(&nodeTable{clusters: map[string]*presence.Cluster{"default": c}, affected: -1, replaced: make(chan struct{})})
}

// A restart of a node ends its connections at that time, unless a newer connection did before; what is known by then is what is kept.
func TestSessionsEndWithTheirNode(t *testing.T) {
	p := sessionPartition(t, false)
	foldFacts(t, p, 0, opened("a", "n1", 1000), opened("b", "n1", 1000), opened("b", "n2", 9000), opened("c", "n1", 1000))
	setNodes(p, started("n1", 50_000))
	for id, want := range map[string][]string{
		"a": {"n1 1000 node_restarted"},
		"b": {"n2 9000 connected", "n1 1000-~9000 superseded"},
	} {
		if got := sessions(read(t, p, id)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
	foldFacts(t, p, 4, opened("a", "n1", 60_000), opened("b", "n1", 60_000), opened("c", "n1", 60_000), closedAt("c", "n1", 1000, 2000))
	for id, want := range map[string][]string{
		"a": {"n1 60000 connected", "n1 1000-~50000 node_restarted"},
		"b": {"n1 60000 connected", "n2 9000-~60000 superseded", "n1 1000-~9000 superseded"},
		"c": {"n1 60000 connected", "n1 1000-2000 normal"},
	} {
		if got := sessions(read(t, p, id)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", id, got, want)
		}
	}
	// A node that is silent, or gone, ends nothing, and may come back.
	silent := started("n1", 70_000)
	silent.Kind = presence.NodeSilent
	alive := started("n1", 80_000)
	alive.Kind = presence.NodeAlive
	setNodes(p, started("n1", 50_000), silent)
	if got := sessions(read(t, p, "a")); got[0] != "n1 60000 node_silent" {
		t.Errorf("silent: %q", got)
	}
	setNodes(p, started("n1", 50_000), silent, alive)
	if got := sessions(read(t, p, "a")); got[0] != "n1 60000 connected" || len(got) != 2 {
		t.Errorf("back: %q", got)
	}
}

func TestHistorySaysWhereItBegins(t *testing.T) {
	p := sessionPartition(t, false)
	p.parts.cfg.SessionsPerClient = 16
	var facts []presence.Fact
	for i := range int64(40) {
		facts = append(facts, opened("a", "n1", 1000*(i+1)))
	}
	foldFacts(t, p, 0, facts...)
	e := read(t, p, "a")
	got := sessions(e)
	if e.GetHistory().GetCompleteSinceMs() != t0+24_000 || len(got) != 17 || got[1] != "n1 39000-~40000 superseded" {
		t.Errorf("complete since %d, %q", e.GetHistory().GetCompleteSinceMs()-t0, got)
	}
	// Turned off, and on again.
	p.parts.cfg.SessionsPerClient = 0
	if err := p.noteHistory(); err != nil {
		t.Fatal(err)
	}
	foldFacts(t, p, 40, opened("a", "n1", 50_000), opened("a", "n1", 51_000))
	p.parts.cfg.SessionsPerClient = 16
	if err := p.noteHistory(); err != nil {
		t.Fatal(err)
	}
	if e := read(t, p, "a"); e.GetHistory().GetCompleteSinceMs() != t0+51_005 {
		t.Errorf("turned on again: complete since %d", e.GetHistory().GetCompleteSinceMs()-t0)
	}
}

// A store that was filled from client-state knows what the state has, and says since when it knows all.
func TestRestoredHistorySaysWhereItBegins(t *testing.T) {
	l := newLog(t)
	m := l.start(l.config(vfs.NewMem())).ready()
	last := l.facts(opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("a", "n1", 3000), opened("a", "n2", 9000))
	m.get("a", last)
	whole := m.history("a")
	if got := sessions(whole); whole.GetHistory().GetCompleteSinceMs() != 0 ||
		!slices.Equal(got, []string{"n2 9000 connected", "n1 3000-~9000 superseded", "n1 1000-2000 normal"}) {
		t.Errorf("complete since %d, %q", whole.GetHistory().GetCompleteSinceMs(), got)
	}
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	m = l.start(l.config(vfs.NewMem())).ready()
	m.get("a", l.facts(opened("a", "n2", 12_000)))
	restored := m.history("a")
	if got := sessions(restored); restored.GetHistory().GetCompleteSinceMs() != t0+9005 ||
		!slices.Equal(got, []string{"n2 12000 connected", "n2 9000-~12000 superseded", "n1 3000-~9000 superseded", "n1 1000-2000 normal"}) {
		t.Errorf("restored: complete since %d, %q", restored.GetHistory().GetCompleteSinceMs()-t0, got)
	}
}
