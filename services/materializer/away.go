package materializer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const (
	// kafkaTimeout bounds one attempt to find Kafka as it should be at the start, kafkaRetry is the time to the next.
	kafkaTimeout = 10 * time.Second
	kafkaRetry   = time.Second
	// What failed since Kafka was away is tried again after retryFirst, and then less and less often.
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// awayError marks what came of a Kafka that does not answer, or answers that it cannot yet: it goes away by itself.
type awayError struct{ error }

func (e awayError) Unwrap() error { return e.error }

// away marks an error of talking to Kafka, unless a person must mend its cause.
func away(err error) error {
	if err == nil || eventlog.Permanent(err) || errors.Is(err, errOutOfRange) {
		return err
	}
	return awayError{err}
}

// isAway reports whether trying again is all that is to be done about an error.
func isAway(err error) bool {
	var e awayError
	return errors.As(err, &e)
}

// publishError says what an error of a publisher means: it was fenced by another one, or it is to begin anew, with a new producer session, since it is
// not known what has become of its transaction.
func publishError(err error) error {
	if errors.Is(err, kerr.ProducerFenced) || errors.Is(err, kerr.InvalidProducerEpoch) {
		return fmt.Errorf("%w: %w", errFenced, err)
	}
	return away(err)
}

// graver returns of two errors the one that trying again does not help against, or both.
func graver(a, b error) error {
	switch {
	case a == nil || b != nil && isAway(a) && !isAway(b):
		return b
	case b == nil || isAway(b) && !isAway(a):
		return a
	}
	return errors.Join(a, b)
}

// retryAfter is the time until the attempt after n in a row that were in vain.
func retryAfter(n int) time.Duration { return min(retryFirst<<min(n-1, 10), retryMost) }

// pauseFor waits, or until ctx ends.
func pauseFor(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// outage is a time in which Kafka does not do what it is asked to. It is told of once, whatever it interrupts, and of its end.
type outage struct {
	log *slog.Logger

	mu    sync.Mutex
	since time.Time // zero: there is none
	count int
	said  map[string]bool // what it interrupts
}

// interrupts logs what is interrupted, as a warning the first time.
func (o *outage) interrupts(what string, attrs ...any) {
	o.mu.Lock()
	if o.since.IsZero() {
		o.since, o.count, o.said = time.Now(), 0, map[string]bool{}
	}
	o.count++
	level := slog.LevelDebug
	if !o.said[what] {
		o.said[what], level = true, slog.LevelWarn
	}
	o.mu.Unlock()
	o.log.Log(context.Background(), level, what, attrs...)
}

// over ends it, if there is one.
func (o *outage) over() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return
	}
	o.log.Info("kafka is back: what was interrupted goes on", service.KeyDuration, time.Since(o.since), service.KeyCount, o.count)
	o.since = time.Time{}
}

// membershipInterrupted tells of an error of the consumer group.
func (o *owners) membershipInterrupted(err error) {
	what := "kafka is away: answers are stale until it is back"
	var answer *kerr.Error
	if errors.As(err, &answer) && !answer.Retriable {
		what = "the membership of the consumer group has ended; joining again"
	}
	o.m.outage.interrupts(what, service.KeyGroup, o.m.cfg.group(), service.KeyError, err)
}

// undisturbed reports whether the process is a member of its group, and none of its partitions waits for Kafka.
func (o *owners) undisturbed() bool {
	ids, joined := o.assigned()
	owned := o.m.owned()
	return joined && !slices.ContainsFunc(ids, func(id int32) bool { p := owned[id]; return p == nil || p.ended.Load() })
}

// askKafka sees to the topics and asks which logs they are, once.
func (m *Materializer) askKafka(ctx context.Context, producer *kgo.Client) (id store.Identity, state [16]byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	if err := eventlog.Ensure(ctx, producer, m.cfg.Kafka); err != nil {
		return id, state, away(err)
	}
	return identity(ctx, kadm.NewClient(producer))
}

// findKafka waits until Kafka has the topics as they should be, and says which logs they are. What is wrong with it meanwhile is in the log, once, and
// in Ready.
func (m *Materializer) findKafka(ctx context.Context, producer *kgo.Client) (id store.Identity, state [16]byte, err error) {
	said := ""
	for {
		id, state, err := m.askKafka(ctx, producer)
		if err == nil || ctx.Err() != nil || !isAway(err) {
			m.kafkaProblem.Store(nil)
			return id, state, err
		}
		m.kafkaProblem.Store(&err)
		if said != err.Error() {
			said = err.Error()
			m.log.Warn("kafka is not ready; trying again", service.KeyError, err)
		}
		pauseFor(ctx, kafkaRetry)
	}
}
