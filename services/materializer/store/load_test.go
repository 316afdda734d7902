package store

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/presence"
)

// loadClients loads the first rows of a partition and their logs.
func loadClients(t *testing.T, x *Indexes, n int, next int64) *Batch {
	t.Helper()
	b, err := x.NewLoad(true)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		client := fmt.Appendf(nil, "default/%06d", i)
		var r Row
		r.State.Apply(&presence.Fact{Kind: presence.Opened, Cluster: "default", Dialect: presence.DialectEMQX, Node: "n", Connection: "1", TimeMS: 1, ReceivedMS: 1, ConnectedAtMS: 1,
			Username: "fleet"})
		r.Last = Transition{Status: presence.Online, Reason: presence.Connected, Node: "n", Key: "1"}
		b.PutRow(client, Indexed{}, &r, r.State.Append(nil))
		b.AddEvidence(client, AppendEvidence(nil, &Evidence{Offset: int64(i), Fact: presence.Fact{Kind: presence.Opened, Node: "n"}}))
	}
	b.PutMeta(&Meta{Next: next})
	return b
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
