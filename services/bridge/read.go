package bridge

import (
	"fmt"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// maxStampMS is the end of the year 9999, the last that records can hold. A stamp beyond it is in another unit.
const maxStampMS = 253_402_300_799_999

const (
	// maxReason is how much of the broker's words for an end is kept. RMQTT repeats what the client wrote into its DISCONNECT, and a state keeps
	// several ends (L8).
	maxReason = 1 << 10
	// maxText is the longest text of MQTT.
	maxText = 1<<16 - 1
)

// ignoredRemoved is why a message without payload is ignored: a retained message was removed, which says nothing about the client.
const ignoredRemoved = "removed"

// Reasons of dead letters.
const (
	deadLongID  = "client_id_too_long" // longer than MQTT allows
	deadPayload = "bad_payload"        // in a format that is not JSON
)

// read has the decoder that owns a message read it, and sees to what holds for the facts of every dialect: their records can be read again,
// whatever the payload claims.
func read(d decoder, m *message) decoded {
	result := d.decode(m)
	for i := range result.facts {
		cutReason(&result.facts[i])
		if why := unwritable(&result.facts[i]); why != nil {
			return decoded{dead: why}
		}
	}
	return result
}

// cutReason cuts the broker's words for an end where they are too long.
func cutReason(f *presence.Fact) {
	if len(f.RawReason) <= maxReason {
		return
	}
	end := maxReason
	for end > 0 && !utf8.RuneStart(f.RawReason[end]) {
		end--
	}
	f.RawReason = f.RawReason[:end]
	f.SetID()
}

// unwritable says why a fact cannot stand in the log, nil if it can.
func unwritable(f *presence.Fact) *unreadable {
	if f.ClientID == "" {
		return &unreadable{deadEmptyID, "the client ID is empty"}
	}
	if err := eventlog.ValidClientID(f.ClientID); err != nil {
		reason := deadClientID
		if utf8.ValidString(f.ClientID) {
			reason = deadLongID
		}
		return &unreadable{reason, err.Error()}
	}
	if !utf8.ValidString(f.Node) {
		return &unreadable{deadNode, fmt.Sprintf("node %.80q is not UTF-8", f.Node)}
	}
	for _, s := range []struct{ what, text string }{
		{"connection key", f.Connection}, {"node", f.Node}, {"user name", f.Username}, {"peer", f.Peer}, {"reason", f.RawReason}, {"transport", f.Transport},
	} {
		if len(s.text) > maxText {
			return &unreadable{deadField, fmt.Sprintf("the %s %.80q... has %d bytes, more than MQTT allows", s.what, s.text, len(s.text))}
		}
		if !utf8.ValidString(s.text) {
			return &unreadable{deadField, fmt.Sprintf("the %s %.80q is not UTF-8", s.what, s.text)}
		}
	}
	if f.TimeMS == 0 && f.Kind != presence.Observed {
		return &unreadable{deadTimestamp, "the event has no time"}
	}
	for _, s := range []struct {
		what string
		ms   int64
	}{{"time", f.TimeMS}, {"opening time", f.ConnectedAtMS}, {"closing time", f.DisconnectedAtMS}} {
		if s.ms < 0 || s.ms > maxStampMS {
			return &unreadable{deadTimestamp, fmt.Sprintf("the %s, %d ms, is not between 1970 and the year 9999: is it in another unit?", s.what, s.ms)}
		}
	}
	return nil
}

// arrivals stamps the messages of dialects that tell no time: with the time of reception, and the ordinal within its millisecond, as the
// session keeps their order. Such stamps never go back: with the bridge's clock set back they stand still until it has caught up. Two
// bridges stamp one message differently, so that a cluster with such a dialect has one bridge.
type arrivals struct {
	latestMS int64
	count    uint32
}

func (a *arrivals) next(receivedMS int64) (atMS int64, order uint32) {
	if receivedMS > a.latestMS {
		a.latestMS, a.count = receivedMS, 0
	}
	a.count++
	return a.latestMS, a.count
}
