package chaos

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

const (
	cluster    = "default"
	fabricated = "fabricated"
	partitions = 4
)

// topics is what a run left: the records of each topic, in order.
type topics struct {
	facts  []presence.Fact
	nodes  []presence.NodeFact
	states []*kgo.Record // of one partition
	dead   int
}

func factOf(kind presence.Kind, ms int64, order uint32, reason presence.Reason) presence.Fact {
	f := presence.Fact{
		Kind: kind, Cluster: cluster, ClientID: fabricated, Node: "m", Dialect: presence.DialectMosquitto20, TimeMS: ms, Order: order,
		ReceivedMS: ms + 5, Reason: reason, Transport: "tcp",
	}
	f.SetID()
	return f
}

// fabricate returns the topics of a client that was online, taken over, offline, online again, and ended by a new generation of its node: with
// transitions by one producer, and a checkpoint before the last two.
func fabricate(t *testing.T) *topics {
	t.Helper()
	x := &topics{
		facts: []presence.Fact{
			factOf(presence.Opened, 1000, 1, presence.ReasonUnknown),
			factOf(presence.Closed, 5000, 1, presence.ReasonTakenOver),
			factOf(presence.Opened, 5000, 2, presence.ReasonUnknown),
			factOf(presence.Closed, 7000, 1, presence.ReasonNormal),
			factOf(presence.Opened, 9000, 1, presence.ReasonUnknown),
		},
		nodes: []presence.NodeFact{
			{Kind: presence.NodeStarted, Cluster: cluster, Node: "m", StartedMS: 500, StartedReceivedMS: 500, TimeMS: 900, ReceivedMS: 900},
			{Kind: presence.NodeStarted, Cluster: cluster, Node: "m", StartedMS: 20_000, StartedReceivedMS: 20_000, TimeMS: 21_000, ReceivedMS: 21_000},
		},
	}
	var state presence.State
	var table presence.Cluster
	table.Apply(&x.nodes[0])
	previous := presence.Offline
	publish := func(event, node int64) {
		v := presence.Status(&state, &table, presence.DefaultAllowanceMS)
		s := eventlog.ClientState{
			Transition: true, Cluster: cluster, ClientID: fabricated, Status: v.Status, PreviousStatus: previous, Belief: v.Belief,
			StatusReason: v.Reason, Node: v.Node, EventOffset: event, NodeEventOffset: node, State: state.Append(nil),
		}
		x.publish(&s)
		previous = v.Status
	}
	for i := range x.facts {
		state.Apply(&x.facts[i])
		publish(int64(i), 0)
		if i == 3 {
			x.publish(&eventlog.ClientState{Checkpoint: true, EventOffset: 4})
		}
	}
	table.Apply(&x.nodes[1])
	publish(4, 1)
	return x
}

func (x *topics) publish(s *eventlog.ClientState) {
	r := eventlog.StateRecord(s, home(), eventlog.JSON)
	r.ProducerID, r.ProducerEpoch = 7, int16(len(x.states))
	x.states = append(x.states, r)
}

// change publishes a state with something else in it.
func (x *topics) change(t *testing.T, i int, change func(*eventlog.ClientState)) *kgo.Record {
	t.Helper()
	var s eventlog.ClientState
	if err := eventlog.DecodeClientState(x.states[i], &s); err != nil {
		t.Fatal(err)
	}
	change(&s)
	r := eventlog.StateRecord(&s, home(), eventlog.JSON)
	r.ProducerID, r.ProducerEpoch = 7, int16(len(x.states))
	return r
}

// home is the client's partition.
func home() int32 { return eventlog.Partition(eventlog.ClientKey(cluster, fabricated), partitions) }

// ledger reads the topics.
func (x *topics) ledger(t *testing.T) *Ledger {
	t.Helper()
	l := NewLedger(cluster, presence.DefaultAllowanceMS, partitions)
	add := func(r *kgo.Record, topic string, partition int32, offset int) {
		r.Topic, r.Partition, r.Offset = topic, partition, int64(offset)
		if err := l.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	for i := range x.facts {
		add(eventlog.FactRecord(&x.facts[i], eventlog.JSON), eventlog.TopicClientEvents, home(), i)
	}
	for i := range x.nodes {
		add(eventlog.NodeRecord(&x.nodes[i], eventlog.JSON), eventlog.TopicNodeEvents, 0, i)
	}
	for i, r := range x.states {
		add(r, eventlog.TopicClientState, r.Partition, i)
	}
	for i := range x.dead {
		add(eventlog.DeadLetterRecord(&eventlog.DeadLetter{Reason: "bad"}), eventlog.TopicDeadLetters, 0, i)
	}
	return l
}

// TestCheck breaks each promise that Check is there for.
func TestCheck(t *testing.T) {
	const last = 6
	again := func(r *kgo.Record) *kgo.Record {
		c := *r
		c.ProducerEpoch = 100
		return &c
	}
	for _, tc := range []struct {
		name  string
		spoil func(x *topics)
		want  string // of the error; empty: none
	}{
		{"nothing", func(*topics) {}, ""},
		{"fact copied", func(x *topics) {
			x.facts = append(x.facts, x.facts[3])
			x.facts[5].ReceivedMS += 100
		}, ""},
		{"fact copied by a bridge that knows less", func(x *topics) {
			x.facts = append(x.facts, x.facts[0])
			x.facts[5].Transport = ""
		}, ""},
		{"publisher crashed", func(x *topics) { x.states = append(x.states, again(x.states[0]), again(x.states[last])) }, ""},
		{"successor", func(x *topics) {
			x.states[5].ProducerID, x.states[last].ProducerID = 8, 8
			x.states[5].ProducerEpoch, x.states[last].ProducerEpoch = 0, 0
		}, ""},
		{"fact copied with other content", func(x *topics) {
			x.facts = append(x.facts, x.facts[3])
			x.facts[5].Transport = "websocket"
		}, "two facts have the ID"},
		{"published again with other bytes", func(x *topics) {
			r := again(x.states[last])
			r.Value = append(slices.Clone(r.Value), ' ')
			x.states = append(x.states, r)
		}, "two states have the version"},
		{"out of order", func(x *topics) { x.states[1], x.states[2] = x.states[2], x.states[1] }, "comes after"},
		{"one lost", func(x *topics) { x.states = slices.Delete(x.states, 1, 2) }, "a transition is missing between"},
		{"two lost", func(x *topics) { x.states = slices.Delete(x.states, 1, 3) }, "no transition was published for the fact at offset 1"},
		{"last lost", func(x *topics) { x.states = x.states[:last] }, "no transition says so"},
		{"last two lost", func(x *topics) { x.states, x.nodes = x.states[:last-1], x.nodes[:1] }, "no transition was published for the fact at offset 4"},
		{"all lost", func(x *topics) { x.states = nil }, "no transition was published for the fact at offset 0"},
		{"one invented", func(x *topics) {
			x.states = append(x.states, x.change(t, last, func(s *eventlog.ClientState) {
				s.EventOffset, s.PreviousStatus, s.Status = 5, presence.Offline, presence.Online
			}))
		}, "the fold makes offline (node_restarted)"},
		{"nothing changed", func(x *topics) {
			x.states = append(x.states, x.change(t, last, func(s *eventlog.ClientState) { s.EventOffset, s.PreviousStatus = 5, presence.Offline }))
		}, "the transition changes nothing"},
		{"wrong reason", func(x *topics) {
			x.states[last] = x.change(t, last, func(s *eventlog.ClientState) { s.StatusReason = presence.BrokerObserved })
		}, "the fold makes offline (node_restarted)"},
		{"wrong belief", func(x *topics) {
			x.states[last] = x.change(t, last, func(s *eventlog.ClientState) { s.Belief = presence.Online })
		}, "the fold makes offline (node_restarted)"},
		{"wrong state", func(x *topics) {
			x.states[last] = x.change(t, last, func(s *eventlog.ClientState) { s.State = (&presence.State{}).Append(nil) })
		}, "the folded state"},
		{"fact lost", func(x *topics) { x.facts[3] = factOf(presence.Opened, 6500, 1, presence.ReasonUnknown) }, "the folded state"},
		{"other partition", func(x *topics) { x.states[last].Partition = (home() + 1) % partitions }, "belongs to"},
		{"fenced owner", func(x *topics) { x.states[last].ProducerEpoch = 4 }, "fenced producer"},
		{"fenced owner with its former ID", func(x *topics) { x.states[5].ProducerID = 8 }, "fenced producer"},
		{"no transaction", func(x *topics) { x.states[last].ProducerID = -1 }, "comes from no transaction"},
		{"checkpoint too early", func(x *topics) { x.states[3], x.states[4] = x.states[4], x.states[3] }, "after the checkpoint"},
		{"checkpoint goes back", func(x *topics) { x.publish(&eventlog.ClientState{Checkpoint: true, EventOffset: 3}) }, "the one before it"},
		{"dead letter", func(x *topics) { x.dead = 1 }, "1 dead letters"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := fabricate(t)
			tc.spoil(x)
			err := x.ledger(t).Check()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("Check says %v, want %q", err, tc.want)
			}
		})
	}
}

func TestSize(t *testing.T) {
	x := fabricate(t)
	x.facts = append(x.facts, x.facts[4])
	x.states = append(x.states, x.states[6])
	want := Size{Clients: 1, Facts: 6, Copies: 1, Transitions: 6, Repeated: 1, Checkpoints: 1, NodeFacts: 2}
	if got := x.ledger(t).Size(); got != want {
		t.Errorf("size %+v, want %+v", got, want)
	}
}

func TestCheckAnswers(t *testing.T) {
	right := Answer{
		Client: fabricated, Status: "online", Belief: "online", Reason: "connected", SinceMS: 5000, Node: "m", ConnectedMS: 5000,
		Partition: home(), Applied: 3, NodeApplied: 1,
	}
	for _, tc := range []struct {
		name  string
		spoil func(a *Answer)
		ok    bool
	}{
		{"nothing", func(*Answer) {}, true},
		{"one fact later", func(a *Answer) { a.Applied = 4 }, false},
		{"one fact earlier", func(a *Answer) { a.Applied = 2 }, false},
		{"node facts later", func(a *Answer) { a.NodeApplied = 2 }, false},
		{"status", func(a *Answer) { a.Status = "offline" }, false},
		{"belief", func(a *Answer) { a.Belief = "offline" }, false},
		{"reason", func(a *Answer) { a.Reason = "observed" }, false},
		{"since", func(a *Answer) { a.SinceMS = 1000 }, false},
		{"connection", func(a *Answer) { a.ConnectedMS = 1000 }, false},
		{"node", func(a *Answer) { a.Node = "n" }, false},
		{"partition", func(a *Answer) { a.Partition++ }, false},
		{"after the end of all", func(a *Answer) {
			a.Applied, a.NodeApplied, a.SinceMS, a.ConnectedMS = 5, 2, 20_000, 9000
			a.Status, a.Belief, a.Reason = "offline", "offline", "node_restarted"
		}, true},
		{"batch of a partition that catches up", func(a *Answer) {
			a.Applied, a.Batch, a.Stale, a.StaleReasons = 2, true, true, []string{"catching_up"}
		}, true},
		{"catching up", func(a *Answer) { a.Applied, a.Stale, a.StaleReasons = 2, true, []string{"catching_up"} }, false},
		{"never seen", func(a *Answer) {
			*a = Answer{Client: "stranger", Status: "unknown", Belief: "offline", Reason: "never_seen", Applied: 5, NodeApplied: 2,
				Partition: eventlog.Partition(eventlog.ClientKey(cluster, "stranger"), partitions)}
		}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := right
			tc.spoil(&a)
			if err := fabricate(t).ledger(t).CheckAnswers([]Answer{right, a, right}); (err == nil) != tc.ok {
				t.Errorf("CheckAnswers says %v", err)
			}
		})
	}
}

func TestTail(t *testing.T) {
	began := time.UnixMilli(1_000_000)
	at := func(s float64) time.Time { return began.Add(time.Duration(s * float64(time.Second))) }
	var tail Tail
	for i := range 60 {
		tail.Saw(0, at(float64(i)), int64(10*i)) // ten records each second
	}
	for _, tc := range []struct {
		name  string
		sent  float64
		a     Answer
		wrong string
	}{
		{"fresh", 30, Answer{Applied: 300}, ""},
		{"within the slack", 30.4, Answer{Applied: 290}, ""},
		{"lacks a second's records, and does not say so", 31.6, Answer{Applied: 300}, "its lag is not true"},
		{"says so", 31.6, Answer{Applied: 300, LagMS: 1_000}, ""},
		{"says too little", 35, Answer{Applied: 300, LagMS: 3_000}, "its lag is not true"},
		{"lag unknown, but stale", 50, Answer{Applied: 0, LagMS: -1, Stale: true}, ""},
		{"lag unknown, not stale", 50, Answer{Applied: 0, LagMS: -1}, "it should be stale"},
		{"lag true, not stale", 50, Answer{Applied: 350, LagMS: 14_000}, "it should be stale"},
		{"other partition", 50, Answer{Partition: 1}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.a.Sent = at(tc.sent)
			err := tail.Check([]Answer{tc.a}, 10*time.Second, 500*time.Millisecond)
			if tc.wrong == "" && err != nil || tc.wrong != "" && (err == nil || !strings.Contains(err.Error(), tc.wrong)) {
				t.Errorf("Check says %v, want %q", err, tc.wrong)
			}
		})
	}
}
