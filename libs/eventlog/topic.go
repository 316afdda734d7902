package eventlog

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// The topics.
const (
	TopicClientEvents = "presence.client-events.v1"
	TopicNodeEvents   = "presence.node-events.v1"
	TopicClientState  = "presence.client-state.v1"
	TopicDeadLetters  = "presence.dead-letters.v1"
)

const (
	hourMS = 60 * 60 * 1000
	dayMS  = 24 * hourMS
)

// Topic is the specification of a topic.
type Topic struct {
	Name       string
	Partitions int32             // 0: as configured
	Config     map[string]string // checked when the topic is present, where mustMatch says so
	mustMatch  []string
}

// Topics returns the specification of all topics. Every start reads all of node-events, which gets a heartbeat every few seconds: its
// segments are short, so that compaction, which spares the active one, keeps it small. A tombstone of client-state outlives the facts that it
// is to keep out.
func Topics() []Topic {
	ms := func(days int) string { return strconv.Itoa(days * dayMS) }
	return []Topic{
		{Name: TopicClientEvents, Config: map[string]string{"cleanup.policy": "delete", "retention.ms": ms(7)}, mustMatch: []string{"cleanup.policy"}},
		{Name: TopicNodeEvents, Partitions: 1, Config: map[string]string{"cleanup.policy": "compact", "segment.ms": strconv.Itoa(hourMS), "min.cleanable.dirty.ratio": "0.1"}, mustMatch: []string{"cleanup.policy"}},
		{Name: TopicClientState, Config: map[string]string{"cleanup.policy": "compact", "min.compaction.lag.ms": ms(7), "delete.retention.ms": ms(7)}, mustMatch: []string{"cleanup.policy"}},
		{Name: TopicDeadLetters, Config: map[string]string{"cleanup.policy": "delete", "retention.ms": ms(14)}, mustMatch: []string{"cleanup.policy"}},
	}
}

// ErrTopicMismatch is returned by Ensure when a topic is there but not as it must be.
var ErrTopicMismatch = errors.New("kafka topic is not as configured")

// A topic exists from the moment that Kafka's controller has it; the brokers that describe it know a little later.
const (
	knownWithin   = 15 * time.Second
	knownInterval = 50 * time.Millisecond
)

// With so many replicas a record is acknowledged once so many have it: it outlives the loss of a broker, and one may be away. Kafka's own default
// would acknowledge what a single broker has. While too few are there producers wait.
const (
	minReplicas = 3
	minInSync   = "2"
)

// Ensure creates the topics that are absent and checks those that are present: their partition count, and the configuration that the
// contract depends on. It changes no existing topic. Safe to call from several processes at once.
func Ensure(ctx context.Context, cl *kgo.Client, c Config) error {
	adm := kadm.NewClient(cl)
	var names []string
	for _, t := range Topics() {
		names = append(names, t.Name)
		if err := create(ctx, adm, t, c); err != nil {
			return err
		}
	}
	deadline := time.NewTimer(knownWithin)
	defer deadline.Stop()
	tick := time.NewTicker(knownInterval)
	defer tick.Stop()
	for {
		err := check(ctx, cl, names, c)
		if !errors.Is(err, kerr.UnknownTopicOrPartition) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-deadline.C:
			return err
		case <-tick.C:
		}
	}
}

// check checks the topics that are present.
func check(ctx context.Context, cl *kgo.Client, names []string, c Config) error {
	present, err := describe(ctx, cl, names)
	if err != nil {
		return err
	}
	configs, err := kadm.NewClient(cl).DescribeTopicConfigs(ctx, names...)
	if err != nil {
		return fmt.Errorf("describe kafka topic configurations: %w", err)
	}
	for _, t := range Topics() {
		if has, want := present[t.Name].partitions, t.partitions(c); has != want {
			return fmt.Errorf("%w: %s has %d partitions, kafka-partitions asks for %d: set it to %d, or use other topics (a partition count cannot change under existing keys)",
				ErrTopicMismatch, t.Name, has, want, has)
		}
		rc, err := configs.On(t.Name, nil)
		if err == nil {
			err = rc.Err
		}
		if err != nil {
			return fmt.Errorf("describe configuration of kafka topic %s: %w", t.Name, err)
		}
		for _, kv := range rc.Configs {
			for _, key := range t.mustMatch {
				if kv.Key == key && kv.MaybeValue() != t.Config[key] {
					return fmt.Errorf("%w: %s has %s=%s, it must be %s: alter the topic", ErrTopicMismatch, t.Name, key, kv.MaybeValue(), t.Config[key])
				}
			}
		}
	}
	return nil
}

// described is what Kafka says of a topic.
type described struct {
	id         [16]byte
	partitions int32
}

// describe returns what Kafka says of topics, or an error if one of them is not there. It asks Kafka each time, where kadm would give the same answer again for seconds.
func describe(ctx context.Context, cl *kgo.Client, names []string) (map[string]described, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, name := range names {
		t := kmsg.NewMetadataRequestTopic()
		t.Topic = kmsg.StringPtr(name)
		req.Topics = append(req.Topics, t)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return nil, fmt.Errorf("describe kafka topics: %w", err)
	}
	found := map[string]described{}
	for _, t := range resp.Topics {
		name := ""
		if t.Topic != nil {
			name = *t.Topic
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return nil, fmt.Errorf("describe kafka topic %s: %w", name, err)
		}
		found[name] = described{id: t.TopicID, partitions: int32(len(t.Partitions))}
	}
	return found, nil
}

func (t Topic) partitions(c Config) int32 {
	if t.Partitions != 0 {
		return t.Partitions
	}
	return c.Partitions
}

func create(ctx context.Context, adm *kadm.Client, t Topic, c Config) error {
	cfg := make(map[string]*string, len(t.Config))
	for k, v := range t.Config {
		cfg[k] = kadm.StringPtr(v)
	}
	if c.ReplicationFactor >= minReplicas {
		cfg["min.insync.replicas"] = kadm.StringPtr(minInSync)
	}
	r, err := adm.CreateTopic(ctx, t.partitions(c), c.ReplicationFactor, cfg, t.Name)
	if err == nil {
		err = r.Err
	}
	switch {
	case err == nil, errors.Is(err, kerr.TopicAlreadyExists):
		return nil
	case errors.Is(err, kerr.InvalidReplicationFactor):
		return fmt.Errorf("create kafka topic %s with kafka-replication-factor %d: %w: set it to at most the number of kafka brokers", t.Name, c.ReplicationFactor, err)
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		// Whoever may not create topics can still use them; the check that follows says if they are there.
		return nil
	}
	return fmt.Errorf("create kafka topic %s: %w", t.Name, err)
}
