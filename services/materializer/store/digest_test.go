package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/presence"
)

// countAll leaves no row out of a digest.
func countAll([]byte, *Row) (bool, error) { return false, nil }

// digestsOf returns the blocks of partition 3.
func digestsOf(t testing.TB, s *Store, d Digest) []DigestBlock {
	t.Helper()
	if d.Absent == nil {
		d.Absent = countAll
	}
	v, err := s.NewView()
	if err != nil {
		t.Fatal(err)
	}
	var blocks []DigestBlock
	err = v.Digest(context.Background(), 3, &d, func(b *DigestBlock) error {
		blocks = append(blocks, DigestBlock{Last: bytes.Clone(b.Last), Clients: b.Clients, Sum: b.Sum})
		return nil
	})
	if err := errors.Join(err, v.Close()); err != nil {
		t.Fatal(err)
	}
	return blocks
}

// rowAt is a row whose state tells an opening time, and whose rest is arbitrary.
func rowAt(r *rand.Rand, openedMS int64) Row {
	row := Row{ReceivedMS: r.Int64N(1 << 40), Dirty: r.IntN(2) == 0, Latest: Version{Event: r.Int64N(99), Node: -1}}
	row.Last = Transition{Status: presence.Online, TimeMS: r.Int64N(1 << 40), Version: Version{Event: r.Int64N(99), Node: r.Int64N(9)}}
	row.State.Apply(&presence.Fact{
		Kind: presence.Opened, Cluster: "default", Dialect: presence.DialectEMQX, Node: "n1", Connection: fmt.Sprint(openedMS), ConnectedAtMS: openedMS,
		TimeMS: openedMS, ReceivedMS: openedMS + 5, Username: "fleet",
	})
	return row
}

// digestWorld is a store that is filled through detours with what it is to hold.
func digestWorld(t testing.TB, r *rand.Rand, want map[string]int64) *Store {
	s := open(t, vfs.NewMem())
	clients := slices.Collect(maps.Keys(want))
	slices.Sort(clients)
	r.Shuffle(len(clients), func(i, j int) { clients[i], clients[j] = clients[j], clients[i] })
	for len(clients) > 0 {
		n := min(len(clients), 1+r.IntN(700))
		b := rowBatch(t, s, 3)
		for _, c := range clients[:n] {
			put := func(ms int64) {
				row := rowAt(r, ms)
				b.PutRow([]byte(c), Indexed{}, &row, row.State.Append(nil))
			}
			switch r.IntN(4) {
			case 0:
				put(want[c] + 1)
			case 1:
				put(want[c])
				b.DeleteRow([]byte(c), Indexed{})
			case 2:
				row := rowAt(r, 1)
				b.PutRow([]byte(c+"x"), Indexed{}, &row, row.State.Append(nil))
				b.DeleteRow([]byte(c+"x"), Indexed{})
			}
			put(want[c])
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		clients = clients[n:]
	}
	// Another partition's rows are none of this one's.
	b := rowBatch(t, s, 4)
	row := rowAt(r, r.Int64())
	b.PutRow([]byte("default/other"), Indexed{}, &row, row.State.Append(nil))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return s
}

func randomStates(r *rand.Rand) map[string]int64 {
	states := map[string]int64{}
	for range r.IntN(6000) {
		states[fmt.Sprintf("default/%x", r.IntN(1<<20))] = t0 + r.Int64N(1<<30)
	}
	return states
}

func TestDigestIsThatOfTheStates(t *testing.T) {
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 1))
		states := randomStates(r)
		one, two := digestWorld(t, r, states), digestWorld(t, r, states)
		got, again := digestsOf(t, one, Digest{}), digestsOf(t, two, Digest{})
		if !slices.EqualFunc(got, again, sameBlock) {
			t.Fatalf("seed %d: the same states have %d and %d blocks that differ", seed, len(got), len(again))
		}
		var clients int64
		for _, b := range got {
			clients += b.Clients
		}
		if clients != int64(len(states)) {
			t.Errorf("seed %d: %d clients, want %d", seed, clients, len(states))
		}
		// A block can be asked for by itself, and client by client.
		for i, b := range got {
			d := Digest{Until: b.Last}
			if i > 0 {
				d.After = got[i-1].Last
			}
			if part := digestsOf(t, one, d); len(part) != 1 || !sameBlock(part[0], b) {
				t.Fatalf("seed %d: block %d by itself is %v, want %v", seed, i, part, b)
			}
			d.Each = true
			if each := digestsOf(t, one, d); int64(len(each)) != b.Clients || !bytes.Equal(each[len(each)-1].Last, b.Last) {
				t.Fatalf("seed %d: block %d has %d clients one by one, want %d", seed, i, len(each), b.Clients)
			}
		}
		if none := digestsOf(t, one, Digest{After: []byte("e"), Until: []byte("d")}); len(none) != 0 {
			t.Errorf("seed %d: %d blocks of nothing", seed, len(none))
		}
	}
}

func sameBlock(a, b DigestBlock) bool {
	return bytes.Equal(a.Last, b.Last) && a.Clients == b.Clients && a.Sum == b.Sum
}

// One row that is changed, missing or there too much is in the one range in which blocks differ, and is the one that differs in it.
func TestDigestNamesOneRow(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 2))
		states := randomStates(r)
		states["default/one"] = t0
		one := digestWorld(t, r, states)
		keys := slices.Sorted(maps.Keys(states))
		key, damaged := keys[r.IntN(len(keys))], maps.Clone(states)
		switch seed % 3 {
		case 0:
			damaged[key]++
		case 1:
			delete(damaged, key)
		case 2:
			key += "+"
			damaged[key] = t0
		}
		two := digestWorld(t, r, damaged)
		after, until, differ := firstDifference(digestsOf(t, one, Digest{}), digestsOf(t, two, Digest{}))
		if !differ || string(after) >= key || string(until) < key {
			t.Fatalf("seed %d: %s is not in the range from %s to %s (%v)", seed, key, after, until, differ)
		}
		d := Digest{After: after, Until: until, Each: true}
		before, named, differ := firstDifference(digestsOf(t, one, d), digestsOf(t, two, d))
		if !differ || string(before) >= key || string(named) < key {
			t.Fatalf("seed %d: %q is named, want %q", seed, named, key)
		}
	}
}

// firstDifference returns the range of clients in which the first blocks that differ are.
func firstDifference(a, b []DigestBlock) (after, until []byte, differ bool) {
	for i := 0; i < len(a) || i < len(b); i++ {
		switch {
		case i >= len(a):
			return after, b[i].Last, true
		case i >= len(b):
			return after, a[i].Last, true
		case !sameBlock(a[i], b[i]):
			until = a[i].Last
			if bytes.Compare(until, b[i].Last) < 0 {
				until = b[i].Last
			}
			return after, until, true
		}
		after = a[i].Last
	}
	return nil, nil, false
}

// Blocks are short, also where client IDs count up, and those behind a difference are the same again.
func TestDigestBlocksAlign(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	states := map[string]int64{}
	for i := range 60_000 {
		states[fmt.Sprintf("default/VIN%07d", i)] = t0
	}
	all := digestsOf(t, digestWorld(t, r, states), Digest{})
	longest := int64(0)
	for _, b := range all {
		longest = max(longest, b.Clients)
	}
	if len(all) < 30 || len(all) > 120 || longest > 10_000 {
		t.Fatalf("60,000 clients are in %d blocks, of at most %d", len(all), longest)
	}
	// The one at a block's end is missing: two blocks become one.
	delete(states, string(all[4].Last))
	rest := digestsOf(t, digestWorld(t, r, states), Digest{})
	if len(rest) != len(all)-1 || !slices.EqualFunc(rest[:4], all[:4], sameBlock) || !slices.EqualFunc(rest[5:], all[6:], sameBlock) {
		t.Errorf("%d blocks became %d, and not only two of them one", len(all), len(rest))
	}
}

func TestDigestLeavesOutWhatIsAbsent(t *testing.T) {
	r := rand.New(rand.NewPCG(4, 4))
	states := randomStates(r)
	kept := maps.Clone(states)
	maps.DeleteFunc(kept, func(c string, _ int64) bool { return c[len(c)-1] == '7' })
	without := digestsOf(t, digestWorld(t, r, states), Digest{Absent: func(c []byte, _ *Row) (bool, error) { return c[len(c)-1] == '7', nil }})
	if want := digestsOf(t, digestWorld(t, r, kept), Digest{}); !slices.EqualFunc(without, want, sameBlock) {
		t.Error("rows that are left out are not as if they were not there")
	}
}

func TestDigestEnds(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	s := digestWorld(t, r, map[string]int64{"default/a": 1, "default/b": 2})
	v, err := s.NewView()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	want := errors.New("enough")
	d := Digest{Absent: countAll, Each: true}
	if err := v.Digest(context.Background(), 3, &d, func(*DigestBlock) error { return want }); !errors.Is(err, want) {
		t.Errorf("error is %v", err)
	}
	d.Absent = func([]byte, *Row) (bool, error) { return false, want }
	if err := v.Digest(context.Background(), 3, &d, func(*DigestBlock) error { return nil }); !errors.Is(err, want) {
		t.Errorf("error is %v", err)
	}
	if m, found, err := v.Meta(3); found || err != nil || m.SweptNode != -1 {
		t.Errorf("%+v, %v, %v", m, found, err)
	}
}
