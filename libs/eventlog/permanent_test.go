package eventlog_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

func TestPermanent(t *testing.T) {
	for err, want := range map[error]bool{
		nil:                           false,
		context.DeadlineExceeded:      false,
		io.EOF:                        false,
		kerr.NotEnoughReplicas:        false,
		kerr.CoordinatorNotAvailable:  false,
		kerr.InvalidTxnState:          false,
		kerr.UnknownTopicOrPartition:  false,
		kerr.InvalidReplicationFactor: false, // brokers of a Kafka that starts are counted as they come
		kerr.TopicAuthorizationFailed: true,
		kerr.SaslAuthenticationFailed: true,
		kerr.MessageTooLarge:          true,
		eventlog.ErrTopicMismatch:     true,
	} {
		if got := eventlog.Permanent(fmt.Errorf("ask kafka: %w", err)); got != want {
			t.Errorf("%v: %t", err, got)
		}
	}
}
