package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// Materializer folds the partitions that its consumer group gives it, and answers for them.
type Materializer struct {
	presencev1.UnimplementedStateServiceServer

	cfg     Config
	log     *slog.Logger
	metrics *metrics

	tls      *service.TLSReloader // of the StateService; nil: none
	listenMu sync.Mutex
	listener net.Listener

	kafkaLog     *eventlog.ClientLog   // of all clients
	kafkaProblem atomic.Pointer[error] // why Run waits for Kafka
	outage       outage

	shared atomic.Pointer[parts]                // set once Run has opened the store
	owners atomic.Pointer[owners]               // set once Run has joined the group
	served atomic.Pointer[map[int32]*partition] // whose rows may be read; replaced, never changed
	serve  sync.Mutex                           // held to replace served

	readers sync.Pool // of *reader
	backups backups
	digests chan struct{} // holds one for each digest that is computed
}

// New returns a materializer. It registers its metrics with reg and opens nothing yet.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Materializer, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m := &Materializer{cfg: cfg, log: log.With(service.KeyComponent, "materializer"), digests: make(chan struct{}, maxDigests)}
	m.served.Store(&map[int32]*partition{})
	m.kafkaLog, m.outage.log = eventlog.NewClientLog(m.log), m.log
	var err error
	if m.metrics, err = newMetrics(reg, m); err != nil {
		return nil, fmt.Errorf("register the materializer's metrics: %w", err)
	}
	if cfg.NoServer {
		return m, nil
	}
	if m.tls, err = cfg.StateTLS.Reloader("state-server", m.log, reg); err != nil {
		return nil, fmt.Errorf("state-tls: %w", err)
	}
	// New has refused what is not allowed.
	if warning, _ := service.CheckExposed(cfg.AllowInsecure, cfg.listener()); warning != "" {
		m.log.Warn("listening beyond loopback: " + warning)
	}
	return m, nil
}

// owned returns the partitions whose rows may be read. The map must not be changed.
func (m *Materializer) owned() map[int32]*partition { return *m.served.Load() }

// setServed adds p as the owned partition id, or takes it away if p is nil.
func (m *Materializer) setServed(id int32, p *partition) {
	m.serve.Lock()
	defer m.serve.Unlock()
	next := make(map[int32]*partition, len(m.owned())+1)
	for i, o := range m.owned() {
		next[i] = o
	}
	if delete(next, id); p != nil {
		next[id] = p
	}
	m.served.Store(&next)
}

// Ready returns nil once the consumer group has assigned partitions, all node events that were there at the start are applied, and
// every owned partition has reached the end offset that it had when it was acquired; else what is missing. It is not nil either while Kafka is away so
// that partitions have to be acquired again.
func (m *Materializer) Ready(context.Context) error {
	o := m.owners.Load()
	if problem := m.kafkaProblem.Load(); o == nil && problem != nil {
		return fmt.Errorf("waits for kafka: %w", *problem)
	} else if o == nil {
		return errors.New("not started")
	}
	if !m.shared.Load().nodes.isLoaded() {
		return fmt.Errorf("reads %s", eventlog.TopicNodeEvents)
	}
	ids, assigned := o.assigned()
	if !assigned {
		return fmt.Errorf("waits for consumer group %s to assign partitions", m.cfg.group())
	}
	owned := m.owned()
	for _, id := range ids {
		p := owned[id]
		if p == nil {
			return fmt.Errorf("restores partition %d", id)
		}
		if p.ended.Load() {
			return fmt.Errorf("waits for kafka: partition %d is read as it was", id)
		}
		if f := p.progress.read(); !f.ready {
			return fmt.Errorf("catches up: partition %d is %d records behind", id, f.end-f.next)
		}
	}
	return nil
}

// Run folds until ctx ends, then publishes what is left, for a bounded time, and returns nil. It waits for a Kafka that is away, at the start and later.
// Any other return is what a person must mend, see eventlog.Permanent, or a failure of the store: everything that was committed is kept, and a restart
// goes on from there.
func (m *Materializer) Run(ctx context.Context) (err error) {
	if err := m.Listen(); err != nil {
		return err
	}
	db, err := store.Open(m.cfg.DataDir, store.Options{CacheBytes: m.cfg.CacheSize, Log: m.log, FS: m.cfg.fs, EvidencePerClient: m.cfg.EvidencePerClient, SessionsPerClient: m.cfg.SessionsPerClient})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	defer m.backups.close()

	opts, err := m.cfg.Kafka.SharedOpts(m.kafkaLog)
	if err != nil {
		return err
	}
	producer, err := kgo.NewClient(append(opts, m.cfg.Kafka.ProducerOpts()...)...)
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer producer.Close()
	adm := kadm.NewClient(producer)
	id, stateTopic, err := m.findKafka(ctx, producer)
	if err != nil || ctx.Err() != nil {
		return ignoreCancel(ctx, err)
	}
	if err := db.Bind(id); err != nil {
		return fmt.Errorf("use the store in data-dir %s: %w", m.cfg.DataDir, err)
	}
	fetcher, err := newFetcher(m.cfg.Kafka, m.kafkaLog, m.log)
	if err != nil {
		return err
	}
	defer fetcher.client.Close()
	dead := &deadLetters{client: producer, metrics: m.metrics}
	return m.run(ctx, &parts{
		cfg: m.cfg, store: db, nodes: newNodes(dead, m.metrics, m.log), fetcher: fetcher, turns: newTurns(), dead: dead, adm: adm, metrics: m.metrics, log: m.log, kafkaLog: m.kafkaLog,
		eventsTopic: id.TopicID, stateTopic: stateTopic,
	})
}

// run starts outlet first and stops inlet first: the partitions come last and go first.
func (m *Materializer) run(ctx context.Context, ps *parts) error {
	m.shared.Store(ps)
	running, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	// What the partitions need while they are given up lives until they are.
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	start := func(run func(context.Context) error) {
		wg.Go(func() {
			if err := run(base); err != nil {
				fail(err)
			}
		})
	}
	owners, err := newOwners(m, ps, fail)
	if err != nil {
		cancel()
		return err
	}
	start(func(ctx context.Context) error { return ps.nodes.run(ctx, m.cfg.Kafka, m.kafkaLog) })
	start(ps.fetcher.run)
	start(func(ctx context.Context) error { return m.watch(ctx, ps, owners) })
	start(owners.watch)
	start(func(ctx context.Context) error { return eventlog.Watch(ctx, ps.dead.client) })
	if !m.cfg.NoServer {
		start(m.serveGRPC)
		start(func(ctx context.Context) error { m.tls.Run(ctx); return nil })
	}
	m.owners.Store(owners)

	<-running.Done()
	owners.stop()
	cancel()
	wg.Wait()
	owners.close()
	if m.cfg.LeaveOnStop && ctx.Err() != nil {
		owners.leave(context.WithoutCancel(ctx))
	}
	if cause := context.Cause(running); ctx.Err() == nil || !errors.Is(cause, ctx.Err()) {
		return cause
	}
	return nil
}
