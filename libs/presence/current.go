package presence

// reconsider looks whether the newest connection by stamp is the current one where stamps do not tell: within the skew of a node that hides many
// machines, or in one millisecond.
func (n *NodeState) reconsider(e *end) {
	var alive, closed, last *Earlier
	for i := range n.Earlier {
		x := &n.Earlier[i]
		if x.OpenedMS < n.Conn.OpenedMS-e.profile.SkewMS {
			continue
		}
		if x.Order > n.Conn.Order && (last == nil || x.Order > last.Order) {
			last = x
		}
		switch ended, takenOver := n.earlierEnded(x); {
		case x.Seen && !ended:
			alive = x
		case ended && !takenOver:
			closed = x
		}
	}
	full := n.Skewed && (n.PrunedMS != 0 || len(n.Earlier) == MaxSkewed && n.Earlier[0].OpenedMS >= n.Conn.OpenedMS-e.profile.SkewMS)
	switch {
	case n.Skewed && last != nil && n.Conn.Order != 0:
		// The broker numbers the connections of a client.
		n.become(e, last)
		if full {
			e.state = pruned
		}
	case e.state != ended:
	case full:
		e.state = pruned
	case alive == nil:
		// Of several that ended, the last is one that was not taken over.
		if e.takeover != 0 && closed != nil {
			n.become(e, closed)
		}
	case n.Skewed && n.Conn.Order != 0 && alive.Order != 0:
		// It has a smaller number than the newest: its end is only late.
	case e.profile.ClosedOnTakeover:
		n.become(e, alive)
	default:
		e.state, e.belief = undecided, Online
	}
}

// earlierEnded reports whether an earlier connection has a Closed, and whether one by takeover.
func (n *NodeState) earlierEnded(x *Earlier) (ended, takenOver bool) {
	ended, takenOver = x.Ended, x.TakeoverMS != 0
	for i := range n.Closes {
		if c := &n.Closes[i]; c.Key == x.Key {
			ended, takenOver = true, takenOver || c.Reason.Takeover()
		}
	}
	return ended, takenOver
}

// become makes an earlier connection the node's current one.
func (n *NodeState) become(e *end, x *Earlier) {
	*e = end{node: n, nodeTable: e.nodeTable, profile: e.profile, sinceMS: x.OpenedMS,
		conn: x.connection(n.Conn.Dialect)}
	if x.Ended {
		e.end(&Close{ClosedMS: x.ClosedMS, Reason: x.Reason})
		e.takeover = x.TakeoverMS
		return
	}
	var newer *Close
	for i := range n.Closes {
		switch c := &n.Closes[i]; {
		case c.Key == x.Key && e.state == open:
			e.end(c)
		case c.Key != "" && n.unseenNewer(c, e.conn, &e.profile):
			newer = c
		}
	}
	if e.state == open && newer != nil {
		e.state, e.sinceMS = outlived, newer.ClosedMS
	}
}

// connection returns what is known of the connection.
func (x *Earlier) connection(dialect string) *Connection {
	return &Connection{Key: x.Key, Dialect: dialect, OpenedMS: x.OpenedMS, Order: x.Order, Seen: x.Seen, ReceivedMS: x.ReceivedMS}
}

// rivals are the connections of a node whose clock was set back that came to the bridge with the newest by stamp, or later, and so may be newer.
type rivals struct {
	newest   *Earlier // by stamp
	last     *Earlier // by reception
	alive    *Earlier // the last without a Closed
	closed   *Earlier // the last that ended, and not by takeover
	anyEnded bool
	full     bool // others may have been dropped
}

// afterSetBack decides for a node whose clock was set back over the newest connection's stamp: any connection opened since then has a smaller
// one. What came to the bridge before does not count; of the rest, the ends tell which is the current one, if the dialect tells which Closed is whose.
//
//	the node began a newer generation since ..... the newest of that generation
//	ends by takeover are told, this one is open . this one: a newer one would have ended it
//	                     another one is open .... that one
//	                     all have ended ......... the last that was not taken over
//	they are not told,   all are open, or none .. as it is
//	                     otherwise .............. undecided: a delay may have turned around which came last
//	more came than are kept ..................... undecided for want of them, unless one is known to be open
func (n *NodeState) afterSetBack(e *end) {
	over := e.state == ended
	received := n.Conn.ReceivedMS
	if !n.Conn.Seen {
		received = n.End.ReceivedMS
	}
	switch {
	case !e.profile.NamesOpening:
		e.undecide(over)
	case !over && n.generationEnds(e):
		switch r := n.rivals(e, e.nodeTable.StartedReceivedMS, 0); {
		case r.newest != nil:
			n.become(e, r.newest)
		case r.full:
			e.state = pruned
		}
	case e.profile.ClosedOnTakeover && over:
		n.setBackTold(e, received)
	case !e.profile.ClosedOnTakeover:
		n.setBackUntold(e, received)
	}
}

// rivals returns the connections that were received at sinceMS or later, or before by less than the slack.
func (n *NodeState) rivals(e *end, sinceMS, slackMS int64) rivals {
	r := rivals{full: len(n.Earlier) == MaxEarlier && n.Earlier[0].OpenedMS >= e.nodeTable.SetBackToMS}
	for i := range n.Earlier {
		x := &n.Earlier[i]
		if !x.Seen || x.ReceivedMS+slackMS < sinceMS {
			continue
		}
		if r.last == nil || x.ReceivedMS >= r.last.ReceivedMS {
			r.last = x
		}
		r.newest, r.anyEnded = x, r.anyEnded || x.Ended
		switch {
		case !x.Ended:
			// One that died with a former generation of the node has no Closed either.
			if r.alive == nil || !n.generationEnds(&end{nodeTable: e.nodeTable, conn: x.connection(e.conn.Dialect)}) {
				r.alive = x
			}
		case x.TakeoverMS == 0 && (r.closed == nil || x.ReceivedMS >= r.closed.ReceivedMS):
			r.closed = x
		}
	}
	return r
}

// setBackTold decides where the newest by stamp has ended and every takeover gets a Closed.
func (n *NodeState) setBackTold(e *end, received int64) {
	switch r := n.rivals(e, received, SettleMS); {
	case r.alive != nil:
		n.become(e, r.alive)
	case r.full:
		e.state = pruned
	case r.closed != nil && (e.takeover != 0 || r.closed.ReceivedMS >= received):
		n.become(e, r.closed)
	case r.last != nil && e.takeover != 0:
		n.become(e, r.last)
	}
}

// setBackUntold decides where a takeover gets no Closed.
func (n *NodeState) setBackUntold(e *end, received int64) {
	over := e.state == ended
	switch r := n.rivals(e, received, SettleMS); {
	case r.full:
		e.state = pruned
	case r.last == nil || over && r.alive == nil || !over && !r.anyEnded:
	default:
		if r.last.ReceivedMS >= received {
			n.become(e, r.last)
			over = r.last.Ended
		}
		e.undecide(over)
	}
}
