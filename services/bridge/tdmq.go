package bridge

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/mqtt-presence/presence/libs/presence"
)

// tdmqDialect reads the events of Tencent's TDMQ for MQTT, as its documents describe them (cloud.tencent.com/document/product/1778). Their topics
// are fixed, and hold neither client ID nor node; the documents spell them in more than one way:
//
//	$events/client_connected                               JSON: connected_at
//	$events/client_disconnected, $events/client_disconnect JSON: disconnected_at; the documents show no connected_at
//	$event/...                                             the same
//
// A disconnected event names no connection, unless it has connected_at: a Closed without a key, which only an active query makes certain. The
// two events name the node in different forms (10.0.0.1:1883, sz-h-125xm), so their facts name none. There are no heartbeats: neither
// generations nor silence of a node can be told. QoS 0: every outage is a gap.
var tdmqDialect = &dialect{
	name: presence.DialectTDMQ,
	filters: []filter{
		{topic: "$events/client_connected", events: true},
		{topic: "$events/client_disconnected", events: true},
		{topic: "$events/client_disconnect", events: true},
		{topic: "$event/client_connected", events: true},
		{topic: "$event/client_disconnected", events: true},
		{topic: "$event/client_disconnect", events: true},
	},
	newDecoder: func(c decoderConfig) decoder { return &tdmqDecoder{cluster: c.cluster} },
}

type tdmqDecoder struct {
	cluster string
}

func (d *tdmqDecoder) connected(sessionStart) {}

func (d *tdmqDecoder) subscribed(int64) {}

// owns takes all events of these topics that nobody before it took.
func (d *tdmqDecoder) owns(m *message) bool { return tdmqKind(m.topic) != presence.KindUnknown }

func tdmqKind(topic string) presence.Kind {
	root, name, _ := strings.Cut(topic, "/")
	if root != "$events" && root != "$event" {
		return presence.KindUnknown
	}
	switch name {
	case "client_connected":
		return presence.Opened
	case "client_disconnected", "client_disconnect":
		return presence.Closed
	}
	return presence.KindUnknown
}

// tdmqPayload reports whether an event shows that it is TDMQ's and not EMQX's: no sockname, and a node, if any, that is not name@host.
func tdmqPayload(payload []byte) bool {
	var e struct {
		SockName *json.RawMessage `json:"sockname"`
		Node     *string          `json:"node"`
		ClientID *json.RawMessage `json:"clientid"`
	}
	if json.Unmarshal(payload, &e) != nil || e.SockName != nil || e.ClientID == nil {
		return false
	}
	return e.Node == nil || !strings.Contains(*e.Node, "@")
}

// tdmqEvent is the payload of a client event. Times are milliseconds.
type tdmqEvent struct {
	ClientID       *string `json:"clientid"`
	Username       string  `json:"username"`
	PeerName       string  `json:"peername"`
	ProtoVer       uint8   `json:"proto_ver"`
	ConnectedAt    int64   `json:"connected_at"`
	DisconnectedAt int64   `json:"disconnected_at"`
	Timestamp      int64   `json:"timestamp"`
	KeepAlive      *uint32 `json:"keepalive"` // seconds
	CleanStart     *bool   `json:"clean_start"`
	Reason         string  `json:"reason"`
}

func (d *tdmqDecoder) decode(m *message) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	var e tdmqEvent
	if why := parseJSON(m.payload, &e); why != nil {
		return decoded{dead: why}
	}
	id, why := clientIDInPayload(e.ClientID, "clientid")
	if why != nil {
		return decoded{dead: why}
	}
	f := presence.Fact{
		Kind:            tdmqKind(m.topic),
		Cluster:         d.cluster,
		ClientID:        id,
		Dialect:         presence.DialectTDMQ,
		TimeMS:          e.Timestamp,
		ReceivedMS:      m.receivedMS,
		Username:        username(e.Username),
		Peer:            e.PeerName,
		ProtocolVersion: e.ProtoVer,
	}
	if e.ConnectedAt > 0 {
		f.Connection, f.ConnectedAtMS = strconv.FormatInt(e.ConnectedAt, 10), e.ConnectedAt
	}
	field := "disconnected_at"
	if f.Kind == presence.Opened {
		if f.ConnectedAtMS == 0 {
			return deadLetter(deadField, `field "connected_at" is missing or not positive: it names the connection`)
		}
		field = "connected_at"
		if f.TimeMS == 0 {
			f.TimeMS = e.ConnectedAt
		}
		if e.KeepAlive != nil {
			f.KeepAliveS = presence.Some(*e.KeepAlive)
		}
		if e.CleanStart != nil {
			f.CleanStart = presence.Some(*e.CleanStart)
		}
	} else {
		f.DisconnectedAtMS = max(e.DisconnectedAt, 0)
		if f.TimeMS == 0 {
			f.TimeMS = f.DisconnectedAtMS
		}
		f.RawReason, f.Reason = e.Reason, tdmqReason(e.Reason)
	}
	if f.TimeMS <= 0 {
		return deadLetter(deadField, `neither field "timestamp" nor "`+field+`" is positive`)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// tdmqReason normalises the reasons that the documents name.
func tdmqReason(raw string) presence.Reason {
	switch raw {
	case "":
		return presence.ReasonUnknown
	case "normal":
		return presence.ReasonNormal
	case "takeovered":
		return presence.ReasonTakenOver
	case "kicked":
		return presence.ReasonKicked
	case "authentication_expired":
		return presence.ReasonNotAuthorized
	}
	return presence.ReasonOther
}
