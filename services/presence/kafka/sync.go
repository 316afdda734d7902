package kafka

import (
	"errors"
	"fmt"
	"io/fs"
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
	// partitionsDir holds a folder for each partition.
	partitionsDir = "partitions"
)

// syncer makes durable what the broker has written, before a client hears of it.
//
// kfake can sync by itself, but does so file by file in the one goroutine that answers all clients: two files for each partition of a
// request, and six a transaction. Here what a response tells of is synced beside that goroutine, folder by folder: a response that names the
// partitions which it is about waits for theirs alone, any other for all. Those who come while a folder is synced share its next round.
type syncer struct {
	dir   string
	fsync func(path string) error
	slots chan struct{} // holds one for each file that is synced

	mu      sync.Mutex
	folders map[string]*folder // by path
	failed  chan struct{}
	err     error // of a sync; the files are no longer known to be complete, and no response is sent any more
}

// round is one sync of what has changed in a folder.
type round struct {
	done chan struct{} // closed when it is on disk, or known not to be
}

// folder is one whose files are synced, and what was seen of them.
type folder struct {
	path  string
	watch func([]string) []string // picks the files that may grow without a change of the folder itself

	mu       sync.Mutex
	syncing  bool
	next     *round                 // that others may still join; nil: none
	known    bool                   // it was there
	modified time.Time              // zero: to be listed again
	files    map[string]fs.FileInfo // what is on disk or about to be, and the folders in it
	watched  []string               // of the files, those that may grow
	folders  []string
}

func newSyncer(dir string) *syncer {
	return &syncer{dir: dir, fsync: syncFile, slots: make(chan struct{}, maxSyncs), failed: make(chan struct{}), folders: map[string]*folder{}}
}

// waits is what somebody waits for.
type waits []*round

// add adds what was written to a folder before the call.
func (w *waits) add(s *syncer, f *folder) {
	if r := s.begin(f); r != nil {
		*w = append(*w, r)
	}
}

// wait returns once everything that was written before the call is on disk.
func (s *syncer) wait() error { return s.await(s.all()) }

// await returns once all of it is on disk.
func (s *syncer) await(w waits) error {
	for _, r := range w {
		<-r.done
	}
	return s.failure()
}

// failure is the first error of a sync.
func (s *syncer) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *syncer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.failed)
	}
}

// all begins to sync everything.
func (s *syncer) all() (w waits) {
	partitions := s.folder(filepath.Join(s.dir, partitionsDir))
	if r := s.begin(partitions); r != nil {
		// What is in it is known when a round has looked.
		<-r.done
	}
	for _, name := range partitions.inside() {
		w.add(s, s.folder(filepath.Join(partitions.path, name)))
	}
	w.add(s, s.folder(s.dir))
	return w
}

// partitions begins to sync some partitions, given as the names of their folders; false if one is not known yet, which all must wait for.
func (s *syncer) partitions(names []string) (w waits, ok bool) {
	if len(names) == 0 {
		return nil, true
	}
	dir := filepath.Join(s.dir, partitionsDir)
	w.add(s, s.folder(dir)) // one of them may have been made anew
	for _, name := range names {
		f := s.folder(filepath.Join(dir, name))
		if !f.seen() {
			return nil, false
		}
		w.add(s, f)
	}
	return w, true
}

// folder returns the folder with a path.
func (s *syncer) folder(path string) *folder {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.folders[path]
	if f == nil {
		f = &folder{path: path, watch: everyFile, files: map[string]fs.FileInfo{}}
		if filepath.Dir(path) != s.dir && path != s.dir {
			f.watch = lastSegment
		}
		s.folders[path] = f
	}
	return f
}

// begin returns the round that syncs what was written to a folder before the call, nil if all of that is on disk.
func (s *syncer) begin(f *folder) *round {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.syncing {
		// What its round has looked at may be from before.
		if f.next == nil {
			f.next = newRound()
		}
		return f.next
	}
	changed, err := f.look()
	if err == nil && len(changed) == 0 {
		return nil
	}
	f.syncing = true
	r := newRound()
	go s.run(f, r, changed, err)
	return r
}

func newRound() *round { return &round{done: make(chan struct{})} }

// run syncs a folder as long as somebody waits for it, beginning with what a look has found.
func (s *syncer) run(f *folder, r *round, changed []string, err error) {
	for r != nil {
		if err != nil {
			s.fail(fmt.Errorf("look for what the embedded kafka has written: %w", err))
		} else if err := s.syncAll(changed); err != nil {
			s.fail(fmt.Errorf("sync the files of the embedded kafka: %w", err))
		}
		close(r.done)
		f.mu.Lock()
		if r, f.next = f.next, nil; r != nil {
			changed, err = f.look()
		} else {
			f.syncing = false
		}
		f.mu.Unlock()
	}
}

// seen reports whether the folder was there when it was looked at.
func (f *folder) seen() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known
}

// inside returns the folders in it.
func (f *folder) inside() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.folders
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

// look returns what has changed. The caller holds mu.
func (f *folder) look() (changed []string, err error) {
	info, err := os.Stat(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.gone()
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f.known = true
	if modified := info.ModTime(); !f.modified.Equal(modified) {
		if f.modified = modified; time.Since(modified) < settled {
			f.modified = time.Time{}
		}
		return f.list()
	}
	for _, name := range f.watched {
		path := filepath.Join(f.path, name)
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			f.modified = time.Time{}
			continue
		}
		if err != nil {
			return nil, err
		}
		f.note(path, info, &changed)
	}
	return changed, nil
}

// gone notes that it is not there: a topic was deleted, or the broker has written nothing yet.
func (f *folder) gone() {
	f.known, f.modified, f.files, f.watched, f.folders = false, time.Time{}, map[string]fs.FileInfo{}, nil, nil
}

// list looks at all files.
func (f *folder) list() (changed []string, err error) {
	entries, err := os.ReadDir(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		f.gone()
		return nil, nil
	}
	if err != nil {
		return nil, err
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
			return nil, err
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
		f.note(filepath.Join(f.path, name), info, &changed)
	}
	if renamed {
		changed = append(changed, f.path)
	}
	f.watched = f.watch(names)
	return changed, nil
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
	if len(paths) == 0 {
		return nil
	}
	errs := make([]error, len(paths))
	var wg sync.WaitGroup
	for i, path := range paths[1:] {
		wg.Go(func() { errs[i+1] = s.syncOne(path) })
	}
	errs[0] = s.syncOne(paths[0])
	wg.Wait()
	return errors.Join(errs...)
}

func (s *syncer) syncOne(path string) error {
	s.slots <- struct{}{}
	defer func() { <-s.slots }()
	return s.fsync(path)
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
