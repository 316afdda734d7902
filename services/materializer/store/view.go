package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// View reads the store as it was when the view was made. It belongs to one goroutine, which must not call methods of the store before it
// has closed the view: Close of the store waits for that.
type View struct {
	store *Store
	snap  *pebble.Snapshot
	key   []byte
}

// NewView returns a view, which must be closed.
func (s *Store) NewView() (*View, error) {
	s.closing.RLock()
	if s.closed {
		s.closing.RUnlock()
		return nil, ErrClosed
	}
	return &View{store: s, snap: s.db.NewSnapshot()}, nil
}

// Close ends the reading.
func (v *View) Close() error {
	defer v.store.closing.RUnlock()
	if err := v.snap.Close(); err != nil {
		return fmt.Errorf("close a view of the store: %w", err)
	}
	return nil
}

// stopped returns ErrClosed once the store waits to be closed: reads of very many keys give up then.
func (v *View) stopped() error {
	if v.store.stopping.Load() {
		return ErrClosed
	}
	return nil
}

// get calls fn with a key's value, if there is one.
func (v *View) get(key []byte, fn func(value []byte) error) (found bool, err error) {
	value, closer, err := v.snap.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read the store: %w", err)
	}
	return true, errors.Join(fn(value), closer.Close())
}

func (v *View) scan(lower, upper []byte, fn func(key, value []byte) (bool, error)) error {
	return scan(v.snap, lower, upper, fn)
}

func (v *View) iter(lower, upper []byte) (*pebble.Iterator, error) {
	return newIter(v.snap, lower, upper)
}

// Indexed reports whether indexes and counters of a partition are what its rows say.
func (v *View) Indexed(partition int32) (bool, error) {
	var version int64
	v.key = appendPrefix(v.key[:0], kindIndexed, partition)
	found, err := v.get(v.key, func(value []byte) (err error) {
		version, err = decodeCount(value)
		return err
	})
	return found && version == indexVersion, err
}
