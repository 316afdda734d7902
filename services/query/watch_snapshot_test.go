package query_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// lister lets a test come between a list and its answer. Calls are counted from 1.
type lister struct {
	*readertest.Fake

	calls atomic.Int64
	list  func(ctx context.Context, call int64, answer *presencev1.ListStatesResponse) error
}

func (l *lister) ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	answer, err := l.Fake.ListStates(ctx, req)
	if err != nil {
		return nil, err
	}
	return answer, l.list(ctx, l.calls.Add(1), answer)
}

func lists(partitions int32, clients int, list func(ctx context.Context, call int64, answer *presencev1.ListStatesResponse) error) *lister {
	l := &lister{Fake: readertest.NewFake(partitions), list: list}
	_, facts := devices(clients)
	l.Apply(facts...)
	return l
}

// snapshots begins one over each transport.
func snapshots(s *server) map[string]watching {
	return map[string]watching{"gRPC": s.watchGRPC(&presencev1.WatchClientsRequest{Snapshot: true}), "SSE": s.watchSSE("snapshot=true")}
}

// A snapshot that is cut off gives no token: whoever went on from there would never be told of the other clients.
func TestWatchSnapshotCutOff(t *testing.T) {
	kafka := startKafka(t)
	reader := lists(kafka.Partitions, 1200, func(ctx context.Context, _ int64, answer *presencev1.ListStatesResponse) error {
		if answer.GetEntries()[0].GetClientId() > "dev1" {
			<-ctx.Done()
			return status.FromContextError(ctx.Err()).Err()
		}
		return nil
	})
	s := serve(t, watchConfig(t, kafka, func(c *query.Config) { c.MaxStreamTime = time.Second }), reader)
	for name, w := range snapshots(s) {
		told := 0
		for {
			m, err := w.next()
			if err != nil {
				break
			}
			if m.GetResumeToken() != "" || m.GetType() == "snapshot_end" {
				t.Errorf("%s: after %d clients: %v", name, told, m)
			}
			if m.GetType() == "client" {
				told++
			}
		}
		if told == 0 || told == 1200 {
			t.Errorf("%s: told %d clients", name, told)
		}
	}
}

// Of a partition that lacks what transitions were told of, a snapshot waits to be told.
func TestWatchSnapshotBehind(t *testing.T) {
	kafka := startKafka(t)
	p := newPublisher(t, kafka)
	_, more := devices(4) // versions begin at 1
	for i := range more {
		more[i].ClientID = "late"
	}
	var reader *lister
	var catchUp atomic.Bool
	reader = lists(kafka.Partitions, 0, func(_ context.Context, call int64, _ *presencev1.ListStatesResponse) error {
		if catchUp.Load() && call > 1 {
			catchUp.Store(false)
			reader.Apply(more...)
		}
		return nil
	})
	s := serve(t, watchConfig(t, kafka, func(c *query.Config) { c.RequestTimeout = time.Second }), reader)
	w := s.watchGRPC(&presencev1.WatchClientsRequest{})
	expect(t, w, "heartbeat")
	p.online("late", "late", "late")
	expectIDs(t, w, "late", "late", "late")
	if a := s.do("GET", "/v1/clients:watch?snapshot=true", "read", ""); a.status != 503 || !strings.Contains(a.body, "has not applied") {
		t.Errorf("behind: %d %s", a.status, a.body)
	}
	if a := s.do("GET", "/v1/clients:watch?snapshot=true&client_ids=late", "read", ""); a.status != 503 || !strings.Contains(a.body, "has not applied") {
		t.Errorf("behind, by ID: %d %s", a.status, a.body)
	}
	reader.calls.Store(0)
	catchUp.Store(true)
	w = s.watchGRPC(&presencev1.WatchClientsRequest{Snapshot: true})
	if m, err := w.next(); err != nil || m.GetClient().GetClientId() != "late" {
		t.Errorf("once caught up: %v %v", m, err)
	}
	expect(t, w, "snapshot_end")
	// One that lacks a change of nodes is behind, too.
	p.publish(p.transition("late", presence.Online, presence.Offline, func(s *eventlog.ClientState) { s.EventOffset, s.NodeEventOffset = 3, 5 }))
	expectIDs(t, w, "late")
	if a := s.do("GET", "/v1/clients:watch?snapshot=true", "read", ""); a.status != 503 || !strings.Contains(a.body, "has not applied") {
		t.Errorf("behind in nodes: %d %s", a.status, a.body)
	}
}

// A page that is not of all partitions is an error, as it is in a list.
func TestWatchSnapshotWithoutOwner(t *testing.T) {
	kafka := startKafka(t)
	var reader *lister
	reader = lists(kafka.Partitions, 600, func(_ context.Context, call int64, _ *presencev1.ListStatesResponse) error {
		if call == 1 {
			reader.Own(0)
		}
		return nil
	})
	s := serve(t, watchConfig(t, kafka), reader)
	w := s.watchGRPC(&presencev1.WatchClientsRequest{Snapshot: true})
	last, err := failure(t, w)
	if status.Code(err) != codes.Unavailable || last.GetType() != "client" {
		t.Errorf("after a page: %v %v", last, err)
	}
	if a := s.do("GET", "/v1/clients:watch?snapshot=true", "read", ""); a.status != 503 {
		t.Errorf("from the first page: %d %.200s", a.status, a.body)
	}
}

// The end of a snapshot says how fresh its pages were, the worst of them.
func TestWatchSnapshotFreshness(t *testing.T) {
	kafka := startKafka(t)
	reader := lists(kafka.Partitions, 1200, func(_ context.Context, _ int64, answer *presencev1.ListStatesResponse) error {
		if answer.GetEntries()[0].GetClientId() == "dev0" {
			answer.GetPartitions()[0].Ready = false
		}
		return nil
	})
	s := serve(t, watchConfig(t, kafka), reader)
	for name, w := range snapshots(s) {
		for {
			m, err := w.next()
			if err != nil {
				t.Fatal(err)
			}
			if m.GetType() != "snapshot_end" {
				continue
			}
			if !slices.Contains(m.GetFreshness().GetStaleReasons(), "catching_up") {
				t.Errorf("%s: end %v", name, m)
			}
			break
		}
	}
}
