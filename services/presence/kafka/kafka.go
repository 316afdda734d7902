package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/service"
)

// clusterID is what clients see as the cluster's ID. It is kept in the folder.
const clusterID = "presence-embedded"

// cleanInterval is the time between two runs of compaction and retention.
const cleanInterval = time.Hour

// Config says where the broker listens and keeps its data.
type Config struct {
	// Addr is the listen address, host:port. Clients are sent to it, or to the same port on loopback if it names all interfaces, which
	// suits a container with a published port.
	Addr string
	// Dir is the folder, created if needed. One process at a time may use it.
	Dir string
}

// Kafka is a running broker.
type Kafka struct {
	cluster *kfake.Cluster
	addr    string
	logger  *logger
	syncer  *syncer
	once    sync.Once
}

// Open reads the folder and begins to serve. The caller must Run or Close the broker.
func Open(cfg Config, log *slog.Logger) (*Kafka, error) { return open(cfg, log, newSyncer(cfg.Dir)) }

func open(cfg Config, log *slog.Logger, s *syncer) (*Kafka, error) {
	k := &Kafka{logger: &logger{log: log.With(service.KeyComponent, "kafka")}, syncer: s}
	topics := newTopics(cfg.Dir)
	var err error
	k.cluster, err = kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ListenFn(func(network, _ string) (net.Listener, error) {
			l, err := net.Listen(network, cfg.Addr)
			if err != nil {
				return nil, err
			}
			a := &advertised{Listener: l, addr: advertise(l.Addr()), syncer: k.syncer, topics: topics}
			k.addr = a.addr.String()
			return a, nil
		}),
		kfake.ClusterID(clusterID),
		kfake.DataDir(cfg.Dir),
		// kfake applies the broker's retention to compacted topics as well; the others state their own.
		kfake.BrokerConfigs(map[string]string{"log.retention.ms": "-1"}),
		kfake.WithLogger(k.logger),
	)
	if err != nil {
		return nil, fmt.Errorf("open the embedded kafka in %s at %s: %w", cfg.Dir, cfg.Addr, err)
	}
	// The folder of partitions is on disk before the first of them is: who waits for a partition does not wait for the folder's own name.
	if err = os.MkdirAll(filepath.Join(cfg.Dir, partitionsDir), 0o755); err == nil {
		err = k.syncer.wait()
	}
	if err != nil {
		k.once.Do(k.cluster.Close)
		return nil, fmt.Errorf("open the embedded kafka in %s: %w", cfg.Dir, err)
	}
	return k, nil
}

// Addr is the address that clients use, host:port.
func (k *Kafka) Addr() string { return k.addr }

// Run serves until ctx ends, then closes the broker.
func (k *Kafka) Run(ctx context.Context) error {
	// kfake begins to clean when a topic is created, but not when it finds one in its folder.
	clean := time.NewTicker(cleanInterval)
	defer clean.Stop()
	for {
		select {
		case <-ctx.Done():
			return k.Close()
		case <-k.syncer.failed:
			return errors.Join(k.syncer.failure(), k.Close())
		case <-clean.C:
			k.cluster.Compact()
		}
	}
}

// Close stops the broker. What it holds is complete on disk before, unless an earlier write was reported as failed.
func (k *Kafka) Close() error {
	k.once.Do(k.cluster.Close)
	if err := k.syncer.wait(); err != nil {
		return fmt.Errorf("close the embedded kafka: %w", err)
	}
	if n := k.logger.errors.Load(); n > 0 {
		return fmt.Errorf("close the embedded kafka: it logged %d errors, the first: %w", n, k.logger.first())
	}
	return nil
}

// Bound limits the bytes of each partition of a topic.
func Bound(ctx context.Context, cl *kgo.Client, topic string, bytes int64) error {
	value := strconv.FormatInt(bytes, 10)
	responses, err := kadm.NewClient(cl).AlterTopicConfigs(ctx, []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "retention.bytes", Value: &value}}, topic)
	if err == nil {
		var r kadm.AlterConfigsResponse
		if r, err = responses.On(topic, nil); err == nil {
			err = r.Err
		}
	}
	if err != nil {
		return fmt.Errorf("set retention.bytes of the embedded kafka's topic %s: %w", topic, err)
	}
	return nil
}

// advertised is a listener whose address is what metadata tells clients, and whose connections are durable.
type advertised struct {
	net.Listener
	addr   net.Addr
	syncer *syncer
	topics *topics
}

// Accept returns the next connection.
func (a *advertised) Accept() (net.Conn, error) {
	c, err := a.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return newDurable(c, a.syncer, a.topics), nil
}

// Addr returns the address for clients.
func (a *advertised) Addr() net.Addr { return a.addr }

func advertise(a net.Addr) net.Addr {
	if t, ok := a.(*net.TCPAddr); ok && t.IP.IsUnspecified() {
		return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: t.Port}
	}
	return a
}

// logger passes kfake's errors to slog. Its warnings are about what tests look for, such as slow or refused requests, and become debug lines.
type logger struct {
	log    *slog.Logger
	errors atomic.Int64
	err    atomic.Pointer[string]
}

// Logf writes one line.
func (l *logger) Logf(level kfake.LogLevel, format string, args ...any) {
	to := slog.LevelDebug
	if level == kfake.LogLevelError {
		to = slog.LevelError
	}
	ctx := context.Background()
	if to != slog.LevelError && !l.log.Enabled(ctx, to) {
		return
	}
	line := fmt.Sprintf(format, args...)
	if to == slog.LevelError {
		l.errors.Add(1)
		l.err.CompareAndSwap(nil, &line)
	}
	l.log.Log(ctx, to, line)
}

func (l *logger) first() error {
	if line := l.err.Load(); line != nil {
		return errors.New(*line)
	}
	return errors.New("none")
}
