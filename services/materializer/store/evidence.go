package store

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Evidence is one entry of a client's log: a fact and what became of it, and the transition that it caused; or a transition that a change
// of nodes caused. The log stands beside the state, since it depends on arrival, and in it are the newest entries only.
type Evidence struct {
	Offset   int64         // of the fact's record in client-events; without a fact that of the transition's version
	Fact     presence.Fact // without cluster, client ID, ID and what describes the client; the kind is KindUnknown if there is no fact
	Outcome  presence.Outcome
	Restored bool // the state came from client-state and held the fact already, so that its outcome is not known

	Changed bool // there is a transition
	Change  Change
}

// Change is what the log keeps of a transition.
type Change struct {
	Status, Belief, Previous presence.Presence
	Reason                   presence.StatusReason
	Node                     int64 // node-events offset of the version; the other part is Evidence.Offset
}

// maxText is the most bytes of a text that the log keeps, so that a client's log is bounded in bytes too.
const maxText = 128

// A log is a sequence of entries, oldest first. Logs are concatenated and cut by Pebble as it merges what batches wrote, so that a
// batch writes its own entries and reads nothing.
//
//	log        = (uvarint(length) entry | 0)*                  0: facts that stood here are gone
//	entry      = head(1) uvarint(offset) [fact] [transition]
//	head       = kind | outcome << 3 | restored << 6 | transition << 7
//	fact       = has(1) varint(received) varint(received - time) str(node) str(dialect) [uvarint(order)] [varint(time - connected at)]
//	             [varint(time - disconnected at)] [str(key)] [reason(1) str(raw)] [online(1) uvarint(start) uvarint(end - start)]
//	             [str(source) uvarint(as of)]
//	transition = words(1) reason(1) uvarint(node + 1)          words as in a row
const (
	logRestored   = 1 << 6
	logTransition = 1 << 7
)

const (
	hasOrder = 1 << iota
	hasConnectedAt
	hasDisconnectedAt
	hasKey
	hasKeyIsTime // the connection key is the time of opening, in decimal
	hasReason
	hasQuery
	hasSource
)

// AppendEvidence appends an entry to a log.
func AppendEvidence(log []byte, e *Evidence) []byte {
	begin := len(log)
	head := byte(e.Fact.Kind)&7 | byte(e.Outcome)&7<<3
	if e.Restored {
		head |= logRestored
	}
	if e.Changed {
		head |= logTransition
	}
	log = append(log, 0, head) // most entries have a length of one byte
	log = binary.AppendUvarint(log, uint64(e.Offset))
	if e.Fact.Kind != presence.KindUnknown {
		log = appendFact(log, &e.Fact)
	}
	if e.Changed {
		c := &e.Change
		log = append(log, byte(c.Status)|byte(c.Belief)<<2|byte(c.Previous)<<4, byte(c.Reason))
		log = binary.AppendUvarint(log, uint64(c.Node+1))
	}
	size := len(log) - begin - 1
	if size < 0x80 {
		log[begin] = byte(size)
		return log
	}
	var prefix [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(prefix[:], uint64(size))
	return slices.Replace(log, begin, begin+1, prefix[:n]...)
}

func appendFact(log []byte, f *presence.Fact) []byte {
	at := len(log)
	var has byte
	log = append(log, 0)
	log = binary.AppendVarint(log, f.ReceivedMS)
	log = binary.AppendVarint(log, f.ReceivedMS-f.TimeMS)
	log = appendString(log, shorten(f.Node))
	log = appendString(log, shorten(f.Dialect))
	if f.Order != 0 {
		has |= hasOrder
		log = binary.AppendUvarint(log, uint64(f.Order))
	}
	if f.ConnectedAtMS != 0 {
		has |= hasConnectedAt
		log = binary.AppendVarint(log, f.TimeMS-f.ConnectedAtMS)
	}
	if f.DisconnectedAtMS != 0 {
		has |= hasDisconnectedAt
		log = binary.AppendVarint(log, f.TimeMS-f.DisconnectedAtMS)
	}
	if f.Connection != "" {
		var decimal [20]byte
		if string(strconv.AppendInt(decimal[:0], f.OpenedMS(), 10)) == f.Connection {
			has |= hasKeyIsTime
		} else {
			has |= hasKey
			log = appendString(log, shorten(f.Connection))
		}
	}
	if f.Reason != presence.ReasonUnknown || f.RawReason != "" {
		has |= hasReason
		log = appendString(append(log, byte(f.Reason)), shorten(f.RawReason))
	}
	if f.Kind == presence.Observed {
		has |= hasQuery
		log = append(log, onlineByte(f.Online))
		log = binary.AppendUvarint(log, uint64(f.QueryStartMS))
		log = binary.AppendVarint(log, f.QueryEndMS-f.QueryStartMS)
	}
	if f.Source != "" || f.AsOfMS != 0 {
		has |= hasSource
		log = binary.AppendUvarint(appendString(log, shorten(f.Source)), uint64(f.AsOfMS))
	}
	log[at] = has
	return log
}

func onlineByte(o presence.Opt[bool]) byte {
	switch {
	case !o.Valid:
		return 0
	case o.Value:
		return 2
	}
	return 1
}

// shorten cuts a text at maxText bytes, between characters.
func shorten(s string) string {
	if len(s) <= maxText {
		return s
	}
	const ellipsis = "…"
	n := maxText - len(ellipsis)
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return strings.ToValidUTF8(s[:n], "") + ellipsis
}

// decode reads one entry.
func (e *Evidence) decode(b []byte) error {
	*e = Evidence{}
	r := reader{b: b}
	head := r.byte()
	e.Fact.Kind, e.Outcome = presence.Kind(head&7), presence.Outcome(head>>3&7)
	e.Restored, e.Changed = head&logRestored != 0, head&logTransition != 0
	e.Offset = int64(r.uvarint())
	if e.Fact.Kind != presence.KindUnknown {
		r.fact(&e.Fact)
	}
	if e.Changed {
		words := r.byte()
		c := &e.Change
		c.Status, c.Belief, c.Previous = presence.Presence(words&3), presence.Presence(words>>2&3), presence.Presence(words>>4&3)
		c.Reason = presence.StatusReason(r.byte())
		c.Node = int64(r.uvarint()) - 1
	}
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%w: evidence of %d bytes", ErrCorrupt, len(b))
	}
	return nil
}

func (r *reader) string() string { return string(r.bytes(r.length())) }

func (r *reader) fact(f *presence.Fact) {
	has := r.byte()
	f.ReceivedMS = r.varint()
	f.TimeMS = f.ReceivedMS - r.varint()
	f.Node, f.Dialect = r.string(), r.string()
	if has&hasOrder != 0 {
		f.Order = uint32(r.uvarint())
	}
	if has&hasConnectedAt != 0 {
		f.ConnectedAtMS = f.TimeMS - r.varint()
	}
	if has&hasDisconnectedAt != 0 {
		f.DisconnectedAtMS = f.TimeMS - r.varint()
	}
	if has&hasKey != 0 {
		f.Connection = r.string()
	}
	if has&hasKeyIsTime != 0 {
		f.Connection = strconv.FormatInt(f.OpenedMS(), 10)
	}
	if has&hasReason != 0 {
		f.Reason, f.RawReason = presence.Reason(r.byte()), r.string()
	}
	if has&hasQuery != 0 {
		if o := r.byte(); o != 0 {
			f.Online = presence.Some(o == 2)
		}
		f.QueryStartMS = int64(r.uvarint())
		f.QueryEndMS = f.QueryStartMS + r.varint()
	}
	if has&hasSource != 0 {
		f.Source, f.AsOfMS = r.string(), int64(r.uvarint())
	}
}

// MarkCut appends the note that facts which belong here are not in the log.
func MarkCut(log []byte) []byte { return append(log, 0) }

// nextEvidence splits a log behind its first entry, which is empty if it is the note of a cut.
func nextEvidence(log []byte) (entry, rest []byte, err error) {
	r := reader{b: log}
	entry = r.bytes(r.length())
	if r.bad {
		return nil, nil, fmt.Errorf("%w: log of %d bytes", ErrCorrupt, len(log))
	}
	return entry, r.b, nil
}

func countEvidence(log []byte) (n int, err error) {
	for len(log) > 0 {
		var entry []byte
		if entry, log, err = nextEvidence(log); err != nil {
			return 0, err
		}
		if len(entry) > 0 {
			n++
		}
	}
	return n, nil
}

// cutEvidence drops the oldest entries of a log, in place, so that at most limit are left, and notes it.
func cutEvidence(log []byte, limit int) ([]byte, error) {
	n, err := countEvidence(log)
	if err != nil || n <= limit {
		return log, err
	}
	rest := log
	for drop := n - limit; drop > 0 || len(rest) > 0 && rest[0] == 0; {
		var entry []byte
		if entry, rest, err = nextEvidence(rest); err != nil {
			return nil, err
		}
		if len(entry) > 0 {
			drop--
		}
	}
	at := len(log) - len(rest) - 1 // what was dropped has a byte at least
	log[at] = 0
	return log[at:], nil
}

// evidenceMerge joins the logs that batches wrote for a client, and keeps the newest entries. Pebble hands it operands in one direction only.
type evidenceMerge struct {
	limit int
	log   []byte   // joined
	older [][]byte // to stand before log, newest first
	count int      // entries in log and older
	cut   bool     // an operand was left out
}

// MergeNewer implements pebble.ValueMerger.
func (m *evidenceMerge) MergeNewer(value []byte) error {
	n, err := countEvidence(value)
	if err != nil {
		return err
	}
	m.log = append(m.log, value...)
	// A client with a fact in each of very many batches must not gather them all in memory.
	if m.count += n; m.count > 4*m.limit {
		if m.log, err = cutEvidence(m.log, m.limit); err != nil {
			return err
		}
		m.count = m.limit
	}
	return nil
}

// MergeOlder implements pebble.ValueMerger.
func (m *evidenceMerge) MergeOlder(value []byte) error {
	if m.count >= m.limit {
		m.cut = true
		return nil
	}
	n, err := countEvidence(value)
	if err != nil {
		return err
	}
	m.count += n
	m.older = append(m.older, slices.Clone(value))
	return nil
}

// Finish implements pebble.ValueMerger.
func (m *evidenceMerge) Finish(bool) ([]byte, io.Closer, error) {
	log := m.log
	if m.cut || len(m.older) > 0 {
		log = nil
		if m.cut {
			log = MarkCut(log)
		}
		for _, part := range slices.Backward(m.older) {
			log = append(log, part...)
		}
		log = append(log, m.log...)
	}
	log, err := cutEvidence(log, m.limit)
	return log, nil, err
}

// AddEvidence appends entries to a client's log.
func (b *Batch) AddEvidence(client, log []byte) {
	b.key = appendClient(b.key[:0], kindEvidence, b.partition, client)
	if b.load != nil && b.load.first {
		// What a merge would make of it; the caller's bytes stay as they are.
		b.value = append(b.value[:0], log...)
		log, err := cutEvidence(b.value, b.store.evidence)
		b.fail(err)
		b.put(b.key, log)
		return
	}
	b.merge(b.key, log)
}

// SetEvidence replaces a client's log; an empty one is removed.
func (b *Batch) SetEvidence(client, log []byte) {
	b.replace(appendClient(b.key[:0], kindEvidence, b.partition, client), log)
}

// PutLogged notes from which offset on every fact of the partition is in the clients' logs; -1 if none is logged.
func (b *Batch) PutLogged(from int64) {
	b.value = binary.AppendUvarint(b.value[:0], uint64(from+1))
	b.set(appendPrefix(b.key[:0], kindLogged, b.partition), b.value)
}

// Logged returns the offset that PutLogged noted, -1 if there is none.
func (s *Store) Logged(partition int32) (int64, error) {
	v, found, err := s.uvarint(appendPrefix(nil, kindLogged, partition), "the log's begin", partition)
	if err != nil || !found {
		return -1, err
	}
	return int64(v) - 1, nil
}

// Evidence returns a client's log, oldest entries first, and whether facts are missing: before the last complete entries, if cut is
// set, and not after. The client is the key of its records.
func (s *Store) Evidence(partition int32, client []byte) (entries []Evidence, complete int, cut bool, err error) {
	log, _, err := s.appendValue(nil, appendClient(nil, kindEvidence, partition, client), partition)
	if err != nil {
		return nil, 0, false, err
	}
	return decodeEvidence(log)
}

// decodeEvidence reads a client's log.
func decodeEvidence(log []byte) (entries []Evidence, complete int, cut bool, err error) {
	for err == nil && len(log) > 0 {
		var entry []byte
		if entry, log, err = nextEvidence(log); err != nil {
			break
		}
		if len(entry) == 0 {
			complete, cut = 0, true
			continue
		}
		entries = append(entries, Evidence{})
		complete++
		err = entries[len(entries)-1].decode(entry)
	}
	return entries, complete, cut, err
}
