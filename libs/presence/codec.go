package presence

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
)

// ErrCorrupt is returned for bytes that are no state of a known format.
var ErrCorrupt = errors.New("corrupt presence state")

// stateFormat is the first byte of an encoded state.
//
//	state    = format(1) uvarint(forgotten) uvarint(#nodes) node* uvarint(#observed) observed*
//	node     = str(name) flags(1) [conn] [end] [uvarint(takeover)] [uvarint(#marks) mark*] [uvarint(#earlier) earlier*] uvarint(#closes) close*
//	           [uvarint(pruned) uvarint(order)]
//	conn     = dialect uvarint(opened) uvarint(order) key flags2(1) varint(received-opened) str(username) str(peer) str(transport)
//	           protocol(1) [uvarint(keepalive)] [uvarint(expiry)]
//	mark     = uvarint(time) uvarint(order) what(1) [peer(4)]
//	earlier  = uvarint(opened) uvarint(order) flags3(1) [key] [varint(received-opened)] [varint(closed-opened) uvarint(order) reason(1)]
//	           [uvarint(takeover)]
//	close    = dialect uvarint(closed) uvarint(order) str(key) reason(1) str(raw) varint(received-closed)
//	observed = flags4(1) str(node) str(key) uvarint(start) uvarint(end) str(source)
//	dialect  = code(1), 0: followed by str
//	str      = uvarint(length) bytes
//
// A key that is the opening time in decimal is a flag. Every value has one encoding, so equal states are equal bytes.
const stateFormat = 3

const (
	flagKnown = 1 << iota
	flagEnded
	flagTakeover
	flagUnordered
	flagMarks
	flagPruned
	flagEarlier
	flagSkewed
)

const (
	connSeen = 1 << iota
	connKeyIsTime
	connKeepAlive
	connExpiry
	connCleanKnown
	connClean
)

// markTakeover follows the codes of transports.
const markTakeover = 3

const (
	earlierSeen = 1 << iota
	earlierKeyIsTime
	earlierEnded
	earlierTakeover
)

// dialectCodes is appended to, never reordered: codes are in what Kafka and disks hold.
var dialectCodes = [...]string{"", DialectEMQX, DialectEMQX50, DialectMosquitto20, DialectMosquitto21, DialectEMQX43, DialectEMQX40, DialectEMQX4Events,
	DialectRMQTT, DialectTDMQ, DialectMosquittoPlugin, DialectNanoMQ, DialectAWS, DialectStatusTopic, DialectSparkplug, DialectCustom,
	DialectCustomReusable, DialectCustomUnique}

// Append appends the state's canonical bytes to dst.
func (s *State) Append(dst []byte) []byte {
	dst = append(dst, stateFormat)
	dst = binary.AppendUvarint(dst, uint64(s.ForgottenMS))
	dst = binary.AppendUvarint(dst, uint64(len(s.Nodes)))
	for i := range s.Nodes {
		dst = s.Nodes[i].append(dst)
	}
	dst = binary.AppendUvarint(dst, uint64(len(s.Observed)))
	for i := range s.Observed {
		o := &s.Observed[i]
		dst = append(dst, byte(boolInt(o.Online)|boolInt(o.Silent)<<1))
		dst = appendString(appendString(dst, o.Node), o.Key)
		dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(o.QueryStartMS)), uint64(o.QueryEndMS))
		dst = appendString(dst, o.Source)
	}
	return dst
}

func (n *NodeState) append(dst []byte) []byte {
	dst = appendString(dst, n.Node)
	var flags byte
	for _, f := range []struct {
		on  bool
		bit byte
	}{{n.Known, flagKnown}, {n.Ended, flagEnded}, {n.TakeoverMS != 0, flagTakeover}, {n.UnorderedMS != 0, flagUnordered},
		{len(n.Marks) > 0, flagMarks}, {n.PrunedMS != 0, flagPruned}, {len(n.Earlier) > 0, flagEarlier}, {n.Skewed, flagSkewed}} {
		if f.on {
			flags |= f.bit
		}
	}
	dst = append(dst, flags)
	if n.Known {
		dst = n.Conn.append(dst)
	}
	if n.Ended {
		dst = n.End.append(dst)
	}
	if n.TakeoverMS != 0 {
		dst = binary.AppendUvarint(dst, uint64(n.TakeoverMS))
	}
	if len(n.Marks) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(n.Marks)))
		for i := range n.Marks {
			dst = n.Marks[i].append(dst)
		}
	}
	if len(n.Earlier) > 0 {
		dst = binary.AppendUvarint(dst, uint64(len(n.Earlier)))
		for i := range n.Earlier {
			dst = n.Earlier[i].append(dst)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(len(n.Closes)))
	for i := range n.Closes {
		dst = n.Closes[i].append(dst)
	}
	if n.PrunedMS != 0 {
		dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(n.PrunedMS)), uint64(n.PrunedOrder))
	}
	return dst
}

// append appends the mark.
func (m *Mark) append(dst []byte) []byte {
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(m.MS)), uint64(m.Order))
	if m.Takeover {
		return append(dst, markTakeover)
	}
	return binary.LittleEndian.AppendUint32(append(dst, byte(m.Over)), m.Peer)
}

func (c *Connection) append(dst []byte) []byte {
	dst = appendDialect(dst, c.Dialect)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(c.OpenedMS)), uint64(c.Order))
	var flags byte
	keyIsTime := isDecimal(c.Key, c.OpenedMS)
	for _, f := range []struct {
		on  bool
		bit byte
	}{{c.Seen, connSeen}, {keyIsTime, connKeyIsTime}, {c.KeepAliveS.Valid, connKeepAlive}, {c.SessionExpiryS.Valid, connExpiry},
		{c.CleanStart.Valid, connCleanKnown}, {c.CleanStart.Value, connClean}} {
		if f.on {
			flags |= f.bit
		}
	}
	dst = append(dst, flags)
	if !keyIsTime {
		dst = appendString(dst, c.Key)
	}
	if !c.Seen {
		return dst
	}
	dst = binary.AppendVarint(dst, c.ReceivedMS-c.OpenedMS)
	dst = appendString(appendString(appendString(dst, c.Username), c.Peer), c.Transport)
	dst = append(dst, c.ProtocolVersion)
	if c.KeepAliveS.Valid {
		dst = binary.AppendUvarint(dst, uint64(c.KeepAliveS.Value))
	}
	if c.SessionExpiryS.Valid {
		dst = binary.AppendUvarint(dst, uint64(c.SessionExpiryS.Value))
	}
	return dst
}

func (x *Earlier) append(dst []byte) []byte {
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(x.OpenedMS)), uint64(x.Order))
	var flags byte
	keyIsTime := isDecimal(x.Key, x.OpenedMS)
	for _, f := range []struct {
		on  bool
		bit byte
	}{{x.Seen, earlierSeen}, {keyIsTime, earlierKeyIsTime}, {x.Ended, earlierEnded}, {x.TakeoverMS != 0, earlierTakeover}} {
		if f.on {
			flags |= f.bit
		}
	}
	dst = append(dst, flags)
	if !keyIsTime {
		dst = appendString(dst, x.Key)
	}
	if x.Seen {
		dst = binary.AppendVarint(dst, x.ReceivedMS-x.OpenedMS)
	}
	if x.Ended {
		dst = binary.AppendUvarint(binary.AppendVarint(dst, x.ClosedMS-x.OpenedMS), uint64(x.CloseOrder))
		dst = append(dst, byte(x.Reason))
	}
	if x.TakeoverMS != 0 {
		dst = binary.AppendUvarint(dst, uint64(x.TakeoverMS))
	}
	return dst
}

func (c *Close) append(dst []byte) []byte {
	dst = appendDialect(dst, c.Dialect)
	dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(c.ClosedMS)), uint64(c.Order))
	dst = append(appendString(dst, c.Key), byte(c.Reason))
	return binary.AppendVarint(appendString(dst, c.RawReason), c.ReceivedMS-c.ClosedMS)
}

// isDecimal reports whether s is v in decimal, as strconv writes it.
func isDecimal(s string, v int64) bool {
	if v <= 0 {
		return s == strconv.FormatInt(v, 10)
	}
	for i := len(s) - 1; i >= 0; i-- {
		if v == 0 || s[i] != byte('0'+v%10) {
			return false
		}
		v /= 10
	}
	return v == 0 && s != ""
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendDialect(dst []byte, d string) []byte {
	if i := index(dialectCodes[:], d); i > 0 {
		return append(dst, byte(i))
	}
	return appendString(append(dst, 0), d)
}

// DecodeState reads what [State.Append] wrote. The error wraps [ErrCorrupt]. Strings are copies.
func DecodeState(b []byte) (State, error) {
	r := reader{b: b, text: string(b)}
	if f := r.byte(); f != stateFormat {
		return State{}, fmt.Errorf("%w: format %d, want %d", ErrCorrupt, f, stateFormat)
	}
	var s State
	s.ForgottenMS = r.int()
	if n := r.count(); n > 0 {
		s.Nodes = make([]NodeState, n)
		for i := range s.Nodes {
			n := &s.Nodes[i]
			r.node(n)
			r.bad = r.bad || !n.Known && len(n.Closes) == 0 && n.PrunedMS == 0
		}
	}
	if n := r.count(); n > 0 {
		s.Observed = make([]Observation, n)
		for i := range s.Observed {
			flags := r.byte()
			s.Observed[i] = Observation{Online: flags&1 != 0, Silent: flags&2 != 0, Node: r.string(), Key: r.string(), QueryStartMS: r.int(), QueryEndMS: r.int(), Source: r.string()}
		}
	}
	if r.bad || len(r.b) != 0 {
		return State{}, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
	}
	return s, nil
}

// reader consumes bytes; after a short read it is bad and yields zeros.
type reader struct {
	b    []byte
	text string // all bytes, of which strings are parts: one allocation for all of them
	bad  bool
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	if len(r.b) < 4 {
		r.bad, r.b = true, nil
		return 0
	}
	v := binary.LittleEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

func (r *reader) int() int64 { return int64(r.uvarint()) }

// count reads the number of elements that follow; each takes at least one byte.
func (r *reader) count() int {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

func (r *reader) string() string {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return ""
	}
	at := len(r.text) - len(r.b)
	r.b = r.b[n:]
	return r.text[at : at+int(n)]
}

func (r *reader) dialect() string {
	c := r.byte()
	if c == 0 {
		return r.string()
	}
	if int(c) >= len(dialectCodes) {
		r.bad, r.b = true, nil
		return ""
	}
	return dialectCodes[c]
}

func (r *reader) node(n *NodeState) {
	n.Node = r.string()
	flags := r.byte()
	n.Skewed = flags&flagSkewed != 0
	if n.Known = flags&flagKnown != 0; n.Known {
		r.conn(&n.Conn)
	}
	if n.Ended = flags&flagEnded != 0; n.Ended {
		r.close(&n.End)
	}
	if flags&flagTakeover != 0 {
		n.TakeoverMS = r.int()
	}
	if flags&flagUnordered != 0 {
		n.UnorderedMS = n.Conn.OpenedMS
	}
	if flags&flagMarks != 0 {
		c := r.count()
		r.bad = r.bad || c == 0
		n.Marks = make([]Mark, c)
		for i := range n.Marks {
			r.mark(&n.Marks[i])
		}
	}
	if flags&flagEarlier != 0 {
		c := r.count()
		r.bad = r.bad || c == 0
		n.Earlier = make([]Earlier, c)
		for i := range n.Earlier {
			r.earlier(&n.Earlier[i])
		}
	}
	if c := r.count(); c > 0 {
		n.Closes = make([]Close, c)
		for i := range n.Closes {
			r.close(&n.Closes[i])
		}
	}
	if flags&flagPruned != 0 {
		n.PrunedMS, n.PrunedOrder = r.int(), uint32(r.uvarint())
	}
}

func (r *reader) conn(c *Connection) {
	c.Dialect = r.dialect()
	c.OpenedMS, c.Order = r.int(), uint32(r.uvarint())
	flags := r.byte()
	c.Seen = flags&connSeen != 0
	if flags&connKeyIsTime != 0 {
		c.Key = strconv.FormatInt(c.OpenedMS, 10)
	} else {
		c.Key = r.string()
	}
	c.CleanStart = Opt[bool]{Value: flags&connClean != 0, Valid: flags&connCleanKnown != 0}
	if !c.Seen {
		return
	}
	c.ReceivedMS = c.OpenedMS + r.varint()
	c.Username, c.Peer, c.Transport = r.string(), r.string(), r.string()
	c.ProtocolVersion = r.byte()
	if flags&connKeepAlive != 0 {
		c.KeepAliveS = Some(uint32(r.uvarint()))
	}
	if flags&connExpiry != 0 {
		c.SessionExpiryS = Some(uint32(r.uvarint()))
	}
}

func (r *reader) mark(m *Mark) {
	m.MS, m.Order = r.int(), uint32(r.uvarint())
	switch what := r.byte(); {
	case what == markTakeover:
		m.Takeover = true
	case what < markTakeover:
		m.Over = transport(what)
		m.Peer = r.uint32()
	default:
		r.bad = true
	}
}

func (r *reader) earlier(x *Earlier) {
	x.OpenedMS, x.Order = r.int(), uint32(r.uvarint())
	flags := r.byte()
	x.Seen, x.Ended = flags&earlierSeen != 0, flags&earlierEnded != 0
	if flags&earlierKeyIsTime != 0 {
		x.Key = strconv.FormatInt(x.OpenedMS, 10)
	} else {
		x.Key = r.string()
	}
	if x.Seen {
		x.ReceivedMS = x.OpenedMS + r.varint()
	}
	if x.Ended {
		x.ClosedMS, x.CloseOrder, x.Reason = x.OpenedMS+r.varint(), uint32(r.uvarint()), Reason(r.byte())
	}
	if flags&earlierTakeover != 0 {
		x.TakeoverMS = r.int()
	}
}

func (r *reader) close(c *Close) {
	c.Dialect = r.dialect()
	c.ClosedMS, c.Order = r.int(), uint32(r.uvarint())
	c.Key, c.Reason, c.RawReason = r.string(), Reason(r.byte()), r.string()
	c.ReceivedMS = c.ClosedMS + r.varint()
}
