package presence

import "slices"

// Apply folds a fact into the state, in place, and says what became of it. It does not look at the fact's client ID: the caller
// keeps one state for each (cluster, client ID). Strings of the fact are kept, not copied.
func (s *State) Apply(f *Fact) Outcome {
	switch f.Kind {
	case Opened:
		return s.applyOpened(f)
	case Closed:
		return s.applyClosed(f)
	case Observed:
		return s.applyObserved(f)
	case Forgotten:
		return s.applyForgotten(f)
	case KindUnknown:
	}
	return Superseded
}

// floorMS is the time at or below which facts about connections are not kept: monotone, so filtering by it keeps L1.
func (s *State) floorMS() int64 {
	floor := s.ForgottenMS
	if m := s.newestOpenedMS(); m != 0 && m-MaxAgeMS-1 > floor {
		floor = m - MaxAgeMS - 1
	}
	return floor
}

func (s *State) applyOpened(f *Fact) Outcome {
	c := Connection{
		Key: f.Connection, Dialect: f.Dialect, OpenedMS: f.OpenedMS(), Order: f.Order, Seen: true, ReceivedMS: f.ReceivedMS,
		Username: f.Username, Peer: f.Peer, Transport: f.Transport, ProtocolVersion: f.ProtocolVersion,
		KeepAliveS: f.KeepAliveS, CleanStart: f.CleanStart, SessionExpiryS: f.SessionExpiryS,
	}
	if c.Key != "" && f.ConnectedAtMS != 0 {
		c.Order = 0 // the key names it; a Closed that tells the opening time does not tell the order
	}
	if c.OpenedMS <= s.floorMS() {
		return TooOld
	}
	n := s.node(f.Node, f.Dialect)
	out := n.open(&c)
	if out == Applied {
		s.prune()
	}
	return out
}

// open joins a connection into the node: the newest wins.
func (n *NodeState) open(c *Connection) Outcome {
	if !n.Known {
		n.Known, n.Conn = true, *c
		n.trimMarks()
		n.markUnordered(c)
		n.settle()
		return Applied
	}
	switch cmp := compareConn(c, &n.Conn); {
	case cmp < 0:
		changed := n.noteOpened(c)
		n.noteEarlier(c, nil, 0)
		changed = n.markTie(c, &n.Conn) || changed
		if n.markUnordered(c) || changed {
			return Applied
		}
		return Superseded
	case cmp == 0:
		return n.joinConn(c)
	}
	n.noteOpened(&n.Conn)
	end := &n.End
	if !n.Ended {
		end = nil
	}
	n.noteEarlier(&n.Conn, end, n.TakeoverMS)
	n.markTie(&n.Conn, c)
	n.Conn = *c
	n.Ended, n.End, n.TakeoverMS = false, Close{}, 0
	n.trimMarks()
	n.markUnordered(c)
	n.settle()
	return Applied
}

// noteEarlier keeps a connection with a unique key that is not the newest of its node, or what is news of it: the newest MaxEarlier of them.
func (n *NodeState) noteEarlier(c *Connection, end *Close, takeoverMS int64) {
	if c.Key == "" || ProfileOf(c.Dialect).Key != KeyUnique {
		return
	}
	x := Earlier{Key: c.Key, OpenedMS: c.OpenedMS, Order: c.Order, Seen: c.Seen, TakeoverMS: takeoverMS}
	if c.Seen {
		x.ReceivedMS = c.ReceivedMS
	}
	if end != nil {
		x.Ended, x.ClosedMS, x.CloseOrder, x.Reason = true, end.ClosedMS, end.Order, end.Reason
		if end.Reason.Takeover() {
			x.TakeoverMS = max(x.TakeoverMS, end.ClosedMS)
		}
	}
	i, ok := slices.BinarySearchFunc(n.Earlier, x, func(a, b Earlier) int { return compareEarlier(&a, &b) })
	if ok {
		n.Earlier[i].join(&x)
		return
	}
	limit := MaxEarlier
	if n.Skewed {
		limit = MaxSkewed
	}
	if len(n.Earlier) < limit {
		n.Earlier = slices.Insert(n.Earlier, i, x)
		return
	}
	if i > 0 {
		copy(n.Earlier, n.Earlier[1:i])
		n.Earlier[i-1] = x
	}
}

// join merges two sightings of one connection.
func (x *Earlier) join(y *Earlier) {
	if y.Seen && (!x.Seen || y.ReceivedMS < x.ReceivedMS) {
		x.Seen, x.ReceivedMS = true, y.ReceivedMS
	}
	if y.Ended && (!x.Ended || y.endsBefore(x)) {
		x.Ended, x.ClosedMS, x.CloseOrder, x.Reason = true, y.ClosedMS, y.CloseOrder, y.Reason
	}
	x.TakeoverMS = max(x.TakeoverMS, y.TakeoverMS)
}

// endsBefore orders ends as compareClose does.
func (x *Earlier) endsBefore(y *Earlier) bool {
	c := compareCloseStamp(x.ClosedMS, x.CloseOrder, y.ClosedMS, y.CloseOrder)
	return c < 0 || c == 0 && x.Reason < y.Reason
}

// markUnordered notes that an Opened with the newest connection's stamp has no order. Only a dialect without a key compares stamps.
func (n *NodeState) markUnordered(c *Connection) bool {
	before := n.UnorderedMS
	if c.keyless() && c.Order == 0 && c.OpenedMS > n.UnorderedMS {
		n.UnorderedMS = c.OpenedMS
	}
	if n.UnorderedMS < n.Conn.OpenedMS {
		n.UnorderedMS = 0
	}
	return n.UnorderedMS != before
}

// markTie notes that of two connections with keys that come again nothing tells which opened last.
func (n *NodeState) markTie(a, b *Connection) bool {
	if a.OpenedMS != b.OpenedMS || n.UnorderedMS == a.OpenedMS || !a.tied() && !b.tied() {
		return false
	}
	n.UnorderedMS = a.OpenedMS
	return true
}

func (c *Connection) tied() bool { return c.Order == 0 && ProfileOf(c.Dialect).Key == KeyReusable }

// settle drops what the newest connection makes meaningless.
func (n *NodeState) settle() {
	n.Closes = slices.DeleteFunc(n.Closes, func(c Close) bool {
		if !c.before(&n.Conn) {
			return false
		}
		n.noteTakeover(&c)
		return true
	})
	if n.PrunedMS != 0 && (&Close{ClosedMS: n.PrunedMS, Order: n.PrunedOrder}).before(&n.Conn) {
		n.PrunedMS, n.PrunedOrder = 0, 0
	}
}

// end joins a Closed of the newest connection: the earliest is the end, any takeover is remembered.
func (n *NodeState) end(c *Close) Outcome {
	out := Duplicate
	if c.Reason.Takeover() && c.ClosedMS > n.TakeoverMS {
		n.TakeoverMS, out = c.ClosedMS, Applied
	}
	if !n.Ended || compareClose(c, &n.End) < 0 {
		n.Ended, n.End, out = true, *c, Applied
		return out
	}
	if compareClose(c, &n.End) == 0 && n.End.join(c) {
		out = Applied
	}
	return out
}

func (s *State) applyClosed(f *Fact) Outcome {
	c := Close{Key: f.Connection, Dialect: f.Dialect, ClosedMS: f.ClosedMS(), Order: f.Order, Reason: f.Reason, RawReason: f.RawReason, ReceivedMS: f.ReceivedMS}
	if c.Key != "" && f.ConnectedAtMS != 0 {
		return s.applyNamed(f, &c)
	}
	if c.ClosedMS <= s.floorMS() {
		return TooOld
	}
	n := s.node(f.Node, f.Dialect)
	if n.Known && c.before(&n.Conn) {
		n.noteTakeover(&c)
		if c.Key != "" {
			return Ghost
		}
		return Superseded
	}
	return n.hold(&c)
}

// applyNamed handles a Closed that tells when its connection opened: it proves the connection as well as its end.
func (s *State) applyNamed(f *Fact, c *Close) Outcome {
	conn := Connection{Key: f.Connection, Dialect: f.Dialect, OpenedMS: f.ConnectedAtMS}
	if conn.OpenedMS <= s.floorMS() {
		return TooOld
	}
	n := s.node(f.Node, f.Dialect)
	if n.Known && compareConn(&conn, &n.Conn) < 0 {
		n.noteEarlier(&conn, c, 0)
		n.markTie(&conn, &n.Conn)
		return Ghost
	}
	implied := n.open(&conn) == Applied
	out := n.end(c)
	s.prune()
	if implied {
		return Held
	}
	return out
}

// hold keeps a Closed that may concern a later connection: the newest MaxCloses of them.
func (n *NodeState) hold(c *Close) Outcome {
	i, ok := slices.BinarySearchFunc(n.Closes, *c, func(a, b Close) int { return compareClose(&a, &b) })
	if ok {
		if n.Closes[i].join(c) {
			return Applied
		}
		return Duplicate
	}
	n.Closes = slices.Insert(n.Closes, i, *c)
	if len(n.Closes) <= MaxCloses {
		if n.Known {
			return Applied
		}
		return Held
	}
	cut := n.Closes[0]
	n.Closes = slices.Delete(n.Closes, 0, 1)
	n.noteTakeover(&cut)
	if n.PrunedMS == 0 || compareCloseStamp(cut.ClosedMS, cut.Order, n.PrunedMS, n.PrunedOrder) > 0 {
		n.PrunedMS, n.PrunedOrder = cut.ClosedMS, cut.Order
	}
	if i == 0 {
		return TooOld
	}
	return Applied
}

func (s *State) applyObserved(f *Fact) Outcome {
	if !f.Online.Valid {
		return Superseded // no answer
	}
	if f.QueryStartMS <= s.ForgottenMS {
		return TooOld
	}
	o := Observation{Online: f.Online.Value, Silent: ProfileOf(f.Dialect).SilentPersistent, Node: f.Node, Key: f.Connection, QueryStartMS: f.QueryStartMS, QueryEndMS: f.QueryEndMS, Source: f.Source}
	i, ok := slices.BinarySearchFunc(s.Observed, o, func(a, b Observation) int { return compareObservation(&a, &b) })
	if ok {
		return Duplicate
	}
	s.Observed = slices.Insert(s.Observed, i, o)
	if len(s.Observed) <= MaxObservations {
		return Applied
	}
	s.Observed = slices.Delete(s.Observed, 0, 1)
	if i == 0 {
		return TooOld
	}
	return Applied
}

func (s *State) applyForgotten(f *Fact) Outcome {
	if f.AsOfMS <= s.ForgottenMS {
		return Duplicate
	}
	s.ForgottenMS = f.AsOfMS
	s.prune()
	return Applied
}

// prune drops everything at or below the floor.
func (s *State) prune() {
	floor := s.floorMS()
	empty := false
	for i := range s.Nodes {
		empty = s.Nodes[i].prune(floor) || empty
	}
	if empty {
		s.Nodes = slices.DeleteFunc(s.Nodes, func(n NodeState) bool { return n.empty() })
	}
	if len(s.Observed) > 0 && s.Observed[0].QueryStartMS <= s.ForgottenMS {
		s.Observed = slices.DeleteFunc(s.Observed, func(o Observation) bool { return o.QueryStartMS <= s.ForgottenMS })
	}
}

func (n *NodeState) empty() bool { return !n.Known && len(n.Closes) == 0 && n.PrunedMS == 0 }

// prune drops what is at or below the floor and reports whether nothing is left. Its sets are ascending.
func (n *NodeState) prune(floor int64) (empty bool) {
	if n.Known && n.Conn.OpenedMS <= floor {
		n.Known, n.Conn, n.Ended, n.End, n.TakeoverMS, n.UnorderedMS = false, Connection{}, false, Close{}, 0, 0
	}
	cut := 0
	for cut < len(n.Marks) && n.Marks[cut].MS <= floor {
		cut++
	}
	n.Marks = slices.Delete(n.Marks, 0, cut)
	cut = 0
	for cut < len(n.Earlier) && n.Earlier[cut].OpenedMS <= floor {
		cut++
	}
	n.Earlier = slices.Delete(n.Earlier, 0, cut)
	cut = 0
	for cut < len(n.Closes) && n.Closes[cut].ClosedMS <= floor {
		cut++
	}
	n.Closes = slices.Delete(n.Closes, 0, cut)
	if n.PrunedMS <= floor {
		n.PrunedMS, n.PrunedOrder = 0, 0
	}
	return n.empty()
}
