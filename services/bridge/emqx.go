package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// emqxDialect reads the system topics of EMQX 5 and 6 (apps/emqx/src/emqx_sys.erl, emqx_channel.erl):
//
//	$SYS/brokers                                           node,node,...          retained
//	$SYS/brokers/<node>/version                            5.8.9                  retained
//	$SYS/brokers/<node>/uptime                             milliseconds
//	$SYS/brokers/<node>/datetime                           RFC 3339
//	$SYS/brokers/<node>/clients/<client ID>/connected      JSON
//	$SYS/brokers/<node>/clients/<client ID>/disconnected   JSON
//
// All client events go through one filter: EMQX keeps the order of a node's messages for each matched filter only.
var emqxDialect = &dialect{
	name: presence.DialectEMQX,
	filters: []filter{
		{topic: "$SYS/brokers/+/clients/#", qos: 1, events: true},
		{topic: "$SYS/brokers/+/uptime", qos: 1},
		{topic: "$SYS/brokers/+/datetime", qos: 1},
		{topic: "$SYS/brokers/+/version", qos: 1},
		{topic: "$SYS/brokers", qos: 1},
	},
	newDecoder: func(c decoderConfig) decoder {
		return &emqxDecoder{cluster: c.cluster, versions: map[string]brokerVersion{}}
	},
}

// maxUptimeMS is beyond any uptime: 30,000 years.
const maxUptimeMS = 1 << 50

const emqxRoot = "$SYS/brokers"

// replacement is what JSON decoders and EMQX itself write in place of bytes that are not UTF-8.
const replacement = "\uFFFD"

type emqxDecoder struct {
	cluster  string
	versions map[string]brokerVersion // by node
}

func (d *emqxDecoder) connected(sessionStart) {}

func (d *emqxDecoder) subscribed(int64) {}

// owns leaves nodes whose name is a number to RMQTT: those of EMQX are name@host.
func (d *emqxDecoder) owns(m *message) bool {
	if m.topic == emqxRoot {
		return true
	}
	rest, ok := strings.CutPrefix(m.topic, emqxRoot+"/")
	node, _, _ := strings.Cut(rest, "/")
	return ok && !isDecimal(node)
}

// isDecimal reports whether s is one or more decimal digits.
func isDecimal(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

func (d *emqxDecoder) decode(m *message) decoded {
	if m.topic == emqxRoot {
		return d.members(m)
	}
	node, rest, _ := strings.Cut(strings.TrimPrefix(m.topic, emqxRoot+"/"), "/")
	if node == "" || !utf8.ValidString(node) {
		return deadLetter(deadNode, fmt.Sprintf("node %q of the topic is empty or not UTF-8", node))
	}
	switch {
	case strings.HasPrefix(rest, "clients/"):
		return d.client(m, node, strings.TrimPrefix(rest, "clients/"))
	case rest == "uptime", rest == "datetime":
		return d.heartbeat(m, node, rest)
	case rest == "version":
		d.versions[node] = parseVersion(string(m.payload))
		return ignore(ignoredVersion)
	case strings.HasPrefix(rest, "gateway/"):
		return ignore(ignoredProtocol)
	}
	return ignore(ignoredOtherTopic)
}

func (d *emqxDecoder) members(m *message) decoded {
	s := &signal{kind: signalMembers, dialect: presence.DialectEMQX, retained: m.retain}
	for name := range strings.SplitSeq(string(m.payload), ",") {
		if name = strings.TrimSpace(name); name == "" || !utf8.ValidString(name) {
			return deadLetter(deadNode, "the list of nodes holds a name that is empty or not UTF-8")
		}
		s.members = append(s.members, name)
	}
	return decoded{signal: s}
}

func (d *emqxDecoder) heartbeat(m *message, node, what string) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	s := &signal{dialect: d.dialect(node), node: node, paired: true}
	if what == "uptime" {
		ms, err := strconv.ParseInt(string(m.payload), 10, 64)
		if err != nil || ms < 0 || ms > maxUptimeMS {
			return deadLetter(deadHeartbeat, fmt.Sprintf("uptime %.40q is not a number of milliseconds", m.payload))
		}
		s.kind, s.ms = signalUptime, ms
		return decoded{signal: s}
	}
	t, err := time.Parse(time.RFC3339Nano, string(m.payload))
	if err != nil || t.UnixMilli() <= 0 {
		return deadLetter(deadHeartbeat, fmt.Sprintf("datetime %.40q is not RFC 3339", m.payload))
	}
	s.kind, s.ms = signalClock, t.UnixMilli()
	return decoded{signal: s}
}

// dialect returns the name of the profile that fits the node's version.
func (d *emqxDecoder) dialect(node string) string {
	v := d.versions[node]
	if v.known() && !v.before(5, 0, 0) && v.before(5, 0, 10) {
		return presence.DialectEMQX50
	}
	return presence.DialectEMQX
}

// emqxEvent is the payload of a client event. Times are milliseconds of the node's clock. Fields that are not listed are not needed.
type emqxEvent struct {
	ClientID       *string `json:"clientid"`
	Username       string  `json:"username"`
	IPAddress      string  `json:"ipaddress"`
	Protocol       string  `json:"protocol"`
	ProtoVer       uint8   `json:"proto_ver"`
	ConnectedAt    *int64  `json:"connected_at"`
	DisconnectedAt int64   `json:"disconnected_at"`
	TS             int64   `json:"ts"`
	KeepAlive      *uint32 `json:"keepalive"`
	CleanStart     *bool   `json:"clean_start"`
	ExpiryInterval *uint64 `json:"expiry_interval"` // milliseconds in EMQX 5, seconds in EMQX 4
	Reason         string  `json:"reason"`
}

// client reads a client event. inTopic is <client ID>/<event>; the ID may hold slashes.
func (d *emqxDecoder) client(m *message, node, inTopic string) decoded {
	slash := strings.LastIndexByte(inTopic, '/')
	if slash < 0 {
		return deadLetter(deadTopic, "the topic names no event")
	}
	topicID, event := inTopic[:slash], inTopic[slash+1:]
	switch event {
	case "connected", "disconnected":
	case "subscribed", "unsubscribed":
		return ignore(ignoredOtherTopic)
	default:
		return deadLetter(deadTopic, fmt.Sprintf("event %.40q is neither connected nor disconnected", event))
	}
	if m.retain {
		return ignore(ignoredRetained)
	}
	var e emqxEvent
	if err := json.Unmarshal(m.payload, &e); err != nil {
		var field *json.UnmarshalTypeError
		if errors.As(err, &field) && field.Field != "" {
			return deadLetter(deadField, fmt.Sprintf("field %q is a JSON %s that does not fit", field.Field, field.Value))
		}
		return deadLetter(deadJSON, err.Error())
	}
	if e.Protocol != "" && e.Protocol != "mqtt" {
		return ignore(ignoredProtocol)
	}
	if e.ClientID == nil {
		return deadLetter(deadField, `field "clientid" is missing`)
	}
	if e.ConnectedAt == nil || *e.ConnectedAt <= 0 {
		return deadLetter(deadField, `field "connected_at" is missing or not positive: it names the connection`)
	}
	id := *e.ClientID
	if strings.Contains(id, replacement) {
		// What stands in the payload is not what the client sent, unless the client sent U+FFFD itself; the topic has the bytes.
		if id = topicID; !utf8.ValidString(id) {
			return deadLetter(deadClientID, fmt.Sprintf("client ID %q", topicID))
		}
	}
	if id == "" {
		return deadLetter(deadEmptyID, `field "clientid" is empty`)
	}
	f := presence.Fact{
		Cluster:         d.cluster,
		ClientID:        id,
		Dialect:         d.dialect(node),
		Node:            node,
		Connection:      strconv.FormatInt(*e.ConnectedAt, 10),
		TimeMS:          e.TS,
		ReceivedMS:      m.receivedMS,
		ConnectedAtMS:   *e.ConnectedAt,
		Username:        username(e.Username),
		Peer:            e.IPAddress,
		ProtocolVersion: e.ProtoVer,
	}
	if e.Protocol == "" {
		f.Dialect = presence.DialectEMQX43
	}
	if event == "connected" {
		e.opened(&f)
	} else {
		e.closed(&f)
	}
	if f.TimeMS <= 0 {
		return deadLetter(deadField, `field "ts" is missing or not positive`)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

func (e *emqxEvent) opened(f *presence.Fact) {
	f.Kind = presence.Opened
	if f.TimeMS == 0 {
		f.TimeMS = f.ConnectedAtMS
	}
	if e.KeepAlive != nil {
		f.KeepAliveS = presence.Some(*e.KeepAlive)
	}
	if e.CleanStart != nil {
		f.CleanStart = presence.Some(*e.CleanStart)
	}
	if e.ExpiryInterval != nil {
		s := *e.ExpiryInterval
		if e.Protocol != "" {
			s /= 1000
		}
		f.SessionExpiryS = presence.Some(uint32(min(s, math.MaxUint32)))
	}
}

func (e *emqxEvent) closed(f *presence.Fact) {
	f.Kind = presence.Closed
	if e.DisconnectedAt > 0 {
		f.DisconnectedAtMS = e.DisconnectedAt
	}
	if f.TimeMS == 0 {
		f.TimeMS = f.DisconnectedAtMS
	}
	f.RawReason, f.Reason = e.Reason, emqxReason(e.Reason)
}

// emqxReason normalises a reason. The set is open: atoms of EMQX, errno names, and the names of MQTT 5 reason codes (emqx_reason_codes).
// internal_error stands for whatever EMQX has no name for, also for a WebSocket that was closed with a code, so it proves nothing.
func emqxReason(raw string) presence.Reason {
	switch raw {
	case "":
		return presence.ReasonUnknown
	case "normal", "normal_disconnection", "disconnect_with_will_message":
		return presence.ReasonNormal
	case "tcp_closed", "ssl_closed", "closed", "remote", "timeout", "einval", "etimedout", "econnreset", "econnaborted", "epipe", "enotconn",
		"ehostunreach", "enetunreach", "ehostdown", "enetdown", "sock_closed", "sock_error", "connection_lost":
		return presence.ReasonConnectionLost
	case "keepalive_timeout", "keep_alive_timeout":
		return presence.ReasonKeepAliveTimeout
	case "takenover", "takeovered", "session_taken_over":
		return presence.ReasonTakenOver
	case "discarded":
		return presence.ReasonDiscarded
	case "kicked", "administrative_action":
		return presence.ReasonKicked
	case "not_authorized", "bad_username_or_password", "bad_authentication_method", "authentication_expired", "auth_expired", "banned",
		"reauthenticate_failed", "expired":
		return presence.ReasonNotAuthorized
	case "malformed_packet", "protocol_error", "packet_too_large", "frame_too_large", "frame_error", "topic_name_invalid", "topic_filter_invalid",
		"topic_alias_invalid", "qos_not_supported", "retain_not_supported", "payload_format_invalid", "packet_identifier_in_use",
		"packet_identifier_not_found", "unsupported_protocol_version", "client_identifier_not_valid":
		return presence.ReasonProtocolError
	case "quota_exceeded", "message_rate_too_high", "receive_maximum_exceeded", "connection_rate_exceeded", "maximum_connect_time":
		return presence.ReasonQuotaExceeded
	case "use_another_server", "server_moved", "server_shutting_down", "shutdown":
		return presence.ReasonServerShutdown
	case "unspecified_error", "implementation_specific_error", "server_busy", "server_unavailable":
		return presence.ReasonServerError
	case "session_expired":
		return presence.ReasonSessionExpired
	}
	return presence.ReasonOther
}

// brokerVersion is major, minor and patch.
type brokerVersion [3]int

func (v brokerVersion) known() bool { return v != brokerVersion{} }

func (v brokerVersion) before(major, minor, patch int) bool {
	for i, n := range []int{major, minor, patch} {
		if v[i] != n {
			return v[i] < n
		}
	}
	return false
}

// parseVersion reads the first number.number.number of a text, such as e5.9.0-rc.1; the zero version if there is none.
func parseVersion(s string) brokerVersion {
	start := strings.IndexAny(s, "0123456789")
	if start < 0 {
		return brokerVersion{}
	}
	var v brokerVersion
	for i, part := range strings.SplitN(s[start:], ".", 3) {
		end := 0
		for end < len(part) && part[end] >= '0' && part[end] <= '9' {
			end++
		}
		n, err := strconv.Atoi(part[:end])
		if err != nil {
			return brokerVersion{}
		}
		v[i] = n
		if end < len(part) {
			break
		}
	}
	return v
}
