package eventlog

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// headersOf writes headers as text.
func headersOf(r *kgo.Record) []string {
	var out []string
	for _, h := range r.Headers {
		out = append(out, fmt.Sprintf("%s: %s", h.Key, h.Value))
	}
	return out
}

func TestTombstoneIsOfTheContract(t *testing.T) {
	for _, c := range []struct {
		tombstone Tombstone
		want      []string
	}{
		{Tombstone{Cluster: "default", ClientID: "a/b", Reason: RemovedForgotten, AsOfMS: 1_760_000_000_000, TimeMS: 1_760_000_000_123, EventOffset: 42, NodeEventOffset: -1},
			[]string{"reason: forgotten", "as_of_ms: 1760000000000", "event_offset: 42", "node_event_offset: -1"}},
		{Tombstone{Cluster: "c-1", ClientID: "grüße", Reason: RemovedExpired, TimeMS: 5, EventOffset: 0, NodeEventOffset: 7},
			[]string{"reason: expired", "event_offset: 0", "node_event_offset: 7"}},
		{Tombstone{Cluster: "c-1", ClientID: "a", Reason: RemovedExpired, AsOfMS: 3, TimeMS: 5, EventOffset: 0, NodeEventOffset: 7},
			[]string{"reason: expired", "as_of_ms: 3", "event_offset: 0", "node_event_offset: 7"}},
	} {
		r := TombstoneRecord(&c.tombstone, 3)
		key := c.tombstone.Cluster + "/" + c.tombstone.ClientID
		if r.Topic != TopicClientState || r.Partition != 3 || string(r.Key) != key || r.Value != nil || r.Timestamp.UnixMilli() != c.tombstone.TimeMS {
			t.Errorf("record %+v", r)
		}
		if got := headersOf(r); !slices.Equal(got, c.want) {
			t.Errorf("headers %q, want %q", got, c.want)
		}
		var got Tombstone
		if ok, err := DecodeTombstone(r, &got); !ok || err != nil || got != c.tombstone {
			t.Errorf("decoded %+v, %v, %v", got, ok, err)
		}
	}
}

func TestTombstoneOfSomebodyElse(t *testing.T) {
	header := func(key, value string) kgo.RecordHeader { return kgo.RecordHeader{Key: key, Value: []byte(value)} }
	for _, c := range []struct {
		name string
		r    kgo.Record
		bad  bool
	}{
		{"without headers", kgo.Record{Key: []byte("default/a")}, false},
		{"the end of a transaction", kgo.Record{Key: []byte(CheckpointKey)}, false},
		{"without a version", kgo.Record{Key: []byte("default/a"), Headers: []kgo.RecordHeader{header("reason", "expired"), header("event_offset", "1")}}, true},
		{"not a number", kgo.Record{Key: []byte("default/a"), Headers: []kgo.RecordHeader{header("reason", "expired"), header("event_offset", "x"), header("node_event_offset", "1")}}, true},
		{"forgotten, but not up to when", kgo.Record{Key: []byte("default/a"), Headers: []kgo.RecordHeader{header("reason", "forgotten"), header("event_offset", "1"), header("node_event_offset", "1")}}, true},
		{"a time in another unit", kgo.Record{Key: []byte("default/a"), Headers: []kgo.RecordHeader{header("reason", "forgotten"), header("as_of_ms", "1760000000000000000"), header("event_offset", "1"), header("node_event_offset", "1")}}, true},
		{"an offset that is none", kgo.Record{Key: []byte("default/a"), Headers: []kgo.RecordHeader{header("reason", "expired"), header("event_offset", "-2"), header("node_event_offset", "1")}}, true},
		{"not a client", kgo.Record{Key: []byte("a"), Headers: []kgo.RecordHeader{header("reason", "expired"), header("event_offset", "1"), header("node_event_offset", "1")}}, true},
	} {
		var s Tombstone
		if ok, err := DecodeTombstone(&c.r, &s); ok || errors.Is(err, ErrBadRecord) != c.bad {
			t.Errorf("%s: %v, %v", c.name, ok, err)
		}
	}
}

func TestCheckpointTellsTheClock(t *testing.T) {
	for _, format := range []Format{JSON, Protobuf} {
		want := ClientState{Checkpoint: true, TimeMS: 5, EventOffset: 42, NodeEventOffset: 7, ClockMS: 1_760_000_000_000}
		r := StateRecord(&want, 3, format)
		var got ClientState
		if err := DecodeClientState(r, &got); err != nil || got.ClockMS != want.ClockMS || got.EventOffset != 42 {
			t.Errorf("%v: decoded %+v, error %v", format, got, err)
		}
		if !r.Timestamp.Equal(time.UnixMilli(5)) {
			t.Errorf("%v: timestamp %v", format, r.Timestamp)
		}
	}
}
