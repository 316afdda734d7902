package bridge

import (
	"fmt"
	"strings"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// versioned decoders read a message by the version of the broker, which earlier messages have told.
type versioned interface {
	// versionFor returns the topic and payload of a message that tells the version by which m is read; both are empty if it is not known.
	versionFor(m *message) (topic, payload string)
}

// versionFor returns what a dead letter keeps of the version by which a message was read, so that it can be read again by the same; see
// [eventlog.DeadLetter].
func versionFor(decoders []decoder, m *message) string {
	for _, d := range decoders {
		if v, ok := d.(versioned); ok && d.owns(m) {
			if topic, payload := v.versionFor(m); topic != "" {
				return topic + " " + payload
			}
		}
	}
	return ""
}

// versionMessage is the inverse of versionFor, nil if the version is not known.
func versionMessage(l *eventlog.DeadLetter) *message {
	// A node's name may hold spaces, a version's own text follows the last one of the topic.
	const end = "/version "
	i := strings.LastIndex(l.Version, end)
	if i < 0 {
		return nil
	}
	i += len(end) - 1
	return &message{topic: l.Version[:i], payload: []byte(l.Version[i+1:]), retain: true, receivedMS: l.ReceivedMS}
}

func (v brokerVersion) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (d *emqxDecoder) versionFor(m *message) (topic, payload string) {
	rest, ok := strings.CutPrefix(m.topic, emqxRoot+"/")
	name, _, _ := strings.Cut(rest, "/")
	n := d.nodes[name]
	if !ok || n == nil || !n.version.known() {
		return "", ""
	}
	return emqxRoot + "/" + name + "/version", n.version.String()
}

func (d *mosquittoDecoder) versionFor(*message) (topic, payload string) {
	if !d.version.known() {
		return "", ""
	}
	return mosquittoVersion, "mosquitto version " + d.version.String()
}
