package bridge

import (
	"fmt"
	"math"
	"strings"

	"github.com/mqtt-presence/presence/libs/presence"
)

// awsDialect reads the lifecycle events of AWS IoT Core (AWS IoT Core Developer Guide, "Lifecycle events"):
//
//	$aws/events/presence/connected/<client ID>        JSON
//	$aws/events/presence/disconnected/<client ID>     JSON
//	$aws/events/presence/connect_failed/<client ID>   JSON: a CONNECT that was refused
//
// Events may come out of order and more than once, and their timestamp is within two minutes of the truth, on no node in particular: only
// sessionIdentifier, which is in both events of a connection, says what a disconnect ends. versionNumber, which is in both events too, grows
// with every connection of a client, but begins anew at 0 once the client was away for about an hour; it is the order of what has the same
// timestamp, plus one, as order has no 0.
//
// Clients whose ID holds + or # have no events. Nothing is promised about events while the bridge is away, so every outage is a gap. The broker
// takes subscriptions at QoS 0 or 1, at most eight a packet, and may refuse those of other dialects: name the dialect instead of auto.
var awsDialect = &dialect{
	name:       presence.DialectAWS,
	filters:    []filter{{topic: awsRoot + "#", qos: 1, events: true}},
	newDecoder: func(c decoderConfig) decoder { return &awsDecoder{cluster: c.cluster} },
}

const awsRoot = "$aws/events/presence/"

type awsDecoder struct{ cluster string }

func (d *awsDecoder) connected(sessionStart) {}

func (d *awsDecoder) subscribed(int64) {}

func (d *awsDecoder) owns(m *message) bool { return strings.HasPrefix(m.topic, awsRoot) }

// awsEvent is the payload of a lifecycle event.
type awsEvent struct {
	ClientID                  *string `json:"clientId"`
	Timestamp                 int64   `json:"timestamp"` // milliseconds, within two minutes
	SessionIdentifier         string  `json:"sessionIdentifier"`
	VersionNumber             *int64  `json:"versionNumber"`
	IPAddress                 string  `json:"ipAddress"` // connected only
	ClientInitiatedDisconnect bool    `json:"clientInitiatedDisconnect"`
	DisconnectReason          string  `json:"disconnectReason"`
}

func (d *awsDecoder) decode(m *message) decoded {
	event, topicID, _ := strings.Cut(strings.TrimPrefix(m.topic, awsRoot), "/")
	kind := presence.Opened
	switch event {
	case "connected":
	case "disconnected":
		kind = presence.Closed
	case "connect_failed":
		return ignore(ignoredRefused)
	default:
		return deadLetter(deadTopic, fmt.Sprintf("event %.40q is none of connected, disconnected and connect_failed", event))
	}
	if m.retain {
		return ignore(ignoredRetained)
	}
	var e awsEvent
	if why := parseJSON(m.payload, &e); why != nil {
		return decoded{dead: why}
	}
	id, why := clientID(e.ClientID, "clientId", topicID)
	switch {
	case why != nil:
		return decoded{dead: why}
	case e.SessionIdentifier == "":
		return deadLetter(deadField, `field "sessionIdentifier" is missing or empty: it names the connection`)
	case e.Timestamp <= 0:
		return deadLetter(deadField, `field "timestamp" is missing or not positive`)
	}
	f := presence.Fact{
		Kind:       kind,
		Cluster:    d.cluster,
		ClientID:   id,
		Dialect:    presence.DialectAWS,
		Connection: e.SessionIdentifier,
		TimeMS:     e.Timestamp,
		ReceivedMS: m.receivedMS,
		Peer:       e.IPAddress,
	}
	if v := e.VersionNumber; v != nil && *v >= 0 && *v < math.MaxUint32 {
		f.Order = uint32(*v) + 1
	}
	if kind == presence.Closed {
		f.RawReason, f.Reason = e.DisconnectReason, e.reason()
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// reason normalises disconnectReason, an open set.
func (e *awsEvent) reason() presence.Reason {
	switch e.DisconnectReason {
	case "CLIENT_INITIATED_DISCONNECT":
		return presence.ReasonNormal
	case "CONNECTION_LOST":
		return presence.ReasonConnectionLost
	case "MQTT_KEEP_ALIVE_TIMEOUT":
		return presence.ReasonKeepAliveTimeout
	case "DUPLICATE_CLIENTID":
		return presence.ReasonTakenOver
	case "API_INITIATED_DISCONNECT":
		return presence.ReasonKicked
	case "AUTH_ERROR", "FORBIDDEN_ACCESS", "CUSTOMAUTH_TTL_EXPIRATION":
		return presence.ReasonNotAuthorized
	case "CLIENT_ERROR":
		return presence.ReasonProtocolError
	case "THROTTLED", "WEBSOCKET_TTL_EXPIRATION":
		return presence.ReasonQuotaExceeded
	case "SERVER_INITIATED_DISCONNECT": // for operational reasons, such as maintenance
		return presence.ReasonServerShutdown
	case "SERVER_ERROR":
		return presence.ReasonServerError
	}
	switch {
	case e.ClientInitiatedDisconnect:
		return presence.ReasonNormal
	case e.DisconnectReason == "":
		return presence.ReasonUnknown
	}
	return presence.ReasonOther
}
