package presence

import "slices"

// observe weighs the broker's answers against one connection (L5): it counts if the connection's Opened was received at least the settle time
// before the query began. An answer that the client is offline, or online with another connection, ends it; one that names it takes
// away doubts about a Closed from before.
func (s *State) observe(e *end) {
	if !e.node.Known || !e.conn.Seen || e.state == ended || e.state == restarted {
		return
	}
	for i := range s.Observed {
		o := &s.Observed[i]
		if e.conn.ReceivedMS > o.QueryStartMS-SettleMS {
			continue
		}
		switch {
		case !o.Online || o.Key != "" && o.Key != e.conn.Key || o.Node != "" && o.Node != e.node.Node:
			e.state, e.sinceMS, e.takeover = denied, o.QueryStartMS, 0
		case o.Key != "" && e.receivedMS != 0 && e.receivedMS <= o.QueryStartMS-SettleMS && e.doubtful():
			e.state, e.takeover = open, 0
		}
	}
}

// seenOnline returns the broker's newest answer if it says that the client is online and nothing newer contradicts it: a connection whose Opened
// was received less than the settle time before the query began, or since, decides by itself, and so does a Closed, unless the answer names
// a connection that is known not to be the closed one.
func (s *State) seenOnline(ends []end) *Observation {
	if len(s.Observed) == 0 {
		return nil
	}
	o := &s.Observed[len(s.Observed)-1]
	if !o.Online {
		return nil
	}
	for i := range ends {
		e := &ends[i]
		if e.node.Known && e.conn.Seen && e.conn.ReceivedMS > o.QueryStartMS-SettleMS {
			return nil
		}
		if o.Node != "" && o.Node != e.node.Node {
			continue // its closes are of other connections than the answer's
		}
		if o.Key != "" && e.node.hasClosed(o.Key, o.QueryStartMS-SettleMS) || o.Key == "" && e.node.closedReceivedMS() > o.QueryStartMS-SettleMS {
			return nil
		}
	}
	return o
}

// closedReceivedMS is when the latest Closed that concerns the newest connection, or a later one, was received.
func (n *NodeState) closedReceivedMS() int64 {
	var ms int64
	if n.Known && n.Ended {
		ms = n.End.ReceivedMS
	}
	for i := range n.Closes {
		ms = max(ms, n.Closes[i].ReceivedMS)
	}
	return ms
}

// hasClosed reports whether a connection of the node is known to have ended by its key; if keys come again, only what was received after sinceMS
// tells so.
func (n *NodeState) hasClosed(key string, sinceMS int64) bool {
	closed := func(c *Close) bool {
		return c.Key == key && (ProfileOf(c.Dialect).Key == KeyUnique || c.ReceivedMS > sinceMS)
	}
	return n.Known && n.Ended && closed(&n.End) ||
		slices.ContainsFunc(n.Closes, func(c Close) bool { return closed(&c) }) ||
		slices.ContainsFunc(n.Earlier, func(x Earlier) bool { return x.Key == key && x.Ended })
}

// observedOnline is the status after the broker said that the client is online, where the facts alone say otherwise. What befell the node
// since then counts.
func (c *Cluster) observedOnline(o *Observation, v Verdict) Verdict {
	if v.Conn == nil || v.Status == Offline || o.Key != "" && o.Key != v.Conn.Key {
		v.Conn, v.Node = &Connection{Key: o.Key}, o.Node
	}
	v.Status, v.Belief, v.Reason, v.SinceMS, v.Close, v.Raw = Online, Online, BrokerObserved, o.QueryStartMS, ReasonUnknown, ""
	if o.Silent && (v.Conn == nil || !v.Conn.CleanStart.Value) {
		v.Status, v.Reason = Unknown, CloseAmbiguous
	}
	t := c.node(o.Node)
	switch {
	case o.Node == "" && c.restartedSince(o.QueryStartMS):
		// It may have been on the node that has restarted.
		v.Status, v.Belief, v.Reason = Unknown, Offline, NodeRestarted
		if c.startedSince(o.QueryStartMS) {
			v.Status = Offline
		}
	case t == nil:
	case t.StartedReceivedMS > o.QueryStartMS:
		v.Status, v.Belief, v.Reason, v.SinceMS = Offline, Offline, NodeRestarted, t.StartedMS
	case t.GoneMS > o.QueryStartMS && t.Gone():
		v.Status, v.Belief, v.Reason, v.SinceMS = Unknown, Offline, NodeIsGone, t.GoneMS
	case t.SilentMS > o.QueryStartMS && t.Silent():
		v.Status, v.Belief, v.Reason, v.SinceMS = Unknown, Online, NodeIsSilent, t.SilentMS
	}
	return v
}
