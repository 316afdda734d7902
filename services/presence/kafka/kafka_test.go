package kafka_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/services/presence/kafka"
)

const topic = "t"

func open(t *testing.T, dir string) *kafka.Kafka {
	t.Helper()
	k, err := kafka.Open(kafka.Config{Addr: "127.0.0.1:0", Dir: dir}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func client(t *testing.T, k *kafka.Kafka, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(k.Addr()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func produce(t *testing.T, cl *kgo.Client, values ...string) {
	t.Helper()
	for _, v := range values {
		if err := cl.ProduceSync(bounded(t), &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func consume(t *testing.T, k *kafka.Kafka, n int) []string {
	t.Helper()
	cl := client(t, k, kgo.ConsumeTopics(topic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	var values []string
	for len(values) < n {
		fetches := cl.PollFetches(bounded(t))
		if err := fetches.Err(); err != nil {
			t.Fatalf("after %q: %v", values, err)
		}
		fetches.EachRecord(func(r *kgo.Record) { values = append(values, string(r.Value)) })
	}
	return values
}

// TestReopen finds everything again: records, committed offsets, and the topic's configuration.
func TestReopen(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	cl := client(t, k)
	if _, err := kadm.NewClient(cl).CreateTopic(bounded(t), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	if err := kafka.Bound(bounded(t), cl, topic, 1<<20); err != nil {
		t.Fatal(err)
	}
	produce(t, cl, "a", "b")
	group := kadm.Offsets{}
	group.AddOffset(topic, 0, 1, -1)
	if err := kadm.NewClient(cl).CommitAllOffsets(bounded(t), "g", group); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	k = open(t, dir)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	cl = client(t, k)
	produce(t, cl, "c")
	if got := consume(t, k, 3); fmt.Sprint(got) != "[a b c]" {
		t.Errorf("records %v, want a, b, c", got)
	}
	offsets, err := kadm.NewClient(cl).FetchOffsets(bounded(t), "g")
	if err != nil {
		t.Fatal(err)
	}
	if o, ok := offsets.Lookup(topic, 0); !ok || o.At != 1 {
		t.Errorf("committed offset %v, want 1", o.At)
	}
	configs, err := kadm.NewClient(cl).DescribeTopicConfigs(bounded(t), topic)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, c := range configs[0].Configs {
		found[c.Key] = c.MaybeValue()
	}
	if found["retention.bytes"] != "1048576" || found["log.retention.ms"] != "-1" {
		t.Errorf("retention.bytes=%s log.retention.ms=%s, want 1048576 and -1", found["retention.bytes"], found["log.retention.ms"])
	}
}

// TestOpenTransaction ends a transaction that a former process has left open.
func TestOpenTransaction(t *testing.T) {
	dir := t.TempDir()
	k := open(t, dir)
	if _, err := kadm.NewClient(client(t, k)).CreateTopic(bounded(t), 1, 1, nil, topic); err != nil {
		t.Fatal(err)
	}
	left := client(t, k, kgo.TransactionalID("x"))
	if err := left.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, left, "never committed")
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}

	k = open(t, dir)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	next := client(t, k, kgo.TransactionalID("x"))
	if err := next.BeginTransaction(); err != nil {
		t.Fatal(err)
	}
	produce(t, next, "committed")
	if err := next.EndTransaction(bounded(t), kgo.TryCommit); err != nil {
		t.Fatal(err)
	}
	if got := consume(t, k, 1); fmt.Sprint(got) != "[committed]" {
		t.Errorf("committed records %v", got)
	}
}

// TestAllInterfaces advertises an address that can be dialled.
func TestAllInterfaces(t *testing.T) {
	k, err := kafka.Open(kafka.Config{Addr: "0.0.0.0:0", Dir: t.TempDir()}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	brokers, err := kadm.NewClient(client(t, k)).ListBrokers(bounded(t))
	if err != nil || len(brokers) != 1 || brokers[0].Host != "127.0.0.1" {
		t.Errorf("brokers %v, %v, want one at 127.0.0.1", brokers, err)
	}
}
