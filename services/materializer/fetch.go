package materializer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// maxQueued bounds the records that wait for the fold, over all partitions, and maxQueuedBytes their keys and values; a fetch may overshoot
	// them once.
	maxQueued      = 64 << 10
	maxQueuedBytes = 64 << 20
	// stallPatience is how long all may wait for partitions whose outbox is full, before the others go on without them.
	stallPatience = time.Second
	// maxFetchWait bounds how long an idle fetch waits at the broker: a partition that is added meanwhile has to wait for it.
	maxFetchWait = 250 * time.Millisecond
)

// fetcher reads client-events and hands the records to the queues of the owned partitions.
//
// It is not a member of the consumer group, only owner is: where a partition begins is known late, after its former owner is fenced and
// its rows are brought up to date, and is no business of the group. All changes of what is read are made between two polls, by
// the goroutine that polls, so that no record of a former assignment can reach a later one.
type fetcher struct {
	client *kgo.Client
	log    *slog.Logger

	mu         sync.Mutex
	pending    []func()
	cancelPoll context.CancelFunc

	// wake has something to say when a queue was emptied or a function is pending.
	wake   chan struct{}
	queues map[int32]*queue // touched by run only
	paused map[int32]bool   // touched by run only
	// trouble is touched by run only.
	trouble fetchTrouble
	// polled is when a partition was polled for the last time, in epoch milliseconds. Touched by run only.
	polled map[int32]int64
}

func newFetcher(cfg eventlog.Config, kafkaLog *eventlog.ClientLog, log *slog.Logger) (*fetcher, error) {
	opts, err := cfg.SharedOpts(kafkaLog)
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(append(opts,
		// A partition that begins below what Kafka keeps has lost facts: that must be an error, not a jump.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(maxFetchWait),
		kgo.FetchMaxBytes(32<<20),
	)...)
	if err != nil {
		return nil, fmt.Errorf("create the consumer of %s: %w", eventlog.TopicClientEvents, err)
	}
	return &fetcher{client: cl, log: log, wake: make(chan struct{}, 1), queues: map[int32]*queue{}, paused: map[int32]bool{}, polled: map[int32]int64{}}, nil
}

// do has the polling goroutine call fn before its next poll.
func (f *fetcher) do(fn func()) {
	f.mu.Lock()
	f.pending = append(f.pending, fn)
	if f.cancelPoll != nil {
		f.cancelPoll()
	}
	f.mu.Unlock()
	f.signal()
}

// nudge has the polling goroutine look at the queues.
func (f *fetcher) nudge() { f.do(func() {}) }

func (f *fetcher) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// add reads a partition from an offset on into a queue.
func (f *fetcher) add(partition int32, offset int64, q *queue) {
	f.do(func() {
		f.queues[partition] = q
		f.polled[partition] = time.Now().UnixMilli()
		f.client.AddConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicClientEvents: {partition: kgo.NoResetOffset().At(offset)}})
	})
}

// remove ends the reading into a queue.
func (f *fetcher) remove(partition int32, q *queue) {
	f.do(func() {
		if f.queues[partition] != q {
			return
		}
		delete(f.queues, partition)
		f.resume(partition)
		f.client.RemoveConsumePartitions(map[string][]int32{eventlog.TopicClientEvents: {partition}})
	})
}

func (f *fetcher) pause(partition int32) {
	f.paused[partition] = true
	f.client.PauseFetchPartitions(map[string][]int32{eventlog.TopicClientEvents: {partition}})
}

func (f *fetcher) resume(partition int32) {
	if f.paused[partition] {
		delete(f.paused, partition)
		f.client.ResumeFetchPartitions(map[string][]int32{eventlog.TopicClientEvents: {partition}})
	}
}

// run polls until ctx ends.
func (f *fetcher) run(ctx context.Context) error {
	for ctx.Err() == nil {
		if err := f.poll(ctx); err != nil {
			return err
		}
		f.makeRoom(ctx)
	}
	return nil
}

func (f *fetcher) poll(ctx context.Context) error {
	pollCtx, cancel := f.runPending(ctx)
	fetches := f.client.PollFetches(pollCtx)
	cancel()
	err := fetchError(ctx, fetches)
	if err != nil && !isAway(err) {
		return err
	}
	defer f.trouble.note(ctx, f.log, eventlog.TopicClientEvents, err, fetches.NumRecords() > 0)
	now := time.Now().UnixMilli()
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if p.Topic != eventlog.TopicClientEvents || p.Err != nil {
			return // an interrupted poll
		}
		if q := f.queues[p.Partition]; q != nil {
			// The end is that of when Kafka answered. It was asked when what came before had been polled, and this process may have been
			// stopped since then: what it finds when it wakes up is old.
			q.progress.sawEnd(p.HighWatermark, f.polled[p.Partition], now)
			f.polled[p.Partition] = now
			q.push(p.Records)
		}
	})
	return nil
}

// runPending calls the pending functions and returns the context of a poll that ends when there are new ones.
func (f *fetcher) runPending(ctx context.Context) (context.Context, context.CancelFunc) {
	f.mu.Lock()
	pending := f.pending
	f.pending = nil
	pollCtx, cancel := context.WithCancel(ctx)
	f.cancelPoll = cancel
	f.mu.Unlock()
	for _, fn := range pending {
		fn()
	}
	return pollCtx, cancel
}

// makeRoom waits until the queues are short. A partition that stands still because its outbox is full must not hold up the others: it is
// paused until it moves.
func (f *fetcher) makeRoom(ctx context.Context) {
	for partition := range f.paused {
		if q := f.queues[partition]; q == nil || !q.stalled.Load() {
			f.resume(partition)
		}
	}
	var patience *time.Timer
	for f.full() {
		if patience == nil {
			patience = time.NewTimer(stallPatience)
			defer patience.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
			_, cancel := f.runPending(ctx)
			cancel()
		case <-patience.C:
			for partition, q := range f.queues {
				if q.stalled.Load() {
					f.pause(partition)
				}
			}
			patience.Reset(stallPatience)
		}
	}
}

// full reports whether as much as may wait is in the queues of partitions that are not paused.
func (f *fetcher) full() bool {
	records, size := 0, 0
	for partition, q := range f.queues {
		if !f.paused[partition] {
			records += int(q.length.Load())
			size += int(q.size.Load())
		}
	}
	return records > maxQueued || size > maxQueuedBytes
}

// queue holds the fetched records of a partition until they are folded.
type queue struct {
	progress *progress
	popped   func()      // called after a take
	stalled  atomic.Bool // the fold waits for the outbox
	length   atomic.Int64
	size     atomic.Int64  // bytes of keys and values
	ready    chan struct{} // has something to say when the queue is not empty

	mu      sync.Mutex
	records []*kgo.Record
}

func newQueue(p *progress, popped func()) *queue {
	return &queue{progress: p, popped: popped, ready: make(chan struct{}, 1)}
}

func (q *queue) push(records []*kgo.Record) {
	if len(records) == 0 {
		return
	}
	q.mu.Lock()
	q.records = append(q.records, records...)
	q.length.Store(int64(len(q.records)))
	q.size.Add(sizeOf(records))
	q.mu.Unlock()
	q.announce()
}

// sizeOf is how many bytes the keys and values of records have.
func sizeOf(records []*kgo.Record) (n int64) {
	for _, r := range records {
		n += int64(len(r.Key) + len(r.Value))
	}
	return n
}

func (q *queue) announce() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// first returns the offset of the first record, -1 if there is none.
func (q *queue) first() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.records) == 0 {
		return -1
	}
	return q.records[0].Offset
}

// take appends at most limit records to dst, all of which are below an offset.
func (q *queue) take(dst []*kgo.Record, limit int, below int64) []*kgo.Record {
	q.mu.Lock()
	n := min(limit, len(q.records))
	if n > 0 && q.records[n-1].Offset >= below {
		n, _ = slices.BinarySearchFunc(q.records[:n], below, func(r *kgo.Record, offset int64) int { return cmp.Compare(r.Offset, offset) })
	}
	dst = append(dst, q.records[:n]...)
	q.size.Add(-sizeOf(q.records[:n]))
	clear(q.records[:n])
	if q.records = q.records[n:]; len(q.records) == 0 {
		q.records = nil
	}
	rest := len(q.records)
	q.length.Store(int64(rest))
	q.mu.Unlock()
	if rest > 0 {
		q.announce()
	}
	q.popped()
	return dst
}

// errOutOfRange is returned when Kafka does not keep the offset to go on from.
var errOutOfRange = errors.New("facts are lost")

// fetchError returns the gravest error of a poll, nil if it only was interrupted. If it isAway, the Kafka client goes on trying, and the other partitions
// of the poll are as they should be.
func fetchError(ctx context.Context, fetches kgo.Fetches) (first error) {
	for _, e := range fetches.Errors() {
		switch {
		case ctx.Err() != nil || errors.Is(e.Err, context.Canceled) || errors.Is(e.Err, kgo.ErrClientClosed):
			continue
		case errors.Is(e.Err, kerr.OffsetOutOfRange):
			return fmt.Errorf("%w: %s partition %d no longer has the offset to go on from (retention passed, or the topic was cut): %w; "+
				"empty data-dir to begin with the latest checkpoint, or raise the topic's retention", errOutOfRange, e.Topic, e.Partition, e.Err)
		}
		var lost *kgo.ErrDataLoss
		if errors.As(e.Err, &lost) {
			return fmt.Errorf("%w: read %s partition %d: %w", errOutOfRange, e.Topic, e.Partition, e.Err)
		}
		if first == nil || isAway(first) {
			first = away(fmt.Errorf("read %s partition %d: %w", e.Topic, e.Partition, e.Err))
		}
	}
	return first
}

// fetchTrouble logs that a topic is not read, once, until it is read again, and waits a little.
type fetchTrouble struct{ said bool }

// note takes the error of a poll, which is nil or isAway, and whether it had records.
func (t *fetchTrouble) note(ctx context.Context, log *slog.Logger, topic string, err error, records bool) {
	if err != nil {
		if !t.said {
			log.Warn("kafka does not answer; reading goes on when it does", service.KeyTopic, topic, service.KeyError, err)
		}
		t.said = true
		pauseFor(ctx, retryFirst)
	} else if records {
		t.said = false
	}
}
