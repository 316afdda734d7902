package bridge

import (
	"testing"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// TestVersionOfDeadLetter: what a dead letter keeps of the broker's version gives a new decoder the same.
func TestVersionOfDeadLetter(t *testing.T) {
	for _, c := range []struct {
		dialect       *dialect
		version, told message
	}{
		{emqxDialect, message{topic: "$SYS/brokers/e@1 /version", payload: []byte("5.8.6")}, message{topic: "$SYS/brokers/e@1 /clients/a/connected"}},
		{mosquittoDialect, message{topic: mosquittoVersion, payload: []byte("mosquitto version 2.1.2")}, message{topic: mosquittoLog + "N"}},
	} {
		config := decoderConfig{cluster: "c"}
		d := c.dialect.newDecoder(config)
		if got := versionFor([]decoder{d}, &c.told); got != "" {
			t.Errorf("%s: before its message came the version is %q", c.dialect.name, got)
		}
		d.decode(&c.version)
		kept := versionFor([]decoder{d}, &c.told)
		m := versionMessage(&eventlog.DeadLetter{Version: kept})
		if m == nil || m.topic != c.version.topic || string(m.payload) != string(c.version.payload) {
			t.Fatalf("%s: kept %q, which gives %+v", c.dialect.name, kept, m)
		}
		again := c.dialect.newDecoder(config)
		again.decode(m)
		if got := versionFor([]decoder{again}, &c.told); got != kept {
			t.Errorf("%s: %q became %q", c.dialect.name, kept, got)
		}
	}
	if m := versionMessage(&eventlog.DeadLetter{}); m != nil {
		t.Errorf("no version gives %+v", m)
	}
}
