package query

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"golang.org/x/sync/singleflight"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// watchRetry is the time between two attempts to read client-state.
	watchRetry = time.Second
	// watchCheck is how often the source asks Kafka whether the topic is still the same, and what its ends are.
	watchCheck = 10 * time.Second
	// watchAsk bounds a question to Kafka.
	watchAsk = 10 * time.Second
	// fillSilence is how long Kafka may send nothing before its ends while the ring is filled.
	fillSilence = 5 * time.Second
	// maxHubFetch bounds what one fetch brings, in bytes.
	maxHubFetch = 8 << 20
	// minCompactionLag is what a topic without a limit is taken for: compaction leaves the segment alone that is being written.
	minCompactionLag = time.Minute
)

var (
	errTopicChanged = errors.New(eventlog.TopicClientState + " was deleted or created anew, or has other partitions")
	errLogCut       = errors.New(eventlog.TopicClientState + " no longer has the offset to go on from")
)

// watchSource reads client-state into the hub.
type watchSource struct {
	cfg Config
	hub *watchHub
	log *slog.Logger
	// kafkaLog is of all clients: one reads, others ask or read the past.
	kafkaLog *eventlog.ClientLog
	metrics  *watchMetrics
	client   atomic.Pointer[kgo.Client] // nil while nothing is read
	asking   singleflight.Group
	catchUp  chan struct{} // a place for each reader of the past
	badOnce  atomic.Bool
}

// watchLog is what Kafka says of client-state.
type watchLog struct {
	topic         kadm.TopicID
	starts, ends  []int64 // ends: of what is committed
	compactionLag time.Duration
	asked         time.Time
}

// run reads until ctx ends.
func (s *watchSource) run(ctx context.Context) {
	said := ""
	for ctx.Err() == nil {
		began := time.Now()
		err := s.read(ctx)
		if ctx.Err() != nil {
			return
		}
		s.hub.missing(err)
		if time.Since(began) > watchCheck {
			said = ""
		}
		if text := err.Error(); text != said {
			said = text
			s.log.Warn("transitions are not read; watches wait, and the next attempt is made every second", service.KeyError, err)
		}
		timer := time.NewTimer(watchRetry)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// opts returns the options of a consumer of client-state from certain offsets. Control records are kept: they are part of the way to the
// end, which would never be reached if one is the last record.
func (s *watchSource) opts(from []int64, maxBytes int32) ([]kgo.Opt, error) {
	opts, err := s.cfg.SharedOpts(s.kafkaLog)
	if err != nil {
		return nil, err
	}
	at := make(map[int32]kgo.Offset, len(from))
	for p, offset := range from {
		at[int32(p)] = kgo.NoResetOffset().At(offset)
	}
	return append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(), kgo.FetchMaxBytes(maxBytes),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicClientState: at})), nil
}

// consume returns a client that reads from certain offsets.
func (s *watchSource) consume(from []int64, maxBytes int32) (*kgo.Client, error) {
	opts, err := s.opts(from, maxBytes)
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("create the consumer of %s: %w", eventlog.TopicClientState, err)
	}
	return cl, nil
}

// read reads from where the hub is, or fills it if its log is another.
func (s *watchSource) read(ctx context.Context) error {
	opts, err := s.cfg.SharedOpts(s.kafkaLog)
	if err != nil {
		return err
	}
	admin, err := kgo.NewClient(opts...)
	if err != nil {
		return fmt.Errorf("create the kafka client: %w", err)
	}
	defer admin.Close()
	log, err := s.describe(ctx, admin)
	if err != nil {
		return err
	}
	at, fill := s.from(log)
	reader, err := s.consume(at.next, maxHubFetch)
	if err != nil {
		return err
	}
	defer reader.Close()
	s.client.Store(admin)
	defer s.client.Store(nil)
	tail := &watchTail{source: s, client: reader, at: at, versions: make([]versions, len(at.next))}
	if fill {
		if err := tail.fill(ctx, log); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		cancel(s.check(ctx, admin, log.topic, len(at.next)))
	}()
	err = tail.follow(ctx)
	cancel(nil)
	<-checked
	if cause := context.Cause(ctx); errors.Is(cause, errTopicChanged) {
		err = cause
	}
	if errors.Is(err, errTopicChanged) || errors.Is(err, errLogCut) {
		s.hub.end(err)
	}
	return err
}

// from returns where to begin: where the hub is, or, with fill, as many records before the end as it may keep.
func (s *watchSource) from(log *watchLog) (at watchPosition, fill bool) {
	s.hub.mu.RLock()
	defer s.hub.mu.RUnlock()
	if h := &s.hub.head; s.hub.epoch != nil && h.topic == log.topic && len(h.next) == len(log.ends) {
		goesOn := true
		for p, offset := range h.next {
			goesOn = goesOn && offset >= log.starts[p]
		}
		if goesOn {
			return watchPosition{topic: log.topic, timeMS: h.timeMS, next: slices.Clone(h.next)}, false
		}
	}
	at = watchPosition{topic: log.topic, timeMS: log.asked.UnixMilli(), next: make([]int64, len(log.ends))}
	each := int64(max(1, s.cfg.WatchBuffer/len(log.ends)))
	for p, end := range log.ends {
		at.next[p] = max(log.starts[p], end-each)
	}
	return at, true
}

// check looks at the topic until it is not the same any more, or ctx ends.
func (s *watchSource) check(ctx context.Context, admin *kgo.Client, topic kadm.TopicID, partitions int) error {
	tick := time.NewTicker(watchCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		log, err := s.describe(ctx, admin)
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition), err == nil && (log.topic != topic || len(log.ends) != partitions):
			return errTopicChanged
		case err == nil:
			s.hub.confirm(log.ends, log.asked)
		case ctx.Err() == nil:
			s.log.Debug("kafka was not asked for the ends of client-state", service.KeyError, err)
		}
	}
}

// describe asks Kafka about the topic.
func (s *watchSource) describe(ctx context.Context, cl *kgo.Client) (*watchLog, error) {
	ctx, cancel := context.WithTimeout(ctx, watchAsk)
	defer cancel()
	log := &watchLog{asked: time.Now(), compactionLag: minCompactionLag}
	req := kmsg.NewPtrMetadataRequest()
	t := kmsg.NewMetadataRequestTopic()
	t.Topic = kmsg.StringPtr(eventlog.TopicClientState)
	req.Topics = append(req.Topics, t)
	resp, err := req.RequestWith(ctx, cl)
	if err == nil && len(resp.Topics) == 1 {
		err = kerr.ErrorForCode(resp.Topics[0].ErrorCode)
	}
	if err != nil || len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) == 0 {
		return nil, fmt.Errorf("ask kafka for the partitions of %s; the materializer or bridge creates the topic: %w", eventlog.TopicClientState,
			cmp.Or(err, errors.New("there are none")))
	}
	log.topic = resp.Topics[0].TopicID
	admin := kadm.NewClient(cl)
	partitions := len(resp.Topics[0].Partitions)
	if log.starts, err = offsetsOf(ctx, admin.ListStartOffsets, partitions); err != nil {
		return nil, err
	}
	if log.ends, err = offsetsOf(ctx, admin.ListCommittedOffsets, partitions); err != nil {
		return nil, err
	}
	configs, err := admin.DescribeTopicConfigs(ctx, eventlog.TopicClientState)
	if err != nil {
		return nil, fmt.Errorf("ask kafka for the configuration of %s: %w", eventlog.TopicClientState, err)
	}
	for _, topic := range configs {
		for _, c := range topic.Configs {
			if ms, err := strconv.ParseInt(c.MaybeValue(), 10, 64); err == nil && c.Key == "min.compaction.lag.ms" {
				log.compactionLag = max(minCompactionLag, time.Duration(min(ms, maxLagMS))*time.Millisecond)
			}
		}
	}
	return log, nil
}

// maxLagMS keeps a limit within a Duration.
const maxLagMS = int64(100 * 365 * 24 * time.Hour / time.Millisecond)

// offsetsOf lists offsets of all partitions.
func offsetsOf(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), partitions int) ([]int64, error) {
	listed, err := list(ctx, eventlog.TopicClientState)
	if err != nil {
		return nil, fmt.Errorf("list the offsets of %s: %w", eventlog.TopicClientState, err)
	}
	offsets := make([]int64, partitions)
	for p := range offsets {
		o, ok := listed.Lookup(eventlog.TopicClientState, int32(p))
		if !ok {
			return nil, fmt.Errorf("list the offsets of %s: kafka does not know partition %d", eventlog.TopicClientState, p)
		}
		if o.Err != nil {
			return nil, fmt.Errorf("list the offsets of %s partition %d: %w", eventlog.TopicClientState, p, o.Err)
		}
		offsets[p] = o.Offset
	}
	return offsets, nil
}

// bounds asks Kafka for the log's bounds, once for all who ask at the same time.
func (s *watchSource) bounds(ctx context.Context) (*watchLog, error) {
	cl := s.client.Load()
	if cl == nil {
		return nil, errors.New("kafka is not being read")
	}
	asked := s.asking.DoChan("", func() (any, error) { return s.describe(context.WithoutCancel(ctx), cl) })
	select {
	case r := <-asked:
		if log, ok := r.Val.(*watchLog); ok && r.Err == nil {
			return log, nil
		}
		return nil, r.Err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// watchTail reads the end of the log.
type watchTail struct {
	source   *watchSource
	client   *kgo.Client
	at       watchPosition
	versions []versions
	state    eventlog.ClientState
}

// fill reads up to the ends and begins the hub's epoch.
func (t *watchTail) fill(ctx context.Context, log *watchLog) error {
	start := watchPosition{topic: t.at.topic, timeMS: t.at.timeMS, next: slices.Clone(t.at.next)}
	var entries []*watchEntry
	for !reached(t.at.next, log.ends) {
		within, cancel := context.WithTimeout(ctx, fillSilence)
		fetches := t.client.PollFetches(within)
		silent := within.Err() != nil
		cancel()
		if err := watchFetchError(fetches); err != nil {
			return err
		}
		got := t.decode(fetches)
		if entries = append(entries, got...); silent && ctx.Err() == nil && fetches.NumRecords() == 0 {
			t.source.log.Warn("the ends of client-state were not reached; going on with what is there")
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	// The partitions come one after the other: by time, a position of one process is found again in another.
	latest := make([]int64, len(t.at.next))
	for _, e := range entries {
		latest[e.partition] = max(latest[e.partition], e.timeMS)
		e.timeMS = latest[e.partition]
	}
	slices.SortStableFunc(entries, func(a, b *watchEntry) int { return int(min(max(a.timeMS-b.timeMS, -1), 1)) })
	t.source.hub.begin(start, t.at, log.compactionLag, entries)
	return nil
}

func reached(at, ends []int64) bool {
	for p, end := range ends {
		if at[p] < end {
			return false
		}
	}
	return true
}

// follow reads on until ctx ends or reading fails.
func (t *watchTail) follow(ctx context.Context) error {
	for ctx.Err() == nil {
		fetches := t.client.PollFetches(ctx)
		if err := watchFetchError(fetches); err != nil {
			return err
		}
		entries := t.decode(fetches)
		for _, e := range entries {
			// What is still to be read may be older than when this was: only check knows when nothing was.
			e.timeMS = 0
		}
		t.source.hub.append(entries, t.at)
	}
	return ctx.Err()
}

// decode returns the entries of what was fetched, and moves the position past it.
func (t *watchTail) decode(fetches kgo.Fetches) []*watchEntry {
	var entries []*watchEntry
	fetches.EachRecord(func(r *kgo.Record) {
		if e := t.source.decode(r, &t.state, &t.versions[r.Partition]); e != nil {
			entries = append(entries, e)
		}
		t.at.next[r.Partition] = r.Offset + 1
	})
	return entries
}

// decode returns the entry of a record, nil if there is none. Its time is the record's own, which must not be in the future.
func (s *watchSource) decode(r *kgo.Record, state *eventlog.ClientState, v *versions) *watchEntry {
	e, err := decodeWatch(r, state)
	if err != nil {
		s.metrics.badRecords.Inc()
		if s.badOnce.CompareAndSwap(false, true) {
			s.log.Error("a record of client-state is not of the contract; it, and others that only a metric counts, are passed over",
				service.KeyPartition, r.Partition, service.KeyOffset, r.Offset, service.KeyError, err)
		}
		return nil
	}
	if e == nil || v.copied(e) {
		return nil
	}
	e.timeMS = min(time.Now().UnixMilli(), r.Timestamp.UnixMilli())
	return e
}

// watchFetchError returns what was wrong with a poll, other than that it was interrupted.
func watchFetchError(fetches kgo.Fetches) error {
	for _, e := range fetches.Errors() {
		switch {
		case errors.Is(e.Err, context.Canceled), errors.Is(e.Err, context.DeadlineExceeded), errors.Is(e.Err, kgo.ErrClientClosed):
			continue
		case errors.Is(e.Err, kerr.OffsetOutOfRange):
			return fmt.Errorf("%w: partition %d: %w", errLogCut, e.Partition, e.Err)
		case errors.Is(e.Err, kerr.UnknownTopicID):
			return fmt.Errorf("%w: %w", errTopicChanged, e.Err)
		}
		return fmt.Errorf("read %s partition %d: %w", e.Topic, e.Partition, e.Err)
	}
	return nil
}
