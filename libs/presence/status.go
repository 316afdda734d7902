package presence

import "slices"

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
	return e.conn.OpenedMS < t.StartedMS || e.conn.ReceivedMS+SettleMS < t.StartedReceivedMS
}

// fitsGeneration reports whether the connection's stamp is where the clock of the node's generation was when it was received, or shortly before.
func (e *end) fitsGeneration() bool {
	t := e.nodeTable
	return e.conn.OpenedMS >= t.StartedMS && e.conn.OpenedMS-t.StartedMS <= e.conn.ReceivedMS-t.StartedReceivedMS+SettleMS
}

// generationDoubtful reports whether nothing tells if the connection is of the node's generation or of the one before: the clock was set back over its
// stamp, and it was received after the generation began by no more than an event may take.
func (n *NodeState) generationDoubtful(e *end) bool {
	t := e.nodeTable
	if t == nil || t.StartedReceivedMS == 0 || e.state != open || !e.conn.Seen || !t.setBackOver(e.conn.OpenedMS) && !t.setBackOver(t.StartedMS) {
		return false
	}
	return !e.fitsGeneration() && e.conn.ReceivedMS <= t.StartedReceivedMS+deliveryMS
}

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
		conn: &Connection{Key: x.Key, Dialect: n.Conn.Dialect, OpenedMS: x.OpenedMS, Order: x.Order, Seen: x.Seen, ReceivedMS: x.ReceivedMS}}
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

// otherClosed reports whether another connection than the newest, by key, ended on its own.
func (n *NodeState) otherClosed() bool {
	return slices.ContainsFunc(n.Closes, func(c Close) bool { return c.Key != n.Conn.Key && !c.Reason.Takeover() })
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
			alive = x
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
		return than.Order != 0 && c.Order > than.Order
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
	certain := e.profile.Certain
	if !n.lateLinePending() {
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
	case doubt != nil:
		e.doubt(doubt)
	case tie != nil:
		e.end(tie)
		e.state, e.belief = undecided, Online
	}
}

// lateLinePending reports whether the end of a connection that was taken over may still come: any connection before the newest was not over TCP, or
// was taken over without having been seen (H3).
func (n *NodeState) lateLinePending() bool {
	if n.OtherMS != 0 {
		return true
	}
	for i, m := range n.Marks {
		// What was there before the oldest mark is known only if the set is not full.
		if m.Takeover && (i > 0 && n.Marks[i-1].Takeover || i == 0 && len(n.Marks) < MaxMarks) {
			return true
		}
	}
	return false
}

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
