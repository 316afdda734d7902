package materializer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const patience = time.Minute

// log is a fake Kafka with the topics, and what a test does with it.
type log struct {
	t       testing.TB
	cluster *kfake.Cluster
	cfg     eventlog.Config
	client  *kgo.Client
}

func newLog(t testing.TB) *log {
	t.Helper()
	cluster, cfg := eventlogtest.NewCluster(t, kfake.BrokerConfigs(map[string]string{"group.min.session.timeout.ms": "500"}))
	eventlogtest.Ensure(t, cfg)
	return &log{t: t, cluster: cluster, cfg: cfg, client: eventlogtest.NewClient(t, cfg)}
}

// produce appends records and returns the last of them with its offset.
func (l *log) produce(records ...*kgo.Record) *kgo.Record {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := l.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		l.t.Fatalf("produce: %v", err)
	}
	return records[len(records)-1]
}

func (l *log) facts(facts ...presence.Fact) *kgo.Record {
	l.t.Helper()
	records := make([]*kgo.Record, len(facts))
	for i := range facts {
		records[i] = eventlog.FactRecord(&facts[i], eventlog.JSON)
	}
	return l.produce(records...)
}

func (l *log) node(f presence.NodeFact) {
	l.t.Helper()
	l.produce(eventlog.NodeRecord(&f, eventlog.JSON))
}

// read returns all committed records of a topic, data only.
func (l *log) read(topic string) []*kgo.Record {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ends, err := kadm.NewClient(l.client).ListCommittedOffsets(ctx, topic)
	if err != nil {
		l.t.Fatalf("list offsets: %v", err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	cl := eventlogtest.NewClient(l.t, l.cfg, kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer cl.Close()
	var out []*kgo.Record
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			l.t.Fatalf("read %s: %v", topic, err)
		}
		for _, r := range fetches.Records() {
			if end, ok := left[r.Partition]; ok && r.Offset >= end-1 {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				out = append(out, r)
			}
		}
	}
	return out
}

// states returns the records of client-state, checked: versions ascend per client, equal versions are equal bytes, transitions are
// chained, and a checkpoint covers what is before it.
func (l *log) states() []eventlog.ClientState {
	l.t.Helper()
	var out []eventlog.ClientState
	latest := map[string]eventlog.ClientState{}
	bytesOf := map[string]string{}
	checkpoints := map[int32]int64{}
	for _, r := range l.read(eventlog.TopicClientState) {
		if r.Value == nil {
			l.buried(r, latest)
			continue
		}
		var s eventlog.ClientState
		if err := eventlog.DecodeClientState(r, &s); err != nil {
			l.t.Fatalf("decode client state: %v", err)
		}
		if s.Checkpoint {
			if s.EventOffset < checkpoints[r.Partition] {
				l.t.Errorf("partition %d: checkpoint %d after %d", r.Partition, s.EventOffset, checkpoints[r.Partition])
			}
			checkpoints[r.Partition] = s.EventOffset
			out = append(out, s)
			continue
		}
		if want := eventlog.Partition(r.Key, l.cfg.Partitions); r.Partition != want {
			l.t.Errorf("client %s is in partition %d, want %d", s.ClientID, r.Partition, want)
		}
		if s.EventOffset < checkpoints[r.Partition]-1 {
			l.t.Errorf("client %s: version %v after checkpoint %d", s.ClientID, versionOf(&s), checkpoints[r.Partition])
		}
		v := versionOf(&s)
		id := fmt.Sprint(string(r.Key), v)
		if old, ok := bytesOf[id]; ok {
			if old != string(r.Value) {
				l.t.Errorf("client %s, version %v: %s, and then %s", s.ClientID, v, old, r.Value)
			}
			continue
		}
		bytesOf[id] = string(r.Value)
		if old, ok := latest[string(r.Key)]; ok {
			if !versionOf(&old).Less(v) {
				l.t.Errorf("client %s: version %v after %v", s.ClientID, v, versionOf(&old))
			}
			if s.Transition && s.PreviousStatus != old.Status {
				l.t.Errorf("client %s, version %v: previous status %v, the record before says %v", s.ClientID, v, s.PreviousStatus, old.Status)
			}
		}
		latest[string(r.Key)] = s
		out = append(out, s)
	}
	return out
}

// buried checks a tombstone: it is no older than the record before, and what follows begins anew.
func (l *log) buried(r *kgo.Record, latest map[string]eventlog.ClientState) {
	l.t.Helper()
	var d eventlog.Tombstone
	if ok, err := eventlog.DecodeTombstone(r, &d); !ok || err != nil {
		l.t.Fatalf("decode tombstone of %s: %v, %v", r.Key, ok, err)
	}
	v := store.Version{Event: d.EventOffset, Node: d.NodeEventOffset}
	if old, ok := latest[string(r.Key)]; ok && v.Less(versionOf(&old)) {
		l.t.Errorf("client %s: tombstone %v after %v", d.ClientID, v, versionOf(&old))
	}
	delete(latest, string(r.Key))
}

// transitions returns the statuses of a client's transitions.
func (l *log) transitions(clientID string) []string {
	l.t.Helper()
	var out []string
	for _, s := range l.states() {
		if s.Transition && s.ClientID == clientID {
			out = append(out, s.Status.String()+" "+s.StatusReason.String())
		}
	}
	return out
}

// deadLetters waits for n dead letters.
func (l *log) deadLetters(n int) []eventlog.DeadLetter {
	l.t.Helper()
	var out []eventlog.DeadLetter
	servicetest.Eventually(l.t, patience, func() error {
		out = nil
		for _, r := range l.read(eventlog.TopicDeadLetters) {
			d, err := eventlog.DecodeDeadLetter(r)
			if err != nil {
				return err
			}
			out = append(out, d)
		}
		if len(out) < n {
			return fmt.Errorf("%d dead letters, want %d", len(out), n)
		}
		return nil
	})
	return out
}

// instance is a running materializer.
type instance struct {
	*Materializer
	t    testing.TB
	stop func() error
}

func (l *log) config(fs vfs.FS) Config {
	cfg := DefaultConfig()
	cfg.Kafka, cfg.fs, cfg.DataDir = l.cfg, fs, "data"
	cfg.StateAddr, cfg.NoServer, cfg.CacheSize = "127.0.0.1:1", true, 8<<20
	cfg.sessionTimeout = 2 * time.Second
	return cfg
}

func testLog(t testing.TB) *slog.Logger {
	if os.Getenv("TEST_LOG") == "" {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("test", t.Name())
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

// loggingTo returns a log of level info that is kept.
func loggingTo(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

// start runs a materializer until the test ends, or stop is called.
func (l *log) start(cfg Config) *instance {
	l.t.Helper()
	return l.startLogging(cfg, testLog(l.t))
}

// startLogging is start with a log.
func (l *log) startLogging(cfg Config, to *slog.Logger) *instance {
	l.t.Helper()
	m, err := New(cfg, to, newRegistry())
	if err != nil {
		l.t.Fatalf("new materializer: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	i := &instance{Materializer: m, t: l.t}
	i.stop = func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(patience):
			return errors.New("did not stop")
		}
	}
	l.t.Cleanup(func() {
		if err := i.stop(); err != nil {
			l.t.Errorf("run: %v", err)
		}
	})
	return i
}

func (i *instance) ready() *instance {
	i.t.Helper()
	servicetest.Eventually(i.t, patience, func() error { return i.Ready(context.Background()) })
	return i
}

// get returns the entry of a client once a record of it is applied; nil: do not wait.
func (i *instance) get(clientID string, after *kgo.Record) *presencev1.StateEntry {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	k := &presencev1.StateKey{ClientId: clientID}
	if after != nil {
		k.MinOffset = &after.Offset
	}
	resp, err := i.GetStates(ctx, &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{k}})
	if err != nil {
		i.t.Fatalf("get %s: %v", clientID, err)
	}
	if len(resp.GetEntries()) != 1 {
		i.t.Fatalf("get %s: %d entries, not owned %v", clientID, len(resp.GetEntries()), resp.GetNotOwned())
	}
	return resp.GetEntries()[0]
}

// caughtUp waits until everything that is in client-events is applied.
func (i *instance) caughtUp(l *log) *instance {
	i.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ends, err := kadm.NewClient(l.client).ListEndOffsets(ctx, eventlog.TopicClientEvents)
	if err != nil {
		i.t.Fatalf("list offsets: %v", err)
	}
	servicetest.Eventually(i.t, patience, func() error {
		owned := i.owned()
		for id, o := range ends[eventlog.TopicClientEvents] {
			if p := owned[id]; p == nil || p.progress.read().next < o.Offset {
				return fmt.Errorf("partition %d lags", id)
			}
		}
		return nil
	})
	return i
}

// published waits until everything that is in client-events is applied and what it caused is published.
func (i *instance) published(l *log) {
	i.t.Helper()
	i.caughtUp(l)
	servicetest.Eventually(i.t, patience, func() error {
		owned := i.owned()
		for id, p := range owned {
			if n := p.outbox.depth(); n > 0 {
				return fmt.Errorf("partition %d has %d unpublished records", id, n)
			}
		}
		if len(owned) != int(l.cfg.Partitions) {
			return fmt.Errorf("owns %d partitions", len(owned))
		}
		return nil
	})
}

const t0 = int64(1_760_000_000_000)

func opened(id, node string, ms int64) presence.Fact {
	f := presence.Fact{
		Kind: presence.Opened, Cluster: "default", ClientID: id, Dialect: presence.DialectEMQX, Node: node, Connection: fmt.Sprint(t0 + ms),
		TimeMS: t0 + ms + 1, ReceivedMS: t0 + ms + 5, ConnectedAtMS: t0 + ms, Username: "fleet", Peer: "203.0.113.7", ProtocolVersion: 5,
	}
	f.SetID()
	return f
}

func closedAt(id, node string, openedMS, ms int64) presence.Fact {
	f := presence.Fact{
		Kind: presence.Closed, Cluster: "default", ClientID: id, Dialect: presence.DialectEMQX, Node: node, Connection: fmt.Sprint(t0 + openedMS),
		TimeMS: t0 + ms, ReceivedMS: t0 + ms + 5, ConnectedAtMS: t0 + openedMS, DisconnectedAtMS: t0 + ms, Reason: presence.ReasonNormal, RawReason: "normal",
	}
	f.SetID()
	return f
}

func started(node string, ms int64) presence.NodeFact {
	return presence.NodeFact{
		ID: node + fmt.Sprint(ms), Kind: presence.NodeStarted, Cluster: "default", Node: node, Dialect: presence.DialectEMQX, TimeMS: t0 + ms, ReceivedMS: t0 + ms,
		StartedMS: t0 + ms, StartedReceivedMS: t0 + ms,
	}
}

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

// eachRecord calls fn for every record of a partition's outbox.
func eachRecord(s *store.Store, partition int32, fn func(r *kgo.Record) error) error {
	return s.Outbox(partition, func(c store.Chunk) error {
		records, err := c.AppendRecords(nil)
		if err != nil {
			return err
		}
		for i := range records {
			if err := fn(&records[i]); err != nil {
				return err
			}
		}
		return nil
	})
}
