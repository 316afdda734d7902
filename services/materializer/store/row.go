package store

import (
	"encoding/binary"
	"fmt"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Version orders the records of one client: the offsets, in client-events and in node-events, of the facts behind a record.
type Version struct {
	Event int64
	Node  int64 // -1: no node fact
}

// Less reports whether v comes before w.
func (v Version) Less(w Version) bool {
	return v.Event < w.Event || v.Event == w.Event && v.Node < w.Node
}

// Transition is the latest change of a client's status or current connection, as it was published; but belief, reason and since are those of the
// status as the row was written last, which may have changed without being a transition.
type Transition struct {
	Status    presence.Presence
	Belief    presence.Presence
	Previous  presence.Presence // the status before
	Reason    presence.StatusReason
	SinceMS   int64
	Node, Key string // of the connection that decided; both empty if none did
	TimeMS    int64  // event time of the fact behind it
	Version   Version
}

// Row is what is kept of one client.
type Row struct {
	State presence.State
	Last  Transition
	// Latest is the version of the client's latest record: that of Last, or of a later record without a transition. All facts up to it
	// are in the state.
	Latest     Version
	ReceivedMS int64 // largest received time of the client's facts
	Dirty      bool  // the state changed after the latest record
}

// The value of a client's row. Times lean on one another, so that most take a byte or two:
//
//	row  = format(1) flags(1) words(1) reason(1) conn varint(since - base) varint(time - since) varint(received - time)
//	       version [version of the latest record] state
//	conn = uvarint: 0 none; 1 str(node) str(key); 2 + i: the connection of the state's i-th node
//	base = opening time of the state's i-th node's connection, else 0
//	version = uvarint(event + 1) uvarint(node + 1)
//	words = status | belief << 2 | previous << 4
const rowFormat = 1

const (
	flagDirty  = 1 << iota // Row.Dirty
	flagLatest             // Row.Latest is not Last.Version
	knownFlags = flagDirty | flagLatest
)

const (
	connNone = iota
	connExplicit
	connOfNode
)

// Append appends the row's value to dst; state is what r.State.Append wrote.
func (r *Row) Append(dst, state []byte) []byte {
	flags := byte(0)
	if r.Dirty {
		flags |= flagDirty
	}
	if r.Latest != r.Last.Version {
		flags |= flagLatest
	}
	l := &r.Last
	dst = append(dst, rowFormat, flags, byte(l.Status)|byte(l.Belief)<<2|byte(l.Previous)<<4, byte(l.Reason))
	base := int64(0)
	switch i := r.nodeOf(l); {
	case l.Node == "" && l.Key == "":
		dst = binary.AppendUvarint(dst, connNone)
	case i < 0:
		dst = appendString(appendString(binary.AppendUvarint(dst, connExplicit), l.Node), l.Key)
	default:
		dst = binary.AppendUvarint(dst, connOfNode+uint64(i))
		base = r.State.Nodes[i].Conn.OpenedMS
	}
	dst = binary.AppendVarint(dst, l.SinceMS-base)
	dst = binary.AppendVarint(dst, l.TimeMS-l.SinceMS)
	dst = binary.AppendVarint(dst, r.ReceivedMS-l.TimeMS)
	dst = appendVersion(dst, l.Version)
	if flags&flagLatest != 0 {
		dst = appendVersion(dst, r.Latest)
	}
	return append(dst, state...)
}

// Username returns the username of a connection, empty if the state does not know the connection.
func (r *Row) Username(node, key string) string {
	for i := range r.State.Nodes {
		if n := &r.State.Nodes[i]; n.Node == node && n.Conn.Key == key {
			return n.Conn.Username
		}
	}
	return ""
}

// nodeOf returns the index of the state's node whose connection the transition names, -1 if there is none.
func (r *Row) nodeOf(l *Transition) int {
	for i := range r.State.Nodes {
		if n := &r.State.Nodes[i]; n.Node == l.Node && n.Conn.Key == l.Key {
			return i
		}
	}
	return -1
}

func appendVersion(dst []byte, v Version) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(v.Event+1)), uint64(v.Node+1))
}

// Decode reads what Append wrote into r, and returns the part of b that is the state. The error wraps ErrCorrupt, or
// presence.ErrCorrupt for the state.
func (r *Row) Decode(b []byte) (state []byte, err error) {
	*r = Row{}
	d := reader{b: b}
	if f := d.byte(); f != rowFormat {
		return nil, fmt.Errorf("%w: row format %d, want %d", ErrCorrupt, f, rowFormat)
	}
	flags, words := d.byte(), d.byte()
	r.Dirty = flags&flagDirty != 0
	l := &r.Last
	l.Status, l.Belief, l.Previous = presence.Presence(words&3), presence.Presence(words>>2&3), presence.Presence(words>>4&3)
	l.Reason = presence.StatusReason(d.byte())
	conn := d.uvarint()
	if conn == connExplicit {
		l.Node = string(d.bytes(d.length()))
		l.Key = string(d.bytes(d.length()))
	}
	l.SinceMS = d.varint()
	l.TimeMS = d.varint()
	r.ReceivedMS = d.varint()
	l.Version = d.version()
	r.Latest = l.Version
	if flags&flagLatest != 0 {
		r.Latest = d.version()
	}
	if d.bad || flags&^knownFlags != 0 {
		return nil, fmt.Errorf("%w: row of %d bytes", ErrCorrupt, len(b))
	}
	if r.State, err = presence.DecodeState(d.b); err != nil {
		return nil, fmt.Errorf("decode the state of a row: %w", err)
	}
	if conn >= connOfNode {
		i := conn - connOfNode
		if i >= uint64(len(r.State.Nodes)) {
			return nil, fmt.Errorf("%w: row names node %d of %d", ErrCorrupt, i, len(r.State.Nodes))
		}
		n := &r.State.Nodes[i]
		l.Node, l.Key = n.Node, n.Conn.Key
		l.SinceMS += n.Conn.OpenedMS
	}
	l.TimeMS += l.SinceMS
	r.ReceivedMS += l.TimeMS
	return d.b, nil
}

func (r *reader) version() Version {
	return Version{Event: int64(r.uvarint()) - 1, Node: int64(r.uvarint()) - 1}
}
