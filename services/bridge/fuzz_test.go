package bridge

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// checkDecoded checks what must hold for every message, whatever is in it.
func checkDecoded(t *testing.T, d decoded) {
	t.Helper()
	ends := 0
	for _, end := range []bool{len(d.facts) > 0, d.signal != nil, d.ignored != "", d.dead != nil} {
		if end {
			ends++
		}
	}
	if ends != 1 {
		t.Fatalf("the message ends in %d ways: %+v", ends, d)
	}
	for i := range d.facts {
		checkFact(t, &d.facts[i])
	}
	if s := d.signal; s != nil && s.kind == signalUptime {
		n := newNodes("default")
		n.load()
		s.paired = false
		for _, f := range n.apply(s, receivedMS) {
			checkNodeFact(t, &f)
		}
	}
}

// checkFact checks that whoever reads the record of a fact gets the fact.
func checkFact(t *testing.T, f *presence.Fact) {
	t.Helper()
	if f.Kind != presence.Opened && f.Kind != presence.Closed || f.ID == "" || eventlog.ValidClientID(f.ClientID) != nil {
		t.Fatalf("fact %+v", f)
	}
	for _, format := range []eventlog.Format{eventlog.JSON, eventlog.Protobuf} {
		var got presence.Fact
		if err := eventlog.DecodeFact(eventlog.FactRecord(f, format), &got); err != nil || got != *f {
			t.Fatalf("%v: %v\n got %+v\nsent %+v", format, err, got, *f)
		}
	}
}

func checkNodeFact(t *testing.T, f *presence.NodeFact) {
	t.Helper()
	for _, format := range []eventlog.Format{eventlog.JSON, eventlog.Protobuf} {
		var got presence.NodeFact
		if err := eventlog.DecodeNodeFact(eventlog.NodeRecord(f, format), &got); err != nil || got != *f {
			t.Fatalf("%v: %v\n got %+v\nsent %+v", format, err, got, *f)
		}
	}
}

func seed(f *testing.F, broker string, add func(topic string, payload []byte)) {
	f.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", broker, "*.*"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, topic := range map[string][]string{
			"emqx":      {"$SYS/brokers/n1/clients/VIN0000001/connected", "$SYS/brokers/n1/clients/a/b/disconnected", "$SYS/brokers/n1/uptime", "$SYS/brokers"},
			"mosquitto": {mosquittoLog + "N", mosquittoLog + "E", mosquittoLog + "I", mosquittoUptime},
		}[broker] {
			add(topic, b)
		}
	}
}

func FuzzEMQX(f *testing.F) {
	seed(f, "emqx", func(topic string, payload []byte) { f.Add(topic, payload, false) })
	f.Fuzz(func(t *testing.T, topic string, payload []byte, retain bool) {
		d := newDecoder(t, "emqx", "")
		if m := (&message{topic: topic, payload: payload, retain: retain, receivedMS: receivedMS}); d.owns(m) {
			checkDecoded(t, d.decode(m))
		}
	})
}

func FuzzMosquitto(f *testing.F) {
	seed(f, "mosquitto", func(topic string, payload []byte) { f.Add(topic, payload, false, "2.0.20") })
	f.Fuzz(func(t *testing.T, topic string, payload []byte, retain bool, version string) {
		d := newDecoder(t, "mosquitto", mosquittoVersion+" mosquitto version "+version)
		if m := (&message{topic: topic, payload: payload, retain: retain, receivedMS: receivedMS}); d.owns(m) {
			checkDecoded(t, d.decode(m))
		}
	})
}
