package bridge

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

// CustomEvents tells where the messages of one topic pattern hold what the dialect custom needs. A field is named as in the payload, a JSON
// object; dots lead into nested objects, and a single dot stands for the whole payload as text.
type CustomEvents struct {
	Topic string `conf:"topic" usage:"topic pattern: each level is text, + or a segment such as {client_id}; one segment may take several levels, {client_id...}"`
	QoS   int    `conf:"qos" usage:"QoS to subscribe with, 0 to 2"`

	Event             string   `conf:"event" usage:"connected or disconnected, if all messages of the topic say the same"`
	EventField        string   `conf:"event-field" usage:"field with the word that tells the event"`
	ConnectedWords    []string `conf:"connected-words" usage:"words that mean connected"`
	DisconnectedWords []string `conf:"disconnected-words" usage:"words that mean disconnected"`
	IgnoredWords      []string `conf:"ignored-words" usage:"words of events that are not about presence; others are dead letters"`

	ClientIDField       string   `conf:"client-id-field" usage:"field with the client ID"`
	NodeField           string   `conf:"node-field" usage:"field with the broker node"`
	ConnectionField     string   `conf:"connection-field" usage:"field with the connection key, see mqtt-custom-key"`
	TimeField           string   `conf:"time-field" usage:"field with the time of the event, on the node's clock; without one, the time of reception, and one bridge only"`
	TimeUnit            string   `conf:"time-unit" usage:"unit of all times: ms or s since 1970, or rfc3339"`
	ConnectedAtField    string   `conf:"connected-at-field" usage:"field with the time at which the connection opened"`
	DisconnectedAtField string   `conf:"disconnected-at-field" usage:"field with the time at which the connection closed"`
	ReasonField         string   `conf:"reason-field" usage:"field with the reason of the end"`
	Reasons             []string `conf:"reasons" usage:"what the broker's reasons mean, each <word>=<reason>; others are the reason other"`
	UsernameField       string   `conf:"username-field" usage:"field with the user name"`
	PeerField           string   `conf:"peer-field" usage:"field with the client's address"`
}

// SetDefaults fills in what a file's list item leaves out.
func (c *CustomEvents) SetDefaults() {
	c.QoS, c.TimeUnit = 1, unitMS
	c.ConnectedWords, c.DisconnectedWords = []string{"connected"}, []string{"disconnected"}
}

// Kinds of connection keys, as mqtt-custom-key names them.
const (
	keyNone     = "none"
	keyReusable = "reusable"
	keyUnique   = "unique"
)

var customDialects = map[string]string{
	keyNone: presence.DialectCustom, keyReusable: presence.DialectCustomReusable, keyUnique: presence.DialectCustomUnique,
}

// Units of times.
const (
	unitMS      = "ms"
	unitS       = "s"
	unitRFC3339 = "rfc3339"
)

// wholePayload is the field that stands for the payload itself.
const wholePayload = "."

// Segments of a topic pattern.
const (
	segmentClientID   = "client_id"
	segmentNode       = "node"
	segmentEvent      = "event"
	segmentConnection = "connection"
	segmentUsername   = "username"
	segmentPeer       = "peer"
	segmentReason     = "reason"
)

var segmentNames = []string{segmentClientID, segmentNode, segmentEvent, segmentConnection, segmentUsername, segmentPeer, segmentReason}

// topicPattern is a parsed topic pattern.
type topicPattern struct {
	levels []patternLevel
	many   int // index of the level that takes several; -1 for none
}

// patternLevel is a text, any level, or a segment with a name.
type patternLevel struct {
	text string
	any  bool
	name string
}

func parsePattern(s string) (topicPattern, error) {
	p := topicPattern{many: -1}
	switch {
	case s == "":
		return p, errors.New("is missing: give the topic of the events, such as events/{client_id}/{event}")
	case strings.HasPrefix(s, "$share/"):
		return p, errors.New("is a shared subscription, which spreads a client's events over its members: give the topic itself")
	case !utf8.ValidString(s) || strings.ContainsRune(s, 0):
		return p, errors.New("is not UTF-8, or holds a NUL")
	}
	for i, text := range strings.Split(s, "/") {
		level, many, err := parseLevel(text)
		switch {
		case err != nil:
			return p, err
		case level.name != "" && slices.ContainsFunc(p.levels, func(l patternLevel) bool { return l.name == level.name }):
			return p, fmt.Errorf("has the segment {%s} twice", level.name)
		case many && p.many >= 0:
			return p, errors.New("has two segments that take several levels: which takes what could not be told")
		case many:
			p.many = i
		}
		p.levels = append(p.levels, level)
	}
	return p, nil
}

func parseLevel(text string) (level patternLevel, many bool, err error) {
	name, segment := strings.CutPrefix(text, "{")
	name, closed := strings.CutSuffix(name, "}")
	switch {
	case text == "+":
		return patternLevel{any: true}, false, nil
	case segment && closed:
		name, many = strings.CutSuffix(name, "...")
		if !slices.Contains(segmentNames, name) {
			return level, false, fmt.Errorf("has the segment %q, which is none of {%s}", text, strings.Join(segmentNames, "}, {"))
		}
		return patternLevel{name: name}, many, nil
	case strings.ContainsAny(text, "{}"):
		return level, false, fmt.Errorf("has the level %q: a segment must be a whole level", text)
	case strings.ContainsAny(text, "+#"):
		return level, false, fmt.Errorf("has the level %q: + must be a whole level, and in place of # a segment takes several levels, such as {client_id...}", text)
	}
	return patternLevel{text: text}, false, nil
}

// filter returns the topic filter of a pattern.
func (p *topicPattern) filter() string {
	var b strings.Builder
	for i, l := range p.levels {
		if i > 0 {
			b.WriteByte('/')
		}
		switch {
		case i == p.many:
			b.WriteByte('#')
			return b.String()
		case l.any || l.name != "":
			b.WriteByte('+')
		default:
			b.WriteString(l.text)
		}
	}
	return b.String()
}

// has reports whether the pattern has a segment.
func (p *topicPattern) has(name string) bool {
	return slices.ContainsFunc(p.levels, func(l patternLevel) bool { return l.name == name })
}

// match returns the levels of a topic that segments stand for.
func (p *topicPattern) match(topic string) (map[string]string, bool) {
	levels := strings.Split(topic, "/")
	extra := len(levels) - len(p.levels)
	if extra < 0 || extra > 0 && p.many < 0 {
		return nil, false
	}
	if p.many >= 0 {
		end := p.many + extra + 1
		levels = slices.Concat(levels[:p.many:p.many], []string{strings.Join(levels[p.many:end], "/")}, levels[end:])
	}
	var values map[string]string
	for i, l := range p.levels {
		switch {
		case l.name != "":
			if values == nil {
				values = map[string]string{}
			}
			values[l.name] = levels[i]
		case !l.any && l.text != levels[i]:
			return nil, false
		}
	}
	return values, true
}

func (c *MQTTConfig) validateCustom() []error {
	if c.Dialect != presence.DialectCustom {
		if len(c.Custom) > 0 {
			return []error{fmt.Errorf("mqtt-custom: has no effect with mqtt-dialect %s; set that to %s", c.Dialect, presence.DialectCustom)}
		}
		return nil
	}
	var errs []error
	if _, ok := customDialects[c.CustomKey]; !ok {
		return []error{fmt.Errorf("mqtt-custom-key: %q is none of %s, %s, %s", c.CustomKey, keyNone, keyReusable, keyUnique)}
	}
	if len(c.Custom) == 0 {
		errs = append(errs, errors.New("mqtt-custom: dialect custom needs at least one item with a topic, in the YAML file"))
	}
	for i := range c.Custom {
		if err := c.Custom[i].validate(c.CustomKey); err != nil {
			errs = append(errs, fmt.Errorf("mqtt-custom: item %d: %w", i+1, err))
		}
	}
	return errs
}

// validate reports the first mistake, by key.
func (c *CustomEvents) validate(keyKind string) error {
	p, err := parsePattern(c.Topic)
	if err != nil {
		return fmt.Errorf("topic: %q %w", c.Topic, err)
	}
	if c.QoS < 0 || c.QoS > 2 {
		return fmt.Errorf("qos: %d is not 0, 1 or 2", c.QoS)
	}
	for _, s := range []struct{ segment, key, field string }{
		{segmentNode, "node-field", c.NodeField}, {segmentEvent, "event-field", c.EventField}, {segmentConnection, "connection-field", c.ConnectionField},
		{segmentUsername, "username-field", c.UsernameField}, {segmentPeer, "peer-field", c.PeerField}, {segmentReason, "reason-field", c.ReasonField},
	} {
		if p.has(s.segment) && s.field != "" {
			return fmt.Errorf("%s: the topic has {%s} already; leave one of them out", s.key, s.segment)
		}
	}
	if !p.has(segmentClientID) && c.ClientIDField == "" {
		return errors.New("client-id-field: name the field with the client ID, or put {client_id} into the topic")
	}
	if err := c.validateEvent(p.has(segmentEvent)); err != nil {
		return err
	}
	if has := p.has(segmentConnection) || c.ConnectionField != ""; has != (keyKind != keyNone) {
		if has {
			return fmt.Errorf("connection-field: a connection key needs mqtt-custom-key, %s or %s", keyReusable, keyUnique)
		}
		return fmt.Errorf("connection-field: mqtt-custom-key %s needs a connection key in every item: name the field, or put {connection} into the topic", keyKind)
	}
	if !slices.Contains([]string{unitMS, unitS, unitRFC3339}, c.TimeUnit) {
		return fmt.Errorf("time-unit: %q is none of %s, %s, %s", c.TimeUnit, unitMS, unitS, unitRFC3339)
	}
	_, err = c.reasons()
	return err
}

func (c *CustomEvents) validateEvent(inTopic bool) error {
	given := 0
	for _, has := range []bool{inTopic, c.Event != "", c.EventField != ""} {
		if has {
			given++
		}
	}
	switch {
	case given == 0:
		return errors.New("event: say connected or disconnected, name the event-field, or put {event} into the topic")
	case given > 1:
		return errors.New("event: give one of event, event-field and {event} in the topic")
	case c.Event != "" && presence.ParseKind(c.Event) != presence.Opened && presence.ParseKind(c.Event) != presence.Closed:
		return fmt.Errorf("event: %q is neither %v nor %v", c.Event, presence.Opened, presence.Closed)
	case c.Event == "" && (len(c.ConnectedWords) == 0 || len(c.DisconnectedWords) == 0):
		return errors.New("connected-words, disconnected-words: each needs at least one word")
	}
	seen := map[string]string{}
	for _, l := range []struct {
		key   string
		words []string
	}{{"connected-words", c.ConnectedWords}, {"disconnected-words", c.DisconnectedWords}, {"ignored-words", c.IgnoredWords}} {
		for _, w := range l.words {
			if other := seen[w]; other != "" && other != l.key {
				return fmt.Errorf("%s: %q is in %s as well", l.key, w, other)
			}
			seen[w] = l.key
		}
	}
	return nil
}

// reasons parses Reasons. The word may hold an equals sign, the reason does not.
func (c *CustomEvents) reasons() (map[string]presence.Reason, error) {
	m := map[string]presence.Reason{}
	for _, item := range c.Reasons {
		i := strings.LastIndexByte(item, '=')
		if i < 0 {
			return nil, fmt.Errorf("reasons: %q is not <word>=<reason>, such as keepalive=keep_alive_timeout", item)
		}
		word, name := item[:i], item[i+1:]
		reason := presence.ParseReason(name)
		if reason.String() != name || name == "" {
			return nil, fmt.Errorf("reasons: %q: the reason must be one of %s", item, strings.Join(reasonNames(), ", "))
		}
		m[word] = reason
	}
	return m, nil
}

func reasonNames() []string {
	var names []string
	for r := presence.ReasonNormal; r <= presence.ReasonOther; r++ {
		names = append(names, r.String())
	}
	return names
}
