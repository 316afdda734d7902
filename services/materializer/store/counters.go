package store

import (
	"encoding/binary"
	"errors"
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

// PlaceCount is the number of clients of a cluster that have a standing and whose current or last connection is of a node.
type PlaceCount struct {
	Cluster  string
	Standing Standing
	Node     string // empty: no connection is known
	Clients  int64
}

// Places calls fn for every place of a partition where there are clients, of one cluster, or of all if it is empty.
func (v *View) Places(partition int32, cluster string, fn func(PlaceCount) error) error {
	lower, upper := kindBounds(partition, kindPlaceCount, cluster)
	return v.scan(lower, upper, func(key, value []byte) (bool, error) {
		c, rest := cutCluster(key[prefixSize:])
		if len(c) == 0 || len(rest) == 0 || textSize(rest[1:]) != len(rest)-1 {
			return false, fmt.Errorf("%w: counter %x", ErrCorrupt, key)
		}
		n, err := decodeCount(value)
		if err != nil {
			return false, err
		}
		return true, fn(PlaceCount{Cluster: string(c[:len(c)-1]), Standing: Standing(rest[0]), Node: text(rest[1:]), Clients: n})
	})
}

// UsernameCount returns the number of clients of a cluster in a partition whose current or last connection has a username.
func (v *View) UsernameCount(partition int32, cluster, username string) (n int64, err error) {
	v.key = appendUsername(v.key[:0], kindUsernameCount, partition, []byte(cluster+"/"), username)
	_, err = v.get(v.key, func(value []byte) (err error) {
		n, err = decodeSum(value)
		return err
	})
	return n, err
}

func decodeSum(value []byte) (int64, error) {
	var m countMerge
	err := m.MergeNewer(value)
	return m.sum, err
}

// Usernames calls fn for every username of a cluster in the given partitions, ascending, beginning after the given one (nil: at the first),
// until it returns false or an error.
func (v *View) Usernames(partitions []int32, cluster string, after *string, fn func(username string, clients int64) (bool, error)) (err error) {
	var h streams
	for _, p := range partitions {
		lower, upper := kindBounds(p, kindUsernameCount, cluster)
		header := len(lower)
		if after != nil {
			// The counter itself is the smallest key with that text.
			lower = append(appendText(lower, *after), 0)
		}
		h.add(v, &stream{partition: p, lower: lower, upper: upper, header: header, values: true})
	}
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.start(); err != nil {
		return err
	}
	for len(h.heap) > 0 {
		// A username may have counters in several partitions.
		name := string(h.heap[0].id())
		var sum int64
		for len(h.heap) > 0 && string(h.heap[0].id()) == name {
			n, err := decodeSum(h.heap[0].value())
			if err != nil {
				return err
			}
			sum += n
			if err := h.next(); err != nil {
				return err
			}
		}
		if textSize([]byte(name)) != len(name) {
			return fmt.Errorf("%w: counter of username %x", ErrCorrupt, name)
		}
		if sum == 0 {
			continue
		}
		if more, err := fn(text([]byte(name)), sum); err != nil || !more {
			return err
		}
	}
	return nil
}
