package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/paho"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/presence/broker"
	"github.com/mqtt-presence/presence/services/presence/kafka"
)

const (
	bareCommand    = "bare"
	bareTopic      = "bench.bare"
	barePartitions = 16
	bareSubscriber = "bench-bare"
	bareKeepAliveS = 60
)

// startBare starts the path that is compared with presence: the same broker, a subscriber that produces each event to Kafka, a consumer that
// notes it, and the same call that asks for it; nothing is decoded, folded or stored.
func (t *tools) startBare(ctx context.Context, dir, brokers string) (*visibleSide, error) {
	args := []string{bareCommand, "--dir", dir}
	if brokers != "" {
		args = append(args, "--brokers", brokers)
	}
	p, err := startPeer(ctx, "bare", dir, t.child(args...))
	if err != nil {
		return nil, err
	}
	if len(p.extra) != 2 {
		return nil, errors.Join(fmt.Errorf("the bare path says %q", p.extra), p.stop())
	}
	return &visibleSide{name: "bare path", mqtt: p.extra[0], web: p.extra[1], p: p.process}, nil
}

// bare is the bare path, in one process as presence is.
type bare struct {
	Brokers []string `conf:"brokers" usage:"Kafka brokers; empty: one is embedded"`
	Dir     string   `conf:"dir" usage:"folder of the embedded Kafka"`

	log  *slog.Logger
	seen sync.Map // client IDs that the consumer has met
}

func bareMain(ctx context.Context, args []string) (err error) {
	b := &bare{log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if err := service.Load("bench "+bareCommand, args, nil, b); err != nil {
		return err
	}
	if len(b.Brokers) == 0 {
		k, err := kafka.Open(kafka.Config{Addr: "127.0.0.1:0", Dir: filepath.Join(b.Dir, "bare-kafka")}, b.log)
		if err != nil {
			return err
		}
		b.Brokers = []string{k.Addr()}
		running := start(k.Run)
		defer func() { err = errors.Join(err, running.stop()) }()
	}
	k := eventlog.DefaultConfig()
	k.Brokers = b.Brokers
	opts, err := k.Opts(b.log)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(append(opts, k.ProducerOpts()...), kgo.ConsumeTopics(bareTopic))...)
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer client.Close()
	if _, err := kadm.NewClient(client).CreateTopic(ctx, barePartitions, 1, nil, bareTopic); err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("create topic %s: %w", bareTopic, err)
	}
	consumer := start(func(ctx context.Context) error { return b.consume(ctx, client) })
	defer func() { err = errors.Join(err, consumer.stop()) }()

	open := make(chan struct{})
	cfg := broker.DefaultConfig()
	cfg.Addr, cfg.Open = "127.0.0.1:0", open
	mqtt, err := broker.New(cfg, b.log, prometheus.NewRegistry())
	if err != nil {
		return err
	}
	if err := mqtt.Listen(); err != nil {
		return err
	}
	running := start(mqtt.Run)
	defer func() { err = errors.Join(err, running.stop()) }()
	subscriber, err := b.subscribe(ctx, mqtt, client)
	if err != nil {
		return err
	}
	// The broker goes next, and with it the connection.
	defer func() { _ = subscriber.Disconnect(&paho.Disconnect{}) }()
	close(open)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(b.serve), ReadHeaderTimeout: ioLimit}
	web := start(func(context.Context) error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	defer func() { err = errors.Join(err, server.Close(), web.stop()) }()
	return done(0, time.Duration(0), mqtt.Addr(), l.Addr())
}

// subscribe produces each event once it is received. The library acknowledges it then, before Kafka has.
func (b *bare) subscribe(ctx context.Context, mqtt *broker.Broker, client *kgo.Client) (*paho.Client, error) {
	conn, err := mqtt.Dial(ctx)
	if err != nil {
		return nil, err
	}
	subscriber := paho.NewClient(paho.ClientConfig{
		ClientID: bareSubscriber, Conn: conn,
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			// $SYS/brokers/<node>/clients/<client ID>/connected
			if levels := strings.Split(p.Packet.Topic, "/"); len(levels) == 6 && levels[5] == "connected" {
				client.Produce(ctx, &kgo.Record{Topic: bareTopic, Key: []byte(levels[4]), Value: p.Packet.Payload}, func(_ *kgo.Record, err error) {
					if err != nil {
						b.log.Error("an event was not produced", service.KeyError, err)
					}
				})
			}
			return true, nil
		}},
	})
	if _, err := subscriber.Connect(ctx, &paho.Connect{ClientID: bareSubscriber, KeepAlive: bareKeepAliveS, CleanStart: true}); err != nil {
		return nil, fmt.Errorf("connect the subscriber: %w", err)
	}
	if _, err := subscriber.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$SYS/brokers/+/clients/#", QoS: 1}}}); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	return subscriber, nil
}

func (b *bare) consume(ctx context.Context, client *kgo.Client) error {
	for {
		fetches := client.PollFetches(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err := fetches.Err(); err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
		fetches.EachRecord(func(r *kgo.Record) { b.seen.Store(string(r.Key), true) })
	}
}

// serve answers as the short call does.
func (b *bare) serve(w http.ResponseWriter, r *http.Request) {
	id := strings.TrimSuffix(strings.TrimPrefix(r.URL.Path, "/client-id/"), "/status")
	_, online := b.seen.Load(id)
	w.Header().Set("Content-Type", "application/json")
	// A caller that has gone needs no answer; one that waits for it says that it did not come.
	_, _ = fmt.Fprintf(w, `{"online":%t}`, online)
}
