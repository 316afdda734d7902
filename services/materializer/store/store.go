package store

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Options are the options of a store.
type Options struct {
	CacheBytes int64        // size of the block cache; memtables take up to 192 MiB besides
	Log        *slog.Logger // Pebble's own messages, at debug; its errors at error
	FS         vfs.FS       // nil: the operating system's
	// Exit ends the process where the store cannot go on, after an error that says why, and must not return; nil: os.Exit.
	Exit func(code int)
	// EvidencePerClient is how many entries a client's log keeps; 0: DefaultEvidence.
	EvidencePerClient int
	// SessionsPerClient is how many sessions a client's history keeps; 0: DefaultSessions.
	SessionsPerClient int
}

// DefaultEvidence is how many entries a client's log keeps by default.
const DefaultEvidence = 16

// DefaultSessions is how many sessions a client's history keeps by default.
const DefaultSessions = 16

const (
	memTableBytes   = 64 << 20
	memTables       = 3 // one that is written and two that are flushed
	blockBytes      = 16 << 10
	indexBlockBytes = 128 << 10
	bloomBitsPerKey = 10
	bytesPerSync    = 1 << 20
)

// ErrClosed is returned by reads after Close.
var ErrClosed = errors.New("the store is closed")

// Store is an open store.
type Store struct {
	db   *pebble.DB
	dir  string
	opts *pebble.Options

	tables             sstable.WriterOptions // of a load
	evidence, sessions int                   // per client
	loads              atomic.Uint64         // that were begun

	// Pebble panics when it is read after Close. Readers hold closing shared, which costs them nothing until Close waits for them.
	closing  sync.RWMutex
	closed   bool
	stopping atomic.Bool // Close waits, or has waited
}

// Open opens the store in a directory, which is made if it is absent. Only one process can have it open.
func Open(dir string, o Options) (*Store, error) {
	fs := o.FS
	if fs == nil {
		fs = vfs.Default
	}
	if err := checkDir(fs, dir); err != nil {
		return nil, err
	}
	ender := newEnder(o)
	fs = newFullFS(fs, dir, ender.end)
	if o.EvidencePerClient == 0 {
		o.EvidencePerClient = DefaultEvidence
	}
	if o.SessionsPerClient == 0 {
		o.SessionsPerClient = DefaultSessions
	}
	opts := &pebble.Options{
		FS:     fs,
		Merger: merger(o),
		// Pebble takes its memtables out of the cache.
		CacheSize:                   o.CacheBytes + memTables*memTableBytes,
		FormatMajorVersion:          pebble.FormatNewest,
		Logger:                      logger{o.Log, ender.end},
		MemTableSize:                memTableBytes,
		MemTableStopWritesThreshold: memTables,
		L0CompactionThreshold:       4,
		L0StopWritesThreshold:       64,
		LBaseMaxBytes:               256 << 20,
		BytesPerSync:                bytesPerSync,
		WALBytesPerSync:             bytesPerSync,
		// One compaction runs beside the fold; a second one helps when L0 grows in a replay.
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
	}
	for i := range opts.Levels {
		l := &opts.Levels[i]
		l.BlockSize, l.IndexBlockSize = blockBytes, indexBlockBytes
		// Also on the last level: a client that is seen for the first time is the common miss of a replay.
		l.FilterPolicy = bloom.FilterPolicy(bloomBitsPerKey)
	}
	db, err := pebble.Open(dir, opts)
	if err != nil {
		return nil, fmt.Errorf("open the store in %s; if another process uses it, stop that; if it is another program's, set another data-dir; if it is damaged, or an older version wrote it, start with an empty data-dir, which is filled from Kafka: %w", dir, err)
	}
	// A checkpoint that is there was left by a crash: only now, with the store locked, it is nobody's.
	if err := removeCheckpoint(fs, fs.PathJoin(dir, checkpointDir)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	if err := fs.RemoveAll(fs.PathJoin(dir, loadDir)); err != nil {
		return nil, errors.Join(fmt.Errorf("remove what an interrupted load left: %w", err), db.Close())
	}
	defaults := opts.Clone()
	defaults.EnsureDefaults()
	tables := defaults.MakeWriterOptions(len(opts.Levels)-1, db.TableFormat())
	return &Store{db: db, dir: dir, opts: opts, tables: tables, evidence: o.EvidencePerClient, sessions: o.SessionsPerClient}, nil
}

// Close waits for reads in progress and closes the store. Batches must be done.
func (s *Store) Close() error {
	s.stopping.Store(true)
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	if err := s.db.Close(); err != nil {
		return fmt.Errorf("close the store: %w", err)
	}
	return nil
}

// Bind ties an empty store to an identity, and refuses one that is bound to another. The error wraps ErrIdentity or ErrSchema.
func (s *Store) Bind(id Identity) error {
	if id.Partitions > maxPartition+1 {
		return fmt.Errorf("%w: %d partitions, a store can hold %d", ErrIdentity, id.Partitions, maxPartition+1)
	}
	value, closer, err := s.db.Get([]byte{kindSchema})
	if errors.Is(err, pebble.ErrNotFound) {
		if err := s.db.Set([]byte{kindSchema}, id.append(nil), pebble.Sync); err != nil {
			return fmt.Errorf("write the store's identity: %w", err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the store's identity: %w", err)
	}
	have, err := decodeIdentity(value)
	if err := errors.Join(err, closer.Close()); err != nil {
		return err
	}
	if same := id; same.NodeTopicID != have.NodeTopicID {
		if same.NodeTopicID = have.NodeTopicID; same == have {
			return fmt.Errorf("%w: it was filled from %v, and this is %v: node-events was deleted and created again, and the versions of what was published go by its former offsets; "+
				"begin anew, of what client-events keeps: delete client-state, and empty the data-dir of every materializer", ErrIdentity, have, id)
		}
	}
	if have != id {
		return fmt.Errorf("%w: it is of another %s: it was filled from %v, and this is %v: set another data-dir, or empty it to fill it from here", ErrIdentity, have.differsFrom(id), have, id)
	}
	return nil
}

// Meta returns what is kept of a partition; found is false if nothing was ever committed for it.
func (s *Store) Meta(partition int32) (m Meta, found bool, err error) {
	m.SweptNode = -1
	value, closer, err := s.db.Get(appendPrefix(nil, kindMeta, partition))
	if errors.Is(err, pebble.ErrNotFound) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("read the offset of partition %d: %w", partition, err)
	}
	err = errors.Join(m.decode(value), closer.Close())
	return m, err == nil, err
}

// Changelog returns the offset below which client-state records are in the rows; 0 if none are.
func (s *Store) Changelog(partition int32) (int64, error) {
	next, _, err := s.uvarint(appendPrefix(nil, kindChangelog, partition), "the client-state offset", partition)
	return int64(next), err
}

// uvarint reads a number of a partition.
func (s *Store) uvarint(key []byte, what string, partition int32) (v uint64, found bool, err error) {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return 0, false, ErrClosed
	}
	value, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read %s of partition %d: %w", what, partition, err)
	}
	v, n := binary.Uvarint(value)
	if n != len(value) {
		err = fmt.Errorf("%w: %s of %d bytes", ErrCorrupt, what, len(value))
	}
	return v, true, errors.Join(err, closer.Close())
}

// AppendRow appends the value of a client's row to dst; found is false if there is none. The client is the key of its records.
func (s *Store) AppendRow(dst []byte, partition int32, client []byte) (_ []byte, found bool, err error) {
	var buf [128]byte
	return s.appendValue(dst, appendClient(buf[:0], kindClient, partition, client), partition)
}

// appendValue appends what a client's key holds to dst.
func (s *Store) appendValue(dst, key []byte, partition int32) (_ []byte, found bool, err error) {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return dst, false, ErrClosed
	}
	value, closer, err := s.db.Get(key)
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

// Cursor reads many rows of a partition, fastest in ascending order of their clients. It sees the store as it was when the cursor was
// made, and belongs to one goroutine.
type Cursor struct {
	it        *pebble.Iterator
	partition int32
	key       []byte
}

// NewCursor returns a cursor, which must be closed.
func (s *Store) NewCursor(partition int32) (*Cursor, error) {
	it, err := s.db.NewIter(nil)
	if err != nil {
		return nil, fmt.Errorf("read the clients of partition %d: %w", partition, err)
	}
	return &Cursor{it: it, partition: partition}, nil
}

// AppendRow is Store.AppendRow.
func (c *Cursor) AppendRow(dst, client []byte) (_ []byte, found bool, err error) {
	c.key = appendClient(c.key[:0], kindClient, c.partition, client)
	// The whole key is the prefix, which lets the filters say at once that a client is not there.
	if !c.it.SeekPrefixGE(c.key) {
		if err := c.it.Error(); err != nil {
			return dst, false, fmt.Errorf("read a client of partition %d: %w", c.partition, err)
		}
		return dst, false, nil
	}
	value, err := c.it.ValueAndErr()
	if err != nil {
		return dst, false, fmt.Errorf("read a client of partition %d: %w", c.partition, err)
	}
	return append(dst, value...), true, nil
}

// Close ends the reading.
func (c *Cursor) Close() error {
	if err := c.it.Close(); err != nil {
		return fmt.Errorf("read the clients of partition %d: %w", c.partition, err)
	}
	return nil
}

// Clients is Rows for the clients of one cluster.
func (s *Store) Clients(partition int32, cluster string, after []byte, limit int, fn func(client, row []byte) error) (last []byte, err error) {
	return s.walk(kindClient, partition, cluster, after, limit, fn)
}

// Rows calls fn for at most limit rows of a partition, in ascending order of their clients, beginning after the given one (nil: at the first).
// It returns the last client that it passed to fn, nil if that was the last one.
func (s *Store) Rows(partition int32, after []byte, limit int, fn func(client, row []byte) error) (last []byte, err error) {
	return s.walk(kindClient, partition, "", after, limit, fn)
}

// Markers is Rows for the clients whose row says, or said, only that they were forgotten.
func (s *Store) Markers(partition int32, after []byte, limit int, fn func(client []byte) error) (last []byte, err error) {
	return s.walk(kindMarker, partition, "", after, limit, func(client, _ []byte) error { return fn(client) })
}

func (s *Store) walk(kind byte, partition int32, cluster string, after []byte, limit int, fn func(client, value []byte) error) (last []byte, err error) {
	lower, upper := kindBounds(partition, kind, cluster)
	if after != nil {
		lower = append(appendClient(nil, kind, partition, after), 0)
	}
	err = s.scan(lower, upper, func(key, value []byte) (bool, error) {
		if limit--; limit < 0 {
			return false, nil
		}
		last = append(last[:0], key[prefixSize:]...)
		return true, fn(last, value)
	})
	if limit >= 0 {
		last = nil
	}
	return last, err
}

// Dirty calls fn for every client of a partition that is marked dirty, in ascending order, until it returns false or an error.
func (s *Store) Dirty(partition int32, fn func(client []byte) (bool, error)) error {
	lower, upper := kindBounds(partition, kindDirty, "")
	return s.scan(lower, upper, func(key, _ []byte) (bool, error) { return fn(key[prefixSize:]) })
}

// Outbox calls fn for every chunk of a partition's outbox, in order. The chunk owns its bytes.
func (s *Store) Outbox(partition int32, fn func(Chunk) error) error {
	lower, upper := kindBounds(partition, kindOutbox, "")
	return s.scan(lower, upper, func(key, value []byte) (bool, error) {
		seq, err := outboxSeq(key)
		if err != nil {
			return false, err
		}
		c, err := decodeChunk(seq, value)
		if err != nil {
			return false, err
		}
		return true, fn(c)
	})
}

func (s *Store) scan(lower, upper []byte, fn func(key, value []byte) (bool, error)) error {
	return scan(s.db, lower, upper, fn)
}

// scan calls fn for every key in [lower, upper) until it returns false or an error.
func scan(r pebble.Reader, lower, upper []byte, fn func(key, value []byte) (bool, error)) error {
	it, err := newIter(r, lower, upper)
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = ok && it.Next() {
		var value []byte
		if value, err = it.ValueAndErr(); err != nil {
			err = fmt.Errorf("scan the store: %w", err)
			break
		}
		ok, err = fn(it.Key(), value)
	}
	return errors.Join(err, closeIter(it))
}

func newIter(r pebble.Reader, lower, upper []byte) (*pebble.Iterator, error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, fmt.Errorf("scan the store: %w", err)
	}
	return it, nil
}

// closeIter closes an iterator; that tells the errors it has met.
func closeIter(it *pebble.Iterator) error {
	if err := it.Close(); err != nil {
		return fmt.Errorf("scan the store: %w", err)
	}
	return nil
}

// Sync returns once all batches committed before the call survive a loss of power.
func (s *Store) Sync() error {
	if err := s.db.LogData(nil, pebble.Sync); err != nil {
		return fmt.Errorf("sync the store: %w", err)
	}
	return nil
}

// Metrics are the few numbers of the store that say whether it keeps up.
type Metrics struct {
	DiskBytes      uint64
	CacheHits      int64
	CacheMisses    int64
	ReadAmp        int
	CompactionDebt uint64
	WALBytes       uint64
}

// Metrics returns the current numbers; zeros once the store is closed.
func (s *Store) Metrics() Metrics {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return Metrics{}
	}
	m := s.db.Metrics()
	return Metrics{
		DiskBytes: m.DiskSpaceUsage(), CacheHits: m.BlockCache.Hits, CacheMisses: m.BlockCache.Misses, ReadAmp: m.ReadAmp(),
		CompactionDebt: m.Compact.EstimatedDebt, WALBytes: m.WAL.Size,
	}
}

// logger passes Pebble's messages on: its info, written at every flush, is our debug.
type logger struct {
	log *slog.Logger
	end func(why string)
}

func (l logger) Infof(format string, args ...any) {
	if l.log != nil && l.log.Enabled(context.Background(), slog.LevelDebug) {
		l.log.Debug("pebble: " + fmt.Sprintf(format, args...))
	}
}

func (l logger) Errorf(format string, args ...any) {
	if l.log != nil {
		l.log.Error("pebble: " + fmt.Sprintf(format, args...))
	}
}

// Fatalf is called where Pebble cannot go on, for example when its log cannot be written, and must not return: that would be to
// acknowledge what was not stored. A restart goes on from what was.
func (l logger) Fatalf(format string, args ...any) { l.end("pebble: " + fmt.Sprintf(format, args...)) }
