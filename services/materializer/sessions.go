package materializer

import (
	"cmp"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// The history of a client is what its state holds of connections that are not current, and, beside it, a log of those that the state has let
// go. A connection is logged when the fold replaces it, or when a fact comes of one that the state does not have: its late Opened, or the end of
// one that was taken over. What a Closed without an opening time, or without a key, ends is decided when the log is read, so that the order
// in which facts come makes no difference.

// noteLeaving notes what is known of the connections that a fact may take out of the state, before it does.
func (p *partition) noteLeaving(s *presence.State, f *presence.Fact, cluster *presence.Cluster) {
	l := p.folds.leaving[:0]
	if f.Kind == presence.Opened || f.Kind == presence.Closed && namesOpening(f) {
		c := connIDOfFact(f)
		for i := range s.Nodes {
			n := &s.Nodes[i]
			if !n.Known {
				continue
			}
			replaced := n.Conn.OpenedMS <= c.openedMS && n.Node == f.Node && !c.names(&n.Conn)
			if replaced || n.Conn.OpenedMS < c.openedMS-presence.MaxAgeMS {
				l = append(l, sessionOf(s, i, cluster, p.allowanceMS()))
			}
		}
	}
	p.folds.leaving = l
}

// logSessions logs the connections that left the state with a fact, and the one that the fact is about if the state does not have it.
func (p *partition) logSessions(e *entry, f *presence.Fact, outcome presence.Outcome) {
	s := &e.row.State
	for i := range p.folds.leaving {
		if l := &p.folds.leaving[i]; !holds(s, l.Node, connIDOf(&l.Conn)) && l.Conn.OpenedMS > s.ForgottenMS {
			p.folds.addSession(e, l)
		}
	}
	switch c := connIDOfFact(f); {
	case f.Kind == presence.Opened:
		if c.openedMS > s.ForgottenMS && !holds(s, f.Node, c) {
			p.folds.addSession(e, &store.Session{Node: f.Node, Conn: connectionOfFact(f), Why: presence.ConnectionSuperseded})
		}
	case f.Kind != presence.Closed:
	case namesOpening(f):
		if c.openedMS > s.ForgottenMS && !holds(s, f.Node, c) {
			p.folds.addSession(e, &store.Session{Node: f.Node, Conn: connectionOfFact(f), Stated: true, EndMS: f.ClosedMS(), Reason: f.Reason, RawReason: f.RawReason})
		}
	case f.ClosedMS() > s.ForgottenMS && outcome != presence.Duplicate && concernsOther(s, f, outcome):
		p.folds.addEnding(e, &store.Ending{Node: f.Node, Key: f.Connection, Dialect: f.Dialect, ClosedMS: f.ClosedMS(), Order: f.Order, Reason: f.Reason,
			RawReason: f.RawReason})
	}
}

// connID is what tells a connection from the others of its node.
type connID struct {
	openedMS int64
	order    uint32
	key      string
}

func connIDOf(c *presence.Connection) connID {
	return connID{openedMS: c.OpenedMS, order: c.Order, key: c.Key}
}

// connIDOfFact is of the connection that an Opened, or a Closed that names it, is about.
func connIDOfFact(f *presence.Fact) connID {
	c := connID{openedMS: f.OpenedMS(), key: f.Connection}
	if !namesOpening(f) {
		c.order = f.Order
	}
	return c
}

// names reports whether a connection is the one that is identified.
func (x connID) names(c *presence.Connection) bool {
	return x.openedMS == c.OpenedMS && x.order == c.Order && x.key == c.Key
}

// concernsOther reports whether a Closed that does not tell when its connection opened may be the end of one that the state does not have.
func concernsOther(s *presence.State, f *presence.Fact, outcome presence.Outcome) bool {
	if f.Connection == "" {
		return outcome != presence.Applied && outcome != presence.Held && certainEnd(f.Dialect, f.Reason)
	}
	return outcome == presence.Ghost || outcome == presence.TooOld || !slices.ContainsFunc(s.Nodes, func(n presence.NodeState) bool {
		return n.Known && n.Node == f.Node && n.Conn.Key == f.Connection
	})
}

// certainEnd reports whether a Closed that names nothing is the end of the connection before it.
func certainEnd(dialect string, r presence.Reason) bool {
	p := presence.ProfileOf(dialect)
	return p.Key == presence.KeyNone && (r.Takeover() || p.OrderedFeed && (p.Certain|p.CertainOverTCP).Has(r))
}

// namesOpening reports whether a Closed tells which connection it ends.
func namesOpening(f *presence.Fact) bool { return f.Connection != "" && f.ConnectedAtMS != 0 }

// connectionOfFact is the connection that an Opened, or a Closed that names it, is about.
func connectionOfFact(f *presence.Fact) presence.Connection {
	x := connIDOfFact(f)
	c := presence.Connection{Key: x.key, Dialect: f.Dialect, OpenedMS: x.openedMS, Order: x.order}
	if f.Kind == presence.Opened {
		c.Seen, c.Username, c.Peer, c.Transport, c.ProtocolVersion = true, f.Username, f.Peer, f.Transport, f.ProtocolVersion
		c.KeepAliveS, c.CleanStart, c.SessionExpiryS = f.KeepAliveS, f.CleanStart, f.SessionExpiryS
	}
	return c
}

func sameConnection(a, b *presence.Connection) bool { return connIDOf(a).names(b) }

// holds reports whether a connection is the newest of its node in the state.
func holds(s *presence.State, node string, c connID) bool {
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Known && n.Node == node && c.names(&n.Conn) {
			return true
		}
	}
	return false
}

// sessionOf is what is known of the connection of a state's i-th node, and of its end.
func sessionOf(s *presence.State, i int, cluster *presence.Cluster, allowanceMS int64) store.Session {
	n := &s.Nodes[i]
	x := store.Session{Node: n.Node, Conn: n.Conn, Why: presence.ConnectionSuperseded}
	if c := statedEnd(n); c != nil {
		x.Stated, x.EndMS, x.Reason, x.RawReason = true, c.ClosedMS, c.Reason, c.RawReason
		return x
	}
	// As if the client had no other connections: those of other nodes say nothing of this one's end that their opening does not.
	alone := presence.State{Nodes: s.Nodes[i : i+1]}
	v := presence.Status(&alone, cluster, allowanceMS)
	named := v.Conn != nil && sameConnection(v.Conn, &n.Conn)
	switch {
	case named && v.Reason == presence.ConnectionClosed:
		x.Stated, x.EndMS, x.Reason, x.RawReason = true, v.SinceMS, v.Close, v.Raw
		return x
	case named && v.Reason == presence.NodeRestarted:
		x.EndMS, x.Why = v.SinceMS, v.Reason
	case named && v.Status == presence.Unknown && v.Belief == presence.Offline && v.Reason != presence.NodeIsGone:
		x.Why = v.Reason
	}
	if len(s.Observed) == 0 {
		return x
	}
	alone.Observed = s.Observed
	v = presence.Status(&alone, cluster, allowanceMS)
	named = v.Conn != nil && sameConnection(v.Conn, &n.Conn)
	if v.Reason == presence.BrokerObserved && !(named && v.Status == presence.Online) && (x.EndMS == 0 || v.SinceMS < x.EndMS) {
		x.EndMS, x.Why = v.SinceMS, v.Reason
	}
	return x
}

// statedEnd returns the Closed that ends a node's newest connection for sure: the one that names it, or an announced takeover.
func statedEnd(n *presence.NodeState) *presence.Close {
	if n.Ended {
		return &n.End
	}
	for i := range n.Closes {
		c := &n.Closes[i]
		after := c.ClosedMS > n.Conn.OpenedMS || c.ClosedMS == n.Conn.OpenedMS && c.Order > n.Conn.Order && n.Conn.Order != 0
		if c.Key != "" && c.Key == n.Conn.Key || c.Key == "" && c.Reason.Takeover() && after && !endsBefore(n, c) {
			return c
		}
	}
	return nil
}

// endsBefore reports whether a connection without a key may have ended by itself before a takeover, which then is of another one.
func endsBefore(n *presence.NodeState, takeover *presence.Close) bool {
	return slices.ContainsFunc(n.Closes, func(c presence.Close) bool {
		return !c.Reason.Takeover() && certainEnd(c.Dialect, c.Reason) && c.ClosedMS <= takeover.ClosedMS && c.ClosedMS >= n.Conn.OpenedMS
	})
}

func (f *fold) addSession(e *entry, s *store.Session) {
	f.scratch = store.AppendSession(f.scratch[:0], s)
	f.history.add(&e.sessions, f.scratch)
}

func (f *fold) addEnding(e *entry, x *store.Ending) {
	f.scratch = store.AppendEnding(f.scratch[:0], x)
	f.history.add(&e.sessions, f.scratch)
}

// writeSessions joins what the set logged of a client's connections to its log.
func (p *partition) writeSessions(b *store.Batch, e *entry) error {
	limit := p.parts.cfg.SessionsPerClient
	n := int(e.sessions.count)
	if n == 0 && !e.forgotten {
		return nil
	}
	f := &p.folds
	f.key = append(f.key[:0], e.key...)
	f.scratch = f.history.append(f.scratch[:0], e.sessions, n)
	log := f.scratch
	if e.forgotten {
		return p.forgetSessions(b, e, log)
	}
	if n > limit {
		var err error
		if log, err = store.JoinSessions(log, limit); err != nil {
			return err
		}
	}
	b.AddSessions(f.key, log)
	return nil
}

// historyFrom is since when all sessions are kept if that begins with the next fact that is later than restoredMS, and than what was applied.
func (p *partition) historyFrom(restoredMS int64) int64 {
	switch {
	case p.parts.cfg.SessionsPerClient == 0:
		return store.NoHistory
	case max(p.meta.AppliedMS, restoredMS) > 0:
		return max(p.meta.AppliedMS, restoredMS)
	}
	return store.HistoryNext
}

// noteHistory notes that the keeping of sessions was turned on or off since the partition was folded last.
func (p *partition) noteHistory() error {
	since, err := p.parts.store.History(p.id)
	if err != nil {
		return err
	}
	if (since == store.NoHistory) != (p.parts.cfg.SessionsPerClient == 0) {
		if since = p.historyFrom(0); since != store.NoHistory && p.meta.Next == 0 {
			since = store.HistoryAll
		}
		b := p.parts.store.NewBatch(p.id)
		b.PutHistory(since)
		if err := b.Commit(); err != nil {
			return err
		}
	}
	p.historyNext = since == store.HistoryNext
	return nil
}

// history describes the connections of the row that was read, apart from the current one.
func (r *reader) history(from source, p *partition, v *presence.Verdict, appliedMS int64) (*presencev1.History, error) {
	since, err := from.History(p.id)
	if err != nil {
		return nil, err
	}
	sessions, endings, cut, err := from.Sessions(p.id, r.key)
	if err != nil {
		return nil, err
	}
	if since < 0 {
		since = appliedMS
	}
	if cut && len(sessions) > 0 {
		since = max(since, sessions[0].Conn.OpenedMS)
	}
	h := &presencev1.History{CompleteSinceMs: max(since, r.row.State.ForgottenMS)}
	var current *presence.Connection
	if v.Conn != nil {
		current = v.Conn
	}
	list := joinHistory(&r.row.State, r.table.cluster(r.cluster), p.allowanceMS(), sessions, endings, v.Node, current)
	h.CompleteSinceMs = max(h.CompleteSinceMs, p.expiredBefore(list, appliedMS))
	for i := range list {
		if x := &list[i]; current == nil || !x.Names(v.Node, current) {
			h.Sessions = append(h.Sessions, historySession(x))
		}
	}
	return h, nil
}

// expiredBefore returns the time before which connections of a client may have expired: before the oldest that is there, and before all that are
// not old enough; 0 if none expire.
func (p *partition) expiredBefore(list []store.Session, appliedMS int64) int64 {
	limit := p.parts.cfg.ExpireAfter.Milliseconds()
	if limit == 0 {
		return 0
	}
	ms := appliedMS - limit
	for i := range list {
		if opened := list[i].Conn.OpenedMS; opened != 0 {
			ms = min(ms, opened)
		}
	}
	return max(ms, 0)
}

// joinHistory returns all connections that a state and a log tell of, the current one, if there is one, among them, newest first.
func joinHistory(s *presence.State, cluster *presence.Cluster, allowanceMS int64, log []store.Session, endings []store.Ending, node string,
	current *presence.Connection) []store.Session {
	list := log
	add := func(x store.Session) {
		i := slices.IndexFunc(list, func(o store.Session) bool { return o.Names(x.Node, &x.Conn) })
		if i < 0 {
			list = append(list, x)
			return
		}
		list[i].Join(&x)
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		if !n.Known {
			continue
		}
		add(sessionOf(s, i, cluster, allowanceMS))
		for j := range n.Earlier {
			add(earlierSession(n, &n.Earlier[j]))
		}
		for j := range n.Closes {
			if c := &n.Closes[j]; c.Key != "" {
				endings = append(endings, store.Ending{Node: n.Node, Key: c.Key, Dialect: c.Dialect, ClosedMS: c.ClosedMS, Order: c.Order, Reason: c.Reason, RawReason: c.RawReason})
			}
		}
	}
	if current != nil {
		add(store.Session{Node: node, Conn: *current})
	}
	for i := range endings {
		if x := endedBy(list, &endings[i]); x != nil {
			e := &endings[i]
			x.Join(&store.Session{Conn: x.Conn, Stated: true, EndMS: e.ClosedMS, Reason: e.Reason, RawReason: e.RawReason})
		}
	}
	slices.SortFunc(list, func(a, b store.Session) int {
		return -cmp.Or(cmp.Compare(a.Conn.OpenedMS, b.Conn.OpenedMS), cmp.Compare(a.Conn.Order, b.Conn.Order), cmp.Compare(a.Node, b.Node), cmp.Compare(a.Conn.Key, b.Conn.Key))
	})
	for i := range list {
		x := &list[i]
		if i == 0 || x.Stated {
			continue
		}
		// A newer connection ends an older one, whatever became of it before.
		if next := list[i-1].Conn.OpenedMS; x.EndMS == 0 || x.EndMS > next {
			if x.EndMS != 0 {
				x.Why = presence.ConnectionSuperseded
			}
			x.EndMS = next
		}
	}
	return list
}

func earlierSession(n *presence.NodeState, e *presence.Earlier) store.Session {
	x := store.Session{Node: n.Node, Conn: presence.Connection{Key: e.Key, Dialect: n.Conn.Dialect, OpenedMS: e.OpenedMS, Order: e.Order}, Why: presence.ConnectionSuperseded}
	if e.Ended {
		x.Stated, x.EndMS, x.Reason = true, e.ClosedMS, e.Reason
	}
	return x
}

// endedBy returns the session that a Closed ends: the newest of its node, and of its key if it has one, that had opened by then.
func endedBy(list []store.Session, e *store.Ending) *store.Session {
	var found *store.Session
	for i := range list {
		x := &list[i]
		profile := presence.ProfileOf(x.Conn.Dialect)
		switch {
		case !x.OfNode(e.Node):
			continue
		case e.Key == "":
			after := e.ClosedMS > x.Conn.OpenedMS || e.ClosedMS == x.Conn.OpenedMS && x.Conn.Order != 0 && e.Order > x.Conn.Order
			if profile.Key != presence.KeyNone || !after {
				continue
			}
		case !x.OfKey(e.Key) || e.ClosedMS < x.Conn.OpenedMS-2*profile.SkewMS,
			e.ClosedMS == x.Conn.OpenedMS && e.Order != 0 && e.Order < x.Conn.Order && profile.SkewMS == 0:
			continue
		}
		if found == nil || cmp.Or(cmp.Compare(found.Conn.OpenedMS, x.Conn.OpenedMS), cmp.Compare(found.Conn.Order, x.Conn.Order)) < 0 {
			found = x
		}
	}
	return found
}

func historySession(x *store.Session) *presencev1.HistorySession {
	h := &presencev1.HistorySession{Node: x.Node, Dialect: x.Conn.Dialect, Connection: connectionOf(&x.Conn), EndedMs: x.EndMS, Stated: x.Stated}
	switch {
	case x.Stated:
		h.Reason, h.RawReason = x.Reason.String(), x.RawReason
	case x.EndMS != 0:
		h.Reason = x.Why.String()
	}
	return h
}
