package bridge

import (
	"slices"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// dialectAuto stands for every dialect that can be told apart by its topics.
const dialectAuto = "auto"

// dialect is one broker family's event format: what to subscribe to, what the broker keeps of it while the bridge is away, and how it
// reads. The habits that the fold depends on are its profile in the presence package.
type dialect struct {
	name    string
	filters []filter
	// configured dialects get their filters from the configuration; auto leaves them out.
	configured func(c *MQTTConfig) []filter
	// queueExpiry is how long the broker keeps events for a session whose connection is down. An outage up to it loses nothing, if
	// the session is resumed; 0: every outage may lose events.
	queueExpiry time.Duration
	// heartbeat is the time between two heartbeats of a node, as the broker is shipped; 0: there are none. A node whose heartbeats stay away for
	// three times as long is silent.
	heartbeat time.Duration
	// profiles are the names that facts of the dialect bear besides its own, where versions of the broker differ in their habits.
	profiles   []string
	newDecoder func(c decoderConfig) decoder
}

// filter is one MQTT topic filter and the QoS to ask for.
type filter struct {
	topic string
	qos   byte
	// events marks a filter without which the dialect is of no use.
	events bool
}

// dialects is the table, one line for each. With auto all of them are subscribed to, but for those that need configuration.
//
// Brokers share topics, so who reads a message is decided by the topic first and then by what the payload shows: the first dialect in the
// order of the table whose decoder owns the message. A message that none of them owns is a dead letter (unknown_topic).
var dialects = []*dialect{
	nanomqDialect, // before EMQX, whose topics begin like these
	rmqttDialect,
	emqxDialect,
	tdmqDialect, // after EMQX, whose rule events have the same topics
	mosquittoDialect,
	awsDialect,
	mosquittoPluginDialect,
	statusTopicDialect,
	customDialect,
}

func dialectByName(name string) *dialect {
	for _, d := range dialects {
		if d.name == name {
			return d
		}
	}
	return nil
}

func dialectNames() []string {
	names := []string{dialectAuto}
	for _, d := range dialects {
		names = append(names, d.name)
	}
	return names
}

// selectDialects returns the dialects that a configured name stands for.
func selectDialects(name string) []*dialect {
	if d := dialectByName(name); d != nil {
		return []*dialect{d}
	}
	var list []*dialect
	for _, d := range dialects {
		if d.configured == nil {
			list = append(list, d)
		}
	}
	return list
}

// filtersOf returns what to subscribe to, each topic filter once: a broker sends a message for every filter that it matches.
func filtersOf(list []*dialect, c *MQTTConfig) []filter {
	var filters []filter
	for _, d := range list {
		own := d.filters
		if d.configured != nil {
			own = d.configured(c)
		}
		for _, f := range own {
			i := slices.IndexFunc(filters, func(o filter) bool { return o.topic == f.topic })
			if i < 0 {
				filters = append(filters, f)
				continue
			}
			filters[i].qos, filters[i].events = max(filters[i].qos, f.qos), filters[i].events || f.events
		}
	}
	return filters
}

// message is one MQTT message as it was received.
type message struct {
	topic      string // the raw bytes, which need not be UTF-8
	payload    []byte
	qos        byte
	retain     bool // a snapshot from before the subscription, of unknown age
	receivedMS int64
}

// decoderConfig is what a decoder needs to know about its cluster.
type decoderConfig struct {
	cluster  string
	clusters []string       // the names of all that are configured
	location *time.Location // of stamps that name no zone
	mqtt     *MQTTConfig    // for dialects that are configured
}

// decoder turns the messages of one dialect into facts. It is used by one goroutine at a time, in the order of arrival.
type decoder interface {
	// owns reports whether the message is one of the dialect's, by its topic and, where brokers share topics, by what its payload shows. It
	// changes nothing, and a payload that shows nothing is nobody else's either.
	owns(m *message) bool
	// decode reads one message. Every message ends as facts, as a signal, as ignored, or as a dead letter.
	decode(m *message) decoded
	// connected is called after each CONNACK, before the first message of that connection.
	connected(s sessionStart)
	// subscribed is called after the first SUBACK of each connection.
	subscribed(atMS int64)
}

// sessionStart says what a new MQTT connection continues.
type sessionStart struct {
	// resumed: the broker kept the session, so messages from before may come first.
	resumed bool
	// complete: no message of the dialect can have been lost between the connection before and this one.
	complete bool
}

// decoded is what became of a message.
type decoded struct {
	facts   []presence.Fact // with IDs
	signal  *signal
	ignored string // why there is nothing to learn from it; a word to count by
	dead    *unreadable
	// unnumbered: the session did not see the stamp of the line begin, so that its place among the lines of the stamp is not known.
	unnumbered bool
	// stepBack comes with any of the above: the message's stamp shows that a node's clock was set back.
	stepBack *stepBack
}

// stepBack says that the clock of a node was set back, from fromMS, which no stamp of before exceeds, to toMS, which every stamp of after
// reaches.
type stepBack struct {
	node         string
	fromMS, toMS int64
}

// unreadable says why a message could not be decoded.
type unreadable struct {
	reason string // a word to count by
	detail string // for a person
}

func ignore(reason string) decoded { return decoded{ignored: reason} }

func deadLetter(reason, detail string) decoded { return decoded{dead: &unreadable{reason, detail}} }

// Reasons for which messages are ignored.
const (
	ignoredRetained    = "retained"     // a snapshot of unknown age
	ignoredOtherTopic  = "other_topic"  // nothing about presence
	ignoredProtocol    = "other_client" // a gateway's client, not an MQTT client
	ignoredLine        = "other_line"   // a log line that is not about a client
	ignoredUnconnected = "no_connect"   // a connection that ended before its CONNECT
	ignoredVersion     = "version"      // noted
	ignoredQueued      = "queued"       // a heartbeat from before the connection, of unknown age
	ignoredRedelivered = "redelivered"  // the same message again
	ignoredOtherBridge = "other_bridge" // another bridge has it, and knows its place
	ignoredTwice       = "other_form"   // an event that the broker also tells in another form
)

// Reasons of dead letters.
const (
	deadJSON        = "not_json"
	deadField       = "bad_field"
	deadClientID    = "client_id_not_utf8"
	deadEmptyID     = "client_id_empty"
	deadNode        = "node_not_utf8"
	deadTimestamp   = "bad_timestamp"
	deadTruncated   = "truncated_line"
	deadAmbiguous   = "ambiguous_line"
	deadHeartbeat   = "bad_heartbeat"
	deadTopic       = "unknown_topic"
	deadImpostor    = "other_broker"
	deadUnwriteable = "refused_by_kafka"
)

// signalKind says what a message tells about a node, or about the session.
type signalKind uint8

const (
	signalUptime  signalKind = iota + 1 // ms is the node's uptime
	signalClock                         // ms is the node's clock
	signalMembers                       // the nodes of the cluster
	signalStarted                       // ms is when the node started, on its clock
	signalStopped                       // the node is about to stop
	signalLost                          // the broker dropped messages to the bridge
	signalAlive                         // the node is alive; it tells neither its uptime nor its clock
)

// signal is what a message tells about a node.
type signal struct {
	kind          signalKind
	dialect       string
	node          string
	ms            int64
	granularityMS int64 // of an uptime: it may be this much larger than it says
	clockMS       int64 // the node's clock, 0 if unknown
	paired        bool  // the node's clock comes in a message of its own
	members       []string
	retained      bool
	clientID      string // whose messages were lost
	receivedMS    int64
}

// username returns the user name that a broker wrote, empty for the texts that stand for none.
func username(s string) string {
	if s == "undefined" || s == "(null)" {
		return ""
	}
	return s
}

// hasAnyPrefix reports whether s begins with one of the prefixes.
func hasAnyPrefix(s string, prefixes ...string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}
