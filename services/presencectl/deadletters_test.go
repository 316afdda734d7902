package presencectl

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
)

// lettersRunner has a Kafka of its own.
type lettersRunner struct {
	*runner
	cfg    eventlog.Config
	client *kgo.Client
}

func newLettersRunner(t *testing.T) *lettersRunner {
	t.Helper()
	_, cfg := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, cfg)
	r := &lettersRunner{runner: newRunner(t), cfg: cfg, client: eventlogtest.NewClient(t, cfg)}
	r.env = append(r.env, "PRESENCECTL_KAFKA_BROKERS="+strings.Join(cfg.Brokers, ","))
	return r
}

func (r *lettersRunner) put(letters ...eventlog.DeadLetter) {
	r.t.Helper()
	for _, l := range letters {
		// All in one partition, so that their order is known.
		record := eventlog.DeadLetterRecord(&l)
		record.Key = []byte("k")
		if err := r.client.ProduceSync(r.t.Context(), record).FirstErr(); err != nil {
			r.t.Fatal(err)
		}
	}
}

// events returns all records of client-events.
func (r *lettersRunner) events() []*kgo.Record {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 10*time.Second)
	defer cancel()
	client := eventlogtest.NewClient(r.t, r.cfg, kgo.ConsumeTopics(eventlog.TopicClientEvents))
	// The marker shows where the end is.
	var records []*kgo.Record
	for p := range r.cfg.Partitions {
		m := eventlogtest.NewClient(r.t, r.cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := m.ProduceSync(ctx, &kgo.Record{Topic: eventlog.TopicClientEvents, Partition: p, Value: []byte("end")}).FirstErr(); err != nil {
			r.t.Fatal(err)
		}
	}
	for open := int(r.cfg.Partitions); open > 0; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			r.t.Fatal(err)
		}
		for record := range fetches.RecordsAll() {
			if string(record.Value) == "end" {
				open--
			} else {
				records = append(records, record)
			}
		}
	}
	return records
}

func opened(id string) *kgo.Record {
	f := presence.Fact{Kind: presence.Opened, Cluster: "default", ClientID: id, Dialect: "emqx", Node: "n1", Connection: "k", TimeMS: 1_000, ReceivedMS: 2_000, ConnectedAtMS: 1_000}
	f.SetID()
	return eventlog.FactRecord(&f, eventlog.JSON)
}

// letterOf is the letter that the materializer writes of a record.
func letterOf(r *kgo.Record, offset int64) eventlog.DeadLetter {
	return eventlog.DeadLetter{
		Source: eventlog.SourceKafka, Topic: r.Topic, Partition: 3, Offset: offset, Cluster: "default", Reason: "bad_record", Detail: "field \"x\"",
		ReceivedMS: r.Timestamp.UnixMilli(), Payload: r.Value, Key: r.Key, Headers: r.Headers,
	}
}

func TestDeadLetters(t *testing.T) {
	r := newLettersRunner(t)
	hostileTopic := "$SYS/brokers/n/clients/\x1b[2J\xff/connected"
	r.put(
		letterOf(opened("dev1"), 7),
		eventlog.DeadLetter{Source: eventlog.SourceMQTT, Topic: hostileTopic, Cluster: "default", Dialect: "emqx", Reason: "not_json", Detail: "byte 0: \x1b[31m", ReceivedMS: 5_000, Payload: []byte("{\x1b]0;x\a"), QoS: 1},
		eventlog.DeadLetter{Source: eventlog.SourceMQTT, Topic: "t", Cluster: "eu-1", Reason: "not_json", ReceivedMS: 4_000, Payload: []byte("hello\n")},
	)
	list := func(args ...string) []map[string]any {
		t.Helper()
		var all []map[string]any
		for line := range strings.Lines(r.ok(append([]string{"dead-letters", "list", "-o", "json"}, args...)...)) {
			checkInert(t, line)
			var v map[string]any
			if err := json.Unmarshal([]byte(line), &v); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			all = append(all, v)
		}
		return all
	}
	reasons := func(letters []map[string]any) (got []string) {
		for _, l := range letters {
			got = append(got, fmt.Sprint(l["received"], " ", l["reason"]))
		}
		return got
	}
	one, two, three := "1970-01-01T00:00:02.000Z bad_record", "1970-01-01T00:00:04.000Z not_json", "1970-01-01T00:00:05.000Z not_json"
	for _, c := range []struct{ args, want []string }{
		{nil, []string{one, two, three}},
		{[]string{"--limit", "2"}, []string{two, three}},
		{[]string{"--limit", "1"}, []string{three}},
		{[]string{"--limit", "0", "--origin", "mqtt"}, []string{two, three}},
		{[]string{"--reason", "bad_record"}, []string{one}},
		{[]string{"--since", "1970-01-01T00:00:04Z"}, []string{two, three}},
		{[]string{"--cluster", "eu-1"}, []string{two}},
		{[]string{"--since", "-1h"}, nil},
	} {
		if got := reasons(list(c.args...)); !slices.Equal(got, c.want) {
			t.Errorf("%q lists %q, want %q", c.args, got, c.want)
		}
	}
	got := list("--reason", "bad_record")[0]
	if got["origin"] != "kafka" || got["key_text"] != "default/dev1" || got["offset"] != 7.0 || !strings.Contains(fmt.Sprint(got["payload_text"]), `"client_id":"dev1"`) || fmt.Sprint(got["headers"]) == "" {
		t.Errorf("the letter of a record is %v", got)
	}
	got = list("--limit", "1")[0]
	if got["payload_text"] != nil || got["payload_base64"] != "ext0O3gH" && got["payload_base64"] != "extdMDt4Bw==" || got["topic_base64"] == nil {
		t.Errorf("the letter of a message is %v", got)
	}
	out, errOut, _ := r.run("dead-letters", "list", "-o", "wide")
	checkInert(t, out+errOut)
	if !strings.Contains(out, `mqtt:$SYS/brokers/n/clients/\x1b[2J\xff/connected`) || !strings.Contains(out, `"{\x1b]0;x\a"`) {
		t.Errorf("the table is\n%s", out)
	}
}

func TestReplay(t *testing.T) {
	r := newLettersRunner(t)
	good, noKey, mismatch := opened("dev1"), opened("dev2"), opened("dev3")
	good.Headers = append(good.Headers, kgo.RecordHeader{Key: "trace", Value: []byte{0xff}}, kgo.RecordHeader{Key: "null"})
	noKey.Key = nil
	mismatch.Key = []byte("default/other")
	bad := &kgo.Record{Topic: eventlog.TopicClientEvents, Key: []byte("default/dev4"), Value: []byte("{"), Timestamp: time.UnixMilli(2_000)}
	node := opened("x")
	node.Topic = eventlog.TopicNodeEvents
	foreign := opened("x")
	foreign.Topic = "payments"
	cut := letterOf(opened("dev5"), 16)
	cut.CutFrom = 1 << 20
	r.put(
		letterOf(good, 10), letterOf(good, 10), letterOf(noKey, 11), letterOf(mismatch, 12), letterOf(bad, 13), letterOf(node, 14), letterOf(foreign, 15), cut,
		eventlog.DeadLetter{Source: eventlog.SourceMQTT, Topic: "t", Cluster: "default", Reason: "bad_record", ReceivedMS: 4_000},
	)

	replay := func(args ...string) (map[string]int, string) {
		t.Helper()
		out, errOut, code := r.run(append([]string{"dead-letters", "replay", "-o", "json"}, args...)...)
		if code != exitOK {
			t.Fatalf("exit %d: %s", code, errOut)
		}
		counts := map[string]int{}
		for line := range strings.Lines(out) {
			var l jsonLetter
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Fatal(err)
			}
			counts[l.Result]++
		}
		return counts, errOut
	}
	planned := map[string]int{replayable: 2, duplicate: 1, stillBad: 2, notReplayable: 3, forBridge: 1}
	counts, errOut := replay("--dry-run", "--reason", "bad_record")
	if !reflect.DeepEqual(counts, planned) || !strings.Contains(errOut, "bridge replay --reason=bad_record") {
		t.Errorf("a dry run: %v\n%s", counts, errOut)
	}
	if got := r.events(); len(got) != 0 {
		t.Errorf("a dry run produced %d records", len(got))
	}
	r.fails("not confirmed", "dead-letters", "replay")
	r.in = "y\n"
	counts, errOut = replay()
	planned[replayed] = planned[replayable]
	delete(planned, replayable)
	if !reflect.DeepEqual(counts, planned) || !strings.Contains(errOut, "2 produced again, 2 would be dead letters again, 1 for 'bridge replay', 3 not to be replayed, 1 about the same") {
		t.Errorf("a replay: %v\n%s", counts, errOut)
	}
	got := r.events()
	if len(got) != 2 {
		t.Fatalf("%d records were produced", len(got))
	}
	slices.SortFunc(got, func(a, b *kgo.Record) int { return strings.Compare(string(a.Key), string(b.Key)) })
	noKey.Key = []byte("default/dev2")
	for i, want := range []*kgo.Record{good, noKey} {
		g := got[i]
		if string(g.Key) != string(want.Key) || string(g.Value) != string(want.Value) || !reflect.DeepEqual(g.Headers, want.Headers) || !g.Timestamp.Equal(want.Timestamp) {
			t.Errorf("produced %v, want %v", g, want)
		}
		if g.Partition != eventlog.Partition(want.Key, r.cfg.Partitions) {
			t.Errorf("%s is in partition %d", g.Key, g.Partition)
		}
	}

	// Unchecked, what this version cannot read goes as well; without a key it cannot.
	out := r.ok("dead-letters", "replay", "--yes", "--unchecked")
	if strings.Count(out, replayed+" ") != 4 {
		t.Errorf("unchecked:\n%s", out)
	}
	if _, errOut, _ := r.run("dead-letters", "replay", "--reason", "it's", "--yes"); !strings.Contains(errOut, "no dead letters") {
		t.Errorf("without letters: %s", errOut)
	}
	if got := shellQuote("it's"); got != `'it'\''s'` {
		t.Errorf("quoted: %s", got)
	}
}
