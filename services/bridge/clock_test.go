package bridge

import (
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

const hourMS = int64(time.Hour / time.Millisecond)

// TestFeedKeepsItsOrder_H9: a clock that was set back must not hide the feed behind what it said before.
func TestFeedKeepsItsOrder_H9(t *testing.T) {
	f := newTestFeed(t)
	var c presence.Cluster
	apply := func(nowMS int64) presence.NodeFact {
		fact, _ := f.assert(nowMS)
		c.Apply(&fact)
		if got := c.Feeds["b1"]; got != fact {
			t.Errorf("at %d the table has %+v, the bridge said %+v", nowMS, got, fact)
		}
		return fact
	}
	apply(50_000)
	apply(50_000 + hourMS)
	if fact := apply(52_000); fact.ToldMS() != 52_000 {
		t.Errorf("it tells of the time until %d", fact.ToldMS())
	}
	f.interrupted(53_000)
	apply(53_000)
	f.subscribed(subscription{resumed: true, connectedMS: 54_000, subscribedMS: 54_100})
	apply(54_100)
	if _, _, gap := c.FeedGap(); gap {
		t.Errorf("a gap is forged: %+v", c.Feeds)
	}
}

// TestFeedAcrossLeaps_H9 sets the bridge's clock forward by an hour and back, around a gap, and before one: it forges none and hides none.
func TestFeedAcrossLeaps_H9(t *testing.T) {
	for _, tc := range []struct {
		name     string
		between  func(f *feed) // while the clock is ahead
		after    func(f *feed)
		from, to int64 // the gap; 0: there is none
	}{
		{name: "nothing happens"},
		{name: "gap while it is ahead", from: 60_000, to: 90_000, between: func(f *feed) {
			f.interrupted(60_000 + hourMS)
			f.subscribed(subscription{connectedMS: 90_000 + hourMS, subscribedMS: 90_000 + hourMS})
		}},
		{name: "gap after it is back", from: 110_000, to: 170_000, after: func(f *feed) {
			f.interrupted(110_000)
			f.subscribed(subscription{resumed: true, connectedMS: 170_000, subscribedMS: 170_000})
		}},
		{name: "drop while it is ahead", from: 60_000, to: 61_000, between: func(f *feed) { f.dropped(1, 60_000+hourMS, 61_000+hourMS) }},
		{name: "resumed in time, after it is back", after: func(f *feed) {
			f.interrupted(110_000)
			f.subscribed(subscription{resumed: true, connectedMS: 115_000, subscribedMS: 115_000})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newTestFeed(t)
			c := presence.Cluster{}
			c.Apply(&presence.NodeFact{Kind: presence.NodeStarted, Node: "n", StartedMS: 500, StartedReceivedMS: 500, ReceivedMS: 500})
			at := func(nowMS int64) {
				fact, _ := f.assert(nowMS)
				c.Apply(&fact)
			}
			at(50_000)
			at(52_000 + hourMS)
			if tc.between != nil {
				tc.between(f)
			}
			at(100_000 + hourMS)
			at(102_000)
			if tc.after != nil {
				tc.after(f)
			}
			at(200_000)
			from, to, gap := c.FeedGap()
			if gap != (tc.from != 0) || abs(from-tc.from) > 2_000 || abs(to-tc.to) > 2_000 {
				t.Errorf("gap %v from %d to %d, want %d to %d: %+v", gap, from, to, tc.from, tc.to, c.Feeds["b1"])
			}
			if fact := c.Feeds["b1"]; fact.CompleteSinceMS > 200_000 {
				t.Errorf("complete since %d, a time that is to come", fact.CompleteSinceMS)
			}
		})
	}
}

// TestLeapHealsNothing_H9: a generation that was seen while the clock was ahead must not heal a gap of after.
func TestLeapHealsNothing_H9(t *testing.T) {
	f := newTestFeed(t)
	c := presence.Cluster{}
	start := func(ms int64) {
		c.Apply(&presence.NodeFact{Kind: presence.NodeStarted, Node: "n", StartedMS: 500, StartedReceivedMS: ms, ReceivedMS: ms})
	}
	start(60_000 + hourMS)
	f.assert(60_000 + hourMS)
	f.assert(70_000)
	f.interrupted(80_000)
	f.subscribed(subscription{connectedMS: 90_000, subscribedMS: 90_000})
	fact, _ := f.assert(100_000)
	c.Apply(&fact)
	if from, to, gap := c.FeedGap(); !gap || from != 80_000 || to != 90_000 {
		t.Errorf("gap %v from %d to %d", gap, from, to)
	}
	// A later one does: the bridge lets it come behind, and real time catches up.
	start(60_001 + hourMS)
	fact, _ = f.assert(70_000 + hourMS)
	c.Apply(&fact)
	if _, _, gap := c.FeedGap(); gap {
		t.Error("a gap of before the generation is not healed")
	}
}

// TestNodesAcrossLeaps_H9 sets the bridge's clock forward by an hour and back while a node sends heartbeats: no silence and no generation is asserted
// for it, and after it both still are.
func TestNodesAcrossLeaps_H9(t *testing.T) {
	n := newNodes("default")
	n.load()
	var c presence.Cluster
	var facts []presence.NodeFact
	apply := func(list []presence.NodeFact) {
		for i := range list {
			c.Apply(&list[i])
		}
		facts = append(facts, list...)
	}
	n.subscribed(1_000)
	const boot = 10_000_000 // how long the node has been up
	leap := int64(0)
	realMS := int64(1_000)
	run := func(untilMS int64, heartbeats bool) {
		for ; realMS < untilMS; realMS += 1_000 {
			apply(n.tick(realMS + leap))
			if heartbeats && realMS%10_000 == 0 {
				s := signal{kind: signalUptime, node: "n1", dialect: presence.DialectEMQX, ms: boot + realMS, clockMS: 5_000_000_000 + realMS, paired: false}
				apply(n.apply(&s, realMS+leap+5))
			}
		}
	}
	run(60_000, true)
	leap = hourMS
	run(120_000, true)
	leap = 0
	run(180_000, true)
	kinds := map[presence.NodeKind]int{}
	for _, f := range facts {
		kinds[f.Kind]++
		if f.SetBackFromMS != 0 {
			t.Errorf("the node's clock is said to have been set back: %+v", f)
		}
	}
	if kinds[presence.NodeStarted] != 1 || kinds[presence.NodeSilent] != 0 || kinds[presence.NodeAlive] < 15 {
		t.Fatalf("facts %v", kinds)
	}
	run(400_000, false)
	if !c.Nodes["n1"].Silent() {
		t.Fatalf("the silence of after is hidden: %+v", c.Nodes["n1"])
	}
	before := c.Nodes["n1"].StartedMS
	s := signal{kind: signalUptime, node: "n1", dialect: presence.DialectEMQX, ms: 1_000, clockMS: 5_000_000_000 + realMS}
	apply(n.apply(&s, realMS))
	if node := c.Nodes["n1"]; node.Silent() || node.StartedMS <= before {
		t.Errorf("the generation of after is hidden: %+v", node)
	}
}
