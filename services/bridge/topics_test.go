package bridge

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
)

// TestTopicsChangeUnderIt deletes a topic with facts in flight and in the spool. The bridge stops and says why, for its client would try for ever; the
// next one gives the new topic all that Kafka had not taken.
func TestTopicsChangeUnderIt(t *testing.T) {
	for _, tc := range []struct {
		name, topic string
		again       bool // it is created again before the bridge notices
		says        string
	}{
		{"client-events deleted", eventlog.TopicClientEvents, false, "UNKNOWN_TOPIC_OR_PARTITION"},
		{"client-events created again", eventlog.TopicClientEvents, true, "client-events.v1 was deleted and created again"},
		{"node-events created again", eventlog.TopicNodeEvents, true, "node-events.v1 was deleted and created again"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b, k := newBroker(t), newKafka(t)
			cfg := testConfig(t, b, k)
			r := start(t, cfg)
			r.waitReady(t)
			b.heartbeat(time.Minute)
			b.open("taken", 1)
			k.reader(t).want(1)

			release, asked := k.hold()
			defer release()
			b.open("in-flight", 2)
			<-asked
			adm := kadm.NewClient(eventlogtest.NewClient(t, k.cfg))
			if _, err := adm.DeleteTopic(t.Context(), tc.topic); err != nil {
				t.Fatal(err)
			}
			if tc.again {
				partitions, policy := k.cfg.Partitions, "delete"
				if tc.topic == eventlog.TopicNodeEvents {
					partitions, policy = 1, "compact"
				}
				if _, err := adm.CreateTopic(t.Context(), partitions, 1, map[string]*string{"cleanup.policy": &policy}, tc.topic); err != nil {
					t.Fatal(err)
				}
			}
			const more = 100
			for i := range int64(more) {
				b.open(fmt.Sprintf("after-%d", i), 3+i)
			}
			b.waitSettled(cfg)
			release()
			select {
			case err := <-r.done:
				if !errors.Is(err, eventlog.ErrTopicMismatch) || !strings.Contains(err.Error(), tc.topic) || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("it stops with %v, want %q", err, tc.says)
				}
			case <-time.After(within):
				t.Fatal("it goes on with a topic that is not there any more")
			}

			// One attempt a second, for about three.
			if n := r.metric(t, "produce_errors_total"); n > 5*more {
				t.Errorf("kafka has refused %v records: the bridge does not wait between attempts", n)
			}

			r = start(t, cfg)
			r.waitReady(t)
			b.open("last", 1000)
			in := k.reader(t)
			in.until(func() error {
				if !in.has("last") {
					return fmt.Errorf("%d facts", len(in.facts))
				}
				return nil
			})
			for i := range more {
				if id := fmt.Sprintf("after-%d", i); !in.has(id) {
					t.Errorf("the fact of %s is lost", id)
				}
			}
			if !in.has("in-flight") {
				t.Error("the fact that was in flight is lost")
			}
			in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS != 0 })
			r.stop(t)
			if n := r.metric(t, "produce_errors_total"); n != 0 {
				t.Errorf("kafka has refused %v records of the new topic", n)
			}
		})
	}
}

// has reports whether a fact of a client was read.
func (r *reader) has(clientID string) bool {
	for i := range r.facts {
		if r.facts[i].ClientID == clientID {
			return true
		}
	}
	return false
}

// TestRefusalSaysEachReasonOnce: a batch of thousands of records is refused with one error for each.
func TestRefusalSaysEachReasonOnce(t *testing.T) {
	var r refusal
	for range 3 {
		r.add(1, "no leader")
	}
	r.add(2, "unknown topic", "no leader")
	if r.records != 5 || r.String() != "no leader; unknown topic" {
		t.Errorf("%d records: %s", r.records, r.String())
	}
}
