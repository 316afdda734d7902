package presence

// Presence is the answer's word.
type Presence uint8

// The words.
const (
	Unknown Presence = iota
	Offline
	Online
)

var presenceWords = [...]string{"unknown", "offline", "online"}

// String returns online, offline or unknown.
func (p Presence) String() string { return word(presenceWords[:], int(p)) }

// ParsePresence is the inverse of String; Unknown for any other word.
func ParsePresence(s string) Presence { return Presence(index(presenceWords[:], s)) }

// StatusReason says which rule decided a status.
type StatusReason uint8

// The rules, see the package documentation.
const (
	NeverSeen StatusReason = iota
	Connected
	ConnectionClosed
	ConnectionSuperseded
	SuccessorUnseen
	OrderUndecided
	CloseAmbiguous
	OlderConnectionOpen
	NodeRestarted
	NodeIsGone
	NodeIsSilent
	BrokerObserved
	HistoryPruned
)

var statusReasonWords = [...]string{"never_seen", "connected", "closed", "superseded", "successor_unseen", "order_undecided", "close_ambiguous",
	"older_connection_open", "node_restarted", "node_gone", "node_silent", "observed", "history_pruned"}

// String returns the word that answers and records use.
func (r StatusReason) String() string { return word(statusReasonWords[:], int(r)) }

// ParseStatusReason is the inverse of String; NeverSeen for any other word.
func ParseStatusReason(s string) StatusReason { return StatusReason(index(statusReasonWords[:], s)) }

// Verdict is the status of a client, and why.
type Verdict struct {
	Status  Presence
	Belief  Presence // Online or Offline: the best guess; equals Status unless that is Unknown
	Reason  StatusReason
	SinceMS int64       // when the status began, on the clock of Node; 0 if unknown
	Node    string      // of Conn
	Conn    *Connection // the connection that decided; nil if none is known
	Close   Reason      // why Conn ended, if it did
	Raw     string      // the broker's own words for it
}

// Default allowances for the skew between two nodes' clocks, and the settle time of an active query (L3, L5).
const (
	DefaultAllowanceMS = 2_000
	SettleMS           = 5_000
)

// ending says how far a connection has come.
type ending uint8

const (
	open      ending = iota
	ended            // by a Closed
	restarted        // by a newer generation of its node
	ambiguous        // a Closed may have ended it
	undecided        // a Closed with the same stamp
	replaced         // a takeover was announced, its Opened has not come
	pruned           // what would decide was dropped
)

// end is one node's newest connection with its end.
type end struct {
	node      *NodeState
	conn      *Connection
	state     ending
	sinceMS   int64
	reason    Reason
	raw       string
	takeover  int64    // latest Closed by takeover, 0 if none
	belief    Presence // for ambiguous and undecided
	profile   Profile
	nodeTable *Node
}

// Status computes a client's status from its state and the table of its cluster's nodes. allowanceMS bounds the skew between two nodes'
// clocks that is thought possible. It neither changes nor keeps its arguments, apart from Verdict.Conn, which points into the state.
func Status(s *State, c *Cluster, allowanceMS int64) Verdict {
	ends := make([]end, 0, 4)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		var t *Node
		if c != nil {
			t = c.Nodes[n.Node]
		}
		ends = append(ends, n.ending(t))
	}
	v, decided := decide(ends, c, allowanceMS)
	if o := newestObservation(s, ends); o != nil && (!decided || v.Status != Offline || o.Online) {
		return observed(o, v)
	}
	if !decided {
		return neverSeen(c)
	}
	return v
}

func neverSeen(c *Cluster) Verdict {
	v := Verdict{Status: Unknown, Belief: Offline, Reason: NeverSeen}
	if c != nil && c.FeedComplete() {
		v.Status = Offline
	}
	return v
}

// newest returns the index of the end whose connection opened last by the clocks, -1 if there is none.
func newest(ends []end, match func(*end) bool) int {
	best := -1
	for i := range ends {
		if e := &ends[i]; match(e) && (best < 0 || e.conn.OpenedMS > ends[best].conn.OpenedMS) {
			best = i
		}
	}
	return best
}

func decide(ends []end, c *Cluster, allowanceMS int64) (Verdict, bool) {
	last := newest(ends, func(*end) bool { return true })
	if last < 0 {
		return Verdict{}, false
	}
	n := &ends[last]
	live := newest(ends, func(e *end) bool { return e.state == open })
	if live < 0 || live != last && n.doubtful() {
		return n.closedVerdict(ends, c, allowanceMS), true
	}
	l := &ends[live]
	if live == last {
		return l.openVerdict(), true
	}
	// A connection without an end, and a newer one, elsewhere, that ended.
	near := n.conn.OpenedMS-l.conn.OpenedMS <= allowanceMS
	switch {
	case n.profile.ClosedOnTakeover && near:
		// By its key the older one is open: with a Closed for every takeover it is the newer in truth, or was opened in between.
		return l.openVerdict(), true
	case n.takeoverUnseen(ends, allowanceMS):
		return n.unseenVerdict(c, allowanceMS), true
	case n.profile.ClosedOnTakeover:
		return l.verdict(Unknown, Offline, OlderConnectionOpen, n.sinceMS), true
	case near:
		return n.verdict(Unknown, Offline, OrderUndecided, n.sinceMS), true
	}
	return n.closedVerdict(ends, c, allowanceMS), true
}

// doubtful reports whether the end of the newest connection cannot be told by the facts.
func (e *end) doubtful() bool {
	return e.state == ambiguous || e.state == undecided || e.state == replaced || e.state == pruned
}

func (e *end) verdict(s, belief Presence, r StatusReason, since int64) Verdict {
	return Verdict{Status: s, Belief: belief, Reason: r, SinceMS: since, Node: e.node.Node, Conn: e.conn, Close: e.reason, Raw: e.raw}
}

func (e *end) openVerdict() Verdict {
	switch {
	case e.nodeTable != nil && e.nodeTable.Gone():
		return e.verdict(Unknown, Offline, NodeIsGone, e.nodeTable.GoneMS)
	case e.nodeTable != nil && e.nodeTable.Silent():
		return e.verdict(Unknown, Online, NodeIsSilent, e.nodeTable.SilentMS)
	}
	return e.verdict(Online, Online, Connected, e.conn.OpenedMS)
}

func (e *end) closedVerdict(ends []end, c *Cluster, allowanceMS int64) Verdict {
	switch e.state {
	case open:
		return e.openVerdict()
	case ambiguous:
		return e.verdict(Unknown, e.belief, CloseAmbiguous, e.sinceMS)
	case undecided:
		return e.verdict(Unknown, e.belief, OrderUndecided, e.sinceMS)
	case pruned:
		return e.verdict(Unknown, Offline, HistoryPruned, e.sinceMS)
	case replaced:
		return e.unseenVerdict(c, allowanceMS)
	case ended, restarted:
	}
	for i := range ends {
		if o := &ends[i]; o.takeoverUnseen(ends, allowanceMS) {
			return o.unseenVerdict(c, allowanceMS)
		}
	}
	if e.state == restarted {
		return e.verdict(Offline, Offline, NodeRestarted, e.sinceMS)
	}
	return e.verdict(Offline, Offline, ConnectionClosed, e.sinceMS)
}

// takeoverUnseen reports whether the connection was taken over and its successor, or the last of its successors, is not known. One that was
// taken over itself is not the last.
func (e *end) takeoverUnseen(ends []end, allowanceMS int64) bool {
	if e.takeover == 0 {
		return false
	}
	for i := range ends {
		if o := &ends[i]; o != e && o.takeover == 0 && o.conn.OpenedMS >= e.takeover-allowanceMS {
			return false
		}
	}
	return true
}

// unseenVerdict is the status after a takeover whose successor is unseen. If every node has a newer generation since, the successor died
// with its node, whichever that was.
func (e *end) unseenVerdict(c *Cluster, allowanceMS int64) Verdict {
	if ms := c.startedAfter(e.node.Node, e.takeover, allowanceMS); ms != 0 {
		return e.verdict(Offline, Offline, NodeRestarted, ms)
	}
	return e.verdict(Unknown, Online, SuccessorUnseen, e.takeover)
}

// ending derives how the node's newest connection stands. The zero connection stands for one whose Opened and key are unknown.
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
		e.state, e.sinceMS, e.reason, e.raw, e.takeover = ended, n.End.ClosedMS, n.End.Reason, n.End.RawReason, n.TakeoverMS
	case e.profile.Key == KeyNone:
		n.unkeyedEnding(&e)
	default:
		n.keyedEnding(&e)
	}
	if t != nil && e.state != ended && n.lastMS() < t.StartedMS && e.takeover < t.StartedMS {
		e.state, e.sinceMS, e.takeover = restarted, t.StartedMS, 0
	}
	return e
}

// lastMS is when the newest connection opened, or, if no Opened is known, when the newest Closed came: what was open then opened before.
func (n *NodeState) lastMS() int64 {
	if !n.Known && len(n.Closes) > 0 {
		return n.Closes[len(n.Closes)-1].ClosedMS
	}
	return n.Conn.OpenedMS
}

// keyedEnding looks for the connection's Closed among those that carry a key but no opening time.
func (n *NodeState) keyedEnding(e *end) {
	if !n.Known {
		// Only closes: whichever connections they name are over, and none is known to be open.
		c := &n.Closes[len(n.Closes)-1]
		e.end(c)
		return
	}
	for i := range n.Closes {
		c := &n.Closes[i]
		if c.Key != n.Conn.Key || c.Key == "" { // those before the opening are not kept
			continue
		}
		if e.state == open {
			e.end(c)
		}
		if c.Reason.Takeover() {
			e.takeover = c.ClosedMS
		}
	}
	if e.state == open && n.PrunedMS != 0 {
		e.state, e.sinceMS = pruned, n.PrunedMS
	}
}

func (e *end) end(c *Close) {
	e.state, e.sinceMS, e.reason, e.raw = ended, c.ClosedMS, c.Reason, c.RawReason
	if c.Reason.Takeover() {
		e.takeover = c.ClosedMS
	}
}

// unkeyedEnding decides what closes that name no connection mean for the newest one (L2, L4).
func (n *NodeState) unkeyedEnding(e *end) {
	certain := e.profile.Certain
	if (!n.Known || n.Conn.Transport == "tcp") && (n.PrevMS == 0 || n.PrevTransport == "tcp") {
		certain |= e.profile.CertainOverTCP
	}
	var doubt, tie, takeover *Close
	for i := range n.Closes {
		c := &n.Closes[i]
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
			if doubt == nil {
				doubt = c
			}
		}
	}
	switch {
	case takeover != nil && (!n.Known || takeover.after(&n.Conn)):
		e.state, e.takeover, e.sinceMS = replaced, takeover.ClosedMS, takeover.ClosedMS
	case n.PrunedMS != 0:
		e.state, e.sinceMS = pruned, n.PrunedMS
	case doubt != nil:
		e.end(doubt)
		e.state, e.belief = ambiguous, Offline
		// A stranger's refused CONNECT says nothing about the connection; a Closed right after the opening is more likely the late
		// end of the connection before it.
		if n.Known && (doubt.Reason == ReasonNotAuthorized || doubt.ClosedMS-n.Conn.OpenedMS <= DefaultAllowanceMS) {
			e.belief = Online
		}
	case tie != nil:
		e.end(tie)
		e.state, e.belief = undecided, Online
	}
}

// newestObservation returns the newest answer of the broker that may count against what the facts say: a connection whose Opened was
// received less than the settle time before the query began, or after it, is out of its reach (L5).
func newestObservation(s *State, ends []end) *Observation {
	if len(s.Observed) == 0 {
		return nil
	}
	o := &s.Observed[len(s.Observed)-1]
	for i := range ends {
		e := &ends[i]
		if e.node.Known && e.conn.Seen && e.conn.ReceivedMS > o.QueryStartMS-SettleMS {
			return nil
		}
		if o.Online && o.Key != "" && o.Key == e.conn.Key && e.state == ended {
			return nil
		}
	}
	return o
}

func observed(o *Observation, v Verdict) Verdict {
	p := Offline
	if o.Online {
		p = Online
	}
	if v.Status == p {
		return v
	}
	v.Status, v.Belief, v.Reason, v.SinceMS = p, p, BrokerObserved, o.QueryStartMS
	if o.Node != "" {
		v.Node = o.Node
	}
	return v
}
