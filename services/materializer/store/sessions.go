package store

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/cockroachdb/pebble/v2"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Session is a connection of a client that is not in its state any more. Node, key, opening time and order name it; two that have them in
// common are sightings of one connection.
type Session struct {
	Node string
	// Conn is what is known of it; unless it was seen, what names it. ReceivedMS is not kept.
	Conn   presence.Connection
	Stated bool  // the broker said that it ended, at EndMS
	EndMS  int64 // otherwise it ended at that time at the latest; 0: that is not known

	Reason    presence.Reason       // Stated
	RawReason string                // Stated
	Why       presence.StatusReason // not Stated: what is known instead
}

// Ending is a Closed that does not tell when its connection opened, and that concerns none that the state has: whose end it is shows when the
// log is read.
type Ending struct {
	Node      string
	Key       string // empty if it named no connection
	Dialect   string
	ClosedMS  int64
	Order     uint32
	Reason    presence.Reason
	RawReason string
}

// A client's history is a set of sessions and endings, as a sequence in any order. Histories are joined by Pebble as it merges what batches
// wrote: sightings of one connection become one, and the newest by their opening are kept. The join is commutative, associative and
// idempotent, so that neither the order in which facts come nor a fact that is folded twice makes a difference.
//
//	history  = (uvarint(length) entry | 0)*                 0: sessions older than those here are gone
//	entry    = session | ending
//	session  = head(1) uvarint(opened) uvarint(order) str(node) [str(key)] str(dialect) end [about]
//	end      = reason(1) varint(ended - opened) str(raw)    stated
//	         | why(1) [varint(ended - opened)]              not stated
//	about    = has(1) protocol(1) str(username) str(peer) str(transport) [uvarint(keepalive)] [uvarint(expiry)]
//	ending   = head(1) uvarint(closed) uvarint(order) str(node) [str(key)] str(dialect) reason(1) str(raw)
const (
	headEnding    = 1 << iota
	headSeen      // the Opened was seen: about follows
	headStated    // Session.Stated
	headBounded   // not stated: EndMS follows
	headKeyIsTime // the connection key is the opening time, in decimal
)

const (
	aboutKeepAlive = 1 << iota
	aboutExpiry
	aboutCleanKnown
	aboutClean
)

// AppendSession appends a session to a history. Long texts are cut.
func AppendSession(log []byte, s *Session) []byte {
	var head byte
	if s.Conn.Seen {
		head |= headSeen
	}
	switch {
	case s.Stated:
		head |= headStated
	case s.EndMS != 0:
		head |= headBounded
	}
	log, begin := appendHead(log, head, s.Conn.OpenedMS, s.Conn.Order, s.Node, s.Conn.Key, s.Conn.Dialect)
	switch {
	case s.Stated:
		log = binary.AppendVarint(append(log, byte(s.Reason)), s.EndMS-s.Conn.OpenedMS)
		log = appendString(log, shorten(s.RawReason))
	case s.EndMS != 0:
		log = binary.AppendVarint(append(log, byte(s.Why)), s.EndMS-s.Conn.OpenedMS)
	default:
		log = append(log, byte(s.Why))
	}
	if s.Conn.Seen {
		log = appendAbout(log, &s.Conn)
	}
	return closeEntry(log, begin)
}

// AppendEnding appends an ending to a history. Long texts are cut.
func AppendEnding(log []byte, e *Ending) []byte {
	log, begin := appendHead(log, headEnding, e.ClosedMS, e.Order, e.Node, e.Key, e.Dialect)
	log = appendString(append(log, byte(e.Reason)), shorten(e.RawReason))
	return closeEntry(log, begin)
}

// appendHead begins an entry, whose length is filled in by closeEntry.
func appendHead(log []byte, head byte, ms int64, order uint32, node, key, dialect string) (_ []byte, begin int) {
	begin = len(log)
	var decimal [20]byte
	if string(strconv.AppendInt(decimal[:0], ms, 10)) == key {
		head |= headKeyIsTime
	}
	log = append(log, 0, head)
	log = binary.AppendUvarint(binary.AppendUvarint(log, uint64(ms)), uint64(order))
	log = appendString(log, shorten(node))
	if head&headKeyIsTime == 0 {
		log = appendString(log, shorten(key))
	}
	return appendString(log, shorten(dialect)), begin
}

// closeEntry puts an entry's length before it: most take a byte.
func closeEntry(log []byte, begin int) []byte {
	size := len(log) - begin - 1
	if size < 0x80 {
		log[begin] = byte(size)
		return log
	}
	var prefix [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(prefix[:], uint64(size))
	return slices.Replace(log, begin, begin+1, prefix[:n]...)
}

func appendAbout(log []byte, c *presence.Connection) []byte {
	var has byte
	for _, f := range []struct {
		on  bool
		bit byte
	}{{c.KeepAliveS.Valid, aboutKeepAlive}, {c.SessionExpiryS.Valid, aboutExpiry}, {c.CleanStart.Valid, aboutCleanKnown}, {c.CleanStart.Value, aboutClean}} {
		if f.on {
			has |= f.bit
		}
	}
	log = append(log, has, c.ProtocolVersion)
	log = appendString(appendString(appendString(log, shorten(c.Username)), shorten(c.Peer)), shorten(c.Transport))
	if c.KeepAliveS.Valid {
		log = binary.AppendUvarint(log, uint64(c.KeepAliveS.Value))
	}
	if c.SessionExpiryS.Valid {
		log = binary.AppendUvarint(log, uint64(c.SessionExpiryS.Value))
	}
	return log
}

// Names reports whether a session is a sighting of the given connection.
func (s *Session) Names(node string, c *presence.Connection) bool {
	return s.Conn.OpenedMS == c.OpenedMS && s.Conn.Order == c.Order && s.OfKey(c.Key) && s.OfNode(node)
}

// OfNode reports whether a session is one of a node.
func (s *Session) OfNode(node string) bool { return shorten(s.Node) == shorten(node) }

// OfKey reports whether a session has a connection key.
func (s *Session) OfKey(key string) bool { return shorten(s.Conn.Key) == shorten(key) }

// item is an entry of a history, as far as entries are compared by it.
type item struct {
	head      byte
	ms        int64
	order     uint32
	node, key []byte
	body      []byte // the whole entry
}

// parse reads what an entry is compared by. What remains of the reader is what follows the key.
func (it *item) parse(body []byte) (reader, error) {
	r := reader{b: body}
	*it = item{body: body, head: r.byte(), ms: int64(r.uvarint()), order: uint32(r.uvarint())}
	it.node = r.bytes(r.length())
	if it.head&headKeyIsTime == 0 {
		it.key = r.bytes(r.length())
	}
	if r.bad {
		return r, fmt.Errorf("%w: session of %d bytes", ErrCorrupt, len(body))
	}
	return r, nil
}

// compare orders endings before sessions, and each by age; zero for two that are one.
func (it *item) compare(o *item) int {
	if c := cmp.Or(-cmp.Compare(it.head&headEnding, o.head&headEnding), cmp.Compare(it.ms, o.ms), cmp.Compare(it.order, o.order)); c != 0 {
		return c
	}
	return cmp.Or(bytes.Compare(it.node, o.node), cmp.Compare(it.head&headKeyIsTime, o.head&headKeyIsTime), bytes.Compare(it.key, o.key))
}

// connectionKey returns the key of an entry.
func (it *item) connectionKey() string {
	if it.head&headKeyIsTime != 0 {
		return strconv.FormatInt(it.ms, 10)
	}
	return string(it.key)
}

func (it *item) session(r reader) (Session, error) {
	s := Session{Node: string(it.node), Conn: presence.Connection{Key: it.connectionKey(), OpenedMS: it.ms, Order: it.order, Seen: it.head&headSeen != 0}}
	s.Conn.Dialect = r.string()
	switch {
	case it.head&headStated != 0:
		s.Stated, s.Reason = true, presence.Reason(r.byte())
		s.EndMS = it.ms + r.varint()
		s.RawReason = r.string()
	case it.head&headBounded != 0:
		s.Why = presence.StatusReason(r.byte())
		s.EndMS = it.ms + r.varint()
	default:
		s.Why = presence.StatusReason(r.byte())
	}
	if c := &s.Conn; c.Seen {
		has := r.byte()
		c.ProtocolVersion = r.byte()
		c.Username, c.Peer, c.Transport = r.string(), r.string(), r.string()
		if has&aboutKeepAlive != 0 {
			c.KeepAliveS = presence.Some(uint32(r.uvarint()))
		}
		if has&aboutExpiry != 0 {
			c.SessionExpiryS = presence.Some(uint32(r.uvarint()))
		}
		c.CleanStart = presence.Opt[bool]{Value: has&aboutClean != 0, Valid: has&aboutCleanKnown != 0}
	}
	if r.bad || len(r.b) != 0 {
		return s, fmt.Errorf("%w: session of %d bytes", ErrCorrupt, len(it.body))
	}
	return s, nil
}

func (it *item) ending(r reader) (Ending, error) {
	e := Ending{Node: string(it.node), Key: it.connectionKey(), ClosedMS: it.ms, Order: it.order}
	e.Dialect = r.string()
	e.Reason, e.RawReason = presence.Reason(r.byte()), r.string()
	if r.bad || len(r.b) != 0 {
		return e, fmt.Errorf("%w: ending of %d bytes", ErrCorrupt, len(it.body))
	}
	return e, nil
}

// Join merges two sightings of one connection. Each part is the least of the two by some order, so that the join is a semilattice's.
func (s *Session) Join(o *Session) {
	if o.endsBefore(s) {
		s.Stated, s.EndMS, s.Reason, s.RawReason, s.Why = o.Stated, o.EndMS, o.Reason, o.RawReason, o.Why
	}
	switch {
	case s.Conn.Seen != o.Conn.Seen:
		if o.Conn.Seen {
			s.Conn = o.Conn
		}
	case cmp.Or(bytes.Compare(appendAbout(nil, &o.Conn), appendAbout(nil, &s.Conn)), cmp.Compare(o.Conn.Dialect, s.Conn.Dialect)) < 0:
		s.Conn = o.Conn
	}
}

// endsBefore orders ends: one that is stated comes before a bound, and that before none; of two of a sort the earlier comes first.
func (s *Session) endsBefore(o *Session) bool {
	rank := func(s *Session) int {
		switch {
		case s.Stated:
			return 0
		case s.EndMS != 0:
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(s), rank(o)), cmp.Compare(s.EndMS, o.EndMS), cmp.Compare(s.Reason, o.Reason), cmp.Compare(o.RawReason, s.RawReason),
		cmp.Compare(s.Why, o.Why)) < 0
}

// parseSessions splits a history.
func parseSessions(log []byte) (items []item, cut bool, err error) {
	for len(log) > 0 {
		var body []byte
		if body, log, err = nextEvidence(log); err != nil {
			return nil, false, err
		}
		if len(body) == 0 {
			cut = true
			continue
		}
		var it item
		if _, err = it.parse(body); err != nil {
			return nil, false, err
		}
		items = append(items, it)
	}
	return items, cut, nil
}

// JoinSessions brings a history into its canonical form: ascending, each connection once, and at most limit sessions and as many endings,
// the newest. If sessions had to go, it says so. It returns new bytes.
func JoinSessions(log []byte, limit int) ([]byte, error) {
	items, cut, err := parseSessions(log)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Or(a.compare(&b), bytes.Compare(a.body, b.body)) })
	kept := items[:0]
	for _, it := range items {
		if n := len(kept); n > 0 && kept[n-1].compare(&it) == 0 {
			if it.head&headEnding != 0 || bytes.Equal(kept[n-1].body, it.body) {
				continue // of endings that are alike the first by their bytes is kept
			}
			if kept[n-1], err = joinItems(&kept[n-1], &it); err != nil {
				return nil, err
			}
			continue
		}
		kept = append(kept, it)
	}
	sessions := slices.IndexFunc(kept, func(it item) bool { return it.head&headEnding == 0 })
	if sessions < 0 {
		sessions = len(kept)
	}
	endings, rest := kept[:sessions], kept[sessions:]
	endings = endings[max(0, len(endings)-limit):]
	if len(rest) > limit {
		rest, cut = rest[len(rest)-limit:], true
	}
	out := make([]byte, 0, len(log))
	if cut {
		out = MarkCut(out)
	}
	for _, part := range [][]item{endings, rest} {
		for i := range part {
			out = append(binary.AppendUvarint(out, uint64(len(part[i].body))), part[i].body...)
		}
	}
	return out, nil
}

func joinItems(a, b *item) (joined item, err error) {
	var s [2]Session
	for i, it := range []*item{a, b} {
		r, err := it.parse(it.body)
		if err != nil {
			return item{}, err
		}
		if s[i], err = it.session(r); err != nil {
			return item{}, err
		}
	}
	s[0].Join(&s[1])
	body, _, err := nextEvidence(AppendSession(nil, &s[0]))
	if err != nil {
		return item{}, err
	}
	_, err = joined.parse(body)
	return joined, err
}

// sessionsMerge is one merge of histories, in which order makes no difference.
type sessionsMerge struct {
	limit int
	log   []byte
	size  int // of log when it was last joined
}

// MergeNewer implements pebble.ValueMerger.
func (m *sessionsMerge) MergeNewer(value []byte) (err error) {
	m.log = append(m.log, value...)
	// A client with sessions in each of very many batches must not gather them all in memory.
	if len(m.log) > 4*m.size+gatherBytes {
		m.log, err = JoinSessions(m.log, m.limit)
		m.size = len(m.log)
	}
	return err
}

// gatherBytes is about how many bytes of operands are gathered before they are joined.
const gatherBytes = 8 << 10

// MergeOlder implements pebble.ValueMerger.
func (m *sessionsMerge) MergeOlder(value []byte) error { return m.MergeNewer(value) }

// Finish implements pebble.ValueMerger.
func (m *sessionsMerge) Finish(bool) ([]byte, io.Closer, error) {
	log, err := JoinSessions(m.log, m.limit)
	return log, nil, err
}

// AddSessions joins entries to a client's history.
func (b *Batch) AddSessions(client, log []byte) {
	b.key = appendClient(b.key[:0], kindSessions, b.partition, client)
	if b.load != nil && b.load.first {
		log, err := JoinSessions(log, b.store.sessions) // as a merge would
		b.fail(err)
		b.put(b.key, log)
		return
	}
	b.merge(b.key, log)
}

// SetSessions replaces a client's history, in canonical form; an empty one is removed.
func (b *Batch) SetSessions(client, log []byte) {
	b.replace(appendClient(b.key[:0], kindSessions, b.partition, client), log)
}

// PutHistory notes since when, by received time, every session of the partition is kept; see [Store.History].
func (b *Batch) PutHistory(sinceMS int64) {
	b.value = binary.AppendUvarint(b.value[:0], uint64(sinceMS+2))
	b.set(appendPrefix(b.key[:0], kindHistory, b.partition), b.value)
}

// Special times of [Store.History].
const (
	HistoryAll   int64 = 0  // since the first fact there ever was
	HistoryNext  int64 = -1 // since the next fact that will be folded
	NoHistory    int64 = -2 // none is kept
	historyUnset       = NoHistory
)

// History returns what PutHistory noted, NoHistory if there is nothing.
func (s *Store) History(partition int32) (sinceMS int64, err error) {
	v, found, err := s.uvarint(appendPrefix(nil, kindHistory, partition), "the history's begin", partition)
	if err != nil || !found {
		return historyUnset, err
	}
	return int64(v) - 2, nil
}

// Sessions returns a client's history, oldest first, and whether older sessions were dropped. The client is the key of its records.
func (s *Store) Sessions(partition int32, client []byte) (sessions []Session, endings []Ending, cut bool, err error) {
	log, err := s.AppendSessions(nil, partition, client)
	if err != nil {
		return nil, nil, false, err
	}
	return DecodeSessions(log)
}

// AppendSessions appends a client's history to dst. The client is the key of its records.
func (s *Store) AppendSessions(dst []byte, partition int32, client []byte) ([]byte, error) {
	dst, _, err := s.appendValue(dst, appendClient(nil, kindSessions, partition, client), partition)
	return dst, err
}

// ForgetSessions drops from a history the sessions that opened, and the endings that came, up to a time; and the note that older ones are gone.
// It returns new bytes.
func ForgetSessions(log []byte, untilMS int64) ([]byte, error) {
	items, _, err := parseSessions(log)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 0, len(log))
	for i := range items {
		if items[i].ms > untilMS {
			out = append(binary.AppendUvarint(out, uint64(len(items[i].body))), items[i].body...)
		}
	}
	return out, nil
}

// DecodeSessions reads a history in canonical form.
func DecodeSessions(log []byte) (sessions []Session, endings []Ending, cut bool, err error) {
	items, cut, err := parseSessions(log)
	for i := range items {
		r, err := items[i].parse(items[i].body)
		if err != nil {
			return nil, nil, false, err
		}
		if items[i].head&headEnding != 0 {
			e, err := items[i].ending(r)
			if err != nil {
				return nil, nil, false, err
			}
			endings = append(endings, e)
			continue
		}
		x, err := items[i].session(r)
		if err != nil {
			return nil, nil, false, err
		}
		sessions = append(sessions, x)
	}
	return sessions, endings, cut, err
}

var _ pebble.ValueMerger = (*sessionsMerge)(nil)
