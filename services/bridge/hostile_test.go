package bridge

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/eclipse/paho.golang/packets"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// deadLetters reads until n dead letters are there, and checks the reason of the last, if one is given.
func (r *reader) deadLetters(n int, reason string) []eventlog.DeadLetter {
	r.t.Helper()
	r.until(func() error {
		if len(r.dead) < n {
			return fmt.Errorf("%d of %d dead letters", len(r.dead), n)
		}
		return nil
	})
	var list []eventlog.DeadLetter
	for _, rec := range r.dead {
		d, err := eventlog.DecodeDeadLetter(rec)
		if err != nil {
			r.t.Fatal(err)
		}
		if d.Reason == "" || d.Detail == "" || d.Source != eventlog.SourceMQTT {
			r.t.Errorf("dead letter %+v does not say why", d)
		}
		list = append(list, d)
	}
	if reason != "" && list[len(list)-1].Reason != reason {
		r.t.Errorf("dead letter for %s, want %s: %s", list[len(list)-1].Reason, reason, list[len(list)-1].Detail)
	}
	return list
}

// TestHostilePayloadsStopNothing_H15_H16 sends each dialect's bridge what nobody sends by accident, on every topic of its testdata. Each message ends
// as a dead letter, or is ignored, and is acknowledged; the session holds, and the event that follows is read.
func TestHostilePayloadsStopNothing_H15_H16(t *testing.T) {
	for _, c := range conformances(t) {
		t.Run(filepath.Base(c.dir), func(t *testing.T) {
			b, k := newBroker(t), newKafka(t)
			cfg := testConfig(t, b, k)
			cfg.MQTT = *c.mqtt
			cfg.MQTT.URLs = []string{b.addr}
			r := start(t, cfg)
			r.waitReady(t)
			var good *message
			topics := map[string]bool{}
			facts, dead, d := 1, 0, c.newDecoder("")
			for i := range c.manifest.Messages {
				row := &c.manifest.Messages[i]
				m := c.message(t, row)
				if d := read(c.newDecoder(row.Version), m); row.Version == "" && !m.retain && utf8.ValidString(m.topic) && len(d.facts) == 1 && d.facts[0].Kind == presence.Closed {
					good = m
				}
				if topics[m.topic] || m.retain {
					continue
				}
				topics[m.topic] = true
				for _, payload := range hostilePayloads(string(m.payload)) {
					b.publish(m.topic, payload, 1)
					hostile := &message{topic: m.topic, payload: []byte(payload), receivedMS: receivedMS}
					if !d.owns(hostile) {
						dead++
						continue
					}
					result := read(d, hostile)
					facts += len(result.facts)
					if result.dead != nil {
						dead++
					}
				}
				b.waitSettled(cfg)
			}
			if good == nil {
				t.Fatal("the testdata has no event of the end of a connection")
			}
			in := k.reader(t)
			b.publish(good.topic, string(good.payload), 1)
			in.until(func() error {
				if n := len(in.facts) + in.copies; n != facts {
					return fmt.Errorf("%d facts, want %d", n, facts)
				}
				return nil
			})
			b.waitSettled(cfg)
			servicetest.Eventually(t, within, func() error {
				if n := r.metric(t, "dead_letters_total"); n != float64(dead) {
					return fmt.Errorf("%v dead letters are counted, want %d", n, dead)
				}
				return nil
			})
			in.deadLetters(dead, "")
			if n := r.metric(t, "mqtt_connects_total"); n != 1 {
				t.Errorf("%v connections", n)
			}
			r.stop(t)
		})
	}
}

// hostilePayloads returns damaged forms of a payload, and what no decoder should choke on.
func hostilePayloads(payload string) []string {
	half := len(payload) / 2
	return []string{
		"", payload[:half], payload[half:], payload[:half] + "\x00" + payload[half:], payload[:half] + "\xff" + payload[half:], payload + payload,
		strings.Repeat("[", 1<<16), strings.Repeat(`{"clientid":`, 1<<12), `{"clientid":"` + strings.Repeat("a", 1<<20) + `"}`, strings.Repeat("\xfe", 1<<10), "null", "{}",
	}
}

// TestHostileTopicsDoNotLoop_H16 has a broker deliver topics that a strict client would drop its connection for, and, as they are not acknowledged,
// again and again.
func TestHostileTopicsDoNotLoop_H16(t *testing.T) {
	topics := []string{
		"$SYS/brokers/n1/clients/dev\xff/connected", "$SYS/brokers/n\xff1/clients/dev/connected", "$SYS/brokers/n1/clients/a\x00b/connected",
		"$SYS/brokers/n1/clients/\xed\xa0\x80/disconnected", "$SYS/brokers/n1/clients/+/connected", "$SYS/brokers/n1/clients/#", "$SYS/broker/log/\xff", "\xff\xfe",
		"$SYS/brokers/n1/clients/" + strings.Repeat("x", 65_535-34) + "/connected",
	}
	k := newKafka(t)
	settled := make(chan uint16, 100)
	connections := 0
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{script(t, func(c net.Conn, _ *packets.Connect) {
		connections++
		connack(c, connections > 1)
		for {
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			switch p := p.Content.(type) {
			case *packets.Subscribe:
				_, _ = (&packets.Suback{PacketID: p.PacketID, Reasons: make([]byte, len(p.Subscriptions)), Properties: &packets.Properties{}}).WriteTo(c)
				for i, topic := range topics {
					publish(c, topic, `{"clientid":"dev`+"\xff"+`","protocol":"mqtt","connected_at":1760000000123,"ts":1760000000124}`, uint16(i+1), connections > 1)
				}
				publish(c, "$SYS/brokers/n1/clients/dev1/connected", `{"clientid":"dev1","protocol":"mqtt","connected_at":1760000000123,"ts":1760000000124}`, 99, connections > 1)
			case *packets.Pubrec:
				settled <- p.PacketID
				_, _ = (&packets.Pubrel{PacketID: p.PacketID, Properties: &packets.Properties{}}).WriteTo(c)
			}
		}
	})}
	r := start(t, cfg)
	in := k.reader(t)
	in.until(func() error {
		for _, f := range in.facts {
			if f.ClientID == "dev1" {
				return nil
			}
		}
		return fmt.Errorf("no event of dev1 among %d facts", len(in.facts))
	})
	for n := range len(topics) + 1 {
		select {
		case <-settled:
		case <-time.After(within):
			t.Fatalf("%d of %d messages are acknowledged", n, len(topics)+1)
		}
	}
	for _, f := range in.facts {
		if eventlog.ValidClientID(f.ClientID) != nil {
			t.Errorf("a fact about client %q", f.ClientID)
		}
	}
	servicetest.Eventually(t, within, func() error {
		if r.metric(t, "dead_letters_total") == 0 {
			return fmt.Errorf("no dead letters")
		}
		return nil
	})
	in.deadLetters(int(r.metric(t, "dead_letters_total")), "")
	if n := r.metric(t, "mqtt_connects_total"); n != 1 {
		t.Errorf("%v connections", n)
	}
	r.stop(t)
}
