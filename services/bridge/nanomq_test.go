package bridge

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

func TestNanoMQReason(t *testing.T) {
	for code, want := range map[string]presence.Reason{
		"0":   presence.ReasonNormal,
		"5":   presence.ReasonConnectionLost,
		"7":   presence.ReasonConnectionLost,
		"13":  presence.ReasonConnectionLost,
		"1f":  presence.ReasonConnectionLost,
		"8d":  presence.ReasonKeepAliveTimeout,
		"8e":  presence.ReasonSessionExpired,
		"98":  presence.ReasonKicked,
		"87":  presence.ReasonNotAuthorized,
		"82":  presence.ReasonProtocolError,
		"97":  presence.ReasonQuotaExceeded,
		"8b":  presence.ReasonServerShutdown,
		"80":  presence.ReasonServerError,
		"ff":  presence.ReasonOther,
		"":    presence.ReasonOther,
		"100": presence.ReasonOther,
		"0x8": presence.ReasonOther,
	} {
		if got := nanomqReason(code); got != want {
			t.Errorf("%q: got %v, want %v", code, got, want)
		}
	}
}

// nanomqEvent is what a client and NanoMQ contribute to an event.
type nanomqEvent struct {
	username, clientID string // the client's words
	code               uint8
	ts                 int64
	cleanStart         uint8
	offline, old       bool
}

// message prints the event as NanoMQ does.
func (e *nanomqEvent) message() *message {
	status, topic := `"status":"online", `, nanomqStatus+"/"+e.clientID
	if e.offline {
		status = `"status":"offline", `
	}
	if e.old {
		status, topic = "", nanomqConnected
		if e.offline {
			topic = nanomqDisconnected
		}
	}
	var text string
	if e.offline {
		text = fmt.Sprintf(`{%s"username":"%s","ts":%d,"reason_code":"%x","client_id":"%s","IPv4":"203.0.113.7"}`, status, e.username, e.ts, e.code, e.clientID)
	} else {
		text = fmt.Sprintf(`{%s"username":"%s", "ts":%d,"proto_name":"MQTT","keepalive":60,"return_code":"%x","proto_ver":4,"client_id":"%s","clean_start":%d, "IPv4":"203.0.113.7"}`,
			status, e.username, e.ts, e.code, e.clientID, e.cleanStart)
	}
	return &message{topic: topic, payload: []byte(text[:min(len(text), nanomqCut)]), receivedMS: receivedMS}
}

// FuzzNanoMQ lets a hostile client choose its user name and its ID: the event is about its own ID, says what NanoMQ says, and where its end was
// cut off claims nothing that could make an answer certain.
func FuzzNanoMQ(f *testing.F) {
	const forged = `u", "ts":9999999999999,"proto_name":"MQTT","keepalive":60,"return_code":"0","proto_ver":4,"client_id":"victim","clean_start":1, "IPv4":"203.0.113.7"}`
	for _, s := range []string{
		"fleet", "", "(null)", `a"b`, `a\b`, `a\u0041`, `","return_code":"0","x":"`, `u","client_id":"victim`, `victim","clean_start":1,"IPv4":"`,
		`victim","IPv4":"1"}`, `u","ts":1,"x":"`, `u","x":{"y":"`, forged, forged + strings.Repeat(" ", 40), strings.Repeat("x", 200), "dev\xff", "dev\uFFFD", "}",
	} {
		for _, old := range []bool{false, true} {
			f.Add(s, "VIN0000001", uint8(5), uint8(1), false, old)
			f.Add("fleet", s, uint8(0), uint8(0), false, old)
			f.Add(s, s, uint8(0x8e), uint8(1), true, old)
		}
	}
	f.Fuzz(func(t *testing.T, user, clientID string, code, cleanStart uint8, offline, old bool) {
		if strings.ContainsRune(user+clientID, 0) {
			return // NanoMQ's strings end there, and MQTT forbids it
		}
		e := nanomqEvent{username: user, clientID: clientID, code: code, ts: receivedMS - 1000, cleanStart: cleanStart & 1, offline: offline, old: old}
		m := e.message()
		d := &nanomqDecoder{cluster: "default"}
		result := read(d, m)
		checkDecoded(t, result)
		cut := len(m.payload) == nanomqCut
		if !cut && !offline && code != 0 && len(result.facts) > 0 {
			t.Fatalf("a refused CONNECT became %+v\n%s", result.facts[0], m.payload)
		}
		if !old && !cut && clientID != "" && utf8.ValidString(clientID) && (offline || code == 0) && len(result.facts) != 1 {
			t.Fatalf("%+v\n%s", result, m.payload)
		}
		for _, fact := range result.facts {
			switch {
			case fact.ClientID != clientID:
				t.Fatalf("client %q came out as %q\n%s", clientID, fact.ClientID, m.payload)
			case cut && fact.CleanStart.Valid, cut && fact.TimeMS > receivedMS+nanomqAheadMS:
				t.Fatalf("a cut event claims %+v\n%s", fact, m.payload)
			case !cut && fact.Username != username(strings.ToValidUTF8(user, replacement)):
				t.Fatalf("user name %q came out as %q\n%s", user, fact.Username, m.payload)
			case !cut && fact.TimeMS != e.ts:
				t.Fatalf("the event of %d is stamped %d\n%s", e.ts, fact.TimeMS, m.payload)
			case !cut && !offline && fact.CleanStart != presence.Some(e.cleanStart == 1):
				t.Fatalf("clean start %d came out as %+v\n%s", e.cleanStart, fact.CleanStart, m.payload)
			case !cut && offline && fact.RawReason != fmt.Sprintf("%x", code):
				t.Fatalf("code %x came out as %q\n%s", code, fact.RawReason, m.payload)
			}
		}
	})
}

// The events of NanoMQ before 0.24 have no address: an offline event ends with the client ID.
func TestNanoMQWithoutAddress(t *testing.T) {
	d := &nanomqDecoder{cluster: "default"}
	payload := `{"username":"(null)","ts":1760000060123,"reason_code":"8b","client_id":"VIN0000001"}`
	if !json.Valid([]byte(payload)) {
		t.Fatal("the payload is not JSON")
	}
	result := read(d, &message{topic: nanomqDisconnected, payload: []byte(payload), receivedMS: receivedMS})
	if len(result.facts) != 1 || result.facts[0].ClientID != "VIN0000001" || result.facts[0].Reason != presence.ReasonServerShutdown || result.facts[0].Peer != "" {
		t.Errorf("got %+v", result)
	}
}

// A stamp that a client may have made up does not outdo all that comes; one of NanoMQ's own may, its clock may be ahead.
func TestNanoMQStampAhead(t *testing.T) {
	for _, tt := range []struct {
		username string
		ahead    int64
		want     int64
	}{
		{"fleet", 3_600_000, receivedMS + 3_600_000},
		{strings.Repeat("u", 90), nanomqAheadMS, receivedMS + nanomqAheadMS},
		{strings.Repeat("u", 90), nanomqAheadMS + 1, receivedMS},
		{strings.Repeat("u", 90), -3_600_000, receivedMS - 3_600_000},
	} {
		e := nanomqEvent{username: tt.username, clientID: "VIN0000001", ts: receivedMS + tt.ahead, cleanStart: 1}
		result := read(&nanomqDecoder{cluster: "default"}, e.message())
		if len(result.facts) != 1 || result.facts[0].TimeMS != tt.want {
			t.Errorf("%d bytes of user name, %d ms ahead: got %+v", len(tt.username), tt.ahead, result)
		}
	}
}
