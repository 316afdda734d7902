package kafka

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	// maxSyncs bounds the files that are synced at once; file systems join such syncs into one write of their journal.
	maxSyncs = 32
	// settled is the age from which a folder's modification time tells that nothing was added since: time stamps of files are coarse.
	settled = time.Second
	// segmentSuffix and indexSuffix name kfake's files of a partition: record batches, and flags of each, in files named by first offset.
	segmentSuffix = ".dat"
	indexSuffix   = ".idx"
)

// syncer makes durable what the broker has written, before a client hears of it.
//
// kfake can sync by itself, but does so file by file in the one goroutine that answers all clients: two files for each partition of a
// request, and six a transaction. Here the goroutines that write responses wait, together: whoever comes while a round of syncs is under
// way shares the next one, in which all files that have grown are synced at once.
type syncer struct {
	dir   string
	fsync func(path string) error

	turn sync.Mutex // held during a round, and by those that wait for the next

	mu     sync.Mutex
	next   *round // that others may still join; nil: none
	failed chan struct{}
	err    error // of a sync; the files are no longer known to be complete, and no response is sent any more

	dirs map[string]*folder // held with turn
}

// round is one run over all files.
type round struct {
	done bool
	err  error
}

// folder is what a round has seen of one.
type folder struct {
	modified time.Time              // zero: to be listed again
	files    map[string]fs.FileInfo // what is on disk, and the folders in it
	watched  []string               // of the files, those that may grow
	folders  []string
}

func newSyncer(dir string) *syncer {
	return &syncer{dir: dir, fsync: syncFile, failed: make(chan struct{}), dirs: map[string]*folder{}}
}

// wait returns once everything that was written before the call is on disk.
func (s *syncer) wait() error {
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	if s.next == nil {
		s.next = &round{}
	}
	r := s.next
	s.mu.Unlock()

	s.turn.Lock()
	defer s.turn.Unlock()
	if r.done {
		return r.err
	}
	// From here on others join the round after this one: what they have written may be missed.
	s.mu.Lock()
	s.next = nil
	r.err = s.err
	s.mu.Unlock()
	if r.done = true; r.err != nil {
		return r.err
	}
	if r.err = s.sync(); r.err != nil {
		s.mu.Lock()
		s.err = r.err
		s.mu.Unlock()
		close(s.failed)
	}
	return r.err
}

// sync syncs all files that have changed since the last call. The caller holds turn.
func (s *syncer) sync() error {
	var changed []string
	if err := s.look(s.dir, &changed, everyFile); err != nil {
		return fmt.Errorf("look for what the embedded kafka has written: %w", err)
	}
	partitions := filepath.Join(s.dir, "partitions")
	if err := s.look(partitions, &changed, everyFile); err != nil {
		return fmt.Errorf("look for what the embedded kafka has written: %w", err)
	}
	if f := s.dirs[partitions]; f != nil {
		for _, name := range f.folders {
			if err := s.look(filepath.Join(partitions, name), &changed, lastSegment); err != nil {
				return fmt.Errorf("look for what the embedded kafka has written: %w", err)
			}
		}
	}
	if err := s.syncAll(changed); err != nil {
		return fmt.Errorf("sync the files of the embedded kafka: %w", err)
	}
	return nil
}

// everyFile watches all files of a folder.
func everyFile(names []string) []string { return names }

// lastSegment watches the last segment of a partition and its index: the ones before do not grow.
func lastSegment(names []string) []string {
	last, base := "", int64(-1)
	for _, name := range names {
		number, ok := strings.CutSuffix(name, segmentSuffix)
		if n, err := strconv.ParseInt(number, 10, 64); ok && err == nil && n > base {
			last, base = number, n
		}
	}
	if last == "" {
		return nil
	}
	return []string{last + segmentSuffix, last + indexSuffix}
}

// look appends what has changed in a folder; watch picks the files that may grow without a change of the folder itself.
func (s *syncer) look(dir string, changed *[]string, watch func([]string) []string) error {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		delete(s.dirs, dir)
		return nil
	}
	if err != nil {
		return err
	}
	f := s.dirs[dir]
	if f == nil {
		f = &folder{files: map[string]fs.FileInfo{}}
		s.dirs[dir] = f
	}
	if modified := info.ModTime(); !f.modified.Equal(modified) {
		if f.modified = modified; time.Since(modified) < settled {
			f.modified = time.Time{}
		}
		return s.list(dir, f, changed, watch)
	}
	for _, name := range f.watched {
		path := filepath.Join(dir, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			f.modified = time.Time{}
			continue
		}
		if err != nil {
			return err
		}
		f.note(path, info, changed)
	}
	return nil
}

// list looks at all files of a folder.
func (s *syncer) list(dir string, f *folder, changed *[]string, watch func([]string) []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var names []string
	before := f.files
	f.files, f.folders = make(map[string]fs.FileInfo, len(before)), nil
	renamed := false
	for _, e := range entries {
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue // renamed or removed just now, which changes the folder
		}
		if err != nil {
			return err
		}
		name := e.Name()
		// A file that was removed and made again may get the same number.
		was, known := before[name]
		renamed = renamed || !known || !os.SameFile(was, info) || !e.IsDir() && info.Size() < was.Size()
		if e.IsDir() {
			f.files[name] = info
			f.folders = append(f.folders, name)
			continue
		}
		if known {
			f.files[name] = was
		}
		names = append(names, name)
		f.note(filepath.Join(dir, name), info, changed)
	}
	if renamed {
		*changed = append(*changed, dir)
	}
	f.watched = watch(names)
	return nil
}

// note appends a file that is not as it is on disk.
func (f *folder) note(path string, info fs.FileInfo, changed *[]string) {
	name := filepath.Base(path)
	was, known := f.files[name]
	if known && was.Size() == info.Size() && was.ModTime().Equal(info.ModTime()) && os.SameFile(was, info) {
		return
	}
	f.files[name] = info
	*changed = append(*changed, path)
}

// syncAll syncs files and folders at once.
func (s *syncer) syncAll(paths []string) error {
	if len(paths) == 1 {
		return s.fsync(paths[0])
	}
	errs := make([]error, min(len(paths), maxSyncs))
	var wg sync.WaitGroup
	for w := range errs {
		wg.Go(func() {
			for i := w; i < len(paths); i += len(errs) {
				errs[w] = errors.Join(errs[w], s.fsync(paths[i]))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed: compaction, or a topic that was deleted
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// durable is a connection whose responses wait until what they tell of is on disk.
type durable struct {
	net.Conn
	syncer *syncer
}

// Write waits, and then writes.
func (d durable) Write(b []byte) (int, error) {
	if err := d.syncer.wait(); err != nil {
		return 0, err
	}
	return d.Conn.Write(b)
}
