package bridge

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/twmb/franz-go/pkg/kgo"
)

// The spool's keys, in a Pebble database of its own:
//
//	s                     size: 8 bytes records, 8 bytes bytes, big endian
//	m<name>               what the bridge remembers of itself; no part of the queue
//	q<8 bytes sequence>   one entry of the queue: the records of one MQTT message, see appendRecords
var (
	sizeKey      = []byte("s")
	memoryPrefix = []byte("m")
	queuePrefix  = []byte("q")
	queueEnd     = []byte("r")
)

// limit is how far a delivery may fill the spool.
type limit uint8

const (
	toBound limit = iota
	// toReserve is for node facts beside heartbeats. They are few, and nothing makes up for a node's start that was dropped: its floor would stay where
	// it was, and what was open before it would look alive.
	toReserve
	// unlimited is for what was sent: Kafka may have it, and then it would be counted as dropped and be there.
	unlimited
)

// reserveBytes is how far toReserve goes beyond the spool's bound: room for some ten thousand node facts behind what was in flight.
const reserveBytes = 8 << 20

func (s *spool) limitBytes(l limit) int64 {
	switch l {
	case toReserve:
		return s.maxBytes + reserveBytes
	case unlimited:
		return math.MaxInt64
	case toBound:
	}
	return s.maxBytes
}

// spool is the queue on disk between the broker and Kafka: ordered, bounded in bytes, and synced, so that what it has taken survives a
// crash. Apart from remember and recall it is used by one goroutine at a time.
type spool struct {
	db       *pebble.DB
	maxBytes int64
	first    uint64 // sequence of the oldest entry, if there is one
	next     uint64 // sequence of the next entry
	records  int64
	bytes    int64
}

// entry is one delivery in the spool.
type entry struct {
	sequence uint64
	records  []*kgo.Record
}

// openSpool opens the spool in dir, or creates it.
func openSpool(dir string, maxBytes int64, log *slog.Logger) (*spool, error) {
	dir = filepath.Join(dir, "spool")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the spool; is data-dir writable? %w", err)
	}
	db, err := pebble.Open(dir, &pebble.Options{
		MemTableSize:       8 << 20,
		FormatMajorVersion: pebble.FormatNewest,
		Logger:             pebbleLogger{log},
	})
	if err != nil {
		return nil, fmt.Errorf("open the spool in %s; is another bridge using data-dir? %w", dir, err)
	}
	s := &spool{db: db, maxBytes: maxBytes}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read the spool in %s: %w", dir, err), db.Close())
	}
	return s, nil
}

func (s *spool) load() error {
	size, closer, err := s.db.Get(sizeKey)
	switch {
	case errors.Is(err, pebble.ErrNotFound):
		return nil
	case err != nil:
		return err
	case len(size) != 16:
		return errors.Join(fmt.Errorf("the size has %d bytes", len(size)), closer.Close())
	}
	s.records, s.bytes = int64(binary.BigEndian.Uint64(size)), int64(binary.BigEndian.Uint64(size[8:]))
	if err := closer.Close(); err != nil {
		return err
	}
	it, err := s.queue(0)
	if err != nil {
		return err
	}
	if it.First() {
		s.first = sequenceOf(it.Key())
	}
	if it.Last() {
		s.next = sequenceOf(it.Key()) + 1
	} else {
		s.first = s.next
	}
	return it.Close()
}

func (s *spool) queue(from uint64) (*pebble.Iterator, error) {
	return s.db.NewIter(&pebble.IterOptions{LowerBound: queueKey(from), UpperBound: queueEnd})
}

func queueKey(sequence uint64) []byte {
	return binary.BigEndian.AppendUint64(append(make([]byte, 0, 9), queuePrefix...), sequence)
}

func sequenceOf(key []byte) uint64 { return binary.BigEndian.Uint64(key[len(queuePrefix):]) }

func (s *spool) empty() bool { return s.first == s.next }

// spoolBatch collects deliveries that go to the end of the spool together.
type spoolBatch struct {
	spool   *spool
	batch   *pebble.Batch
	entries uint64
	records int64
	bytes   int64
	value   []byte
	err     error
}

func (s *spool) newBatch() *spoolBatch { return &spoolBatch{spool: s, batch: s.db.NewBatch()} }

// add adds the records of one delivery as one entry. It reports whether they fit.
func (b *spoolBatch) add(records []*kgo.Record, upTo limit) bool {
	b.value = appendRecords(b.value[:0], records)
	key := queueKey(b.end())
	size := int64(len(key) + len(b.value))
	if b.spool.bytes+b.bytes+size > b.spool.limitBytes(upTo) {
		return false
	}
	b.err = errors.Join(b.err, b.batch.Set(key, b.value, nil))
	b.entries++
	b.records += int64(len(records))
	b.bytes += size
	return true
}

// end returns the sequence of the entry that would be added next.
func (b *spoolBatch) end() uint64 { return b.spool.next + b.entries }

// commit returns once everything that was added is on disk.
func (b *spoolBatch) commit() error {
	s := b.spool
	if b.err != nil {
		return errors.Join(fmt.Errorf("write to the spool: %w", b.err), b.batch.Close())
	}
	if b.entries == 0 {
		return b.batch.Close()
	}
	if err := s.commit(b.batch, s.records+b.records, s.bytes+b.bytes); err != nil {
		return err
	}
	s.next = b.end()
	return nil
}

func (s *spool) commit(batch *pebble.Batch, records, bytes int64) error {
	size := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(records)), uint64(bytes))
	if err := batch.Set(sizeKey, size, nil); err != nil {
		return errors.Join(fmt.Errorf("write to the spool: %w", err), batch.Close())
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("sync the spool; is the disk full? %w", err)
	}
	s.records, s.bytes = records, bytes
	return nil
}

// read returns the oldest entries, at least one if there is any, of up to maxBytes together.
func (s *spool) read(maxBytes int) ([]entry, error) {
	it, err := s.queue(s.first)
	if err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	var entries []entry
	size := 0
	for ok := it.First(); ok && (size < maxBytes || len(entries) == 0); ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read the spool: %w", err), it.Close())
		}
		records, err := decodeRecords(value)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("read entry %d of the spool: %w", sequenceOf(it.Key()), err), it.Close())
		}
		entries = append(entries, entry{sequenceOf(it.Key()), records})
		size += len(value)
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return entries, nil
}

// remove removes the entries before end.
func (s *spool) remove(end uint64) error {
	if end <= s.first {
		return nil
	}
	it, err := s.queue(s.first)
	if err != nil {
		return fmt.Errorf("read the spool: %w", err)
	}
	records, bytes := s.records, s.bytes
	for ok := it.First(); ok && sequenceOf(it.Key()) < end; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return errors.Join(fmt.Errorf("read the spool: %w", err), it.Close())
		}
		records -= int64(countRecords(value))
		bytes -= int64(len(it.Key()) + len(value))
	}
	if err := errors.Join(it.Error(), it.Close()); err != nil {
		return fmt.Errorf("read the spool: %w", err)
	}
	batch := s.db.NewBatch()
	if err := batch.DeleteRange(queueKey(s.first), queueKey(end), nil); err != nil {
		return errors.Join(fmt.Errorf("remove from the spool: %w", err), batch.Close())
	}
	if err := s.commit(batch, records, bytes); err != nil {
		return err
	}
	s.first = end
	return nil
}

// remember keeps values beside the queue, all at once and synced; nil removes one. It may be called from any goroutine.
func (s *spool) remember(values map[string][]byte) error {
	batch := s.db.NewBatch()
	var errs []error
	for name, value := range values {
		key := append(memoryPrefix[:1:1], name...)
		if value == nil {
			errs = append(errs, batch.Delete(key, nil))
		} else {
			errs = append(errs, batch.Set(key, value, nil))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return errors.Join(fmt.Errorf("write to the spool: %w", err), batch.Close())
	}
	if err := batch.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("sync the spool; is the disk full? %w", err)
	}
	return nil
}

// recall returns what remember kept, nil if nothing was.
func (s *spool) recall(name string) ([]byte, error) {
	value, closer, err := s.db.Get(append(memoryPrefix[:1:1], name...))
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	value = append([]byte(nil), value...)
	if err := closer.Close(); err != nil {
		return nil, fmt.Errorf("read the spool: %w", err)
	}
	return value, nil
}

func (s *spool) close() error {
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the spool: %w", err)
	}
	return nil
}

// recordsVersion begins the encoding of a delivery's records:
//
//	version  count  { topic  key  value  timestamp(ms)  headers { key  value } }
//
// Numbers are varints. Bytes are preceded by their length plus one, 0 for nil.
const recordsVersion = 1

// errCorrupt is returned for an entry that is not one.
var errCorrupt = errors.New("the entry is corrupt")

func appendRecords(dst []byte, records []*kgo.Record) []byte {
	dst = binary.AppendUvarint(append(dst, recordsVersion), uint64(len(records)))
	for _, r := range records {
		dst = appendBytes(dst, []byte(r.Topic))
		dst = appendBytes(dst, r.Key)
		dst = appendBytes(dst, r.Value)
		dst = binary.AppendVarint(dst, r.Timestamp.UnixMilli())
		dst = binary.AppendUvarint(dst, uint64(len(r.Headers)))
		for _, h := range r.Headers {
			dst = appendBytes(dst, []byte(h.Key))
			dst = appendBytes(dst, h.Value)
		}
	}
	return dst
}

func appendBytes(dst, b []byte) []byte {
	if b == nil {
		return append(dst, 0)
	}
	return append(binary.AppendUvarint(dst, uint64(len(b))+1), b...)
}

// decodeRecords is the inverse of appendRecords. The records own their bytes.
func decodeRecords(b []byte) ([]*kgo.Record, error) {
	if len(b) == 0 || b[0] != recordsVersion {
		return nil, errCorrupt
	}
	d := recordsDecoder{b: append([]byte(nil), b[1:]...)}
	var records []*kgo.Record
	for n := d.uvarint(); n > 0 && !d.bad; n-- {
		r := &kgo.Record{Topic: string(d.bytes()), Key: d.bytes(), Value: d.bytes(), Timestamp: time.UnixMilli(d.varint())}
		for n := d.uvarint(); n > 0 && !d.bad; n-- {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: string(d.bytes()), Value: d.bytes()})
		}
		records = append(records, r)
	}
	if d.bad || len(d.b) != 0 {
		return nil, errCorrupt
	}
	return records, nil
}

// countRecords returns how many records an entry holds.
func countRecords(value []byte) uint64 {
	if len(value) == 0 {
		return 0
	}
	d := recordsDecoder{b: value[1:]}
	return d.uvarint()
}

type recordsDecoder struct {
	b   []byte
	bad bool
}

func (d *recordsDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.bad = nil, true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *recordsDecoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.b, d.bad = nil, true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *recordsDecoder) bytes() []byte {
	n := d.uvarint()
	if n == 0 {
		return nil
	}
	if n--; n > uint64(len(d.b)) {
		d.b, d.bad = nil, true
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// pebbleLogger passes Pebble's messages on. A disk that can no longer be written to ends the process, as Pebble demands.
type pebbleLogger struct{ log *slog.Logger }

func (l pebbleLogger) Infof(format string, args ...any) { l.log.Debug(fmt.Sprintf(format, args...)) }
func (l pebbleLogger) Errorf(format string, args ...any) {
	l.log.Error(fmt.Sprintf(format, args...))
}
func (l pebbleLogger) Fatalf(format string, args ...any) {
	l.log.Error(fmt.Sprintf(format, args...))
	os.Exit(1)
}
