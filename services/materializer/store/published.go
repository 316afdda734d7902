package store

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Published returns the ID of the client-state topic to which all rows of a partition that are not dirty were published; all zeros if there is none.
func (s *Store) Published(partition int32) (topicID [16]byte, err error) {
	value, closer, err := s.db.Get(appendPrefix(nil, kindPublished, partition))
	if errors.Is(err, pebble.ErrNotFound) {
		return topicID, nil
	}
	if err != nil {
		return topicID, fmt.Errorf("read where partition %d was published: %w", partition, err)
	}
	if copy(topicID[:], value) != len(topicID) || len(value) != len(topicID) {
		err = fmt.Errorf("%w: topic ID of %d bytes", ErrCorrupt, len(value))
	}
	return topicID, errors.Join(err, closer.Close())
}

// PutPublished notes where the partition is published; all zeros: nowhere.
func (b *Batch) PutPublished(topicID [16]byte) {
	if topicID == ([16]byte{}) {
		b.remove(appendPrefix(b.key[:0], kindPublished, b.partition))
		return
	}
	b.set(appendPrefix(b.key[:0], kindPublished, b.partition), topicID[:])
}
