package eventlog

import (
	"bytes"
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// What is read of any JSON is what encoding/json reads: no more is accepted, and no value is another one.
func FuzzReadsWhatEncodingJSONReads(f *testing.F) {
	for _, seed := range []string{
		`{"id":"a","type":"connected","cluster":"c","client_id":"\u0041\ud83d\ude00\n","time_ms":1,"order":2,"online":true,"keep_alive_s":60}`,
		`{"time_ms":-0}`, `{"time_ms":1e3}`, `{"x":[1,{"y":null}],"username":"a\\b"}`, `{"username":"a","username":"b"}`, ` { "peer" : null } `,
		`{"\u0069d":"escaped name"}`, `{"new":-1.5e+7,"online":false}`, `{"a":[],"b":{},"c":[[]]}`, `{"time_ms":01}`, "{\"id\":\"\xff\"}", `{"id":"\ud800"}`,
		`{"new":1.}`, `{"new":--1}`, `{"new":[1,]}`, `{"protocol_version":256}`, `{"id":"a"}x`, "{\"id\":\"a\"}\x00",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var got presence.Fact
		err := DecodeFactJSON(b, &got)
		if err == nil && !json.Valid(b) {
			t.Fatalf("%q is read, and is not JSON", b)
		}
		var fields map[string]json.RawMessage
		if !utf8.Valid(b) || json.Unmarshal(b, &fields) != nil || fields == nil || bytes.Count(b, []byte(":")) != len(fields) {
			return // names that come twice, or are nested, are read by other rules
		}
		text := func(name string, v string) {
			var want string
			if raw, ok := fields[name]; ok && err == nil && (json.Unmarshal(raw, &want) != nil || want != v) {
				t.Errorf("%q: %s is read as %q, want %q", b, name, v, want)
			} else if !ok && v != "" {
				t.Errorf("%q: %s is read as %q, and is not there", b, name, v)
			}
		}
		number := func(name string, v int64) {
			var want int64
			if raw, ok := fields[name]; ok && err == nil && (json.Unmarshal(raw, &want) != nil || want != v) {
				t.Errorf("%q: %s is read as %d, want %d", b, name, v, want)
			} else if !ok && v != 0 {
				t.Errorf("%q: %s is read as %d, and is not there", b, name, v)
			}
		}
		text("id", got.ID)
		text("cluster", got.Cluster)
		text("client_id", got.ClientID)
		text("node", got.Node)
		text("connection", got.Connection)
		text("username", got.Username)
		text("peer", got.Peer)
		text("transport", got.Transport)
		text("raw_reason", got.RawReason)
		text("dialect", got.Dialect)
		text("source", got.Source)
		number("time_ms", got.TimeMS)
		number("order", int64(got.Order))
		number("received_ms", got.ReceivedMS)
		number("protocol_version", int64(got.ProtocolVersion))
		number("keep_alive_s", int64(got.KeepAliveS.Value))
		number("session_expiry_s", int64(got.SessionExpiryS.Value))
		number("query_end_ms", got.QueryEndMS)
		number("as_of_ms", got.AsOfMS)
	})
}
