package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Every key begins with a byte that says its kind. Numbers in keys are big endian, so that keys sort as the numbers do; a client is the
// key of its Kafka records, so that clients of one cluster stand together.
//
//	schema     0x01                                             value: Identity
//	meta       0x02 | partition (2)                             value: Meta
//	outbox     0x03 | partition (2) | sequence (8)              value: Chunk
//	dirty      0x04 | partition (2) | cluster "/" client ID     empty: the state changed after the client's latest record
//	changelog  0x05 | partition (2)                             uvarint: client-state records below this offset are in the rows
//	logged     0x06 | partition (2)                             uvarint: 1 + the offset from which on all facts are in the logs; 0: none
//	indexed    0x07 | partition (2)                             uvarint: version of the partition's indexes; absent: they are not complete
//	history    0x08 | partition (2)                             uvarint: 2 + the received time since which all sessions are kept; absent: none are
//	marker     0x09 | partition (2) | cluster "/" client ID     empty: the row says only that the client was forgotten
//	published  0x0a | partition (2)                             ID (16) of the client-state topic that has all rows but the dirty ones
//	client     0x10 | partition (2) | cluster "/" client ID     value: Row
//	evidence   0x11 | partition (2) | cluster "/" client ID     log of Evidence; there if the row is, and goes with it
//	sessions   0x20 | partition (2) | cluster "/" client ID     history of Sessions and Endings; goes with the row
//
//	places     0x40 | partition (2) | cluster "/" status (1) text(node) client ID           empty: index by status and node
//	since      0x41 | partition (2) | cluster "/" status (1) since (8) client ID            empty: index by the time that the status began
//	usernames  0x42 | partition (2) | cluster "/" text(username) client ID                  empty: index by username, without the empty one
//	place n    0x70 | partition (2) | cluster "/" status (1) text(node)                     uvarint: entries of the index with that beginning
//	username n 0x71 | partition (2) | cluster "/" text(username)                            uvarint: the same
//
// Reserved: 0x20 to 0x3f for sessions, 0x43 to 0x6f for more indexes, 0x72 to 0x7f for more counters.
const (
	kindSchema    byte = 0x01
	kindMeta      byte = 0x02
	kindOutbox    byte = 0x03
	kindDirty     byte = 0x04
	kindChangelog byte = 0x05
	kindLogged    byte = 0x06
	kindIndexed   byte = 0x07
	kindHistory   byte = 0x08
	kindMarker    byte = 0x09
	kindPublished byte = 0x0a
	kindClient    byte = 0x10
	kindEvidence  byte = 0x11
	kindSessions  byte = 0x20

	kindPlace         byte = 0x40
	kindSince         byte = 0x41
	kindUsername      byte = 0x42
	kindPlaceCount    byte = 0x70
	kindUsernameCount byte = 0x71
)

// schemaVersion is the version of all layouts but those of indexes and counters. A store of another version is refused.
const schemaVersion = 5

// indexVersion is the version of indexes and counters: of their layouts, and of what a row has in them. Those of another version are built
// anew from the rows.
const indexVersion = 1

// prefixSize is the length of kind and partition.
const prefixSize = 3

func appendPrefix(dst []byte, kind byte, partition int32) []byte {
	return binary.BigEndian.AppendUint16(append(dst, kind), uint16(partition))
}

// appendPrefixEnd appends the first key after all those of the partition's kind.
func appendPrefixEnd(dst []byte, kind byte, partition int32) []byte {
	if partition == maxPartition {
		return append(dst, kind+1)
	}
	return appendPrefix(dst, kind, partition+1)
}

// maxPartition is the largest partition that a key can hold.
const maxPartition = 1<<16 - 1

func appendClient(dst []byte, kind byte, partition int32, client []byte) []byte {
	return append(appendPrefix(dst, kind, partition), client...)
}

func appendOutbox(dst []byte, partition int32, seq uint64) []byte {
	return binary.BigEndian.AppendUint64(appendPrefix(dst, kindOutbox, partition), seq)
}

func outboxSeq(key []byte) (uint64, error) {
	if len(key) != prefixSize+8 {
		return 0, fmt.Errorf("%w: outbox key of %d bytes", ErrCorrupt, len(key))
	}
	return binary.BigEndian.Uint64(key[prefixSize:]), nil
}

// appendText appends a text that more follows, so that keys sort as the texts do: a zero byte of it is followed by textZero, its end is a zero
// byte and textEnd.
func appendText(dst []byte, text string) []byte {
	for {
		i := strings.IndexByte(text, 0)
		if i < 0 {
			return append(append(dst, text...), 0, textEnd)
		}
		dst = append(append(dst, text[:i]...), 0, textZero)
		text = text[i+1:]
	}
}

const (
	textEnd  = 0x01
	textZero = 0xff
)

// textSize is the length of what appendText wrote at the beginning of b, -1 if that is not there.
func textSize(b []byte) int {
	for i := 0; ; i += 2 {
		n := bytes.IndexByte(b[i:], 0)
		if i += n; n < 0 || i+1 == len(b) {
			return -1
		}
		switch b[i+1] {
		case textEnd:
			return i + 2
		case textZero:
		default:
			return -1
		}
	}
}

// text decodes what appendText wrote, of the size that textSize told.
func text(b []byte) string {
	return string(bytes.ReplaceAll(b[:len(b)-2], []byte{0, textZero}, []byte{0}))
}

// appendPlace appends the counter's key, or the beginning of the index's; cluster is the one of a client with its "/".
func appendPlace(dst []byte, kind byte, partition int32, cluster []byte, s Standing, node string) []byte {
	return appendText(append(appendClient(dst, kind, partition, cluster), byte(s)), node)
}

// appendSince appends the beginning of the index's key: the sign is turned around, so that negative times come first.
func appendSince(dst []byte, partition int32, cluster []byte, s Standing, ms int64) []byte {
	return binary.BigEndian.AppendUint64(append(appendClient(dst, kindSince, partition, cluster), byte(s)), uint64(ms)^1<<63)
}

// appendUsername appends the counter's key, or the beginning of the index's.
func appendUsername(dst []byte, kind byte, partition int32, cluster []byte, username string) []byte {
	return appendText(appendClient(dst, kind, partition, cluster), username)
}

// successor returns the first key after all that begin with the given one, which has another byte than 0xff.
func successor(key []byte) []byte {
	n := len(key)
	for key[n-1] == 0xff {
		n--
	}
	next := bytes.Clone(key[:n])
	next[n-1]++
	return next
}

// cutCluster splits a client, or what follows the partition in the key of an index, behind the "/" of the cluster.
func cutCluster(b []byte) (cluster, rest []byte) {
	i := bytes.IndexByte(b, '/') + 1
	return b[:i], b[i:]
}

// kindBegin is the beginning of a cluster's keys of a kind.
func kindBegin(partition int32, kind byte, cluster string) []byte {
	return append(append(appendPrefix(nil, kind, partition), cluster...), '/')
}

// kindBounds returns the range of the keys of a kind, of one cluster, or of all if it is empty.
func kindBounds(partition int32, kind byte, cluster string) (lower, upper []byte) {
	if cluster == "" {
		return appendPrefix(nil, kind, partition), appendPrefixEnd(nil, kind, partition)
	}
	lower = kindBegin(partition, kind, cluster)
	return lower, successor(lower)
}

// ErrCorrupt is returned for bytes that no version of this package wrote.
var ErrCorrupt = errors.New("corrupt store")

// ErrIdentity is returned by Bind for a store of another Kafka cluster or topic, ErrSchema for one that another version of this program has written.
var (
	ErrIdentity = errors.New("store belongs elsewhere")
	ErrSchema   = errors.New("store is of another version of this program")
)

// Identity names the log that a store was folded from.
type Identity struct {
	KafkaCluster string   // Kafka's cluster ID
	TopicID      [16]byte // of client-events: a topic that was deleted and created again is another one
	NodeTopicID  [16]byte // of node-events, by whose offsets versions go
	Partitions   int32    // of client-events
}

// String names all three, for a person who compares two of them.
func (i Identity) String() string {
	return fmt.Sprintf("kafka cluster %q, client-events topic ID %x with %d partitions, node-events topic ID %x", i.KafkaCluster, i.TopicID, i.Partitions, i.NodeTopicID)
}

// The schema record is uvarint(schemaVersion) str(kafka cluster) topic ID (16) node topic ID (16) uvarint(partitions).
func (i Identity) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, schemaVersion)
	dst = append(append(appendString(dst, i.KafkaCluster), i.TopicID[:]...), i.NodeTopicID[:]...)
	return binary.AppendUvarint(dst, uint64(i.Partitions))
}

func decodeIdentity(b []byte) (Identity, error) {
	r := reader{b: b}
	if v := r.uvarint(); r.bad || v != schemaVersion {
		return Identity{}, fmt.Errorf("%w: its schema has version %d, this program reads %d: run the version that wrote it, or empty data-dir, which is then filled from Kafka: "+
			"one replica after the other, so that queries are answered meanwhile", ErrSchema, v, schemaVersion)
	}
	var i Identity
	i.KafkaCluster = string(r.bytes(r.length()))
	copy(i.TopicID[:], r.bytes(len(i.TopicID)))
	copy(i.NodeTopicID[:], r.bytes(len(i.NodeTopicID)))
	i.Partitions = int32(r.uvarint())
	if r.bad || len(r.b) != 0 {
		return Identity{}, fmt.Errorf("%w: schema record of %d bytes", ErrCorrupt, len(b))
	}
	return i, nil
}

// Meta is what is kept of a partition. The zero value is that of a partition of which nothing was folded, apart from SweptNode.
type Meta struct {
	Next       int64 // next client-events offset to fold
	AppliedMS  int64 // largest received time of a folded fact
	SweptNode  int64 // every row shows the node facts up to this node-events offset; -1 for none
	Checkpoint int64 // offset of the latest checkpoint put into the outbox
	ClockMS    int64 // by which facts and clients expire: see the materializer's tick
	AheadMS    int64 // received time that the clock has not followed yet; 0 if there is none

	AllowanceMS int64 // with which the statuses in the rows were computed
}

// The value is format(1) uvarint(next) uvarint(applied) uvarint(swept + 1) uvarint(checkpoint) uvarint(clock) uvarint(ahead)
// uvarint(allowance). Earlier formats had less.
const metaFormat = 3

// metaFields is how many numbers each format has.
var metaFields = [metaFormat + 1]int{1: 4, 2: 6, 3: 7}

func (m *Meta) fields() []*int64 {
	return []*int64{&m.Next, &m.AppliedMS, &m.SweptNode, &m.Checkpoint, &m.ClockMS, &m.AheadMS, &m.AllowanceMS}
}

func (m *Meta) append(dst []byte) []byte {
	swept := *m
	swept.SweptNode++
	dst = append(dst, metaFormat)
	for _, v := range swept.fields() {
		dst = binary.AppendUvarint(dst, uint64(*v))
	}
	return dst
}

func (m *Meta) decode(b []byte) error {
	r := reader{b: b}
	f := r.byte()
	if f == 0 || f > metaFormat {
		return fmt.Errorf("%w: meta format %d, want %d", ErrCorrupt, f, metaFormat)
	}
	for _, v := range m.fields()[:metaFields[f]] {
		*v = int64(r.uvarint())
	}
	m.SweptNode--
	if r.bad || len(r.b) != 0 {
		return fmt.Errorf("%w: meta of %d bytes", ErrCorrupt, len(b))
	}
	return nil
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// reader consumes bytes; after a short read it is bad and yields zeros.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) byte() byte {
	b := r.bytes(1)
	if r.bad {
		return 0
	}
	return b[0]
}

func (r *reader) bytes(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
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

// length reads the length of bytes that follow.
func (r *reader) length() int {
	n := r.uvarint()
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}
