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

// afterSetBack decides for a node whose clock was set back over the newest connection's stamp: any connection opened since then has a smaller
// one. Those that came to the bridge with it or later may be newer, and are told apart by their ends, if the dialect tells which Closed is whose.
func (n *NodeState) afterSetBack(e *end) {
	received := n.Conn.ReceivedMS
	if !n.Conn.Seen {
		received = n.End.ReceivedMS
	}
	over := e.state == ended
	died := !over && n.generationEnds(e)
	if died {
		received = e.nodeTable.StartedReceivedMS
	}
	var newest, last, alive, closed *Earlier // by stamp; by reception
	anyEnded := false
	for i := range n.Earlier {
		x := &n.Earlier[i]
		if !x.Seen || x.ReceivedMS+SettleMS < received || died && x.ReceivedMS < received {
			continue
		}
		if last == nil || x.ReceivedMS >= last.ReceivedMS {
			last = x
		}
		newest, anyEnded = x, anyEnded || x.Ended
		switch {
		case !x.Ended:
			// One that died with a former generation of the node has no Closed either.
			if alive == nil || !n.generationEnds(&end{nodeTable: e.nodeTable, conn: x.connection(e.conn.Dialect)}) {
				alive = x
			}
		case x.TakeoverMS == 0 && (closed == nil || x.ReceivedMS >= closed.ReceivedMS):
			closed = x
		}
	}
	full := len(n.Earlier) == MaxEarlier && n.Earlier[0].OpenedMS >= e.nodeTable.SetBackToMS
	switch {
	case !e.profile.NamesOpening:
		e.undecide(over)
	case died && newest != nil:
		n.become(e, newest)
	case died && !full:
	case e.profile.ClosedOnTakeover && !over && !died:
		// Had another one followed, this one would have been taken over.
	case e.profile.ClosedOnTakeover && alive != nil:
		n.become(e, alive)
	case full:
		e.state = pruned
	case last == nil:
	case e.profile.ClosedOnTakeover && closed != nil && (e.takeover != 0 || closed.ReceivedMS >= received):
		// Of several that ended, the last is one that was not taken over.
		n.become(e, closed)
	case e.profile.ClosedOnTakeover && e.takeover == 0:
	case e.profile.ClosedOnTakeover:
		n.become(e, last)
	case over && alive == nil || !over && !anyEnded:
	default:
		// Without a Closed for a takeover, all hangs on which came last, and a delay may have turned that around.
		if last.ReceivedMS >= received {
			n.become(e, last)
			over = last.Ended
		}
		e.undecide(over)
	}
}
