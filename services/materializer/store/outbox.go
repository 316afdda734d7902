package store

import (
	"encoding/binary"
	"fmt"
)

// Message is a Kafka record as the outbox keeps it: whenever it is published, it is the same bytes. An empty value is none: a tombstone.
type Message struct {
	TimeMS     int64
	Key, Value []byte
	Headers    []Header
}

// Header is a header of a Message.
type Header struct {
	Key   string
	Value []byte
}

// Entry is a message of the outbox. Sequence numbers of a partition ascend without gaps.
type Entry struct {
	Seq uint64
	Message
}

// The value is format(1) varint(time) uvarint(#headers) (str(key) str(value))* str(key) value.
const messageFormat = 1

func (m *Message) append(dst []byte) []byte {
	dst = binary.AppendVarint(append(dst, messageFormat), m.TimeMS)
	dst = binary.AppendUvarint(dst, uint64(len(m.Headers)))
	for i := range m.Headers {
		h := &m.Headers[i]
		dst = appendString(dst, h.Key)
		dst = append(binary.AppendUvarint(dst, uint64(len(h.Value))), h.Value...)
	}
	dst = append(binary.AppendUvarint(dst, uint64(len(m.Key))), m.Key...)
	return append(dst, m.Value...)
}

func decodeMessage(b []byte) (Message, error) {
	r := reader{b: append([]byte(nil), b...)}
	if f := r.byte(); f != messageFormat {
		return Message{}, fmt.Errorf("%w: outbox format %d, want %d", ErrCorrupt, f, messageFormat)
	}
	m := Message{TimeMS: r.varint()}
	for n := r.length(); n > 0 && !r.bad; n-- {
		m.Headers = append(m.Headers, Header{Key: string(r.bytes(r.length())), Value: r.bytes(r.length())})
	}
	m.Key = r.bytes(r.length())
	if len(r.b) > 0 {
		m.Value = r.b
	}
	if r.bad {
		return Message{}, fmt.Errorf("%w: outbox entry of %d bytes", ErrCorrupt, len(b))
	}
	return m, nil
}
