package bridge

import (
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// BenchmarkBridge measures events from the broker's publish until the broker has the acknowledgement, with Kafka up and with the spool.
func BenchmarkBridge(b *testing.B) {
	for _, down := range []bool{false, true} {
		name := "kafka"
		if down {
			name = "spool"
		}
		b.Run(name, func(b *testing.B) {
			br, k := newBroker(b), newKafka(b)
			cfg := testConfig(b, br, k)
			cfg.HeartbeatInterval, cfg.LeaseDuration = 2*time.Second, 10*time.Second
			r := start(b, cfg)
			r.waitReady(b)
			br.open("warm", 1)
			br.waitSettled(cfg)
			k.down.Store(down)
			if down {
				br.open("warm", 2)
				br.waitSettled(cfg)
			}
			b.ResetTimer()
			br.openMany(cfg, b.N, 1000)
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.StopTimer()
			r.stop(b)
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, c := range []struct{ name, broker, topic, payload string }{
		{"emqx", "emqx", "$SYS/brokers/emqx@10.0.3.11/clients/VIN0000001/connected", `{"clientid":"VIN0000001","username":"fleet","ipaddress":"203.0.113.7",` +
			`"sockport":1883,"protocol":"mqtt","proto_name":"MQTT","proto_ver":5,"connected_at":1760000000123,"ts":1760000000124,"keepalive":60,"clean_start":true,"expiry_interval":0}`},
		{"mosquitto", "mosquitto", mosquittoLog + "N", "1760000000: New client connected from 203.0.113.7:52571 as VIN0000001 (p2, c1, k60, u'fleet')."},
	} {
		b.Run(c.name, func(b *testing.B) {
			d := conformanceOf(b, c.broker).newDecoder("")
			m := &message{topic: c.topic, payload: []byte(c.payload), receivedMS: receivedMS}
			b.ReportAllocs()
			for b.Loop() {
				if r := d.decode(m); len(r.facts) != 1 || r.facts[0].Kind != presence.Opened {
					b.Fatalf("decoded %+v", r)
				}
			}
		})
	}
}
