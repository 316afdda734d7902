package query_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// publisher writes client-state as the materializer does, without folding anything.
type publisher struct {
	t      testing.TB
	kafka  eventlog.Config
	client *kgo.Client
	format eventlog.Format

	mu      sync.Mutex
	version int64
}

func newPublisher(t testing.TB, kafka eventlog.Config, opts ...kgo.Opt) *publisher {
	t.Helper()
	return &publisher{t: t, kafka: kafka, client: eventlogtest.NewClient(t, kafka, append(opts, kgo.RecordPartitioner(kgo.ManualPartitioner()))...)}
}

// transition makes a record: a client changes from one status to another.
func (p *publisher) transition(id string, from, to presence.Presence, edit ...func(*eventlog.ClientState)) *kgo.Record {
	p.mu.Lock()
	p.version++
	version := p.version
	p.mu.Unlock()
	now := time.Now().UnixMilli()
	s := &eventlog.ClientState{
		Transition: true, Cluster: "default", ClientID: id, Status: to, PreviousStatus: from, Belief: to, StatusReason: presence.Connected,
		SinceMS: now, Node: "n1", Connection: "c-" + id, ConnectedAtMS: now, Username: "u-" + id, Peer: "203.0.113.7", TimeMS: now,
		EventOffset: version, NodeEventOffset: -1, State: []byte("state"),
	}
	for _, e := range edit {
		e(s)
	}
	return eventlog.StateRecord(s, p.partition(s.Cluster, id), p.format)
}

func (p *publisher) partition(cluster, id string) int32 {
	return eventlog.Partition(eventlog.ClientKey(cluster, id), p.kafka.Partitions)
}

func (p *publisher) tombstone(cluster, id, reason string) *kgo.Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.version++
	return eventlog.TombstoneRecord(&eventlog.Tombstone{
		Cluster: cluster, ClientID: id, Reason: reason, AsOfMS: time.Now().UnixMilli(), TimeMS: time.Now().UnixMilli(),
		EventOffset: p.version, NodeEventOffset: -1,
	}, p.partition(cluster, id))
}

// publish writes records and waits for them.
func (p *publisher) publish(records ...*kgo.Record) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	if err := p.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		p.t.Fatalf("publish: %v", err)
	}
}

// online publishes the connections of clients.
func (p *publisher) online(ids ...string) {
	p.t.Helper()
	for _, id := range ids {
		p.publish(p.transition(id, presence.Offline, presence.Online))
	}
}

// serveWatches serves with a Kafka.
func serveWatches(t testing.TB, kafka eventlog.Config, edit ...func(*query.Config)) *server {
	t.Helper()
	return serve(t, watchConfig(t, kafka, edit...), readertest.NewFake(kafka.Partitions))
}

func watchConfig(t testing.TB, kafka eventlog.Config, edit ...func(*query.Config)) query.Config {
	t.Helper()
	cfg := testConfig(t)
	cfg.Config = kafka
	for _, e := range edit {
		e(&cfg)
	}
	return cfg
}

// watching is a watch of either transport.
type watching interface {
	// next returns the next message, or why there is none.
	next() (*presencev1.WatchClientsResponse, error)
}

type grpcWatch struct {
	stream presencev1.PresenceService_WatchClientsClient
}

func (w grpcWatch) next() (*presencev1.WatchClientsResponse, error) { return w.stream.Recv() }

// watchGRPC begins a watch as the account read.
func (s *server) watchGRPC(req *presencev1.WatchClientsRequest) grpcWatch {
	s.t.Helper()
	ctx, cancel := context.WithCancel(as(s.t, "read"))
	s.t.Cleanup(cancel)
	stream, err := s.rpc.WatchClients(ctx, req)
	if err != nil {
		s.t.Fatalf("watch: %v", err)
	}
	return grpcWatch{stream}
}

// sseWatch reads server-sent events.
type sseWatch struct {
	response *http.Response
	lines    *bufio.Scanner
	lastID   string
	retry    string
}

// errorEvent is the event that says why a stream ended.
type errorEvent struct {
	Code    int    `json:"code"`
	Message string `json:"message"`
}

func (e *errorEvent) Error() string {
	return fmt.Sprintf("event error: code %d: %s", e.Code, e.Message)
}

func (s *server) watchSSE(query string, header ...string) *sseWatch {
	s.t.Helper()
	w := s.trySSE(query, header...)
	if w.response.StatusCode != http.StatusOK || !strings.HasPrefix(w.response.Header.Get("Content-Type"), "text/event-stream") {
		body, err := io.ReadAll(w.response.Body)
		s.t.Fatalf("watch answered %d %v: %s %v", w.response.StatusCode, w.response.Header, body, err)
	}
	return w
}

func (s *server) trySSE(query string, header ...string) *sseWatch {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	s.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/v1/clients:watch?"+query, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Authorization", basic("read", password))
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.t.Fatalf("watch: %v", err)
	}
	s.t.Cleanup(func() { _ = response.Body.Close() })
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)
	return &sseWatch{response: response, lines: lines}
}

func (w *sseWatch) next() (*presencev1.WatchClientsResponse, error) {
	event, data, id := "", "", ""
	for w.lines.Scan() {
		name, value, _ := strings.Cut(w.lines.Text(), ": ")
		switch name {
		case "event":
			event = value
		case "id":
			id = value
		case "data":
			data = value
		case "retry":
			w.retry = value
		case "":
			if event == "" {
				continue
			}
			return w.message(event, id, data)
		default:
			return nil, fmt.Errorf("field %q", name)
		}
	}
	if err := w.lines.Err(); err != nil {
		return nil, err
	}
	return nil, io.EOF
}

func (w *sseWatch) message(event, id, data string) (*presencev1.WatchClientsResponse, error) {
	if event == "error" {
		e := &errorEvent{}
		if err := json.Unmarshal([]byte(data), e); err != nil {
			return nil, err
		}
		return nil, e
	}
	var m presencev1.WatchClientsResponse
	if err := protojson.Unmarshal([]byte(data), &m); err != nil {
		return nil, fmt.Errorf("data %s: %w", data, err)
	}
	if m.GetType() != event || m.GetResumeToken() != id {
		return nil, fmt.Errorf("event %q, id %q, data %s", event, id, data)
	}
	if id != "" {
		w.lastID = id
	}
	return &m, nil
}

// expect reads one message of a type, heartbeats aside.
func expect(t testing.TB, w watching, kind string) *presencev1.WatchClientsResponse {
	t.Helper()
	for {
		m, err := w.next()
		if err != nil {
			t.Fatalf("wait for %s: %v", kind, err)
		}
		if m.GetType() == kind {
			return m
		}
		if m.GetType() != "heartbeat" {
			t.Fatalf("got %v, want %s", m, kind)
		}
	}
}

// expectIDs reads the transitions of these clients, in order.
func expectIDs(t testing.TB, w watching, ids ...string) *presencev1.WatchClientsResponse {
	t.Helper()
	var m *presencev1.WatchClientsResponse
	for _, id := range ids {
		if m = expect(t, w, "transition"); m.GetTransition().GetClientId() != id {
			t.Fatalf("got %v, want a transition of %s", m, id)
		}
	}
	return m
}

// failure reads on until the watch ends, and returns why.
func failure(t testing.TB, w watching) (last *presencev1.WatchClientsResponse, err error) {
	t.Helper()
	for {
		m, err := w.next()
		if err != nil {
			return last, err
		}
		last = m
	}
}

// counterOf returns the sum of a metric over its labels.
func counterOf(t testing.TB, reg *prometheus.Registry, name string) (sum float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == name {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return sum
}
