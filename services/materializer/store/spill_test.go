package store

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	spillChunks = 12
	spillRows   = 300
	spillMeta   = int64(300)
)

func spillChunk(seq uint64) Chunk {
	c := AppendOutbox(nil, &kgo.Record{Key: []byte("k"), Value: []byte(strings.Repeat(fmt.Sprintf("%d ", seq), 2_000))})[0]
	c.Seq = seq
	return c
}

// loadSpilled loads rows, an offset and an outbox of which all chunks but the last are spilled.
func loadSpilled(s *Store) error {
	x, err := s.Indexes(0)
	if err != nil {
		return err
	}
	before := s.NewBatch(0)
	before.PutChangelog(5)
	if err := before.Commit(); err != nil {
		return err
	}
	spill, err := s.NewSpill(0)
	if err != nil {
		return err
	}
	var chunks []Chunk
	for seq := range uint64(spillChunks) {
		c := spillChunk(seq + 1)
		if seq+1 < spillChunks {
			if err := spill.Put(&c); err != nil {
				_ = spill.Close() // of what could not be written
				return err
			}
		}
		chunks = append(chunks, c)
	}
	b, err := x.NewLoad(Load{First: true, Complete: true, Spill: spill})
	if err != nil {
		return err
	}
	putClients(b, spillRows)
	for i := range chunks {
		b.PutOutbox(&chunks[i])
	}
	b.PutMeta(&Meta{Next: spillMeta})
	return b.Commit()
}

// checkSpilled sees that a store has all of it, or nothing, and no files besides; it returns which.
func checkSpilled(t *testing.T, what string, s *Store) (all bool) {
	t.Helper()
	rows, chunks := 0, 0
	if _, err := s.Rows(0, nil, 1<<30, func(_, _ []byte) error {
		rows++
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if err := s.Outbox(0, func(c Chunk) error {
		if chunks++; c.Seq != uint64(chunks) {
			t.Errorf("%s: chunk %d is number %d", what, c.Seq, chunks)
		}
		want := spillChunk(c.Seq)
		if string(c.data) != string(want.data) {
			t.Errorf("%s: chunk %d is another one", what, c.Seq)
		}
		return nil
	}); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	meta, _, err := s.Meta(0)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if all = rows > 0; all != (rows == spillRows) || all != (chunks == spillChunks) || all != (meta.Next == spillMeta) || !all && chunks > 0 {
		t.Errorf("%s: %d rows, %d chunks, next offset %d", what, rows, chunks, meta.Next)
	}
	if next, err := s.Changelog(0); err != nil || all && next != 5 {
		t.Errorf("%s: what was committed before is at %d, error %v", what, next, err)
	}
	if names, err := s.opts.FS.List(path.Join(s.dir, loadDir)); err == nil && len(names) > 0 {
		t.Errorf("%s: left in the folder of loads: %q", what, names)
	}
	return all
}

// tablesOn returns the names of the tables in a store's directory.
func tablesOn(t *testing.T, fs vfs.FS) []string {
	t.Helper()
	names, err := fs.List("data")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasSuffix(name, ".sst") })
}

// A crash before any of the operations on files, from the first chunk that is spilled to the end of the load, leaves all of it or nothing.
func TestSpillSurvivesACrashAtEveryPoint(t *testing.T) {
	for _, unsynced := range []int{0, 50, 100} {
		random := rand.New(rand.NewPCG(uint64(unsynced), 1))
		fs := vfs.NewCrashableMem()
		var mu sync.Mutex
		var clones []*vfs.MemFS
		var before []string
		recording := false
		observed := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if recording && op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
				clones = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: random}))
				before = append(before, fmt.Sprintf("crash with %d %% of what was not synced, before operation %d on %s", unsynced, op.Kind, op.Path))
			}
			return nil
		}))
		s, err := Open("data", Options{CacheBytes: 1 << 20, FS: observed})
		if err != nil {
			t.Fatal(err)
		}
		record := func(on bool) {
			mu.Lock()
			defer mu.Unlock()
			recording = on
		}
		record(true)
		if err := loadSpilled(s); err != nil {
			t.Fatal(err)
		}
		record(false)
		clones, before = append(clones, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: unsynced, RNG: random})), append(before, "crash after all")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		whole := 0
		for i, clone := range clones {
			after, err := Open("data", Options{CacheBytes: 1 << 20, FS: clone})
			if err != nil {
				t.Fatalf("%s: %v", before[i], err)
			}
			all := checkSpilled(t, before[i], after)
			if all {
				whole++
			} else if whole > 0 && unsynced == 0 {
				t.Errorf("%s: the load is gone, and was there before", before[i])
			}
			live := after.db.Metrics().Total().TablesCount
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
			if names := tablesOn(t, clone); int64(len(names)) > live {
				t.Errorf("%s: %d tables are in use, and there are %q", before[i], live, names)
			}
		}
		if t.Logf("%d crashes, %d after the load", len(clones), whole); whole == 0 || whole == len(clones) || len(clones) < 30 {
			t.Errorf("%d crashes, %d after the load", len(clones), whole)
		}
	}
}

// A disk that is full, from any operation of a spill or its load on, is an error, were it not the end. It leaves nothing behind, and what was
// committed before.
func TestSpillOnAFullDisk(t *testing.T) {
	for n := 0; ; n++ {
		var mu sync.Mutex
		left, met, full := n, 0, false
		fs := vfs.NewMem()
		limited := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			grows := op.Kind == errorfs.OpCreate || op.Kind == errorfs.OpFileWrite || op.Kind == errorfs.OpMkdirAll || op.Kind == errorfs.OpFileSync
			// What fails outside of the folder of loads ends the process.
			if !full || !grows || !strings.Contains(op.Path, "/"+loadDir) {
				return nil
			}
			if left--; left >= 0 {
				return nil
			}
			met++
			return syscall.ENOSPC
		}))
		s, err := Open("data", Options{CacheBytes: 1 << 20, FS: limited, Exit: func(int) {}})
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		full = true
		mu.Unlock()
		err = loadSpilled(s)
		mu.Lock()
		failed := met > 0
		mu.Unlock()
		what := fmt.Sprintf("full from operation %d on", n)
		if failed != (err != nil) || failed && !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
			t.Errorf("%s: error %v", what, err)
		}
		if all := checkSpilled(t, what, s); all != (err == nil) {
			t.Errorf("%s: the load is there: %v, error %v", what, all, err)
		}
		mu.Lock()
		full = false
		mu.Unlock()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err == nil {
			if n < 20 {
				t.Errorf("a load takes %d operations", n)
			}
			return
		}
	}
}
