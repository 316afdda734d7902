package bridge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// deadGateway is the reason of dead letters about clients of a gateway that can have no cluster of its own.
const deadGateway = "gateway_cluster"

// emqxEvent is the payload of a client event, of the system topics and of the rule engine. Times are milliseconds of the node's clock. Fields
// that are not listed are not needed.
type emqxEvent struct {
	ClientID       *string         `json:"clientid"`
	Username       string          `json:"username"`
	IPAddress      string          `json:"ipaddress"`
	Protocol       string          `json:"protocol"`  // EMQX 5 and later
	ProtoVer       json.RawMessage `json:"proto_ver"` // of a gateway's clients a text
	ConnectedAt    *int64          `json:"connected_at"`
	DisconnectedAt int64           `json:"disconnected_at"`
	TS             int64           `json:"ts"`
	KeepAlive      *uint32         `json:"keepalive"`
	CleanStart     *bool           `json:"clean_start"`
	ExpiryInterval *uint64         `json:"expiry_interval"` // seconds; milliseconds in the system topics of EMQX 5
	Reason         string          `json:"reason"`

	// Rule events only.
	Node        string           `json:"node"`
	Timestamp   int64            `json:"timestamp"`
	PeerName    string           `json:"peername"`
	ClientAttrs *json.RawMessage `json:"client_attrs"` // 5.8 and later
}

// client reads a client event of the system topics; gateway is empty for MQTT. inTopic is <client ID>/<event>; the ID may hold slashes.
func (d *emqxDecoder) client(m *message, node, gateway, inTopic string) decoded {
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
	if why := parseJSON(m.payload, &e); why != nil {
		return decoded{dead: why}
	}
	id, why := clientID(e.ClientID, "clientid", topicID)
	if why != nil {
		return decoded{dead: why}
	}
	if gateway == "" && e.Protocol != "mqtt" {
		gateway = e.Protocol
	}
	cluster, why := d.clusterOf(gateway)
	if why != nil {
		return decoded{dead: why}
	}
	d.system = true
	n, four := d.node(node), e.Protocol == ""
	if four && event == "disconnected" {
		n.keyed = opinionOf(e.ConnectedAt != nil)
	}
	f := presence.Fact{
		Cluster:    cluster,
		ClientID:   id,
		Dialect:    n.profile(four),
		Node:       node,
		TimeMS:     e.TS,
		ReceivedMS: m.receivedMS,
		Peer:       e.IPAddress,
	}
	e.describe(&f)
	if !four && e.ExpiryInterval != nil {
		*e.ExpiryInterval /= 1000
	}
	if event == "connected" {
		if f.ConnectedAtMS == 0 {
			return deadLetter(deadField, `field "connected_at" is missing or not positive: it is when the connection opened`)
		}
		e.opened(&f)
	} else {
		e.closed(&f)
	}
	if f.Dialect != presence.DialectEMQX40 && f.ConnectedAtMS != 0 {
		f.Connection = strconv.FormatInt(f.ConnectedAtMS, 10)
	}
	if f.TimeMS <= 0 {
		return deadLetter(deadField, `field "ts" is missing or not positive`)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// clusterOf returns the cluster of a gateway's clients.
func (d *emqxDecoder) clusterOf(gateway string) (string, *unreadable) {
	if gateway == "" {
		return d.cluster, nil
	}
	gateway = strings.ToLower(gateway)
	name := d.cluster + "-" + gateway
	if err := eventlog.ValidCluster(name); err != nil {
		return "", &unreadable{deadGateway, fmt.Sprintf("the clients of gateway %.80q need a cluster of their own: %v", gateway, err)}
	}
	if slices.Contains(d.clusters, name) {
		return "", &unreadable{deadGateway, fmt.Sprintf("the clients of gateway %q need a cluster of their own, and %s is configured: give that another name", gateway, name)}
	}
	if !d.gateways[gateway] && len(d.gateways) >= maxGateways {
		return "", &unreadable{deadGateway, fmt.Sprintf("gateway %q would be one of more than %d", gateway, maxGateways)}
	}
	d.gateways[gateway] = true
	return name, nil
}

// describe takes what both events say of the connection.
func (e *emqxEvent) describe(f *presence.Fact) {
	f.Username = username(e.Username)
	if e.ConnectedAt != nil && *e.ConnectedAt > 0 {
		f.ConnectedAtMS = *e.ConnectedAt
	}
	if v, err := strconv.ParseUint(string(bytes.TrimSpace(e.ProtoVer)), 10, 8); err == nil {
		f.ProtocolVersion = uint8(v)
	}
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
		f.SessionExpiryS = presence.Some(uint32(min(*e.ExpiryInterval, math.MaxUint32)))
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

// ruleEvents are the topics of the rule engine's client events, in the spelling of EMQX 4 to 5.9 and that of 5.10 and later.
var ruleEvents = map[string]presence.Kind{
	"$events/client_connected":    presence.Opened,
	"$events/client_disconnected": presence.Closed,
	"$events/client/connected":    presence.Opened,
	"$events/client/disconnected": presence.Closed,
}

// rule reads a client event of the rule engine (emqx_rule_events.erl). EMQX 4 publishes them itself if rule_engine.events.client_connected and
// client_disconnected are on; of EMQX 5 they come only if a rule publishes them again under the same topics. Once client events of the system topics
// have come, they are left alone: a client's connections would have two names, and unlike the system topics any client may publish to theirs.
//
// From 5.8.6 on both events have connected_at, and the facts are those of the system topics. Before, peername, the client's address and port,
// is in both and is the key (emqx-4-events). Where the node's version is not known, client_attrs shows 5.8: from 5.8.0 to 5.8.5 that gives a
// Closed without a key. An ID that holds U+FFFD is a dead letter: no topic tells which bytes the client sent.
func (d *emqxDecoder) rule(m *message, kind presence.Kind) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	if d.system {
		return ignore(ignoredTwice)
	}
	var e emqxEvent
	if why := parseJSON(m.payload, &e); why != nil {
		return decoded{dead: why}
	}
	id, why := clientIDInPayload(e.ClientID, "clientid")
	if why != nil {
		return decoded{dead: why}
	}
	if e.Node == "" {
		return deadLetter(deadField, `field "node" is missing or empty: the rule that publishes the event must select it`)
	}
	f := presence.Fact{
		Kind:       kind,
		Cluster:    d.cluster,
		ClientID:   id,
		Dialect:    presence.DialectEMQX4Events,
		Node:       e.Node,
		Connection: e.PeerName,
		TimeMS:     e.Timestamp,
		ReceivedMS: m.receivedMS,
		Peer:       e.PeerName,
	}
	e.describe(&f)
	v := brokerVersion{}
	if n := d.nodes[e.Node]; n != nil {
		v = n.version
	}
	if v.known() && !v.before(5, 8, 6) || !v.known() && e.ClientAttrs != nil {
		f.Dialect, f.Connection = presence.DialectEMQX, ""
		if f.ConnectedAtMS != 0 {
			f.Connection = strconv.FormatInt(f.ConnectedAtMS, 10)
		}
	}
	if kind == presence.Opened {
		if f.ConnectedAtMS == 0 {
			return deadLetter(deadField, `field "connected_at" is missing or not positive: it is when the connection opened`)
		}
		e.opened(&f)
	} else {
		e.closed(&f)
	}
	if f.TimeMS <= 0 {
		return deadLetter(deadField, `field "timestamp" is missing or not positive`)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// clientIDInPayload checks a client ID that stands in the payload alone.
func clientIDInPayload(inPayload *string, field string) (string, *unreadable) {
	if inPayload != nil && strings.Contains(*inPayload, replacement) {
		return "", &unreadable{deadClientID, fmt.Sprintf("field %q, %.80q, holds U+FFFD, which may stand for any bytes", field, *inPayload)}
	}
	return clientID(inPayload, field, "")
}
