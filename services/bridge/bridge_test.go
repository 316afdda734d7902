package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

func TestFactsReachKafka(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	cfg.WaitForHeartbeat = true
	r := start(t, cfg)
	<-r.Subscribed()
	if err := r.Ready(t.Context()); err == nil {
		t.Error("ready without a heartbeat of a node")
	}
	b.heartbeat(time.Minute)
	r.waitReady(t)
	b.open("plant1/line 2", 1_760_000_000_123)
	b.publish("$SYS/brokers/emqx@n1/version", "5.8.6", 1)
	b.publish("$SYS/brokers/emqx@n1/clients/x/connected", "{", 1)
	b.publish("$SYS/brokers/emqx@n1/clients/dev\xff/connected", `{"clientid":"dev`+"\xff"+`","protocol":"mqtt","connected_at":1,"ts":1}`, 1)
	b.open("日本", 1_760_000_000_124)

	in := k.reader(t)
	in.want(2)
	in.until(func() error {
		if len(in.dead) < 2 {
			return fmt.Errorf("%d dead letters", len(in.dead))
		}
		return nil
	})
	if f := in.facts[0]; f.ClientID != "plant1/line 2" && f.ClientID != "日本" || f.Node != "emqx@n1" || f.Kind != presence.Opened || f.Cluster != "default" {
		t.Errorf("fact %+v", f)
	}
	reasons := map[string]bool{}
	for _, rec := range in.dead {
		d, err := eventlog.DecodeDeadLetter(rec)
		if err != nil {
			t.Fatal(err)
		}
		reasons[d.Reason] = true
		if d.Source != eventlog.SourceMQTT || d.Cluster != "default" || d.QoS != 1 || d.Version != "$SYS/brokers/emqx@n1/version 5.8.6" {
			t.Errorf("dead letter %+v", d)
		}
	}
	if !reasons[deadJSON] || !reasons[deadClientID] {
		t.Errorf("dead letters for %v", reasons)
	}
	b.waitSettled(cfg)
	var started, alive bool
	for _, n := range in.nodes {
		started = started || n.Kind == presence.NodeStarted && n.Node == "emqx@n1"
		alive = alive || n.Kind == presence.NodeAlive && n.UptimeMS == presence.Some(int64(60_000))
	}
	if !started || !alive {
		t.Errorf("started %v, alive %v", started, alive)
	}
	f := in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS != 0 })
	if f.GapFromMS != 0 || f.LeaseMS != 500 || f.Bridge != defaultName {
		t.Errorf("feed %+v", f)
	}
	r.stop(t)
	f = in.feed(func(f presence.NodeFact) bool { return f.GapFromMS != 0 })
	if f.CompleteSinceMS != 0 || f.GapToMS != 0 {
		t.Errorf("feed after the stop %+v", f)
	}
}

// TestSpoolWhileKafkaIsDown_H11 has the disk as the only durable place: what was acknowledged must reach Kafka after a restart.
func TestSpoolWhileKafkaIsDown_H11(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	r := start(t, cfg)
	r.waitReady(t)
	b.open("dev1", 1)
	in := k.reader(t)
	in.want(1)

	k.down.Store(true)
	const n = 500
	b.openMany(cfg, n, 10)
	if got := r.metric(t, "spool_records"); got < n {
		t.Errorf("%v records in the spool, %d sent", got, n)
	}
	r.stop(t)

	r = start(t, cfg)
	<-r.Subscribed()
	b.open("dev1", 5000)
	k.down.Store(false)
	in.want(n + 2)
	in.inOrder()
	if last := in.facts[len(in.facts)-1]; len(in.facts) != n+2 || last.ConnectedAtMS != 5000 && last.ClientID == "dev1" {
		t.Errorf("%d facts, last %+v", len(in.facts), last)
	}
	servicetest.Eventually(t, within, func() error {
		if got := r.metric(t, "spool_records"); got != 0 {
			return fmt.Errorf("%v records in the spool", got)
		}
		return nil
	})
	r.stop(t)
}

// TestAckOnlyWhenDurable holds Kafka's answer back.
func TestAckOnlyWhenDurable(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	cfg.HeartbeatInterval, cfg.LeaseDuration = time.Hour, 2*time.Hour
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)
	b.open("dev1", 1)
	in.want(1)
	b.waitSettled(cfg)

	for _, answered := range []bool{true, false} {
		release, asked := k.hold()
		b.open("dev2", 2)
		<-asked
		if n := b.unacknowledged(cfg); n != 1 {
			t.Errorf("%d messages are not acknowledged while kafka has not answered", n)
		}
		if answered {
			release()
		}
		// Without an answer the spool takes over, and the broker need not wait.
		b.waitSettled(cfg)
		spooled := r.metric(t, "spool_records")
		if answered != (spooled == 0) {
			t.Errorf("%v records in the spool, kafka answered: %v", spooled, answered)
		}
		release()
	}
	// What was in flight has reached Kafka: the spool need not send it again.
	servicetest.Eventually(t, within, func() error {
		if got := r.metric(t, "spool_records"); got != 0 {
			return fmt.Errorf("%v records in the spool", got)
		}
		return nil
	})
	b.open("dev3", 3)
	in.want(3)
	if in.copies != 1 {
		t.Errorf("%d copies, want the one that was sent twice", in.copies)
	}
	r.stop(t)
}

func TestSpoolBoundIsAsserted_H12(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	cfg.SpoolMaxBytes = minSpoolMaxBytes
	r := start(t, cfg)
	r.waitReady(t)
	b.heartbeat(time.Hour)
	b.open("dev1", 1)
	in := k.reader(t)
	in.want(1)

	k.down.Store(true)
	from := time.Now().UnixMilli()
	const n = 4000
	b.openMany(cfg, n, n)
	// What is dropped can be made up for, by a sweep or the node's next start; a start could not.
	b.heartbeat(time.Minute)
	b.openMany(cfg, 1, 1)
	dropped := r.metric(t, "dropped_total")
	if dropped < 1 || r.metric(t, "spool_bytes") > 2*minSpoolMaxBytes {
		t.Fatalf("%v dropped, %v bytes in the spool", dropped, r.metric(t, "spool_bytes"))
	}
	if lag := r.metric(t, "lag_seconds"); lag <= 0 {
		t.Errorf("the lag is %v s with facts in the spool", lag)
	}
	// A crash of the process must not hide it.
	r.stop(t)
	r = start(t, cfg)
	<-r.Subscribed()
	k.down.Store(false)
	in.want(1 + n + 1 - int(dropped))
	in.until(func() error {
		starts := 0
		for _, f := range in.nodes {
			if f.Kind == presence.NodeStarted {
				starts++
			}
		}
		if starts != 2 {
			return fmt.Errorf("%d starts of the node are in the log, want 2", starts)
		}
		return nil
	})
	f := in.feed(func(f presence.NodeFact) bool { return f.DroppedCount > 0 && f.CompleteSinceMS != 0 })
	if float64(f.DroppedCount) != dropped || f.DroppedFromMS < from || f.DroppedToMS < f.DroppedFromMS || f.CompleteSinceMS < f.DroppedToMS {
		t.Errorf("%v dropped since %d, the feed says %+v", dropped, from, f)
	}
	table := func() (gap bool) {
		var c presence.Cluster
		for i := range in.nodes {
			c.Apply(&in.nodes[i])
		}
		_, _, gap = c.FeedGap()
		return gap
	}
	if !table() {
		t.Error("answers are not stale, though facts were dropped")
	}
	// The node was started again: what was dropped is of connections that are over. What comes sooner may have waited in the session.
	in.feed(func(f presence.NodeFact) bool {
		return f.CompleteSinceMS != 0 && f.ReceivedMS > f.CompleteSinceMS+queueMS+100
	})
	b.heartbeat(time.Millisecond)
	in.until(func() error {
		if table() {
			return errors.New("the new generation does not heal the gap")
		}
		return nil
	})
	r.stop(t)
}

// TestDropsSurviveAKill has facts dropped by a process that has not read the log, and is killed: the next one asserts them, and so does the one after.
func TestDropsSurviveAKill_H12(t *testing.T) {
	s, err := openSpool(t.TempDir(), minSpoolMaxBytes, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}()
	process := func() *cluster {
		c := &cluster{name: "default", log: slog.New(slog.DiscardHandler), feed: newFeed("default", "b1", 10*time.Second), assertNow: make(chan struct{}, 1)}
		if err := c.open(nil, s); err != nil {
			t.Fatal(err)
		}
		return c
	}
	load := func(c *cluster) {
		t.Helper()
		saved, err := s.recall(c.memoryName())
		if err == nil {
			err = c.feed.recall(nil, saved)
		}
		if err == nil {
			err = c.remember()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	b := &Bridge{clusters: []*cluster{process()}}
	load(b.clusters[0])
	total := int64(0)
	for i := range int64(3) {
		// Each is killed after its drop; the second and third have not read the log.
		at := 1000 * (i + 1)
		if err := b.spoolFull("default", drops{count: 5 + i, fromMS: at, toMS: at + 10}); err != nil {
			t.Fatal(err)
		}
		total += 5 + i
		b.clusters[0] = process()
	}
	for range 2 {
		load(b.clusters[0])
		if f := b.clusters[0].feed.fact; f.DroppedCount != total || f.DroppedFromMS != 2000 || f.DroppedToMS != 3010 {
			t.Errorf("%d were dropped, the feed says %+v", total, f)
		}
		b.clusters[0] = process()
	}
}

func TestLostConnectionIsAGap_H12(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)
	b.open("dev1", 1)
	in.want(1)
	before := in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS != 0 })
	b.cut(cfg)
	after := in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS > before.CompleteSinceMS })
	if after.GapFromMS < before.CompleteSinceMS || after.GapToMS != after.CompleteSinceMS || after.Dialect != presence.DialectEMQX {
		t.Errorf("before %+v, after %+v", before, after)
	}
	b.open("dev1", 2)
	in.want(2)
	r.stop(t)

	r = start(t, cfg)
	again := in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS > after.CompleteSinceMS })
	if again.GapFromMS < after.GapToMS || again.GapToMS != again.CompleteSinceMS {
		t.Errorf("after a restart %+v", again)
	}
	r.stop(t)
}

func TestStopsWithoutKafkaAndBroker(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Brokers, cfg.MQTT.URLs, cfg.DataDir = []string{"127.0.0.1:1"}, []string{"mqtt://127.0.0.1:1"}, t.TempDir()
	r := start(t, cfg)
	servicetest.Eventually(t, within, func() error {
		if err := r.Ready(t.Context()); err == nil || errors.Is(err, errNotStarted) {
			return fmt.Errorf("ready: %v", err)
		}
		return nil
	})
	begun := time.Now()
	r.stop(t)
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("stopped after %v", took)
	}
}

// TestKafkaThatIsNotReadyIsSaidOnce has Kafka refuse the topics, again and again.
func TestKafkaThatIsNotReadyIsSaidOnce(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	asked := make(chan struct{}, 100)
	k.ControlKey(int16(kmsg.CreateTopics), func(req kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		asked <- struct{}{}
		r := req.(*kmsg.CreateTopicsRequest)
		resp := r.ResponseKind().(*kmsg.CreateTopicsResponse)
		for _, topic := range r.Topics {
			answer := kmsg.NewCreateTopicsResponseTopic()
			answer.Topic, answer.ErrorCode = topic.Topic, kerr.PolicyViolation.Code
			resp.Topics = append(resp.Topics, answer)
		}
		return resp, nil, true
	})
	out := &written{}
	r := startLogging(t, testConfig(t, b, k), slog.New(slog.NewTextHandler(out, nil)))
	for range 3 {
		<-asked
	}
	if got := out.lines("kafka is not ready"); len(got) != 1 || !strings.Contains(got[0], "POLICY_VIOLATION") {
		t.Errorf("lines: %q", got)
	}
	r.stop(t)
}

func TestWrongTopicsAreAnError(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	eventlogtest.Ensure(t, k.cfg)
	cfg := testConfig(t, b, k)
	cfg.Partitions = 7
	r := start(t, cfg)
	select {
	case err := <-r.done:
		if !errors.Is(err, eventlog.ErrTopicMismatch) {
			t.Errorf("run: %v", err)
		}
	case <-time.After(within):
		t.Fatal("the bridge goes on")
	}
}

func TestEmbeddedBroker(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, nil, k)
	cfg.Dial = func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go func() { _ = b.server.EstablishConnection("pipe", theirs) }()
		return ours, nil
	}
	r := start(t, cfg)
	<-r.Subscribed()
	r.waitReady(t)
	b.open("dev1", 1)
	in := k.reader(t)
	in.want(1)
	from := time.Now()
	r.ReportDropped(3, from, from)
	f := in.feed(func(f presence.NodeFact) bool { return f.DroppedCount != 0 })
	if f.DroppedCount != 3 || f.DroppedFromMS != from.UnixMilli() {
		t.Errorf("feed %+v", f)
	}
	r.stop(t)
}

// noEvents refuses the topics of EMQX's client events, as its own ACL does by default.
type noEvents struct{ auth.AllowHook }

func (*noEvents) OnACLCheck(_ *mqtt.Client, topic string, write bool) bool {
	return write || !strings.HasPrefix(topic, "$SYS/brokers/+/clients/")
}

// TestRefusedEventsAreNotReady: with auto a broker grants the filters of other dialects, which mean nothing to it. That is no subscription to events
// until something has come.
func TestRefusedEventsAreNotReady(t *testing.T) {
	b, k := newBrokerWith(t, new(noEvents)), newKafka(t)
	cfg := testConfig(t, b, k)
	cfg.MQTT.Dialect = dialectAuto
	r := start(t, cfg)
	servicetest.Eventually(t, within, func() error {
		err := r.Ready(context.Background())
		if err == nil || !strings.Contains(err.Error(), "$SYS/brokers/+/clients/#") || !strings.Contains(err.Error(), "mqtt-dialect") {
			return fmt.Errorf("ready: %w, want the filter and the option named", err)
		}
		return nil
	})
	b.heartbeat(time.Minute)
	r.waitReady(t)
	r.stop(t)
}
