package simulator

import (
	"github.com/mqtt-presence/presence/libs/presence"
)

// stop ends a node, and with it its connections, of which no broker says a word (H10).
func (s *sim) stop(n *node, graceful bool, d *dice) {
	if !n.up || n.habits.Beat < UptimeBeat && s.plan.Mode != Silent {
		return
	}
	n.up, n.downMS = false, s.nowMS
	for _, c := range s.clients {
		for i := len(c.live) - 1; i >= 0; i-- {
			if k := c.live[i]; k.node == n {
				s.close(k)
				c.ended = nil
				c.mourned = c.mourned || n.habits.Beat < UptimeBeat
				s.h.Hazards.set(10)
			}
		}
	}
	if graceful && n.habits.Clock == Seconds {
		// The log says that it terminates.
		s.assertNode(presence.NodeGone, n)
	}
	s.watch(n)
	if s.plan.Mode == Lossy && d.in(40) {
		// The bridge's session was on this node.
		s.bridges[0].cut(false)
		s.at(s.nowMS+d.ms(100, 5_000), func() { s.bridges[0].join(true) })
	}
}

// watch lets the bridges notice that a node is not heard any more.
func (s *sim) watch(n *node) {
	since := s.nowMS
	s.at(since+membersMS, func() {
		if n.habits.Members && s.heard() && !s.reachable(n) && s.others(n) {
			s.assertNode(presence.NodeGone, n)
		}
	})
	s.at(since+leaseMS, func() {
		if n.habits.Beat != NoBeat && s.heard() && n.beatenMS <= since && n.seenGen != 0 {
			s.assertNode(presence.NodeSilent, n)
		}
	})
}

// heard reports whether a bridge has its session: one that has not must not take its own silence for a node's.
func (s *sim) heard() bool {
	for _, b := range s.bridges {
		if b.up {
			return true
		}
	}
	return false
}

func (s *sim) reachable(n *node) bool { return n.up && !n.cutOff && n.hushMS <= s.nowMS }

func (s *sim) others(n *node) bool {
	for _, o := range s.nodes {
		if o != n && o.up && !o.cutOff {
			return true
		}
	}
	return false
}

// boot starts a node that is down.
func (s *sim) boot(n *node, d *dice) {
	if n.up {
		return
	}
	s.advance(max(s.nowMS, n.downMS+2_500))
	n.up, n.bootMS = true, s.nowMS
	n.gen++
	s.beatSoon(n, d.ms(10, beatMS))
}

// beatSoon has a node send its next heartbeat.
func (s *sim) beatSoon(n *node, inMS int64) {
	gen := n.gen
	s.at(s.nowMS+inMS, func() {
		if n.gen == gen {
			s.beat(n)
		}
	})
}

// beat sends a heartbeat, and has the bridges say what follows from it.
func (s *sim) beat(n *node) {
	h := n.habits
	if h.Beat == NoBeat || !s.reachable(n) || !s.heard() {
		return
	}
	f := presence.NodeFact{Kind: presence.NodeAlive, Cluster: clusterName, Node: s.factNode(n), Dialect: h.Dialect, TimeMS: s.nowMS, ReceivedMS: s.nowMS + 5}
	if h.Beat >= UptimeBeat {
		uptime := s.nowMS - n.bootMS
		f.UptimeMS = presence.Some(uptime)
		// Without its clock, what the log's stamps tell of it stands for it.
		f.StartedMS, f.StartedReceivedMS = n.clock(s.nowMS)-uptime, s.nowMS-uptime
		if h.Words != wordsEMQX5 {
			// The uptime has whole seconds: the bridge takes the earliest boot that fits.
			f.UptimeMS = presence.Some(uptime / 1000 * 1000)
			f.StartedMS, f.StartedReceivedMS = (f.StartedMS-999)/1000*1000, f.StartedReceivedMS-999
		}
		if h.Beat == ClockBeat {
			f.TimeMS = n.clock(s.nowMS)
		}
	}
	if n.setBack {
		// Seen by the clock that the heartbeat tells, or else by the stamps of the node's events.
		n.setBack, n.wasSetBack = false, true
		n.shownFromMS, n.shownToMS = n.backFromMS, n.backToMS
		if h.Beat == ClockBeat {
			// When between the two heartbeats it happened is not known.
			n.shownFromMS += s.nowMS - n.backAtMS
			n.shownToMS -= n.backAtMS - n.beatenMS
		}
	}
	f.SetBackFromMS, f.SetBackToMS = n.shownFromMS, n.shownToMS
	if n.seenGen != n.gen && h.Beat >= UptimeBeat {
		g := f
		g.Kind = presence.NodeStarted
		s.h.nodeFact(g)
	}
	s.h.nodeFact(f)
	fresh := n.seenGen != n.gen && n.gen > 1
	n.seenGen, n.beatenMS = n.gen, s.nowMS
	if s.plan.Mode == Lossy && (n.silent || n.gone || fresh && s.nowMS-n.bootMS > leaseMS) {
		// It is there, or there again, and what it has told meanwhile may be lost.
		n.silent, n.gone = false, false
		for _, b := range s.bridges {
			b.gap(n.downMS)
		}
	}
	n.silent, n.gone = false, false
}

func (s *sim) factNode(n *node) string {
	if n.habits.Hidden {
		return ""
	}
	return n.name
}

func (s *sim) assertNode(kind presence.NodeKind, n *node) {
	n.silent = n.silent || kind == presence.NodeSilent
	n.gone = n.gone || kind == presence.NodeGone
	if s.plan.Mode == Lossy {
		// What the node may be telling is lost: the feed has a gap until it is heard again.
		for _, b := range s.bridges {
			b.gap(n.downMS)
		}
	}
	s.h.nodeFact(presence.NodeFact{Kind: kind, Cluster: clusterName, Node: s.factNode(n), Dialect: n.habits.Dialect, TimeMS: s.nowMS, ReceivedMS: s.nowMS + 5})
}

// setClock sets a node's clock. The generation is known before: a bridge cannot tell when one began whose clock was set since.
func (s *sim) setClock(n *node, byMS int64, d *dice) {
	if !n.up {
		return
	}
	s.advance(s.nowMS + d.ms(10, beatMS))
	if !n.up || n.setBack {
		return
	}
	s.beat(n)
	s.advance(s.nowMS + d.ms(1, 1_000))
	if !n.up {
		return
	}
	if byMS < 0 {
		if n.wasSetBack {
			// A node fact tells of one step.
			return
		}
		n.setBack, n.backAtMS = true, s.nowMS
		n.backFromMS, n.backToMS = n.clock(s.nowMS), n.clock(s.nowMS)+byMS
		if n.habits.Clock == Seconds {
			n.backToMS -= n.backToMS % 1000
		}
	}
	n.clockMS += byMS
	s.h.Hazards.set(9)
	s.beatSoon(n, d.ms(1, beatMS))
}

// split tears the cluster apart. The bridges see both sides, or the first node's only.
func (s *sim) split(deaf bool, d *dice) {
	if len(s.nodes) < 2 || s.nodes[0].habits.Hidden || s.nodes[1].side != 0 {
		return
	}
	// Without heartbeats nobody would see what is lost.
	deaf = deaf && s.nodes[0].habits.Beat != NoBeat
	for _, n := range s.nodes[1:] {
		if n.index == 1 || d.in(50) {
			n.side, n.cutOff = 1, deaf
			if deaf {
				n.downMS = s.nowMS
				s.watch(n)
			}
		}
	}
}

// heal brings the cluster together. The smaller side may have to start again.
func (s *sim) heal(d *dice) {
	again := d.in(50)
	for _, n := range s.nodes {
		if n.side == 0 {
			continue
		}
		if n.cutOff {
			// A shorter interruption would be one that nobody sees.
			s.advance(n.downMS + leaseMS + 1)
			if !n.silent && !n.gone {
				continue
			}
		}
		n.side, n.cutOff = 0, false
		if again && n.habits.Beat >= UptimeBeat {
			s.stop(n, false, &dice{})
			s.boot(n, d)
			continue
		}
		s.beatSoon(n, d.ms(10, beatMS))
	}
}

// hush keeps a node's heartbeats away for a while, and in a plan that loses facts perhaps the rest as well.
func (s *sim) hush(n *node, forMS int64, d *dice) {
	if n.habits.Beat == NoBeat || !s.reachable(n) {
		return
	}
	n.hushMS = s.nowMS + forMS
	n.downMS = s.nowMS
	deaf := s.plan.Mode == Lossy && forMS > leaseMS && len(s.nodes) > 1 && d.in(50)
	deaf = deaf && n.seenGen == n.gen
	n.cutOff = n.cutOff || deaf
	s.watch(n)
	if deaf {
		s.at(n.hushMS, func() { s.hearAgain(n) })
	}
	s.beatSoon(n, forMS+d.ms(1, beatMS))
}

// hearAgain lets a node's events through again, once the bridges have seen that they do not come.
func (s *sim) hearAgain(n *node) {
	if n.side != 0 {
		return
	}
	if !n.silent && !n.gone {
		s.at(s.nowMS+leaseMS, func() { s.hearAgain(n) })
		return
	}
	n.cutOff = false
	s.beatSoon(n, 1_000)
}
