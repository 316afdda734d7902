package store

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Meta is Store.Meta.
func (v *View) Meta(partition int32) (m Meta, found bool, err error) {
	m.SweptNode = -1
	v.key = appendPrefix(v.key[:0], kindMeta, partition)
	found, err = v.get(v.key, m.decode)
	return m, found, err
}

// AppendRow is Store.AppendRow.
func (v *View) AppendRow(dst []byte, partition int32, client []byte) (_ []byte, found bool, err error) {
	v.key = appendClient(v.key[:0], kindClient, partition, client)
	return v.appendValue(dst, partition)
}

// appendValue appends what v.key holds to dst.
func (v *View) appendValue(dst []byte, partition int32) (_ []byte, found bool, err error) {
	value, closer, err := v.snap.Get(v.key)
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, false, nil
	}
	if err != nil {
		return dst, false, fmt.Errorf("read a client of partition %d: %w", partition, err)
	}
	dst = append(dst, value...)
	if err := closer.Close(); err != nil {
		return dst, false, fmt.Errorf("read a client of partition %d: %w", partition, err)
	}
	return dst, true, nil
}

// uvarint reads the number that v.key holds, 0 if there is none.
func (v *View) uvarint(what string, partition int32) (n uint64, err error) {
	_, err = v.get(v.key, func(value []byte) error {
		var size int
		if n, size = binary.Uvarint(value); size != len(value) {
			return fmt.Errorf("%w: %s of partition %d of %d bytes", ErrCorrupt, what, partition, len(value))
		}
		return nil
	})
	return n, err
}

// Logged is Store.Logged.
func (v *View) Logged(partition int32) (int64, error) {
	v.key = appendPrefix(v.key[:0], kindLogged, partition)
	n, err := v.uvarint("the log's begin", partition)
	return int64(n) - 1, err
}

// Evidence is Store.Evidence.
func (v *View) Evidence(partition int32, client []byte) (entries []Evidence, complete int, cut bool, err error) {
	v.key = appendClient(v.key[:0], kindEvidence, partition, client)
	log, _, err := v.appendValue(nil, partition)
	if err != nil {
		return nil, 0, false, err
	}
	return decodeEvidence(log)
}

// History is Store.History.
func (v *View) History(partition int32) (sinceMS int64, err error) {
	v.key = appendPrefix(v.key[:0], kindHistory, partition)
	n, err := v.uvarint("the history's begin", partition)
	return int64(n) - 2, err
}

// Sessions is Store.Sessions.
func (v *View) Sessions(partition int32, client []byte) (sessions []Session, endings []Ending, cut bool, err error) {
	v.key = appendClient(v.key[:0], kindSessions, partition, client)
	log, _, err := v.appendValue(nil, partition)
	if err != nil {
		return nil, nil, false, err
	}
	return DecodeSessions(log)
}
