package broker

import (
	"encoding/json"
	"strings"
)

// Topics that the broker publishes to, beneath the node's own level:
//
//	$SYS/brokers                                           comma-separated list of running nodes, retained
//	$SYS/brokers/<node>/version, sysdescr                  text, retained
//	$SYS/brokers/<node>/uptime                             ms since clients are served
//	$SYS/brokers/<node>/datetime                           RFC 3339 with nanoseconds
//	$SYS/brokers/<node>/clients/<client ID>/connected      connectedEvent
//	$SYS/brokers/<node>/clients/<client ID>/disconnected   disconnectedEvent
const brokersTopic = "$SYS/brokers"

// maxTopicBytes is the longest string of MQTT (MQTT 5, 1.5.4).
const maxTopicBytes = 65_535

// noUsername is what EMQX 5 writes for a client without a username.
const noUsername = "undefined"

// clientInfo are the fields that both events share. All times are epoch milliseconds on the node's clock.
type clientInfo struct {
	ClientID    string `json:"clientid"`
	Username    string `json:"username"`
	IPAddress   string `json:"ipaddress"`
	SockPort    int    `json:"sockport"` // the listener's
	Protocol    string `json:"protocol"`
	ProtoName   string `json:"proto_name"`
	ProtoVer    uint8  `json:"proto_ver"`
	ConnectedAt int64  `json:"connected_at"`
	TS          int64  `json:"ts"`
}

type connectedEvent struct {
	clientInfo
	KeepAlive      uint16 `json:"keepalive"` // seconds
	CleanStart     bool   `json:"clean_start"`
	ExpiryInterval int64  `json:"expiry_interval"` // milliseconds
}

type disconnectedEvent struct {
	clientInfo
	Reason         string `json:"reason"`
	DisconnectedAt int64  `json:"disconnected_at"`
}

func encode(event any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(event); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// escapeID encodes what a topic name must not hold (MQTT 5, 4.7.1).
var escapeID = strings.NewReplacer("+", "%2B", "#", "%23")

func (b *Broker) nodeTopic(name string) string { return brokersTopic + "/" + b.cfg.Node + "/" + name }

func (b *Broker) eventTopic(clientID, event string) string {
	return b.nodeTopic("clients/" + escapeID.Replace(clientID) + "/" + event)
}

// reportable says whether events about a client ID can be told from those about any other. The topic must fit; and where the
// ID holds U+FFFD, which in a payload may stand for bytes that were lost, readers take the ID from the topic, which must then be exact.
func (b *Broker) reportable(clientID string) bool {
	if strings.ContainsRune(clientID, '\uFFFD') && strings.ContainsAny(clientID, "+#") {
		return false
	}
	return len(b.eventTopic(clientID, "disconnected")) <= maxTopicBytes
}
