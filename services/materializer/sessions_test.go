package materializer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

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
