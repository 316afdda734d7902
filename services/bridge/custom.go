package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// customDialect reads events whose form is configured: each item of mqtt-custom has a topic pattern and says where its messages hold what.
// Of the broker's habits nothing is known but what its connection keys are worth (mqtt-custom-key), so that without keys an end proves
// little: status is unknown with a belief.
var customDialect = &dialect{
	name: presence.DialectCustom,
	configured: func(c *MQTTConfig) []filter {
		var filters []filter
		for i := range c.Custom {
			if p, err := parsePattern(c.Custom[i].Topic); err == nil {
				filters = append(filters, filter{topic: p.filter(), qos: byte(c.Custom[i].QoS), events: true})
			}
		}
		return filters
	},
	profiles:   []string{presence.DialectCustomReusable, presence.DialectCustomUnique},
	newDecoder: newCustomDecoder,
}

// customRule is one item of the configuration, ready for use.
type customRule struct {
	*CustomEvents
	pattern topicPattern
	meaning map[string]presence.Reason
	fixed   presence.Kind // of every message; KindUnknown if a word tells
}

type customDecoder struct {
	cluster  string
	dialect  string
	rules    []customRule
	arrivals arrivals
}

// newCustomDecoder relies on the configuration being valid.
func newCustomDecoder(c decoderConfig) decoder {
	d := &customDecoder{cluster: c.cluster, dialect: customDialects[c.mqtt.CustomKey]}
	for i := range c.mqtt.Custom {
		e := &c.mqtt.Custom[i]
		pattern, err := parsePattern(e.Topic)
		meaning, reasonErr := e.reasons()
		if err == nil && reasonErr == nil {
			d.rules = append(d.rules, customRule{e, pattern, meaning, presence.ParseKind(e.Event)})
		}
	}
	return d
}

func (d *customDecoder) connected(sessionStart) {}

func (d *customDecoder) subscribed(int64) {}

// owns is true: the dialect is alone, and what comes was asked for, though a filter may match more than its pattern.
func (d *customDecoder) owns(*message) bool { return true }

func (d *customDecoder) decode(m *message) decoded {
	for i := range d.rules {
		inTopic, ok := d.rules[i].pattern.match(m.topic)
		if !ok {
			continue
		}
		if m.retain {
			return ignore(ignoredRetained)
		}
		e := customEvent{rule: &d.rules[i], inTopic: inTopic, payload: m.payload}
		return d.event(&e, m)
	}
	return ignore(ignoredOtherTopic)
}

func (d *customDecoder) event(e *customEvent, m *message) decoded {
	kind, word := e.kind()
	switch {
	case e.dead != nil:
		return decoded{dead: e.dead}
	case kind == presence.KindUnknown && slices.Contains(e.rule.IgnoredWords, word):
		return ignore(ignoredOtherTopic)
	case kind == presence.KindUnknown:
		return deadLetter(deadField, fmt.Sprintf("the event %.40q is in none of connected-words, disconnected-words, ignored-words", word))
	}
	f := presence.Fact{
		Kind: kind, Cluster: d.cluster, ClientID: e.clientID(), Dialect: d.dialect, ReceivedMS: m.receivedMS,
		Node:          e.text(segmentNode, e.rule.NodeField),
		Connection:    e.text(segmentConnection, e.rule.ConnectionField),
		Username:      username(e.text(segmentUsername, e.rule.UsernameField)),
		Peer:          e.text(segmentPeer, e.rule.PeerField),
		ConnectedAtMS: e.ms(e.rule.ConnectedAtField),
	}
	f.TimeMS = f.ConnectedAtMS
	if kind == presence.Closed {
		e.closed(&f)
	}
	if ms := e.ms(e.rule.TimeField); ms != 0 {
		f.TimeMS = ms
	}
	switch {
	case e.dead != nil:
		return decoded{dead: e.dead}
	case f.Connection == "" && d.dialect != presence.DialectCustom:
		return deadLetter(deadField, "the connection key is missing or empty")
	case f.TimeMS == 0 && e.rule.TimeField == "":
		f.TimeMS, f.Order = d.arrivals.next(m.receivedMS)
	}
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// customEvent reads one message. The first mistake is kept in dead.
type customEvent struct {
	rule    *customRule
	inTopic map[string]string
	payload []byte
	object  map[string]any // nil until a field of it is asked for
	dead    *unreadable
}

func (e *customEvent) fail(reason, detail string) {
	if e.dead == nil {
		e.dead = &unreadable{reason, detail}
	}
}

// closed reads what only the end of a connection has. Its own time comes before that of the beginning.
func (e *customEvent) closed(f *presence.Fact) {
	f.DisconnectedAtMS = e.ms(e.rule.DisconnectedAtField)
	f.TimeMS = f.DisconnectedAtMS
	f.RawReason = e.text(segmentReason, e.rule.ReasonField)
	if f.RawReason != "" {
		f.Reason = presence.ReasonOther
	}
	if r, ok := e.rule.meaning[f.RawReason]; ok {
		f.Reason = r
	}
}

func (e *customEvent) kind() (presence.Kind, string) {
	if e.rule.fixed != presence.KindUnknown {
		return e.rule.fixed, ""
	}
	word := e.text(segmentEvent, e.rule.EventField)
	switch {
	case slices.Contains(e.rule.ConnectedWords, word):
		return presence.Opened, word
	case slices.Contains(e.rule.DisconnectedWords, word):
		return presence.Closed, word
	}
	return presence.KindUnknown, word
}

// clientID returns the payload's ID, unless it has lost bytes and the topic has one.
func (e *customEvent) clientID() string {
	topicID, inTopic := e.inTopic[segmentClientID]
	if e.rule.ClientIDField == "" {
		return topicID
	}
	id, ok := e.lookup(e.rule.ClientIDField)
	switch {
	case !ok && e.dead == nil:
		e.fail(deadField, fmt.Sprintf("the field %q with the client ID is missing", e.rule.ClientIDField))
	case strings.Contains(id, replacement) && inTopic:
		return topicID
	case strings.Contains(id, replacement):
		e.fail(deadClientID, fmt.Sprintf("client ID %.80q holds U+FFFD, which stands for bytes that were lost", id))
	}
	return id
}

// text returns what a segment or a field holds, empty if it is absent.
func (e *customEvent) text(segment, field string) string {
	if field == "" {
		return e.inTopic[segment]
	}
	s, _ := e.lookup(field)
	return s
}

// lookup returns a field as text: numbers and booleans as they are written.
func (e *customEvent) lookup(field string) (string, bool) {
	if field == wholePayload {
		if !utf8.Valid(e.payload) {
			e.fail(deadField, "the payload is not UTF-8")
		}
		return string(e.payload), true
	}
	if e.object == nil && !e.parse() {
		return "", false
	}
	switch v := member(e.object, field).(type) {
	case nil:
		return "", false
	case string:
		return v, true
	case json.Number:
		return v.String(), true
	case bool:
		return strconv.FormatBool(v), true
	}
	e.fail(deadField, fmt.Sprintf("field %q is neither text nor number", field))
	return "", false
}

// errTrailing is what follows a JSON object.
var errTrailing = errors.New("something follows the JSON object")

func (e *customEvent) parse() bool {
	if e.dead != nil {
		return false
	}
	if !utf8.Valid(e.payload) {
		// The decoder would put U+FFFD in place of what is not UTF-8, and merge different names.
		e.fail(deadJSON, "the payload is not UTF-8")
		return false
	}
	d := json.NewDecoder(bytes.NewReader(e.payload))
	d.UseNumber()
	err := d.Decode(&e.object)
	if err == nil {
		if _, more := d.Token(); more != io.EOF {
			err = errTrailing
		}
	}
	if err == nil && e.object == nil {
		err = errors.New("the payload is null")
	}
	if err != nil {
		e.fail(deadJSON, err.Error())
		return false
	}
	return true
}

// member follows a name with dots into nested objects; a name that is there as a whole wins.
func member(object map[string]any, name string) any {
	if v, ok := object[name]; ok {
		return v
	}
	for i := range len(name) {
		if name[i] != '.' {
			continue
		}
		if inner, ok := object[name[:i]].(map[string]any); ok {
			if v := member(inner, name[i+1:]); v != nil {
				return v
			}
		}
	}
	return nil
}

// ms returns the time that a field holds in milliseconds, 0 if it is absent, 0 or not configured.
func (e *customEvent) ms(field string) int64 {
	if field == "" {
		return 0
	}
	text, ok := e.lookup(field)
	if !ok || text == "" {
		return 0
	}
	ms, err := parseTime(text, e.rule.TimeUnit)
	if err != nil || ms < 0 {
		e.fail(deadTimestamp, fmt.Sprintf("field %q: %.40q is not a time in unit %s", field, text, e.rule.TimeUnit))
	}
	return ms
}

// parseTime reads a time. Numbers may have decimals: those of milliseconds are rounded.
func parseTime(text, unit string) (int64, error) {
	if unit == unitRFC3339 {
		t, err := time.Parse(time.RFC3339Nano, text)
		return t.UnixMilli(), err
	}
	scale := int64(1)
	if unit == unitS {
		scale = 1000
	}
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		if n > maxStampMS/scale {
			return 0, strconv.ErrRange
		}
		return n * scale, nil
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0, err
	}
	if x *= float64(scale); !(math.Abs(x) <= maxStampMS) {
		return 0, strconv.ErrRange
	}
	return int64(math.Round(x)), nil
}
