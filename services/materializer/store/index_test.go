package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Texts in keys sort as the texts do, whatever bytes they have, and what follows them is found.
func TestTextsInKeys(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	pieces := []string{"", "a", "b", "\x00", "\x01", "\xff", "\u00e9", "/", "\U0010ffff"}
	var texts []string
	for range 500 {
		s := ""
		for range random.IntN(5) {
			s += pieces[random.IntN(len(pieces))]
		}
		texts = append(texts, s)
	}
	for _, s := range texts {
		b := append(appendText(nil, s), "\x00\x01rest"...)
		n := textSize(b)
		if n < 0 || text(b[:n]) != s || string(b[n:]) != "\x00\x01rest" {
			t.Fatalf("%q is written as %x, of which %d bytes are the text", s, b, n)
		}
		for i := range n {
			if m := textSize(b[:i]); m >= 0 {
				t.Fatalf("%q: %d of %d bytes are a text of %d", s, i, n, m)
			}
		}
		for _, o := range texts {
			if got, want := bytes.Compare(appendText(nil, s), appendText(nil, o)), strings.Compare(s, o); got != want {
				t.Fatalf("%q and %q: keys compare as %d, texts as %d", s, o, got, want)
			}
		}
	}
	if n := textSize([]byte("a\x00\x02")); n >= 0 {
		t.Errorf("a text of %d bytes in what is none", n)
	}
}

func TestSinceInKeysIsInOrder(t *testing.T) {
	var before []byte
	for _, ms := range []int64{-1 << 63, -2, -1, 0, 1, t0, 1<<63 - 1} {
		key := appendSince(nil, 7, []byte("c/"), NeverSeen, ms)
		if bytes.Compare(before, key) >= 0 {
			t.Errorf("%d is not after those before it: %x", ms, key)
		}
		before = key
	}
}

func TestSuccessor(t *testing.T) {
	for _, key := range []string{"a", "a\xff", "a\xff\xff", "\x10\xff\xfe", "a\ufffd"} {
		next := successor([]byte(key))
		if strings.HasPrefix(string(next), key) || string(next) <= key+"\xff\xff\xff" || string(next[:len(next)-1]) != key[:len(next)-1] {
			t.Errorf("after all that begin with %q comes %q", key, next)
		}
	}
}

// indexedStore is a store with the indexes of one partition.
type indexedStore struct {
	*Store
	t  testing.TB
	fs *vfs.MemFS
	x  *Indexes
}

func openIndexed(t testing.TB, fs *vfs.MemFS) *indexedStore {
	t.Helper()
	s := &indexedStore{Store: open(t, fs), t: t, fs: fs}
	var err error
	if s.x, err = s.Indexes(1); err != nil {
		t.Fatal(err)
	}
	return s
}

// put writes a client's row with a status, and returns what is indexed of it.
func (s *indexedStore) put(client string, old Indexed, status presence.Presence, node, username string) Indexed {
	s.t.Helper()
	r := Row{Last: Transition{Status: status, Reason: presence.Connected, SinceMS: t0, Node: node, Key: "k"}}
	r.State.Apply(&presence.Fact{
		Kind: presence.Opened, Dialect: presence.DialectEMQX, Node: node, Connection: "k", TimeMS: t0, ReceivedMS: t0, ConnectedAtMS: t0, Username: username,
	})
	b := s.x.NewBatch()
	b.PutRow([]byte(client), old, &r, r.State.Append(nil))
	s.commit(b)
	return r.Indexed()
}

func (s *indexedStore) commit(b *Batch) {
	s.t.Helper()
	if err := b.Commit(); err != nil {
		s.t.Fatal(err)
	}
}

func unchanged([]byte, *Row) bool { return false }

func (s *indexedStore) build(limit int) {
	s.t.Helper()
	if err := s.x.Build(limit, unchanged); err != nil {
		s.t.Fatal(err)
	}
}

// check returns the differences that a check finds, and what it counted.
func (s *indexedStore) check() Check {
	s.t.Helper()
	v, err := s.NewView()
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := v.Check(context.Background(), 1)
	if err := errors.Join(err, v.Close()); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// valid reports whether a reader takes the indexes for complete.
func (s *indexedStore) valid() bool {
	s.t.Helper()
	v, err := s.NewView()
	if err != nil {
		s.t.Fatal(err)
	}
	valid, err := v.Indexed(1)
	if err := errors.Join(err, v.Close()); err != nil {
		s.t.Fatal(err)
	}
	return valid
}

// Rows that are written while the indexes are being built are in them once, on either side of the place that the building has reached; a
// crash in the middle has it begin again.
func TestBuildIsInterrupted(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	indexed := map[string]Indexed{}
	put := func(client string, status presence.Presence, node string) {
		indexed[client] = s.put(client, indexed[client], status, node, "fleet")
	}
	for i := range 20 {
		put(fmt.Sprintf("c/%02d", i), presence.Online, "n1")
	}
	if c := s.check(); c.Entries != 0 || s.valid() {
		t.Fatalf("before the building there are %d entries, complete: %v", c.Entries, s.valid())
	}
	s.build(8)
	for _, client := range []string{"c/00", "c/07", "c/08", "c/19", "a/1", "c/075", "d/1"} {
		put(client, presence.Offline, "n2")
	}
	if s.x.Valid() || s.valid() {
		t.Fatal("complete after the first of several parts")
	}
	if err := s.Sync(); err != nil {
		t.Fatal(err)
	}
	clone := s.fs.CrashClone(vfs.CrashCloneCfg{})
	for !s.x.Valid() {
		s.build(8)
	}
	c := s.check()
	if len(c.Differences) > 0 || c.Clients != 23 || c.Entries != 3*23 || !s.valid() {
		t.Errorf("after the building: %+v", c)
	}

	s = openIndexed(t, clone)
	if s.x.Valid() || s.valid() {
		t.Fatal("complete after a crash in the middle")
	}
	put("c/00", presence.Unknown, "n3") // not in the indexes, which are to be built from the start
	s.build(100)
	if c := s.check(); len(c.Differences) > 0 || c.Clients != 23 || c.Entries != 3*23 || !s.valid() {
		t.Errorf("after a crash: %+v", c)
	}
	put("c/00", presence.Online, "n1")
	if c := s.check(); len(c.Differences) > 0 {
		t.Errorf("after a row: %v", c.Differences)
	}
}

// Indexes of another version are not used, and built anew.
func TestIndexesOfAnotherVersion(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openIndexed(t, fs)
	s.put("c/1", Indexed{}, presence.Online, "n1", "fleet")
	s.build(10)
	old := []byte{indexVersion + 1}
	if err := errors.Join(
		s.db.Set(appendPrefix(nil, kindIndexed, 1), old, pebble.NoSync),
		s.db.Set(append(appendPrefix(nil, kindPlace, 1), "what another version wrote"...), nil, pebble.NoSync),
		s.db.Set(append(appendPrefix(nil, kindUsernameCount, 1), "c/fleet\x00\x01"...), []byte{77}, pebble.NoSync),
		s.Sync(),
	); err != nil {
		t.Fatal(err)
	}
	s = openIndexed(t, fs.CrashClone(vfs.CrashCloneCfg{}))
	if s.x.Valid() || s.valid() {
		t.Fatal("indexes of another version are taken for complete")
	}
	s.put("c/2", Indexed{}, presence.Online, "n1", "fleet")
	s.build(10)
	if c := s.check(); len(c.Differences) > 0 || c.Entries != 6 || !s.valid() {
		t.Errorf("built anew: %+v", c)
	}
}

// A check finds whatever is planted, and names it; the building of the indexes mends it.
func TestCheckFindsWhatDiffers(t *testing.T) {
	key := func(kind byte, rest string) []byte { return append(appendPrefix(nil, kind, 1), rest...) }
	since := string(appendSince(nil, 1, []byte("c/"), Standing(presence.Online), t0)[prefixSize:])
	for _, c := range []struct {
		name  string
		plant func(b *pebble.Batch) error
		want  string
	}{
		{"nothing", func(*pebble.Batch) error { return nil }, ""},
		{"a missing place", func(b *pebble.Batch) error { return b.Delete(key(kindPlace, "c/\x02n1\x00\x01one"), nil) },
			`the entry of client "c/one" in the index by status and node, at online "n1" in cluster "c/" is missing`},
		{"a missing since", func(b *pebble.Batch) error { return b.Delete(key(kindSince, since+"two"), nil) }, `the entry of client "c/two" in the index by since, at online`},
		{"a missing username", func(b *pebble.Batch) error { return b.Delete(key(kindUsername, "c/fleet\x00\x01one"), nil) },
			`the entry of client "c/one" in the index by username, at "fleet" in cluster "c/" is missing`},
		{"an extra place", func(b *pebble.Batch) error { return b.Set(key(kindPlace, "c/\x01n1\x00\x01one"), nil, nil) },
			`the entry of client "c/one" in the index by status and node, at offline "n1" in cluster "c/" is not what the row says`},
		{"a place of nobody", func(b *pebble.Batch) error { return b.Set(key(kindPlace, "c/\x02n1\x00\x01nobody"), nil, nil) }, `client "c/nobody"`},
		{"no key", func(b *pebble.Batch) error { return b.Set(key(kindUsername, "c/fleet"), nil, nil) }, "is no entry of an index"},
		{"a wrong counter", func(b *pebble.Batch) error { return b.Set(key(kindPlaceCount, "c/\x02n1\x00\x01"), []byte{9}, nil) },
			`the counter of the index by status and node, at online "n1" in cluster "c/" is 9, there are 2 entries`},
		{"a missing counter", func(b *pebble.Batch) error { return b.Delete(key(kindUsernameCount, "c/fleet\x00\x01"), nil) },
			`the counter of the index by username, at "fleet" in cluster "c/" is missing, there are 1 entries`},
		{"an extra counter", func(b *pebble.Batch) error { return b.Set(key(kindUsernameCount, "c/z\x00\x01"), []byte{1}, nil) },
			`at "z" in cluster "c/" is 1, there are 0 entries`},
		{"another row", func(b *pebble.Batch) error { return b.Delete(key(kindClient, "c/two"), nil) }, `client "c/two"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := openIndexed(t, vfs.NewCrashableMem())
			s.build(10)
			s.put("c/one", Indexed{}, presence.Online, "n1", "fleet")
			s.put("c/two", Indexed{}, presence.Online, "n1", "")
			b := s.db.NewBatch()
			if err := errors.Join(c.plant(b), b.Commit(pebble.NoSync)); err != nil {
				t.Fatal(err)
			}
			got := s.check()
			if found := slices.ContainsFunc(got.Differences, func(d string) bool { return strings.Contains(d, c.want) }); found != (c.want != "") || !found && len(got.Differences) > 0 {
				t.Errorf("found %q, want %q", got.Differences, c.want)
			}
			if err := s.x.Invalidate(); err != nil || s.valid() {
				t.Fatal("not to be built: ", err)
			}
			s.build(10)
			if got := s.check(); len(got.Differences) > 0 || !s.valid() {
				t.Errorf("after the repair: %q", got.Differences)
			}
		})
	}
}

func TestCheckNamesSomeOfMany(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	s.build(10)
	for i := range 3 * maxDifferences {
		s.put(fmt.Sprint("c/", i), Indexed{}, presence.Online, "n1", "")
	}
	if err := s.db.DeleteRange(appendPrefix(nil, kindSince, 1), appendPrefixEnd(nil, kindSince, 1), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if c := s.check(); len(c.Differences) != maxDifferences {
		t.Errorf("%d differences", len(c.Differences))
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	v, err := s.NewView()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 * checkEvery {
		s.put(fmt.Sprint("d/", i), Indexed{}, presence.Online, "n1", "")
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	if v, err = s.NewView(); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Check(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a check that nobody waits for ends with %v", err)
	}
	s.stopping.Store(true)
	if _, err := v.Check(context.Background(), 1); !errors.Is(err, ErrClosed) {
		t.Errorf("a check of a store that is to be closed ends with %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
}

// A counter that would fall below zero was wrong: the indexes are built anew.
func TestWrongCounterIsCountedAgain(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	s.build(10)
	one := s.put("c/one", Indexed{}, presence.Online, "n1", "fleet")
	one.Node = "n2" // it is not indexed there
	s.put("c/one", one, presence.Online, "n1", "fleet")
	if s.x.Valid() || s.valid() {
		t.Fatal("a counter below zero is taken for right")
	}
	s.build(10)
	if c := s.check(); len(c.Differences) > 0 || !s.valid() {
		t.Errorf("counted again: %q", c.Differences)
	}
}

// Counters that fall to zero are gone, through any number of flushes and compactions.
func TestCountersOfZero(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	s.build(10)
	var now Indexed
	for i := range 3 * maxUsernames {
		now = s.put("c/one", now, presence.Online, "n1", fmt.Sprint("token-", i))
		if i%1000 == 0 {
			if err := errors.Join(s.db.Flush(), s.db.Compact(context.Background(), []byte{kindPlace}, []byte{kindUsernameCount + 1}, false)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if c := s.check(); len(c.Differences) > 0 || c.Counters != 2 || c.Entries != 3 {
		t.Errorf("%+v", c)
	}
	b := s.x.NewBatch()
	b.DeleteRow([]byte("c/one"), now)
	s.commit(b)
	if c := s.check(); len(c.Differences) > 0 || c.Counters != 0 || c.Entries != 0 {
		t.Errorf("without a row: %+v", c)
	}
}

// Client IDs and usernames have up to 64 KiB: what a list reads ahead, and what is kept of counters, is bounded in bytes.
func TestLongTexts(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	s.build(10)
	const clients = 40
	long := strings.Repeat("x", 60_000)
	indexed := map[string]Indexed{}
	for i := range clients {
		client := fmt.Sprintf("c/%02d%s", i, long)
		indexed[client] = s.put(client, Indexed{}, presence.Online, "n1", fmt.Sprint(i%2, long))
	}
	if c := s.check(); len(c.Differences) > 0 || len(s.x.usernames) != 0 {
		t.Errorf("%+v, and %d counters in memory", c, len(s.x.usernames))
	}
	v, err := s.NewView()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, q := range []Query{{Cluster: "c"}, {Cluster: "c", Standings: []Standing{Standing(presence.Online)}}, {Cluster: "c", Since: &Span{}}} {
		c, err := v.Candidates([]int32{1}, &q, func(int32) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for n, err := c.Next(); n != nil || err != nil; n, err = c.Next() {
			if err != nil || string(n.ClientID) != fmt.Sprintf("%02d%s", seen, long) || n.Row == nil {
				t.Fatalf("client %d: %v", seen, err)
			}
			seen++
			for _, stream := range c.streams.all {
				if size := len(stream.mem); size > mostBytes+2<<17 {
					t.Fatalf("%d bytes read ahead", size)
				}
			}
		}
		if err := c.Close(); err != nil || seen != clients {
			t.Errorf("%d clients, %v", seen, err)
		}
	}
	for client, x := range indexed {
		b := s.x.NewBatch()
		b.DeleteRow([]byte(client), x)
		s.commit(b)
	}
	if c := s.check(); len(c.Differences) > 0 || c.Counters != 0 {
		t.Errorf("without rows: %+v", c)
	}
}

// A status that clients of very many nodes have is looked for in the rows.
func TestManyPlaces(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	s.build(10)
	for i := range maxPlaces + 1 {
		s.put(fmt.Sprintf("c/%04d", i), Indexed{}, presence.Online, fmt.Sprint("n", i), "")
	}
	s.put("c/x", Indexed{}, presence.Offline, "n1", "")
	v, err := s.NewView()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	}()
	for status, want := range map[presence.Presence]struct{ streams, candidates int }{presence.Online: {1, maxPlaces + 2}, presence.Offline: {1, 1}, presence.Unknown: {0, 0}} {
		c, err := v.Candidates([]int32{1}, &Query{Cluster: "c", Standings: []Standing{Standing(status)}}, func(int32) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for n, err := c.Next(); n != nil || err != nil; n, err = c.Next() {
			if err != nil {
				t.Fatal(err)
			}
			seen++
		}
		if len(c.streams.all) != want.streams || seen != want.candidates {
			t.Errorf("%v: %d candidates in %d streams, want %+v", status, seen, len(c.streams.all), want)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// With a row goes everything that the store has of its client.
func TestDeletedRowLeavesNothing(t *testing.T) {
	s := openIndexed(t, vfs.NewCrashableMem())
	s.build(10)
	client := []byte("c/one")
	now := s.put("c/one", Indexed{}, presence.Online, "n1", "fleet")
	b := s.x.NewBatch()
	b.MarkDirty(client)
	session := ended(1)
	b.AddSessions(client, AppendSession(nil, &session))
	b.AddEvidence(client, AppendEvidence(nil, &Evidence{Offset: 1}))
	forgotten := Row{State: presence.State{ForgottenMS: 1}}
	b.PutRow(client, now, &forgotten, forgotten.State.Append(nil))
	s.commit(b)
	count := func() (n int) {
		if err := s.scan(nil, nil, func(key, _ []byte) (bool, error) {
			if bytes.HasSuffix(key, []byte("one")) {
				n++
			}
			return true, nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 5 {
		t.Fatalf("%d keys of the client, want a row, a mark that it is dirty, a log, a history and the note of a marker", n)
	}
	b = s.x.NewBatch()
	b.DeleteRow(client, forgotten.Indexed())
	s.commit(b)
	if n := count(); n != 0 {
		t.Errorf("%d keys of a client without a row", n)
	}
}

func TestRowsNeedIndexes(t *testing.T) {
	s := open(t, vfs.NewMem())
	client, r := liveRow()
	b := s.NewBatch(1)
	b.PutRow(client, Indexed{}, &r, r.State.Append(nil))
	if err := b.Commit(); err == nil {
		t.Error("a row was written without indexes")
	}
}
