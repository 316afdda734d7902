package store

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/presence"
)

// loadClients loads the first rows of a partition and their logs.
func loadClients(t *testing.T, x *Indexes, n int, next int64) *Batch {
	t.Helper()
	b, err := x.NewLoad(Load{First: true, Complete: true})
	if err != nil {
		t.Fatal(err)
	}
	putClients(b, n)
	b.PutMeta(&Meta{Next: next})
	return b
}

// putClients puts rows with a fact in the log of each.
func putClients(b *Batch, n int) {
	for i := range n {
		client := fmt.Appendf(nil, "default/%06d", i)
		var r Row
		r.State.Apply(&presence.Fact{Kind: presence.Opened, Cluster: "default", Dialect: presence.DialectEMQX, Node: "n", Connection: "1", TimeMS: 1, ReceivedMS: 1, ConnectedAtMS: 1,
			Username: "fleet"})
		r.Last = Transition{Status: presence.Online, Reason: presence.Connected, Node: "n", Key: "1"}
		b.PutRow(client, Indexed{}, &r, r.State.Append(nil))
		b.AddEvidence(client, AppendEvidence(nil, &Evidence{Offset: int64(i), Fact: presence.Fact{Kind: presence.Opened, Node: "n"}}))
	}
}

// A load is in the store whole or not at all, and with it everything that was committed before.
func TestLoadSurvivesCrashesAsABatch(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 1))
	for _, commit := range []bool{false, true} {
		for range 20 {
			fs := vfs.NewCrashableMem()
			s, err := Open("data", Options{CacheBytes: 1 << 20, FS: fs})
			if err != nil {
				t.Fatal(err)
			}
			before := s.NewBatch(7)
			before.PutMeta(&Meta{Next: 5})
			if err := before.Commit(); err != nil {
				t.Fatal(err)
			}
			x, err := s.Indexes(0)
			if err != nil {
				t.Fatal(err)
			}
			b := loadClients(t, x, 300, 300)
			crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
			if commit {
				if err := b.Commit(); err != nil {
					t.Fatal(err)
				}
				if !x.Valid() {
					t.Error("the indexes are not valid")
				}
				crashed = fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: random.IntN(101), RNG: random})
			} else if err := b.Close(); err != nil {
				t.Fatal(err)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			after, err := Open("data", Options{CacheBytes: 1 << 20, FS: crashed})
			if err != nil {
				t.Fatal(err)
			}
			checkLoaded(t, after, commit)
			if err := after.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func checkLoaded(t *testing.T, s *Store, loaded bool) {
	t.Helper()
	rows := 0
	if _, err := s.Rows(0, nil, 1<<30, func(client, _ []byte) error {
		rows++
		log, _, _, err := s.Evidence(0, client)
		if len(log) != 1 {
			t.Errorf("%s has %d facts", client, len(log))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	meta, _, err := s.Meta(0)
	if err != nil {
		t.Fatal(err)
	}
	x, err := s.Indexes(0)
	if err != nil {
		t.Fatal(err)
	}
	blank, err := s.Blank(0)
	if err != nil {
		t.Fatal(err)
	}
	if loaded != (rows == 300) || loaded != (meta.Next == 300) || loaded != x.Valid() || loaded == blank || !loaded && rows != 0 {
		t.Errorf("loaded %v: %d rows, next offset %d, indexes valid %v, blank %v", loaded, rows, meta.Next, x.Valid(), blank)
	}
	other, _, err := s.Meta(7)
	if err != nil || loaded && other.Next != 5 {
		t.Errorf("loaded %v: what was committed before is at %d, error %v", loaded, other.Next, err)
	}
	if names, err := s.opts.FS.List(s.opts.FS.PathJoin(s.dir, loadDir)); err == nil && len(names) > 0 {
		t.Errorf("a crash has left %q", names)
	}
}

// What was spilled is part of its load: read as any other chunk, and gone with a load that is not committed.
func TestSpill(t *testing.T) {
	s, err := Open("data", Options{CacheBytes: 1 << 20, FS: vfs.NewMem()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	x, err := s.Indexes(0)
	if err != nil {
		t.Fatal(err)
	}
	chunk := func(seq uint64) Chunk {
		c := AppendOutbox(nil, &kgo.Record{Key: []byte("k"), Value: fmt.Appendf(nil, "value %d", seq)})[0]
		c.Seq = seq
		return c
	}
	for _, commit := range []bool{false, true} {
		spill, err := s.NewSpill(0)
		if err != nil {
			t.Fatal(err)
		}
		spilled := []Chunk{chunk(1), chunk(2)}
		for i := range spilled {
			size := spilled[i].Size()
			if err := spill.Put(&spilled[i]); err != nil {
				t.Fatal(err)
			}
			if c := &spilled[i]; !c.Released() || c.Bytes() != 0 || c.Size() != size {
				t.Errorf("a chunk of %d bytes: %+v", size, c)
			}
		}
		b, err := x.NewLoad(Load{Spill: spill})
		if err != nil {
			t.Fatal(err)
		}
		kept := chunk(3)
		for _, c := range append(spilled, kept) {
			b.PutOutbox(&c)
		}
		end, want := b.Commit, []uint64{1, 2, 3}
		if !commit {
			end, want = b.Close, nil
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		var have []uint64
		if err := s.Outbox(0, func(c Chunk) error {
			have = append(have, c.Seq)
			return nil
		}); err != nil || !slices.Equal(have, want) {
			t.Errorf("commit %v: chunks %v, want %v, error %v", commit, have, want, err)
		}
		for i := range spilled {
			c, err := s.ReadChunk(0, &spilled[i])
			if !commit {
				if !errors.Is(err, ErrCorrupt) {
					t.Errorf("a chunk that is not there: %v", err)
				}
				continue
			}
			records, decodeErr := c.AppendRecords(nil)
			if err = errors.Join(err, decodeErr); err != nil || len(records) != 1 || string(records[0].Value) != fmt.Sprintf("value %d", i+1) {
				t.Errorf("chunk %d: %v, error %v", i+1, records, err)
			}
		}
	}
}
