package bridge

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
)

// TestReplay: dead letters that today's decoders can read become the facts that they would have been, at the first replay and at every other.
func TestReplay(t *testing.T) {
	_, cfg := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, cfg)
	k := &kafka{cfg: cfg}
	client := eventlogtest.NewClient(t, cfg)
	connected, err := os.ReadFile("testdata/emqx/5.8-connected.json")
	if err != nil {
		t.Fatal(err)
	}
	const received = 1_760_000_000_500
	topic := "$SYS/brokers/emqx@10.0.3.11/clients/VIN0000001/connected"
	letter := func(change func(l *eventlog.DeadLetter)) {
		t.Helper()
		l := eventlog.DeadLetter{
			Source: eventlog.SourceMQTT, Topic: topic, Cluster: "default", Dialect: presence.DialectEMQX, Reason: "bad_field", ReceivedMS: received,
			Payload: connected, QoS: 1, Version: "$SYS/brokers/emqx@10.0.3.11/version 5.0.9",
		}
		change(&l)
		r := eventlog.DeadLetterRecord(&l)
		r.Key = []byte("k") // one partition, so that their order is known
		if err := client.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	letter(func(*eventlog.DeadLetter) {})
	letter(func(l *eventlog.DeadLetter) { l.Payload = []byte("{\x1b[2J") })
	letter(func(l *eventlog.DeadLetter) { l.Cluster = "eu-1" })
	letter(func(l *eventlog.DeadLetter) { l.Retain = true })
	letter(func(l *eventlog.DeadLetter) { l.CutFrom = 1 << 20 })
	letter(func(l *eventlog.DeadLetter) {
		l.Topic, l.Payload = "$SYS/brokers/emqx@10.0.3.11/uptime", []byte("1000")
	})
	letter(func(l *eventlog.DeadLetter) { l.Source = eventlog.SourceKafka })
	// Whoever may publish to $events on Mosquitto makes up events of another broker.
	letter(func(l *eventlog.DeadLetter) {
		l.Topic, l.Dialect = "$events/client_connected", presence.DialectMosquitto20
	})
	letter(func(l *eventlog.DeadLetter) { l.Reason, l.ReceivedMS = "other", received+10_000 })

	run := func(args ...string) []string {
		t.Helper()
		var out bytes.Buffer
		all := append([]string{"--kafka-brokers", strings.Join(cfg.Brokers, ","), "--kafka-compression", "none", "--kafka-partitions", strconv.Itoa(int(cfg.Partitions))}, args...)
		if err := runReplay(t.Context(), all, &out); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out.String(), "\x1b") {
			t.Errorf("a letter acts on the terminal: %q", out.String())
		}
		return strings.Split(strings.TrimSpace(out.String()), "\n")
	}
	wants := func(got []string, want ...string) {
		t.Helper()
		if len(got) != len(want) {
			t.Fatalf("got\n%s", strings.Join(got, "\n"))
		}
		for i := range got {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("line %d is %q, want %q", i, got[i], want[i])
			}
		}
	}
	lines := []string{
		`connected of "VIN0000001", fact `, "still cannot be decoded: not_json", `of cluster "eu-1", which is not configured here`, "nothing about a client: retained",
		"the letter has only the first", "tells about a node", "still cannot be decoded: other_broker", `connected of "VIN0000001", fact `,
	}
	wants(run("--dry-run"), append(lines, "letters: 8; decoded: 2; facts that would be produced: 2; without facts: 2; still not decoded: 3; of clusters not configured here: 1")...)
	r := k.reader(t)
	end := func(key string) {
		t.Helper()
		// What was produced before this record is read before it: it has the same key.
		f := presence.Fact{Kind: presence.Closed, Cluster: "default", ClientID: "VIN0000001", Dialect: presence.DialectEMQX, Node: "n", Connection: key, TimeMS: 1, ReceivedMS: 1}
		f.SetID()
		if err := client.ProduceSync(t.Context(), eventlog.FactRecord(&f, eventlog.JSON)).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	end("dry")
	r.want(1)
	wants(run(), append(lines, "facts produced: 2")...)
	end("once")
	r.want(3)
	f := r.facts[1]
	if f.Kind != presence.Opened || f.ClientID != "VIN0000001" || f.ReceivedMS != received || f.Connection != "1760000000123" || f.Dialect != presence.DialectEMQX50 {
		t.Errorf("the fact is %+v", f)
	}
	if r.copies != 1 {
		t.Errorf("%d copies: two letters of one event give one fact", r.copies)
	}
	wants(run("--reason", "other"), `connected of "VIN0000001"`, "letters: 1; decoded: 1")
	wants(run("--since", time.UnixMilli(received+1).UTC().Format(time.RFC3339Nano)), `connected of "VIN0000001"`, "letters: 1; decoded: 1")
	end("again")
	r.want(4)
	if r.copies != 3 {
		t.Errorf("%d copies: a replay gives the facts that it gave before", r.copies)
	}

	var out bytes.Buffer
	for _, args := range [][]string{
		{"--kafka-brokers", "127.0.0.1:1", "--since", "yesterday"}, {"--kafka-brokers", "127.0.0.1:1", "--mqtt-dialect", "x"},
		{"--kafka-brokers", "127.0.0.1:1", "--nonsense"}, {"--dry-run"},
	} {
		if err := runReplay(t.Context(), args, &out); err == nil {
			t.Errorf("%q is no error", args)
		}
	}
}
