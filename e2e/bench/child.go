package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

// children are commands of this program that it starts itself, so that what they use can be told from what the bench uses.
var children = map[string]func(ctx context.Context, args []string) error{
	siegeCommand:   siegeMain,
	fetchCommand:   fetchMain,
	lookupsCommand: lookupsMain,
	bareCommand:    bareMain,
	drainCommand:   drainMain,
}

// done says that a child's work is done, and waits until somebody has looked at it.
func done(events int64, took time.Duration, extra ...any) error {
	line := fmt.Sprintf("done %d %.6f", events, took.Seconds())
	for _, e := range extra {
		line += fmt.Sprint(" ", e)
	}
	if _, err := fmt.Println(line); err != nil {
		return fmt.Errorf("say that the work is done: %w", err)
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // its end is what counts
	return nil
}

func (t *tools) child(args ...string) *exec.Cmd { return exec.Command(t.self, args...) }

const (
	fetchCommand = "fetch"
	smallTopic   = "bench.small"
	smallSize    = 64
)

// fetch reads all client events, the most that any consumer can do, and if asked produces a small record for each, the most that one can do
// that publishes.
type fetch struct {
	Brokers []string `conf:"brokers" usage:"Kafka brokers"`
	Produce bool     `conf:"produce" usage:"produce a small record for each"`
}

func fetchMain(ctx context.Context, args []string) error {
	var f fetch
	if err := service.Load("bench "+fetchCommand, args, nil, &f); err != nil {
		return err
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(f.Brokers...), kgo.ConsumeTopics(eventlog.TopicClientEvents), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.ProducerBatchCompression(kgo.Lz4Compression()), kgo.MaxBufferedRecords(200_000), kgo.ProducerLinger(5*time.Millisecond))
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer client.Close()
	ends, err := kadm.NewClient(client).ListEndOffsets(ctx, eventlog.TopicClientEvents)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("ask for the end of %s: %w", eventlog.TopicClientEvents, err)
	}
	var total, seen int64
	ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
	failed := make(chan error, 1)
	value := make([]byte, smallSize)
	began := time.Now()
	for seen < total {
		fetches := client.PollFetches(ctx)
		if err := errors.Join(fetches.Err(), ctx.Err()); err != nil {
			return fmt.Errorf("fetch: %w", err)
		}
		seen += int64(fetches.NumRecords())
		if f.Produce {
			fetches.EachRecord(func(r *kgo.Record) {
				client.Produce(ctx, &kgo.Record{Topic: smallTopic, Key: r.Key, Value: value}, func(_ *kgo.Record, err error) {
					if err != nil {
						select {
						case failed <- err:
						default:
						}
					}
				})
			})
		}
	}
	if err := client.Flush(ctx); err != nil {
		return fmt.Errorf("produce: %w", err)
	}
	select {
	case err := <-failed:
		return fmt.Errorf("produce: %w", err)
	default:
	}
	return done(seen, time.Since(began))
}
