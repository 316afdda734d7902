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

// deliveryMS is how long an event of a node that has died may still be on its way.
const deliveryMS = 60_000

// Status computes a client's status from its state and the table of its cluster's nodes. allowanceMS bounds the skew between two nodes'
// clocks that is thought possible. It neither changes nor keeps its arguments, apart from Verdict.Conn, which may point into the state.
func Status(s *State, c *Cluster, allowanceMS int64) Verdict {
	ends := make([]end, 0, 4)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if n.strangersOnly() {
			continue
		}
		e := n.ending(c.node(n.Node))
		s.observe(&e)
		ends = append(ends, e)
	}
	v, decided := decide(ends, c, allowanceMS)
	if o := s.seenOnline(ends); o != nil && v.Status != Online {
		return c.observedOnline(o, v)
	}
	if decided {
		return v
	}
	if n := len(s.Observed); n > 0 && !s.Observed[n-1].Online {
		return Verdict{Status: Offline, Belief: Offline, Reason: BrokerObserved, SinceMS: s.Observed[n-1].QueryStartMS}
	}
	return neverSeen(c)
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
		if d := n.rivalInDoubt(ends, allowanceMS); d != nil {
			n = d
		}
		return n.closedVerdict(ends, c, allowanceMS), true
	}
	l := &ends[live]
	if live == last {
		if !l.profile.ClosedOnTakeover && l.rivalled(ends, allowanceMS) {
			return l.verdict(Unknown, Online, OrderUndecided, l.conn.OpenedMS), true
		}
		return l.openVerdict(), true
	}
	// A connection without an end, and a newer one, elsewhere, that ended.
	near := n.conn.OpenedMS-l.conn.OpenedMS <= max(allowanceMS, n.profile.SkewMS)
	switch {
	case l.profile.ClosedOnTakeover && near:
		// By its key the older one is open: with a Closed for every takeover it is the newer in truth, or was opened in between.
		return l.openVerdict(), true
	case n.takeoverUnseen(ends, allowanceMS):
		return n.unseenVerdict(c, allowanceMS), true
	case l.profile.ClosedOnTakeover:
		return l.verdict(Unknown, Offline, OlderConnectionOpen, n.sinceMS), true
	case near:
		return n.verdict(Unknown, Offline, OrderUndecided, n.sinceMS), true
	}
	v := n.closedVerdict(ends, c, allowanceMS)
	if v.Status == Offline && v.Reason == ConnectionClosed {
		v.Reason = ConnectionSuperseded
	}
	return v, true
}

// rivalInDoubt returns a connection of another node that may be open and, by the skew or because its end would have been told, may be the current
// one, where this one has ended.
func (e *end) rivalInDoubt(ends []end, allowanceMS int64) *end {
	if e.doubtful() {
		return nil
	}
	d := newest(ends, func(o *end) bool {
		return o.doubtful() && o.state != replaced && (o.profile.ClosedOnTakeover || e.conn.OpenedMS-o.conn.OpenedMS <= allowanceMS)
	})
	if d < 0 {
		return nil
	}
	return &ends[d]
}

// rivalled reports whether a connection of another node, opened within the allowance before this one and over, may have been the newer: then
// this one was superseded, without a word.
func (e *end) rivalled(ends []end, allowanceMS int64) bool {
	for i := range ends {
		o := &ends[i]
		if o == e || !o.node.Known || o.state == open && !o.nodeTable.away() {
			continue
		}
		over := o.state == ended && o.sinceMS < e.conn.OpenedMS-allowanceMS
		if !over && e.conn.OpenedMS-o.conn.OpenedMS <= allowanceMS {
			return true
		}
	}
	return false
}

// doubtful reports whether the end of the newest connection cannot be told by the facts.
func (e *end) doubtful() bool {
	return e.state == ambiguous || e.state == undecided || e.state == replaced || e.state == pruned || e.state == outlived
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
	case e.profile.SilentPersistent && !e.conn.CleanStart.Value:
		return e.verdict(Unknown, Online, CloseAmbiguous, e.conn.OpenedMS)
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
	case outlived:
		return e.verdict(Unknown, Offline, OlderConnectionOpen, e.sinceMS)
	case denied:
		return e.verdict(Offline, Offline, BrokerObserved, e.sinceMS)
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
	if ms := c.startedAfter(e.node.Node, e.takeover, e.receivedMS, allowanceMS); ms != 0 {
		return e.verdict(Offline, Offline, NodeRestarted, ms)
	}
	return e.verdict(Unknown, Online, SuccessorUnseen, e.takeover)
}
