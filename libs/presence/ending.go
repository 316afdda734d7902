package presence

import "slices"

// ending says how far a connection has come.
type ending uint8

const (
	open      ending = iota
	ended            // by a Closed
	restarted        // by a newer generation of its node
	denied           // by the broker's answer to a query
	ambiguous        // a Closed may have ended it, or its end may be silent
	undecided        // a Closed with the same stamp, or a clock that was set back
	replaced         // a takeover was announced, its Opened has not come
	pruned           // what would decide was dropped
	outlived         // a newer connection ended, whose Opened was not seen
)

// end is one node's current connection with its end.
type end struct {
	node       *NodeState
	conn       *Connection
	state      ending
	sinceMS    int64
	reason     Reason
	raw        string
	receivedMS int64    // of the Closed that ended it
	takeover   int64    // latest Closed by takeover, 0 if none
	belief     Presence // for ambiguous and undecided
	profile    Profile
	nodeTable  *Node
}

// ending derives how the node's current connection stands. The zero connection stands for one whose Opened and key are unknown.
func (n *NodeState) ending(t *Node) end {
	e := end{node: n, conn: &n.Conn, nodeTable: t, sinceMS: n.Conn.OpenedMS}
	switch {
	case n.Known:
		e.profile = ProfileOf(n.Conn.Dialect)
	case len(n.Closes) > 0:
		e.profile = ProfileOf(n.Closes[len(n.Closes)-1].Dialect)
	}
	switch {
	case n.Ended:
		e.end(&n.End)
		e.takeover = max(e.takeover, n.TakeoverMS)
	case e.profile.Key == KeyNone:
		n.unkeyedEnding(&e)
	default:
		n.keyedEnding(&e)
	}
	if n.Known && len(n.Earlier) > 0 {
		n.reconsider(&e)
	}
	if n.Known && t.setBackOver(n.Conn.OpenedMS) {
		n.afterSetBack(&e)
	}
	if e.profile.Key == KeyReusable && n.UnorderedMS != 0 && (e.state == ended || n.otherClosed()) {
		e.state, e.belief = undecided, Online
	}
	switch {
	case (e.state == undecided || e.state == pruned) && n.Known && t.setBackOver(n.Conn.OpenedMS):
		if n.generationEnds(&e) {
			e.belief = Offline // what may have come since has a smaller stamp
		}
	case n.generationEnds(&e):
		e.state, e.sinceMS, e.takeover = restarted, t.StartedMS, 0
	case e.receivedBeforeStart():
		// What came with the word that the node had started, from the session's queue, rather followed it.
		e.undecide(e.conn.ReceivedMS < t.StartedReceivedMS)
	case n.generationDoubtful(&e):
		e.undecide(false)
	}
	return e
}

// generationEnds reports whether a newer generation of the node ended the connection (L6): it opened before that began, by the node's clock or, as
// that may have been set, by the bridge's. If no Opened is known, what was open opened before the newest Closed.
func (n *NodeState) generationEnds(e *end) bool {
	t := e.nodeTable
	if t == nil || t.StartedMS == 0 || e.state == ended || e.takeover >= t.StartedMS {
		return false
	}
	if !n.Known {
		return len(n.Closes) == 0 || n.Closes[len(n.Closes)-1].ClosedMS < t.StartedMS
	}
	if !e.conn.Seen || t.StartedReceivedMS == 0 {
		return e.conn.OpenedMS < t.StartedMS
	}
	if t.setBackOver(e.conn.OpenedMS) || t.setBackOver(t.StartedMS) {
		return !e.fitsGeneration() && e.conn.ReceivedMS < t.StartedReceivedMS
	}
	return e.conn.OpenedMS < t.StartedMS
}

// fitsGeneration reports whether the connection's stamp is where the clock of the node's generation was when it was received, or shortly before.
func (e *end) fitsGeneration() bool {
	t := e.nodeTable
	return e.conn.OpenedMS >= t.StartedMS && e.conn.OpenedMS-t.StartedMS <= e.conn.ReceivedMS-t.StartedReceivedMS+SettleMS
}

// generationDoubtful reports whether nothing tells if the connection is of the node's generation or of the one before: the clock was set back over its
// stamp, and it was received after the generation began by no more than an event may take; or it was received well before that, though its stamp is
// of after. Then the clock may have been set back, which the next heartbeats tell, or two bridges' clocks differ.
func (n *NodeState) generationDoubtful(e *end) bool {
	t := e.nodeTable
	if t == nil || t.StartedReceivedMS == 0 || e.state != open || !e.conn.Seen {
		return false
	}
	if !t.setBackOver(e.conn.OpenedMS) && !t.setBackOver(t.StartedMS) {
		return e.conn.ReceivedMS+SettleMS < t.StartedReceivedMS
	}
	return !e.fitsGeneration() && e.conn.ReceivedMS <= t.StartedReceivedMS+deliveryMS
}

// receivedBeforeStart reports whether the connection was received shortly before the node's generation began, though its stamp is not before that: stamps
// of whole seconds do not tell what came first within one, and the start is early by a second or two where it is computed from such stamps. Two bridges'
// clocks may differ by as much, so that it is not certain.
func (e *end) receivedBeforeStart() bool {
	const second = 1_000
	t := e.nodeTable
	if t == nil || t.StartedReceivedMS == 0 || e.state != open || !e.conn.Seen || t.setBackOver(e.conn.OpenedMS) || t.setBackOver(t.StartedMS) {
		return false
	}
	return e.conn.OpenedMS%second == 0 && t.StartedMS%second == 0 && e.conn.ReceivedMS <= t.StartedReceivedMS && e.conn.ReceivedMS+SettleMS >= t.StartedReceivedMS
}

// otherClosed reports whether another connection than the newest, by key, ended on its own.
func (n *NodeState) otherClosed() bool {
	return slices.ContainsFunc(n.Closes, func(c Close) bool { return c.Key != n.Conn.Key && !c.Reason.Takeover() })
}

// undecide notes that the stamps do not tell how the connection stands.
func (e *end) undecide(over bool) {
	e.state, e.belief = undecided, Online
	if over {
		e.belief = Offline
	}
}

// strangersOnly reports whether all that is known of a node are closes with keys that no connection is known to have had, and for reasons that a
// stranger can cause: they prove nothing.
func (n *NodeState) strangersOnly() bool {
	if n.Known || len(n.Closes) == 0 {
		return false
	}
	for i := range n.Closes {
		c := &n.Closes[i]
		if c.Key == "" || !ProfileOf(c.Dialect).Stranger.Has(c.Reason) {
			return false
		}
	}
	return true
}

// keyedEnding looks for the connection's Closed among those that carry a key but no opening time.
func (n *NodeState) keyedEnding(e *end) {
	if !n.Known {
		// Only closes: whichever connections they name are over, and none is known to be open.
		e.end(&n.Closes[len(n.Closes)-1])
		return
	}
	var doubt, takeover, newer *Close
	for i := range n.Closes {
		c := &n.Closes[i]
		switch {
		case c.Key == n.Conn.Key && c.Key != "": // those before the opening are not kept
			if e.state == open {
				e.end(c)
			}
			if c.Reason.Takeover() {
				e.takeover = c.ClosedMS
			}
		case c.Key != "" && n.unseenNewer(c, &n.Conn, &e.profile):
			newer = c
		case c.Key == "" && c.Reason.Takeover():
			takeover = c
		case c.Key == "" && (doubt == nil || n.rather(doubt) == Online):
			doubt = c
		}
	}
	if e.state != open {
		return
	}
	switch {
	case n.PrunedMS != 0:
		e.state, e.sinceMS = pruned, n.PrunedMS
	case newer != nil:
		e.state, e.sinceMS = outlived, newer.ClosedMS
	case doubt != nil && (takeover == nil || compareClose(takeover, doubt) < 0):
		e.doubt(doubt)
	case takeover != nil && takeover.after(&n.Conn):
		e.state, e.takeover, e.sinceMS = replaced, takeover.ClosedMS, takeover.ClosedMS
	case doubt != nil:
		e.doubt(doubt)
	}
}

// unseenNewer reports whether a Closed is of a connection that was never seen and that is newer than the newest known: it ended, on its own, while
// that one is not known to have. By the broker's number, or because the node's events are in order.
func (n *NodeState) unseenNewer(c *Close, than *Connection, p *Profile) bool {
	if c.Key == n.Conn.Key || c.Reason.Takeover() || p.Stranger.Has(c.Reason) || slices.ContainsFunc(n.Earlier, func(x Earlier) bool { return x.Key == c.Key }) {
		return false
	}
	if n.Skewed {
		// The broker's numbers begin anew after an hour.
		return than.Order != 0 && c.Order > than.Order || c.ClosedMS-than.OpenedMS > 2*p.SkewMS
	}
	return p.OrderedFeed && c.after(than)
}

func (e *end) end(c *Close) {
	e.state, e.sinceMS, e.reason, e.raw, e.receivedMS = ended, c.ClosedMS, c.Reason, c.RawReason, c.ReceivedMS
	if c.Reason.Takeover() {
		e.takeover = c.ClosedMS
	}
}

// doubt notes a Closed that names no connection and may be of this one or of another.
func (e *end) doubt(c *Close) {
	e.end(c)
	e.state, e.belief = ambiguous, e.node.rather(c)
}

// rather returns what to believe after a Closed that may be of another connection: a stranger's refused CONNECT says nothing about this one, and one
// right after the opening is more likely the late end of the connection before it.
func (n *NodeState) rather(c *Close) Presence {
	if n.Known && (c.Reason == ReasonNotAuthorized || c.ClosedMS-n.Conn.OpenedMS <= DefaultAllowanceMS) {
		return Online
	}
	return Offline
}

// unkeyedEnding decides what closes that name no connection mean for the newest one (L2, L4).
func (n *NodeState) unkeyedEnding(e *end) {
	pending, forgottenMS := n.lateLinePending(e.nodeTable)
	var doubt, tie, takeover *Close
	for i := range n.Closes {
		c := &n.Closes[i]
		certain := e.profile.Certain
		if !pending && c.ClosedMS >= forgottenMS {
			certain |= e.profile.CertainOverTCP
		}
		switch {
		case c.Reason.Takeover():
			takeover = c
		case n.Known && (!c.after(&n.Conn) || n.UnorderedMS == c.ClosedMS):
			if tie == nil {
				tie = c
			}
		case e.profile.OrderedFeed && certain.Has(c.Reason):
			e.end(c)
			// A takeover that comes after this end has a successor that is not known.
			for j := i + 1; j < len(n.Closes); j++ {
				if n.Closes[j].Reason.Takeover() {
					e.state, e.takeover = replaced, n.Closes[j].ClosedMS
				}
			}
			return
		default:
			if doubt == nil || n.rather(doubt) == Online {
				doubt = c
			}
		}
	}
	switch {
	case takeover != nil && (!n.Known || takeover.after(&n.Conn)):
		e.state, e.takeover, e.sinceMS = replaced, takeover.ClosedMS, takeover.ClosedMS
	case n.PrunedMS != 0:
		e.state, e.sinceMS = pruned, n.PrunedMS
	case doubt != nil && !pending && doubt.ClosedMS < forgottenMS && e.profile.CertainOverTCP.Has(doubt.Reason):
		e.end(doubt)
		e.state = pruned
	case doubt != nil:
		e.doubt(doubt)
	case tie != nil:
		e.end(tie)
		e.state, e.belief = undecided, Online
	}
}
