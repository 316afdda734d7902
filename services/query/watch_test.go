package query_test

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// Both transports tell the same, in both formats of records, and nothing but transitions and removals.
func TestWatch(t *testing.T) {
	for _, format := range []eventlog.Format{eventlog.JSON, eventlog.Protobuf} {
		t.Run(format.String(), func(t *testing.T) {
			kafka := startKafka(t)
			s := serveWatches(t, kafka)
			over, sse := s.watchGRPC(&presencev1.WatchClientsRequest{}), s.watchSSE("")
			for _, w := range []watching{over, sse} {
				if m := expect(t, w, "heartbeat"); m.GetResumeToken() == "" || m.GetFreshness() == nil {
					t.Errorf("the first message is %v", m)
				}
			}
			if sse.retry == "" || sse.response.Header.Get("Cache-Control") != "no-store" || sse.response.Header.Get("X-Accel-Buffering") != "no" ||
				sse.response.Header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("retry %q, headers %v", sse.retry, sse.response.Header)
			}
			p := newPublisher(t, kafka)
			p.format = format
			p.publish(
				&kgo.Record{Topic: eventlog.TopicClientState, Partition: 1, Key: []byte("checkpoint"), Value: []byte(`{"type":"checkpoint","event_offset":3}`)},
				p.transition("quiet", presence.Online, presence.Online, func(s *eventlog.ClientState) { s.Transition = false }),
				&kgo.Record{Topic: eventlog.TopicClientState, Partition: 1, Key: []byte("default/bad"), Value: []byte(`{"type":`)},
			)
			ended := p.transition("dév/1", presence.Online, presence.Offline, func(s *eventlog.ClientState) {
				s.StatusReason, s.Reason, s.RawReason = presence.ConnectionClosed, presence.ReasonNormal, "bye"
			})
			p.publish(ended)
			again := *ended
			again.Context = nil
			p.publish(&again)
			p.publish(p.tombstone("default", "dév/1", "forgotten"))
			p.online("dev2")
			var told [2][]*presencev1.WatchClientsResponse
			for i, w := range []watching{over, sse} {
				told[i] = append(told[i], expect(t, w, "transition"), expect(t, w, "removed"), expect(t, w, "transition"))
			}
			for i, m := range told[0] {
				if !proto.Equal(m.GetTransition(), told[1][i].GetTransition()) {
					t.Errorf("over gRPC %v, over REST %v", m, told[1][i])
				}
			}
			first := told[0][0].GetTransition()
			want := &presencev1.ClientTransition{
				ClientId: "dév/1", Cluster: "default", Status: "offline", PreviousStatus: "online", StatusReason: "closed", Belief: "offline",
				Since: first.GetSince(), Node: "n1", Key: "c-dév/1", ConnectedAt: first.GetConnectedAt(), Username: "u-dév/1", Peer: "203.0.113.7",
				CloseReason: "normal", CloseRawReason: "bye", Time: first.GetTime(), EventOffset: first.GetEventOffset(), NodeEventOffset: -1,
			}
			if !proto.Equal(first, want) || first.GetSince() == nil || first.GetConnectedAt() == nil || first.GetTime() == nil {
				t.Errorf("transition %v", first)
			}
			if gone := told[0][1].GetTransition(); gone.GetClientId() != "dév/1" || gone.GetStatusReason() != "forgotten" || gone.GetStatus() != "" {
				t.Errorf("removed %v", gone)
			}
			// After the token of a message comes what followed it, over the other transport too.
			expectIDs(t, s.watchGRPC(&presencev1.WatchClientsRequest{ResumeToken: told[1][1].GetResumeToken()}), "dev2")
			resumed := s.watchSSE("resume_token=" + told[0][0].GetResumeToken())
			expect(t, resumed, "removed")
			expectIDs(t, resumed, "dev2")
			// A browser names the last event in a header, which outweighs what its URL says.
			expectIDs(t, s.watchSSE("snapshot=true", "Last-Event-ID", told[1][1].GetResumeToken()), "dev2")
		})
	}
}

// The time of a token is one before all that follows it was written: if it were later, compaction could have removed what is to be told.
func TestWatchTokenTime(t *testing.T) {
	kafka := startKafka(t)
	s := serveWatches(t, kafka)
	w := s.watchGRPC(&presencev1.WatchClientsRequest{})
	expect(t, w, "heartbeat")
	p := newPublisher(t, kafka)
	before := time.Now()
	p.online("dev1", "dev2", "dev3")
	for range 2 {
		m := expect(t, w, "transition")
		raw, err := base64.RawURLEncoding.DecodeString(m.GetResumeToken())
		if err != nil || len(raw) < 18 {
			t.Fatalf("token %q: %v", m.GetResumeToken(), err)
		}
		// Version and topic ID come first.
		ms, _ := binary.Uvarint(raw[17:])
		if at := time.UnixMilli(int64(ms)); at.After(before) || at.Before(before.Add(-time.Minute)) {
			t.Errorf("the token of %v is of %v, what follows was written after %v", m, at, before)
		}
	}
}

func TestWatchAbortedTransactions(t *testing.T) {
	kafka := startKafka(t)
	s := serveWatches(t, kafka)
	w := s.watchGRPC(&presencev1.WatchClientsRequest{})
	expect(t, w, "heartbeat")
	p := newPublisher(t, kafka, kgo.TransactionalID("publisher"))
	in := func(end kgo.TransactionEndTry, ids ...string) {
		t.Helper()
		if err := p.client.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		p.online(ids...)
		if err := p.client.EndTransaction(as(t, ""), end); err != nil {
			t.Fatal(err)
		}
	}
	in(kgo.TryAbort, "ghost1", "ghost2")
	in(kgo.TryCommit, "dev1", "dev2")
	in(kgo.TryAbort, "ghost3")
	last := expectIDs(t, w, "dev1", "dev2")
	// The end of the log is an abort: a service that starts now still finds it.
	s2 := serveWatches(t, kafka)
	w2 := s2.watchGRPC(&presencev1.WatchClientsRequest{ResumeToken: last.GetResumeToken()})
	in(kgo.TryCommit, "dev3")
	expectIDs(t, w2, "dev3")
	expectIDs(t, w, "dev3")
}

func TestWatchFilters(t *testing.T) {
	kafka := startKafka(t)
	s := serveWatches(t, kafka)
	type of = presencev1.WatchClientsRequest
	tests := []struct {
		name string
		req  *of
		want []string
		gone int // removals that it is told
	}{
		{"all", &of{}, []string{"a1 online", "a1 unknown", "a1 offline", "a2 online", "b1 online"}, 3},
		{"other cluster", &of{Cluster: "other"}, []string{"a1 online"}, 3},
		{"to or from a status", &of{Status: "unknown"}, []string{"a1 unknown", "a1 offline"}, 3},
		{"node", &of{Node: "n2"}, []string{"b1 online"}, 3},
		{"username", &of{Username: "u-a2"}, []string{"a2 online"}, 3},
		{"prefix", &of{ClientIdPrefix: "a"}, []string{"a1 online", "a1 unknown", "a1 offline", "a2 online"}, 2},
		{"one client", &of{ClientIds: []string{"a2"}}, []string{"a2 online"}, 1},
		{"clients and prefix", &of{ClientIds: []string{"a1", "b1"}, ClientIdPrefix: "b"}, []string{"b1 online"}, 1},
		{"clients and status", &of{ClientIds: []string{"a1", "b1"}, Status: "offline"}, []string{"a1 online", "a1 offline", "b1 online"}, 2},
	}
	streams := make([]grpcWatch, len(tests))
	for i, test := range tests {
		streams[i] = s.watchGRPC(test.req)
		expect(t, streams[i], "heartbeat")
	}
	p := newPublisher(t, kafka)
	p.publish(p.transition("a1", presence.Offline, presence.Online))
	p.publish(p.transition("a1", presence.Offline, presence.Online, func(s *eventlog.ClientState) { s.Cluster = "other" }))
	p.publish(p.transition("a1", presence.Online, presence.Unknown))
	p.publish(p.transition("b1", presence.Offline, presence.Online, func(s *eventlog.ClientState) { s.Node = "n2" }))
	p.publish(p.transition("a2", presence.Offline, presence.Online))
	p.publish(p.transition("a1", presence.Unknown, presence.Offline))
	// A removal is the last of its client: once all have come, so has everything else.
	for _, id := range []string{"a1", "b1", "a2"} {
		p.publish(p.tombstone("default", id, "expired"), p.tombstone("other", id, "expired"))
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for gone := 0; gone < test.gone; {
				m, err := streams[i].next()
				if err != nil {
					t.Fatal(err)
				}
				switch m.GetType() {
				case "removed":
					gone++
				case "transition":
					got = append(got, m.GetTransition().GetClientId()+" "+m.GetTransition().GetStatus())
				}
			}
			// Only transitions of one client have an order.
			slices.SortStableFunc(got, func(a, b string) int { return strings.Compare(a[:2], b[:2]) })
			if !slices.Equal(got, test.want) {
				t.Errorf("got %v, want %v", got, test.want)
			}
		})
	}
}

func TestWatchRequestFaults(t *testing.T) {
	kafka := startKafka(t)
	s := serveWatches(t, kafka)
	type of = presencev1.WatchClientsRequest
	many := make([]string, 1001)
	for i := range many {
		many[i] = fmt.Sprint("dev", i)
	}
	for _, test := range []struct {
		name, field string
		req         *of
		query       string
	}{
		{"cluster", "cluster", &of{Cluster: "A/B"}, "cluster=A/B"},
		{"status", "status", &of{Status: "up"}, "status=up"},
		{"too many clients", "client_ids", &of{ClientIds: many}, "client_ids=" + strings.Join(many, "&client_ids=")},
		{"empty client", "client_ids[1]", &of{ClientIds: []string{"a", ""}}, "client_ids=a&client_ids="},
		{"debounce", "debounce", &of{Debounce: durationpb.New(11 * time.Minute)}, "debounce=11m"},
		{"negative debounce", "debounce", &of{Debounce: durationpb.New(-1)}, "debounce=-1s"},
		{"invalid debounce", "debounce", &of{Debounce: &durationpb.Duration{Nanos: -1, Seconds: 1}}, "debounce=soon"},
		{"heartbeat", "heartbeat", &of{Heartbeat: durationpb.New(time.Millisecond)}, "heartbeat=1ms"},
		{"long heartbeat", "heartbeat", &of{Heartbeat: durationpb.New(time.Hour)}, "heartbeat=1h"},
		{"token", "resume_token", &of{ResumeToken: "x"}, "resume_token=x"},
		{"token and snapshot", "snapshot", &of{ResumeToken: "x", Snapshot: true}, "resume_token=x&snapshot=true"},
		{"snapshot", "snapshot", nil, "snapshot=maybe"},
		{"unknown parameter", "nodes", nil, "nodes=n1"},
		{"twice", "node", nil, "node=n1&node=n2"},
		{"unknown parameter that is no text", "\ufffd", nil, "%ff=n1"},
		{"no text", "client_ids", nil, "client_ids=%ff"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.req != nil {
				_, err := s.watchGRPC(test.req).next()
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), strings.SplitN(test.field, "[", 2)[0]) {
					t.Errorf("over gRPC: %v", err)
				}
			}
			a := s.do("GET", "/v1/clients:watch?"+test.query, "read", "")
			if a.status != 400 || !strings.Contains(a.body, `"field":"`+test.field+`"`) && !strings.Contains(a.body, `"field": "`+test.field+`"`) {
				t.Errorf("over REST: %d %s", a.status, a.body)
			}
		})
	}
	for _, test := range []struct {
		method, user string
		want         int
	}{{"GET", "", 401}, {"GET", "connect", 403}, {"POST", "read", 405}} {
		if a := s.do(test.method, "/v1/clients:watch", test.user, ""); a.status != test.want {
			t.Errorf("%s as %q: %d %s", test.method, test.user, a.status, a.body)
		}
	}
	// Text that is no text is the caller's fault on a stream as on a call.
	body := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "\xff")
	stream, err := s.conn.NewStream(as(t, "read"), &grpc.StreamDesc{ServerStreams: true}, presencev1.PresenceService_WatchClients_FullMethodName, grpc.ForceCodec(rawCodec{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(stream.SendMsg(&body), stream.CloseSend()); err != nil {
		t.Fatal(err)
	}
	if err := stream.RecvMsg(&presencev1.WatchClientsResponse{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a cluster that is not UTF-8: %v", err)
	}
}

func TestWatchWithoutKafka(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	if _, err := s.watchGRPC(&presencev1.WatchClientsRequest{}).next(); status.Code(err) != codes.Unimplemented {
		t.Errorf("without brokers: %v", err)
	}
	if a := s.do("GET", "/v1/clients:watch", "read", ""); a.status != 501 {
		t.Errorf("without brokers: %d %s", a.status, a.body)
	}
	// A Kafka without the topic is one that may have it later.
	_, kafka := eventlogtest.NewCluster(t)
	s = serveWatches(t, kafka, func(c *query.Config) { c.RequestTimeout = 50 * time.Millisecond })
	if _, err := s.watchGRPC(&presencev1.WatchClientsRequest{}).next(); status.Code(err) != codes.Unavailable {
		t.Errorf("without the topic: %v", err)
	}
	eventlogtest.Ensure(t, kafka)
	servicetest.Eventually(t, testTimeout, func() error {
		_, err := s.watchGRPC(&presencev1.WatchClientsRequest{}).next()
		return err
	})
}

// gone begins watches with a token and expects both transports to refuse it for good.
func gone(t *testing.T, s *server, token, why string) {
	t.Helper()
	_, err := s.watchGRPC(&presencev1.WatchClientsRequest{ResumeToken: token}).next()
	if status.Code(err) != codes.OutOfRange || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "snapshot=true") {
		t.Errorf("over gRPC: %v", err)
	}
	if a := s.do("GET", "/v1/clients:watch?resume_token="+url.QueryEscape(token), "read", ""); a.status != 410 || !strings.Contains(a.body, why) {
		t.Errorf("over REST: %d %s", a.status, a.body)
	}
}

func TestWatchTokensThatAreNoMore(t *testing.T) {
	kafka := startKafka(t)
	// A ring of one transition a partition: everything older is read from Kafka.
	s := serveWatches(t, kafka, func(c *query.Config) { c.WatchBuffer = 1 })
	w := s.watchGRPC(&presencev1.WatchClientsRequest{})
	start := expect(t, w, "heartbeat").GetResumeToken()
	p := newPublisher(t, kafka)
	p.online("dev1", "dev2", "dev3", "dev4")
	raw, err := base64.RawURLEncoding.DecodeString(start)
	if err != nil {
		t.Fatal(err)
	}
	edited := func(edit func(b []byte) []byte) string {
		return base64.RawURLEncoding.EncodeToString(edit(slices.Clone(raw)))
	}
	_, size := protowire.ConsumeVarint(raw[17:])
	head, offsets := raw[17:17+size], raw[17+size:]
	week := protowire.AppendVarint(nil, uint64(time.Now().Add(-8*24*time.Hour).UnixMilli()))
	gone(t, s, edited(func(b []byte) []byte { b[3] ^= 1; return b }), "another log")
	gone(t, s, edited(func(b []byte) []byte { return append(append(b[:17], week...), offsets...) }), "old")
	gone(t, s, edited(func(b []byte) []byte {
		return append(append(append(b[:17], head...), offsets[0]+1), append(offsets[1:], 0)...)
	}), "another log")
	gone(t, s, edited(func(b []byte) []byte { b[len(b)-1] = 100; return b }), "ends before")
	// It is still good itself, until Kafka drops what follows.
	again := s.watchGRPC(&presencev1.WatchClientsRequest{ResumeToken: start})
	seen := map[string]int{}
	for len(seen) < 4 {
		m, err := again.next()
		if err != nil {
			t.Fatal(err)
		}
		switch m.GetType() {
		case "skipped":
			// The ring moved on while the hub was still reading: what was passed over is in Kafka.
			again = s.watchGRPC(&presencev1.WatchClientsRequest{ResumeToken: m.GetSkipped().GetResumeToken()})
		case "transition":
			seen[m.GetTransition().GetClientId()]++
		}
	}
	if slices.Max(slices.Collect(maps.Values(seen))) > 1 {
		t.Errorf("after the start: %v", seen)
	}
	cut := kadm.Offsets{}
	for p := range kafka.Partitions {
		cut.Add(kadm.Offset{Topic: eventlog.TopicClientState, Partition: p, At: -1})
	}
	if _, err := kadm.NewClient(eventlogtest.NewClient(t, kafka)).DeleteRecords(as(t, ""), cut); err != nil {
		t.Fatal(err)
	}
	gone(t, s, start, "begins after it")
}

// A topic that is made anew ends the watches of the old one.
func TestWatchTopicMadeAnew(t *testing.T) {
	t.Parallel()
	kafka := startKafka(t)
	s := serveWatches(t, kafka)
	w := s.watchGRPC(&presencev1.WatchClientsRequest{})
	token := expect(t, w, "heartbeat").GetResumeToken()
	admin := kadm.NewClient(eventlogtest.NewClient(t, kafka))
	if _, err := admin.DeleteTopics(as(t, ""), eventlog.TopicClientState); err != nil {
		t.Fatal(err)
	}
	eventlogtest.Ensure(t, kafka)
	if _, err := failure(t, w); status.Code(err) != codes.OutOfRange {
		t.Errorf("the watch ended with %v", err)
	}
	servicetest.Eventually(t, testTimeout, func() error {
		_, err := s.watchGRPC(&presencev1.WatchClientsRequest{}).next()
		return err
	})
	gone(t, s, token, "another log")
}

func TestWatchStops(t *testing.T) {
	kafka := startKafka(t)
	s := serveWatches(t, kafka)
	over, sse := s.watchGRPC(&presencev1.WatchClientsRequest{}), s.watchSSE("")
	expect(t, over, "heartbeat")
	expect(t, sse, "heartbeat")
	p := newPublisher(t, kafka)
	p.online("dev1")
	expectIDs(t, over, "dev1")
	expectIDs(t, sse, "dev1")
	began := time.Now()
	s.stop()
	last, err := failure(t, over)
	if status.Code(err) != codes.Unavailable || last.GetResumeToken() == "" {
		t.Errorf("over gRPC: %v, %v", last, err)
	}
	last, err = failure(t, sse)
	var said *errorEvent
	if !errors.As(err, &said) || codes.Code(said.Code) != codes.Unavailable || last.GetResumeToken() == "" {
		t.Errorf("over REST: %v, %v", last, err)
	}
	if err := <-s.stopped; err != nil || time.Since(began) > 2*time.Second {
		t.Errorf("stopped after %v: %v", time.Since(began), err)
	}
}

func TestWatchSnapshot(t *testing.T) {
	kafka := startKafka(t)
	fake := readertest.NewFake(kafka.Partitions)
	ids, facts := devices(1200)
	fake.Apply(facts...)
	s := serve(t, watchConfig(t, kafka), fake)
	p := newPublisher(t, kafka)
	early := s.watchGRPC(&presencev1.WatchClientsRequest{})
	expect(t, early, "heartbeat")
	p.online("before")
	expectIDs(t, early, "before")
	read := func(w watching) (clients []string, end *presencev1.WatchClientsResponse) {
		t.Helper()
		for {
			m, err := w.next()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetType() == "snapshot_end" {
				return clients, m
			}
			if m.GetType() != "client" || m.GetResumeToken() != "" {
				t.Fatalf("in the snapshot: %v", m)
			}
			clients = append(clients, m.GetClient().GetClientId())
		}
	}
	slices.Sort(ids)
	for _, w := range []watching{s.watchGRPC(&presencev1.WatchClientsRequest{Snapshot: true}), s.watchSSE("snapshot=true")} {
		clients, end := read(w)
		if slices.Sort(clients); !slices.Equal(clients, ids) {
			t.Errorf("%d clients of %d", len(clients), len(ids))
		}
		if end.GetFreshness() == nil {
			t.Errorf("end %v", end)
		}
		p.online("after")
		expectIDs(t, w, "after")
		expectIDs(t, s.watchGRPC(&presencev1.WatchClientsRequest{ResumeToken: end.GetResumeToken()}), "after")
	}
	for name, test := range map[string]struct {
		req  *presencev1.WatchClientsRequest
		want []string
	}{
		"prefix":  {&presencev1.WatchClientsRequest{ClientIdPrefix: "dev119"}, []string{"dev119", "dev1190", "dev1191", "dev1192", "dev1193", "dev1194", "dev1195", "dev1196", "dev1197", "dev1198", "dev1199"}},
		"ids":     {&presencev1.WatchClientsRequest{ClientIds: []string{"dev7", "dev9", "never"}}, []string{"dev7", "dev9"}},
		"nothing": {&presencev1.WatchClientsRequest{ClientIds: []string{"dev7"}, Status: "offline"}, nil},
	} {
		test.req.Snapshot = true
		clients, _ := read(s.watchGRPC(test.req))
		if slices.Sort(clients); !slices.Equal(clients, test.want) {
			t.Errorf("%s: %v", name, clients)
		}
	}
	// What cannot be listed is an error before the stream begins.
	fake.Own()
	if a := s.do("GET", "/v1/clients:watch?snapshot=true&client_ids=dev7", "read", ""); a.status != 503 {
		t.Errorf("without owners: %d %s", a.status, a.body)
	}
}

// The freshness of a watch is that of all partitions, also of those that nobody answers for.
func TestWatchFreshnessWithoutOwner(t *testing.T) {
	kafka := startKafka(t)
	fake := readertest.NewFake(kafka.Partitions)
	fake.ApplyNodes(readertest.Healthy()...)
	s := serve(t, watchConfig(t, kafka), fake)
	w := s.watchGRPC(&presencev1.WatchClientsRequest{Heartbeat: durationpb.New(time.Second)})
	if m := expect(t, w, "heartbeat"); m.GetFreshness().GetStale() {
		t.Errorf("all is well: %v", m)
	}
	fake.Own(0)
	// What was told is told again for a second.
	var last *presencev1.WatchClientsResponse
	for range 3 {
		last = expect(t, w, "heartbeat")
	}
	if !slices.Contains(last.GetFreshness().GetStaleReasons(), "lag_unknown") {
		t.Errorf("partitions have no owner: %v", last)
	}
}

// A heartbeat comes although nothing happens, and HTTP's limits of time do not end a stream.
func TestWatchOutlastsTimeouts(t *testing.T) {
	kafka := startKafka(t)
	s := serve(t, watchConfig(t, kafka), readertest.NewFake(kafka.Partitions), func(s *query.Service) { query.ShortenTimeouts(s, 200*time.Millisecond) })
	for name, w := range map[string]watching{
		"gRPC": s.watchGRPC(&presencev1.WatchClientsRequest{Heartbeat: durationpb.New(time.Second)}),
		"SSE":  s.watchSSE("heartbeat=1s"),
	} {
		for i := range 3 {
			m, err := w.next()
			if err != nil || m.GetType() != "heartbeat" || m.GetResumeToken() == "" {
				t.Errorf("%s, message %d: %v %v", name, i, m, err)
				break
			}
		}
	}
}
