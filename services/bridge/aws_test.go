package bridge

import (
	"encoding/json"
	"fmt"
	"math"
	"testing"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

func TestAWSReason(t *testing.T) {
	for raw, want := range map[string]presence.Reason{
		"":                            presence.ReasonUnknown,
		"CLIENT_INITIATED_DISCONNECT": presence.ReasonNormal,
		"CONNECTION_LOST":             presence.ReasonConnectionLost,
		"MQTT_KEEP_ALIVE_TIMEOUT":     presence.ReasonKeepAliveTimeout,
		"DUPLICATE_CLIENTID":          presence.ReasonTakenOver,
		"API_INITIATED_DISCONNECT":    presence.ReasonKicked,
		"AUTH_ERROR":                  presence.ReasonNotAuthorized,
		"FORBIDDEN_ACCESS":            presence.ReasonNotAuthorized,
		"CUSTOMAUTH_TTL_EXPIRATION":   presence.ReasonNotAuthorized,
		"CLIENT_ERROR":                presence.ReasonProtocolError,
		"THROTTLED":                   presence.ReasonQuotaExceeded,
		"WEBSOCKET_TTL_EXPIRATION":    presence.ReasonQuotaExceeded,
		"SERVER_INITIATED_DISCONNECT": presence.ReasonServerShutdown,
		"SERVER_ERROR":                presence.ReasonServerError,
		"NONE":                        presence.ReasonOther,
		"connection_lost":             presence.ReasonOther,
	} {
		if got := (&awsEvent{DisconnectReason: raw}).reason(); got != want {
			t.Errorf("%q: got %v, want %v", raw, got, want)
		}
	}
	// The broker names the reason; whose initiative it was counts where it names none.
	for raw, want := range map[string]presence.Reason{
		"": presence.ReasonNormal, "NONE": presence.ReasonNormal, "DUPLICATE_CLIENTID": presence.ReasonTakenOver,
	} {
		if got := (&awsEvent{DisconnectReason: raw, ClientInitiatedDisconnect: true}).reason(); got != want {
			t.Errorf("%q, by the client: got %v, want %v", raw, got, want)
		}
	}
}

// The version is the order of what has one timestamp; one that an order cannot hold is no order.
func TestAWSOrder(t *testing.T) {
	for version, want := range map[int64]uint32{
		0: 1, 1: 2, math.MaxUint32 - 1: math.MaxUint32, math.MaxUint32: 0, math.MaxInt64: 0, -1: 0, math.MinInt64: 0,
	} {
		payload := fmt.Sprintf(`{"clientId":"a","timestamp":1,"sessionIdentifier":"s","versionNumber":%d}`, version)
		d := &awsDecoder{cluster: "default"}
		result := d.decode(&message{topic: awsRoot + "connected/a", payload: []byte(payload), receivedMS: receivedMS})
		if len(result.facts) != 1 || result.facts[0].Order != want {
			t.Errorf("version %d: got %+v, want order %d", version, result, want)
		}
	}
}

// FuzzAWS checks that what an event says comes out of it, or nothing does.
func FuzzAWS(f *testing.F) {
	f.Add("186b5", "a4666d2a7d844ae4ac5d7b38c9cb7967", int64(1573002230757), int64(0), "DUPLICATE_CLIENTID", false)
	f.Add("a/b \"c\"", "s", int64(1), int64(-1), "", true)
	f.Add("dev\xff", "\xff", int64(-1), int64(math.MaxInt64), "\x00", false)
	f.Add("dev\uFFFD", "", int64(math.MaxInt64), int64(math.MaxUint32), "NONE", true)
	f.Fuzz(func(t *testing.T, id, session string, ts, version int64, reason string, opened bool) {
		payload, err := json.Marshal(map[string]any{
			"clientId": id, "sessionIdentifier": session, "timestamp": ts, "versionNumber": version, "disconnectReason": reason,
		})
		if err != nil {
			t.Fatal(err)
		}
		kind, event := presence.Closed, "disconnected/"
		if opened {
			kind, event = presence.Opened, "connected/"
		}
		result := read(&awsDecoder{cluster: "default"}, &message{topic: awsRoot + event + id, payload: payload, receivedMS: receivedMS})
		checkDecoded(t, result)
		for _, fact := range result.facts {
			if fact.Kind != kind || fact.ClientID != id || utf8.ValidString(session) && fact.Connection != session || fact.TimeMS != ts {
				t.Fatalf("%s became %+v", payload, fact)
			}
		}
	})
}
