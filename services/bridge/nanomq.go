package bridge

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// nanomqDialect reads the client events of NanoMQ (nng/src/sp/protocol/mqtt/mqtt_parser.c, nano_msg_notify_connect and _disconnect):
//
//	$SYS/brokers/client_status/<client ID>   since 0.24.2; status "online" or "offline"
//	$SYS/brokers/connected                   before
//	$SYS/brokers/disconnected                before
//
// The payload looks like JSON, but is printed into 256 bytes without escaping: quotes stand in it as they are, and 255 bytes at most. So it
// is read as the text that it is, in the order in which NanoMQ prints it, see [nanomqText]:
//
//	{"status":"online", "username":"u", "ts":1,"proto_name":"MQTT","keepalive":60,"return_code":"0","proto_ver":4,"client_id":"c","clean_start":1, "IPv4":"a"}
//	{"status":"offline", "username":"u","ts":1,"reason_code":"0","client_id":"c","IPv4":"a"}
//
// The client ID is that of the topic, which has the client's bytes. The topics before 0.24.2 have none: where the payload leaves doubt about
// the ID, it is a dead letter.
//
// A refused CONNECT is an online event too, with a return_code other than 0: no connection (H4). Retained events are of NanoMQ's own
// outgoing bridges. No event names its connection, QoS is 0, there are no heartbeats, and the loss of a connection without clean start
// says nothing until its session expires (8e), if ever (H6).
var nanomqDialect = &dialect{
	name: presence.DialectNanoMQ,
	filters: []filter{
		{topic: nanomqStatus + "/#", qos: 1, events: true},
		{topic: nanomqConnected, qos: 1, events: true},
		{topic: nanomqDisconnected, qos: 1, events: true},
	},
	newDecoder: func(c decoderConfig) decoder { return &nanomqDecoder{cluster: c.cluster} },
}

const (
	nanomqStatus       = "$SYS/brokers/client_status"
	nanomqConnected    = "$SYS/brokers/connected"
	nanomqDisconnected = "$SYS/brokers/disconnected"
	// nanomqNode names the only node; NanoMQ has no clusters.
	nanomqNode = "nanomq"
	// nanomqCut is the length of an event that did not fit (snprintf into 256 bytes). One that fits exactly looks the same.
	nanomqCut = 255
	// nanomqAheadMS is how far ahead of the bridge's clock a stamp may be that a client may have made up.
	nanomqAheadMS = 60_000
	// nanomqEpochMS, in 2001, tells a time from the milliseconds since boot that old versions write in its place (nni_clock).
	nanomqEpochMS = 1_000_000_000_000

	deadCut       = "truncated_event"
	deadUnescaped = "ambiguous_event"
)

type nanomqDecoder struct{ cluster string }

func (d *nanomqDecoder) connected(sessionStart) {}

func (d *nanomqDecoder) subscribed(int64) {}

func (d *nanomqDecoder) owns(m *message) bool {
	return m.topic == nanomqConnected || m.topic == nanomqDisconnected || m.topic == nanomqStatus || strings.HasPrefix(m.topic, nanomqStatus+"/")
}

func (d *nanomqDecoder) decode(m *message) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	text := string(m.payload)
	var id, status string
	switch m.topic {
	case nanomqConnected, nanomqDisconnected:
		status = "online"
		if m.topic == nanomqDisconnected {
			status = "offline"
		}
		var why *unreadable
		if id, why = nanomqID(text, status); why != nil {
			return decoded{dead: why}
		}
	default:
		// The status comes before anything that a client wrote.
		status, _ = nanomqField(text, "status", strings.Index)
		id = strings.TrimPrefix(strings.TrimPrefix(m.topic, nanomqStatus), "/")
	}
	switch {
	case id == "":
		return deadLetter(deadEmptyID, "the client ID is empty")
	case !utf8.ValidString(id):
		return deadLetter(deadClientID, fmt.Sprintf("client ID %.80q", id))
	}
	t := newNanomqText(text, id)
	switch status {
	case "online":
		return d.opened(m, t, id)
	case "offline":
		return d.closed(m, t, id)
	}
	return deadLetter(deadField, fmt.Sprintf(`field "status" is %.40q, neither "online" nor "offline"`, status))
}

// opened reads an online event. What was cut off is taken for the usual: that the CONNECT was accepted. Such an event claims no clean start
// even if it still shows one, so that no status is more than unknown by it: the user name, which comes first, may imitate all that follows.
func (d *nanomqDecoder) opened(m *message, t nanomqText, id string) decoded {
	code, ok := t.before("return_code")
	switch {
	case ok && code != "0":
		return ignore(ignoredRefused)
	case !ok && !t.cut:
		return deadLetter(deadField, `field "return_code" is missing: it says whether the CONNECT was accepted`)
	}
	f, why := d.fact(m, t, id)
	if why != nil {
		return decoded{dead: why}
	}
	f.Kind = presence.Opened
	if v, ok := t.before("proto_ver"); ok {
		if n, err := strconv.ParseUint(v, 10, 8); err == nil {
			f.ProtocolVersion = uint8(n)
		}
	}
	if v, ok := t.before("keepalive"); ok {
		if n, err := strconv.ParseUint(v, 10, 32); err == nil {
			f.KeepAliveS = presence.Some(uint32(n))
		}
	}
	if v, ok := t.after("clean_start"); ok && (v == "0" || v == "1") {
		f.CleanStart = presence.Some(v == "1")
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

func (d *nanomqDecoder) closed(m *message, t nanomqText, id string) decoded {
	f, why := d.fact(m, t, id)
	if why != nil {
		return decoded{dead: why}
	}
	f.Kind = presence.Closed
	if code, ok := t.before("reason_code"); ok {
		f.RawReason, f.Reason = strings.ToValidUTF8(code, replacement), nanomqReason(code)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// fact returns what both events tell.
func (d *nanomqDecoder) fact(m *message, t nanomqText, id string) (presence.Fact, *unreadable) {
	f := presence.Fact{
		Cluster:    d.cluster,
		ClientID:   id,
		Dialect:    presence.DialectNanoMQ,
		Node:       nanomqNode,
		TimeMS:     m.receivedMS,
		ReceivedMS: m.receivedMS,
		Username:   username(strings.ToValidUTF8(t.username(), replacement)),
	}
	f.Peer, _ = t.after("IPv4")
	f.Peer = strings.ToValidUTF8(f.Peer, replacement)
	ts, ok := t.before("ts")
	if !ok && t.cut {
		return f, nil
	}
	ms, err := strconv.ParseInt(ts, 10, 64)
	if err != nil || ms <= 0 {
		return f, &unreadable{deadField, fmt.Sprintf(`field "ts" is missing or not a number of milliseconds: %.40q`, ts)}
	}
	if ms >= nanomqEpochMS && (t.whole || ms <= m.receivedMS+nanomqAheadMS) {
		f.TimeMS = ms
	}
	return f, nil
}

// nanomqText is an event, divided at the client ID. A client writes its user name, which comes before the fields in head, and its ID,
// which comes before those in tail; nothing else. So in a whole event the last field of a name in head is NanoMQ's own, and any in tail. Of one
// that is not, whatever follows the user name may be the client's.
type nanomqText struct {
	head  string // up to the field client_id
	tail  string // after it, of a whole event
	whole bool
	cut   bool // the event did not fit
}

func newNanomqText(text, id string) nanomqText {
	closed := strings.HasSuffix(strings.TrimSpace(text), "}")
	t := nanomqText{cut: len(text) == nanomqCut || len(text) > nanomqCut && !closed}
	const field = `"client_id":"`
	if !t.cut && closed {
		if i := strings.LastIndex(text, field+id+`"`); i >= 0 {
			t.head, t.tail, t.whole = text[:i], text[i+len(field)+len(id)+1:], true
			return t
		}
	}
	t.head, _, _ = strings.Cut(text, field)
	return t
}

// before returns the value of a field that comes before the client ID.
func (t nanomqText) before(name string) (string, bool) {
	return nanomqField(t.head, name, strings.LastIndex)
}

// after returns the value of a field that comes after the client ID.
func (t nanomqText) after(name string) (string, bool) {
	return nanomqField(t.tail, name, strings.Index)
}

// username returns what stands between the field's name and the next field.
func (t nanomqText) username() string {
	_, rest, ok := strings.Cut(t.head, `"username":"`)
	if !ok {
		return ""
	}
	end := strings.LastIndex(rest, `"ts":`)
	if end < 0 {
		return ""
	}
	name, ok := strings.CutSuffix(strings.TrimRight(rest[:end], ", "), `"`)
	if !ok {
		return ""
	}
	return name
}

// nanomqField returns the value of the field that find finds, a number or a text without quotes; not ok if it is not there to its end.
func nanomqField(text, name string, find func(s, substr string) int) (value string, ok bool) {
	name = `"` + name + `":`
	i := find(text, name)
	if i < 0 {
		return "", false
	}
	value = strings.TrimLeft(text[i+len(name):], " ")
	end := 0
	if rest, quoted := strings.CutPrefix(value, `"`); quoted {
		value, end = rest, strings.IndexByte(rest, '"')
	} else {
		end = strings.IndexAny(value, ",} ")
	}
	if end < 0 {
		return "", false
	}
	return value[:end], true
}

// nanomqID returns the client ID of an event whose topic has none. Two IDs must never be taken for one (H15): an ID, or a user name, that could
// make up the fields around it is refused.
func nanomqID(text, status string) (string, *unreadable) {
	switch {
	case newNanomqText(text, "").cut:
		return "", &unreadable{deadCut, "the event was cut at 255 bytes, and the topic has no client ID"}
	case !json.Valid([]byte(text)):
		return "", &unreadable{deadJSON, "the payload is not JSON: NanoMQ does not escape quotes, and the topic has no client ID"}
	case strings.Contains(text, `\`):
		return "", &unreadable{deadUnescaped, "the payload holds a backslash, which NanoMQ does not escape, and the topic has no client ID"}
	}
	_, rest, ok := strings.Cut(text, `"client_id":"`)
	if !ok {
		return "", &unreadable{deadField, `field "client_id" is missing, and the topic has none`}
	}
	id, rest, _ := strings.Cut(rest, `"`)
	next := `"clean_start":`
	if status == "offline" {
		next = `"IPv4":`
	}
	rest = strings.TrimLeft(rest, ", ")
	// Offline events before 0.24 end with the client ID.
	follows := strings.HasPrefix(rest, next) || status == "offline" && strings.HasPrefix(rest, "}") && !strings.Contains(text, next)
	if !follows || strings.Count(text, next) > 1 {
		return "", &unreadable{deadUnescaped, "the client ID, or the user name, looks like the fields around it, and the topic has no client ID"}
	}
	return id, nil
}

// nanomqReason normalises a reason code, in hexadecimal: an MQTT 5 reason code, 0 for any DISCONNECT, or an error number of NNG
// (include/nng/nng.h).
func nanomqReason(code string) presence.Reason {
	n, err := strconv.ParseUint(code, 16, 8)
	if err != nil {
		return presence.ReasonOther
	}
	switch n {
	case 0x00:
		return presence.ReasonNormal
	case 0x05, 0x07, 0x0e, 0x12, 0x13, 0x1f: // timed out, closed, unreachable, aborted, reset, shut down by the peer (end of stream)
		return presence.ReasonConnectionLost
	case 0x8d:
		return presence.ReasonKeepAliveTimeout
	case 0x8e: // MQTT 5 calls it a takeover; NanoMQ sets it where a session expires
		return presence.ReasonSessionExpired
	case 0x98:
		return presence.ReasonKicked
	case 0x10, 0x87:
		return presence.ReasonNotAuthorized
	case 0x0d, 0x11, 0x81, 0x82, 0x90, 0x94, 0x95, 0x99, 0x9a, 0x9b:
		return presence.ReasonProtocolError
	case 0x93, 0x96, 0x97, 0x9f:
		return presence.ReasonQuotaExceeded
	case 0x8b, 0x9c, 0x9d:
		return presence.ReasonServerShutdown
	case 0x80, 0x83, 0x89:
		return presence.ReasonServerError
	}
	return presence.ReasonOther
}
