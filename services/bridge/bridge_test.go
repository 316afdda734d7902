package bridge

import (
	"fmt"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
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
		if d.Source != eventlog.SourceMQTT || d.Cluster != "default" {
			t.Errorf("dead letter %+v", d)
		}
	}
	if !reasons[deadJSON] || !reasons[deadClientID] {
		t.Errorf("dead letters for %v", reasons)
	}
	servicetest.Eventually(t, within, func() error {
		if n := b.unacknowledged(cfg); n != 0 {
			return fmt.Errorf("%d messages are not acknowledged", n)
		}
		return nil
	})
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

// TestAckOnlyWhenDurable has Kafka down and a disk that is the only durable place: an acknowledged message must come back after a restart.
func TestSpoolWhileKafkaIsDown(t *testing.T) {
	b, k := newBroker(t), newKafka(t)
	cfg := testConfig(t, b, k)
	r := start(t, cfg)
	r.waitReady(t)
	b.open("dev1", 1)
	in := k.reader(t)
	in.want(1)

	k.down.Store(true)
	const n = 500
	for i := range n {
		b.open(fmt.Sprintf("dev%d", i%10), int64(1000+i))
	}
	servicetest.Eventually(t, within, func() error {
		if u := b.unacknowledged(cfg); u != 0 {
			return fmt.Errorf("%d messages are not acknowledged", u)
		}
		return nil
	})
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
