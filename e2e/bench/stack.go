package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/services/materializer"
	"github.com/mqtt-presence/presence/services/presence/kafka"
	"github.com/mqtt-presence/presence/services/query"
)

const (
	cluster  = "default"
	user     = "bench"
	password = "correct horse"
	// account is a line of the accounts file for them, with a hash of the least cost.
	account = user + ":$2a$04$GRWdR9u4M8eLKhMi0PZpoeOG6ff.0cuyK2j0H32eOd1cJOZ4YvvbO:connect,read,admin\n"

	pollInterval = 10 * time.Millisecond
)

// stack is Kafka, a materializer and a query service that reads from it, in this process. The facts come from fill and change, in place of a bridge.
type stack struct {
	dir       string
	log       *slog.Logger
	kafkaConf eventlog.Config
	queryConf query.Config
	producer  *kgo.Client

	kafka, materializer, query *running
	reader                     *materializer.Materializer
}

// running is a part that runs until it is stopped.
type running struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error // once done is closed
}

func start(run func(context.Context) error) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = run(ctx)
	}()
	return r
}

func (r *running) stop() error {
	if r == nil {
		return nil
	}
	r.cancel()
	<-r.done
	return r.err
}

// startStack starts all parts in a folder and waits until they are ready; brokers is a Kafka elsewhere, empty for one of its own.
func startStack(ctx context.Context, dir, brokers string) (*stack, error) {
	s := &stack{dir: dir, log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if err := s.open(ctx, brokers); err != nil {
		return nil, errors.Join(err, s.stop())
	}
	return s, nil
}

func (s *stack) open(ctx context.Context, brokers string) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	if brokers == "" {
		k, err := kafka.Open(kafka.Config{Addr: "127.0.0.1:0", Dir: filepath.Join(s.dir, "kafka")}, s.log)
		if err != nil {
			return err
		}
		s.kafka = start(k.Run)
		brokers = k.Addr()
	}
	s.kafkaConf = eventlog.DefaultConfig()
	s.kafkaConf.Brokers, s.kafkaConf.ReplicationFactor = []string{brokers}, 1
	opts, err := s.kafkaConf.Opts(s.log)
	if err != nil {
		return err
	}
	if s.producer, err = kgo.NewClient(append(opts, s.kafkaConf.ProducerOpts()...)...); err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	if err := eventlog.Ensure(ctx, s.producer, s.kafkaConf); err != nil {
		return err
	}
	m := materializer.DefaultConfig()
	m.Kafka, m.DataDir, m.NoServer = s.kafkaConf, filepath.Join(s.dir, "state"), true
	if s.reader, err = materializer.New(m, s.log, prometheus.NewRegistry()); err != nil {
		return err
	}
	s.materializer = start(s.reader.Run)

	s.queryConf = query.DefaultConfig()
	s.queryConf.Config, s.queryConf.HTTPAddr, s.queryConf.GRPCAddr = s.kafkaConf, "127.0.0.1:0", "127.0.0.1:0"
	s.queryConf.AccountsFile = filepath.Join(s.dir, "accounts")
	// The watches of a bench are those of one account at one address.
	s.queryConf.MaxStreams, s.queryConf.MaxStreamsPerAccount = 0, 0
	if err := os.WriteFile(s.queryConf.AccountsFile, []byte(account), 0o600); err != nil {
		return fmt.Errorf("write the accounts: %w", err)
	}
	if err := await(ctx, "the materializer", s.reader.Ready); err != nil {
		return err
	}
	return s.startQuery(ctx)
}

// startQuery starts the query service, the next time at the addresses of the first.
func (s *stack) startQuery(ctx context.Context) error {
	q, err := query.New(s.queryConf, s.reader, s.log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if err := q.Listen(); err != nil {
		return err
	}
	s.queryConf.HTTPAddr, s.queryConf.GRPCAddr = q.HTTPAddr().String(), q.GRPCAddr().String()
	s.query = start(q.Run)
	return await(ctx, "the query service", q.Ready)
}

// stopQuery leaves everything else running.
func (s *stack) stopQuery() error {
	err := s.query.stop()
	s.query = nil
	return err
}

// client returns a new client of the query service.
func (s *stack) client() (*presenceclient.Client, error) {
	return presenceclient.New(presenceclient.Config{
		Target: s.queryConf.GRPCAddr, Cluster: cluster,
		Credentials: presenceclient.Basic{User: user, Password: presenceclient.Fixed(password)},
	})
}

// stop stops all parts, those first that ask others.
func (s *stack) stop() error {
	errs := []error{s.query.stop(), s.materializer.stop()}
	if s.producer != nil {
		s.producer.Close()
	}
	return errors.Join(append(errs, s.kafka.stop())...)
}

// await asks until the answer is nil.
func await(ctx context.Context, what string, ready func(context.Context) error) error {
	return awaitEvery(ctx, pollInterval, what, ready)
}

func awaitEvery(ctx context.Context, interval time.Duration, what string, ready func(context.Context) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", what, errors.Join(ctx.Err(), err))
		}
	}
}
