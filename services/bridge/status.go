package bridge

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// statusTopicDialect reads the status that devices write themselves, retained, with a will for the case that they vanish. It works on any
// broker. Which conventions are read is configured (mqtt-status-topics); the client ID is what names the device in the topic, which need not be
// the MQTT client ID that it connects with:
//
//	convention    topic                                       client ID         online       offline
//	zigbee2mqtt   <base>/bridge/state                         <base>            online       offline (will)
//	              <base>/<name>/availability                  <base>/<name>     online       offline (Zigbee2MQTT's own finding)
//	tasmota       tele/<topic>/LWT                            <topic>           Online       Offline (will)
//	homie         homie/5/<device>/$state                     <device>          init, ready  disconnected, sleeping, lost (will)
//	sparkplug     spBv1.0/<group>/NBIRTH|NDEATH/<node>        <group>/<node>    NBIRTH       NDEATH (will)
//
// A live message is an event, stamped with the time of reception: nothing in it tells the time (see arrivals: one bridge for such a
// cluster). A retained copy, which comes at each subscription, is the device's last word from an unknown time. What is not a will counts as
// the answer to a query, made when it came. A will is no more certain for being retained: it may be the late one of a connection that the
// device has replaced, so that it stays the ambiguous end that it was when it was live.
//
// The retained message of a device can be removed by whoever may write to its topic; that the device is gone for good is likely, not
// certain. What Zigbee2MQTT said last of its devices stands while it is offline itself.
var statusTopicDialect = &dialect{
	name: presence.DialectStatusTopic,
	configured: func(c *MQTTConfig) []filter {
		var filters []filter
		for _, s := range c.statusSources() {
			filters = append(filters, s.filters()...)
		}
		return filters
	},
	profiles: []string{presence.DialectSparkplug},
	newDecoder: func(c decoderConfig) decoder {
		return &statusDecoder{cluster: c.cluster, sources: c.mqtt.statusSources()}
	},
}

// sourceRetained is the source of what retained copies tell.
const sourceRetained = "retained"

// removedStatus is the raw reason of a device whose retained status was removed.
const removedStatus = "removed"

// The conventions.
const (
	conventionZigbee    = "zigbee2mqtt"
	conventionTasmota   = "tasmota"
	conventionHomie     = "homie"
	conventionSparkplug = "sparkplug"
)

// zigbeeLevels is how many levels the name of a Zigbee2MQTT device may have: MQTT has no filter for the end of a topic, and all of a base
// topic would be all of its messages.
const zigbeeLevels = 5

// topicPlaceholder stands for Tasmota's %topic% in the configured base.
const topicPlaceholder = "%topic%"

var conventionBases = map[string]string{
	conventionZigbee: "zigbee2mqtt", conventionTasmota: "tele", conventionHomie: "homie", conventionSparkplug: "spBv1.0",
}

var conventions = []string{conventionZigbee, conventionTasmota, conventionHomie, conventionSparkplug}

// statusSource is one convention with its base topic.
type statusSource struct{ convention, base string }

// parseStatusSource reads <convention> or <convention>=<base topic>.
func parseStatusSource(item string) (statusSource, error) {
	name, base, given := strings.Cut(item, "=")
	if !slices.Contains(conventions, name) {
		return statusSource{}, fmt.Errorf("%q is none of %s, with =<base topic> behind it where that differs from the default", name, strings.Join(conventions, ", "))
	}
	if !given {
		base = conventionBases[name]
	}
	switch {
	case base == "", strings.HasPrefix(base, "/"), strings.HasSuffix(base, "/"), strings.ContainsAny(base, "+#\x00"), !utf8.ValidString(base):
		return statusSource{}, fmt.Errorf("base topic %q of %s must not be empty, begin or end with a slash, or hold + or #", base, name)
	case strings.Contains(base, topicPlaceholder) && name != conventionTasmota:
		return statusSource{}, fmt.Errorf("base topic %q of %s: only tasmota has %s", base, name, topicPlaceholder)
	case strings.Count(base, topicPlaceholder) > 1 || strings.Contains(strings.ReplaceAll("/"+base+"/", "/"+topicPlaceholder+"/", "/"), topicPlaceholder):
		return statusSource{}, fmt.Errorf("base topic %q of %s: %s must be one whole level", base, name, topicPlaceholder)
	}
	return statusSource{name, base}, nil
}

// statusSources returns the conventions that are read; validate has seen to it that they are well formed.
func (c *MQTTConfig) statusSources() []statusSource {
	var list []statusSource
	for _, item := range c.StatusTopics {
		if s, err := parseStatusSource(item); err == nil && !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

func (c *MQTTConfig) validateStatusTopics() []error {
	if c.Dialect != presence.DialectStatusTopic {
		return nil
	}
	if len(c.StatusTopics) == 0 {
		return []error{fmt.Errorf("mqtt-status-topics: name at least one of %s", strings.Join(conventions, ", "))}
	}
	var errs []error
	for _, item := range c.StatusTopics {
		if _, err := parseStatusSource(item); err != nil {
			errs = append(errs, fmt.Errorf("mqtt-status-topics: %w", err))
		}
	}
	return errs
}

func (s statusSource) filters() []filter {
	var list []filter
	add := func(topic string, qos byte) { list = append(list, filter{topic: topic, qos: qos, events: true}) }
	switch s.convention {
	case conventionZigbee:
		add(s.base+"/bridge/state", 1)
		for n := range zigbeeLevels {
			add(s.base+strings.Repeat("/+", n+1)+"/availability", 1)
		}
	case conventionTasmota, conventionHomie:
		head, tail := s.around()
		add(head+"+"+tail, 1)
	case conventionSparkplug:
		add(s.base+"/+/"+nodeBirth+"/+", 1)
		add(s.base+"/+/"+nodeDeath+"/+", 1)
	}
	return list
}

// around returns what stands before and after the name of a device in a topic.
func (s statusSource) around() (head, tail string) {
	switch s.convention {
	case conventionZigbee:
		return s.base + "/", "/availability"
	case conventionHomie:
		return s.base + "/5/", "/$state"
	}
	base := s.base
	if !strings.Contains(base, topicPlaceholder) {
		base += "/" + topicPlaceholder
	}
	head, tail, _ = strings.Cut(base, topicPlaceholder)
	return head, tail + "/LWT"
}

// match returns the client ID that a topic of the convention names.
func (s statusSource) match(topic string) (id string, ok bool) {
	switch s.convention {
	case conventionSparkplug:
		return "", strings.HasPrefix(topic, s.base+"/") && (strings.Contains(topic, "/"+nodeBirth+"/") || strings.Contains(topic, "/"+nodeDeath+"/"))
	case conventionZigbee:
		if topic == s.base+"/bridge/state" {
			return s.base, true
		}
	}
	head, tail := s.around()
	if len(topic) < len(head)+len(tail) || !strings.HasPrefix(topic, head) || !strings.HasSuffix(topic, tail) {
		return "", false
	}
	id = topic[len(head) : len(topic)-len(tail)]
	if s.convention == conventionZigbee && id != "" {
		id = head + id
	}
	return id, true
}

// deviceStatus is what a status message says.
type deviceStatus struct {
	online bool
	reason presence.Reason // why it is offline
	raw    string
}

// errStatus is why a status is not read.
var errStatus = errors.New("is not a status of the convention")

func (s statusSource) read(topic string, payload []byte) (deviceStatus, error) {
	word := string(payload)
	if s.convention == conventionZigbee && strings.HasPrefix(strings.TrimSpace(word), "{") {
		var state struct {
			State string `json:"state"`
		}
		if err := json.Unmarshal(payload, &state); err != nil {
			return deviceStatus{}, err
		}
		word = state.State
	}
	switch {
	case len(payload) == 0:
		return deviceStatus{reason: presence.ReasonOther, raw: removedStatus}, nil
	case s.convention == conventionHomie:
		return homieStatus(word)
	case strings.EqualFold(word, "online"):
		return deviceStatus{online: true}, nil
	case !strings.EqualFold(word, "offline"):
		return deviceStatus{}, fmt.Errorf("%.40q %w", word, errStatus)
	case s.convention == conventionZigbee && topic != s.base+"/bridge/state":
		// Zigbee2MQTT has not heard of the device for too long.
		return deviceStatus{reason: presence.ReasonKeepAliveTimeout, raw: word}, nil
	}
	return deviceStatus{reason: presence.ReasonConnectionLost, raw: word}, nil
}

// homieStatus reads Homie 5's $state. A device that is sleeping has left on purpose and will be back, for which there is no reason of its own.
func homieStatus(word string) (deviceStatus, error) {
	switch word {
	case "init", "ready":
		return deviceStatus{online: true}, nil
	case "disconnected":
		return deviceStatus{reason: presence.ReasonNormal, raw: word}, nil
	case "lost":
		return deviceStatus{reason: presence.ReasonConnectionLost, raw: word}, nil
	case "sleeping":
		return deviceStatus{reason: presence.ReasonOther, raw: word}, nil
	}
	return deviceStatus{}, fmt.Errorf("%.40q %w", word, errStatus)
}

type statusDecoder struct {
	cluster  string
	sources  []statusSource
	arrivals arrivals
}

func (d *statusDecoder) connected(sessionStart) {}

func (d *statusDecoder) subscribed(int64) {}

func (d *statusDecoder) owns(m *message) bool {
	return slices.ContainsFunc(d.sources, func(s statusSource) bool { _, ok := s.match(m.topic); return ok })
}

func (d *statusDecoder) decode(m *message) decoded {
	for _, s := range d.sources {
		id, ok := s.match(m.topic)
		switch {
		case !ok:
		case s.convention == conventionSparkplug:
			return d.sparkplug(s, m)
		default:
			return d.status(s, id, m)
		}
	}
	return ignore(ignoredOtherTopic)
}

func (d *statusDecoder) status(s statusSource, id string, m *message) decoded {
	status, err := s.read(m.topic, m.payload)
	if err != nil {
		return deadLetter(deadField, fmt.Sprintf("the payload of %s: %v", s.convention, err))
	}
	f := presence.Fact{Cluster: d.cluster, ClientID: id, Dialect: presence.DialectStatusTopic, TimeMS: m.receivedMS, ReceivedMS: m.receivedMS}
	switch {
	case m.retain && status.reason != presence.ReasonConnectionLost:
		f.Kind, f.Online, f.Source = presence.Observed, presence.Some(status.online), sourceRetained
		f.QueryStartMS, f.QueryEndMS = m.receivedMS, m.receivedMS
	case status.online:
		f.Kind = presence.Opened
		f.TimeMS, f.Order = d.arrivals.next(m.receivedMS)
	default:
		f.Kind, f.Reason, f.RawReason = presence.Closed, status.reason, status.raw
		f.TimeMS, f.Order = d.arrivals.next(m.receivedMS)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}
