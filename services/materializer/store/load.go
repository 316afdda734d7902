package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The rows of a working set are many, and come in the order of their keys with all that stands beside them. They are written as tables, one per kind,
// and put into the store all at once, with the offset: a load is as atomic as any other batch, and costs no log and no memtable. The first rows of a
// partition are the tables that the store would have made of them in the end, and cost no compaction either. The outbox of a set may be written
// before its rows, so that it need not be in memory: see [Spill].

// loadDir is where tables are written, inside the store's directory. What a crash left there is removed at the next start.
const loadDir = "load"

// load is the tables of a batch.
type load struct {
	store  *Store
	dir    string
	first  bool            // the partition has no rows
	tables map[byte]*table // by kind
	size   int
}

type table struct {
	path string
	w    *sstable.Writer
	// drops are the keys to remove that are not written yet, in ascending order: what was written last is below all of them.
	drops [][]byte
}

// Load is what a load is to be.
type Load struct {
	First    bool // the partition has no rows
	Complete bool // indexes and counters are valid once it is committed; of a first load only
	Spill    *Spill
}

// Spill is the first chunks of the outbox of a load, which are written before the load is begun. It belongs to one goroutine.
type Spill struct {
	partition int32
	load      *load
	key       []byte
}

// NewSpill returns an empty spill. It must be closed, or made part of a load.
func (s *Store) NewSpill(partition int32) (*Spill, error) {
	l, err := s.newLoad(partition)
	if err != nil {
		return nil, err
	}
	return &Spill{partition: partition, load: l}, nil
}

// Put writes a chunk, whose number must be larger than that of the one before it, and lets go of its bytes.
func (s *Spill) Put(c *Chunk) error {
	s.key = appendOutbox(s.key[:0], s.partition, c.Seq)
	if err := s.load.set(s.key, c.data); err != nil {
		return fmt.Errorf("write chunk %d of the outbox of partition %d: %w", c.Seq, s.partition, err)
	}
	c.Release()
	return nil
}

// Close drops what was written.
func (s *Spill) Close() error { return s.load.close() }

func (s *Store) newLoad(partition int32) (*load, error) {
	l := &load{store: s, tables: map[byte]*table{}}
	l.dir = s.opts.FS.PathJoin(s.dir, loadDir, strconv.FormatUint(s.loads.Add(1), 10))
	if err := s.opts.FS.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a directory for tables of partition %d: %w", partition, err)
	}
	return l, nil
}

// Blank reports whether a partition has no rows.
func (s *Store) Blank(partition int32) (bool, error) {
	blank := true
	lower, upper := kindBounds(partition, kindClient, "")
	err := s.scan(lower, upper, func(_, _ []byte) (bool, error) {
		blank = false
		return false, nil
	})
	return blank, err
}

// NewLoad returns a batch that writes many rows, all of them in ascending order, and so what stands beside them, each key once. The spill is part of
// the batch, also after an error. It must be committed or closed.
func (x *Indexes) NewLoad(o Load) (*Batch, error) {
	x.changes.reset(x)
	var l *load
	if o.Spill != nil {
		l = o.Spill.load
	} else {
		var err error
		if l, err = x.store.newLoad(x.partition); err != nil {
			return nil, err
		}
	}
	l.first = o.First
	if o.First && o.Complete && !x.valid {
		// A former version may have left something, which Build removes.
		var err error
		if x.loading, err = x.none(); err != nil {
			return nil, errors.Join(err, l.close())
		}
		x.blank = x.loading
	}
	return &Batch{store: x.store, partition: x.partition, load: l, changes: &x.changes}, nil
}

// none reports whether indexes and counters have no entries.
func (x *Indexes) none() (bool, error) {
	none := true
	for _, kinds := range [...][2]byte{{kindPlace, kindUsername}, {kindPlaceCount, kindUsernameCount}} {
		for kind := kinds[0]; kind <= kinds[1]; kind++ {
			lower, upper := kindBounds(x.partition, kind, "")
			if err := x.store.scan(lower, upper, func(_, _ []byte) (bool, error) {
				none = false
				return false, nil
			}); err != nil {
				return false, err
			}
		}
	}
	return none, nil
}

// set adds a key to the table of its kind.
func (l *load) set(key, value []byte) error {
	t, err := l.table(key[0])
	if err == nil {
		err = t.writeDrops(key)
	}
	if err != nil {
		return err
	}
	l.size += len(key) + len(value)
	return t.w.Set(key, value)
}

// merge adds what is to be merged with what the store has for a key. A table has a key only once, so that is not what the load removes.
func (l *load) merge(key, value []byte) error {
	t, err := l.table(key[0])
	if err == nil {
		if _, found := slices.BinarySearchFunc(t.drops, key, bytes.Compare); found {
			return fmt.Errorf("merge into key %x, which the same load removes", key)
		}
		err = t.writeDrops(key)
	}
	if err != nil {
		return err
	}
	l.size += len(key) + len(value)
	return t.w.Merge(key, value)
}

// drop removes a key. It may come before keys of its kind that are smaller, but not after a larger one was set.
func (l *load) drop(key []byte) error {
	if l.first {
		return nil // there is nothing
	}
	t, err := l.table(key[0])
	if err != nil {
		return err
	}
	l.size += len(key)
	if i, found := slices.BinarySearchFunc(t.drops, key, bytes.Compare); !found {
		t.drops = slices.Insert(t.drops, i, bytes.Clone(key))
	}
	return nil
}

// writeDrops writes the removals of keys below one that follows; nil: all.
func (t *table) writeDrops(next []byte) error {
	for len(t.drops) > 0 {
		key := t.drops[0]
		if next != nil {
			switch c := bytes.Compare(key, next); {
			case c > 0:
				return nil
			case c == 0: // what follows replaces it
				t.drops = t.drops[1:]
				return nil
			}
		}
		t.drops = t.drops[1:]
		if err := t.w.Delete(key); err != nil {
			return err
		}
	}
	return nil
}

// table returns the table of a kind, which is made if it is not there.
func (l *load) table(kind byte) (*table, error) {
	if t := l.tables[kind]; t != nil {
		return t, nil
	}
	opts := l.store.opts
	t := &table{path: opts.FS.PathJoin(l.dir, strconv.Itoa(int(kind))+".sst")}
	f, err := opts.FS.Create(t.path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, fmt.Errorf("make a table: %w", err)
	}
	o := l.store.tables
	// A removal in the lowest level would be hidden as one that has nothing left to remove. What is spilled before the kind of load is known, has none.
	o.WritingToLowestLevel = l.first
	if kind == kindOutbox {
		// Chunks are read once, and soon gone.
		o.Compression = block.NoCompression
	}
	t.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), o)
	l.tables[kind] = t
	return t, nil
}

// commit puts the tables into the store.
func (l *load) commit() error {
	paths := make([]string, 0, len(l.tables))
	for kind, t := range l.tables {
		// Close syncs the file.
		if err := errors.Join(t.writeDrops(nil), t.w.Close()); err != nil {
			t.w = nil
			return errors.Join(fmt.Errorf("write a table of kind %#x: %w", kind, err), l.close())
		}
		t.w = nil
		paths = append(paths, t.path)
	}
	// What is put in survives any crash: so must what was committed before it.
	err := l.store.Sync()
	if err == nil {
		err = l.store.db.Ingest(context.Background(), paths)
	}
	return errors.Join(err, l.close())
}

// close removes the files, which the store has names of its own for.
func (l *load) close() error {
	var errs []error
	for _, t := range l.tables {
		if t.w != nil {
			errs = append(errs, t.w.Close())
		}
	}
	return errors.Join(append(errs, l.store.opts.FS.RemoveAll(l.dir))...)
}
