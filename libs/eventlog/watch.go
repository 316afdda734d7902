package eventlog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	watchInterval = time.Second
	// watchAnswers is how many answers in a row must say that a topic is another one: a broker that has just started may not know it yet.
	watchAnswers = 3
)

// Watch asks Kafka every second whether the topics are still those that they were at first. It returns nil when ctx ends, and an error that is
// [ErrTopicMismatch] once a topic has been deleted, deleted and created again, or given another number of partitions: what was read of it, and the
// partition of every key, is then not that of the topic any more. That Kafka does not answer is no error.
func Watch(ctx context.Context, cl *kgo.Client) error { return watch(ctx, cl, watchInterval) }

func watch(ctx context.Context, cl *kgo.Client, interval time.Duration) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var names []string
	for _, t := range Topics() {
		names = append(names, t.Name)
	}
	var first map[string]described
	differed := 0
	for {
		now, err := describe(ctx, cl, names)
		switch {
		case first == nil && err == nil:
			first = now
		case first == nil, err != nil && !errors.Is(err, kerr.UnknownTopicOrPartition):
		default:
			if err == nil {
				err = compare(first, now, names)
			}
			if differed++; err == nil {
				differed = 0
			}
			if differed == watchAnswers {
				return fmt.Errorf("%w while this process uses it: %w; restart this process, which says what is to be done with what it holds of the former topic", ErrTopicMismatch, err)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// compare returns what is not as it was.
func compare(before, now map[string]described, names []string) error {
	var errs []error
	for _, name := range slices.Sorted(slices.Values(names)) {
		was, is := before[name], now[name]
		switch {
		case was.id != is.id:
			errs = append(errs, fmt.Errorf("%s was deleted and created again: its topic ID was %x, it is %x", name, was.id, is.id))
		case was.partitions != is.partitions:
			errs = append(errs, fmt.Errorf("%s had %d partitions, it has %d", name, was.partitions, is.partitions))
		}
	}
	return errors.Join(errs...)
}
