package presence

import "cmp"

// Copies of one fact come from several bridges, and what a bridge knows of a connection can depend on what its session saw before: the line that told the
// transport, the message that told the broker's version. What one does not know gives way to what another knows, field by field, so that any order of
// any copies ends in the same state.

// joinConn merges two sightings of one connection. The one that was seen wins over the one that is only implied; two that were seen join, with the
// earlier reception.
func (n *NodeState) joinConn(c *Connection) Outcome {
	if c.Seen != n.Conn.Seen {
		if !c.Seen {
			return Duplicate
		}
		n.Conn = *c
		n.markUnordered(c)
		return Applied
	}
	before := n.Conn
	received := min(n.Conn.ReceivedMS, c.ReceivedMS)
	changed := false
	switch {
	case c.Key != "" || c.Peer == n.Conn.Peer:
		n.Conn.join(c)
	case n.Conn.Peer == "" || c.Peer != "" && c.Peer < n.Conn.Peer:
		// Two connections with one stamp, and nothing tells which is the newer.
		changed = n.noteOpened(&n.Conn)
		n.Conn = *c
	default:
		changed = n.noteOpened(c)
	}
	n.Conn.ReceivedMS = received
	if n.Conn != before || changed {
		return Applied
	}
	return Duplicate
}

// join takes over what the copy of an Opened knows. Of two known values, which no copies should have, the smaller is kept.
func (c *Connection) join(d *Connection) {
	c.Dialect = max(c.Dialect, d.Dialect)
	c.Username = known(c.Username, d.Username)
	c.Peer = known(c.Peer, d.Peer)
	c.Transport = joinTransport(c.Transport, d.Transport)
	c.ProtocolVersion = known(c.ProtocolVersion, d.ProtocolVersion)
	c.KeepAliveS = knownOpt(c.KeepAliveS, d.KeepAliveS)
	c.SessionExpiryS = knownOpt(c.SessionExpiryS, d.SessionExpiryS)
	switch {
	case !c.CleanStart.Valid:
		c.CleanStart = d.CleanStart
	case d.CleanStart.Valid:
		// False is the smaller: a session that may outlive its connection.
		c.CleanStart.Value = c.CleanStart.Value && d.CleanStart.Value
	}
}

// join takes over what the copy of a Closed knows, and reports whether that was news.
func (c *Close) join(d *Close) bool {
	before := *c
	// Of dialects whose keys are worth the same, a bridge that does not know the broker's version takes the first.
	c.Dialect = max(c.Dialect, d.Dialect)
	c.ReceivedMS = min(c.ReceivedMS, d.ReceivedMS)
	return *c != before
}

// known returns the smaller of two values, of which zero is unknown.
func known[T cmp.Ordered](a, b T) T {
	var unknown T
	if a == unknown || b != unknown && b < a {
		return b
	}
	return a
}

func knownOpt(a, b Opt[uint32]) Opt[uint32] {
	if !a.Valid || b.Valid && b.Value < a.Value {
		return b
	}
	return a
}

// transport says whether a connection is over TCP; the larger is kept of two copies.
type transport uint8

const (
	overUnknown transport = iota
	overTCP
	overOther
)

const transportTCP = "tcp"

func transportOf(s string) transport {
	switch s {
	case "":
		return overUnknown
	case transportTCP:
		return overTCP
	}
	return overOther
}

// joinTransport returns what two copies know of the transport. If they contradict each other it is not TCP, of which more is certain.
func joinTransport(a, b string) string {
	if ta, tb := transportOf(a), transportOf(b); ta != tb {
		if ta < tb {
			return b
		}
		return a
	}
	return min(a, b)
}

// CopyOf reports whether two facts may be copies of one: they have the same ID, and differ only in when they were received and in what one of them does
// not know. A dialect may be that of another version of the broker, as long as keys are worth the same.
func (f *Fact) CopyOf(g *Fact) bool {
	a, b := *f, *g
	if ProfileOf(a.Dialect).Key != ProfileOf(b.Dialect).Key {
		return false
	}
	a.Dialect, a.ReceivedMS = b.Dialect, b.ReceivedMS
	same(&a.Username, &b.Username)
	same(&a.Transport, &b.Transport)
	same(&a.ProtocolVersion, &b.ProtocolVersion)
	same(&a.KeepAliveS, &b.KeepAliveS)
	same(&a.CleanStart, &b.CleanStart)
	same(&a.SessionExpiryS, &b.SessionExpiryS)
	return a == b
}

// same makes two values equal if one of them is unknown.
func same[T comparable](a, b *T) {
	var unknown T
	if *a == unknown || *b == unknown {
		*a, *b = unknown, unknown
	}
}
