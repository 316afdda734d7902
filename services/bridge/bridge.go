package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	kafkaRetry   = time.Second
	kafkaTimeout = 10 * time.Second
	// kafkaSayEvery is the time from one line about a Kafka that is not ready to the next.
	kafkaSayEvery = 30 * time.Second
)

// Bridge carries the events of MQTT broker clusters to Kafka. Use [New]; a Bridge runs once.
type Bridge struct {
	cfg      Config
	log      *slog.Logger
	kafkaLog *eventlog.ClientLog // of all Kafka clients
	metrics  *metrics
	clusters []*cluster

	subscribed   chan struct{}
	awaited      atomic.Int32 // clusters that have not been subscribed to yet
	mu           sync.Mutex
	kafkaProblem error // why Kafka is not in use yet
}

var errNotStarted = errors.New("not started")

// New returns a bridge with a valid configuration, and registers its metrics. It opens no connection.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Bridge, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	b := &Bridge{cfg: cfg, log: log.With(service.KeyComponent, "bridge"), metrics: m, subscribed: make(chan struct{}), kafkaProblem: errNotStarted}
	b.kafkaLog = eventlog.NewClientLog(b.log)
	for _, c := range cfg.clusters() {
		cl, err := newCluster(c, &cfg, m, b.log)
		if err != nil {
			return nil, fmt.Errorf("cluster %s: %w", c.Name, err)
		}
		var once sync.Once
		cl.onSubscribed = func() {
			once.Do(func() {
				if b.awaited.Add(-1) == 0 {
					close(b.subscribed)
				}
			})
		}
		b.clusters = append(b.clusters, cl)
	}
	b.awaited.Store(int32(len(b.clusters)))
	return b, nil
}

// Subscribed is closed once the broker of every cluster has acknowledged the first subscription: from then on no event is missed.
func (b *Bridge) Subscribed() <-chan struct{} { return b.subscribed }

// Ready returns nil while the bridge is subscribed everywhere and Kafka is in use, else what is missing. With Config.WaitForHeartbeat Kafka
// must also have a heartbeat of a node that came since the last subscription.
func (b *Bridge) Ready(context.Context) error {
	b.mu.Lock()
	errs := []error{b.kafkaProblem}
	b.mu.Unlock()
	for _, c := range b.clusters {
		errs = append(errs, c.ready(b.cfg.WaitForHeartbeat))
	}
	return errors.Join(errs...)
}

// ReportDropped asserts that an embedded broker ([Config.Dial]) has dropped count events on their way to the bridge, which happened between two
// times of this machine's clock.
func (b *Bridge) ReportDropped(count int, from, to time.Time) {
	for _, c := range b.clusters {
		c.drop(drops{count: int64(count), fromMS: from.UnixMilli(), toMS: to.UnixMilli()})
	}
}

// Run carries events until ctx ends; what Kafka has not taken by then stays in the spool. It returns nil on cancellation, or the error
// that keeps it from working: a spool that cannot be written, or topics that are not as configured, or not what they were when it
// began. A broker or a Kafka that cannot be reached is waited for.
func (b *Bridge) Run(ctx context.Context) error {
	spool, err := openSpool(b.cfg.DataDir, b.cfg.SpoolMaxBytes, b.log)
	if err != nil {
		return err
	}
	client, err := b.newClient()
	if err != nil {
		return errors.Join(err, spool.close())
	}
	// Records still in flight when the pipeline has ended are in the spool too.
	defer client.Close()
	err = b.run(ctx, spool, client)
	return errors.Join(err, spool.close())
}

func (b *Bridge) newClient() (*kgo.Client, error) {
	opts, err := b.cfg.SharedOpts(b.kafkaLog)
	if err != nil {
		return nil, err
	}
	opts = append(opts, b.cfg.ProducerOpts()...)
	client, err := kgo.NewClient(append(opts,
		// The pipeline bounds what is in flight; what it sends from the spool comes on top.
		kgo.MaxBufferedRecords(4*(maxInFlight+drainBytes/64)),
		// The spool grows until a Kafka that is back is found.
		kgo.MetadataMinAge(kafkaRetry),
		kgo.RetryBackoffFn(func(fails int) time.Duration { return min(100*time.Millisecond<<min(fails, 10), kafkaRetry) }))...)
	if err != nil {
		return nil, fmt.Errorf("create the kafka client: %w", err)
	}
	return client, nil
}

// run starts the outlet first and stops the inlet first.
func (b *Bridge) run(ctx context.Context, s *spool, client *kgo.Client) error {
	p := newPipeline(client, s, b.metrics, b.log)
	p.onDrop = b.spoolFull
	p.onDirect = func() {
		for _, c := range b.clusters {
			c.askAssert()
		}
	}
	for _, c := range b.clusters {
		if err := c.open(p, s); err != nil {
			return fmt.Errorf("cluster %s: %w", c.name, err)
		}
	}
	outlet, stopOutlet := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOutlet()
	ended := make(chan error, 1)
	go func() { ended <- p.run(outlet) }()

	inlet, ctx := errgroup.WithContext(ctx)
	failed := make(chan struct{})
	inlet.Go(func() error {
		select {
		case err := <-ended:
			close(failed)
			return errors.Join(errors.New("the spool failed"), err)
		case <-ctx.Done():
			return nil
		}
	})
	inlet.Go(func() error { return b.openKafka(ctx, client, p) })
	for _, c := range b.clusters {
		inlet.Go(func() error { return c.run(ctx) })
	}
	err := inlet.Wait()
	stopOutlet()
	select {
	case <-failed:
		return err
	default:
		return errors.Join(err, <-ended)
	}
}

func (b *Bridge) spoolFull(cluster string, d drops) error {
	for _, c := range b.clusters {
		if c.name == cluster {
			c.drop(d)
			return c.remember()
		}
	}
	return nil
}

// openKafka waits for Kafka, sees to the topics, reads what is known from before, opens the pipeline, and follows what other bridges assert.
func (b *Bridge) openKafka(ctx context.Context, client *kgo.Client, p *pipeline) error {
	retry := time.NewTimer(0)
	defer retry.Stop()
	var said time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-retry.C:
		}
		follower, facts, err := b.tryKafka(ctx, client)
		if ctx.Err() != nil {
			return nil
		}
		b.mu.Lock()
		b.kafkaProblem = err
		b.mu.Unlock()
		switch {
		case errors.Is(err, eventlog.ErrTopicMismatch):
			return err
		case err != nil:
			if time.Since(said) >= kafkaSayEvery {
				said = time.Now()
				b.log.Warn("kafka is not ready; trying again", service.KeyError, err)
			}
			retry.Reset(kafkaRetry)
			continue
		}
		p.start()
		var configured []string
		for _, c := range b.clusters {
			configured = append(configured, c.name)
		}
		for _, c := range b.clusters {
			if err := c.load(facts, configured); err != nil {
				follower.close()
				return err
			}
		}
		defer follower.close()
		uses, ctx := errgroup.WithContext(ctx)
		uses.Go(func() error {
			follower.follow(ctx, b.clusters)
			return nil
		})
		// The client would try for ever to produce to a topic that is gone, though another has its name. What Kafka has not taken is in the spool, for
		// the process that comes after this one.
		uses.Go(func() error { return eventlog.Watch(ctx, client) })
		return uses.Wait()
	}
}

func (b *Bridge) tryKafka(ctx context.Context, client *kgo.Client) (*follower, []presence.NodeFact, error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	if err := eventlog.Ensure(ctx, client, b.cfg.Config); err != nil {
		return nil, nil, err
	}
	follower, err := newFollower(b.cfg.Config, b.kafkaLog, b.log)
	if err != nil {
		return nil, nil, err
	}
	facts, err := follower.load(ctx)
	if err != nil {
		follower.close()
		return nil, nil, err
	}
	return follower, facts, nil
}
