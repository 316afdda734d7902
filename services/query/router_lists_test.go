package query_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// listed returns the IDs of a list that must be whole.
func listed(t *testing.T, r query.StateReader) ([]string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	answer, err := r.ListStates(ctx, &presencev1.ListStatesRequest{Cluster: "default", Limit: 1000, Count: true})
	if err != nil {
		return nil, err
	}
	if len(answer.GetPartitions()) != int(answer.GetPartitionCount()) || answer.GetReadTo() != nil || answer.GetTotal() != int64(len(answer.GetEntries())) {
		return nil, fmt.Errorf("%d of %d partitions, read to %v, total %d of %d", len(answer.GetPartitions()), answer.GetPartitionCount(), answer.GetReadTo(),
			answer.GetTotal(), len(answer.GetEntries()))
	}
	var ids []string
	for _, e := range answer.GetEntries() {
		ids = append(ids, e.GetClientId())
	}
	return ids, nil
}

func TestRouterListsOverAllOwners(t *testing.T) {
	kafka := startKafka(t)
	one, two := join(t, kafka, "a"), join(t, kafka, "a")
	ids, facts := devices(100)
	slices.Sort(ids)
	for _, m := range []*materializer{one, two} {
		m.ApplyNodes(readertest.Healthy()...)
		m.Apply(facts...)
	}
	settled(t, one, two)
	r := startRouter(t, kafka, "a")
	ready(t, r)
	servicetest.Eventually(t, testTimeout, func() error {
		got, err := listed(t, r)
		if err == nil && !slices.Equal(got, ids) {
			err = fmt.Errorf("%d clients", len(got))
		}
		return err
	})
	s := serve(t, testConfig(t), r)
	for _, c := range []struct {
		size string
		look int
	}{{"7", 0}, {"1", 0}, {"1000", 0}, {"10", 3}} {
		// An owner that stops early bounds the page: what it has not read may come before.
		one.Look(c.look)
		if got, pages := pagesOf(t, s, "page_size="+c.size); !slices.Equal(got, ids) {
			t.Errorf("pages of %s, looking at %d rows: %d clients on %d pages", c.size, c.look, len(got), pages)
		}
	}
	one.Look(0)
	stats, err := s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{})
	if err != nil || stats.GetClients().GetOnline() != 100 || len(stats.GetUsernames()) != 1 || stats.GetUsernames()[0].GetClients() != 100 {
		t.Errorf("%v, %v", stats, err)
	}
	checks, err := s.rpc.CheckIndexes(as(t, "admin"), &presencev1.CheckIndexesRequest{})
	if err != nil || !checks.GetOk() || len(checks.GetPartitions()) != eventlogtest.Partitions {
		t.Errorf("%v, %v", checks, err)
	}

	// One dies: there is no list of the others' clients alone, not until the rest has an owner again.
	two.stop()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if answer, err := r.ListStates(ctx, &presencev1.ListStatesRequest{Cluster: "default", Limit: 10}); status.Code(err) != codes.Unavailable {
		t.Errorf("without an owner of some partitions: %v, %v", answer, err)
	}
	two.leave(t)
	servicetest.Eventually(t, testTimeout, func() error {
		got, err := listed(t, r)
		if err == nil && !slices.Equal(got, ids) {
			err = fmt.Errorf("%d clients", len(got))
		}
		return err
	})
}

// hanging is a StateService that gives no answer while it hangs, as a process that was stopped.
type hanging struct {
	*readertest.Fake
	asked atomic.Int64 // but for counts

	mu   sync.Mutex
	gone chan struct{} // closed when it does not hang any more
}

// hang makes it hang.
func (h *hanging) hang() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gone = make(chan struct{})
}

// release lets it go on: what was asked meanwhile is answered.
func (h *hanging) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.gone)
	h.gone = nil
}

func (h *hanging) wait(ctx context.Context) {
	h.mu.Lock()
	gone := h.gone
	h.mu.Unlock()
	if gone == nil {
		return
	}
	select {
	case <-gone:
	case <-ctx.Done():
	}
}

func (h *hanging) GetStates(ctx context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	h.asked.Add(1)
	h.wait(ctx)
	return h.Fake.GetStates(ctx, req)
}

func (h *hanging) ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	h.asked.Add(1)
	h.wait(ctx)
	return h.Fake.ListStates(ctx, req)
}

func (h *hanging) ListUsernames(ctx context.Context, req *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
	h.asked.Add(1)
	h.wait(ctx)
	return h.Fake.ListUsernames(ctx, req)
}

func (h *hanging) GetCounts(ctx context.Context, req *presencev1.GetCountsRequest) (*presencev1.GetCountsResponse, error) {
	h.wait(ctx)
	return h.Fake.GetCounts(ctx, req)
}

// A replica answers in place of an owner that hangs, within the request's time, and the one that hangs is not asked first for a while.
func TestRouterFallsOverFromAnOwnerThatHangs(t *testing.T) {
	kafka := startKafka(t)
	ids, facts := devices(20)
	h := &hanging{Fake: readertest.NewFake(kafka.Partitions)}
	a := joinAs(t, kafka, "a", h.Fake, h)
	b := join(t, kafka, "b")
	for _, f := range []*readertest.Fake{a.Fake, b.Fake} {
		f.ApplyNodes(readertest.Healthy()...)
		f.Apply(facts...)
	}
	settled(t, a)
	settled(t, b)
	r := startRouter(t, kafka, "a", "b")
	ready(t, r)
	servicetest.Eventually(t, testTimeout, func() error {
		if err := checkAll(t, r, ids); err != nil {
			return err
		}
		if h.asked.Load() == 0 {
			return errors.New("the preferred replica was not asked")
		}
		return nil
	})
	h.hang()
	began := time.Now()
	if err := checkAll(t, r, ids); err != nil || time.Since(began) > 4*time.Second {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
	before := h.asked.Load()
	began = time.Now()
	if got, err := listed(t, r); err != nil || len(got) != len(ids) || time.Since(began) > time.Second {
		t.Errorf("%d clients after %v: %v", len(got), time.Since(began), err)
	}
	if asked := h.asked.Load(); asked != before {
		t.Errorf("the owner that hangs was asked %d times more", asked-before)
	}
	// Nobody but the one that hangs: an error, within the request's time.
	b.stop()
	b.leave(t)
	short := query.DefaultConfig()
	short.Config, short.Replicas, short.RequestTimeout = kafka, []string{"a"}, 300*time.Millisecond
	alone, err := query.NewRouter(short, discardLog(), newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan error, 1)
	go func() { stopped <- alone.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}()
	ready(t, alone)
	began = time.Now()
	_, err = alone.ListStates(t.Context(), &presencev1.ListStatesRequest{Cluster: "default", Limit: 10})
	if took := time.Since(began); err == nil || took > 2*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
}

// A client's history takes the same way as its state.
func TestRouterAsksForHistory(t *testing.T) {
	kafka := startKafka(t)
	m := join(t, kafka, "a")
	c := readertest.Connected("dev1")
	again := c
	again.Connection, again.TimeMS, again.ConnectedAtMS = "again", c.TimeMS+5000, c.TimeMS+5000
	again.SetID()
	m.ApplyNodes(readertest.Healthy()...)
	m.Apply([]presence.Fact{c, readertest.Disconnected(c), again}...)
	r := startRouter(t, kafka, "a")
	ready(t, r)
	s := serve(t, testConfig(t), r)
	answer, err := s.rpc.ListSessions(as(t, "read"), &presencev1.ListSessionsRequest{ClientId: "dev1"})
	if err != nil || len(answer.GetSessions()) != 2 || answer.GetSessions()[1].GetEnd() != "stated" {
		t.Errorf("%v, %v", answer, err)
	}
}

// building is a StateService whose indexes are being built.
type building struct{ *readertest.Fake }

func (building) ListStates(context.Context, *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	s, err := status.New(codes.Unavailable, "the indexes of partition 0 are being built").
		WithDetails(&errdetails.ErrorInfo{Reason: "INDEXES_BUILDING", Domain: "presence"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(10 * time.Second)})
	if err != nil {
		return nil, err
	}
	return nil, s.Err()
}

// An owner that builds its indexes says so at once, and is not passed over for what it can do. Another replica that has them answers.
func TestRouterSaysThatIndexesAreBuilt(t *testing.T) {
	kafka := startKafka(t)
	ids, facts := devices(20)
	f := readertest.NewFake(kafka.Partitions)
	a := joinAs(t, kafka, "a", f, building{f})
	b := join(t, kafka, "b")
	for _, f := range []*readertest.Fake{a.Fake, b.Fake} {
		f.ApplyNodes(readertest.Healthy()...)
		f.Apply(facts...)
	}
	settled(t, a)
	settled(t, b)
	alone, both := startRouter(t, kafka, "a"), startRouter(t, kafka, "a", "b")
	ready(t, alone)
	ready(t, both)
	s := serve(t, testConfig(t), alone)
	began := time.Now()
	r := s.do("GET", "/v1/clients?since_from=2025-01-01T00:00:00Z", "read", "")
	if took := time.Since(began); r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") != "10" || !strings.Contains(r.body, "indexes") || took > 3*time.Second {
		t.Errorf("after %v: %d, %s, %v", took, r.status, r.body, r.header)
	}
	if err := checkAll(t, alone, ids); err != nil {
		t.Error(err)
	}
	if got, err := listed(t, both); err != nil || len(got) != len(ids) {
		t.Errorf("%d clients, %v", len(got), err)
	}
}

// What an alert is made of is there before it happens the first time.
func TestHedgesAreCountedFromTheStart(t *testing.T) {
	_, cfg := eventlogtest.NewCluster(t)
	config, reg := query.DefaultConfig(), newRegistry()
	config.Config, config.Replicas = cfg, []string{"a"}
	if _, err := query.NewRouter(config, discardLog(), reg); err != nil {
		t.Fatal(err)
	}
	if n, err := testutil.GatherAndCount(reg, "presence_query_hedged_calls_total"); n != 3 || err != nil {
		t.Errorf("%d series, %v", n, err)
	}
}
