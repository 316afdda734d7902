package simulator

import (
	"slices"
	"strconv"

	"github.com/mqtt-presence/presence/libs/presence"
)

// maxDelayMS is how long an event may take to arrive.
const maxDelayMS = 20_000

// rowLateMS is how long a query may not know a connection that was told of (H14): the settle time less what two bridges' clocks differ.
const rowLateMS = presence.SettleMS - 2*bridgeSkewMS

// bridgeSkewMS is how far the second bridge's clock is behind the first's.
const bridgeSkewMS = 300

// turnDelayMS is how long an event may take to arrive where two bridges take turns: what reaches neither of them has then been told of while one of
// them was away.
const turnDelayMS = presence.DefaultAllowanceMS - bridgeSkewMS - 1

// firstStampMS is how long after it began a session may still receive lines of a stamp that began before.
const firstStampMS = 2_000

// bridge is an ideal bridge: it loses nothing that it receives, unless told so, and knows what it has not received.
type bridge struct {
	sim   *sim
	index int
	skew  int64 // of its clock; the first bridge's clock is the true time
	up    bool
	kept  bool // the broker keeps its session meanwhile
	began bool // it has subscribed once

	dropUntilMS int64
	feed        presence.NodeFact
	before      presence.NodeFact // while a kept session is down
	lastMS      map[string]int64  // by node: when the latest of its events came
}

func newBridge(s *sim, i int) *bridge {
	b := &bridge{sim: s, index: i, lastMS: map[string]int64{}}
	if i > 0 {
		b.skew = -bridgeSkewMS
	}
	b.feed = presence.NodeFact{Kind: presence.Feed, Cluster: clusterName, Bridge: "bridge-" + strconv.Itoa(i), Dialect: s.plan.Nodes[0].Dialect, LeaseMS: 10_000}
	return b
}

func (b *bridge) now() int64 { return b.sim.nowMS + b.skew }

// assert records the feed as it is. Two records never have one stamp: the latest would not be defined.
func (b *bridge) assert() {
	if !b.began {
		return
	}
	at := max(b.now(), b.feed.ReceivedMS+1)
	b.feed.TimeMS, b.feed.ReceivedMS = at, at
	b.sim.h.nodeFact(b.feed)
}

// join subscribes.
func (b *bridge) join(again bool) {
	s := b.sim
	if b.up || again && !b.began || !slices.ContainsFunc(s.nodes, func(n *node) bool { return n.up && !n.cutOff }) {
		return
	}
	b.up, b.began = true, true
	if b.kept {
		b.kept = false
		b.feed.CompleteSinceMS, b.feed.GapFromMS, b.feed.GapToMS = b.before.CompleteSinceMS, b.before.GapFromMS, b.before.GapToMS
		b.feed.Covered = b.before.Covered
		for i := range s.h.Deliveries {
			if d := &s.h.Deliveries[i]; d.held && d.Bridge == b.index {
				d.held = false
				d.ReceivedMS = max(b.lastMS[""], b.now()) + 1
				b.lastMS[""] = d.ReceivedMS
				if o := s.plan.Nodes[0].Ordered; o {
					b.lastMS[d.Event.Node] = max(b.lastMS[d.Event.Node], d.ReceivedMS)
				}
			}
		}
	} else {
		b.feed.CompleteSinceMS = b.now()
		if b.feed.GapFromMS != 0 {
			b.gap(b.feed.GapFromMS - b.skew)
		}
		left := s.plan.Nodes[0].Clock == Seconds && slices.ContainsFunc(s.bridges, func(o *bridge) bool {
			return o != b && o.up && o.feed.CompleteSinceMS != 0 && o.feed.CompleteSinceMS+presence.DefaultAllowanceMS <= b.now()
		})
		if left {
			b.feed.CompleteSinceMS += firstStampMS + turnDelayMS
		}
		b.sim.h.sessions = append(b.sim.h.sessions, session{b.index, b.now(), left})
		s.quietMS = max(s.quietMS, s.nowMS+presence.SettleMS+maxDelayMS)
	}
	b.assert()
	for _, n := range s.nodes {
		s.beatSoon(n, 1+int64(n.index)*1_000)
		if !s.reachable(n) {
			s.watch(n)
		}
	}
	if s.plan.Nodes[0].Retained && again {
		for _, c := range s.clients {
			s.h.Hazards.set(18)
			s.emit(&Event{Kind: Replay, Habits: s.plan.Nodes[0], Node: s.nodes[0].name, ClientID: c.id, Client: -1})
		}
	}
}

// cut takes the session away. What is under way is lost with it, unless the broker keeps it.
func (b *bridge) cut(keep bool) {
	if !b.up {
		return
	}
	s := b.sim
	b.up, b.kept = false, keep && s.plan.Nodes[0].QoS > 0
	b.before = b.feed
	for i := range s.h.Deliveries {
		d := &s.h.Deliveries[i]
		if d.Event == nil || d.Bridge != b.index || d.held || d.ReceivedMS <= b.now() {
			continue
		}
		if b.kept {
			d.held = true
		} else {
			d.Event.Lost = "the bridge lost its session"
			d.lost = true
			s.h.Hazards.set(12)
		}
	}
	b.feed.Covered.Add(b.feed.CompleteSinceMS, b.now())
	b.feed.CompleteSinceMS, b.feed.GapFromMS, b.feed.GapToMS = 0, b.now(), 0
	b.assert()
}

// gap records that a node is not heard since an instant, or that all are heard again.
func (b *bridge) gap(fromMS int64) {
	s := b.sim
	f := &b.feed
	if !b.up {
		f = &b.before
	}
	b.incomplete(fromMS+b.skew, s.nowMS+b.skew)
	f.CompleteSinceMS, f.GapFromMS, f.GapToMS = s.nowMS+b.skew, max(f.GapFromMS, fromMS+b.skew), s.nowMS+b.skew
	for _, n := range s.nodes {
		if n.silent || n.gone {
			f.CompleteSinceMS, f.GapToMS = 0, 0
		}
	}
	if b.up {
		b.assert()
	}
	s.quietMS = max(s.quietMS, s.nowMS+presence.SettleMS+maxDelayMS)
}

// overrun has the spool drop what comes for a while.
func (b *bridge) overrun(forMS int64) {
	if !b.up || b.dropUntilMS > b.now() {
		return
	}
	s := b.sim
	fromMS := b.now()
	b.dropUntilMS = fromMS + forMS
	s.quietMS = max(s.quietMS, s.nowMS+forMS+presence.SettleMS+maxDelayMS)
	for i := range s.h.Deliveries {
		if d := &s.h.Deliveries[i]; d.Event != nil && d.Bridge == b.index && !d.held && d.ReceivedMS >= fromMS && d.ReceivedMS < b.dropUntilMS {
			b.drop(d)
		}
	}
	s.at(s.nowMS+forMS, func() {
		b.feed.DroppedFromMS, b.feed.DroppedToMS = fromMS, b.now()
		b.feed.DroppedCount++
		b.incomplete(fromMS, b.now())
		b.assert()
	})
}

// incomplete records that something is missing that would have come between two times.
func (b *bridge) incomplete(fromMS, toMS int64) {
	for _, f := range []*presence.NodeFact{&b.feed, &b.before} {
		f.Covered.Cut(fromMS, toMS)
		if f.CompleteSinceMS == 0 {
			continue
		}
		if f.CompleteSinceMS < fromMS {
			f.Covered.Add(f.CompleteSinceMS, fromMS)
		}
		f.CompleteSinceMS = max(f.CompleteSinceMS, toMS)
	}
}

func (b *bridge) drop(d *Delivery) {
	d.lost = true
	d.Event.Lost = "dropped at the spool's bound"
	b.sim.h.Hazards.set(12)
}

// publish sends an event to whoever is subscribed.
func (s *sim) publish(e *Event, d *dice) {
	s.emit(e)
	if s.cutOff(e.Node) {
		e.Lost = "its node is not reached"
		return
	}
	if s.plan.Mode == Silent && (e.Kind == Connected || e.Kind == Disconnected) && d.in(4) {
		e.Lost = "inside the broker"
		if e.Client >= 0 {
			s.clients[e.Client].mourned = true
		}
		return
	}
	received := false
	for _, b := range s.bridges {
		copies := 1
		if e.Habits.QoS == 1 && d.in(6) || e.Habits.Clock != Received && e.Habits.Clock != Seconds && d.in(2) {
			// Redelivered, or matched by two filters.
			copies = 2
		}
		for range copies {
			received = b.receive(e, d) || received
		}
	}
	if !received {
		e.Lost = "no bridge was subscribed"
		if e.Client >= 0 {
			s.h.Hazards.set(12)
		}
	}
}

func (s *sim) emit(e *Event) {
	e.Seq, e.TrueMS = len(s.h.Events)+1, s.nowMS
	s.h.Events = append(s.h.Events, e)
}

func (s *sim) cutOff(node string) bool {
	for _, n := range s.nodes {
		if n.name == node {
			return n.cutOff
		}
	}
	return false
}

// receive has an event arrive after a while, and reports whether it will.
func (b *bridge) receive(e *Event, d *dice) bool {
	if !b.up && !b.kept {
		return false
	}
	late := delay(d)
	if len(b.sim.bridges) > 1 && (b.sim.plan.Flaky || b.sim.plan.Mode == Lossy) {
		late = min(late, turnDelayMS)
	}
	at := b.now() + late
	if e.Habits.Ordered {
		at = max(at, b.lastMS[e.Node])
		b.lastMS[e.Node] = at
	}
	b.sim.h.Deliveries = append(b.sim.h.Deliveries, Delivery{ReceivedMS: at, Bridge: b.index, Event: e, held: !b.up})
	if at < b.dropUntilMS {
		b.drop(&b.sim.h.Deliveries[len(b.sim.h.Deliveries)-1])
	}
	return true
}

func delay(d *dice) int64 {
	switch w := d.n(100); {
	case w < 70:
		return d.ms(1, 30)
	case w < 90:
		return d.ms(30, 800)
	case w < 97:
		return d.ms(800, 4_000)
	}
	return d.ms(4_000, maxDelayMS)
}

// sweep asks the broker for every client, once what was lost can show, and then calls the feed complete again.
func (s *sim) sweep(d *dice) {
	if !s.nodes[0].habits.Queries {
		return
	}
	s.advance(max(s.nowMS, s.quietMS))
	for _, b := range s.bridges {
		if !b.up {
			return
		}
	}
	for _, n := range s.nodes {
		if n.side != 0 || n.cutOff || n.silent || n.gone {
			return
		}
	}
	for _, c := range s.clients {
		f := presence.Fact{Kind: presence.Observed, Cluster: clusterName, ClientID: c.id, Dialect: s.nodes[0].habits.Dialect, Source: "sweep",
			QueryStartMS: s.nowMS, QueryEndMS: s.nowMS + d.ms(1, 30), Online: presence.Some(false)}
		f.TimeMS, f.ReceivedMS = f.QueryEndMS, f.QueryEndMS
		if len(c.live) > 0 {
			k := c.live[len(c.live)-1]
			if s.nowMS-k.openedMS < rowLateMS && d.in(50) {
				s.h.Hazards.set(14)
			} else {
				f.Online = presence.Some(true)
				f.Node = s.factNode(k.node)
				if k.node.habits.QueryKey {
					f.Connection = k.key
				}
			}
		} else if c.ended != nil {
			s.h.Hazards.set(17)
		}
		f.SetID()
		s.h.Deliveries = append(s.h.Deliveries, Delivery{ReceivedMS: f.ReceivedMS, Client: c.index, Fact: f, IsFact: true, Query: true})
		s.advance(f.QueryEndMS + 1)
	}
	for _, b := range s.bridges {
		if b.up {
			b.feed.ResyncedMS = b.now()
			b.assert()
		}
	}
}
