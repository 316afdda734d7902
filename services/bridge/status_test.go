package bridge

import (
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
)

func TestStatusSources(t *testing.T) {
	for item, want := range map[string]struct{ topic, id string }{
		"zigbee2mqtt":               {"zigbee2mqtt/bridge/state", "zigbee2mqtt"},
		"zigbee2mqtt=home/z2m":      {"home/z2m/hall/lamp/availability", "home/z2m/hall/lamp"},
		"tasmota":                   {"tele/plug/LWT", "plug"},
		"tasmota=%topic%/tele":      {"plug/tele/LWT", "plug"},
		"tasmota=a/%topic%/b":       {"a/plug/b/LWT", "plug"},
		"tasmota=tele/ground floor": {"tele/ground floor/plug/LWT", "plug"},
		"homie=devices":             {"devices/5/car/$state", "car"},
	} {
		s, err := parseStatusSource(item)
		if err != nil {
			t.Errorf("%s: %v", item, err)
			continue
		}
		if id, ok := s.match(want.topic); !ok || id != want.id {
			t.Errorf("%s: %s is client %q, %v, want %q", item, want.topic, id, ok, want.id)
		}
		subscribed := false
		for _, f := range s.filters() {
			subscribed = subscribed || matches(f.topic, want.topic)
		}
		if !subscribed {
			t.Errorf("%s: %+v does not match %s", item, s.filters(), want.topic)
		}
	}
	for _, item := range []string{"", "x", "homie=", "homie=/a", "homie=a/", "homie=a/+", "homie=#", "homie=%topic%", "tasmota=a%topic%", "tasmota=%topic%/%topic%", "tasmota=\xff"} {
		if s, err := parseStatusSource(item); err == nil {
			t.Errorf("%q is accepted as %+v", item, s)
		}
	}
}

func TestStatusTopicMistakesAreNamed(t *testing.T) {
	for item, want := range map[string]string{"x": `mqtt-status-topics: "x" is none of zigbee2mqtt`, "homie=a/#": `base topic "a/#" of homie`} {
		c := defaultMQTT()
		c.URLs, c.Dialect, c.StatusTopics = []string{"mqtt://a"}, presence.DialectStatusTopic, []string{item}
		if errs := c.validate(false); len(errs) != 1 || !strings.Contains(errs[0].Error(), want) {
			t.Errorf("%q: %v", item, errs)
		}
		c.StatusTopics = nil
		if errs := c.validate(false); len(errs) != 1 {
			t.Errorf("without conventions: %v", errs)
		}
	}
}

// TestRetainedStatus_H18 has one device that was there before the bridge, and one that comes after it.
func TestRetainedStatus_H18(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	if err := b.server.Publish("tele/plug/LWT", []byte("Online"), true, 1); err != nil {
		t.Fatal(err)
	}
	cfg := testConfig(t, b, k)
	cfg.MQTT.Dialect = presence.DialectStatusTopic
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)
	in.want(1)
	if f := in.facts[0]; f.Kind != presence.Observed || f.ClientID != "plug" || f.Online != presence.Some(true) || f.Source != sourceRetained || f.QueryStartMS == 0 {
		t.Errorf("of a retained status: %+v", f)
	}
	for _, word := range []string{"ready", "disconnected"} {
		// Retained, as devices publish it: who is subscribed gets it as a live message.
		if err := b.server.Publish("homie/5/car/$state", []byte(word), true, 1); err != nil {
			t.Fatal(err)
		}
	}
	in.want(3)
	if f, g := in.facts[1], in.facts[2]; f.Kind+g.Kind != presence.Opened+presence.Closed || f.ClientID != "car" {
		t.Errorf("of live status: %+v, %+v", f, g)
	}
	r.stop(t)
}
