package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"
	mochipackets "github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

const within = 20 * time.Second

// broker is an MQTT broker that says what the test makes it say.
type broker struct {
	t      testing.TB
	server *mqtt.Server
	addr   string
}

func newBroker(t testing.TB) *broker {
	t.Helper()
	return newBrokerWith(t, new(auth.AllowHook))
}

// newBrokerWith starts a broker whose hook says who may do what.
func newBrokerWith(t testing.TB, access mqtt.Hook) *broker {
	t.Helper()
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClientWritesPending = 64 << 10
	s := mqtt.New(&mqtt.Options{InlineClient: true, Capabilities: capabilities, Logger: slog.New(slog.DiscardHandler)})
	if err := s.AddHook(access, nil); err != nil {
		t.Fatal(err)
	}
	if err := s.AddHook(new(noQuota), nil); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddListener(listeners.NewNet("tcp", l)); err != nil {
		t.Fatal(err)
	}
	go func() {
		if err := s.Serve(); err != nil {
			t.Errorf("serve mqtt: %v", err)
		}
	}()
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close the broker: %v", err)
		}
	})
	return &broker{t, s, "mqtt://" + l.Addr().String()}
}

// noQuota hides the client's receive maximum from mochi, which could deadlock over it, see mqttSession.embedded.
type noQuota struct{ mqtt.HookBase }

func (*noQuota) ID() string { return "no-quota" }

func (*noQuota) Provides(call byte) bool { return call == mqtt.OnPacketRead }

func (*noQuota) OnPacketRead(_ *mqtt.Client, p mochipackets.Packet) (mochipackets.Packet, error) {
	if p.FixedHeader.Type == mochipackets.Connect {
		p.Properties.ReceiveMaximum = 0
	}
	return p, nil
}

func (b *broker) publish(topic, payload string, qos byte) {
	b.t.Helper()
	if err := b.server.Publish(topic, []byte(payload), false, qos); err != nil {
		b.t.Fatal(err)
	}
}

// open publishes the event of a connection, as EMQX does, at QoS 1.
func (b *broker) open(clientID string, connectedAt int64) {
	b.t.Helper()
	b.publish("$SYS/brokers/emqx@n1/clients/"+clientID+"/connected", fmt.Sprintf(
		`{"clientid":%q,"username":"fleet","ipaddress":"203.0.113.7","protocol":"mqtt","proto_ver":5,"connected_at":%d,"ts":%d}`, clientID, connectedAt, connectedAt), 1)
}

func (b *broker) heartbeat(uptime time.Duration) {
	b.t.Helper()
	b.publish("$SYS/brokers/emqx@n1/uptime", fmt.Sprint(uptime.Milliseconds()), 0)
	b.publish("$SYS/brokers/emqx@n1/datetime", time.Now().Format(time.RFC3339Nano), 0)
}

// unacknowledged returns how many messages the bridge has not acknowledged.
func (b *broker) unacknowledged(cfg Config) int {
	cl, ok := b.server.Clients.Get(cfg.clusters()[0].ClientID)
	if !ok {
		return -1
	}
	return cl.State.Inflight.Len()
}

// waitSettled waits until the bridge has acknowledged everything.
func (b *broker) waitSettled(cfg Config) {
	b.t.Helper()
	servicetest.Eventually(b.t, within, func() error {
		if n := b.unacknowledged(cfg); n != 0 {
			return fmt.Errorf("%d messages are not acknowledged", n)
		}
		return nil
	})
}

// openMany publishes the events of n connections of some clients, and waits until they are acknowledged. What is in flight stays below the
// number at which this broker drops.
func (b *broker) openMany(cfg Config, n, clients int) {
	b.t.Helper()
	for i := range n {
		b.open(fmt.Sprintf("dev%d", i%clients), int64(1000+i))
		if i%1000 == 999 || i == n-1 {
			b.waitSettled(cfg)
		}
	}
}

// cut closes the bridge's connection under its feet.
func (b *broker) cut(cfg Config) {
	b.t.Helper()
	cl, ok := b.server.Clients.Get(cfg.clusters()[0].ClientID)
	if !ok {
		b.t.Fatal("the bridge is not connected")
	}
	cl.Stop(errors.New("cut by the test"))
}

// kafka is a fake Kafka that can be down for producers.
type kafka struct {
	*kfake.Cluster
	cfg  eventlog.Config
	down atomic.Bool
	held atomic.Pointer[held]
}

func newKafka(t testing.TB) *kafka {
	t.Helper()
	k := &kafka{}
	k.Cluster, k.cfg = eventlogtest.NewCluster(t)
	k.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		k.KeepControl()
		if k.down.Load() {
			return nil, errors.New("kafka is down"), true
		}
		if h := k.held.Swap(nil); h != nil {
			k.SleepControl(func() {
				close(h.asked)
				<-h.released
			})
		}
		return nil, nil, false
	})
	return k
}

// held is a produce request that gets no answer until it is released.
type held struct{ asked, released chan struct{} }

// hold holds the next produce request; asked is closed when it has come.
func (k *kafka) hold() (release func(), asked <-chan struct{}) {
	h := &held{make(chan struct{}), make(chan struct{})}
	k.held.Store(h)
	return sync.OnceFunc(func() { close(h.released) }), h.asked
}

// running is a bridge that runs.
type running struct {
	*Bridge
	cfg    Config
	reg    *prometheus.Registry
	cancel context.CancelFunc
	done   chan error
}

func testConfig(t testing.TB, b *broker, k *kafka) Config {
	cfg := DefaultConfig()
	cfg.Config = k.cfg
	cfg.DataDir = t.TempDir()
	cfg.HeartbeatInterval, cfg.LeaseDuration = 50*time.Millisecond, 500*time.Millisecond
	if b != nil {
		cfg.MQTT.URLs = []string{b.addr}
	}
	return cfg
}

// written keeps what is logged.
type written struct {
	mu   sync.Mutex
	text strings.Builder
}

func (w *written) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

// lines returns the lines that have a text.
func (w *written) lines(text string) (lines []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for line := range strings.Lines(w.text.String()) {
		if strings.Contains(line, text) {
			lines = append(lines, line)
		}
	}
	return lines
}

func start(t testing.TB, cfg Config) *running {
	t.Helper()
	level := slog.LevelError + 1
	if testing.Verbose() {
		level = slog.LevelInfo
	}
	return startLogging(t, cfg, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})))
}

// startLogging is start with a log.
func startLogging(t testing.TB, cfg Config, log *slog.Logger) *running {
	t.Helper()
	reg := prometheus.NewRegistry()
	b, err := New(cfg, log, reg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Bridge: b, cfg: cfg, reg: reg, cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- b.Run(ctx) }()
	t.Cleanup(func() { cancel() })
	return r
}

func (r *running) stop(t testing.TB) {
	t.Helper()
	r.cancel()
	select {
	case err := <-r.done:
		if err != nil {
			t.Fatalf("run: %v", err)
		}
	case <-time.After(within):
		t.Fatal("the bridge does not stop")
	}
}

func (r *running) waitReady(t testing.TB) {
	t.Helper()
	servicetest.Eventually(t, within, func() error { return r.Ready(context.Background()) })
}

// metric returns the sum of a metric over its labels.
func (r *running) metric(t testing.TB, name string) float64 {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != "presence_bridge_"+name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// reader reads what the bridge has written.
type reader struct {
	t      testing.TB
	client *kgo.Client
	facts  []presence.Fact
	seen   map[string]bool
	copies int // facts that came again
	nodes  []presence.NodeFact
	dead   []*kgo.Record
}

func (k *kafka) reader(t testing.TB) *reader {
	t.Helper()
	return &reader{t: t, seen: map[string]bool{}, client: eventlogtest.NewClient(t, k.cfg,
		kgo.ConsumeTopics(eventlog.TopicClientEvents, eventlog.TopicNodeEvents, eventlog.TopicDeadLetters),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.MetadataMinAge(10*time.Millisecond), kgo.MetadataMaxAge(100*time.Millisecond))}
}

// until reads until ok returns nil.
func (r *reader) until(ok func() error) {
	r.t.Helper()
	servicetest.Eventually(r.t, within, func() error {
		if err := ok(); err == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		for rec := range r.client.PollFetches(ctx).RecordsAll() {
			r.take(rec)
		}
		return ok()
	})
}

func (r *reader) take(rec *kgo.Record) {
	r.t.Helper()
	switch rec.Topic {
	case eventlog.TopicClientEvents:
		var f presence.Fact
		if err := eventlog.DecodeFact(rec, &f); err != nil {
			r.t.Fatal(err)
		}
		if r.seen[f.ID] {
			r.copies++
			return
		}
		r.seen[f.ID] = true
		r.facts = append(r.facts, f)
	case eventlog.TopicNodeEvents:
		var f presence.NodeFact
		if err := eventlog.DecodeNodeFact(rec, &f); err != nil {
			r.t.Fatal(err)
		}
		r.nodes = append(r.nodes, f)
	case eventlog.TopicDeadLetters:
		r.dead = append(r.dead, rec)
	}
}

// want reads until n different client facts are there.
func (r *reader) want(n int) {
	r.t.Helper()
	r.until(func() error {
		if len(r.facts) < n {
			return fmt.Errorf("%d of %d facts", len(r.facts), n)
		}
		return nil
	})
}

// feed returns the latest Feed fact that ok accepts.
func (r *reader) feed(ok func(f presence.NodeFact) bool) presence.NodeFact {
	r.t.Helper()
	var found presence.NodeFact
	r.until(func() error {
		for i := len(r.nodes) - 1; i >= 0; i-- {
			if f := r.nodes[i]; f.Kind == presence.Feed && ok(f) {
				found = f
				return nil
			}
		}
		return fmt.Errorf("no such feed among %d node facts", len(r.nodes))
	})
	return found
}

// inOrder checks that the facts of each client come in the order of their connections.
func (r *reader) inOrder() {
	r.t.Helper()
	last := map[string]int64{}
	for _, f := range r.facts {
		if f.ConnectedAtMS < last[f.ClientID] {
			r.t.Fatalf("client %s: connection %d after %d", f.ClientID, f.ConnectedAtMS, last[f.ClientID])
		}
		last[f.ClientID] = f.ConnectedAtMS
	}
}
