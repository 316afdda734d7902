package store

import (
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// crowded is a disk that is full, once that is said, for some operations on some files.
type crowded struct {
	vfs.FS
	full atomic.Bool
}

func newCrowded(fs vfs.FS, kind errorfs.OpKind, part string) *crowded {
	c := &crowded{}
	c.FS = errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if c.full.Load() && op.Kind == kind && strings.Contains(op.Path, part) {
			return &os.PathError{Op: "write", Path: op.Path, Err: syscall.ENOSPC}
		}
		return nil
	}))
	return c
}

// ending is the end of a process, as far as a test can have one: whoever meets it goes no further.
type ending struct {
	mu    sync.Mutex
	said  strings.Builder
	codes chan int
}

func newEnding() *ending { return &ending{codes: make(chan int, 100)} }

func (e *ending) Write(p []byte) (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.said.Write(p)
}

func (e *ending) options(fs vfs.FS) Options {
	return Options{FS: fs, CacheBytes: 1 << 20, Log: slog.New(slog.NewTextHandler(e, nil)), Exit: func(code int) {
		e.codes <- code
		select {}
	}}
}

// expect runs what meets a full disk, and wants one line and a code of it.
func (e *ending) expect(t *testing.T, dir string, run func() error) {
	t.Helper()
	returned := make(chan error, 1)
	go func() { returned <- run() }()
	select {
	case code := <-e.codes:
		if code == 0 {
			t.Error("the process ends as if all were well")
		}
	case err := <-returned:
		t.Fatalf("the store goes on, error %v", err)
	case <-time.After(time.Minute):
		t.Fatal("the store waits, or tries for ever")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if want, said := "the store in "+dir+" cannot be written: no space left on device; make room", e.said.String(); strings.Count(said, "\n") != 1 ||
		!strings.Contains(said, want) || !strings.Contains(said, "level=ERROR") {
		t.Errorf("the process says\n%s\nwanted one line with %q", said, want)
	}
}

// write commits a batch with so many bytes that cannot be compressed.
func write(s *Store, seq uint64, size int) error {
	value := make([]byte, size)
	random := rand.New(rand.NewPCG(seq, 1))
	for i := range value {
		value[i] = byte(random.Uint32())
	}
	b := s.NewBatch(0)
	b.set(appendOutbox(nil, 0, seq), value)
	return b.Commit()
}

// A disk that is full ends the process with one line, whichever file has no room: Pebble itself would panic, throw or spin.
func TestFullDiskEnds(t *testing.T) {
	commits := func(s *Store) error {
		for seq := range uint64(200) {
			if err := write(s, seq, 64<<10); err != nil {
				return err
			}
		}
		return s.Sync()
	}
	flush := func(s *Store) error { return errors.Join(write(s, 1, 1<<10), s.db.Flush()) }
	for _, c := range []struct {
		name string
		kind errorfs.OpKind
		part string
		run  func(*Store) error
	}{
		{"the log", errorfs.OpFileWrite, ".log", commits},
		{"the log as it is synced", errorfs.OpFileSyncData, ".log", commits},
		{"a large batch", errorfs.OpFileWrite, ".log", func(s *Store) error { return write(s, 1, 48<<20) }},
		{"the next log", errorfs.OpCreate, ".log", flush},
		{"the next log for batches", errorfs.OpCreate, ".log", func(s *Store) error {
			for seq := range uint64(200) {
				if err := write(s, seq, 1<<20); err != nil {
					return err
				}
			}
			return nil
		}},
		{"a new table", errorfs.OpCreate, ".sst", flush},
		{"a table", errorfs.OpFileWrite, ".sst", flush},
		{"the manifest", errorfs.OpFileWrite, "MANIFEST", flush},
		{"a load", errorfs.OpFileWrite, "/" + loadDir + "/", loadSpilled},
		{"the folder of a load", errorfs.OpMkdirAll, "/" + loadDir + "/", loadSpilled},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			e, fs := newEnding(), newCrowded(vfs.NewMem(), c.kind, c.part)
			s, err := Open("data", e.options(fs))
			if err != nil {
				t.Fatal(err)
			}
			fs.full.Store(true)
			// The store stays open: who meets the end has its locks.
			e.expect(t, "data", func() error { return c.run(s) })
		})
	}
}

// A start on a full disk ends, too, and with room again everything is there that was synced.
func TestFullDiskEndsAStart(t *testing.T) {
	for _, c := range []struct {
		name string
		kind errorfs.OpKind
		part string
	}{
		{"what the log had", errorfs.OpFileWrite, ".sst"},
		{"the manifest", errorfs.OpFileWrite, "MANIFEST"},
		{"the next log", errorfs.OpCreate, ".log"},
		{"the lock", errorfs.OpLock, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			fs := vfs.NewCrashableMem()
			s := open(t, fs)
			if err := errors.Join(write(s, 1, 1<<20), s.Sync()); err != nil {
				t.Fatal(err)
			}
			clone := func() vfs.FS { return fs.CrashClone(vfs.CrashCloneCfg{}) }
			full := newCrowded(clone(), c.kind, c.part)
			full.full.Store(true)
			e := newEnding()
			e.expect(t, "data", func() error {
				s, err := Open("data", e.options(full))
				if err != nil {
					return err
				}
				// What the log had may be flushed in the background.
				return errors.Join(s.db.Flush(), s.Close())
			})
			found := 0
			if err := open(t, clone()).Outbox(0, func(Chunk) error { found++; return nil }); err != nil && !errors.Is(err, ErrCorrupt) {
				t.Error(err)
			} else if err == nil && found != 1 {
				t.Errorf("%d values of 1 are there", found)
			}
		})
	}
}

// A backup that has no room is no reason to end.
func TestFullDiskOfACheckpoint(t *testing.T) {
	e, dir := newEnding(), filepath.Join(t.TempDir(), "data")
	fs := newCrowded(vfs.Default, errorfs.OpFileWrite, checkpointDir)
	s, err := Open(dir, e.options(fs))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Bind(Identity{KafkaCluster: "k", Partitions: 1}), write(s, 1, 1<<10)); err != nil {
		t.Fatal(err)
	}
	fs.full.Store(true)
	if _, err := s.Checkpoint(); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a checkpoint without room: %v", err)
	}
	if err := errors.Join(write(s, 2, 1<<10), s.Sync(), s.Close()); err != nil {
		t.Error(err)
	}
	if e.said.Len() > 0 || len(e.codes) > 0 {
		t.Errorf("the process ends:\n%s", &e.said)
	}
}

// Names of clients are for the owner of the folder; who has made it otherwise has said so.
func TestFolderIsPrivate(t *testing.T) {
	made, given := filepath.Join(t.TempDir(), "data"), filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(given, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{made: "-rwx------", given: "-rwxr-xr-x"} {
		s, err := Open(dir, Options{CacheBytes: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(info.Mode().Perm()); got != want {
			t.Errorf("the folder is %s, wanted %s", got, want)
		}
	}
}
