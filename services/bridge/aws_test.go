package bridge

import (
	"fmt"
	"math"
	"testing"

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
