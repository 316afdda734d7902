package simulator

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// object returns a JSON object of names and values, one after the other. Its order is not fixed, and it may hold fields that nobody knows.
func (r *render) object(pairs ...any) string {
	type field struct {
		name  string
		value any
	}
	var fields []field
	for i := 0; i < len(pairs); i += 2 {
		fields = append(fields, field{pairs[i].(string), pairs[i+1]})
	}
	if r.d.in(20) {
		fields = append(fields, field{"x_zone", map[string]any{"a": []any{1, nil, "}\""}, "clientid": "not this"}})
	}
	for i := len(fields) - 1; i > 0; i-- {
		k := r.d.n(i + 1)
		fields[i], fields[k] = fields[k], fields[i]
	}
	var b strings.Builder
	b.WriteByte('{')
	for i, f := range fields {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(text(f.name) + ":" + text(f.value))
	}
	return b.String() + "}"
}

// text returns a value in JSON, as brokers write it: nothing is escaped that need not be.
func text(v any) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return "null"
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// user returns the user name as the broker writes it (H20).
func (r *render) user() string {
	if r.username == "" {
		return r.h.Words.NoUsername()
	}
	return r.username
}

// poison adds a payload that is no event of the dialect.
func (r *render) poison(topic string) {
	payload := [...]string{"", "not json", `{"clientid":"cut`, `[]`, `{}`, "\xff\xfe\x00", "null", `{"clientid":7,"clientId":7,"client_id":7}`}[r.d.n(8)]
	r.hazard(16, topic, payload, ReadsDead)
}

func (r *render) emqx() {
	e, root := r.e, "$SYS/brokers/"+r.e.Node
	clients := root + "/clients/" + r.id
	four := r.h.Words == wordsEMQX4
	switch e.Kind {
	case Connected:
		ts := e.StampMS + int64(e.Seq%2)
		r.fact.TimeMS, r.fact.Username = ts, r.username
		r.fact.SessionExpiryS = presence.Some(e.SessionExpiryS)
		expiry := int64(e.SessionExpiryS)
		if !four {
			expiry *= 1000
		}
		pairs := r.emqxCommon(ts)
		pairs = append(pairs, "ipaddress", e.IP, "sockport", 1883, "proto_name", "MQTT", "proto_ver", e.ProtocolVersion, "connected_at", e.ConnectedAtMS,
			"keepalive", e.KeepAliveS, "clean_start", e.CleanStart, "expiry_interval", expiry)
		if four {
			pairs = append(pairs, "connack", 0)
		} else if r.props() {
			pairs = append(pairs, "conn_props", map[string]any{"User-Property": map[string]any{"clientid": "not this"}}, "receive_maximum", 32)
		}
		r.add(clients+"/connected", r.object(pairs...), ReadsFact)
		if !four && r.d.in(20) {
			r.add(clients+"/subscribed", r.object("clientid", r.id, "username", r.user(), "topic", "a/b", "subopts", map[string]any{"qos": 1}, "ts", ts, "protocol", "mqtt"),
				ReadsNothing)
		}
	case Disconnected:
		ts := e.StampMS + int64(e.Seq%2)
		r.fact.TimeMS, r.fact.Username = ts, r.username
		pairs := append(r.emqxCommon(ts), "reason", e.RawReason, "disconnected_at", e.DisconnectedAtMS)
		if r.h.ClosedKey {
			pairs = append(pairs, "ipaddress", e.IP, "sockport", 1883, "proto_name", "MQTT", "proto_ver", e.ProtocolVersion, "connected_at", e.ConnectedAtMS)
			r.fact.ProtocolVersion = e.ProtocolVersion
		} else {
			r.fact.Peer = ""
		}
		if !four && r.props() {
			pairs = append(pairs, "disconn_props", map[string]any{"User-Property": map[string]any{}})
		}
		r.add(clients+"/disconnected", r.object(pairs...), ReadsFact)
	case Gateway:
		if !four {
			r.hazard(21, root+"/gateway/stomp/clients/"+r.id+"/connected", r.object("clientid", r.id, "username", "g", "ipaddress", e.IP, "sockport", 61613,
				"protocol", "stomp", "proto_name", "STOMP", "proto_ver", "1.2", "connected_at", e.StampMS, "ts", e.StampMS, "keepalive", 60, "clean_start", true,
				"expiry_interval", 0), ReadsOther)
		}
	case Self:
		r.username = "bridge"
		r.hazard(22, clients+"/connected", r.object(append(r.emqxCommon(e.StampMS), "ipaddress", e.IP, "proto_ver", 5, "connected_at", e.StampMS)...), ReadsOther)
	case Poison:
		if r.d.in(50) {
			// The payload has U+FFFD where the topic has the bytes.
			r.hazard(16, clients+"/connected", r.object(append(r.emqxCommon(e.StampMS), "clientid", strings.ToValidUTF8(r.id, "\uFFFD\uFFFD"), "connected_at", e.StampMS)...), ReadsDead)
			return
		}
		r.poison(root + "/clients/d1/" + [...]string{"connected", "disconnected"}[r.d.n(2)])
	case Replay:
		r.hazard(18, root+"/version", r.w.versionOf(r.h), ReadsNothing)
		r.messages[0].Retain = true
	case Refused, SessionEnded, OtherLine:
	}
}

// emqxCommon returns the fields of both events.
func (r *render) emqxCommon(ts int64) []any {
	pairs := []any{"username", r.user(), "ts", ts}
	if r.e.Kind != Poison {
		pairs = append(pairs, "clientid", r.id)
	}
	if r.h.Words == wordsEMQX5 {
		pairs = append(pairs, "protocol", "mqtt")
		if r.props() {
			pairs = append(pairs, "client_attrs", map[string]any{"ts": 5})
		}
	}
	return pairs
}

// props reports whether events hold what came with 5.9.
func (r *render) props() bool {
	v := r.w.versionOf(r.h)
	return strings.HasPrefix(v, "5.9") || strings.HasPrefix(v, "5.10") || strings.HasPrefix(v, "6.")
}

// emqxRule renders the rule events of EMQX 4.
func (r *render) emqxRule() {
	e := r.e
	pairs := []any{"timestamp", e.StampMS, "node", e.Node, "clientid", r.id, "username", r.user(), "peername", e.Peer(), "sockname", "10.0.3.11:1883",
		"proto_name", "MQTT", "proto_ver", e.ProtocolVersion}
	r.fact.Username, r.fact.ProtocolVersion = r.username, e.ProtocolVersion
	connected := func() []any {
		return append(pairs, "event", "client.connected", "mountpoint", "undefined", "keepalive", e.KeepAliveS, "clean_start", e.CleanStart, "expiry_interval",
			e.SessionExpiryS, "receive_maximum", 32, "is_bridge", false, "conn_props", map[string]any{}, "connected_at", e.ConnectedAtMS)
	}
	switch e.Kind {
	case Connected:
		r.fact.SessionExpiryS = presence.Some(e.SessionExpiryS)
		r.add("$events/client_connected", r.object(connected()...), ReadsFact)
	case Disconnected:
		r.add("$events/client_disconnected", r.object(append(pairs, "event", "client.disconnected", "reason", e.RawReason, "disconn_props", map[string]any{},
			"disconnected_at", e.DisconnectedAtMS)...), ReadsFact)
	case Self:
		e.ConnectedAtMS, e.ProtocolVersion = e.StampMS, 5
		r.hazard(22, "$events/client_connected", r.object(connected()...), ReadsOther)
	case Poison:
		if r.d.in(50) {
			payload := strings.Replace(r.object("clientid", "POISON", "node", e.Node, "timestamp", e.StampMS, "connected_at", e.StampMS, "sockname", "10.0.3.11:1883"), "POISON", "\xff\xfe", 1)
			r.hazard(16, "$events/client_connected", payload, ReadsDead)
			return
		}
		r.poison("$events/client_connected")
	case Replay:
		r.hazard(18, "$SYS/brokers/"+e.Node+"/version", r.w.versionOf(r.h), ReadsNothing)
		r.messages[0].Retain = true
	case Refused, SessionEnded, OtherLine, Gateway:
	}
}

func (r *render) rmqtt() {
	e, root := r.e, "$SYS/brokers/"+r.e.Node
	number, err := strconv.Atoi(e.Node)
	if err != nil {
		return
	}
	local := time.UnixMilli(e.StampMS).In(r.w.Zone).Format("2006-01-02 15:04:05.000")
	pairs := []any{"node", number, "ipaddress", e.Peer(), "clientid", r.id, "username", r.user(), "time", local}
	r.fact.Username = r.username
	clients := root + "/clients/" + r.id
	switch e.Kind {
	case Connected:
		clean := "clean_session"
		if e.ProtocolVersion == 5 {
			clean = "clean_start"
			if r.d.in(30) {
				pairs = append(pairs, "user_properties", map[string]any{"fw": "1.2", "tag": []string{"a", "b"}})
			}
		}
		r.add(clients+"/connected", r.object(append(pairs, "keepalive", e.KeepAliveS, "proto_ver", e.ProtocolVersion, clean, e.CleanStart, "connected_at", e.ConnectedAtMS,
			"session_present", r.d.in(50))...), ReadsFact)
	case Disconnected:
		reason := e.RawReason
		if e.Cause == CauseNormal && e.ProtocolVersion == 5 {
			reason = "Disconnect(V5(Disconnect { reason_code: NormalDisconnection, session_expiry_interval_secs: None, server_reference: None, reason_string: None, user_properties: [] }))"
		}
		if e.Cause == CauseLost && r.d.in(30) {
			reason = [...]string{"ReadWriteError", "ReadWriteTimeout"}[r.d.n(2)]
		}
		r.fact.RawReason = reason
		r.add(clients+"/disconnected", r.object(append(pairs, "disconnected_at", e.DisconnectedAtMS, "reason", reason)...), ReadsFact)
	case SessionEnded:
		r.hazard(17, root+"/session/"+r.id+"/terminated", r.object(append(pairs, "reason", "SessionExpiration")...), ReadsNothing)
	case Self:
		r.hazard(22, clients+"/connected", r.object(append(pairs, "keepalive", 60, "proto_ver", 5, "clean_start", false, "connected_at", e.StampMS)...), ReadsOther)
	case Poison:
		r.poison(clients[:len(root+"/clients/")] + "d1/" + [...]string{"connected", "disconnected"}[r.d.n(2)])
	case Replay:
		r.hazard(18, root+"/stats", `{"connections.count":1}`, ReadsNothing)
		r.messages[0].Retain = true
	case Refused, OtherLine, Gateway:
	}
}

func (r *render) tdmq() {
	e := r.e
	pairs := []any{"clientid", r.id, "username", r.username}
	r.fact.Username, r.fact.Peer = r.username, ""
	connected := "$events/client_connected"
	switch e.Kind {
	case Connected:
		r.add(connected, r.object(append(pairs, "clean_start", e.CleanStart, "connected_at", e.ConnectedAtMS, "event", "client.connected", "keepalive", e.KeepAliveS,
			"node", "10.0.0.1:1883", "proto_ver", e.ProtocolVersion, "timestamp", e.StampMS)...), ReadsFact)
	case Disconnected:
		pairs = append(pairs, "event", "client.disconnected", "reason", e.RawReason, "node", "sz-h-125xm", "peername", e.Peer(), "disconnected_at", e.DisconnectedAtMS)
		r.fact.Peer = e.Peer()
		if r.h.ClosedSince {
			pairs = append(pairs, "connected_at", e.ConnectedAtMS)
		}
		topic := [...]string{"$events/client_disconnected", "$events/client_disconnect"}[(r.w.h.Plan.Seed/2)%2]
		r.add(topic, r.object(pairs...), ReadsFact)
	case Self:
		r.hazard(22, connected, r.object(append(pairs, "event", "client.connected", "connected_at", e.StampMS, "node", "10.0.0.1:1883", "timestamp", e.StampMS)...), ReadsOther)
	case Poison:
		r.hazard(16, connected, "{\"clientid\":\"\xff\xfe\",\"node\":\"10.0.0.1:1883\",\"connected_at\":1760000000123,\"timestamp\":1760000000123}", ReadsDead)
	case Refused, SessionEnded, OtherLine, Gateway, Replay:
	}
}

// nanoSize is the size of NanoMQ's buffer for an event: what does not fit is cut off.
const nanoSize = 255

func (r *render) nanomq() {
	e := r.e
	r.fact.Username, r.fact.Peer = r.username, e.IP
	var payload string
	var loose bool
	connectedTopic, closedTopic := "$SYS/brokers/client_status/"+r.id, "$SYS/brokers/client_status/"+r.id
	online, offline := `{"status":"online", "username":`, `{"status":"offline", "username":`
	if r.w.oldNano {
		connectedTopic, closedTopic = "$SYS/brokers/connected", "$SYS/brokers/disconnected"
		online, offline = `{"username":`, `{"username":`
	}
	connected := func() {
		clean := 0
		if e.CleanStart {
			clean = 1
		}
		payload = fmt.Sprintf(`%s"%s", "ts":%d,"proto_name":"MQTT","keepalive":%d,"return_code":"%x","proto_ver":%d,"client_id":"%s","clean_start":%d, "IPv4":"%s"}`,
			online, r.user(), e.StampMS, e.KeepAliveS, e.Refusal, e.ProtocolVersion, r.id, clean, e.IP)
		loose = r.garbled(payload)
		payload = payload[:min(len(payload), nanoSize)]
	}
	switch e.Kind {
	case Connected:
		connected()
		r.add(connectedTopic, payload, ReadsFact).Loose = loose
	case Refused:
		connected()
		r.add(connectedTopic, payload, ReadsNothing).Hazard = 4
	case Disconnected:
		payload = fmt.Sprintf(`%s"%s","ts":%d,"reason_code":"%s","client_id":"%s","IPv4":"%s"}`, offline, r.user(), e.StampMS, e.RawReason, r.id, e.IP)
		loose = r.garbled(payload)
		r.add(closedTopic, payload[:min(len(payload), nanoSize)], ReadsFact).Loose = loose
	case Self:
		r.username, e.ProtocolVersion, e.KeepAliveS = "", 5, 60
		connected()
		r.hazard(22, connectedTopic, payload, ReadsOther)
	case Gateway:
		// NanoMQ's own outgoing bridge.
		e.ProtocolVersion, e.KeepAliveS = 4, 60
		connected()
		r.hazard(21, connectedTopic, payload, ReadsNothing)
		r.messages[0].Retain = true
	case Poison:
		if r.w.oldNano {
			r.poison(connectedTopic)
			return
		}
		r.hazard(16, connectedTopic, `{"status":"online", "username":"a", "ts":1760000000123,"return_code":"0"}`, ReadsDead)
	case SessionEnded, OtherLine, Replay:
	}
}

// garbled reports whether an event was cut off, or cannot be told from what is not escaped in it.
func (r *render) garbled(payload string) bool {
	return len(payload) > nanoSize || strings.ContainsAny(r.id+r.username, `"\\`)
}

func (r *render) aws() {
	e, root := r.e, "$aws/events/presence/"
	session := e.Key
	common := []any{"clientId", r.id, "timestamp", e.StampMS, "principalIdentifier", "12345678901234567890123456789012", "versionNumber", e.Version}
	r.fact.KeepAliveS, r.fact.ProtocolVersion, r.fact.Username, r.fact.Peer = presence.Opt[uint32]{}, 0, "", ""
	switch e.Kind {
	case Connected:
		r.fact.Peer = e.IP
		r.add(root+"connected/"+r.id, r.object(append(common, "eventType", "connected", "sessionIdentifier", session, "ipAddress", e.IP)...), ReadsFact)
	case Disconnected:
		r.add(root+"disconnected/"+r.id, r.object(append(common, "eventType", "disconnected", "sessionIdentifier", session, "clientInitiatedDisconnect", e.Cause == CauseNormal,
			"disconnectReason", e.RawReason)...), ReadsFact)
	case Refused:
		r.hazard(4, root+"connect_failed/"+r.id, r.object(append(common, "eventType", "connect_failed", "sessionIdentifier", "x", "disconnectReason", "AUTH_ERROR")...), ReadsNothing)
	case Self:
		r.hazard(22, root+"connected/"+r.id, r.object(append(common, "eventType", "connected", "sessionIdentifier", "self", "ipAddress", e.IP)...), ReadsOther)
	case Poison:
		r.poison(root + "connected/d1")
	case SessionEnded, OtherLine, Gateway, Replay:
	}
}

// custom renders events of no broker in particular. Form 0 has the event in the topic, events/<event>/<client ID>, and milliseconds; form 1 has
// one topic, everything nested in the payload, and RFC 3339.
func (r *render) custom() {
	e := r.e
	r.fact.KeepAliveS, r.fact.ProtocolVersion, r.fact.CleanStart = presence.Opt[uint32]{}, 0, presence.Opt[bool]{}
	r.fact.Username, r.fact.Peer = r.username, e.Peer()
	word := map[EventKind]string{Connected: "up", Disconnected: "down", Self: "up"}[e.Kind]
	topic := "events/" + word + "/" + r.id
	pairs := []any{"at", e.StampMS, "who", r.username, "from", e.Peer()}
	if r.w.Custom == 1 {
		topic = "events"
		pairs = []any{"event", map[string]any{"word": word, "at": time.UnixMilli(e.StampMS).In(r.w.Zone).Format(time.RFC3339Nano)}, "id", r.id, "who", r.username, "from", e.Peer()}
	}
	if r.h.ClosedKey {
		pairs = append(pairs, "host", e.Node, "key", e.Key)
	}
	switch e.Kind {
	case Connected:
		r.add(topic, r.object(pairs...), ReadsFact)
	case Disconnected:
		r.add(topic, r.object(append(pairs, "why", e.RawReason)...), ReadsFact)
	case Self:
		if r.h.ClosedKey {
			pairs[slices.Index(pairs, any("key"))+1] = "self"
		}
		r.hazard(22, topic, r.object(pairs...), ReadsOther)
	case Poison:
		if r.w.Custom == 1 {
			r.poison("events")
		} else {
			r.poison("events/up/" + r.id)
		}
	case Refused, SessionEnded, OtherLine, Gateway, Replay:
	}
}
