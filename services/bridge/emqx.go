package bridge

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// emqxDialect reads the system topics of EMQX 4, 5 and 6 (emqx_sys.erl; in EMQX 4 emqx_mod_presence.erl):
//
//	$SYS/brokers                                           node,node,...          retained
//	$SYS/brokers/<node>/version                            5.8.9                  retained
//	$SYS/brokers/<node>/uptime                             milliseconds; EMQX 4: "3 days, 1 hours, 2 minutes, 7 seconds"
//	$SYS/brokers/<node>/datetime                           RFC 3339; EMQX 4: "2025-10-09 08:53:20", local time without zone
//	$SYS/brokers/<node>/clients/<client ID>/connected      JSON
//	$SYS/brokers/<node>/clients/<client ID>/disconnected   JSON
//	$SYS/brokers/<node>/gateway/<gateway>/clients/...      the same of a gateway's clients
//	$events/client_connected, $events/client_disconnected  see [emqxDecoder.rule]
//
// All client events go through one filter: EMQX keeps the order of a node's messages for each matched filter only.
//
// # Connection keys
//
// connected_at names a connection, from 4.3.6 on in both events. Before, a disconnected event names none, and the connected events of the two
// look the same. Which it is decides the node's version, where its retained message has come; else what its disconnected events have shown;
// else a connected event gives an Opened without a key (emqx-4.0). That is the safe side: a Closed with connected_at proves the very
// connection that an Opened without a key tells of, so the two fit together in either order, and a Closed without one ends the newest
// connection of its node. A disconnected event without connected_at is a Closed without a key whatever the version says: none is lost.
//
// # Gateways
//
// The clients of a gateway (STOMP, CoAP, LwM2M, ...) have client IDs of their own: d1 of MQTT and d1 of CoAP are two clients (H21). The facts of
// a gateway's clients go to a cluster of their own, named <cluster>-<gateway> in lower case, such as default-coap. From its first client on
// the bridge asserts the nodes and the feed of that cluster too: floors, silence and staleness hold there as they do for MQTT. Where that is
// no valid cluster name, or that of a cluster which is configured, or there are more than [maxGateways], the events are dead letters (gateway_cluster).
var emqxDialect = &dialect{
	name:      presence.DialectEMQX,
	profiles:  []string{presence.DialectEMQX50, presence.DialectEMQX43, presence.DialectEMQX40, presence.DialectEMQX4Events},
	heartbeat: 30 * time.Second,
	filters: []filter{
		{topic: "$SYS/brokers/+/clients/#", qos: 1, events: true},
		{topic: "$SYS/brokers/+/gateway/#", qos: 1},
		{topic: "$SYS/brokers/+/uptime", qos: 1},
		{topic: "$SYS/brokers/+/datetime", qos: 1},
		{topic: "$SYS/brokers/+/version", qos: 1},
		{topic: "$SYS/brokers", qos: 1},
		{topic: "$events/client_connected", qos: 1, events: true},
		{topic: "$events/client_disconnected", qos: 1, events: true},
		{topic: "$events/client/connected", qos: 1, events: true},
		{topic: "$events/client/disconnected", qos: 1, events: true},
	},
	newDecoder: func(c decoderConfig) decoder {
		return &emqxDecoder{
			cluster: c.cluster, clusters: c.clusters, location: c.location, zoned: c.mqtt != nil && c.mqtt.Timezone != "",
			nodes: map[string]*emqxNode{}, gateways: map[string]bool{},
		}
	},
}

const (
	emqxRoot = "$SYS/brokers"
	// maxUptimeMS is beyond any uptime: 30,000 years.
	maxUptimeMS = 1 << 50
	// maxGateways bounds the clusters that stand for gateways; EMQX has a handful.
	maxGateways = 16
)

// replacement is what JSON decoders and EMQX itself write in place of bytes that are not UTF-8.
const replacement = "\uFFFD"

type emqxDecoder struct {
	cluster  string
	clusters []string // that are configured: no gateway may have the name of one
	location *time.Location
	zoned    bool // the location is configured
	nodes    map[string]*emqxNode
	gateways map[string]bool
	system   bool // client events have come under $SYS
}

// emqxNode is what is known of how a node writes its events.
type emqxNode struct {
	version brokerVersion
	keyed   opinion // EMQX 4: disconnected events have connected_at
}

// opinion is yes, no, or not known.
type opinion uint8

const (
	unsure opinion = iota
	yes
	no
)

func opinionOf(b bool) opinion {
	if b {
		return yes
	}
	return no
}

func (d *emqxDecoder) connected(sessionStart) {}

func (d *emqxDecoder) subscribed(int64) {}

// owns leaves nodes whose name is a number to RMQTT, as those of EMQX are name@host, and rule events that show another broker's node to TDMQ.
func (d *emqxDecoder) owns(m *message) bool {
	if m.topic == emqxRoot {
		return true
	}
	if _, ok := ruleEvents[m.topic]; ok {
		return !tdmqPayload(m.payload)
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
	if event, ok := ruleEvents[m.topic]; ok {
		return d.rule(m, event)
	}
	name, rest, _ := strings.Cut(strings.TrimPrefix(m.topic, emqxRoot+"/"), "/")
	if name == "" || !utf8.ValidString(name) {
		return deadLetter(deadNode, fmt.Sprintf("node %q of the topic is empty or not UTF-8", name))
	}
	switch {
	case strings.HasPrefix(rest, "clients/"):
		return d.client(m, name, "", strings.TrimPrefix(rest, "clients/"))
	case strings.HasPrefix(rest, "gateway/"):
		gateway, inTopic, ok := strings.Cut(strings.TrimPrefix(rest, "gateway/"), "/clients/")
		if !ok {
			return ignore(ignoredOtherTopic)
		}
		return d.client(m, name, gateway, inTopic)
	case rest == "uptime":
		return d.uptime(m, name)
	case rest == "datetime":
		return d.datetime(m, name)
	case rest == "version":
		if v := parseVersion(string(m.payload)); v.known() {
			n := d.node(name)
			n.version, n.keyed = v, opinionOf(!v.before(4, 3, 6))
		}
		return ignore(ignoredVersion)
	}
	return ignore(ignoredOtherTopic)
}

// node returns what is known of a node, which is nothing if it is new.
func (d *emqxDecoder) node(name string) *emqxNode {
	if d.nodes[name] == nil {
		d.nodes[name] = &emqxNode{}
	}
	return d.nodes[name]
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

func (d *emqxDecoder) uptime(m *message, node string) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	s := &signal{kind: signalUptime, dialect: d.node(node).profile(false), node: node, paired: true}
	ms, err := strconv.ParseInt(string(m.payload), 10, 64)
	if err != nil {
		if ms, err = parseUptime(string(m.payload)); err == nil {
			s.dialect, s.granularityMS = d.node(node).profile(true), 1000
		}
	}
	if err != nil || ms < 0 || ms > maxUptimeMS {
		return deadLetter(deadHeartbeat, fmt.Sprintf("uptime %.60q is neither a number of milliseconds nor days, hours, minutes and seconds", m.payload))
	}
	s.ms = ms
	return decoded{signal: s}
}

// parseUptime reads an uptime of EMQX 4 (emqx_sys:uptime/0): "3 days, 1 hours, 2 minutes, 7 seconds", of which leading units may be missing.
func parseUptime(s string) (ms int64, err error) {
	units := []string{" days", " hours", " minutes", " seconds"}
	unitMS := []int64{24 * 3_600_000, 3_600_000, 60_000, 1000}
	next := 0
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimLeft(part, " ")
		for next < len(units) && !strings.HasSuffix(part, units[next]) {
			next++
		}
		if next == len(units) {
			return 0, fmt.Errorf("read uptime %.60q: a part of it is no unit, or out of order", s)
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(part, units[next]), 10, 32)
		if err != nil {
			return 0, fmt.Errorf("read uptime %.60q: %w", s, err)
		}
		ms += int64(n) * unitMS[next]
		next++
	}
	return ms, nil
}

// zoneDoubtMS is how far a node's clock may be from a wrong zone's to be taken for one: zones differ by multiples of quarters of an hour.
const zoneDoubtMS = 120_000

func (d *emqxDecoder) datetime(m *message, node string) decoded {
	if m.retain {
		return ignore(ignoredRetained)
	}
	s := &signal{kind: signalClock, dialect: d.node(node).profile(false), node: node, paired: true}
	t, err := time.Parse(time.RFC3339Nano, string(m.payload))
	if err != nil {
		s.dialect, s.granularityMS = d.node(node).profile(true), 1000
		t, err = parseLocal(string(m.payload), d.location, m.receivedMS)
	}
	if err != nil || t.UnixMilli() <= 0 || t.UnixMilli() > maxStampMS {
		return deadLetter(deadHeartbeat, fmt.Sprintf("datetime %.40q is neither RFC 3339 nor YYYY-MM-DD HH:MM:SS", m.payload))
	}
	s.ms = t.UnixMilli()
	if diff := abs(s.ms - m.receivedMS); s.granularityMS != 0 && !d.zoned && diff > quarterMS/2 && abs(diff-(diff+quarterMS/2)/quarterMS*quarterMS) <= zoneDoubtMS {
		// Taken at its word, a clock of the wrong zone would put the node's start hours away from its clients' connections.
		return deadLetter(deadHeartbeat, fmt.Sprintf("datetime %q names no zone and is %v from the bridge's clock: set mqtt-timezone to the broker's zone",
			m.payload, time.Duration(s.ms-m.receivedMS)*time.Millisecond))
	}
	return decoded{signal: s}
}

// parseLocal reads a local time without zone. Of two instants that have it, in the hour that comes twice, it returns the one nearer to
// nearMS.
func parseLocal(s string, location *time.Location, nearMS int64) (time.Time, error) {
	t, err := time.ParseInLocation(time.DateTime, s, location)
	if err != nil {
		return time.Time{}, fmt.Errorf("read the local time %.40q: %w", s, err)
	}
	best := t
	for _, by := range []time.Duration{-time.Hour, -30 * time.Minute, 30 * time.Minute, time.Hour} {
		if o := t.Add(by); o.Format(time.DateTime) == s && abs(o.UnixMilli()-nearMS) < abs(best.UnixMilli()-nearMS) {
			best = o
		}
	}
	return best, nil
}

// profile returns the name of the profile that fits what the node sends; four says that it is of a form that only EMQX 4 uses.
func (n *emqxNode) profile(four bool) string {
	switch v := n.version; {
	case four && n.keyed == yes:
		return presence.DialectEMQX43
	case four:
		return presence.DialectEMQX40
	case v.known() && !v.before(5, 0, 0) && v.before(5, 0, 10):
		return presence.DialectEMQX50
	}
	return presence.DialectEMQX
}
