package presence

import (
	"cmp"
	"math"
	"slices"
)

// lateLineMS is how long after a takeover the end of the connection that was taken over may come, on the node's clock: Mosquitto's WebSockets log it
// when libwebsockets closes them (H3).
const lateLineMS = 60_000

// keyless reports whether the connection's dialect has no connection key, its Opened having been seen, so that only stamps tell which Closed is its own.
func (c *Connection) keyless() bool { return c.Seen && ProfileOf(c.Dialect).Key == KeyNone }

// noteOpened keeps an Opened of a dialect without a key that is not the newest.
func (n *NodeState) noteOpened(c *Connection) bool {
	if !c.keyless() {
		return false
	}
	return n.noteMark(Mark{MS: c.OpenedMS, Order: c.Order, Over: transportOf(c.Transport), Peer: hashOf(cmp.Or(c.Key, c.Peer))})
}

// hashOf is 32-bit FNV-1a.
func hashOf(s string) uint32 {
	h := uint32(2166136261)
	for i := range len(s) {
		h = (h ^ uint32(s[i])) * 16777619
	}
	return h
}

// noteTakeover keeps the mark of a Closed that is dropped because it came before the newest Opened.
func (n *NodeState) noteTakeover(c *Close) {
	if c.Key == "" && c.Reason.Takeover() && ProfileOf(c.Dialect).Key == KeyNone {
		n.noteMark(Mark{MS: c.ClosedMS, Order: c.Order, Takeover: true})
	}
}

// noteMark keeps an Opened or an end by takeover of a dialect without a key that came before the newest Opened. Copies join: any that knows the
// transport will do.
func (n *NodeState) noteMark(m Mark) (changed bool) {
	i, ok := slices.BinarySearchFunc(n.Marks, m, compareMark)
	if ok {
		changed = m.Over > n.Marks[i].Over
		n.Marks[i].Over = max(n.Marks[i].Over, m.Over)
		return changed
	}
	n.Marks = slices.Insert(n.Marks, i, m)
	had := len(n.Marks)
	n.trimMarks()
	return i >= had-len(n.Marks)
}

// trimMarks drops the oldest of too many marks. Those of so long before the newest Opened that the end of what was taken over has come, however late,
// tell little any more; but a connection that was taken over since may have opened then, and clocks are set.
func (n *NodeState) trimMarks() {
	cut := max(0, n.oldMarks()-MaxOldMarks)
	cut = max(cut, len(n.Marks)-MaxMarks)
	n.Marks = slices.Delete(n.Marks, 0, cut)
}

// oldMarks counts the marks that are longer before the newest Opened than an end may be late.
func (n *NodeState) oldMarks() (old int) {
	for n.Known && old < len(n.Marks) && n.Marks[old].MS < n.Conn.OpenedMS-lateLineMS {
		old++
	}
	return old
}

// lateLinePending reports whether the end of a connection that was taken over may still come: the newest, or one before, is not known to be over TCP,
// or one was taken over without having been seen (H3). If so much happened in so short a time that the set of marks does not tell, that is so for
// closes before forgottenMS; for all if the clock was set back, as what opened last may then be what was dropped first.
func (n *NodeState) lateLinePending(t *Node) (pending bool, forgottenMS int64) {
	if n.Known && n.Conn.keyless() && n.Conn.Transport != transportTCP {
		return true, 0
	}
	full := len(n.Marks) == MaxMarks || n.oldMarks() == MaxOldMarks
	for i := range n.Marks {
		switch m := &n.Marks[i]; {
		case !m.Takeover:
			pending = m.Over != overTCP && !n.otherwiseTCP(m)
		case i > 0:
			pending = n.Marks[i-1].Takeover
		default:
			// What was there before the oldest mark is known only if none was dropped.
			pending = !full
		}
		if pending {
			return true, 0
		}
	}
	switch {
	case !full:
		return false, 0
	case t.setBackOver(n.Marks[0].MS):
		return false, math.MaxInt64
	}
	return false, n.Marks[0].MS + lateLineMS
}

// otherwiseTCP reports whether a session that knows less told of a connection that another told of with its order, and over TCP: with and without are
// two facts, but two connections do not have one peer and one stamp.
func (n *NodeState) otherwiseTCP(m *Mark) bool {
	if m.Over != overUnknown || m.Order != 0 || m.Peer == hashOf("") {
		return false
	}
	for i := range n.Marks {
		if o := &n.Marks[i]; o.MS == m.MS && o.Peer == m.Peer && o.Over == overTCP {
			return true
		}
	}
	return n.Conn.OpenedMS == m.MS && hashOf(cmp.Or(n.Conn.Key, n.Conn.Peer)) == m.Peer
}
