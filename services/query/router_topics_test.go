package query_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
)

// A topic that is deleted under the service ends it: a watch would read on in what is no longer there, and be silent.
func TestTopicsChangeUnderTheRouter(t *testing.T) {
	t.Parallel()
	cluster, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	looked := make(chan struct{}, 1)
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if len(req.(*kmsg.MetadataRequest).Topics) == len(eventlog.Topics()) {
			select {
			case looked <- struct{}{}:
			default:
			}
		}
		return nil, nil, false
	})
	r := startRouter(t, kafka, "a")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	watched := make(chan error, 1)
	go func() { watched <- r.WatchTopics(ctx) }()
	// The second look comes after the first one's answer.
	<-looked
	<-looked
	if _, err := kadm.NewClient(eventlogtest.NewClient(t, kafka)).DeleteTopic(ctx, eventlog.TopicClientState); err != nil {
		t.Fatal(err)
	}
	if err := <-watched; !errors.Is(err, eventlog.ErrTopicMismatch) {
		t.Errorf("the topic is gone, and the error is %v", err)
	}
}
