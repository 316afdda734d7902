package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
)

// DigestSize is the size of a digest in bytes.
const DigestSize = 16

// Digest says which states of a partition a digest covers.
type Digest struct {
	After []byte // only clients after this one; nil: from the first on
	Until []byte // only clients up to this one; nil: to the last
	Each  bool   // a block for each client
	// Absent reports whether a row counts as if it were not there; its state is the row's own to change. An error ends the digest.
	Absent func(client []byte, r *Row) (bool, error)
}

// DigestBlock is the digest of the states of clients that follow one another.
type DigestBlock struct {
	Last    []byte // the last client in it
	Clients int64
	Sum     [DigestSize]byte
}

// blockMask makes about one client in a thousand the last of its block.
const blockMask = 1<<10 - 1

// endsBlock reports whether a client is the last of its block. That depends on the client alone: where two stores differ in some rows, the
// blocks before and after those are the same. The partition of a client is another hash of it, so all bits of this one are free.
func endsBlock(client []byte) bool {
	h := uint64(14695981039346656037) // FNV-1a, whose last bytes move few bits: they are mixed once more
	for _, b := range client {
		h = (h ^ uint64(b)) * 1099511628211
	}
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	return (h^h>>33)&blockMask == 0
}

// Digest calls fn for every block of a partition's states, in the order of their clients, in memory that does not grow with them. The same states
// give the same blocks, however they were written. The bytes of a block are fn's until it returns.
func (v *View) Digest(ctx context.Context, partition int32, d *Digest, fn func(*DigestBlock) error) error {
	lower, upper := kindBounds(partition, kindClient, "")
	if len(d.After) > 0 {
		lower = append(appendClient(nil, kindClient, partition, d.After), 0)
	}
	if len(d.Until) > 0 {
		upper = append(appendClient(nil, kindClient, partition, d.Until), 0)
	}
	if bytes.Compare(lower, upper) >= 0 {
		return nil
	}
	w := digesting{sum: sha256.New(), fn: fn}
	var row Row
	seen := 0
	err := v.scan(lower, upper, func(key, value []byte) (bool, error) {
		if seen++; seen%checkEvery == 0 {
			if err := errors.Join(ctx.Err(), v.stopped()); err != nil {
				return false, err
			}
		}
		client := key[prefixSize:]
		if _, err := row.Decode(value); err != nil {
			return false, err
		}
		// Where an absent row was removed already, it ends no block either.
		if absent, err := d.Absent(client, &row); absent || err != nil {
			return true, err
		}
		w.add(client, &row)
		if d.Each || endsBlock(client) {
			return true, w.end()
		}
		return true, nil
	})
	if err == nil && w.block.Clients > 0 {
		err = w.end()
	}
	return err
}

// digesting is one digest on its way.
type digesting struct {
	sum   hash.Hash
	fn    func(*DigestBlock) error
	block DigestBlock
	bytes []byte
}

// add takes a client's state into the block. The state is encoded anew: how it stands in the row may be the work of another version.
func (w *digesting) add(client []byte, r *Row) {
	w.block.Last = append(w.block.Last[:0], client...)
	w.block.Clients++
	w.bytes = binary.AppendUvarint(w.bytes[:0], uint64(len(client)))
	w.bytes = append(w.bytes, client...)
	at := len(w.bytes)
	w.bytes = r.State.Append(w.bytes)
	w.bytes = binary.AppendUvarint(w.bytes, uint64(len(w.bytes)-at))
	w.sum.Write(w.bytes)
}

// end passes the block on and begins the next.
func (w *digesting) end() error {
	copy(w.block.Sum[:], w.sum.Sum(w.bytes[:0]))
	w.sum.Reset()
	err := w.fn(&w.block)
	w.block.Clients = 0
	return err
}
