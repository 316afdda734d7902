package bridge

import (
	"fmt"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// mosquittoPluginDialect reads what the example plugin connection-state of Mosquitto 2.1 publishes, all of it retained, at QoS 0:
//
//	$SYS/broker/connection/client/<client ID>/state   1 when a CONNECT was accepted; 0 when a connection ended, kept for a day
//	$SYS/broker/uptime, $SYS/broker/version           as the log's
//
// It tells neither time nor reason nor connection, it says nothing when a client with a session expiry goes, and it may say 0 when a stranger
// is refused who claims a client's ID: no message of it proves a status, so that all answers are unknown, with a belief that follows the
// latest message. The log knows more; with both in use the dialect should be named.
//
// The copies that come at each subscription are of unknown age, after a broker's restart even of the generation before. They change the
// belief as live messages do: what they say is the latest that was said, and no less certain than the rest.
var mosquittoPluginDialect = &dialect{
	name: presence.DialectMosquittoPlugin,
	filters: []filter{
		{topic: mosquittoState + "#", qos: 0, events: true},
		{topic: mosquittoUptime, qos: 2},
		{topic: mosquittoVersion, qos: 2},
	},
	heartbeat: 10 * time.Second,
	newDecoder: func(c decoderConfig) decoder {
		return &mosquittoPluginDecoder{log: newMosquittoDecoder(c), cluster: c.cluster}
	},
}

const (
	mosquittoState       = mosquittoRoot + "connection/client/"
	mosquittoStateSuffix = "/state"
)

type mosquittoPluginDecoder struct {
	log      *mosquittoDecoder // reads the heartbeats
	cluster  string
	arrivals arrivals
}

func (d *mosquittoPluginDecoder) connected(s sessionStart) { d.log.connected(s) }

func (d *mosquittoPluginDecoder) subscribed(atMS int64) { d.log.subscribed(atMS) }

func (d *mosquittoPluginDecoder) owns(m *message) bool {
	return strings.HasPrefix(m.topic, mosquittoState) || m.topic == mosquittoUptime || m.topic == mosquittoVersion
}

func (d *mosquittoPluginDecoder) decode(m *message) decoded {
	rest, ok := strings.CutPrefix(m.topic, mosquittoState)
	if !ok {
		result := d.log.decode(m)
		if result.signal != nil {
			result.signal.dialect = presence.DialectMosquittoPlugin
		}
		return result
	}
	id, ok := strings.CutSuffix(rest, mosquittoStateSuffix)
	if !ok {
		return ignore(ignoredOtherTopic)
	}
	f := presence.Fact{
		Cluster: d.cluster, ClientID: id, Dialect: presence.DialectMosquittoPlugin, Node: mosquittoNode, ReceivedMS: m.receivedMS,
	}
	switch string(m.payload) {
	case "1":
		f.Kind = presence.Opened
	case "0":
		f.Kind = presence.Closed
	case "":
		return ignore(ignoredRemoved)
	default:
		return deadLetter(deadField, fmt.Sprintf("state %.40q is neither 1 nor 0", m.payload))
	}
	f.TimeMS, f.Order = d.arrivals.next(m.receivedMS)
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}
