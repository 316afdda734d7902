package query_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// follow folds what is written to client-events into a fake, as a materializer does.
func follow(t *testing.T, kafka eventlog.Config, fake *readertest.Fake) {
	t.Helper()
	client := eventlogtest.NewClient(t, kafka, kgo.ConsumeTopics(eventlog.TopicClientEvents), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			client.PollFetches(ctx).EachRecord(func(r *kgo.Record) {
				var f presence.Fact
				if err := eventlog.DecodeFact(r, &f); err != nil {
					t.Errorf("record %d: %v", r.Offset, err)
					return
				}
				fake.Apply(f)
			})
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
}

func deleting(t *testing.T, kafka eventlog.Config, reader query.StateReader, timeout time.Duration) *server {
	t.Helper()
	cfg := testConfig(t)
	cfg.Config, cfg.RequestTimeout = kafka, timeout
	return serve(t, cfg, reader)
}

func TestDeletedClientIsInNoAnswer(t *testing.T) {
	_, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	fake := readertest.NewFake(kafka.Partitions)
	fake.ApplyNodes(readertest.Healthy()...)
	client := eventlogtest.NewClient(t, kafka)
	var records []*kgo.Record
	for i, id := range readertest.IDs() {
		f := readertest.Connected(id)
		f.TimeMS, f.ReceivedMS, f.ConnectedAtMS = f.TimeMS-60_000, f.ReceivedMS-60_000, f.ConnectedAtMS-60_000
		if i%3 == 0 {
			// The clock of the node is ahead.
			f.TimeMS, f.ConnectedAtMS = f.TimeMS+69_000, f.ConnectedAtMS+69_000
		}
		records = append(records, eventlog.FactRecord(&f, kafka.Format()))
	}
	if err := client.ProduceSync(t.Context(), records...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	follow(t, kafka, fake)
	s := deleting(t, kafka, fake, testTimeout)
	for i, id := range readertest.IDs() {
		// What is not applied yet nobody knows to be ahead.
		if _, err := s.rpc.GetClient(as(t, "read"), &presencev1.GetClientRequest{ClientId: id, MinOffset: &records[i].Offset}); err != nil {
			t.Fatalf("%.20q: %v", id, err)
		}
		before := time.Now().Truncate(time.Millisecond)
		answer := &presencev1.DeleteClientResponse{}
		if i%2 == 0 {
			a := s.do("DELETE", "/v1/clients/"+escape(id), "admin", "")
			if err := protojson.Unmarshal([]byte(a.body), answer); err != nil || a.status != 200 {
				t.Fatalf("%.20q: %d %.300s: %v", id, a.status, a.body, err)
			}
		} else {
			var err error
			if answer, err = s.rpc.DeleteClient(as(t, "admin"), &presencev1.DeleteClientRequest{ClientId: id}); err != nil {
				t.Fatalf("%.20q: %v", id, err)
			}
		}
		asOf := answer.GetAsOf().AsTime()
		if answer.GetClientId() != id || answer.GetCluster() != "default" || !answer.GetApplied() || asOf.Before(before) || asOf.After(time.Now()) != (i%3 == 0) {
			t.Errorf("%.20q: %v", id, answer)
		}
		// 7 days of retention, and those that a segment may be written to.
		if kept := answer.GetEventsGoneBy().AsTime().Sub(before); kept < 7*24*time.Hour {
			t.Errorf("%.20q: events are gone after %v", id, kept)
		}
		if _, err := s.client(as(t, "read"), id); status.Code(err) != codes.NotFound {
			t.Errorf("%.20q after its deletion: %v", id, err)
		}
		// The record is where the answer says, and says who asked.
		fetch := eventlogtest.NewClient(t, kafka, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{
			eventlog.TopicClientEvents: {answer.GetPartition(): kgo.NewOffset().At(answer.GetOffset())},
		}))
		var f presence.Fact
		if got := fetch.PollRecords(as(t, ""), 1).Records(); len(got) != 1 || eventlog.DecodeFact(got[0], &f) != nil {
			t.Fatalf("%.20q: no record at offset %d of partition %d", id, answer.GetOffset(), answer.GetPartition())
		}
		if f.Kind != presence.Forgotten || f.ClientID != id || f.Cluster != "default" || f.Source != "admin" || f.AsOfMS != asOf.UnixMilli() || f.ID == "" {
			t.Errorf("%.20q: record %+v", id, f)
		}
		fetch.Close()
	}
	if all, err := s.rpc.ListClients(as(t, "read"), &presencev1.ListClientsRequest{}); err != nil || len(all.GetClients()) != 0 {
		t.Errorf("%v, %v", all, err)
	}
	// Nobody ever saw this one.
	if a := s.do("DELETE", "/v1/clients/never?cluster=other", "admin", ""); a.status != 200 || a.fields(t)["cluster"] != "other" || a.fields(t)["applied"] != true {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do("DELETE", "/v1/clients/dev1", "read", ""); a.status != 403 {
		t.Errorf("without the permission: %d %s", a.status, a.body)
	}
}

// silent is a reader whose owners do not answer, as a Router's that is waiting for them.
type silent struct{ *readertest.Fake }

func (silent) GetStates(ctx context.Context, _ *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	<-ctx.Done()
	return nil, status.Error(codes.Unavailable, "no owner")
}

// A deletion needs nobody who knows the client: it is written all the same.
func TestDeleteWithoutOwner(t *testing.T) {
	_, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	s := deleting(t, kafka, silent{readertest.NewFake(kafka.Partitions)}, 2*time.Second)
	a := s.do("DELETE", "/v1/clients/dev1", "admin", "")
	if got := a.fields(t); a.status != 200 || got["applied"] != false || got["as_of"] == nil {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// A deletion that nobody applies in time is none the less one.
func TestDeletionThatIsNotAppliedInTime(t *testing.T) {
	_, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	s := deleting(t, kafka, readertest.NewFake(kafka.Partitions), 500*time.Millisecond)
	answer, err := s.rpc.DeleteClient(as(t, "admin"), &presencev1.DeleteClientRequest{ClientId: "dev1"})
	if err != nil || answer.GetApplied() || answer.GetOffset() != 0 || !answer.GetFreshness().GetStale() || answer.GetFreshness().GetPartition() != answer.GetPartition() {
		t.Errorf("%v, %v", answer, err)
	}
}

func TestDeletionThatKafkaDoesNotConfirm(t *testing.T) {
	cluster, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	s := deleting(t, kafka, readertest.NewFake(kafka.Partitions), time.Second)
	try := func() string {
		t.Helper()
		_, err := s.rpc.DeleteClient(as(t, "admin"), &presencev1.DeleteClientRequest{ClientId: "dev1"})
		if status.Code(err) != codes.Unavailable {
			t.Errorf("want Unavailable, got %v", err)
		}
		a := s.do("DELETE", "/v1/clients/dev1", "admin", "")
		if a.status != 503 || a.header.Get("Retry-After") == "" {
			t.Errorf("%d %s", a.status, a.body)
		}
		return a.body
	}
	// It does not answer a write.
	cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, errors.New("no"), true
	})
	if said := try(); !strings.Contains(said, "may have been written") {
		t.Errorf("the record was sent, and the answer is %s", said)
	}
}

// An answer of Kafka's that is final says that nothing was written.
func TestDeletionThatKafkaRefuses(t *testing.T) {
	cluster, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	cluster.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		request, ok := r.(*kmsg.ProduceRequest)
		if !ok {
			return nil, nil, false
		}
		response, ok := request.ResponseKind().(*kmsg.ProduceResponse)
		if !ok {
			return nil, nil, false
		}
		for _, topic := range request.Topics {
			answer := kmsg.NewProduceResponseTopic()
			answer.Topic, answer.TopicID = topic.Topic, topic.TopicID
			for _, p := range topic.Partitions {
				refused := kmsg.NewProduceResponseTopicPartition()
				refused.Partition, refused.ErrorCode = p.Partition, kerr.TopicAuthorizationFailed.Code
				answer.Partitions = append(answer.Partitions, refused)
			}
			response.Topics = append(response.Topics, answer)
		}
		return response, nil, true
	})
	s := deleting(t, kafka, readertest.NewFake(kafka.Partitions), 5*time.Second)
	_, err := s.rpc.DeleteClient(as(t, "admin"), &presencev1.DeleteClientRequest{ClientId: "dev1"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "was not written") {
		t.Error(err)
	}
}

func TestDeletionWithoutKafka(t *testing.T) {
	cluster, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	cluster.Close()
	s := deleting(t, kafka, readertest.NewFake(kafka.Partitions), 500*time.Millisecond)
	_, err := s.rpc.DeleteClient(as(t, "admin"), &presencev1.DeleteClientRequest{ClientId: "dev1"})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "was not written") {
		t.Errorf("Kafka is down: %v", err)
	}
	// A service that has none to write to.
	bare := serve(t, testConfig(t), readertest.NewFake(1))
	if a := bare.do("DELETE", "/v1/clients/dev1", "admin", ""); a.status != 501 || !strings.Contains(a.body, "--kafka-brokers") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// The answer says when Kafka has deleted the last event, from the topic's own configuration.
func TestEventsAreGoneBy(t *testing.T) {
	_, kafka := eventlogtest.NewCluster(t, kfake.NumBrokers(1))
	eventlogtest.Ensure(t, kafka)
	fake := readertest.NewFake(kafka.Partitions)
	follow(t, kafka, fake)
	s := deleting(t, kafka, fake, 5*time.Second)
	admin := kadm.NewClient(eventlogtest.NewClient(t, kafka))
	for _, c := range []struct {
		retention, segment string
		want               time.Duration // 0: absent
	}{{"3600000", "60000", time.Hour + time.Minute}, {"-1", "60000", 0}, {"400000000000000", "60000", 0}} {
		if _, err := admin.AlterTopicConfigs(as(t, ""), []kadm.AlterConfig{
			{Name: "retention.ms", Value: &c.retention}, {Name: "segment.ms", Value: &c.segment},
		}, eventlog.TopicClientEvents); err != nil {
			t.Fatal(err)
		}
		answer, err := s.rpc.DeleteClient(as(t, "admin"), &presencev1.DeleteClientRequest{ClientId: "dev1"})
		if err != nil {
			t.Fatal(err)
		}
		switch gone := answer.GetEventsGoneBy(); {
		case c.want == 0 && gone != nil, c.want != 0 && gone.AsTime().Sub(answer.GetAsOf().AsTime()) != c.want:
			t.Errorf("retention %s, segments of %s ms: %v", c.retention, c.segment, answer)
		}
	}
}
