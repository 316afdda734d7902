package store

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
)

// outgoing returns n records as the fold makes them: most with the same headers, some with others, or without a value.
func outgoing(n int) []kgo.Record {
	records := make([]kgo.Record, n)
	for i := range records {
		r := kgo.Record{Timestamp: time.UnixMilli(int64(1_000_000 - i)), Key: []byte("default/" + strconv.Itoa(i)), Value: bytes.Repeat([]byte{byte(i)}, i%700),
			Headers: []kgo.RecordHeader{{Key: "content-type", Value: []byte("application/json")}}}
		switch i % 10 {
		case 3:
			r.Value, r.Headers = nil, []kgo.RecordHeader{{Key: "reason", Value: []byte("expired")}, {Key: "event_offset", Value: []byte(strconv.Itoa(i))}}
		case 7:
			r.Headers = nil
		}
		if len(r.Value) == 0 {
			r.Value = nil
		}
		records[i] = r
	}
	return records
}

func chunksOf(records []kgo.Record) []Chunk {
	var chunks []Chunk
	for i := range records {
		chunks = AppendOutbox(chunks, &records[i])
	}
	for i := range chunks {
		chunks[i].Seq = uint64(i + 1)
	}
	return chunks
}

func recordsOf(t *testing.T, chunks []Chunk) []kgo.Record {
	t.Helper()
	var records []kgo.Record
	for i := range chunks {
		before := len(records)
		var err error
		if records, err = chunks[i].AppendRecords(records); err != nil {
			t.Fatal(err)
		}
		if n := len(records) - before; n != chunks[i].Records {
			t.Errorf("chunk %d has %d records, and says %d", i, n, chunks[i].Records)
		}
	}
	return records
}

func stored(t *testing.T, s *Store) []Chunk {
	t.Helper()
	var chunks []Chunk
	if err := s.Outbox(0, func(c Chunk) error { chunks = append(chunks, c); return nil }); err != nil {
		t.Fatal(err)
	}
	return chunks
}

func put(t *testing.T, s *Store, chunks []Chunk) {
	t.Helper()
	b := s.NewBatch(0)
	for i := range chunks {
		b.PutOutbox(&chunks[i])
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func TestChunksKeepRecordsAndOrder(t *testing.T) {
	records := outgoing(3000)
	big := kgo.Record{Timestamp: time.UnixMilli(5), Key: []byte("k"), Value: bytes.Repeat([]byte("x"), MaxChunkBytes+1)}
	records = slices.Insert(records, 1500, big)
	chunks := chunksOf(records)
	if len(chunks) < 4 || len(chunks) > 10 {
		t.Errorf("%d chunks", len(chunks))
	}
	for i := range chunks {
		if c := &chunks[i]; c.Bytes() > MaxChunkBytes && c.Records > 1 {
			t.Errorf("chunk %d has %d records and %d bytes", i, c.Records, c.Bytes())
		}
	}
	if got := recordsOf(t, chunks); !reflect.DeepEqual(got, records) {
		t.Error("records differ")
	}
	s := open(t, vfs.NewMem())
	put(t, s, chunks)
	if got := stored(t, s); !reflect.DeepEqual(recordsOf(t, got), records) || len(got) != len(chunks) {
		t.Error("records differ in the store")
	}
}

// A record that is added later does not change what was made of a chunk before.
func TestAppendOutboxCopies(t *testing.T) {
	r := outgoing(1)[0]
	r.Value = []byte("first")
	chunks := AppendOutbox(nil, &r)
	copy(r.Value, "other")
	if got := recordsOf(t, chunks); string(got[0].Value) != "first" {
		t.Errorf("value %q", got[0].Value)
	}
}

func TestChunkWithout(t *testing.T) {
	records := outgoing(50)
	chunk := chunksOf(records)[0]
	rest, err := chunk.Without(func(i int) bool { return i%2 == 0 })
	if err != nil {
		t.Fatal(err)
	}
	var want []kgo.Record
	for i := 1; i < len(records); i += 2 {
		want = append(want, records[i])
	}
	if got := recordsOf(t, []Chunk{rest}); rest.Seq != chunk.Seq || !reflect.DeepEqual(got, want) {
		t.Errorf("%d records are left, want %d", len(got), len(want))
	}
	if none, err := chunk.Without(func(int) bool { return true }); err != nil || none.Records != 0 {
		t.Errorf("%d records are left, %v", none.Records, err)
	}
	// What is left replaces the chunk.
	s := open(t, vfs.NewMem())
	put(t, s, []Chunk{chunk})
	put(t, s, []Chunk{rest})
	if got := recordsOf(t, stored(t, s)); !reflect.DeepEqual(got, want) {
		t.Errorf("the store has %d records, want %d", len(got), len(want))
	}
}

// A crash leaves a beginning of what was put into the outbox, and an end of it once chunks are removed: never a part of a batch.
func TestChunksSurviveACrash(t *testing.T) {
	records := outgoing(4000)
	chunks := chunksOf(records)
	for percent := 0; percent <= 100; percent += 25 {
		fs := vfs.NewCrashableMem()
		s := open(t, fs)
		put(t, s, chunks[:2])
		if err := s.Sync(); err != nil {
			t.Fatal(err)
		}
		put(t, s, chunks[2:4])
		b := s.NewBatch(0)
		b.DeleteOutbox(chunks[0].Seq, chunks[0].Seq)
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		got := stored(t, open(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(uint64(percent), 1))})))
		ok := false
		for _, want := range [][]Chunk{chunks[:2], chunks[:4], chunks[1:4]} {
			ok = ok || reflect.DeepEqual(recordsOf(t, got), recordsOf(t, want))
		}
		if !ok {
			t.Errorf("%d %%: %d chunks, the first is %d", percent, len(got), got[0].Seq)
		}
	}
}

func TestCorruptChunk(t *testing.T) {
	chunk := chunksOf(outgoing(3))[0]
	for _, value := range [][]byte{{}, {1}, {chunkFormat + 1}, chunk.data[:len(chunk.data)-1], append(slices.Clone(chunk.data), 0xff)} {
		s := open(t, vfs.NewMem())
		if err := s.db.Set(appendOutbox(nil, 0, 1), value, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if err := s.Outbox(0, func(Chunk) error { return nil }); !errors.Is(err, ErrCorrupt) {
			t.Errorf("value of %d bytes: %v, want ErrCorrupt", len(value), err)
		}
	}
}

// A store of the version before, whose outbox had one record per key, is refused.
func TestFormerSchemaIsRefused(t *testing.T) {
	s := open(t, vfs.NewMem())
	id := Identity{KafkaCluster: "c", Partitions: 1}
	value := id.append(nil)
	value[0] = schemaVersion - 1
	if err := s.db.Set([]byte{kindSchema}, value, pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := s.Bind(id); !errors.Is(err, ErrSchema) || errors.Is(err, ErrIdentity) {
		t.Errorf("bind: %v, want ErrSchema", err)
	}
}
