package eventlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/mqtt-presence/presence/libs/presence"
)

func connectedFact() presence.Fact {
	return presence.Fact{
		ID: "5b1f", Kind: presence.Opened, Cluster: "default", ClientID: "VIN0000001", Node: "emqx@10.0.3.11", Connection: "1760000000123",
		TimeMS: 1760000000124, ReceivedMS: 1760000000130, ConnectedAtMS: 1760000000123, Username: "fleet", Peer: "203.0.113.7", ProtocolVersion: 5,
		KeepAliveS: presence.Some(uint32(60)), CleanStart: presence.Some(false), SessionExpiryS: presence.Some(uint32(7200)), Dialect: "emqx",
	}
}

// TestGoldenJSON pins the bytes of records: consumers may rely on the field order, and copies of one record must be equal.
func TestGoldenJSON(t *testing.T) {
	opened := connectedFact()
	closed := presence.Fact{ID: "77", Kind: presence.Closed, Cluster: "default", ClientID: "a/b \"q\" 日本\t", Node: "mosquitto", TimeMS: 1760000005000, Order: 3,
		ReceivedMS: 1760000005123, Reason: presence.ReasonConnectionLost, RawReason: "closed its connection.", Dialect: "mosquitto-2.0"}
	off := presence.Fact{ID: "78", Kind: presence.Opened, Cluster: "default", ClientID: "x", Node: "n", TimeMS: 1, KeepAliveS: presence.Some(uint32(0)),
		CleanStart: presence.Some(true)}
	node := presence.NodeFact{ID: "9", Kind: presence.NodeStarted, Cluster: "default", Node: "emqx@10.0.3.11", Dialect: "emqx", TimeMS: 5, ReceivedMS: 6,
		UptimeMS: presence.Some(int64(0)), StartedMS: 4, StartedReceivedMS: 3}
	feed := presence.NodeFact{ID: "10", Kind: presence.Feed, Cluster: "default", Bridge: "bridge-1", TimeMS: 9, ReceivedMS: 9, CompleteSinceMS: 2, GapFromMS: 1, GapToMS: 2,
		DroppedCount: 7, DroppedFromMS: 1, DroppedToMS: 2, LeaseMS: 10000}
	state := ClientState{Transition: true, Cluster: "default", ClientID: "x", Status: presence.Offline, PreviousStatus: presence.Online, Belief: presence.Offline,
		StatusReason: presence.ConnectionClosed, SinceMS: 4, Node: "n", Connection: "1", ConnectedAtMS: 1, Reason: presence.ReasonNormal, RawReason: "normal", TimeMS: 5,
		EventOffset: 0, NodeEventOffset: 12, State: []byte{1, 2, 255}}
	for _, c := range []struct{ name, got, want string }{
		{"connected", string(AppendFactJSON(nil, &opened)), `{"id":"5b1f","type":"connected","cluster":"default","client_id":"VIN0000001","node":"emqx@10.0.3.11","connection":"1760000000123","time_ms":1760000000124,"received_ms":1760000000130,"connected_at_ms":1760000000123,"username":"fleet","peer":"203.0.113.7","protocol_version":5,"keep_alive_s":60,"clean_start":false,"session_expiry_s":7200,"dialect":"emqx"}`},
		{"disconnected", string(AppendFactJSON(nil, &closed)), `{"id":"77","type":"disconnected","cluster":"default","client_id":"a/b \"q\" 日本\t","node":"mosquitto","time_ms":1760000005000,"order":3,"received_ms":1760000005123,"reason":"connection_lost","raw_reason":"closed its connection.","dialect":"mosquitto-2.0"}`},
		{"zero is not absent", string(AppendFactJSON(nil, &off)), `{"id":"78","type":"connected","cluster":"default","client_id":"x","node":"n","time_ms":1,"keep_alive_s":0,"clean_start":true}`},
		{"node", string(AppendNodeFactJSON(nil, &node)), `{"id":"9","type":"started","cluster":"default","node":"emqx@10.0.3.11","dialect":"emqx","time_ms":5,"received_ms":6,"uptime_ms":0,"started_ms":4,"started_received_ms":3}`},
		{"feed", string(AppendNodeFactJSON(nil, &feed)), `{"id":"10","type":"feed","cluster":"default","bridge":"bridge-1","time_ms":9,"received_ms":9,"complete_since_ms":2,"gap_from_ms":1,"gap_to_ms":2,"dropped_count":7,"dropped_from_ms":1,"dropped_to_ms":2,"lease_ms":10000}`},
		{"state", string(AppendClientStateJSON(nil, &state)), `{"type":"state","transition":true,"cluster":"default","client_id":"x","status":"offline","previous_status":"online","status_reason":"closed","belief":"offline","since_ms":4,"node":"n","connection":"1","connected_at_ms":1,"reason":"normal","raw_reason":"normal","time_ms":5,"event_offset":0,"node_event_offset":12,"state":"AQL/"}`},
		{"checkpoint", string(AppendClientStateJSON(nil, &ClientState{Checkpoint: true, EventOffset: 7, NodeEventOffset: -1})), `{"type":"checkpoint","event_offset":7,"node_event_offset":-1}`},
	} {
		if c.got != c.want {
			t.Errorf("%s:\n%s\nwant\n%s", c.name, c.got, c.want)
		}
		if !json.Valid([]byte(c.got)) {
			t.Errorf("%s is not valid JSON", c.name)
		}
	}
}

// TestGoldenProtobuf pins the field numbers by the bytes of one record.
func TestGoldenProtobuf(t *testing.T) {
	f := presence.Fact{ID: "i", Kind: presence.Closed, Cluster: "c", ClientID: "x", TimeMS: 300, Reason: presence.ReasonNormal}
	want := "\n\x01i\x12\fdisconnected\x1a\x01c\"\x01x8\xac\x02\x9a\x01\x06normal"
	if got := string(FactRecord(&f, Protobuf).Value); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func text(t *rapid.T, label string) string {
	return rapid.OneOf(rapid.Just(""), rapid.String(), rapid.SampledFrom([]string{"a/b", "a%2Fb", "+/#", "x#y", "VIN 1", "日本", "a:b", ".", "..", "\"\\", "\x00\x1f\u2028", "😀"})).Draw(t, label)
}

func anyFact(t *rapid.T) presence.Fact {
	f := presence.Fact{
		ID: text(t, "id"), Kind: presence.Kind(rapid.Uint8Range(1, 4).Draw(t, "kind")), Cluster: "default", ClientID: "x" + text(t, "client"), Node: text(t, "node"),
		Connection: text(t, "connection"), TimeMS: rapid.Int64Range(1, maxTimeMS).Draw(t, "time"), Order: rapid.Uint32().Draw(t, "order"),
		ReceivedMS: rapid.Int64Range(0, maxTimeMS).Draw(t, "received"), ConnectedAtMS: rapid.Int64Range(0, maxTimeMS).Draw(t, "connected"),
		Username: text(t, "username"), Peer: text(t, "peer"), Transport: text(t, "transport"), ProtocolVersion: rapid.Uint8().Draw(t, "version"),
		Reason: presence.Reason(rapid.Uint8Range(0, uint8(presence.ReasonOther)).Draw(t, "reason")), RawReason: text(t, "raw"), Dialect: text(t, "dialect"),
		Online: presence.Some(rapid.Bool().Draw(t, "online")), Source: text(t, "source"), AsOfMS: rapid.Int64Range(0, maxTimeMS).Draw(t, "as of"),
	}
	if rapid.Bool().Draw(t, "options") {
		f.KeepAliveS, f.CleanStart = presence.Some(rapid.Uint32().Draw(t, "keep alive")), presence.Some(rapid.Bool().Draw(t, "clean"))
	}
	return f
}

// TestFactRoundTrip: what is written is read, in both formats, and our JSON is what encoding/json reads.
func TestFactRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := anyFact(t)
		for _, format := range []Format{JSON, Protobuf} {
			var got presence.Fact
			if err := DecodeFact(FactRecord(&f, format), &got); err != nil {
				if len(f.ClientID) > MaxClientIDBytes {
					return
				}
				t.Fatalf("%s: %v", format, err)
			}
			if got != f {
				t.Fatalf("%s: %+v became %+v", format, f, got)
			}
		}
		var m map[string]any
		if err := json.Unmarshal(AppendFactJSON(nil, &f), &m); err != nil || m["client_id"] != f.ClientID || m["time_ms"] != float64(f.TimeMS) {
			t.Fatalf("encoding/json reads %v: %v", m, err)
		}
	})
}

func TestNodeAndStateRoundTrip(t *testing.T) {
	node := presence.NodeFact{ID: "1", Kind: presence.NodeAlive, Cluster: "c", Node: "n", Dialect: "emqx", TimeMS: 1, ReceivedMS: 2, UptimeMS: presence.Some(int64(0)),
		StartedMS: 3, StartedReceivedMS: 4, CompleteSinceMS: 5, GapFromMS: 6, GapToMS: 7, ResyncedMS: 8, DroppedCount: 9, DroppedFromMS: 10, DroppedToMS: 11, LeaseMS: 12, SetBackFromMS: 14, SetBackToMS: 13,
		Covered: presence.Coverage{{FromMS: 1, ToMS: 2}, {FromMS: 3, ToMS: 3}}}
	state := ClientState{Transition: true, Cluster: "c", ClientID: "x", Status: presence.Unknown, PreviousStatus: presence.Online, Belief: presence.Online,
		StatusReason: presence.SuccessorUnseen, SinceMS: 1, Node: "n", Connection: "k", ConnectedAtMS: 2, Username: "u", Peer: "p", Reason: presence.ReasonTakenOver,
		RawReason: "takenover", TimeMS: 3, EventOffset: 4, NodeEventOffset: 5, State: []byte{0, 1}}
	checkpoint := ClientState{Checkpoint: true, EventOffset: 4, NodeEventOffset: -1}
	for _, format := range []Format{JSON, Protobuf} {
		var gotNode presence.NodeFact
		if err := DecodeNodeFact(NodeRecord(&node, format), &gotNode); err != nil || gotNode != node {
			t.Errorf("%s: %+v became %+v: %v", format, node, gotNode, err)
		}
		for _, s := range []ClientState{state, checkpoint} {
			var got ClientState
			if err := DecodeClientState(StateRecord(&s, 3, format), &got); err != nil || !reflect.DeepEqual(got, s) {
				t.Errorf("%s: %+v became %+v: %v", format, s, got, err)
			}
		}
	}
	if r := StateRecord(&state, 3, JSON); r.Partition != 3 || string(r.Key) != "c/x" {
		t.Errorf("partition %d, key %s", r.Partition, r.Key)
	}
}

func TestBadRecords(t *testing.T) {
	for _, c := range []struct{ value, want string }{
		{``, "JSON"},
		{`[]`, "JSON"},
		{`{"type":"connected"`, "JSON"},
		{`{"type":"connected"} x`, "more follows"},
		{`{"type":"connected",}`, "field name"},
		{`{"type":"nonsense","cluster":"default","client_id":"x","time_ms":1}`, `"type"`},
		{`{"type":"connected","cluster":"Default","client_id":"x","time_ms":1}`, `"cluster"`},
		{`{"type":"connected","cluster":"default","time_ms":1}`, "client_id"},
		{`{"type":"connected","cluster":"default","client_id":"x"}`, `"time_ms"`},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":"1"}`, `"time_ms"`},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":-1}`, `"time_ms"`},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":1.5}`, `"time_ms"`},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":99999999999999999999}`, `"time_ms"`},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":1760000000000000}`, `"time_ms"`},
		{`{"type":"observed","cluster":"default","client_id":"x","query_start_ms":1}`, `"online"`},
		{`{"type":"connected","cluster":"default","client_id":7,"time_ms":1}`, `"client_id"`},
		{`{"type":"connected","cluster":"default","client_id":"\ud800","time_ms":1}`, "surrogate"},
		{"{\"type\":\"connected\",\"cluster\":\"default\",\"client_id\":\"a\xff\",\"time_ms\":1}", "UTF-8"},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":1,"clean_start":1}`, `"clean_start"`},
		{`{"type":"connected","cluster":"default","client_id":"x","time_ms":1,"new":` + strings.Repeat("[", 100), "nested"},
	} {
		var f presence.Fact
		err := DecodeFact(&kgo.Record{Value: []byte(c.value)}, &f)
		if !errors.Is(err, ErrBadRecord) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to name %s", c.value, err, c.want)
		}
	}
	var f presence.Fact
	r := &kgo.Record{Value: []byte(`{}`), Headers: []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte("text/plain")}}}
	if err := DecodeFact(r, &f); !errors.Is(err, ErrBadRecord) || !strings.Contains(err.Error(), "text/plain") {
		t.Errorf("content type: %v", err)
	}
}

// TestNewerFields: readers pass over what they do not know, whatever its shape.
func TestNewerFields(t *testing.T) {
	var f presence.Fact
	v := ` { "type" : "connected" , "later":{"a":[1,-2.5e3,"x\"",null,true,{}],"b":false}, "cluster":"default","client_id":"\u65e5\ud83d\ude00\/","time_ms":1,"username":null,"list":[] } `
	if err := DecodeFact(&kgo.Record{Value: []byte(v)}, &f); err != nil || f.ClientID != "日😀/" || f.Username != "" {
		t.Fatalf("%+v: %v", f, err)
	}
}

func TestDeadLetterRoundTrip(t *testing.T) {
	for _, d := range []DeadLetter{
		{
			Source: SourceKafka, Topic: "t\xff", Partition: 2, Offset: 5, Cluster: "c", Dialect: "emqx", Reason: "bad_json", Detail: "field x", ReceivedMS: 3,
			Payload: []byte{255}, Key: []byte("c/\x00"), Headers: []kgo.RecordHeader{{Key: "key", Value: []byte("k")}, {Key: "empty", Value: []byte{}}, {Key: "null"}, {Key: "null"}},
		},
		{Source: SourceKafka, Topic: "no key", ReceivedMS: 3, Payload: []byte{}},
		{Source: SourceKafka, Topic: "empty key", ReceivedMS: 3, Key: []byte{}},
		{Source: SourceMQTT, Topic: "$SYS/brokers/n/clients/a/connected", Cluster: "c", Reason: "not_json", ReceivedMS: 3, Payload: []byte("{"), QoS: 2, Retain: true,
			Version: "$SYS/brokers/n/version 5.8.6", CutFrom: 9},
	} {
		got, err := DecodeDeadLetter(DeadLetterRecord(&d))
		if err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("%+v became %+v: %v", d, got, err)
		}
	}
}

// TestDeadLetterFits: whatever a record or message holds, its letter fits into a record, or the materializer could not get past it.
func TestDeadLetterFits(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 1_000_000)
	for _, d := range []DeadLetter{
		{Source: SourceMQTT, Topic: string(big[:65_535]), Payload: big},
		{Source: SourceKafka, Topic: "t", Payload: big, Key: big[:65_600], Detail: string(big)},
		{Source: SourceKafka, Topic: "t", Key: big},
		{Source: SourceKafka, Topic: "t", Headers: []kgo.RecordHeader{{Key: "a", Value: big}}},
	} {
		r := DeadLetterRecord(&d)
		size := len(r.Value)
		for _, h := range r.Headers {
			size += len(h.Key) + len(h.Value)
		}
		got, err := DecodeDeadLetter(r)
		if err != nil || size > 900_000 || got.CutFrom == 0 {
			t.Errorf("a letter of %d bytes, cut from %d: %v", size, got.CutFrom, err)
		}
	}
}

// Of a username that is longer than any that is meant to be read, the beginning is kept: whole characters, in both formats.
func TestLongUsernames(t *testing.T) {
	for _, c := range []struct{ name, want string }{
		{strings.Repeat("x", MaxUsernameBytes), strings.Repeat("x", MaxUsernameBytes)},
		{strings.Repeat("x", MaxUsernameBytes+1), strings.Repeat("x", MaxUsernameBytes)},
		{"xy" + strings.Repeat("日", MaxUsernameBytes), "xy" + strings.Repeat("日", (MaxUsernameBytes-2)/3)},
		{strings.Repeat("é", MaxUsernameBytes/2) + "z", strings.Repeat("é", MaxUsernameBytes/2)},
	} {
		for _, format := range []Format{JSON, Protobuf} {
			f := connectedFact()
			f.Username = c.name
			var got presence.Fact
			if err := DecodeFact(FactRecord(&f, format), &got); err != nil || got.Username != c.want {
				t.Errorf("%v: %d bytes are read as %d, want %d, error %v", format, len(c.name), len(got.Username), len(c.want), err)
			}
		}
	}
}

// FuzzDecodeFactJSON: no input panics; what is accepted is valid JSON to encoding/json too, and round-trips.
func FuzzDecodeFactJSON(f *testing.F) {
	fact := connectedFact()
	f.Add(AppendFactJSON(nil, &fact))
	f.Add([]byte(`{"type":"disconnected","cluster":"default","client_id":"\u0041\n","time_ms":1,"x":[{"y":1e5}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var got, again presence.Fact
		if DecodeFactJSON(b, &got) != nil {
			return
		}
		if err := DecodeFactJSON(AppendFactJSON(nil, &got), &again); err != nil || again != got {
			t.Fatalf("%+v became %+v: %v", got, again, err)
		}
	})
}

func BenchmarkEncodeFactJSON(b *testing.B) {
	b.ReportAllocs()
	f := connectedFact()
	var buf []byte
	for range b.N {
		buf = AppendFactJSON(buf[:0], &f)
	}
}

func BenchmarkDecodeFactJSON(b *testing.B) {
	b.ReportAllocs()
	f := connectedFact()
	v := AppendFactJSON(nil, &f)
	b.SetBytes(int64(len(v)))
	for range b.N {
		if err := DecodeFactJSON(v, &f); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDecodeEncodingJSON is the baseline: the standard library into a struct of the same fields.
func BenchmarkDecodeEncodingJSON(b *testing.B) {
	b.ReportAllocs()
	f := connectedFact()
	v := AppendFactJSON(nil, &f)
	b.SetBytes(int64(len(v)))
	for range b.N {
		var e struct {
			ID              string `json:"id"`
			Type            string `json:"type"`
			Cluster         string `json:"cluster"`
			ClientID        string `json:"client_id"`
			Node            string `json:"node"`
			Connection      string `json:"connection"`
			TimeMS          int64  `json:"time_ms"`
			ReceivedMS      int64  `json:"received_ms"`
			ConnectedAtMS   int64  `json:"connected_at_ms"`
			Username        string `json:"username"`
			Peer            string `json:"peer"`
			ProtocolVersion int    `json:"protocol_version"`
			KeepAliveS      *int   `json:"keep_alive_s"`
			CleanStart      *bool  `json:"clean_start"`
			SessionExpiryS  *int   `json:"session_expiry_s"`
			Dialect         string `json:"dialect"`
		}
		if err := json.Unmarshal(v, &e); err != nil {
			b.Fatal(err)
		}
	}
}
