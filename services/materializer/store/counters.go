package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// A partition keeps some counters by username in memory, so as not to read them before it changes them: at most maxUsernames, of usernames that are
// not unusually long.
const (
	maxUsernames     = 4 << 10
	maxUsernameBytes = 256
)

// count returns a counter, by its key. Places are few, and known; a username may be of one client, and have been of thousands.
func (x *Indexes) count(key string) (int64, error) {
	if key[0] == kindPlaceCount {
		return x.places[key], nil
	}
	if n, ok := x.usernames[key]; ok || x.blank {
		return n, nil
	}
	value, closer, err := x.store.db.Get([]byte(key))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("read a counter of partition %d: %w", x.partition, err)
	}
	n, err := decodeCount(value)
	return n, errors.Join(err, closer.Close())
}

// counted notes what a counter is in the store now.
func (x *Indexes) counted(key string, n int64) {
	counters := x.places
	if key[0] == kindUsernameCount {
		if len(key) > maxUsernameBytes {
			return
		}
		if counters = x.usernames; len(counters) >= maxUsernames {
			clear(counters)
		}
	}
	if counters[key] = n; n == 0 {
		delete(counters, key)
	}
}

func decodeCount(value []byte) (int64, error) {
	v, n := binary.Uvarint(value)
	if n <= 0 || n != len(value) {
		return 0, fmt.Errorf("%w: counter of %d bytes", ErrCorrupt, len(value))
	}
	return int64(v), nil
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
		n, err = decodeCount(value)
		return err
	})
	return n, err
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
			n, err := decodeCount(h.heap[0].value())
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
		if more, err := fn(text([]byte(name)), sum); err != nil || !more {
			return err
		}
	}
	return nil
}
