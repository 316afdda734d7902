package eventlog

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

// lettersSilence is how long reading dead letters waits for the next record before it gives up.
const lettersSilence = 30 * time.Second

// Letter is a dead letter as it stands in the topic.
type Letter struct {
	DeadLetter
	// Partition and Offset of the letter itself; those of its DeadLetter are of the record that it is about.
	LetterPartition int32
	LetterOffset    int64
	// Err says why the letter itself could not be read in full; it wraps ErrBadRecord.
	Err error
}

// ReadDeadLetters calls f with every dead letter whose time is since or later, up to the end of the topic as it is at the call: in the order of
// offsets within a partition, in no order between partitions. An error of f ends the reading and is returned.
func ReadDeadLetters(ctx context.Context, c Config, since time.Time, log *slog.Logger, f func(Letter) error) error {
	opts, err := c.Opts(log)
	if err != nil {
		return err
	}
	client, err := kgo.NewClient(append(opts,
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// The last record before the end may be one.
		kgo.KeepControlRecords())...)
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer client.Close()
	begins, ends, err := letterBounds(ctx, client, since)
	if err != nil || len(begins) == 0 {
		return err
	}
	client.AddConsumePartitions(map[string]map[int32]kgo.Offset{TopicDeadLetters: begins})
	sinceMS := since.UnixMilli()
	for len(ends) > 0 {
		fetches, err := poll(ctx, client)
		if err != nil {
			return err
		}
		for r := range fetches.RecordsAll() {
			end, open := ends[r.Partition]
			if !open {
				continue
			}
			if r.Offset+1 >= end {
				delete(ends, r.Partition)
			}
			if r.Offset >= end || r.Attrs.IsControl() || r.Timestamp.UnixMilli() < sinceMS {
				continue
			}
			d, err := DecodeDeadLetter(r)
			if err := f(Letter{DeadLetter: d, LetterPartition: r.Partition, LetterOffset: r.Offset, Err: err}); err != nil {
				return err
			}
		}
	}
	return nil
}

// letterBounds returns where to begin in each partition, and where those partitions end. Partitions without letters are left out.
func letterBounds(ctx context.Context, client *kgo.Client, since time.Time) (begins map[int32]kgo.Offset, ends map[int32]int64, err error) {
	admin := kadm.NewClient(client)
	first, err := admin.ListStartOffsets(ctx, TopicDeadLetters)
	if err == nil && since.UnixMilli() > 0 {
		first, err = admin.ListOffsetsAfterMilli(ctx, since.UnixMilli(), TopicDeadLetters)
	}
	if err == nil {
		err = first.Error()
	}
	if err != nil {
		return nil, nil, lettersError(err)
	}
	last, err := admin.ListCommittedOffsets(ctx, TopicDeadLetters)
	if err == nil {
		err = last.Error()
	}
	if err != nil {
		return nil, nil, lettersError(err)
	}
	begins, ends = map[int32]kgo.Offset{}, map[int32]int64{}
	last.Each(func(o kadm.ListedOffset) {
		if begin, ok := first.Lookup(o.Topic, o.Partition); ok && begin.Offset >= 0 && begin.Offset < o.Offset {
			begins[o.Partition], ends[o.Partition] = kgo.NewOffset().At(begin.Offset), o.Offset
		}
	})
	return begins, ends, nil
}

func lettersError(err error) error {
	if errors.Is(err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("find the dead letters: %w: the kafka cluster has no topic %s; is it the one of kafka-brokers of the services?", err, TopicDeadLetters)
	}
	return fmt.Errorf("find the dead letters in %s: %w", TopicDeadLetters, err)
}

// poll returns the next records.
func poll(ctx context.Context, client *kgo.Client) (kgo.Fetches, error) {
	limited, cancel := context.WithTimeout(ctx, lettersSilence)
	defer cancel()
	fetches := client.PollFetches(limited)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case limited.Err() != nil:
		return nil, fmt.Errorf("read %s: no record came within %v", TopicDeadLetters, lettersSilence)
	}
	for _, e := range fetches.Errors() {
		return nil, fmt.Errorf("read %s partition %d: %w", e.Topic, e.Partition, e.Err)
	}
	return fetches, nil
}
