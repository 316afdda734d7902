package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/presence"
)

// opening is what the log keeps of a typical Opened.
func opening(offset int64) Evidence {
	ms := t0 + 1000*offset
	return Evidence{
		Offset: offset,
		Fact: presence.Fact{Kind: presence.Opened, Node: "emqx@10.0.3.11", Dialect: "emqx", Connection: fmt.Sprint(ms), TimeMS: ms + 1, ReceivedMS: ms + 12,
			ConnectedAtMS: ms},
		Changed: true,
		Change:  Change{Status: presence.Online, Belief: presence.Online, Previous: presence.Offline, Reason: presence.Connected, Node: 4711},
	}
}

func someEvidence() []Evidence {
	return []Evidence{
		opening(123_456_789),
		{Offset: 1, Outcome: presence.Ghost, Fact: presence.Fact{Kind: presence.Closed, Node: "n1", Dialect: "mosquitto-2.0", TimeMS: 2000, Order: 3,
			ReceivedMS: 1500, DisconnectedAtMS: 1999, Connection: "10.0.0.1:4711", Reason: presence.ReasonTakenOver, RawReason: "takenover"}},
		{Offset: 2, Outcome: presence.Duplicate, Restored: true, Fact: presence.Fact{Kind: presence.Closed, TimeMS: -1, Reason: presence.ReasonUnknown, RawReason: "?"}},
		{Offset: 3, Fact: presence.Fact{Kind: presence.Observed, TimeMS: 5, ReceivedMS: 7, Online: presence.Some(false), QueryStartMS: 9, QueryEndMS: 12, Source: "emqx-rest"}},
		{Offset: 4, Fact: presence.Fact{Kind: presence.Observed, Online: presence.Some(true), Connection: "k"}},
		{Offset: 5, Outcome: presence.Superseded, Fact: presence.Fact{Kind: presence.Observed, QueryStartMS: 9, QueryEndMS: 8}},
		{Offset: 6, Outcome: presence.TooOld, Fact: presence.Fact{Kind: presence.Forgotten, AsOfMS: t0, Source: "dev"}},
		{Offset: 0, Changed: true, Change: Change{Status: presence.Unknown, Belief: presence.Offline, Previous: presence.Online, Reason: presence.HistoryPruned, Node: -1}},
	}
}

func TestEvidenceRoundTrip(t *testing.T) {
	for i, want := range someEvidence() {
		log := AppendEvidence([]byte("before"), &want)[len("before"):]
		entry, rest, err := nextEvidence(log)
		if err != nil || len(rest) != 0 {
			t.Fatalf("%d: entry of %d bytes, rest %x, error %v", i, len(log), rest, err)
		}
		var got Evidence
		if err := got.decode(entry); err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if got != want {
			t.Errorf("%d: decoded\n%+v\nwant\n%+v", i, got, want)
		}
		for n := range entry {
			if err := got.decode(entry[:n]); !errors.Is(err, ErrCorrupt) {
				t.Errorf("%d: %d of %d bytes: error is %v", i, n, len(entry), err)
			}
		}
	}
}

func TestEvidenceIsSmall(t *testing.T) {
	e := opening(123_456_789)
	if n := len(AppendEvidence(nil, &e)); n > 48 {
		t.Errorf("an Opened takes %d bytes", n)
	}
	// Texts that are far too long are cut between characters.
	long := strings.Repeat("ä", 40_000)
	e.Fact.Node, e.Fact.Dialect, e.Fact.Connection, e.Fact.RawReason, e.Fact.Source = long, long, long, long, long
	log := AppendEvidence(nil, &e)
	if len(log) > 5*maxText+80 {
		t.Errorf("an entry with long texts takes %d bytes", len(log))
	}
	entry, _, err := nextEvidence(log)
	if err := errors.Join(err, e.decode(entry)); err != nil {
		t.Fatal(err)
	}
	if n := e.Fact.Node; len(n) > maxText || !strings.HasPrefix(long, strings.TrimSuffix(n, "…")) || n == strings.TrimSuffix(n, "…") {
		t.Errorf("node is %q", n)
	}
}

// However Pebble brackets the operands, the merged log is the same: the newest entries, after a note if others went.
func TestMergeKeepsTheNewestEvidence(t *testing.T) {
	const limit = 4
	random := rand.New(rand.NewPCG(1, 2))
	merger := merger(Options{EvidencePerClient: limit})
	for range 2000 {
		var operands [][]byte
		var want []int64
		cut := false
		for offset := int64(1); len(operands) < 1+random.IntN(8); {
			var operand []byte
			if random.IntN(8) == 0 {
				operand, cut = MarkCut(operand), true
			}
			for range 1 + random.IntN(limit) {
				e := opening(offset)
				operand, want = AppendEvidence(operand, &e), append(want, offset)
				offset++
			}
			operands = append(operands, operand)
		}
		if len(want) > limit {
			want, cut = want[len(want)-limit:], true
		}
		for len(operands) > 1 {
			i := random.IntN(len(operands) - 1)
			n := 2 + random.IntN(len(operands)-i-1)
			operands = append(append(operands[:i:i], mergeAll(t, merger, kindEvidence, operands[i:i+n], random.IntN(2) == 0)), operands[i+n:]...)
		}
		got, gotCut := offsets(t, mergeAll(t, merger, kindEvidence, operands, true))
		if fmt.Sprint(got) != fmt.Sprint(want) || gotCut != cut {
			t.Fatalf("got %v, cut %v; want %v, cut %v", got, gotCut, want, cut)
		}
	}
}

func mergeAll(t *testing.T, merger *pebble.Merger, kind byte, operands [][]byte, newer bool) []byte {
	t.Helper()
	// Pebble keeps its operands and may use their memory again.
	lend := func(b []byte) []byte { return bytes.Clone(b) }
	first, rest := operands[0], operands[1:]
	if !newer {
		first, rest = operands[len(operands)-1], operands[:len(operands)-1]
	}
	lent := lend(first)
	m, err := merger.Merge(appendClient(nil, kind, 0, nil), lent)
	clear(lent)
	for i := range rest {
		operand := rest[i]
		if !newer {
			operand = rest[len(rest)-1-i]
		}
		lent := lend(operand)
		if newer {
			err = errors.Join(err, m.MergeNewer(lent))
		} else {
			err = errors.Join(err, m.MergeOlder(lent))
		}
		clear(lent)
	}
	log, _, finishErr := m.Finish(true)
	if err := errors.Join(err, finishErr); err != nil {
		t.Fatal(err)
	}
	return log
}

func offsets(t *testing.T, log []byte) (all []int64, cut bool) {
	t.Helper()
	for len(log) > 0 {
		entry, rest, err := nextEvidence(log)
		if err != nil {
			t.Fatal(err)
		}
		if log = rest; len(entry) == 0 {
			cut = true
			continue
		}
		var e Evidence
		if err := e.decode(entry); err != nil {
			t.Fatal(err)
		}
		all = append(all, e.Offset)
	}
	return all, cut
}

func TestEvidenceStandsBesideTheRow(t *testing.T) {
	s := open(t, vfs.NewMem())
	client := []byte("default/a")
	add := func(fill func(*Batch)) {
		t.Helper()
		b := s.NewBatch(3)
		fill(b)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	check := func(first, last int64, wantCut bool) {
		t.Helper()
		log, complete, cut, err := s.Evidence(3, client)
		if err != nil || len(log) != int(last-first+1) || cut != wantCut || complete != len(log) {
			t.Fatalf("%d entries, cut %v, error %v; want %d to %d, cut %v", len(log), cut, err, first, last, wantCut)
		}
		for i := range log {
			if log[i] != opening(first+int64(i)) {
				t.Errorf("entry %d is %+v", i, log[i])
			}
		}
	}
	check(1, 0, false)
	for offset := int64(1); offset <= DefaultEvidence+2; offset++ {
		e := opening(offset)
		add(func(b *Batch) { b.AddEvidence(client, AppendEvidence(nil, &e)) })
		if offset == 2 {
			check(1, 2, false)
		}
	}
	check(3, DefaultEvidence+2, true)
	if err := s.db.Flush(); err != nil {
		t.Fatal(err)
	}
	check(3, DefaultEvidence+2, true)
	e := opening(50)
	add(func(b *Batch) { b.SetEvidence(client, AppendEvidence(nil, &e)) })
	check(50, 50, false)
	// A bound that was raised leaves a cut in the middle.
	next := opening(51)
	add(func(b *Batch) { b.AddEvidence(client, AppendEvidence(MarkCut(nil), &next)) })
	if log, complete, cut, err := s.Evidence(3, client); err != nil || len(log) != 2 || complete != 1 || !cut {
		t.Errorf("%d entries, %d complete, cut %v, error %v", len(log), complete, cut, err)
	}

	if from, err := s.Logged(3); err != nil || from != -1 {
		t.Errorf("logged from %d, error %v", from, err)
	}
	for _, want := range []int64{0, 17, -1} {
		add(func(b *Batch) { b.PutLogged(want) })
		if from, err := s.Logged(3); err != nil || from != want {
			t.Errorf("logged from %d, error %v, want %d", from, err, want)
		}
	}
}

// A store of the version before has another schema, and another merger, which Pebble sees first.
func TestOpenRefusesAnOlderStore(t *testing.T) {
	fs := vfs.NewMem()
	db, err := pebble.Open("data", &pebble.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open("data", Options{FS: fs, CacheBytes: 1 << 20})
	if err == nil {
		t.Fatal(errors.Join(errors.New("it was opened"), s.Close()))
	}
	for _, part := range []string{"data", "older version", "empty data-dir"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not say %q: %v", part, err)
		}
	}
}
