package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// maxRetained is the largest buffer of a batch that is kept for the next one.
const maxRetained = 8 << 20

// Batch collects the changes of one partition that belong together. The first error is kept and returned by Commit.
type Batch struct {
	store     *Store
	partition int32
	b         *pebble.Batch
	key       []byte
	value     []byte
	errs      error
	load      *load         // instead of b: nothing that the batch writes is in the store
	changes   *indexChanges // nil in a batch that writes no rows
}

// NewBatch returns an empty batch of a partition, for all but rows: those are written by batches of [Indexes]. It must be committed or closed.
func (s *Store) NewBatch(partition int32) *Batch {
	return &Batch{store: s, partition: partition, b: s.db.NewBatch(pebble.WithMaxRetainedSizeBytes(maxRetained))}
}

func (b *Batch) set(key, value []byte) {
	b.key = key
	b.put(key, value)
}

func (b *Batch) put(key, value []byte) {
	if b.load != nil {
		b.fail(b.load.set(key, value))
		return
	}
	b.fail(b.b.Set(key, value, nil))
}

// merge has the store join a value with what it has for the key.
func (b *Batch) merge(key, value []byte) {
	if b.load != nil {
		b.fail(b.load.merge(key, value))
		return
	}
	b.fail(b.b.Merge(key, value, nil))
}

func (b *Batch) drop(key []byte) {
	if b.load != nil {
		b.fail(b.load.drop(key))
		return
	}
	b.fail(b.b.Delete(key, nil))
}

// replace is set, but an empty value removes the key.
func (b *Batch) replace(key, value []byte) {
	if len(value) > 0 {
		b.set(key, value)
		return
	}
	b.remove(key)
}

func (b *Batch) remove(key []byte) {
	b.key = key
	b.drop(key)
}

func (b *Batch) fail(err error) {
	if err != nil {
		b.errs = errors.Join(b.errs, err)
	}
}

// PutRow writes a client's row, and what indexes and counters say of it; state is what r.State.Append wrote. Old is what [Row.Indexed]
// was for the row as it is in the store, the zero value if there is none.
func (b *Batch) PutRow(client []byte, old Indexed, r *Row, state []byte) {
	b.value = r.Append(b.value[:0], state)
	b.set(appendClient(b.key[:0], kindClient, b.partition, client), b.value)
	b.index(client, old, r.Indexed())
	if r.State.Empty() {
		b.set(appendClient(b.key[:0], kindMarker, b.partition, client), nil)
	}
}

// ClearMarker takes back the note, which PutRow makes, that a row says only that its client was forgotten.
func (b *Batch) ClearMarker(client []byte) {
	b.remove(appendClient(b.key[:0], kindMarker, b.partition, client))
}

// DeleteRow removes a client's row and all that goes with it: entries of indexes, its part in counters, its log, its history, the notes
// that it is dirty or a marker.
// Old is what [Row.Indexed] was for the row as it is in the store.
func (b *Batch) DeleteRow(client []byte, old Indexed) {
	for _, kind := range [...]byte{kindClient, kindEvidence, kindDirty, kindSessions, kindMarker} {
		b.remove(appendClient(b.key[:0], kind, b.partition, client))
	}
	b.index(client, old, Indexed{})
}

// MarkDirty notes that a client's state changed after its latest record.
func (b *Batch) MarkDirty(client []byte) {
	b.set(appendClient(b.key[:0], kindDirty, b.partition, client), nil)
}

// ClearDirty takes the note back.
func (b *Batch) ClearDirty(client []byte) {
	b.remove(appendClient(b.key[:0], kindDirty, b.partition, client))
}

// PutOutbox writes a chunk of the outbox, unless it was spilled.
func (b *Batch) PutOutbox(c *Chunk) {
	if c.Released() {
		if b.load == nil {
			b.fail(fmt.Errorf("chunk %d of the outbox has no bytes, and the batch has no spill", c.Seq))
		}
		return
	}
	b.set(appendOutbox(b.key[:0], b.partition, c.Seq), c.data)
}

// DeleteOutbox removes the chunks from first to last.
func (b *Batch) DeleteOutbox(first, last uint64) {
	lower, upper := appendOutbox(nil, b.partition, first), appendOutbox(nil, b.partition, last+1)
	b.fail(b.b.DeleteRange(lower, upper, nil))
}

// PutMeta writes what is kept of the partition.
func (b *Batch) PutMeta(m *Meta) {
	b.value = m.append(b.value[:0])
	b.set(appendPrefix(b.key[:0], kindMeta, b.partition), b.value)
}

// PutChangelog notes that the client-state records below an offset are in the rows.
func (b *Batch) PutChangelog(next int64) {
	b.value = binary.AppendUvarint(b.value[:0], uint64(next))
	b.set(appendPrefix(b.key[:0], kindChangelog, b.partition), b.value)
}

// Len is about the size of the batch in bytes: what it will have of indexes is counted by their keys.
func (b *Batch) Len() int {
	if b.load != nil {
		return b.load.size
	}
	n := b.b.Len()
	if b.changes != nil {
		n += len(b.changes.keys)
	}
	return n
}

// Commit makes the changes visible, all at once, and closes the batch. They survive a crash after the next [Store.Sync].
func (b *Batch) Commit() error {
	b.writeIndexes()
	if b.errs != nil {
		return errors.Join(fmt.Errorf("fill a batch of partition %d: %w", b.partition, b.errs), b.Close())
	}
	if b.load != nil {
		if err := b.load.commit(); err != nil {
			return fmt.Errorf("load the first rows of partition %d: %w", b.partition, err)
		}
		b.indexesWritten()
		return nil
	}
	if err := b.b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("commit a batch of partition %d: %w", b.partition, err)
	}
	b.indexesWritten()
	if err := b.b.Close(); err != nil {
		return fmt.Errorf("close a batch of partition %d: %w", b.partition, err)
	}
	return nil
}

// Close drops a batch that is not to be committed.
func (b *Batch) Close() error {
	if b.load != nil {
		b.changes.of.loading = false
		if err := b.load.close(); err != nil {
			return fmt.Errorf("drop the first rows of partition %d: %w", b.partition, err)
		}
		return nil
	}
	if err := b.b.Close(); err != nil {
		return fmt.Errorf("drop a batch of partition %d: %w", b.partition, err)
	}
	return nil
}
