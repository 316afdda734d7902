package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/backup"
)

const (
	// checkpointDir is where a checkpoint stands, below the store: on the same file system its files are hard links. Open removes one that a
	// crash has left.
	checkpointDir = "backup.tmp"
	// checkpointReserve is the room on disk that a checkpoint must leave: that of a memtable and its log.
	checkpointReserve = 2 * memTableBytes
	lockFile          = "LOCK"
)

// ErrNoRoom is returned where a checkpoint would take, or takes, the disk space that the store itself needs.
var ErrNoRoom = errors.New("too little disk space for a backup")

// Checkpoint is a copy of a whole store as it was at one moment. It takes disk space only: that of its log, and that of files which the store
// itself no longer needs. Where the file system has no hard links, all files are copies.
type Checkpoint struct {
	Identity Identity
	Offsets  map[int32]int64 // next client-events offset of each partition in it
	Files    []CheckpointFile
	Size     int64 // bytes of all files

	fs   vfs.FS
	root string // of the folder that Remove removes
}

// CheckpointFile is a file of a checkpoint.
type CheckpointFile struct {
	Name string // in the store's directory; it has no folders
	Size int64  // in bytes
}

// Checkpoint makes a copy of the store, which must be removed; there is one at a time. All batches committed before the call are in it. It was
// opened once, so that a store can be. Writes go on meanwhile. The error wraps ErrNoRoom if the disk is too full.
func (s *Store) Checkpoint() (_ *Checkpoint, err error) {
	s.closing.RLock()
	defer s.closing.RUnlock()
	if s.closed {
		return nil, ErrClosed
	}
	fs := s.opts.FS
	c := &Checkpoint{fs: fs, root: fs.PathJoin(s.dir, checkpointDir), Offsets: map[int32]int64{}}
	if err := c.Remove(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Remove())
		}
	}()
	if err := fs.MkdirAll(c.root, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of a checkpoint: %w", err)
	}
	// What is in files need not be replayed from the log by who opens the copy.
	if err := s.db.Flush(); err != nil {
		return nil, fmt.Errorf("flush the store for a checkpoint: %w", err)
	}
	if err := s.roomFor(c); err != nil {
		return nil, err
	}
	if err := s.db.Checkpoint(c.dir(), pebble.WithFlushedWAL()); err != nil {
		return nil, fmt.Errorf("make a checkpoint of the store: %w", err)
	}
	if err := c.inspect(s.opts); err != nil {
		return nil, fmt.Errorf("read a checkpoint of the store: %w", err)
	}
	return c, c.list()
}

func (c *Checkpoint) dir() string { return c.fs.PathJoin(c.root, "store") }

// roomFor checks that the disk has room for a checkpoint: Pebble copies the files if they cannot be linked, and when it cannot write its own
// any more, the process ends.
func (s *Store) roomFor(c *Checkpoint) error {
	m := s.db.Metrics()
	need := m.WAL.PhysicalSize
	linked, err := c.links()
	if err != nil {
		return err
	}
	if !linked {
		need += m.DiskSpaceUsage()
	}
	return c.room(need, linked)
}

// links reports whether the file system of the store has hard links.
func (c *Checkpoint) links() (bool, error) {
	name := c.fs.PathJoin(c.root, "link")
	f, err := c.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return false, fmt.Errorf("write to the folder of a checkpoint: %w", err)
	}
	return c.fs.Link(name, name+"ed") == nil, nil
}

// Room returns an error that wraps ErrNoRoom if the disk has become so full that the store needs the checkpoint's space.
func (c *Checkpoint) Room() error { return c.room(0, true) }

func (c *Checkpoint) room(need uint64, linked bool) error {
	usage, err := c.fs.GetDiskUsage(c.root)
	if errors.Is(err, vfs.ErrUnsupported) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask for the free space of %s: %w", c.root, err)
	}
	if usage.AvailBytes >= need+checkpointReserve {
		return nil
	}
	why := ""
	if !linked {
		why = ", since its file system has no hard links and all files are copied"
	}
	return fmt.Errorf("%w: the disk of data-dir has %d bytes free, and %d are needed%s", ErrNoRoom, usage.AvailBytes, need+checkpointReserve, why)
}

// inspect opens the copy and reads what it holds.
func (c *Checkpoint) inspect(opts *pebble.Options) (err error) {
	opts = opts.Clone()
	opts.ReadOnly, opts.CacheSize, opts.DisableTableStats = true, 1<<20, true
	db, err := pebble.Open(c.dir(), opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	value, closer, err := db.Get([]byte{kindSchema})
	if err != nil {
		return fmt.Errorf("its identity: %w", err)
	}
	c.Identity, err = decodeIdentity(value)
	if err := errors.Join(err, closer.Close()); err != nil {
		return err
	}
	copied := &Store{db: db}
	for id := range c.Identity.Partitions {
		if meta, found, err := copied.Meta(id); err != nil {
			return err
		} else if found {
			c.Offsets[id] = meta.Next
		}
	}
	return nil
}

// list finds the files.
func (c *Checkpoint) list() error {
	names, err := c.fs.List(c.dir())
	if err != nil {
		return fmt.Errorf("list the files of a checkpoint: %w", err)
	}
	for _, name := range names {
		info, err := c.fs.Stat(c.fs.PathJoin(c.dir(), name))
		if err != nil {
			return fmt.Errorf("list the files of a checkpoint: %w", err)
		}
		if name == lockFile || info.IsDir() {
			continue
		}
		c.Files = append(c.Files, CheckpointFile{Name: name, Size: info.Size()})
		c.Size += info.Size()
	}
	slices.SortFunc(c.Files, func(a, b CheckpointFile) int { return cmp.Compare(a.Name, b.Name) })
	return nil
}

// Open opens a file for reading.
func (c *Checkpoint) Open(f CheckpointFile) (io.ReadCloser, error) {
	r, err := c.fs.Open(c.fs.PathJoin(c.dir(), f.Name), vfs.SequentialReadsOption)
	if err != nil {
		return nil, fmt.Errorf("open a file of a checkpoint: %w", err)
	}
	return r, nil
}

// Remove removes the copy.
func (c *Checkpoint) Remove() error { return removeCheckpoint(c.fs, c.root) }

func removeCheckpoint(fs vfs.FS, root string) error {
	if err := fs.RemoveAll(root); err != nil {
		return fmt.Errorf("remove the checkpoint in %s: %w", root, err)
	}
	return nil
}

// Errors of Open for a directory that is not to be touched.
var (
	ErrUnfinished = errors.New("the restore into data-dir is not finished")
	ErrForeign    = errors.New("data-dir is not a materializer's")
)

// checkDir returns an error if a backup was not restored as a whole to dir, or if it has no store but something else.
func checkDir(fs vfs.FS, dir string) error {
	names, err := fs.List(dir)
	if err != nil {
		return nil // It may be absent. Whatever else is wrong with it, opening the store tells.
	}
	if slices.Contains(names, backup.Unfinished) {
		return fmt.Errorf("%w: %s has a file %s; empty the directory and restore the backup again, or start with it empty, which is filled from Kafka", ErrUnfinished, dir, backup.Unfinished)
	}
	if desc, err := pebble.Peek(dir, fs); err != nil || desc.Exists {
		return nil
	}
	slices.Sort(names)
	if i := slices.IndexFunc(names, func(name string) bool { return !ownFile(name) }); i >= 0 {
		return fmt.Errorf("%w: %s has no store, but %q: set another data-dir, or move away what is in it", ErrForeign, dir, names[i])
	}
	return nil
}

// ownFile reports whether a file may be in a directory without a store: one that a crash left of a store that was just begun, or one of the file
// system itself.
func ownFile(name string) bool {
	for _, pattern := range []string{".*", "lost+found", checkpointDir, lockFile, "CURRENT*", "MANIFEST-*", "OPTIONS-*", "marker.*", "temporary.*", "*.log", "*.sst", "*.dbtmp"} {
		if ok, err := path.Match(pattern, name); ok && err == nil {
			return true
		}
	}
	return false
}

// differsFrom names what is not the same, for a person.
func (i Identity) differsFrom(other Identity) string {
	var what []string
	for _, c := range []struct {
		differs bool
		name    string
	}{
		{i.KafkaCluster != other.KafkaCluster, "kafka cluster"},
		{i.TopicID != other.TopicID, "client-events"},
		{i.Partitions != other.Partitions, "number of partitions"},
		{i.NodeTopicID != other.NodeTopicID, "node-events"},
	} {
		if c.differs {
			what = append(what, c.name)
		}
	}
	return strings.Join(what, ", ")
}

// Clear removes everything of a partition.
func (s *Store) Clear(partition int32) error {
	b := s.db.NewBatch()
	for kind := kindMeta; kind < 0x80; kind++ {
		if err := b.DeleteRange(appendPrefix(nil, kind, partition), appendPrefixEnd(nil, kind, partition), nil); err != nil {
			return errors.Join(fmt.Errorf("clear partition %d: %w", partition, err), b.Close())
		}
	}
	if err := b.Commit(pebble.Sync); err != nil {
		return fmt.Errorf("clear partition %d: %w", partition, err)
	}
	return nil
}
