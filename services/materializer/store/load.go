package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// The first rows of a partition are many, and come in the order of their keys with all that stands beside them. They are written as the tables
// that the store would have made of them in the end, one per kind, and put into the store all at once, with the offset: a load is as atomic as
// any other batch, and costs no log, no memtable and no compaction.

// loadDir is where tables are written, inside the store's directory. What a crash left there is removed at the next start.
const loadDir = "load"

// load is the tables of a batch.
type load struct {
	store  *Store
	dir    string
	tables map[byte]*table // by kind
	size   int
}

type table struct {
	path string
	w    *sstable.Writer
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

// NewLoad returns an empty batch that writes the first rows of a partition that has none: all of them in ascending order, and so what stands
// beside them, each key once. If complete, indexes and counters are valid once it is committed. It must be committed or closed.
func (x *Indexes) NewLoad(complete bool) (*Batch, error) {
	x.changes.reset(x)
	l := &load{store: x.store, tables: map[byte]*table{}}
	l.dir = x.store.opts.FS.PathJoin(x.store.dir, loadDir, strconv.FormatUint(x.store.loads.Add(1), 10))
	if err := x.store.opts.FS.MkdirAll(l.dir, 0o755); err != nil {
		return nil, fmt.Errorf("make a directory for the first rows of partition %d: %w", x.partition, err)
	}
	if complete && !x.valid {
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
	t := l.tables[key[0]]
	if t == nil {
		opts := l.store.opts
		t = &table{path: opts.FS.PathJoin(l.dir, strconv.Itoa(int(key[0]))+".sst")}
		f, err := opts.FS.Create(t.path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return fmt.Errorf("make a table: %w", err)
		}
		t.w = sstable.NewWriter(objstorageprovider.NewFileWritable(f), l.store.tables)
		l.tables[key[0]] = t
	}
	l.size += len(key) + len(value)
	return t.w.Set(key, value)
}

// commit puts the tables into the store.
func (l *load) commit() error {
	paths := make([]string, 0, len(l.tables))
	for kind, t := range l.tables {
		// Close syncs the file.
		if err := t.w.Close(); err != nil {
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
