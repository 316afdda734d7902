package materializer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// TestTopicsChangeUnderIt does to the topics what an operator may do by mistake while the materializer runs: it stops, and says what happened; the
// next start says what is to be done, or goes on.
func TestTopicsChangeUnderIt(t *testing.T) {
	deleted := func(topic string) func(context.Context, *kadm.Client) error {
		return func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.DeleteTopic(ctx, topic)
			return err
		}
	}
	again := func(topic string, partitions int32, config map[string]string) func(context.Context, *kadm.Client) error {
		return func(ctx context.Context, adm *kadm.Client) error {
			if err := deleted(topic)(ctx, adm); err != nil {
				return err
			}
			values := map[string]*string{}
			for k, v := range config {
				values[k] = kadm.StringPtr(v)
			}
			_, err := adm.CreateTopic(ctx, partitions, 1, values, topic)
			return err
		}
	}
	compacted, kept := map[string]string{"cleanup.policy": "compact"}, map[string]string{"cleanup.policy": "delete"}
	for _, tc := range []struct {
		name   string
		change func(context.Context, *kadm.Client) error
		stops  string // what the running one says
		starts string // what the next one says; empty: it goes on
	}{
		{"client-events deleted", deleted(eventlog.TopicClientEvents), "UNKNOWN_TOPIC", "belongs elsewhere"},
		{"client-events created again", again(eventlog.TopicClientEvents, 4, kept), eventlog.TopicClientEvents, "belongs elsewhere"},
		{"client-events with more partitions", func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.CreatePartitions(ctx, 1, eventlog.TopicClientEvents)
			return err
		}, "had 4 partitions, it has 5", "kafka-partitions asks for 4"},
		{"client-state deleted", deleted(eventlog.TopicClientState), "UNKNOWN_TOPIC", ""},
		{"client-state created again", again(eventlog.TopicClientState, 4, compacted), eventlog.TopicClientState, ""},
		{"node-events created again", again(eventlog.TopicNodeEvents, 1, compacted), eventlog.TopicNodeEvents, "node-events was deleted and created again"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := newLog(t)
			for ms := range int64(5) {
				l.node(started("n2", ms))
			}
			fs := vfs.NewMem()
			m, err := New(l.config(fs), testLog(t), newRegistry())
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			stopped := make(chan error, 1)
			go func() { stopped <- m.Run(ctx) }()
			i := &instance{Materializer: m, t: t}
			i.ready().get("a", l.facts(opened("a", "n1", 0), opened("b", "n1", 0), opened("c", "n1", 0), opened("a", "n1", 1)))
			i.published(l)
			if err := tc.change(t.Context(), kadm.NewClient(l.client)); err != nil {
				t.Fatal(err)
			}
			if err = <-stopped; err == nil || !strings.Contains(err.Error(), tc.stops) {
				t.Errorf("it stops with %v, want %q", err, tc.stops)
			}
			if tc.starts != "" {
				if err := runError(t, l.config(fs)); err == nil || !strings.Contains(err.Error(), tc.starts) {
					t.Errorf("it starts with %v, want %q", err, tc.starts)
				}
				return
			}
			next := l.start(l.config(fs)).ready()
			if e := next.get("a", nil); e.GetStatus() != "online" {
				t.Errorf("client a is %v", e)
			}
			// What has no record in the new topic would be lost with this disk.
			servicetest.Eventually(t, patience, func() error {
				for _, id := range []string{"a", "b", "c"} {
					if n := len(l.records(id)); n == 0 {
						return fmt.Errorf("client-state has nothing of client %s", id)
					}
				}
				return nil
			})
			l.client = eventlogtest.NewClient(t, l.cfg) // the former one does not take a topic for the one that was created again
			// A change of nodes shows, and is published, whatever offset it has.
			l.node(started("n1", 10_000))
			servicetest.Eventually(t, patience, func() error {
				got := l.transitions("b")
				if e := next.get("b", nil); e.GetStatus() != "offline" || len(got) == 0 || got[len(got)-1] != "offline node_restarted" {
					return fmt.Errorf("client b is %v, transitions %v", e, got)
				}
				return nil
			})
		})
	}
}

// records returns a client's records of client-state.
func (l *log) records(clientID string) []eventlog.ClientState {
	l.t.Helper()
	return slices.DeleteFunc(l.states(), func(s eventlog.ClientState) bool { return s.ClientID != clientID })
}
