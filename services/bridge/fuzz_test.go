package bridge

import (
	"testing"
)

// FuzzDialects gives each dialect's decoder, seeded with its testdata, whatever the fuzzer makes of it.
func FuzzDialects(f *testing.F) {
	all := conformances(f)
	for i, c := range all {
		for j := range c.manifest.Messages {
			row := &c.manifest.Messages[j]
			m := c.message(f, row)
			f.Add(uint8(i), m.topic, m.payload, m.retain, row.Version)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, topic string, payload []byte, retain bool, version string) {
		c := all[int(n)%len(all)]
		d := c.newDecoder(version)
		if m := (&message{topic: topic, payload: payload, retain: retain, receivedMS: receivedMS}); d.owns(m) {
			checkDecoded(t, read(d, m))
		}
	})
}

// FuzzMosquitto is about log lines, which have no form of their own.
func FuzzMosquitto(f *testing.F) {
	c := conformanceOf(f, "mosquitto")
	for i := range c.manifest.Messages {
		m := c.message(f, &c.manifest.Messages[i])
		for _, topic := range []string{mosquittoLog + "N", mosquittoLog + "E", mosquittoLog + "I", mosquittoUptime} {
			f.Add(topic, m.payload, false, "2.0.20")
		}
	}
	f.Fuzz(func(t *testing.T, topic string, payload []byte, retain bool, version string) {
		d := c.newDecoder(mosquittoVersion + " mosquitto version " + version)
		if m := (&message{topic: topic, payload: payload, retain: retain, receivedMS: receivedMS}); d.owns(m) {
			checkDecoded(t, read(d, m))
		}
	})
}
