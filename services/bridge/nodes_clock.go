package bridge

import "github.com/mqtt-presence/presence/libs/presence"

const (
	// stepMS is how far a clock must be set for it to count; less is the work of a clock that is kept in time.
	stepMS = 1_000
	// pairSlackMS is how far apart a node may read its uptime and its clock for one heartbeat.
	pairSlackMS = 250
)

// reading is what a heartbeat tells about the node's clock.
type reading struct {
	uptimeMS, clockMS int64
	receivedMS        int64 // on the bridge's clock
	granularityMS     int64 // of uptime and clock
	queued            bool  // it may have been sent long before
}

// bootMS is when the node booted, by its clock as it is now. It is the same in all heartbeats of a generation, however late they come, until
// the clock is set.
func (r *reading) bootMS() int64 { return r.clockMS - r.uptimeMS }

// aheadMS is how far the node's clock is ahead of the bridge's; it is that much less as the heartbeat was late.
func (r *reading) aheadMS() int64 { return r.clockMS - r.receivedMS }

// steps follows the clock of one node, and knows the latest time that it was set back (H9): from fromMS, which no stamp of before exceeds, to
// toMS, which every stamp of after reaches; both 0 if it was not. A step counts once two heartbeats, one after the other, tell it: halves of
// two heartbeats may have been taken for one.
//
// Within a generation of the node the bridge's clock is not needed: the boot that the heartbeats claim moves by as much as the clock is set.
// From one generation to the next only the bridge's clock tells how far the node's should have come, and a heartbeat that comes late looks
// like a clock that is behind: of the first two the one that is less so counts.
type steps struct {
	fromMS, toMS int64

	base    *reading // the latest one, of the clock as it was last
	suspect *reading // one that tells of a step, not confirmed yet
	// before is the last heartbeat of the generation before, first the first of this one, until the second comes.
	before, first *reading
}

// recall takes the node's latest start, then its latest heartbeat, of the log.
func (c *steps) recall(f *presence.NodeFact) {
	if f.SetBackFromMS != 0 && (c.base == nil || f.ReceivedMS >= c.base.receivedMS) {
		c.fromMS, c.toMS = f.SetBackFromMS, f.SetBackToMS
	}
	// A node that tells no clock has the bridge's.
	if f.UptimeMS.Valid && f.TimeMS != f.ReceivedMS && (c.base == nil || f.ReceivedMS >= c.base.receivedMS) {
		c.base = &reading{uptimeMS: f.UptimeMS.Value, clockMS: f.TimeMS, receivedMS: f.ReceivedMS}
	}
}

// heartbeat takes a heartbeat that tells the node's clock; started says that it is the first of a generation.
func (c *steps) heartbeat(r reading, started bool) {
	if started || c.base == nil {
		c.before, c.first = c.base, &r
		c.base, c.suspect = &r, nil
		return
	}
	tolerance := stepMS + 2*r.granularityMS
	switch {
	case abs(r.bootMS()-c.base.bootMS()) <= tolerance:
		c.base, c.suspect = &r, nil
		c.rebooted(&r)
		return
	case c.suspect == nil || abs(r.bootMS()-c.suspect.bootMS()) > tolerance:
		c.suspect = &r
		return
	}
	if r.bootMS() < c.base.bootMS() {
		// The clock was set at some time between the latest heartbeat before and the first one after.
		slack := pairSlackMS + 2*r.granularityMS
		c.setBack(c.base.bootMS()+c.suspect.uptimeMS+slack, min(c.suspect.bootMS(), r.bootMS())+c.base.uptimeMS-slack)
	}
	c.base, c.suspect, c.before, c.first = &r, nil, nil, nil
}

// leapt is called when the bridge's clock was set: how far the node's is ahead of it cannot be compared with before.
func (c *steps) leapt() {
	c.before = nil
	if c.base != nil {
		base := *c.base
		base.queued = true
		c.base = &base
	}
}

// rebooted compares the clock of a new generation, of which two heartbeats have come, with that of the one before.
func (c *steps) rebooted(second *reading) {
	before, first := c.before, c.first
	if before == nil || second.queued {
		return
	}
	c.before, c.first = nil, nil
	ahead := second.aheadMS()
	if !first.queued {
		ahead = max(ahead, first.aheadMS())
	}
	slack := stepMS + 2*second.granularityMS
	if before.queued || before.aheadMS()-ahead <= slack {
		return
	}
	// The boot, by the bridge's clock, is not later than a late heartbeat makes it.
	c.setBack(first.receivedMS-first.uptimeMS+before.aheadMS()+slack, min(first.bootMS(), second.bootMS())-slack)
}

// setBack notes a step. Two that overlap are one.
func (c *steps) setBack(fromMS, toMS int64) {
	if c.fromMS != 0 && toMS <= c.fromMS && c.toMS <= fromMS {
		fromMS, toMS = max(fromMS, c.fromMS), min(toMS, c.toMS)
	}
	c.fromMS, c.toMS = fromMS, max(toMS, 1)
}

// setBack takes a step that a broker's stamps show, and asserts it with the node's latest heartbeat, or, before the first, with that.
func (n *nodes) setBack(s *stepBack) []presence.NodeFact {
	m := n.node(s.node)
	m.clock.setBack(s.fromMS, s.toMS)
	f, ok := m.latest[presence.NodeAlive]
	if !ok || !n.loaded {
		return nil
	}
	f.SetBackFromMS, f.SetBackToMS = m.clock.fromMS, m.clock.toMS
	setNodeID(&f)
	return n.assert([]presence.NodeFact{f})
}
