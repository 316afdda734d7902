package bridge

import (
	"bytes"
	"fmt"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func openTestSpool(t testing.TB, dir string, maxBytes int64) *spool {
	t.Helper()
	s, err := openSpool(dir, maxBytes, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func record(i int) *kgo.Record {
	return &kgo.Record{Topic: "t", Key: fmt.Appendf(nil, "k%d", i), Value: bytes.Repeat([]byte{'v'}, 100), Timestamp: time.UnixMilli(int64(i)),
		Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}, {Key: "empty", Value: []byte{}}, {Key: "nil"}}}
}

func addRecords(t testing.TB, s *spool, from, to int) {
	t.Helper()
	b := s.newBatch()
	for i := from; i < to; i++ {
		if !b.add([]*kgo.Record{record(i)}, toBound) {
			t.Fatalf("record %d does not fit", i)
		}
	}
	if err := b.commit(); err != nil {
		t.Fatal(err)
	}
}

func TestSpoolKeepsOrderAcrossRestarts(t *testing.T) {
	dir := t.TempDir()
	s := openTestSpool(t, dir, 1<<20)
	if !s.empty() {
		t.Error("a new spool is not empty")
	}
	addRecords(t, s, 0, 100)
	if err := s.remember(map[string][]byte{"feed/default": []byte("x")}); err != nil {
		t.Fatal(err)
	}
	for restart := range 3 {
		if err := s.close(); err != nil {
			t.Fatal(err)
		}
		s = openTestSpool(t, dir, 1<<20)
		first, last := 20*restart, 100+10*restart
		if s.records != int64(last-first) {
			t.Errorf("restart %d: %d records, want %d", restart, s.records, last-first)
		}
		var got []*kgo.Record
		entries, err := s.read(1 << 20)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			got = append(got, e.records...)
		}
		if len(got) != last-first {
			t.Fatalf("restart %d: read %d records, want %d", restart, len(got), last-first)
		}
		for i, r := range got {
			if !reflect.DeepEqual(r, record(first+i)) {
				t.Fatalf("restart %d: record %d is %+v", restart, first+i, r)
			}
		}
		if err := s.remove(entries[19].sequence + 1); err != nil {
			t.Fatal(err)
		}
		addRecords(t, s, last, last+10)
	}
	if v, err := s.recall("feed/default"); err != nil || string(v) != "x" {
		t.Errorf("recalled %q, %v", v, err)
	}
	if v, err := s.recall("feed/other"); err != nil || v != nil {
		t.Errorf("recalled %q, %v", v, err)
	}
	if err := s.remove(s.next); err != nil {
		t.Fatal(err)
	}
	if !s.empty() || s.bytes != 0 || s.records != 0 {
		t.Errorf("after all was removed: %d records, %d bytes", s.records, s.bytes)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

func TestSpoolBound(t *testing.T) {
	s := openTestSpool(t, t.TempDir(), 1000)
	b := s.newBatch()
	fit := 0
	for i := range 100 {
		if b.add([]*kgo.Record{record(i)}, toBound) {
			fit++
		}
	}
	if fit < 5 || fit > 8 {
		t.Errorf("%d records fit", fit)
	}
	if !b.add([]*kgo.Record{record(0)}, unlimited) {
		t.Error("what must be kept does not fit")
	}
	if err := b.commit(); err != nil {
		t.Fatal(err)
	}
	b = s.newBatch()
	if b.add([]*kgo.Record{record(0)}, toBound) {
		t.Error("a full spool takes more")
	}
	if !b.add([]*kgo.Record{record(0)}, toReserve) {
		t.Error("the reserve takes nothing")
	}
	big := record(0)
	big.Value = make([]byte, reserveBytes)
	if b.add([]*kgo.Record{big}, toReserve) {
		t.Error("the reserve has no bound")
	}
	if err := b.commit(); err != nil {
		t.Fatal(err)
	}
	if entries, err := s.read(1); err != nil || len(entries) != 1 {
		t.Errorf("read %d entries, %v", len(entries), err)
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
}

func FuzzDecodeRecords(f *testing.F) {
	f.Add(appendRecords(nil, []*kgo.Record{record(1), record(2)}))
	f.Add([]byte{recordsVersion, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		records, err := decodeRecords(b)
		if err != nil {
			return
		}
		again, err := decodeRecords(appendRecords(nil, records))
		if err != nil || !reflect.DeepEqual(records, again) {
			t.Fatalf("%x: %v, then %v, %v", b, records, again, err)
		}
		if n := countRecords(b); n != uint64(len(records)) {
			t.Fatalf("%x: counted %d of %d", b, n, len(records))
		}
	})
}
