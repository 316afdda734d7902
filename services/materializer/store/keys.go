package store

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Every key begins with a byte that says its kind. Numbers in keys are big endian, so that keys sort as the numbers do; a client is the
// key of its Kafka records, so that clients of one cluster stand together.
//
//	schema     0x01                                             value: Identity
//	meta       0x02 | partition (2)                             value: Meta
//	outbox     0x03 | partition (2) | sequence (8)              value: Message
//	dirty      0x04 | partition (2) | cluster "/" client ID     empty: the state changed after the client's latest record
//	changelog  0x05 | partition (2)                             uvarint: client-state records below this offset are in the rows
//	logged     0x06 | partition (2)                             uvarint: 1 + the offset from which on all facts are in the logs; 0: none
//	client     0x10 | partition (2) | cluster "/" client ID     value: Row
//	evidence   0x11 | partition (2) | cluster "/" client ID     log of Evidence; there if the row is, and goes with it
//
// Reserved: 0x20 to 0x3f for sessions, 0x40 to 0x6f for secondary indexes, 0x70 to 0x7f for counters.
const (
	kindSchema    byte = 0x01
	kindMeta      byte = 0x02
	kindOutbox    byte = 0x03
	kindDirty     byte = 0x04
	kindChangelog byte = 0x05
	kindLogged    byte = 0x06
	kindClient    byte = 0x10
	kindEvidence  byte = 0x11
)

// schemaVersion is the version of all layouts. A store of another version is refused.
const schemaVersion = 2

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

// clusterBounds returns the range of a cluster's clients: "0" is the byte after "/".
func clusterBounds(partition int32, cluster string) (lower, upper []byte) {
	lower = append(append(appendPrefix(nil, kindClient, partition), cluster...), '/')
	upper = append(append(appendPrefix(nil, kindClient, partition), cluster...), '/'+1)
	return lower, upper
}

// ErrCorrupt is returned for bytes that no version of this package wrote.
var ErrCorrupt = errors.New("corrupt store")

// ErrIdentity is returned by Bind for a store of another Kafka cluster or topic, or of another schema.
var ErrIdentity = errors.New("store belongs elsewhere")

// Identity names the log that a store was folded from.
type Identity struct {
	KafkaCluster string   // Kafka's cluster ID
	TopicID      [16]byte // of client-events: a topic that was deleted and created again is another one
	Partitions   int32    // of client-events
}

// String names all three, for a person who compares two of them.
func (i Identity) String() string {
	return fmt.Sprintf("kafka cluster %q, client-events topic ID %x with %d partitions", i.KafkaCluster, i.TopicID, i.Partitions)
}

// The schema record is uvarint(schemaVersion) str(kafka cluster) topic ID (16) uvarint(partitions).
func (i Identity) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, schemaVersion)
	dst = append(appendString(dst, i.KafkaCluster), i.TopicID[:]...)
	return binary.AppendUvarint(dst, uint64(i.Partitions))
}

func decodeIdentity(b []byte) (Identity, error) {
	r := reader{b: b}
	if v := r.uvarint(); r.bad || v != schemaVersion {
		return Identity{}, fmt.Errorf("%w: it has schema version %d, this program reads %d: start with an empty data-dir, which is filled from Kafka", ErrIdentity, v, schemaVersion)
	}
	var i Identity
	i.KafkaCluster = string(r.bytes(r.length()))
	copy(i.TopicID[:], r.bytes(len(i.TopicID)))
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
}

// The value is format(1) uvarint(next) uvarint(applied) uvarint(swept + 1) uvarint(checkpoint).
const metaFormat = 1

func (m *Meta) append(dst []byte) []byte {
	dst = append(dst, metaFormat)
	for _, v := range []int64{m.Next, m.AppliedMS, m.SweptNode + 1, m.Checkpoint} {
		dst = binary.AppendUvarint(dst, uint64(v))
	}
	return dst
}

func (m *Meta) decode(b []byte) error {
	r := reader{b: b}
	if f := r.byte(); f != metaFormat {
		return fmt.Errorf("%w: meta format %d, want %d", ErrCorrupt, f, metaFormat)
	}
	for _, v := range []*int64{&m.Next, &m.AppliedMS, &m.SweptNode, &m.Checkpoint} {
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
