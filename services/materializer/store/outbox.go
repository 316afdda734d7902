package store

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// MaxChunkBytes bounds a chunk of more than one record.
const MaxChunkBytes = 256 << 10

// Chunk is a run of records of the outbox, as they are in the store: whenever they are published, they are the same bytes. It is replaced
// or removed as a whole. Its bytes must not be changed once it is in a batch.
type Chunk struct {
	Seq     uint64 // ascends over a partition's chunks
	Records int
	data    []byte // nil once released
	size    int    // of the bytes that were released
}

// The value is format(1) and records, each of them varint(time) uvarint(#headers) (str(key) str(value))* str(key) str(value). An empty value is
// none: a tombstone. Format 1 was one record.
const chunkFormat = 2

// AppendOutbox appends what the outbox keeps of a record, all but topic and partition, to the last chunk, or to a new one if that is full.
// The bytes are copied.
func AppendOutbox(chunks []Chunk, r *kgo.Record) []Chunk {
	size := recordBound(r)
	if n := len(chunks); n == 0 {
		chunks = append(chunks, Chunk{data: append(make([]byte, 0, 1+size), chunkFormat)})
	} else if len(chunks[n-1].data)+size > MaxChunkBytes {
		// Where a batch fills one chunk, it is likely to fill the next.
		chunks = append(chunks, Chunk{data: append(make([]byte, 0, max(MaxChunkBytes, 1+size)), chunkFormat)})
	}
	chunks[len(chunks)-1].append(r)
	return chunks
}

// recordBound is at least the size of a record in a chunk.
func recordBound(r *kgo.Record) int {
	size := 4*binary.MaxVarintLen64 + len(r.Key) + len(r.Value)
	for i := range r.Headers {
		size += 2*binary.MaxVarintLen64 + len(r.Headers[i].Key) + len(r.Headers[i].Value)
	}
	return size
}

func (c *Chunk) append(r *kgo.Record) {
	dst := binary.AppendVarint(c.data, r.Timestamp.UnixMilli())
	dst = binary.AppendUvarint(dst, uint64(len(r.Headers)))
	for i := range r.Headers {
		h := &r.Headers[i]
		dst = appendBytes(appendString(dst, h.Key), h.Value)
	}
	c.data = appendBytes(appendBytes(dst, r.Key), r.Value)
	c.Records++
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

// Bytes is how many bytes the chunk holds in memory.
func (c *Chunk) Bytes() int { return len(c.data) }

// Size is the size of the chunk, wherever its bytes are.
func (c *Chunk) Size() int { return len(c.data) + c.size }

// Release lets go of the bytes of a chunk, which the store has.
func (c *Chunk) Release() { c.data, c.size = nil, c.Size() }

// Released reports whether the chunk's bytes are in the store only, from where [Store.ReadChunk] gets them.
func (c *Chunk) Released() bool { return c.data == nil }

// ReadChunk returns a chunk that was released, with its bytes.
func (s *Store) ReadChunk(partition int32, c *Chunk) (Chunk, error) {
	data, found, err := s.appendValue(make([]byte, 0, c.Size()), appendOutbox(nil, partition, c.Seq), partition)
	if err == nil && (!found || len(data) != c.Size()) {
		err = fmt.Errorf("%w: chunk %d of the outbox of partition %d has %d bytes, want %d", ErrCorrupt, c.Seq, partition, len(data), c.Size())
	}
	return Chunk{Seq: c.Seq, Records: c.Records, data: data}, err
}

// Reclaim has the store remove what was deleted from disk soon, not only once much else has been written.
func (s *Store) Reclaim() error {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if _, err := s.db.AsyncFlush(); err != nil {
		return fmt.Errorf("flush the store: %w", err)
	}
	return nil
}

// AppendRecords appends the records of the chunk to dst, without topic and partition. They share the chunk's bytes, and headers among each other.
func (c *Chunk) AppendRecords(dst []kgo.Record) ([]kgo.Record, error) {
	r := reader{b: c.data}
	if f := r.byte(); f != chunkFormat {
		return dst, fmt.Errorf("%w: outbox format %d, want %d", ErrCorrupt, f, chunkFormat)
	}
	var headers []kgo.RecordHeader
	var encoded []byte // of headers
	for len(r.b) > 0 {
		at := time.UnixMilli(r.varint())
		begin := r.b
		if len(encoded) == 0 || len(begin) < len(encoded) || string(begin[:len(encoded)]) != string(encoded) {
			headers = nil
			for n := r.length(); n > 0 && !r.bad; n-- {
				headers = append(headers, kgo.RecordHeader{Key: string(r.bytes(r.length())), Value: r.bytes(r.length())})
			}
			encoded = begin[:len(begin)-len(r.b)]
		} else {
			r.bytes(len(encoded))
		}
		record := kgo.Record{Timestamp: at, Headers: headers, Key: r.bytes(r.length()), Value: r.bytes(r.length())}
		if r.bad {
			return dst, fmt.Errorf("%w: outbox chunk of %d bytes", ErrCorrupt, len(c.data))
		}
		if len(record.Value) == 0 {
			record.Value = nil
		}
		dst = append(dst, record)
	}
	return dst, nil
}

// Without returns the chunk without the records for which drop, which is given their index, returns true.
func (c *Chunk) Without(drop func(i int) bool) (Chunk, error) {
	records, err := c.AppendRecords(nil)
	if err != nil {
		return Chunk{}, err
	}
	rest := Chunk{Seq: c.Seq, data: append(make([]byte, 0, len(c.data)), chunkFormat)}
	for i := range records {
		if !drop(i) {
			rest.append(&records[i])
		}
	}
	return rest, nil
}

// decodeChunk reads the value of a chunk; the chunk owns its bytes.
func decodeChunk(seq uint64, value []byte) (Chunk, error) {
	c := Chunk{Seq: seq, data: append([]byte(nil), value...)}
	records, err := c.AppendRecords(nil)
	c.Records = len(records)
	return c, err
}
