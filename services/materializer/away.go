package materializer

import (
	"context"
	"errors"
	"fmt"
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
