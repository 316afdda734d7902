package chaos

import (
	"context"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// Reader fills a ledger.
type Reader struct {
	ledger *Ledger
	kafka  *kgo.Client
	admin  *kadm.Client
	next   map[string]map[int32]int64 // offsets to be read next
}

// NewReader returns a reader of the topics from their beginning; opts say how to reach Kafka.
func NewReader(l *Ledger, opts []kgo.Opt) (*Reader, error) {
	// Control records show how far a partition has been read where a transaction ends it.
	cl, err := kgo.NewClient(append(opts[:len(opts):len(opts)], kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	if err != nil {
		return nil, fmt.Errorf("create the consumer of all topics: %w", err)
	}
	return &Reader{ledger: l, kafka: cl, admin: kadm.NewClient(cl), next: map[string]map[int32]int64{}}, nil
}

// Close ends it.
func (r *Reader) Close() { r.kafka.Close() }

// Read reads on to what is committed now.
func (r *Reader) Read(ctx context.Context) error {
	ends, err := r.admin.ListCommittedOffsets(ctx, eventlog.TopicClientEvents, eventlog.TopicClientState, eventlog.TopicNodeEvents, eventlog.TopicDeadLetters)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list the ends of the topics: %w", err)
	}
	added := map[string]map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		if r.next[o.Topic] == nil {
			r.next[o.Topic] = map[int32]int64{}
		}
		if _, ok := r.next[o.Topic][o.Partition]; !ok {
			r.next[o.Topic][o.Partition] = 0
			if added[o.Topic] == nil {
				added[o.Topic] = map[int32]kgo.Offset{}
			}
			added[o.Topic][o.Partition] = kgo.NewOffset().At(0)
		}
	})
	r.kafka.AddConsumePartitions(added)
	for !r.reached(ends) {
		fetches := r.kafka.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read the topics: %w", err)
		}
		var errs []error
		fetches.EachError(func(topic string, partition int32, err error) {
			errs = append(errs, fmt.Errorf("read %s partition %d: %w", topic, partition, err))
		})
		fetches.EachRecord(func(rec *kgo.Record) {
			r.next[rec.Topic][rec.Partition] = rec.Offset + 1
			errs = append(errs, r.ledger.Add(rec))
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

func (r *Reader) reached(ends kadm.ListedOffsets) bool {
	all := true
	ends.Each(func(o kadm.ListedOffset) { all = all && r.next[o.Topic][o.Partition] >= o.Offset })
	return all
}
