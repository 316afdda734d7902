package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const (
	// maxTransaction bounds the records of one transaction: consumers see them together, and the outbox shrinks by them. A chunk that has
	// more is published alone.
	maxTransaction = 16 << 10
	// publishInterval is the least time from the beginning of a transaction of a partition to the next, unless that is full. A transaction
	// costs Kafka several synced writes whatever its size, at the expense of the facts that come in meanwhile; the first transition after a
	// pause does not wait.
	publishInterval = 200 * time.Millisecond
	// publishShare is how many transactions all partitions together have under way at a time, on average, apart from full ones, which wait for
	// nothing: where transactions take long, as on a busy disk, or partitions are many, each has fewer. publishMaxInterval bounds what that adds to the time until others see
	// a transition.
	publishShare       = 0.5
	publishMaxInterval = 2 * time.Second
	// publishLinger lets record batches fill up. Nothing waits that long: the end of a transaction flushes.
	publishLinger = time.Second
	// transactionTimeout is how long Kafka keeps a transaction open whose publisher is silent. It is long, since the next owner of the
	// partition ends it anyway, and short interruptions of Kafka should cost nothing.
	transactionTimeout = 5 * time.Minute
)

// errFenced is returned when another process publishes the partition: nothing more may be published before the group says again whose it is.
var errFenced = errors.New("publisher is fenced")

// publisher publishes a partition's outbox, in order, in transactions. Its transactional ID is the partition's, whoever owns it, so
// that a publisher fences the one before it.
type publisher struct {
	p      *partition
	client *kgo.Client
	log    *slog.Logger

	records []kgo.Record // of a transaction
	mu      sync.Mutex
	refused error // the first of a transaction's
}

// newPublisher returns a publisher of a partition. From then on no former one can publish, and no transaction of it is open.
func newPublisher(ctx context.Context, p *partition) (*publisher, error) {
	cfg := p.parts.cfg.Kafka
	opts, err := cfg.SharedOpts(p.parts.kafkaLog)
	if err != nil {
		return nil, err
	}
	producing, err := cfg.BulkProducerOpts()
	if err != nil {
		return nil, err
	}
	cl, err := kgo.NewClient(append(append(opts, producing...),
		kgo.TransactionalID("presence-publisher-"+strconv.Itoa(int(p.id))),
		kgo.TransactionTimeout(transactionTimeout),
		kgo.RecordPartitioner(kgo.ManualPartitioner()),
		kgo.ProducerLinger(publishLinger),
		// The client must not make a transaction wait for room.
		kgo.MaxBufferedRecords(1<<20),
	)...)
	if err != nil {
		return nil, fmt.Errorf("create the publisher of partition %d: %w", p.id, err)
	}
	if _, _, err := cl.ProducerID(ctx); err != nil {
		cl.Close()
		return nil, publishError(fmt.Errorf("fence the former publisher of partition %d: %w", p.id, err))
	}
	return &publisher{p: p, client: cl, log: p.log}, nil
}

// seal ends the topic with the marker of an aborted transaction, so that a reader sees its end. A Kafka that crashed may have ended a former
// transaction without one: franz-go's fake, which is the embedded Kafka, recovers that way, and takes the records of such a transaction for
// committed once a later one of the same producer commits. An abort of ours settles them. It returns the offset of its record, which nobody sees.
func (u *publisher) seal(ctx context.Context) (int64, error) {
	offset, err := u.abortOne(ctx)
	if err != nil && ctx.Err() == nil {
		err = publishError(err)
	}
	return offset, err
}

func (u *publisher) abortOne(ctx context.Context) (int64, error) {
	if err := u.client.BeginTransaction(); err != nil {
		return 0, fmt.Errorf("begin the transaction that ends %s partition %d: %w", eventlog.TopicClientState, u.p.id, err)
	}
	r := &kgo.Record{Topic: eventlog.TopicClientState, Partition: u.p.id, Key: []byte(eventlog.CheckpointKey)}
	if err := u.client.ProduceSync(ctx, r).FirstErr(); err != nil {
		return 0, fmt.Errorf("produce the end of %s partition %d: %w", eventlog.TopicClientState, u.p.id, err)
	}
	if err := u.client.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return 0, fmt.Errorf("abort the transaction that ends %s partition %d: %w", eventlog.TopicClientState, u.p.id, err)
	}
	return r.Offset, nil
}

func (u *publisher) close() { u.client.Close() }

// run publishes until ctx ends.
func (u *publisher) run(ctx context.Context) error {
	due := time.Now()
	for {
		chunks, full, err := u.next(ctx, due)
		if err != nil {
			return nil
		}
		began := time.Now()
		// What is told to others must not be undone by a loss of power.
		if err := u.p.parts.store.Sync(); err != nil {
			return err
		}
		if err := u.load(chunks); err != nil {
			return err
		}
		if err := u.publish(ctx); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return publishError(fmt.Errorf("publish %d records to %s partition %d: %w", len(u.records), eventlog.TopicClientState, u.p.id, err))
		}
		b := u.p.parts.store.NewBatch(u.p.id)
		b.DeleteOutbox(chunks[0].Seq, chunks[len(chunks)-1].Seq)
		b.PutChangelog(u.records[len(u.records)-1].Offset + 1)
		if err := b.Commit(); err != nil {
			return err
		}
		if u.p.outbox.remove(len(chunks)) {
			if err := u.p.parts.store.Reclaim(); err != nil {
				return err
			}
		}
		u.p.metrics.published.Add(float64(len(u.records)))
		if due = began.Add(publishInterval); !full {
			due = u.p.parts.pace.due(began, time.Since(began))
		}
	}
}

// pace is what the publishers of all partitions share of their time.
type pace struct {
	mu   sync.Mutex
	busy time.Time // until when the transactions so far take up the share
}

// due returns when the next transaction of a partition is due after one that began and took so long.
func (c *pace) due(began time.Time, took time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	first, last := began.Add(publishInterval), began.Add(publishMaxInterval)
	if c.busy.Before(began) {
		c.busy = began
	}
	if c.busy = c.busy.Add(time.Duration(float64(took) / publishShare)); c.busy.After(last) {
		c.busy = last
	}
	if c.busy.Before(first) {
		return first
	}
	return c.busy
}

// next returns what the next transaction publishes: whatever there is when it is due, or a full transaction before.
func (u *publisher) next(ctx context.Context, due time.Time) (chunks []store.Chunk, full bool, err error) {
	if _, err := u.p.outbox.head(ctx, 1); err != nil {
		return nil, false, err
	}
	early, cancel := context.WithDeadline(ctx, due)
	defer cancel()
	full = u.p.outbox.atLeast(early, maxTransaction) == nil
	if ctx.Err() != nil {
		return nil, false, ctx.Err()
	}
	chunks, err = u.p.outbox.head(ctx, maxTransaction)
	return chunks, full, err
}

// load makes records of chunks.
func (u *publisher) load(chunks []store.Chunk) (err error) {
	clear(u.records)
	if u.records = u.records[:0]; cap(u.records) > maxTransaction/4 && len(chunks) == 1 {
		u.records = nil // the memory of a large transaction is kept for the next large one only
	}
	for i := range chunks {
		c := chunks[i]
		if c.Released() {
			if c, err = u.p.parts.store.ReadChunk(u.p.id, &c); err != nil {
				return err
			}
		}
		if u.records, err = c.AppendRecords(u.records); err != nil {
			return fmt.Errorf("read chunk %d of the outbox of partition %d: %w", chunks[i].Seq, u.p.id, err)
		}
	}
	return nil
}

// publish returns once the records are committed. After an error it is not known if they are, and the client may still hold them.
func (u *publisher) publish(ctx context.Context) error {
	if err := u.client.BeginTransaction(); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	for i := range u.records {
		r := &u.records[i]
		r.Topic, r.Partition = eventlog.TopicClientState, u.p.id
		u.client.Produce(ctx, r, u.answered)
	}
	if err := u.client.Flush(ctx); err != nil {
		return fmt.Errorf("wait for acknowledgements: %w", err)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refused != nil {
		return fmt.Errorf("produce: %w", u.refused)
	}
	if err := u.client.EndTransaction(ctx, kgo.TryCommit); err != nil {
		return fmt.Errorf("commit a transaction: %w", err)
	}
	return nil
}

// answered takes Kafka's answer to a record.
func (u *publisher) answered(_ *kgo.Record, err error) {
	if err == nil {
		return
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.refused == nil {
		u.refused = err
	}
}
