package eventlog_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
)

func TestEnsureCreatesAndChecks(t *testing.T) {
	ctx := context.Background()
	_, cfg := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, cfg)
	eventlogtest.Ensure(t, cfg) // what is there is fine
	cl := eventlogtest.NewClient(t, cfg)
	topics, err := kadm.NewClient(cl).ListTopics(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{eventlog.TopicClientEvents: 4, eventlog.TopicClientState: 4, eventlog.TopicNodeEvents: 1, eventlog.TopicDeadLetters: 4}
	for name, n := range want {
		if got := len(topics[name].Partitions); got != n {
			t.Errorf("%s has %d partitions, want %d", name, got, n)
		}
	}
	cfg.Partitions = 8
	if err := eventlog.Ensure(ctx, cl, cfg); !errors.Is(err, eventlog.ErrTopicMismatch) || !strings.Contains(err.Error(), "has 4 partitions") {
		t.Errorf("partition mismatch: %v", err)
	}
}

// unknownTopics answers that none of the topics is there.
func unknownTopics(t *testing.T, asked *kmsg.MetadataRequest, cfg eventlog.Config) *kmsg.MetadataResponse {
	host, port, err := net.SplitHostPort(cfg.Brokers[0])
	if err != nil {
		t.Error(err)
	}
	broker := kmsg.NewMetadataResponseBroker()
	broker.Host = host
	if _, err := fmt.Sscan(port, &broker.Port); err != nil {
		t.Error(err)
	}
	answer := asked.ResponseKind().(*kmsg.MetadataResponse)
	answer.Brokers = append(answer.Brokers, broker)
	for _, topic := range asked.Topics {
		unknown := kmsg.NewMetadataResponseTopic()
		unknown.Topic, unknown.ErrorCode = topic.Topic, kerr.UnknownTopicOrPartition.Code
		answer.Topics = append(answer.Topics, unknown)
	}
	return answer
}

// TestEnsureWaitsForTheBroker is what a process meets that starts while another creates the topics.
func TestEnsureWaitsForTheBroker(t *testing.T) {
	cluster, cfg := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, cfg)
	for range 2 {
		cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
			asked := req.(*kmsg.MetadataRequest)
			return unknownTopics(t, asked, cfg), nil, len(asked.Topics) > 1
		})
	}
	eventlogtest.Ensure(t, cfg)
}

func TestEnsureChecksCleanupPolicy(t *testing.T) {
	ctx := context.Background()
	_, cfg := eventlogtest.NewCluster(t)
	cl := eventlogtest.NewClient(t, cfg)
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, cfg.Partitions, 1, map[string]*string{"cleanup.policy": kadm.StringPtr("delete")}, eventlog.TopicClientState); err != nil {
		t.Fatal(err)
	}
	if err := eventlog.Ensure(ctx, cl, cfg); !errors.Is(err, eventlog.ErrTopicMismatch) || !strings.Contains(err.Error(), "cleanup.policy=delete") {
		t.Errorf("cleanup policy: %v", err)
	}
}

// TestEnsureKeepsTwoInSync: what three replicas have acknowledged outlives the loss of one.
func TestEnsureKeepsTwoInSync(t *testing.T) {
	for factor, want := range map[int16]string{1: "1", 2: "1", 3: "2"} {
		_, cfg := eventlogtest.NewCluster(t, kfake.NumBrokers(3))
		cfg.ReplicationFactor = factor
		eventlogtest.Ensure(t, cfg)
		configs, err := kadm.NewClient(eventlogtest.NewClient(t, cfg)).DescribeTopicConfigs(context.Background(), eventlog.TopicClientEvents)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, kv := range configs[0].Configs {
			if kv.Key == "min.insync.replicas" {
				got = kv.MaybeValue()
			}
		}
		if got != want {
			t.Errorf("replication factor %d: min.insync.replicas is %q, want %q", factor, got, want)
		}
	}
}

// TestPartition agrees with the partitioner that the Kafka client uses, for keys of every length modulo four.
func TestPartition(t *testing.T) {
	p := kgo.StickyKeyPartitioner(nil).ForTopic(eventlog.TopicClientEvents)
	for _, id := range []string{"", "a", "ab", "abc", "abcd", "VIN0000001", "日本", strings.Repeat("x", 65_535)} {
		key := eventlog.ClientKey("default", id)
		for _, n := range []int32{1, 4, 16, 100} {
			if got, want := eventlog.Partition(key, n), p.Partition(&kgo.Record{Key: key}, int(n)); got != int32(want) {
				t.Errorf("partition of %.20q among %d: %d, want %d", key, n, got, want)
			}
		}
	}
}

func TestKeys(t *testing.T) {
	for _, id := range []string{"a", "a/b", "/", "日本"} {
		c, got, err := eventlog.SplitClientKey(eventlog.ClientKey("default", id))
		if err != nil || c != "default" || got != id {
			t.Errorf("%q: %q %q %v", id, c, got, err)
		}
	}
	if _, _, err := eventlog.SplitClientKey([]byte(eventlog.CheckpointKey)); !errors.Is(err, eventlog.ErrBadRecord) {
		t.Errorf("the checkpoint's key must be no client's: %v", err)
	}
	if k := string(eventlog.NodeKey(&presence.NodeFact{Kind: presence.Feed, Cluster: "c", Bridge: "b"})); k != "c/b/feed" {
		t.Errorf("feed key %s", k)
	}
	if k := string(eventlog.NodeKey(&presence.NodeFact{Kind: presence.NodeStarted, Cluster: "c", Node: "emqx@h"})); k != "c/emqx@h/started" {
		t.Errorf("node key %s", k)
	}
	for _, name := range []string{"", "A", "a_b", "a/b", strings.Repeat("a", 64)} {
		if eventlog.ValidCluster(name) == nil {
			t.Errorf("cluster %q is accepted", name)
		}
	}
}

func TestConfigErrorsNameTheOption(t *testing.T) {
	cfg := eventlog.DefaultConfig()
	cfg.Partitions, cfg.ReplicationFactor, cfg.RecordFormat, cfg.Compression, cfg.SASLMechanism = 0, 0, "xml", "gzip9", "GSSAPI"
	err := cfg.Validate()
	for _, want := range []string{"kafka-partitions", "kafka-replication-factor", "kafka-record-format", "kafka-compression", "kafka-sasl-mechanism"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	if err := eventlog.DefaultConfig().Validate(); err != nil {
		t.Error(err)
	}
}

// A tombstone must outlive the facts that it keeps out: those in client-events.
func TestTombstonesOutliveFacts(t *testing.T) {
	config := map[string]map[string]string{}
	for _, topic := range eventlog.Topics() {
		config[topic.Name] = topic.Config
	}
	if got, want := config[eventlog.TopicClientState]["delete.retention.ms"], config[eventlog.TopicClientEvents]["retention.ms"]; got != want || got == "" {
		t.Errorf("delete.retention.ms of client-state is %q, retention.ms of client-events %q", got, want)
	}
}
