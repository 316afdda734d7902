package bridge

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// TestNodeLogCompacted has several bridges write to one compacted topic, late and twice: what is left of it must say what all of it said.
func TestNodeLogCompacted(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var full presence.Cluster
		var log nodeLog
		left := map[string]presence.NodeFact{}
		now := time.UnixMilli(1_000_000)
		write := func(f presence.NodeFact) {
			setNodeID(&f)
			full.Apply(&f)
			left[string(eventlog.NodeKey(&f))] = f
			log.add(&f, now)
			now = now.Add(time.Millisecond)
		}
		for range 40 {
			kinds := []presence.NodeKind{presence.NodeAlive, presence.NodeStarted, presence.NodeGone, presence.NodeSilent}
			f := presence.NodeFact{Kind: kinds[rng.IntN(len(kinds))], Cluster: "default", Node: []string{"a", "b"}[rng.IntN(2)], ReceivedMS: 1 + rng.Int64N(50), Dialect: "emqx"}
			if f.Kind == presence.NodeAlive || f.Kind == presence.NodeStarted {
				f.UptimeMS = presence.Some(rng.Int64N(20))
				f.StartedReceivedMS = 1 + rng.Int64N(10)
				f.StartedMS = f.StartedReceivedMS * 10
				if rng.IntN(4) == 0 {
					f.SetBackToMS = 1 + rng.Int64N(5)
					f.SetBackFromMS = f.SetBackToMS + 1
				}
			}
			f.TimeMS = f.ReceivedMS
			write(f)
		}
		for round := 0; ; round++ {
			now = now.Add(repairAfter)
			repairs := log.repairs(now, func(string) bool { return true })
			if len(repairs) == 0 {
				break
			}
			if round == 3 {
				t.Fatalf("seed %d: there is no end to what is written again: %+v", seed, repairs)
			}
			for _, f := range repairs {
				write(f)
			}
		}
		var rest presence.Cluster
		for _, f := range left {
			rest.Apply(&f)
		}
		for name, n := range full.Nodes {
			want, got := *n, *rest.Nodes[name]
			if got.SetBackFromMS != 0 && want.SetBackFromMS != 0 {
				// Of several steps each writer knows its latest.
				got.SetBackFromMS, got.SetBackToMS = want.SetBackFromMS, want.SetBackToMS
			}
			if !reflect.DeepEqual(public(want), public(got)) {
				t.Fatalf("seed %d: who read all has %+v, who reads what is left has %+v", seed, want, got)
			}
		}
	}
}

// public returns a node without what orders its steps back.
func public(n presence.Node) presence.Node {
	return presence.Node{Name: n.Name, Dialect: n.Dialect, StartedMS: n.StartedMS, StartedReceivedMS: n.StartedReceivedMS, AliveMS: n.AliveMS, UptimeMS: n.UptimeMS,
		GoneMS: n.GoneMS, SilentMS: n.SilentMS, SetBackFromMS: n.SetBackFromMS, SetBackToMS: n.SetBackToMS}
}

// TestNodeLogForeign leaves clusters alone that other bridges serve, and feeds, which one bridge writes.
func TestNodeLogForeign(t *testing.T) {
	var log nodeLog
	now := time.UnixMilli(1)
	for _, f := range []presence.NodeFact{
		{Kind: presence.NodeGone, Cluster: "other", Node: "a", ReceivedMS: 5}, {Kind: presence.NodeGone, Cluster: "other", Node: "a", ReceivedMS: 4},
		{Kind: presence.Feed, Cluster: "default", Bridge: "b", ReceivedMS: 5}, {Kind: presence.Feed, Cluster: "default", Bridge: "b", ReceivedMS: 4},
	} {
		log.add(&f, now)
	}
	if facts := log.repairs(now.Add(time.Minute), func(c string) bool { return c == "default" }); len(facts) != 0 {
		t.Errorf("written again: %+v", facts)
	}
	if facts := log.repairs(now.Add(time.Minute), func(string) bool { return true }); len(facts) != 1 || facts[0].ReceivedMS != 5 {
		t.Errorf("written again: %+v, want the node that left the list", facts)
	}
}

// TestSilenceHeardElsewhere has a node whose heartbeats reach the other bridge only: it is not silent, and no generation of it is new.
func TestSilenceHeardElsewhere(t *testing.T) {
	beat := presence.NodeFact{Kind: presence.NodeAlive, Cluster: defaultCluster, Node: "n", Dialect: presence.DialectEMQX, ReceivedMS: 1000, TimeMS: 1000, UptimeMS: presence.Some[int64](500)}
	for _, heard := range []bool{false, true} {
		n := newNodes(defaultCluster)
		n.recall(&beat)
		n.load()
		n.subscribed(1000)
		silent, others := 0, 0
		for ms := int64(1000); ms < 300_000; ms += 1000 {
			if heard && ms%30_000 == 0 {
				f := beat
				f.ReceivedMS, f.TimeMS, f.UptimeMS = ms-2000, ms-2000, presence.Some(ms-2500)
				n.told(&f, ms)
			}
			for _, f := range n.tick(ms) {
				if f.Kind == presence.NodeSilent {
					silent++
				} else {
					others++
				}
			}
		}
		if want := map[bool]int{false: 1, true: 0}[heard]; silent != want || others != 0 {
			t.Errorf("heard elsewhere %v: silent %d times, want %d; %d other facts", heard, silent, want, others)
		}
	}
}

// TestLinesLeftToOthers has a session join in the middle of a second.
func TestLinesLeftToOthers(t *testing.T) {
	var o others
	o.noteFeed(&presence.NodeFact{Kind: presence.Feed, Bridge: "b2", ReceivedMS: 50_000, CompleteSinceMS: 10_000, LeaseMS: 10_000})
	for ms, want := range map[int64]bool{11_999: false, 12_000: true, 60_000: true, 60_001: false} {
		if got := o.covers(ms); got != want {
			t.Errorf("at %d: covered by another bridge %v, want %v", ms, got, want)
		}
	}
	f := newTestFeed(t)
	f.interrupted(20_000)
	f.subscribed(subscription{connectedMS: 30_000, subscribedMS: 30_100})
	f.relied(30_700)
	wantState(t, "a line was left to another bridge", f, coverage{CompleteSinceMS: 30_700, GapFromMS: 20_000, GapToMS: 30_700})
	var c stampCounter
	c.connected(sessionStart{})
	c.subscribed(30_100)
	for i, want := range []struct {
		at, received int64
		joined       bool
	}{{30_000, 30_500, true}, {30_000, 30_900, true}, {31_000, 31_100, false}} {
		c.next(want.at, want.received)
		if c.joined() != want.joined {
			t.Errorf("line %d: joined within its second %v, want %v", i, c.joined(), want.joined)
		}
	}
}
