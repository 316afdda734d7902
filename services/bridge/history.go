package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

// followPoll is the longest time between two looks at what is to be put right in the log.
const followPoll = 500 * time.Millisecond

// follower reads node-events, which all bridges write.
type follower struct {
	client *kgo.Client
	log    *slog.Logger
	nodes  nodeLog
}

func newFollower(cfg eventlog.Config, kafkaLog *eventlog.ClientLog, log *slog.Logger) (*follower, error) {
	opts, err := cfg.SharedOpts(kafkaLog)
	if err != nil {
		return nil, err
	}
	client, err := kgo.NewClient(append(opts,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicNodeEvents: {0: kgo.NewOffset().AtStart()}}),
		kgo.FetchMaxWait(followPoll),
		// The last record before the end may be one.
		kgo.KeepControlRecords())...)
	if err != nil {
		return nil, fmt.Errorf("create the kafka client: %w", err)
	}
	return &follower{client: client, log: log}, nil
}

func (f *follower) close() { f.client.Close() }

// load reads up to the end of the topic as it is now, and returns what the node facts of each key say, of all clusters.
func (f *follower) load(ctx context.Context) ([]presence.NodeFact, error) {
	topic := eventlog.TopicNodeEvents
	admin := kadm.NewClient(f.client)
	ends, err := admin.ListEndOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("find the end of %s: %w", topic, err)
	}
	end, ok := ends.Lookup(topic, 0)
	if !ok || end.Err != nil {
		return nil, fmt.Errorf("find the end of %s: %w", topic, end.Err)
	}
	starts, err := admin.ListStartOffsets(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("find the start of %s: %w", topic, err)
	}
	if start, ok := starts.Lookup(topic, 0); ok && start.Offset >= end.Offset {
		return nil, nil
	}
	for next := int64(0); next < end.Offset; {
		fetches := f.client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("read %s: %w", topic, err)
		}
		for _, e := range fetches.Errors() {
			return nil, fmt.Errorf("read %s: %w", e.Topic, e.Err)
		}
		for r := range fetches.RecordsAll() {
			next = r.Offset + 1
			f.take(r, time.Now())
		}
	}
	return f.nodes.facts(), nil
}

// take returns the fact of a record, nil if it has none.
func (f *follower) take(r *kgo.Record, now time.Time) *presence.NodeFact {
	if r.Attrs.IsControl() || r.Value == nil {
		return nil
	}
	var fact presence.NodeFact
	if err := eventlog.DecodeNodeFact(r, &fact); err != nil {
		// The materializer, which depends on it, gives it to the dead letters.
		f.log.Warn("a record of the node events cannot be read; going on without it", service.KeyOffset, r.Offset, service.KeyError, err)
		return nil
	}
	f.nodes.add(&fact, now)
	return &fact
}

// follow goes on reading until ctx ends: it tells the clusters what other bridges assert, and writes again what is lost to a later reader of the
// compacted topic.
func (f *follower) follow(ctx context.Context, clusters []*cluster) {
	var failing error
	for ctx.Err() == nil {
		poll, cancel := context.WithTimeout(ctx, followPoll)
		fetches := f.client.PollFetches(poll)
		cancel()
		now := time.Now()
		for _, e := range fetches.Errors() {
			if poll.Err() != nil || errors.Is(e.Err, context.DeadlineExceeded) {
				continue
			}
			if failing == nil || failing.Error() != e.Err.Error() {
				f.log.Warn("cannot follow the node events; trying again", service.KeyError, e.Err)
			}
			failing = e.Err
		}
		for r := range fetches.RecordsAll() {
			failing = nil
			if fact := f.take(r, now); fact != nil {
				for _, c := range clusters {
					c.told(fact, now.UnixMilli())
				}
			}
		}
		for _, c := range clusters {
			c.repair(f.nodes.repairs(now, c.serves), now.UnixMilli())
		}
	}
}
