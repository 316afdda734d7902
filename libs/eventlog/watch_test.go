package eventlog_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
)

// TestWatch changes the topics under a process that uses them.
func TestWatch(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(ctx context.Context, adm *kadm.Client) error
		want   string
	}{
		{"deleted", func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.DeleteTopic(ctx, eventlog.TopicNodeEvents)
			return err
		}, "describe kafka topic presence.node-events.v1: UNKNOWN_TOPIC_OR_PARTITION"},
		{"created again", func(ctx context.Context, adm *kadm.Client) error {
			if _, err := adm.DeleteTopic(ctx, eventlog.TopicClientState); err != nil {
				return err
			}
			_, err := adm.CreateTopic(ctx, 4, 1, nil, eventlog.TopicClientState)
			return err
		}, "presence.client-state.v1 was deleted and created again"},
		{"more partitions", func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.CreatePartitions(ctx, 2, eventlog.TopicClientEvents)
			return err
		}, "presence.client-events.v1 had 4 partitions, it has 6"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cluster, cfg := eventlogtest.NewCluster(t)
			eventlogtest.Ensure(t, cfg)
			cl := eventlogtest.NewClient(t, cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			asked := make(chan struct{}, 1)
			cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
				cluster.KeepControl()
				if len(req.(*kmsg.MetadataRequest).Topics) == len(eventlog.Topics()) {
					select {
					case asked <- struct{}{}:
					default:
					}
				}
				return nil, nil, false
			})
			watched := make(chan error, 1)
			go func() { watched <- eventlog.WatchEvery(ctx, cl, 50*time.Millisecond) }()
			// The second question comes after the first answer.
			<-asked
			<-asked
			if err := tc.change(ctx, kadm.NewClient(cl)); err != nil {
				t.Fatal(err)
			}
			if err := <-watched; !errors.Is(err, eventlog.ErrTopicMismatch) || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("the watch says %v, want %q", err, tc.want)
			}
		})
	}
}

// TestWatchIsPatient has Kafka say twice that it does not know the topics, and then that it does.
func TestWatchIsPatient(t *testing.T) {
	cluster, cfg := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, cfg)
	cl := eventlogtest.NewClient(t, cfg)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := 0
	cluster.ControlKey(int16(kmsg.Metadata), func(req kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		if len(req.(*kmsg.MetadataRequest).Topics) != len(eventlog.Topics()) {
			return nil, nil, false
		}
		switch asked++; asked {
		case 2, 3, 5, 6:
			return unknownTopics(t, req.(*kmsg.MetadataRequest), cfg), nil, true
		case 8:
			cancel()
		}
		return nil, nil, false
	})
	if err := eventlog.WatchEvery(ctx, cl, 50*time.Millisecond); err != nil {
		t.Errorf("the watch says %v", err)
	}
}

// TestClientKeepsItsPartition adds partitions under a producer, which must not send a client's facts to another one.
func TestClientKeepsItsPartition(t *testing.T) {
	_, cfg := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, cfg)
	cl := eventlogtest.NewClient(t, cfg, cfg.ProducerOpts()...)
	adm := kadm.NewClient(cl)
	if _, err := adm.CreatePartitions(t.Context(), 5, eventlog.TopicClientEvents); err != nil {
		t.Fatal(err)
	}
	// A client that begins now sees all nine.
	late := eventlogtest.NewClient(t, cfg, cfg.ProducerOpts()...)
	for _, id := range []string{"a", "b", "c", "d", "e", "f", "g", "h"} {
		f := presence.Fact{Kind: presence.Opened, Cluster: "default", ClientID: id, Node: "n", Dialect: presence.DialectEMQX, TimeMS: 1, ReceivedMS: 1}
		f.SetID()
		r := eventlog.FactRecord(&f, eventlog.JSON)
		if err := late.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if want := eventlog.Partition(r.Key, cfg.Partitions); r.Partition != want {
			t.Errorf("client %s went to partition %d of 9, want %d", id, r.Partition, want)
		}
	}
}
