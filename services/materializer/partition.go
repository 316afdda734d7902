package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// How many records are taken from the queue at a time, by a partition that catches up and by one that has. chunkFacts are decoded at a time where there
// are no rows to read.
const (
	catchUpBatch = 8 << 10
	liveBatch    = 1 << 10
	chunkFacts   = 256
)

// drainTime bounds how long a partition that is given up in order may take to publish what is left.
const drainTime = 1500 * time.Millisecond

// Why a partition is given up.
var (
	errGivenUp = errors.New("partition is given up")          // in order: the outbox is drained
	errLost    = errors.New("partition is another process's") // at once: nothing may be published any more
)

// partition is one owned partition of client-events: its fold, its sweeps and its checkpoints, all in one goroutine, and beside it
// the publisher of its outbox.
type partition struct {
	id      int32
	parts   *parts
	log     *slog.Logger
	queue   *queue
	outbox  *outbox
	metrics *partitionMetrics

	progress progress
	indexed  atomic.Bool   // the indexes are what the rows say
	building atomic.Int64  // how many rows are in indexes that are being built
	repairs  chan struct{} // holds the wish that they be built anew
	ended    atomic.Bool   // run has returned: what is read stands still
	stops    *stops

	// What follows belongs to the goroutine of run.
	serve   func(bool) // whether rows may be read
	meta    store.Meta
	indexes *store.Indexes // set by acquire
	folds   fold
	// loadRows is from how many rows on a set of a partition that catches up is written as tables, which costs some synced writes.
	// spillFrom is how many bytes of records its set has in memory.
	loadRows, spillFrom int
	turn                bool  // it is among those that catch up, see turns
	waits               turns // nil unless it waits for its turn; then nothing is folded
	turnPatience        time.Duration
	sweep               sweep
	// indexing is when the building of the indexes began, zero if they are not being built.
	indexing time.Time
	expiry   expiry
	// historyNext: the history begins with the next fact.
	historyNext bool
}

// parts is what all partitions share.
type parts struct {
	cfg     Config
	store   *store.Store
	nodes   *nodes
	fetcher *fetcher
	turns   turns
	pace    pace
	spilled atomic.Int64 // bytes of all partitions' outboxes that are in the store only, or will be
	dead    *deadLetters
	adm     *kadm.Client
	metrics *metrics
	log     *slog.Logger
	// kafkaLog is of all Kafka clients.
	kafkaLog *eventlog.ClientLog

	eventsTopic, stateTopic [16]byte // IDs of client-events and client-state
}

func newPartition(id int32, ps *parts) *partition {
	p := &partition{id: id, parts: ps, log: ps.log.With(service.KeyPartition, id), metrics: ps.metrics.partition()}
	p.queue = newQueue(&p.progress, ps.fetcher.signal)
	p.outbox, p.loadRows, p.spillFrom, p.turnPatience = newOutbox(), loadRows, spillOutbox, turnPatience
	p.outbox.total = &ps.spilled
	p.repairs = make(chan struct{}, 1)
	p.stops = newStops()
	p.folds.init()
	return p
}

// run owns the partition until ctx ends, with errGivenUp or errLost as its cause. It calls serve when the rows may be read at the offset of this
// partition, and before it changes rows so that they may not be read at the one of its predecessor any more. After an error that isAway it may be run
// again, as a new partition.
func (p *partition) run(ctx context.Context, serve func(bool)) (err error) {
	p.serve = serve
	defer p.ended.Store(true)
	defer p.stops.end()
	defer p.outbox.end()
	// A set that is open when the partition is given up in order is committed after work has ended: see finish.
	defer func() { err = errors.Join(err, p.folds.closeSpill()) }()
	var pub *publisher
	if p.parts.cfg.Publish {
		if pub, err = newPublisher(ctx, p); err != nil {
			return ignoreCancel(ctx, err)
		}
		defer pub.close()
	}
	if err := p.acquire(ctx, pub); err != nil {
		return ignoreCancel(ctx, err)
	}
	p.serve(true)

	// The publisher outlives ctx while the partition is given up in order.
	hard, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	published := make(chan error, 1)
	go func() {
		if pub == nil {
			<-hard.Done()
			published <- nil
			return
		}
		err := pub.run(hard)
		cancel(err)
		published <- err
	}()
	// A publisher that stops stops the fold.
	work, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(hard, stop)()

	err = p.work(work)
	p.parts.fetcher.remove(p.id, p.queue)
	if err == nil && hard.Err() == nil && errors.Is(context.Cause(ctx), errGivenUp) {
		err = p.finish(hard)
	}
	cancel(errGivenUp)
	return graver(err, <-published)
}

// unserve is called before rows change that the partition's predecessor in this process may still be read with.
func (p *partition) unserve() {
	if p.serve != nil {
		p.serve(false)
	}
}

// acquire brings the partition's rows up to date with what was published by others, and sets the offset to go on from. pub is nil if this
// replica does not publish.
func (p *partition) acquire(ctx context.Context, pub *publisher) error {
	select {
	case <-p.parts.nodes.loaded:
	case <-ctx.Done():
		return ctx.Err()
	}
	began := time.Now()
	meta, found, err := p.parts.store.Meta(p.id)
	if err != nil {
		return err
	}
	p.meta = meta
	p.noteAllowance()
	if p.indexes, err = p.parts.store.Indexes(p.id); err != nil {
		return err
	}
	first, end, err := bounds(ctx, p.parts.adm, eventlog.TopicClientEvents, p.id)
	if err != nil {
		return err
	}
	anew, err := p.republishes(found)
	if err != nil {
		return err
	}
	if !found || p.parts.cfg.Publish {
		if err := p.catchUpChangelog(ctx, pub, found, first); err != nil {
			return err
		}
	}
	if p.meta.Next < first || p.meta.Next > end {
		return fmt.Errorf("%w: %s partition %d goes from offset %d to %d, the store in %s goes on from %d: retention passed, or the topic was cut; "+
			"empty data-dir to begin with the latest checkpoint, or raise the topic's retention",
			errOutOfRange, eventlog.TopicClientEvents, p.id, first, end, p.parts.cfg.DataDir, p.meta.Next)
	}
	if err := p.noteLogging(); err != nil {
		return err
	}
	if err := p.noteHistory(); err != nil {
		return err
	}
	if err := p.loadOutbox(); err != nil {
		return err
	}
	if anew {
		if err := p.markAll(); err != nil {
			return err
		}
	}
	if err := p.notePublished(); err != nil {
		return err
	}
	if p.folds.blank, err = p.parts.store.Blank(p.id); err != nil {
		return err
	}
	p.progress.start(p.meta.Next, p.meta.AppliedMS, end, time.Now().UnixMilli())
	p.log.Info("partition acquired", service.KeyOffset, p.meta.Next, service.KeyLag, end-p.meta.Next, service.KeyDuration, time.Since(began))
	return nil
}

// work folds, sweeps and writes checkpoints until ctx ends.
func (p *partition) work(ctx context.Context) error {
	checkpoints := time.NewTicker(p.parts.cfg.CheckpointInterval)
	defer checkpoints.Stop()
	// Whether a set that is open is due is also looked at while no records come.
	looks := time.NewTicker(minOpen)
	defer looks.Stop()
	reading := !p.far()
	if reading {
		p.read()
	} else {
		p.waits = p.parts.turns
	}
	defer p.endTurn()
	var records []*kgo.Record
	for ctx.Err() == nil {
		table := p.parts.nodes.table()
		p.sweep.aim(table, p.meta.SweptNode)
		// With a sweep under way, or indexes to build, there is always something to do: a chunk of it, after whatever else is due.
		p.aimExpiry()
		idle := closed
		if !p.sweep.active() && !p.expiry.active && !p.toIndex() || !p.folds.empty() {
			idle = nil
		}
		ready := p.queue.ready
		if p.waits != nil {
			ready = nil
		}
		p.queue.stalled.Store(p.waits != nil)
		var err error
		select {
		case <-ctx.Done():
			return nil
		case p.waits <- struct{}{}:
			p.waits, p.turn = nil, true
			if p.queue.stalled.Store(false); reading {
				p.parts.fetcher.nudge()
			} else {
				p.read()
			}
			reading = true
		case <-ready:
			limit := liveBatch
			if !p.progress.read().ready {
				limit = catchUpBatch
			}
			clear(records)
			records = p.queue.take(records[:0], limit, p.stops.below())
			err = p.fold(ctx, records)
		case <-looks.C:
		case <-checkpoints.C:
			if err = p.flush(); err == nil {
				err = p.checkpoint(ctx)
			}
		case <-p.repairs:
			if err = p.flush(); err == nil {
				err = p.indexes.Invalidate()
			}
			p.indexing = time.Time{} // it begins anew
		case <-p.stops.wake:
		case <-table.replaced:
		case <-idle:
		}
		if err == nil && p.due() {
			err = p.flush()
		}
		if err == nil && p.folds.empty() {
			err = p.afterCommit(ctx)
		}
		if err != nil {
			return ignoreCancel(ctx, err)
		}
	}
	return nil
}

// afterCommit does what needs all that was folded to be in the store.
func (p *partition) afterCommit(ctx context.Context) (err error) {
	if p.progress.read().ready {
		p.endTurn()
		p.waits = nil // it may have caught up with what it held when it gave its turn back
	}
	p.makeStops()
	if p.sweep.active() {
		err = p.sweepChunk(ctx)
	}
	if err == nil && p.expiry.active {
		err = p.expiryChunk(ctx)
	}
	if err == nil && p.toIndex() {
		err = p.indexChunk(indexRows)
	}
	return err
}

// closed is always ready to be received from.
var closed = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// finish writes the last checkpoint and waits until all is published, for a bounded time: what is left is published by the next owner,
// from here or from the log.
func (p *partition) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	p.outbox.rush()
	err := p.flush()
	if err == nil {
		err = p.checkpoint(ctx)
	}
	if err == nil {
		err = p.outbox.drained(ctx)
	}
	if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		p.log.Warn("partition is given up with unpublished records", service.KeyCount, p.outbox.depth())
		return nil
	}
	return err
}

// commit commits a batch with the partition's meta, makes the chunks known to the publisher and the progress to readers.
func (p *partition) commit(b *store.Batch, chunks []store.Chunk) error {
	for i := range chunks {
		chunks[i].Seq = p.outbox.nextSeq(i)
		b.PutOutbox(&chunks[i])
	}
	b.PutMeta(&p.meta)
	size, began := b.Len(), time.Now()
	p.progress.committing()
	if err := b.Commit(); err != nil {
		return err
	}
	p.parts.metrics.commitSeconds.Observe(time.Since(began).Seconds())
	p.parts.metrics.commitBytes.Observe(float64(size))
	p.outbox.push(chunks)
	p.metrics.add(&p.folds.counted)
	p.progress.advance(p.meta.Next, p.meta.AppliedMS)
	return nil
}

// room waits until the outbox has room: a publisher that falls behind slows the fold down. That may take as long as Kafka takes nothing, so what
// was folded is committed before: whoever waits for it, or asks how far the partition is, has nothing to do with publication.
func (p *partition) room(ctx context.Context) error {
	if !p.outbox.full() {
		return nil
	}
	if err := p.flush(); err != nil {
		return err
	}
	p.queue.stalled.Store(true)
	defer func() {
		p.queue.stalled.Store(false)
		p.parts.fetcher.nudge()
	}()
	return p.roomInTurn(ctx)
}
