package materializer

import (
	"context"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// Reasons of dead letters, as counted and as their header says.
const (
	reasonBadRecord      = "bad_record"      // not of the contract; the detail names the field
	reasonKeyMismatch    = "key_mismatch"    // the key names another client than the value
	reasonWrongPartition = "wrong_partition" // the key belongs to another partition
)

// deadLetters publishes what can never be applied, before the offset that passes it is committed.
type deadLetters struct {
	client  *kgo.Client
	metrics *metrics
}

// poisonOf returns the dead letter of a record of Kafka.
func poisonOf(r *kgo.Record, reason, detail string) *eventlog.DeadLetter {
	d := &eventlog.DeadLetter{
		Source: eventlog.SourceKafka, Topic: r.Topic, Partition: r.Partition, Offset: r.Offset, Reason: reason, Detail: detail,
		ReceivedMS: r.Timestamp.UnixMilli(), Payload: r.Value, Key: r.Key, Headers: r.Headers,
	}
	if cluster, _, err := eventlog.SplitClientKey(r.Key); err == nil && eventlog.ValidCluster(cluster) == nil {
		d.Cluster = cluster
	}
	return d
}

// send returns once Kafka has acknowledged all.
func (d *deadLetters) send(ctx context.Context, letters []*eventlog.DeadLetter) error {
	if len(letters) == 0 {
		return nil
	}
	records := make([]*kgo.Record, len(letters))
	for i, l := range letters {
		records[i] = eventlog.DeadLetterRecord(l)
	}
	if err := d.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return away(fmt.Errorf("publish %d dead letters of %s: %w", len(letters), letters[0].Topic, err))
	}
	for _, l := range letters {
		d.metrics.deadLetters.WithLabelValues(l.Reason).Inc()
	}
	return nil
}
