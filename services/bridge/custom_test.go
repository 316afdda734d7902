package bridge

import (
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

func TestTopicPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, filter, topic string
		want                   map[string]string // nil: no match
	}{
		{"a/{client_id}/{event}", "a/+/+", "a/dev/connected", map[string]string{"client_id": "dev", "event": "connected"}},
		{"a/{client_id}/{event}", "a/+/+", "a/dev/x/connected", nil},
		{"a/{client_id}/{event}", "a/+/+", "a/dev", nil},
		{"a/{client_id...}/{event}", "a/#", "a/x/y//connected", map[string]string{"client_id": "x/y/", "event": "connected"}},
		{"a/{client_id...}/{event}", "a/#", "a/dev/connected", map[string]string{"client_id": "dev", "event": "connected"}},
		{"a/{client_id...}/{event}", "a/#", "a/connected", nil},
		{"{node...}/clients/{client_id}", "#", "eu/1/clients/d", map[string]string{"node": "eu/1", "client_id": "d"}},
		{"/+/{client_id...}", "/+/#", "/any/d/e", map[string]string{"client_id": "d/e"}},
		{"$SYS/x/{client_id}", "$SYS/x/+", "$SYS/y/d", nil},
	} {
		p, err := parsePattern(c.pattern)
		if err != nil {
			t.Errorf("%s: %v", c.pattern, err)
			continue
		}
		got, ok := p.match(c.topic)
		if p.filter() != c.filter || ok != (c.want != nil) || !maps.Equal(got, c.want) {
			t.Errorf("%s: filter %s, %s is %v, %v; want filter %s, %v", c.pattern, p.filter(), c.topic, got, ok, c.filter, c.want)
		}
		if ok && !matches(p.filter(), c.topic) {
			t.Errorf("%s: the filter %s does not match %s", c.pattern, p.filter(), c.topic)
		}
	}
}

func TestCustomMistakesAreNamed(t *testing.T) {
	valid := func() CustomEvents {
		var e CustomEvents
		e.SetDefaults()
		e.Topic = "a/{client_id}/{event}"
		return e
	}
	for want, mend := range map[string]func(c *MQTTConfig, e *CustomEvents){
		`mqtt-custom: item 1: topic: "" is missing`:                      func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "" },
		`has the segment "{device}", which is none of {client_id}`:       func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "a/{device}" },
		`has the segment {event} twice`:                                  func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "{event}/{event}" },
		`has two segments that take several levels`:                      func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "{client_id...}/{event...}" },
		`"dev-{client_id}": a segment must be a whole level`:             func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "a/dev-{client_id}" },
		`in place of # a segment takes several levels`:                   func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "a/#" },
		`is a shared subscription`:                                       func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "$share/g/a/{client_id}" },
		`qos: 3 is not 0, 1 or 2`:                                        func(_ *MQTTConfig, e *CustomEvents) { e.QoS = 3 },
		`client-id-field: name the field`:                                func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "a/{event}" },
		`event: say connected or disconnected, name the event-field`:     func(_ *MQTTConfig, e *CustomEvents) { e.Topic = "a/{client_id}" },
		`event: give one of`:                                             func(_ *MQTTConfig, e *CustomEvents) { e.Event = "connected" },
		`event: "observed" is neither connected nor disconnected`:        func(_ *MQTTConfig, e *CustomEvents) { e.Topic, e.Event = "a/{client_id}", "observed" },
		`event-field: the topic has {event} already`:                     func(_ *MQTTConfig, e *CustomEvents) { e.EventField = "x" },
		`each needs at least one word`:                                   func(_ *MQTTConfig, e *CustomEvents) { e.DisconnectedWords = nil },
		`disconnected-words: "connected" is in connected-words as well`:  func(_ *MQTTConfig, e *CustomEvents) { e.DisconnectedWords = []string{"connected"} },
		`connection-field: a connection key needs mqtt-custom-key`:       func(_ *MQTTConfig, e *CustomEvents) { e.ConnectionField = "x" },
		`mqtt-custom-key unique needs a connection key in every item`:    func(c *MQTTConfig, _ *CustomEvents) { c.CustomKey = keyUnique },
		`mqtt-custom-key: "some" is none of none, reusable, unique`:      func(c *MQTTConfig, _ *CustomEvents) { c.CustomKey = "some" },
		`time-unit: "min" is none of ms, s, rfc3339`:                     func(_ *MQTTConfig, e *CustomEvents) { e.TimeUnit = "min" },
		`reasons: "bye" is not <word>=<reason>`:                          func(_ *MQTTConfig, e *CustomEvents) { e.Reasons = []string{"bye"} },
		`reasons: "bye=gone": the reason must be one of normal, connect`: func(_ *MQTTConfig, e *CustomEvents) { e.Reasons = []string{"bye=gone"} },
		`needs at least one item`:                                        func(c *MQTTConfig, e *CustomEvents) { c.Custom = nil },
		`mqtt-custom: has no effect with mqtt-dialect auto`:              func(c *MQTTConfig, _ *CustomEvents) { c.Dialect = dialectAuto },
	} {
		c := defaultMQTT()
		c.URLs, c.Dialect, c.Custom = []string{"mqtt://a"}, presence.DialectCustom, []CustomEvents{valid()}
		if errs := c.validate(false); len(errs) != 0 {
			t.Fatal(errs)
		}
		if mend(&c, &c.Custom[0]); len(c.validate(false)) == 0 {
			t.Errorf("want an error about %q, got none", want)
		}
		for _, err := range c.validate(false) {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("want an error about %q, got %v", want, err)
			}
		}
	}
}

// TestCustomKeysAreDocumented compares the page with the keys.
func TestCustomKeysAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/adding-a-broker.md")
	if err != nil {
		t.Fatal(err)
	}
	of := reflect.TypeFor[CustomEvents]()
	for i := range of.NumField() {
		key := of.Field(i).Tag.Get("conf")
		if !strings.Contains(string(page), "`"+key+"`") {
			t.Errorf("docs/adding-a-broker.md does not mention %s", key)
		}
	}
	for _, s := range segmentNames {
		if !strings.Contains(string(page), "{"+s) {
			t.Errorf("docs/adding-a-broker.md does not mention {%s}", s)
		}
	}
}

// TestCustomBroker has a bridge that is configured by a file receive the events of a broker that nobody has heard of.
func TestCustomBroker(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	file := filepath.Join(t.TempDir(), "bridge.yaml")
	text := `
kafka-brokers: [x]
data-dir: x
clusters:
  - name: plant
    mqtt-url: ["` + b.addr + `"]
    mqtt-dialect: custom
    mqtt-custom-key: unique
    mqtt-custom:
      - topic: plant/{node}/clients/{client_id...}/{event}
        connection-field: session
        time-field: at
        reason-field: why
        reasons: [bye=normal]
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	loaded := DefaultConfig()
	if err := service.Load("bridge", []string{"--config", file}, nil, &loaded); err != nil {
		t.Fatal(err)
	}
	cfg.Clusters, cfg.MQTT.URLs = loaded.Clusters, nil
	r := start(t, cfg)
	r.waitReady(t)
	b.publish("plant/n1/clients/line 2/dev1/connected", `{"session":"s1","at":1760000000000}`, 1)
	b.publish("plant/n1/clients/line 2/dev1/rebooted", `{"session":"s1","at":1760000000001}`, 1)
	b.publish("plant/n2/clients/line 2/dev1/connected", `{"session":"s2","at":1760000060000}`, 1)
	b.publish("plant/n1/clients/line 2/dev1/disconnected", `{"session":"s1","at":1760000061000,"why":"bye"}`, 1)
	in := k.reader(t)
	in.want(3)
	var state presence.State
	for i := range in.facts {
		f := &in.facts[i]
		if f.ClientID != "line 2/dev1" || f.Cluster != "plant" || f.Dialect != presence.DialectCustomUnique || f.Connection == "" || f.Node == "" {
			t.Errorf("fact %+v", f)
		}
		state.Apply(f)
	}
	v := presence.Status(&state, &presence.Cluster{}, presence.DefaultAllowanceMS)
	if v.Status != presence.Online || v.Conn == nil || v.Conn.Key != "s2" {
		t.Errorf("status %v (%v) of connection %+v", v.Status, v.Reason, v.Conn)
	}
	in.deadLetters(1, deadField)
	b.waitSettled(cfg)
	r.stop(t)
}
