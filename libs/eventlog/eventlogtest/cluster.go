package eventlogtest

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// Partitions is the number of partitions that NewCluster configures.
const Partitions = 4

// NewCluster starts a fake Kafka broker, closed when the test ends, and returns it with a configuration that uses it. Topics are not
// created.
func NewCluster(t testing.TB, opts ...kfake.Opt) (*kfake.Cluster, eventlog.Config) {
	t.Helper()
	cluster, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatalf("start fake kafka: %v", err)
	}
	t.Cleanup(cluster.Close)
	cfg := eventlog.DefaultConfig()
	cfg.Brokers, cfg.Partitions, cfg.ReplicationFactor, cfg.Compression = cluster.ListenAddrs(), Partitions, 1, "none"
	return cluster, cfg
}

// NewClient returns a client of the configured cluster, closed when the test ends.
func NewClient(t testing.TB, cfg eventlog.Config, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	base, err := cfg.Opts(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("configure kafka client: %v", err)
	}
	cl, err := kgo.NewClient(append(append(base, cfg.ProducerOpts()...), opts...)...)
	if err != nil {
		t.Fatalf("create kafka client: %v", err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// Ensure creates the topics.
func Ensure(t testing.TB, cfg eventlog.Config) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := eventlog.Ensure(ctx, NewClient(t, cfg), cfg); err != nil {
		t.Fatalf("create kafka topics: %v", err)
	}
}
