package bridge

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

// readNodeEvents returns the latest node fact of each key, of all clusters, up to the end of the topic as it is now.
func readNodeEvents(ctx context.Context, cfg eventlog.Config, log *slog.Logger) ([]presence.NodeFact, error) {
	opts, err := cfg.Opts(log)
	if err != nil {
		return nil, err
	}
	topic := eventlog.TopicNodeEvents
	client, err := kgo.NewClient(append(opts,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}),
		// The last record before the end may be one.
		kgo.KeepControlRecords())...)
	if err != nil {
		return nil, fmt.Errorf("create the kafka client: %w", err)
	}
	defer client.Close()
	admin := kadm.NewClient(client)
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
	return consume(ctx, client, end.Offset, log)
}

func consume(ctx context.Context, client *kgo.Client, end int64, log *slog.Logger) ([]presence.NodeFact, error) {
	latest := map[string]presence.NodeFact{}
	for next := int64(0); next < end; {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return nil, fmt.Errorf("read %s: %w", eventlog.TopicNodeEvents, err)
		}
		for _, e := range fetches.Errors() {
			return nil, fmt.Errorf("read %s: %w", e.Topic, e.Err)
		}
		for r := range fetches.RecordsAll() {
			next = r.Offset + 1
			var f presence.NodeFact
			if r.Attrs.IsControl() || r.Value == nil {
				continue
			}
			if err := eventlog.DecodeNodeFact(r, &f); err != nil {
				// The materializer, which depends on it, gives it to the dead letters.
				log.Warn("a record of the node events cannot be read; going on without it", service.KeyOffset, r.Offset, service.KeyError, err)
				continue
			}
			latest[string(r.Key)] = f
		}
	}
	return slices.Collect(maps.Values(latest)), nil
}
