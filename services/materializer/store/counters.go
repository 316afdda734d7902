package store

import (
	"encoding/binary"
	"fmt"
	"io"
)

// countMerge adds up the changes of a counter. A counter of zero is not there.
type countMerge struct {
	sum int64
	buf [binary.MaxVarintLen64]byte
}

// MergeNewer implements pebble.ValueMerger.
func (m *countMerge) MergeNewer(value []byte) error {
	v, n := binary.Varint(value)
	if n <= 0 || n != len(value) {
		return fmt.Errorf("%w: counter of %d bytes", ErrCorrupt, len(value))
	}
	m.sum += v
	return nil
}

// MergeOlder implements pebble.ValueMerger.
func (m *countMerge) MergeOlder(value []byte) error { return m.MergeNewer(value) }

// Finish implements pebble.ValueMerger.
func (m *countMerge) Finish(bool) ([]byte, io.Closer, error) {
	return binary.AppendVarint(m.buf[:0], m.sum), nil, nil
}

// DeletableFinish implements pebble.DeletableValueMerger. Changes that add up to nothing can go, whatever older ones there are.
func (m *countMerge) DeletableFinish(includesBase bool) (value []byte, remove bool, closer io.Closer, err error) {
	value, closer, err = m.Finish(includesBase)
	return value, m.sum == 0, closer, err
}
