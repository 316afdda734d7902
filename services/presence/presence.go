package presence

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/bridge"
	"github.com/mqtt-presence/presence/services/materializer"
	"github.com/mqtt-presence/presence/services/presence/broker"
	"github.com/mqtt-presence/presence/services/presence/kafka"
	"github.com/mqtt-presence/presence/services/query"
)

const (
	// eventBytes bounds a partition of client events in the embedded Kafka, besides the topic's 7 days: at 16 partitions 512 MiB, or two
	// million events and their 100 bytes of memory each.
	eventBytes = 32 << 20
	// topicsTimeout bounds how long the embedded Kafka may take to make its topics.
	topicsTimeout = 30 * time.Second
	// generationTimeout is how long callers wait at a start for what happened to the clients of the generation before.
	generationTimeout = 10 * time.Second
	readyPoll         = 20 * time.Millisecond
)

// Presence is all services in one process. Use [Open].
type Presence struct {
	cfg     Config
	log     *slog.Logger
	out     io.Writer
	lock    io.Closer
	account account

	kafka        *kafka.Kafka   // nil: Kafka is elsewhere
	broker       *broker.Broker // nil: the MQTT broker is elsewhere
	bridge       *bridge.Bridge
	materializer *materializer.Materializer
	query        *query.Service
	admin        *service.Admin
}

// Open takes the data folder, makes the account on the first start, starts the embedded Kafka and binds every address. What is ready is
// told on out once Run has started all. The caller must call Run, which gives everything back.
func Open(ctx context.Context, cfg Config, log *slog.Logger, out io.Writer) (*Presence, error) {
	if err := cfg.Validate(); err != nil {
		return nil, &service.ConfigError{Err: err}
	}
	// Validate has refused what is not allowed.
	if warning, _ := service.CheckExposed(cfg.AllowInsecure, cfg.embedded()...); warning != "" {
		log.Warn("listening beyond loopback: " + warning)
	}
	p := &Presence{cfg: cfg, log: log, out: out}
	if err := p.open(ctx); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

func (p *Presence) open(ctx context.Context) error {
	if err := os.MkdirAll(p.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the folder of --data-dir: %w", err)
	}
	var err error
	if p.lock, err = vfs.Default.Lock(filepath.Join(p.cfg.DataDir, "LOCK")); err != nil {
		p.lock = nil
		return fmt.Errorf("take the folder %s; stop the process that uses it or set another with --data-dir: %w", p.cfg.DataDir, err)
	}
	if p.cfg.AccountsFile == "" {
		if p.account, err = devAccount(p.cfg.DataDir, p.cfg.accountsPath()); err != nil {
			return err
		}
	}
	if err := pageTokenKey(p.cfg.pageTokenKeyPath()); err != nil {
		return err
	}
	kafkaAddr := ""
	if p.cfg.embedsKafka() {
		if p.kafka, err = kafka.Open(p.cfg.embeddedKafka(), p.log); err != nil {
			return fmt.Errorf("%w; if the address is in use, free it or set another with --kafka-addr", err)
		}
		kafkaAddr = p.kafka.Addr()
	}
	kafkaConfig := p.cfg.kafka(kafkaAddr)
	if p.kafka != nil {
		if err := p.prepareTopics(ctx, kafkaConfig); err != nil {
			return err
		}
	}
	return p.build(kafkaConfig)
}

// prepareTopics makes the topics of the embedded Kafka and bounds the one that would grow.
func (p *Presence) prepareTopics(ctx context.Context, cfg eventlog.Config) error {
	ctx, cancel := context.WithTimeout(ctx, topicsTimeout)
	defer cancel()
	opts, err := cfg.Opts(p.log)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer cl.Close()
	if err := eventlog.Ensure(ctx, cl, cfg); err != nil {
		return err
	}
	return kafka.Bound(ctx, cl, eventlog.TopicClientEvents, eventBytes)
}

// build makes the services and binds their addresses.
func (p *Presence) build(kafkaConfig eventlog.Config) error {
	reg := prometheus.NewRegistry()
	var err error
	if p.materializer, err = materializer.New(p.cfg.materializer(kafkaConfig), p.log, reg); err != nil {
		return err
	}
	if p.query, err = query.New(p.cfg.query(kafkaConfig, p.cfg.accountsPath()), p.materializer, p.log, reg); err != nil {
		return err
	}
	dial := func(ctx context.Context) (net.Conn, error) { return p.broker.Dial(ctx) }
	if p.bridge, err = bridge.New(p.cfg.bridge(kafkaConfig, dial), p.log, reg); err != nil {
		return err
	}
	if p.cfg.embedsBroker() {
		onDrop := func(d broker.Drop) { p.bridge.ReportDropped(d.Count, d.From, d.To) }
		if p.broker, err = broker.New(p.cfg.broker(p.bridge.Subscribed(), onDrop), p.log, reg); err != nil {
			return err
		}
		if err := p.broker.Listen(); err != nil {
			return fmt.Errorf("%w; free it, set another with --mqtt-addr or --mqtt-ws-addr, or name a broker with --mqtt-url", err)
		}
	}
	p.admin = service.NewAdmin(p.cfg.Admin.Addr, reg, p.log)
	p.admin.AddCheck("materializer", p.materializer.Ready)
	p.admin.AddCheck("query", p.query.Ready)
	p.admin.AddCheck("bridge", p.bridge.Ready)
	p.admin.AddCheck("generation", p.generationKnown)
	return errors.Join(p.admin.Listen(), p.materializer.Listen(), p.query.Listen())
}

// close gives back what open took and no part has.
func (p *Presence) close() error {
	var errs []error
	if p.kafka != nil {
		errs = append(errs, p.kafka.Close())
	}
	if p.lock != nil {
		if err := p.lock.Close(); err != nil {
			errs = append(errs, fmt.Errorf("give the data folder back: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Run runs all parts until ctx ends or one fails.
func (p *Presence) Run(ctx context.Context) error {
	parts := []service.Part{{Name: "admin", Run: p.admin.Run}}
	if p.kafka != nil {
		parts = append(parts, service.Part{Name: "kafka", Run: p.kafka.Run})
	}
	parts = append(parts,
		service.Part{Name: "materializer", Run: p.materializer.Run},
		service.Part{Name: "query", Run: p.answer},
		service.Part{Name: "bridge", Run: p.bridge.Run})
	if p.broker != nil {
		parts = append(parts, service.Part{Name: "broker", Run: p.broker.Run})
	}
	parts = append(parts, service.Part{Name: "welcome", Run: p.welcome})
	return errors.Join(service.Run(ctx, p.log, parts...), p.close())
}

// answer serves callers once it is known which clients the generation before has left.
func (p *Presence) answer(ctx context.Context) error {
	if p.broker != nil {
		waiting, cancel := context.WithTimeout(ctx, generationTimeout)
		err := p.await(waiting, p.generationKnown)
		cancel()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.log.Warn("answering before the broker's new generation is known; clients of the one before may be told as online", service.KeyError, err)
		}
	}
	return p.query.Run(ctx)
}

// generationKnown returns nil once the materializer knows that the embedded broker has started.
func (p *Presence) generationKnown(ctx context.Context) error {
	if p.broker == nil {
		return nil
	}
	opened := p.broker.OpenedMS()
	if opened == 0 {
		return errors.New("the embedded mqtt broker is not open yet")
	}
	states, err := p.materializer.GetStates(ctx, &presencev1.GetStatesRequest{Cluster: p.cfg.Cluster})
	if err != nil {
		return fmt.Errorf("ask for the nodes: %w", err)
	}
	for _, n := range states.GetHealth().GetNodes() {
		if n.GetNode() == p.broker.Node() && n.GetStartedMs() >= opened {
			return nil
		}
	}
	return errors.New("waits for the first heartbeat of the embedded mqtt broker")
}

// ready returns nil once everything works.
func (p *Presence) ready(ctx context.Context) error {
	return errors.Join(p.materializer.Ready(ctx), p.query.Ready(ctx), p.bridge.Ready(ctx), p.generationKnown(ctx))
}

// await asks again until the answer is nil, and returns the last one if ctx ends before.
func (p *Presence) await(ctx context.Context, ready func(context.Context) error) error {
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-poll.C:
		}
	}
}

// MQTTAddr is the address of the embedded MQTT broker, empty if there is none.
func (p *Presence) MQTTAddr() string {
	if p.broker == nil {
		return ""
	}
	return p.broker.Addr().String()
}

// MQTTWSAddr is the address of the embedded MQTT broker for MQTT over WebSocket, empty if there is none.
func (p *Presence) MQTTWSAddr() string {
	if p.broker == nil || p.broker.WSAddr() == nil {
		return ""
	}
	return p.broker.WSAddr().String()
}

// MQTTClients returns the IDs of the clients that the embedded MQTT broker has a connection of, by its own table, in no order.
func (p *Presence) MQTTClients() []string {
	if p.broker == nil {
		return nil
	}
	return p.broker.Clients()
}

// KafkaAddr is the address of the embedded Kafka, empty if there is none.
func (p *Presence) KafkaAddr() string {
	if p.kafka == nil {
		return ""
	}
	return p.kafka.Addr()
}

// HTTPAddr is the address of the REST calls.
func (p *Presence) HTTPAddr() net.Addr { return p.query.HTTPAddr() }

// GRPCAddr is the address of the gRPC calls.
func (p *Presence) GRPCAddr() net.Addr { return p.query.GRPCAddr() }
