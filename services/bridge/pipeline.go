package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// stallAfter is how long Kafka may take for a record before the spool takes over.
	stallAfter = 500 * time.Millisecond
	// maxInFlight bounds the records that Kafka has not acknowledged yet, outside the spool.
	maxInFlight = 10_000
	// maxQueued bounds the deliveries that wait for room in flight, beyond which the spool takes over, and those that wait while the
	// spool is synced, beyond which the broker has to wait.
	maxQueued = 20_000
	// drainBytes is how much is read from the spool at once.
	drainBytes = 1 << 20
	// drainRetry is the time between attempts to produce after Kafka has refused something.
	drainRetry = time.Second
	// flushTimeout is how long Kafka may take for what is in flight when the bridge stops; the spool takes the rest.
	flushTimeout = time.Second
	// steadyAfter is how long Kafka must take deliveries without a pause until it is told that it does again.
	steadyAfter = 10 * time.Second
)

// outcome says where a delivery has become durable.
type outcome uint8

const (
	inKafka outcome = iota
	inSpool
	dropped // at the spool's bound
	skipped // transient, and Kafka does not take it now
)

// delivery is what one MQTT message, or one tick, gives to Kafka.
type delivery struct {
	cluster    string
	records    []*kgo.Record
	receivedMS int64
	// transient deliveries are the whole latest value of something that will be asserted again: no use keeping them on disk.
	transient bool
	// upTo is how far the delivery may fill the spool, unless Kafka may have it.
	upTo limit
	// settle is called once, in the order of submission, when the records are durable or given up; nil for none. It must not block.
	settle func(outcome)

	sent    time.Time
	pending int // records that Kafka has not answered
	refusal refusal
}

// refusal is how many of a delivery's records Kafka refused, and each reason once: all have mostly the same one.
type refusal struct {
	records int
	reasons []string
}

func (r *refusal) add(records int, reasons ...string) {
	r.records += records
	for _, why := range reasons {
		if !slices.Contains(r.reasons, why) {
			r.reasons = append(r.reasons, why)
		}
	}
}

func (r *refusal) String() string { return strings.Join(r.reasons, "; ") }

// drops counts what was dropped at the spool's bound.
type drops struct {
	count        int64
	fromMS, toMS int64 // received times
}

// pipeline carries deliveries to Kafka in the order of submission, by way of the spool when Kafka is slow or down.
//
//	submit --> queue --+-- direct: Kafka answers, spool empty ------> Kafka
//	                   |                                               ^
//	                   +-- else: spool, synced --- drained in order ---+
//
// When Kafka has not answered for stallAfter, everything in flight and in the queue goes to the spool, and is settled: the broker must not
// wait, it would drop. What was in flight may still reach Kafka; the copies that come from the spool have the same IDs. The spool is
// drained only when nothing is in flight, so that the order holds from the first copy of each fact.
type pipeline struct {
	log     *slog.Logger
	client  *kgo.Client
	spool   *spool
	metrics *metrics
	// onDrop is called when deliveries of a cluster are dropped, before the broker is told that they need not come again; it returns once that is kept.
	onDrop func(cluster string, d drops) error
	// onDirect is called when Kafka takes deliveries again. It must not block.
	onDirect func()

	mu       sync.Mutex
	notFull  *sync.Cond
	queue    []*delivery
	answered []*delivery // whose last record Kafka has answered
	open     bool        // the topics are there
	closed   bool
	oldestMS int64 // received time of the oldest delivery that is not settled; 0: none
	wake     chan struct{}

	// Used by run alone.
	held      []*delivery // taken from the queue, waiting for room in flight
	inFlight  []*delivery // sent, not settled, in order
	records   int         // in inFlight
	limbo     limbo
	draining  *delivery // what was sent from the spool; nil if nothing is
	drainEnd  uint64    // sequence after the last of it
	retryAt   time.Time // when to send again after Kafka has refused something
	direct    bool
	turned    time.Time // when direct changed last
	told      telling
	spooledMS int64 // received time of the oldest fact in the spool; 0: not known
}

// telling is what the log says of Kafka: that it is slow or down at once, that it takes facts again when it has for a while, since one at its limit
// would be said to come and go.
type telling struct {
	began bool      // it was told that Kafka takes facts
	slow  time.Time // since when it is told to be slow or down; zero: it is not
	times int       // how often it was, since then
}

// limbo is what was in flight when the spool took over: it is in the spool, and Kafka's answer is still to come.
type limbo struct {
	deliveries int
	end        uint64 // sequence after the last of them in the spool; 0 if there are none
	failed     bool   // Kafka refused one of them
}

func newPipeline(client *kgo.Client, s *spool, m *metrics, log *slog.Logger) *pipeline {
	p := &pipeline{log: log, client: client, spool: s, metrics: m, wake: make(chan struct{}, 1)}
	p.notFull = sync.NewCond(&p.mu)
	return p
}

// submit takes a delivery. It blocks only while the disk is slower than the broker.
func (p *pipeline) submit(d *delivery) {
	p.mu.Lock()
	for len(p.queue) >= maxQueued && !p.closed {
		p.notFull.Wait()
	}
	p.queue = append(p.queue, d)
	if p.oldestMS == 0 {
		p.oldestMS = d.receivedMS
	}
	p.mu.Unlock()
	p.notify()
}

// start lets deliveries go to Kafka: the topics are there.
func (p *pipeline) start() {
	p.mu.Lock()
	p.open = true
	p.mu.Unlock()
	p.notify()
}

// durableMS returns the time up to which everything received is durable: nowMS if nothing waits.
func (p *pipeline) durableMS(nowMS int64) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.oldestMS != 0 {
		return min(p.oldestMS, nowMS)
	}
	return nowMS
}

func (p *pipeline) notify() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// run carries deliveries until ctx ends, then waits for Kafka for up to flushTimeout and leaves the rest in the spool. An error is one of the
// spool: what was received could not be kept.
func (p *pipeline) run(ctx context.Context) error {
	defer p.release()
	timer := time.NewTimer(stallAfter)
	defer timer.Stop()
	for {
		if err := p.step(time.Now()); err != nil {
			return err
		}
		timer.Reset(p.nextCheck())
		select {
		case <-p.wake:
		case <-timer.C:
		case <-ctx.Done():
			return p.flush(timer)
		}
	}
}

// nextCheck returns how long nothing needs to be done unless something happens.
func (p *pipeline) nextCheck() time.Duration {
	switch {
	case len(p.inFlight) > 0:
		return max(time.Until(p.inFlight[0].sent.Add(stallAfter)), time.Millisecond)
	case !p.direct && p.draining == nil && (!p.spool.empty() || time.Now().Before(p.retryAt)):
		return max(time.Until(p.retryAt), 10*time.Millisecond)
	case p.direct && !p.told.slow.IsZero():
		return max(time.Until(p.turned.Add(steadyAfter)), time.Millisecond)
	}
	return time.Minute
}

// release lets blocked submitters go: what they submit is not acknowledged, so the broker will send it again.
func (p *pipeline) release() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.notFull.Broadcast()
}

func (p *pipeline) flush(timer *time.Timer) error {
	deadline := time.Now().Add(flushTimeout)
	for {
		if err := p.step(time.Now()); err != nil {
			return err
		}
		if p.durableMS(math.MaxInt64) == math.MaxInt64 {
			return nil
		}
		if !time.Now().Before(deadline) {
			return p.spill()
		}
		timer.Reset(min(p.nextCheck(), time.Until(deadline)))
		select {
		case <-p.wake:
		case <-timer.C:
		}
	}
}

// step does what can be done without waiting.
func (p *pipeline) step(now time.Time) error {
	answered, open := p.take()
	failed, err := p.sort(answered, now)
	if err != nil {
		return err
	}
	if failed {
		p.retryAt = now.Add(drainRetry)
	}
	p.settleAnswered()
	stalled := len(p.inFlight) > 0 && now.Sub(p.inFlight[0].sent) >= stallAfter
	p.setDirect(open && !now.Before(p.retryAt) && !stalled && len(p.held) < maxQueued && p.limbo.deliveries == 0 && p.spool.empty(), now)
	p.tell(now)
	if p.direct {
		n := 0
		for n < len(p.held) && p.records < maxInFlight {
			p.send(p.held[n], now)
			n++
		}
		p.held = p.held[n:]
	} else {
		if err := p.spill(); err != nil {
			return err
		}
		if open && p.limbo.deliveries == 0 && p.draining == nil && !p.spool.empty() && !now.Before(p.retryAt) {
			if err := p.drain(); err != nil {
				return err
			}
		}
	}
	p.observe()
	return nil
}

// sort takes Kafka's answers. It reports whether one in flight was refused.
func (p *pipeline) sort(answered []*delivery, now time.Time) (failed bool, err error) {
	var refused refusal
	for _, d := range answered {
		switch {
		case d == p.draining:
			if err := p.drained(now); err != nil {
				return false, err
			}
		case d.sent.IsZero():
			p.limbo.deliveries--
			p.limbo.failed = p.limbo.failed || d.refusal.records > 0
		case d.refusal.records > 0:
			refused.add(d.refusal.records, d.refusal.reasons...)
		}
	}
	if p.limbo.deliveries == 0 && p.limbo != (limbo{}) {
		if !p.limbo.failed {
			// It has reached Kafka after all.
			if err := p.spool.remove(p.limbo.end); err != nil {
				return false, err
			}
		}
		p.limbo = limbo{}
	}
	if refused.records > 0 {
		p.log.Warn("kafka refused records; the spool takes over", service.KeyError, refused.String(), service.KeyCount, refused.records)
	}
	return refused.records > 0, nil
}

func (p *pipeline) take() (answered []*delivery, open bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) > 0 {
		p.held = append(p.held, p.queue...)
		p.queue = nil
		p.notFull.Broadcast()
	}
	answered, p.answered = p.answered, nil
	return answered, p.open
}

func (p *pipeline) setDirect(direct bool, now time.Time) {
	if p.direct == direct {
		return
	}
	p.direct, p.turned = direct, now
	if direct {
		p.onDirect()
	} else {
		p.told.times++
	}
}

// tell logs what there is to be told of Kafka.
func (p *pipeline) tell(now time.Time) {
	switch t := &p.told; {
	case !t.began && p.direct:
		t.began, t.times = true, 0
		p.log.Info("kafka takes facts directly")
	case t.began && !p.direct && t.slow.IsZero():
		t.slow = now
		p.log.Warn("kafka is slow or down; facts go to the spool")
	case !t.slow.IsZero() && p.direct && now.Sub(p.turned) >= steadyAfter:
		p.log.Info("kafka takes facts directly again", service.KeyDuration, p.turned.Sub(t.slow), service.KeyCount, t.times)
		t.slow, t.times = time.Time{}, 0
	}
}

// send produces a delivery to Kafka and awaits the answer in flight.
func (p *pipeline) send(d *delivery, now time.Time) {
	d.sent = now
	p.inFlight = append(p.inFlight, d)
	p.records += len(d.records)
	p.produce(d)
}

// produce sends the records of a delivery. The answers of one delivery come one after the other, in the goroutine of the Kafka client.
func (p *pipeline) produce(d *delivery) {
	d.pending = len(d.records)
	if d.pending == 0 {
		p.answer(d)
		return
	}
	for _, r := range d.records {
		// The records are not bound to a context: one that was sent must get its answer, or the client could not keep the order.
		p.client.Produce(context.Background(), r, func(r *kgo.Record, err error) {
			if err != nil {
				p.metrics.produceErrors.Inc()
				err = p.refused(r, err)
			}
			p.mu.Lock()
			if err != nil {
				d.refusal.add(1, err.Error())
			}
			d.pending--
			done := d.pending == 0
			p.mu.Unlock()
			if done {
				p.answer(d)
			}
		})
	}
}

// refused reports an error of Kafka. A record that no Kafka will ever take is let go, counted: it would block all that follow.
func (p *pipeline) refused(r *kgo.Record, err error) error {
	if errors.Is(err, kerr.MessageTooLarge) || errors.Is(err, kerr.RecordListTooLarge) || errors.Is(err, kerr.InvalidRecord) {
		p.metrics.deadLetters.WithLabelValues(deadUnwriteable).Inc()
		p.log.Error("kafka refuses a record for good; it is dropped: raise max.message.bytes of the topic", service.KeyTopic, r.Topic,
			"bytes", len(r.Key)+len(r.Value), service.KeyError, err)
		return nil
	}
	return fmt.Errorf("produce to kafka topic %s: %w", r.Topic, err)
}

func (p *pipeline) answer(d *delivery) {
	p.mu.Lock()
	p.answered = append(p.answered, d)
	p.mu.Unlock()
	p.notify()
}

// settleAnswered settles what is in flight, in order, as far as Kafka has taken it.
func (p *pipeline) settleAnswered() {
	n := 0
	p.mu.Lock()
	for n < len(p.inFlight) && p.inFlight[n].pending == 0 && p.inFlight[n].refusal.records == 0 {
		p.records -= len(p.inFlight[n].records)
		n++
	}
	p.mu.Unlock()
	for _, d := range p.inFlight[:n] {
		p.settle(d, inKafka)
	}
	p.inFlight = p.inFlight[n:]
}

func (p *pipeline) settle(d *delivery, how outcome) {
	p.metrics.durable.Observe(max(float64(time.Now().UnixMilli()-d.receivedMS), 0) / 1000)
	if d.settle != nil {
		d.settle(how)
	}
}

// spill moves everything in flight, and then what is held, to the spool, and settles it.
func (p *pipeline) spill() error {
	if len(p.inFlight) == 0 && len(p.held) == 0 {
		return nil
	}
	all := make([]*delivery, 0, len(p.inFlight)+len(p.held))
	all = append(append(all, p.inFlight...), p.held...)
	outcomes := make([]outcome, len(all))
	lost := map[string]drops{}
	if p.spool.empty() {
		p.spooledMS = all[0].receivedMS
	}
	batch := p.spool.newBatch()
	for i, d := range all {
		sent, fits := i < len(p.inFlight), d.upTo
		if sent {
			fits = unlimited
		}
		switch p.answerOf(d, sent) {
		case accepted:
			outcomes[i] = inKafka
			continue
		case awaited:
			// From here on its answer counts for the limbo alone.
			d.sent = time.Time{}
			p.limbo.deliveries++
		case rejected:
			p.limbo.failed = true
		case notSent:
		}
		switch {
		case d.transient:
			outcomes[i] = skipped
		case len(d.records) == 0:
			outcomes[i] = inSpool
		case batch.add(d.records, fits):
			outcomes[i] = inSpool
			if sent {
				p.limbo.end = batch.end()
			}
		default:
			outcomes[i] = dropped
			l := lost[d.cluster]
			if l.count == 0 {
				l.fromMS = d.receivedMS
			}
			l.count += int64(len(d.records))
			l.toMS = d.receivedMS
			lost[d.cluster] = l
		}
	}
	if err := batch.commit(); err != nil {
		return err
	}
	for cluster, l := range lost {
		p.metrics.dropped.Add(float64(l.count))
		if err := p.onDrop(cluster, l); err != nil {
			return err
		}
	}
	p.inFlight, p.held, p.records = nil, nil, 0
	for i, d := range all {
		p.settle(d, outcomes[i])
	}
	return nil
}

// kafkaAnswer is how far a delivery has come with Kafka.
type kafkaAnswer uint8

const (
	notSent kafkaAnswer = iota
	awaited
	accepted
	rejected
)

func (p *pipeline) answerOf(d *delivery, sent bool) kafkaAnswer {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !sent:
		return notSent
	case d.pending > 0:
		return awaited
	case d.refusal.records > 0:
		return rejected
	}
	return accepted
}

// drain sends the oldest entries of the spool to Kafka.
func (p *pipeline) drain() error {
	entries, err := p.spool.read(drainBytes)
	if err != nil {
		return err
	}
	d := &delivery{}
	for _, e := range entries {
		d.records = append(d.records, e.records...)
		p.drainEnd = e.sequence + 1
	}
	if len(d.records) > 0 {
		p.spooledMS = d.records[0].Timestamp.UnixMilli()
	}
	p.draining = d
	p.produce(d)
	return nil
}

// drained takes Kafka's answer to drain.
func (p *pipeline) drained(now time.Time) error {
	refused := p.draining.refusal
	p.draining = nil
	if refused.records > 0 {
		// All of it is sent again: copies are harmless, a hole in the order is not.
		p.retryAt = now.Add(drainRetry)
		p.log.Warn("kafka refused records of the spool; trying again", service.KeyError, refused.String(), service.KeyCount, refused.records)
		return nil
	}
	return p.spool.remove(p.drainEnd)
}

// observe updates what others see: the oldest delivery that is not durable, and the gauges.
func (p *pipeline) observe() {
	p.metrics.inFlight.Set(float64(p.records))
	p.metrics.spoolRecords.Set(float64(p.spool.records))
	p.metrics.spoolBytes.Set(float64(p.spool.bytes))
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case len(p.inFlight) > 0:
		p.oldestMS = p.inFlight[0].receivedMS
	case len(p.held) > 0:
		p.oldestMS = p.held[0].receivedMS
	case len(p.queue) > 0:
		p.oldestMS = p.queue[0].receivedMS
	default:
		p.oldestMS = 0
	}
	oldest := p.oldestMS
	if !p.spool.empty() && p.spooledMS != 0 {
		oldest = p.spooledMS
	}
	lag := 0.0
	if oldest != 0 {
		lag = max(float64(time.Now().UnixMilli()-oldest), 0) / 1000
	}
	p.metrics.lag.Set(lag)
}
