package presence

import (
	"slices"
	"sort"
)

// Bounds of the state (L8).
const (
	MaxCloses       = 16                  // Closed kept per node that may concern a later connection
	MaxEarlier      = 4                   // connections with a unique key kept per node besides the newest
	MaxSkewed       = 16                  // the same, where stamps are not of one clock
	MaxMarks        = 32                  // Opened and takeovers before the newest Opened kept per node of a dialect without a key
	MaxOldMarks     = 4                   // of them, those that are a minute or more before it
	MaxObservations = 4                   // Observed kept per client
	MaxAgeMS        = 24 * 60 * 60 * 1000 // a node's facts older than the client's newest Opened by more are dropped
)

// Connection is what is known of one network connection.
type Connection struct {
	Key        string
	Dialect    string
	OpenedMS   int64  // on its node's clock
	Order      uint32 // of the Opened, see Fact.Order
	Seen       bool   // the Opened was seen; otherwise a Closed that names the connection proves it
	ReceivedMS int64  // of the Opened, on the bridge's clock

	Username        string
	Peer            string
	Transport       string
	ProtocolVersion uint8
	KeepAliveS      Opt[uint32]
	CleanStart      Opt[bool]
	SessionExpiryS  Opt[uint32]
}

// Close is a Closed as the state keeps it.
type Close struct {
	Key        string // empty if it named no connection
	Dialect    string
	ClosedMS   int64 // on its node's clock
	Order      uint32
	Reason     Reason
	RawReason  string
	ReceivedMS int64
}

// Earlier is a connection with a unique key that is older than the newest of its node, by the node's clock. It matters where that clock does not
// tell which of two came last: it was set back, both opened in one millisecond, or the stamps are not of one clock.
type Earlier struct {
	Key        string
	OpenedMS   int64
	Order      uint32
	Seen       bool
	ReceivedMS int64 // of the Opened, if seen

	Ended      bool // by a Closed that tells when its connection opened
	ClosedMS   int64
	CloseOrder uint32
	Reason     Reason
	TakeoverMS int64 // latest Closed by takeover, 0 if there was none
}

// Mark is an Opened or an end by takeover that came before the newest Opened, in a dialect without a key.
type Mark struct {
	MS       int64
	Order    uint32
	Takeover bool
	Over     transport // of an Opened: what any of its copies knows
	Peer     uint32    // of an Opened, a hash: two connections may have one stamp
}

// Observation is an Observed as the state keeps it.
type Observation struct {
	Online       bool
	Silent       bool // of a dialect whose connections may end without a Closed: what it says holds for its moment
	Node         string
	Key          string
	QueryStartMS int64
	QueryEndMS   int64
	Source       string
}

// NodeState is what a client's state keeps of one node.
type NodeState struct {
	Node   string
	Skewed bool       // its stamps are not of one clock
	Known  bool       // a connection is known, Conn is it
	Conn   Connection // the newest by the node's own clock
	Ended  bool       // End ends Conn: a Closed that tells when its connection opened
	End    Close      // the earliest, if the broker sent several
	// TakeoverMS is the latest Closed of Conn by takeover, 0 if there was none: it proves a successor even if Conn had ended before.
	TakeoverMS int64
	// UnorderedMS equals Conn.OpenedMS if an Opened with that stamp had no order, so that closes with the stamp decide nothing, or if another
	// with a reusable key had the same; else 0.
	UnorderedMS int64
	// Marks are the newest below Conn, of a dialect without a key; ascending.
	Marks []Mark
	// Earlier are the newest connections with a unique key below Conn; ascending.
	Earlier []Earlier
	// Closes are the newest Closed that may end Conn or concern a later connection; ascending.
	Closes []Close
	// PrunedMS and PrunedOrder are of the newest Closed that did not fit; 0 if all fitted.
	PrunedMS    int64
	PrunedOrder uint32
}

// State is everything kept of one client. The zero value is the state of a client of which nothing is known.
type State struct {
	Nodes       []NodeState   // ascending by name
	Observed    []Observation // ascending
	ForgottenMS int64
}

// Empty reports whether nothing is known of the client, other than that something was forgotten.
func (s *State) Empty() bool { return len(s.Nodes) == 0 && len(s.Observed) == 0 }

// compareStamp orders two stamps of one node. An absent order sorts first among equal times.
func compareStamp(ams int64, ao uint32, bms int64, bo uint32) int {
	switch {
	case ams != bms:
		return cmpInt(ams, bms)
	case ao != bo:
		return cmpInt(int64(ao), int64(bo))
	}
	return 0
}

// compareCloseStamp orders the stamps of closes. An absent order sorts last among equal times: such a close is never before an opening of
// that time, so what is before one is always a prefix.
func compareCloseStamp(ams int64, ao uint32, bms int64, bo uint32) int {
	if ams != bms {
		return cmpInt(ams, bms)
	}
	return cmpInt(int64(ao-1), int64(bo-1)) // 0 wraps around to the largest
}

func cmpInt(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// compareConn orders connections of one node by age; it is total over what identifies a connection.
func compareConn(a, b *Connection) int {
	if c := compareStamp(a.OpenedMS, a.Order, b.OpenedMS, b.Order); c != 0 {
		return c
	}
	if c := cmpString(a.Key, b.Key); c != 0 {
		return c
	}
	// Dialects of one family name the same connection; those with and without a key never do.
	return cmpInt(int64(ProfileOf(a.Dialect).Key), int64(ProfileOf(b.Dialect).Key))
}

// compareEarlier orders as compareConn does; all of them have unique keys.
func compareEarlier(a, b *Earlier) int {
	if c := compareStamp(a.OpenedMS, a.Order, b.OpenedMS, b.Order); c != 0 {
		return c
	}
	return cmpString(a.Key, b.Key)
}

func compareMark(a, b Mark) int {
	if c := compareStamp(a.MS, a.Order, b.MS, b.Order); c != 0 {
		return c
	}
	if c := boolInt(a.Takeover) - boolInt(b.Takeover); c != 0 {
		return c
	}
	return cmpInt(int64(a.Peer), int64(b.Peer))
}

// compareClose orders closes of one node; zero only for copies, which join.
func compareClose(a, b *Close) int {
	if c := compareCloseStamp(a.ClosedMS, a.Order, b.ClosedMS, b.Order); c != 0 {
		return c
	}
	if c := cmpString(a.Key, b.Key); c != 0 {
		return c
	}
	if c := cmpInt(int64(a.Reason), int64(b.Reason)); c != 0 {
		return c
	}
	if c := cmpString(a.RawReason, b.RawReason); c != 0 {
		return c
	}
	// As for connections.
	return cmpInt(int64(ProfileOf(a.Dialect).Key), int64(ProfileOf(b.Dialect).Key))
}

func compareObservation(a, b *Observation) int {
	for _, c := range []int{cmpInt(a.QueryStartMS, b.QueryStartMS), cmpInt(a.QueryEndMS, b.QueryEndMS), boolInt(a.Online) - boolInt(b.Online),
		boolInt(a.Silent) - boolInt(b.Silent),
		cmpString(a.Node, b.Node), cmpString(a.Key, b.Key)} {
		if c != 0 {
			return c
		}
	}
	return cmpString(a.Source, b.Source)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// before reports whether a close is known to precede the opening of a connection: without orders, equal stamps tell nothing. Where stamps are
// not of one clock, a Closed may bear one as far below its own Opened's as two can be apart, and that as far below another's.
func (c *Close) before(o *Connection) bool {
	if ms := o.OpenedMS - 2*skewMS(o.Dialect); c.ClosedMS != ms {
		return c.ClosedMS < ms
	}
	return c.Order != 0 && o.Order != 0 && c.Order < o.Order
}

// after reports whether a close is known to follow the opening of a connection.
func (c *Close) after(o *Connection) bool {
	if c.ClosedMS != o.OpenedMS {
		return c.ClosedMS > o.OpenedMS
	}
	return c.Order != 0 && o.Order != 0 && c.Order > o.Order
}

// node returns the state of a node, made if absent. Dialects whose stamps are not of one clock have nodes of their own: their stamps compare
// with no others.
func (s *State) node(name, dialect string) *NodeState {
	skewed := skewMS(dialect) != 0
	i := sort.Search(len(s.Nodes), func(i int) bool {
		n := &s.Nodes[i]
		return n.Node > name || n.Node == name && (n.Skewed || !skewed)
	})
	if i == len(s.Nodes) || s.Nodes[i].Node != name || s.Nodes[i].Skewed != skewed {
		s.Nodes = slices.Insert(s.Nodes, i, NodeState{Node: name, Skewed: skewed})
	}
	return &s.Nodes[i]
}

// newestOpenedMS is the largest opening time of all connections, by whichever node's clock; 0 if none is known.
func (s *State) newestOpenedMS() int64 {
	var m int64
	for i := range s.Nodes {
		if n := &s.Nodes[i]; n.Known {
			m = max(m, n.Conn.OpenedMS)
		}
	}
	return m
}
