package store

import (
	"context"
	"fmt"
)

// Usage is how many bytes on disk the store's parts take, as Pebble estimates it from its tables: what is in memory tables only is not in it.
type Usage struct {
	Clients  uint64 // rows: the state of each client, and the markers of forgotten ones
	Evidence uint64
	Sessions uint64
	Indexes  uint64 // and counters
	Outbox   uint64 // with the marks of clients whose state has not been published yet
}

// Total is the sum of all parts.
func (u Usage) Total() uint64 { return u.Clients + u.Evidence + u.Sessions + u.Indexes + u.Outbox }

// DiskUsage returns what the store takes on disk, over all partitions.
func (s *Store) DiskUsage() (Usage, error) {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return Usage{}, ErrClosed
	}
	var u Usage
	for _, part := range []struct {
		bytes       *uint64
		first, last byte // kinds
	}{
		{&u.Outbox, kindOutbox, kindDirty},
		{&u.Clients, kindMarker, kindClient},
		{&u.Evidence, kindEvidence, kindEvidence},
		{&u.Sessions, kindSessions, kindSessions},
		{&u.Indexes, kindPlace, kindUsernameCount},
	} {
		n, err := s.db.EstimateDiskUsage([]byte{part.first}, []byte{part.last + 1})
		if err != nil {
			return Usage{}, fmt.Errorf("estimate the store's size on disk: %w", err)
		}
		*part.bytes = n
	}
	return u, nil
}

// Compact rewrites the whole store, so that nothing that was replaced or deleted takes space any more. It takes minutes for millions of
// clients; reads and writes go on.
func (s *Store) Compact(ctx context.Context) error {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if err := s.db.Flush(); err != nil {
		return fmt.Errorf("flush the store: %w", err)
	}
	if err := s.db.Compact(ctx, []byte{0}, []byte{0xff}, true); err != nil {
		return fmt.Errorf("compact the store: %w", err)
	}
	return nil
}
