package store

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/presence"
)

func open(t testing.TB, fs vfs.FS) *Store {
	t.Helper()
	s, err := Open("data", Options{FS: fs, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// rowBatch returns a batch that may write rows; indexes are not maintained.
func rowBatch(t testing.TB, s *Store, partition int32) *Batch {
	t.Helper()
	x, err := s.Indexes(partition)
	if err != nil {
		t.Fatal(err)
	}
	return x.NewBatch()
}

const t0 = int64(1_760_000_000_000)

func TestMetaRoundTrip(t *testing.T) {
	want := Meta{Next: 1, AppliedMS: t0, SweptNode: -1, Checkpoint: 4, ClockMS: t0 + 5, AheadMS: t0 + 6, AllowanceMS: 7}
	b := want.append(nil)
	var got Meta
	if err := got.decode(b); err != nil || got != want {
		t.Errorf("decoded %+v, error %v", got, err)
	}
	for n := range b {
		if err := new(Meta).decode(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%d of %d bytes: error is %v", n, len(b), err)
		}
	}
	// What earlier formats did not have is zero.
	for format, n := range metaFields {
		var got Meta
		switch err := got.decode(append([]byte{byte(format)}, 1, 2, 3, 4, 5, 6, 7)[:1+n]); {
		case format == 0:
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("format 0: %v", err)
			}
		case err != nil || got.Next != 1 || got.SweptNode != 2 || (got.ClockMS == 5) != (format > 1) || (got.AllowanceMS == 7) != (format > 2):
			t.Errorf("format %d: %+v, %v", format, got, err)
		}
	}
	if err := new(Meta).decode([]byte{metaFormat + 1, 1, 2, 3, 4, 5, 6, 7}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a later format: %v", err)
	}
}

// liveRow is a client with one live connection: a 22 byte ID, a username and a peer.
func liveRow() (client []byte, r Row) {
	r = Row{ReceivedMS: t0 + 12, Last: Transition{
		Status: presence.Online, Belief: presence.Online, Previous: presence.Offline, Reason: presence.Connected, SinceMS: t0, Node: "emqx@10.0.3.11",
		Key: fmt.Sprint(t0), TimeMS: t0 + 1, Version: Version{Event: 123_456_789, Node: 4711},
	}}
	r.Latest = r.Last.Version
	r.State.Apply(&presence.Fact{
		Kind: presence.Opened, Dialect: presence.DialectEMQX, Node: "emqx@10.0.3.11", Connection: fmt.Sprint(t0), TimeMS: t0 + 1, ReceivedMS: t0 + 12,
		ConnectedAtMS: t0, Username: "fleet-000001", Peer: "203.0.113.7:51234", ProtocolVersion: 5, KeepAliveS: presence.Some[uint32](60),
		CleanStart: presence.Some(false), SessionExpiryS: presence.Some[uint32](7200),
	})
	return []byte("default/VIN0000001abcdefghijkl"), r
}

func rows() map[string]Row {
	_, live := liveRow()
	dirty := live
	dirty.Dirty, dirty.Latest, dirty.ReceivedMS = true, Version{Event: 200_000_000, Node: 4712}, 0
	elsewhere := live
	elsewhere.Last.Node, elsewhere.Last.Key, elsewhere.Last.SinceMS = "observed@node", "", 0
	return map[string]Row{
		"live": live, "dirty": dirty, "connection not in the state": elsewhere,
		"zero":  {},
		"first": {Last: Transition{Status: presence.Unknown, Belief: presence.Offline, Version: Version{Event: 0, Node: -1}}, Latest: Version{Event: 0, Node: -1}},
	}
}

func TestRowRoundTrip(t *testing.T) {
	for name, want := range rows() {
		t.Run(name, func(t *testing.T) {
			b := want.Append(nil, want.State.Append(nil))
			var got Row
			state, err := got.Decode(b)
			if err != nil {
				t.Fatal(err)
			}
			if g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want); g != w {
				t.Errorf("decoded\n%s\nwant\n%s", g, w)
			}
			if !bytes.Equal(state, want.State.Append(nil)) {
				t.Errorf("state is %x", state)
			}
			for i := range b {
				if _, err := got.Decode(b[:i]); !errors.Is(err, ErrCorrupt) && !errors.Is(err, presence.ErrCorrupt) {
					t.Errorf("%d of %d bytes: error is %v", i, len(b), err)
				}
			}
		})
	}
}

func TestRowIsSmall(t *testing.T) {
	_, r := liveRow()
	state := r.State.Append(nil)
	if n := len(r.Append(nil, state)); n > 110 {
		t.Errorf("the row of a live client has %d bytes, %d of them state", n, len(state))
	}
}

func FuzzRowDecode(f *testing.F) {
	for _, r := range rows() {
		f.Add(r.Append(nil, r.State.Append(nil)))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Row
		if _, err := r.Decode(b); err != nil {
			return
		}
		again := r.Append(nil, r.State.Append(nil))
		var s Row
		if _, err := s.Decode(again); err != nil || !bytes.Equal(s.Append(nil, s.State.Append(nil)), again) {
			t.Errorf("%x is read as %+v, written as %x, read as %+v: %v", b, r, again, s, err)
		}
	})
}

func TestBatchIsWholeOrNotThere(t *testing.T) {
	for percent := 0; percent <= 100; percent += 25 {
		fs := vfs.NewCrashableMem()
		s := open(t, fs)
		client, r := liveRow()
		for i := int64(1); i <= 50; i++ {
			b := rowBatch(t, s, 3)
			r.Last.Version.Event, r.Latest.Event = i, i
			b.PutRow(client, Indexed{}, &r, r.State.Append(nil))
			b.MarkDirty(client)
			chunk := AppendOutbox(nil, &kgo.Record{Timestamp: time.UnixMilli(i), Key: client, Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}}})[0]
			chunk.Seq = uint64(i)
			b.PutOutbox(&chunk)
			b.PutMeta(&Meta{Next: i + 1, SweptNode: -1})
			if err := b.Commit(); err != nil {
				t.Fatal(err)
			}
			if i == 20 {
				if err := s.Sync(); err != nil {
					t.Fatal(err)
				}
			}
		}
		c := open(t, fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(uint64(percent), 0))}))
		m, found, err := c.Meta(3)
		if err != nil || !found || m.Next < 21 {
			t.Fatalf("%d %%: meta is %+v, %v, %v", percent, m, found, err)
		}
		value, _, err := c.AppendRow(nil, 3, client)
		if err != nil {
			t.Fatal(err)
		}
		var got Row
		if _, err := got.Decode(value); err != nil || got.Latest.Event != m.Next-1 {
			t.Errorf("%d %%: the row is of offset %d, the next is %d: %v", percent, got.Latest.Event, m.Next, err)
		}
		var last uint64
		if err := c.Outbox(3, func(chunk Chunk) error {
			records, err := chunk.AppendRecords(nil)
			if err != nil {
				return err
			}
			if r := records[0]; chunk.Seq != last+1 || len(records) != 1 || r.Timestamp.UnixMilli() != int64(chunk.Seq) || string(r.Key) != string(client) || string(r.Value) != "v" || len(r.Headers) != 1 {
				t.Errorf("chunk %d with %+v after %d", chunk.Seq, records, last)
			}
			last = chunk.Seq
			return nil
		}); err != nil || int64(last) != m.Next-1 {
			t.Errorf("%d %%: the outbox ends at %d, the next offset is %d: %v", percent, last, m.Next, err)
		}
	}
}

func TestDeletedOutboxAndMarks(t *testing.T) {
	s := open(t, vfs.NewMem())
	client, r := liveRow()
	b := rowBatch(t, s, 1)
	put := func(b *Batch, seq uint64) {
		chunk := AppendOutbox(nil, &kgo.Record{})[0]
		chunk.Seq = seq
		b.PutOutbox(&chunk)
	}
	for i := range uint64(5) {
		put(b, i+1)
	}
	b.MarkDirty(client)
	b.PutRow(client, Indexed{}, &r, r.State.Append(nil))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	other := s.NewBatch(2)
	put(other, 2)
	other.MarkDirty(client)
	if err := other.Commit(); err != nil {
		t.Fatal(err)
	}
	b = s.NewBatch(1)
	b.DeleteOutbox(1, 3)
	b.ClearDirty(client)
	b.PutChangelog(77)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	count := func(partition int32) (entries, dirty int) {
		t.Helper()
		if err := errors.Join(
			s.Outbox(partition, func(Chunk) error { entries++; return nil }),
			s.Dirty(partition, func([]byte) (bool, error) { dirty++; return true, nil }),
		); err != nil {
			t.Fatal(err)
		}
		return entries, dirty
	}
	if e, d := count(1); e != 2 || d != 0 {
		t.Errorf("partition 1 has %d entries and %d marks, want 2 and 0", e, d)
	}
	if e, d := count(2); e != 1 || d != 1 {
		t.Errorf("partition 2 has %d entries and %d marks, want 1 and 1", e, d)
	}
	if n, err := s.Changelog(1); n != 77 || err != nil {
		t.Errorf("changelog offset is %d, %v", n, err)
	}
	if n, err := s.Changelog(2); n != 0 || err != nil {
		t.Errorf("changelog offset is %d, %v", n, err)
	}
}

func TestClientsInChunks(t *testing.T) {
	s := open(t, vfs.NewMem())
	_, r := liveRow()
	b := rowBatch(t, s, maxPartition)
	for _, client := range []string{"a/1", "a/2", "a/3", "a/4", "a-b/1", "b/1", "a0/1"} {
		b.PutRow([]byte(client), Indexed{}, &r, r.State.Append(nil))
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	var got []string
	var after []byte
	for chunks := 0; ; chunks++ {
		last, err := s.Clients(maxPartition, "a", after, 3, func(client, _ []byte) error {
			got = append(got, string(client))
			return nil
		})
		if err != nil || chunks > 2 {
			t.Fatalf("%d chunks, %v", chunks, err)
		}
		if last == nil {
			break
		}
		after = last
	}
	if strings.Join(got, " ") != "a/1 a/2 a/3 a/4" {
		t.Errorf("clients %v", got)
	}
}

func TestBindRefusesAnotherLog(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs)
	id := Identity{KafkaCluster: "one", TopicID: [16]byte{1}, NodeTopicID: [16]byte{3}, Partitions: 16}
	for range 2 {
		if err := s.Bind(id); err != nil {
			t.Fatal(err)
		}
	}
	for _, other := range []Identity{
		{KafkaCluster: "two", TopicID: id.TopicID, NodeTopicID: id.NodeTopicID, Partitions: 16},
		{KafkaCluster: "one", TopicID: [16]byte{2}, NodeTopicID: id.NodeTopicID, Partitions: 16},
		{KafkaCluster: "one", TopicID: id.TopicID, NodeTopicID: [16]byte{4}, Partitions: 16},
		{KafkaCluster: "one", TopicID: id.TopicID, NodeTopicID: id.NodeTopicID, Partitions: 8},
	} {
		err := s.Bind(other)
		if strings.Contains(fmt.Sprint(err), "delete client-state") != (other.NodeTopicID != id.NodeTopicID) {
			t.Errorf("what to do depends on what differs: %v", err)
		}
		if !errors.Is(err, ErrIdentity) || !strings.Contains(err.Error(), id.String()) || !strings.Contains(err.Error(), other.String()) {
			t.Errorf("error is %v", err)
		}
	}
}

func TestReadFaultIsAnError(t *testing.T) {
	fs := vfs.NewMem()
	s, err := Open("data", Options{FS: fs, CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	client, r := liveRow()
	b := rowBatch(t, s, 0)
	b.PutRow(client, Indexed{}, &r, r.State.Append(nil))
	if err := errors.Join(b.Commit(), s.db.Flush(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.AppendRow(nil, 0, client); !errors.Is(err, ErrClosed) {
		t.Errorf("error after close is %v", err)
	}
	var on errorfs.Toggle
	on.Injector = errorfs.ErrInjected.If(errorfs.Reads)
	s = open(t, errorfs.Wrap(fs, &on))
	on.On()
	if _, found, err := s.AppendRow(nil, 0, client); err == nil || found {
		t.Errorf("found %v, error %v", found, err)
	}
	// Pebble may keep the error of a file that it could not open: whoever meets one stops, and reads again after a restart.
	on.Off()
}

func BenchmarkRowSize(b *testing.B) {
	client, r := liveRow()
	state := r.State.Append(nil)
	var value []byte
	for b.Loop() {
		value = r.Append(value[:0], state)
	}
	b.ReportMetric(float64(len(value)), "value-bytes")
	b.ReportMetric(float64(len(state)), "state-bytes")
	b.ReportMetric(float64(prefixSize+len(client)), "key-bytes")
}

func BenchmarkAppendRow(b *testing.B) {
	s := open(b, vfs.NewMem())
	client, r := liveRow()
	const n = 100_000
	batch := rowBatch(b, s, 0)
	for i := range n {
		batch.PutRow(fmt.Appendf(client[:8], "VIN%019d", i), Indexed{}, &r, r.State.Append(nil))
	}
	if err := errors.Join(batch.Commit(), s.db.Flush()); err != nil {
		b.Fatal(err)
	}
	var value []byte
	var key []byte
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		key = fmt.Appendf(key[:0], "default/VIN%019d", i*7919%n)
		var err error
		if value, _, err = s.AppendRow(value[:0], 0, key); err != nil {
			b.Fatal(err)
		}
	}
}
