package materializer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// bounds returns the first offset of a partition and its end offset.
func bounds(ctx context.Context, adm *kadm.Client, topic string, partition int32) (first, end int64, err error) {
	return boundsOf(ctx, adm.ListStartOffsets, adm.ListEndOffsets, topic, partition)
}

// committedBounds is bounds with the end of what is committed: no open transaction is below it.
func committedBounds(ctx context.Context, adm *kadm.Client, topic string, partition int32) (first, end int64, err error) {
	return boundsOf(ctx, adm.ListStartOffsets, adm.ListCommittedOffsets, topic, partition)
}

// listOffsets asks for one kind of offset of all partitions of topics.
type listOffsets = func(context.Context, ...string) (kadm.ListedOffsets, error)

func boundsOf(ctx context.Context, starts, ends listOffsets, topic string, partition int32) (first, end int64, err error) {
	if first, err = offsetOf(ctx, starts, topic, partition); err == nil {
		end, err = offsetOf(ctx, ends, topic, partition)
	}
	if err != nil {
		return 0, 0, away(err)
	}
	return first, end, nil
}

func offsetOf(ctx context.Context, list listOffsets, topic string, partition int32) (int64, error) {
	deadline := time.NewTimer(offsetsWithin)
	defer deadline.Stop()
	tick := time.NewTicker(offsetsInterval)
	defer tick.Stop()
	for {
		offset, err := offsetNow(ctx, list, topic, partition)
		if err == nil || !kerr.IsRetriable(err) {
			return offset, err
		}
		select {
		case <-ctx.Done():
			return 0, err
		case <-deadline.C:
			return 0, err
		case <-tick.C:
		}
	}
}

// A partition whose leader has just changed knows its end a little later: its replicas have to report first, also after all of Kafka was away.
const (
	offsetsWithin   = time.Minute
	offsetsInterval = 250 * time.Millisecond
)

func offsetNow(ctx context.Context, list listOffsets, topic string, partition int32) (int64, error) {
	listed, err := list(ctx, topic)
	if err != nil {
		return 0, fmt.Errorf("list the offsets of %s: %w", topic, err)
	}
	o, ok := listed.Lookup(topic, partition)
	if !ok {
		return 0, fmt.Errorf("list the offsets of %s: kafka does not know partition %d; do all services have the same kafka-partitions?", topic, partition)
	}
	if o.Err != nil {
		return 0, fmt.Errorf("list the offsets of %s partition %d: %w", topic, partition, o.Err)
	}
	return o.Offset, nil
}

// identity asks Kafka which logs these are; state is the ID of client-state.
func identity(ctx context.Context, adm *kadm.Client) (id store.Identity, state [16]byte, err error) {
	m, err := adm.Metadata(ctx, eventlog.TopicClientEvents, eventlog.TopicNodeEvents, eventlog.TopicClientState)
	if err != nil {
		return id, state, away(fmt.Errorf("ask kafka for its identity: %w", err))
	}
	clients, nodes, states := m.Topics[eventlog.TopicClientEvents], m.Topics[eventlog.TopicNodeEvents], m.Topics[eventlog.TopicClientState]
	if err := errors.Join(clients.Err, nodes.Err, states.Err); err != nil {
		return id, state, away(fmt.Errorf("ask kafka for the identity of its topics: %w", err))
	}
	return store.Identity{KafkaCluster: m.Cluster, TopicID: clients.ID, NodeTopicID: nodes.ID, Partitions: int32(len(clients.Partitions))}, states.ID, nil
}

// ignoreCancel returns nil in place of an error that only says that ctx ended.
func ignoreCancel(ctx context.Context, err error) error {
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, ctx.Err())) {
		return nil
	}
	return err
}
