package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// anonymous is the source of a deletion that no account asked for.
	anonymous = "api"
	// maxForgetting bounds the deletions that wait for Kafka.
	maxForgetting = 256
)

// DeleteClient implements the call of both transports. It writes one record, the service's only write, and waits until that is applied.
func (a *answers) DeleteClient(ctx context.Context, req *presencev1.DeleteClientRequest) (*presencev1.DeleteClientResponse, error) {
	if err := eventlog.ValidClientID(req.GetClientId()); err != nil {
		return nil, invalid("client_id", err.Error())
	}
	cluster, err := a.validCluster(req.GetCluster())
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, a.cfg.RequestTimeout)
	defer cancel()
	now := time.Now()
	f := &presence.Fact{
		Kind: presence.Forgotten, Cluster: cluster, ClientID: req.GetClientId(), AsOfMS: a.asOfMS(ctx, cluster, req.GetClientId(), now), TimeMS: now.UnixMilli(),
		ReceivedMS: now.UnixMilli(), Source: anonymous,
	}
	if name := passOf(ctx).name; name != "" {
		f.Source = name
	}
	f.SetID()
	r, err := a.forgetter.write(ctx, f)
	if err != nil {
		return nil, err
	}
	answer := &presencev1.DeleteClientResponse{
		ClientId: req.GetClientId(), Cluster: cluster, AsOf: timestamp(f.AsOfMS), Partition: r.Partition, Offset: r.Offset,
		EventsGoneBy: a.forgetter.goneBy(ctx, now),
	}
	states, e, err := a.readFor(ctx, cluster, req.GetClientId(), &r.Offset, detail{})
	if err != nil {
		// The deletion is in the log, so it will be applied: that is no error.
		a.log.DebugContext(ctx, "deletion not awaited", service.KeyPartition, r.Partition, service.KeyOffset, r.Offset, service.KeyError, err)
		answer.Freshness = a.clock().freshness(nil, nil, "")
		answer.Freshness.Partition = r.Partition
		return answer, nil
	}
	answer.Applied, answer.Freshness = true, a.freshness(states, e)
	return answer, nil
}

// maxAheadMS is how far a broker node's clock may be ahead for its connections to be forgotten, too. It is short: until then connections to nodes
// whose clocks are right are not kept either.
const maxAheadMS = 10_000

// asOfMS is up to when a client is to be forgotten: now, or later where the clock of a broker node is ahead, so that what is known of the
// client now does not outlive its deletion. If nobody says in a part of the time what that is, it is now: the record can be written without.
func (a *answers) asOfMS(ctx context.Context, cluster, clientID string, now time.Time) int64 {
	nowMS := now.UnixMilli()
	ctx, cancel := context.WithTimeout(ctx, a.cfg.RequestTimeout/4)
	defer cancel()
	_, e, err := a.readFor(ctx, cluster, clientID, nil, detail{})
	if err != nil {
		return nowMS
	}
	known := max(e.GetSinceMs(), e.GetTransitionTimeMs(), e.GetConnection().GetConnectedAtMs())
	return max(nowMS, min(known, nowMS+maxAheadMS))
}

// forgetter writes forgotten records. It connects to Kafka for the first one.
type forgetter struct {
	cfg Config
	log *slog.Logger

	mu     sync.Mutex
	kafka  *kgo.Client
	closed bool

	sent atomic.Int64 // produce requests that reached a socket
}

func newForgetter(cfg Config, log *slog.Logger) *forgetter { return &forgetter{cfg: cfg, log: log} }

var errNoKafka = status.Error(codes.Unimplemented, "this service has no Kafka to write a deletion to; set --kafka-brokers")

// client returns the Kafka client.
func (f *forgetter) client() (*kgo.Client, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return nil, unavailable("the service is stopping; ask again")
	case f.kafka != nil:
		return f.kafka, nil
	case len(f.cfg.Brokers) == 0:
		return nil, errNoKafka
	}
	opts, err := f.cfg.Opts(f.log)
	if err != nil {
		return nil, fmt.Errorf("configure the kafka client: %w", err)
	}
	// Query asks Kafka for the number of partitions, also to find owners.
	cfg := f.cfg.Config
	cfg.Partitions = 0
	opts = append(opts, cfg.ProducerOpts()...)
	opts = append(opts, kgo.WithHooks(f), kgo.MaxBufferedRecords(maxForgetting))
	if f.kafka, err = kgo.NewClient(opts...); err != nil {
		return nil, fmt.Errorf("create the kafka client: %w", err)
	}
	return f.kafka, nil
}

// close gives the connections to Kafka back. Records that are still waiting get an error.
func (f *forgetter) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.kafka != nil {
		f.kafka.Close()
	}
}

// OnBrokerWrite counts the produce requests that may have reached Kafka.
func (f *forgetter) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, written int, _, _ time.Duration, _ error) {
	if key == kmsg.Produce.Int16() && written > 0 {
		f.sent.Add(1)
	}
}

// write returns the record as Kafka has it. The error says whether it may have been written all the same.
func (f *forgetter) write(ctx context.Context, fact *presence.Fact) (*kgo.Record, error) {
	kafka, err := f.client()
	if err != nil {
		return nil, f.failure(ctx, err, false)
	}
	// What has not been handed to the client cannot be written, of the rest nobody knows once there is no time left to wait.
	if err := kafka.Ping(ctx); err != nil {
		return nil, f.failure(ctx, err, false)
	}
	before := f.sent.Load()
	type result struct {
		record *kgo.Record
		err    error
	}
	// The client keeps a record whose request is on its way, whatever becomes of the context.
	done := make(chan result, 1)
	kafka.TryProduce(ctx, eventlog.FactRecord(fact, f.cfg.Format()), func(r *kgo.Record, err error) { done <- result{r, err} })
	select {
	case r := <-done:
		if r.err != nil {
			return nil, f.failure(ctx, r.err, f.sent.Load() != before)
		}
		return r.record, nil
	case <-ctx.Done():
		return nil, f.failure(ctx, ctx.Err(), true)
	}
}

// failure says what became of a deletion.
func (f *forgetter) failure(ctx context.Context, err error, maybe bool) error {
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	if errors.Is(err, kgo.ErrMaxBuffered) {
		return retryLater(codes.ResourceExhausted, "as many deletions wait for Kafka as may; nothing was written; ask again", retryDelay)
	}
	if refused := (*kerr.Error)(nil); errors.As(err, &refused) && !refused.Retriable {
		maybe = false
	}
	f.log.WarnContext(ctx, "deletion not confirmed by kafka", "may_be_written", maybe, service.KeyError, err)
	if maybe {
		return unavailable("Kafka did not confirm the deletion in time: it may have been written, and will be applied then; ask again, which does no harm")
	}
	return unavailable("the deletion was not written: Kafka could not be reached or refused it; ask again, or see the service's log")
}

// goneBy returns when client-events holds no record of before now any more; nil if it keeps records without a limit of time, or if Kafka
// does not tell. Kafka deletes segments whole, once their latest record has outlived the retention: the first record of one lives
// longer than that by as long as a segment is written to.
func (f *forgetter) goneBy(ctx context.Context, now time.Time) *timestamppb.Timestamp {
	kafka, err := f.client()
	if err != nil {
		return nil
	}
	configs, err := kadm.NewClient(kafka).DescribeTopicConfigs(ctx, eventlog.TopicClientEvents)
	var topic kadm.ResourceConfig
	if err == nil {
		topic, err = configs.On(eventlog.TopicClientEvents, nil)
	}
	if err = errors.Join(err, topic.Err); err != nil {
		f.log.WarnContext(ctx, "kafka does not tell how long it keeps events", service.KeyError, err)
		return nil
	}
	var retention, segment int64
	for _, c := range topic.Configs {
		var into *int64
		switch c.Key {
		case "retention.ms":
			into = &retention
		case "segment.ms":
			into = &segment
		default:
			continue
		}
		if *into, err = strconv.ParseInt(c.MaybeValue(), 10, 64); err != nil {
			f.log.WarnContext(ctx, "kafka tells a time that is none", "config", c.Key, service.KeyError, err)
			return nil
		}
	}
	// Times beyond the year 9999 are as good as none.
	const most = 250_000_000_000_000
	if retention <= 0 || retention > most || segment < 0 || segment > most {
		return nil
	}
	return timestamp(now.UnixMilli() + retention + segment)
}
