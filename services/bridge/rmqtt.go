package bridge

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// rmqttDialect reads the system topics of RMQTT's plugin rmqtt-sys-topic (rmqtt-plugins/rmqtt-sys-topic/src/lib.rs), which must be started. A
// node's name is a number:
//
//	$SYS/brokers/<node>/clients/<client ID>/connected      JSON: ipaddress "ip:port", connected_at
//	$SYS/brokers/<node>/clients/<client ID>/disconnected   JSON: ipaddress "ip:port", disconnected_at, no connected_at
//	$SYS/brokers/<node>/session/<client ID>/...            the session's life, which outlasts connections: not asked for
//	$SYS/brokers/<node>/stats                              JSON, every minute
//
// Each event is published by a task of its own, and a session that is taken over says so to its successor before it ends (rmqtt/src/session.rs,
// Message::Kick): that the new connection comes before the end of the old one is normal, in arrival and in the stamps (H2, H3, H7). Only
// ipaddress tells them apart. Client IDs that hold + or #, or a level that begins with $, have no topic and no events.
//
// Events are published at QoS 1 (publish_qos), but a queue that overflows (max_mqueue_len, 1,000) drops the newest without a word, so that an
// outage of whatever length counts as a gap. Neither a crash nor a stop says anything about clients, and no uptime tells generations apart. Nor
// does a heartbeat tell the node's clock: that it was set back is seen in the stamps of events, if it was by more than an event may be late.
var rmqttDialect = &dialect{
	name: presence.DialectRMQTT,
	filters: []filter{
		{topic: "$SYS/brokers/+/clients/#", qos: 1, events: true},
		{topic: "$SYS/brokers/+/stats", qos: 1},
	},
	heartbeat: time.Minute, // publish_interval
	newDecoder: func(c decoderConfig) decoder {
		return &rmqttDecoder{cluster: c.cluster, location: c.location, clocks: map[string]*rmqttClock{}}
	},
}

type rmqttDecoder struct {
	cluster  string
	location *time.Location
	clocks   map[string]*rmqttClock // by node
	// queued: the session was resumed, so that what comes until queueMS after the first message may have waited for it; sinceMS is when that came.
	queued  bool
	sinceMS int64
}

// rmqttClock is what the stamps of a node's events tell of its clock. No heartbeat tells it.
type rmqttClock struct {
	latestMS int64 // the latest stamp
	aheadMS  int64 // how far the clock is ahead of the bridge's: of the event that came fastest
}

// rmqttLateMS is more than an event may be late: one that waits for a session expires after 5 minutes.
const rmqttLateMS = 6 * 60 * 1000

// stamp takes the stamp of an event, and returns what it tells if the clock was set back by so much that no delay explains it (H9). Smaller steps
// are not seen.
func (d *rmqttDecoder) stamp(node string, atMS, receivedMS int64) *stepBack {
	c, ahead := d.clocks[node], atMS-receivedMS
	if d.queued {
		d.sinceMS = cmp.Or(d.sinceMS, receivedMS)
		d.queued = receivedMS-d.sinceMS < queueMS
	}
	switch {
	case c == nil:
		if len(d.clocks) < rmqttMaxClocks {
			d.clocks[node] = &rmqttClock{latestMS: atMS, aheadMS: ahead}
		}
		return nil
	case d.queued:
		return nil
	case ahead < c.aheadMS-rmqttLateMS:
		step := &stepBack{node: node, fromMS: c.latestMS, toMS: atMS - rmqttLateMS}
		*c = rmqttClock{latestMS: atMS, aheadMS: ahead}
		return step
	}
	c.latestMS, c.aheadMS = max(c.latestMS, atMS), max(c.aheadMS, ahead)
	return nil
}

// rmqttMaxClocks bounds the nodes whose clocks are followed; their names come from topics.
const rmqttMaxClocks = 1 << 10

func (d *rmqttDecoder) connected(s sessionStart) { d.queued, d.sinceMS = s.resumed, 0 }

func (d *rmqttDecoder) subscribed(int64) {}

// owns takes the nodes whose name is a number.
func (d *rmqttDecoder) owns(m *message) bool {
	rest, ok := strings.CutPrefix(m.topic, emqxRoot+"/")
	node, _, _ := strings.Cut(rest, "/")
	return ok && isDecimal(node)
}

func (d *rmqttDecoder) decode(m *message) decoded {
	node, rest, _ := strings.Cut(strings.TrimPrefix(m.topic, emqxRoot+"/"), "/")
	switch {
	case strings.HasPrefix(rest, "clients/"):
		return d.client(m, node, strings.TrimPrefix(rest, "clients/"))
	case rest != "stats":
		return ignore(ignoredOtherTopic)
	case m.retain:
		return ignore(ignoredRetained)
	}
	var stats map[string]any
	if why := parseJSON(m.payload, &stats); why != nil {
		return deadLetter(deadHeartbeat, why.detail)
	}
	return decoded{signal: &signal{kind: signalAlive, dialect: presence.DialectRMQTT, node: node}}
}

// rmqttEvent is the payload of a client event. Times are milliseconds of the node's clock, but for Time, which is its local time.
type rmqttEvent struct {
	ClientID       *string `json:"clientid"`
	Username       string  `json:"username"`
	IPAddress      string  `json:"ipaddress"` // with the port
	ProtoVer       uint8   `json:"proto_ver"`
	KeepAlive      *uint32 `json:"keepalive"`
	CleanSession   *bool   `json:"clean_session"` // MQTT 3
	CleanStart     *bool   `json:"clean_start"`   // MQTT 5
	ConnectedAt    int64   `json:"connected_at"`
	DisconnectedAt int64   `json:"disconnected_at"`
	Reason         string  `json:"reason"`
	Time           string  `json:"time"` // of the publication, without a zone
}

// client reads a client event. inTopic is <client ID>/<event>; the ID may hold slashes.
func (d *rmqttDecoder) client(m *message, node, inTopic string) decoded {
	slash := strings.LastIndexByte(inTopic, '/')
	if slash < 0 {
		return deadLetter(deadTopic, "the topic names no event")
	}
	topicID, event := inTopic[:slash], inTopic[slash+1:]
	if event != "connected" && event != "disconnected" {
		return deadLetter(deadTopic, fmt.Sprintf("event %.40q is neither connected nor disconnected", event))
	}
	if m.retain {
		return ignore(ignoredRetained)
	}
	var e rmqttEvent
	if why := parseJSON(m.payload, &e); why != nil {
		return decoded{dead: why}
	}
	id, why := clientID(e.ClientID, "clientid", topicID)
	if why != nil {
		return decoded{dead: why}
	}
	if e.IPAddress == "" {
		return deadLetter(deadField, `field "ipaddress" is missing or empty: it names the connection`)
	}
	f := presence.Fact{
		Cluster:         d.cluster,
		ClientID:        id,
		Dialect:         presence.DialectRMQTT,
		Node:            node,
		Connection:      e.IPAddress,
		ReceivedMS:      m.receivedMS,
		Username:        username(e.Username),
		Peer:            e.IPAddress,
		ProtocolVersion: e.ProtoVer,
	}
	// The stamp of the event itself. A Closed does not tell when its connection opened, so it has no ConnectedAtMS: the key is the client's
	// address, which comes again, and only in time does it name a connection.
	field, at := "connected_at", e.ConnectedAt
	if event == "connected" {
		f.Kind = presence.Opened
		if e.KeepAlive != nil {
			f.KeepAliveS = presence.Some(*e.KeepAlive)
		}
		if e.CleanStart == nil {
			e.CleanStart = e.CleanSession
		}
		if e.CleanStart != nil {
			f.CleanStart = presence.Some(*e.CleanStart)
		}
	} else {
		f.Kind = presence.Closed
		field, at = "disconnected_at", e.DisconnectedAt
		f.RawReason, f.Reason = e.Reason, rmqttReason(e.Reason)
	}
	// RMQTT writes 0 for a stamp that it has lost (unwrap_or_default); what is left is its local time.
	published, ok := d.published(e.Time, at)
	if at == 0 && ok {
		at = published
	}
	if at <= 0 {
		return deadLetter(deadField, fmt.Sprintf("field %q is missing or not positive, and so is %q", field, "time"))
	}
	f.TimeMS = at
	if ok {
		f.TimeMS = published
	}
	if f.Kind == presence.Opened {
		f.ConnectedAtMS = at
	} else {
		f.DisconnectedAtMS = at
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}, stepBack: d.stamp(node, f.TimeMS, m.receivedMS)}
}

// quarterMS is the unit of the world's time zones.
const quarterMS = 15 * 60 * 1000

// published reads the local time of an event that happened at atMS, 0 if that is not known. Events are published at once, so the nearest
// quarter of an hour between the two is an error of the zone: one that is not configured, or the hour that comes twice when a summer ends
// (H9).
func (d *rmqttDecoder) published(local string, atMS int64) (int64, bool) {
	t, err := time.ParseInLocation("2006-01-02 15:04:05", local, d.location)
	if err != nil || t.UnixMilli() <= 0 {
		return 0, false
	}
	ms := t.UnixMilli()
	if atMS > 0 {
		ms -= int64(time.Duration(ms - atMS).Round(quarterMS))
	}
	return ms, ms > 0
}

// rmqttReason normalises a reason (rmqtt/src/types.rs, Display of Reason). Several are joined by commas: that a newer connection took over is
// the one that proves something, else the first one is the cause.
func rmqttReason(raw string) presence.Reason {
	first := presence.ReasonUnknown
	for _, part := range splitReasons(raw) {
		r := rmqttReasonOf(part)
		if r == presence.ReasonTakenOver {
			return r
		}
		if first == presence.ReasonUnknown || first == presence.ReasonOther && r != presence.ReasonUnknown {
			first = r
		}
	}
	return first
}

func rmqttReasonOf(s string) presence.Reason {
	name, _, _ := strings.Cut(s, "(")
	switch name {
	case "":
		return presence.ReasonUnknown
	case "Disconnect": // the client's packet, of whichever reason code
		return presence.ReasonNormal
	case "RemoteClose", "ReadWriteError", "ReadWriteTimeout":
		return presence.ReasonConnectionLost
	case "KeepaliveTimeout":
		return presence.ReasonKeepAliveTimeout
	case "Kicked":
		return presence.ReasonTakenOver
	case "ByAdminKick":
		return presence.ReasonKicked
	case "SubscribeRefused", "PublishRefused":
		return presence.ReasonNotAuthorized
	case "ProtocolError":
		return presence.ReasonProtocolError
	case "HandshakeRateExceeded", "MessageQueueFull":
		return presence.ReasonQuotaExceeded
	case "SessionExpiration":
		return presence.ReasonSessionExpired
	}
	// Subscribe-, Unsubscribe- and PublishFailed may have any cause.
	return presence.ReasonOther
}

// splitReasons splits at the commas that are not inside of parentheses or of a quoted text: what a client writes into its DISCONNECT stands
// there as Rust's debug format has it, and must not pass for a reason of the broker.
func splitReasons(s string) []string {
	var parts []string
	depth, start, quoted := 0, 0, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case depth > 0 && c == '"':
			quoted = !quoted
		case quoted:
		case c == '(':
			depth++
		case c == ')' && depth > 0:
			depth--
		case c == ',' && depth == 0:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}
