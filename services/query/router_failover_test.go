package query_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// failover is how long any request may take while another replica answers.
const failover = time.Second

// askEverything asks for clients, one and all, for a list, counts and usernames; each within the time that a failover may take.
func askEverything(t *testing.T, r query.StateReader, ids []string) error {
	t.Helper()
	for name, ask := range map[string]func(ctx context.Context) error{
		"one": func(ctx context.Context) error { _, err := r.GetStates(ctx, keys(ids[0])); return err },
		"all": func(ctx context.Context) error { _, err := r.GetStates(ctx, keys(ids...)); return err },
		"list": func(ctx context.Context) error {
			answer, err := r.ListStates(ctx, &presencev1.ListStatesRequest{Cluster: "default", Limit: 1000})
			if err == nil && len(answer.GetEntries()) != len(ids) {
				err = fmt.Errorf("%d clients", len(answer.GetEntries()))
			}
			return err
		},
		"counts": func(ctx context.Context) error {
			_, err := r.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: "default"})
			return err
		},
		"usernames": func(ctx context.Context) error {
			_, err := r.ListUsernames(ctx, &presencev1.ListUsernamesRequest{Cluster: "default", Limit: 10})
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), failover)
		err := ask(ctx)
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// twoReplicas starts a of which all is known, and b that is the same, and waits until a is asked.
func twoReplicas(t *testing.T) (r *query.Router, a *hanging, b *materializer, ids []string) {
	t.Helper()
	kafka := startKafka(t)
	ids, facts := devices(20)
	a = &hanging{Fake: readertest.NewFake(kafka.Partitions)}
	one := joinAs(t, kafka, "a", a.Fake, a)
	b = join(t, kafka, "b")
	for _, f := range []*readertest.Fake{a.Fake, b.Fake} {
		f.ApplyNodes(readertest.Healthy()...)
		f.Apply(facts...)
	}
	settled(t, one)
	settled(t, b)
	r = startRouter(t, kafka, "a", "b")
	ready(t, r)
	preferred(t, r, a, b, ids)
	return r, a, b, ids
}

// preferred waits until a, and b no more, is asked.
func preferred(t *testing.T, r *query.Router, a *hanging, b *materializer, ids []string) {
	t.Helper()
	servicetest.Eventually(t, testTimeout, func() error {
		before, beforeB := a.asked.Load(), b.Calls()
		if err := checkAll(t, r, ids); err != nil {
			return err
		}
		if a.asked.Load() == before || b.Calls() != beforeB {
			return errors.New("replica a is not preferred")
		}
		return nil
	})
}

// No request fails, or takes long, while the preferred owner hangs; when it goes on, it is preferred again.
func TestRouterHedges(t *testing.T) {
	r, a, b, ids := twoReplicas(t)
	for range 3 {
		a.hang()
		for range 5 {
			if err := askEverything(t, r, ids); err != nil {
				t.Error(err)
			}
		}
		asked := a.asked.Load()
		for range 20 {
			if err := askEverything(t, r, ids); err != nil {
				t.Error(err)
			}
		}
		if a.asked.Load() != asked {
			t.Errorf("the owner that hangs was asked %d times more", a.asked.Load()-asked)
		}
		a.release()
		preferred(t, r, a, b, ids)
	}
}

// A machine that has vanished refuses no connection and closes none.
func TestRouterPassesAMachineThatVanished(t *testing.T) {
	kafka := startKafka(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	settled(t, joinAt(t, kafka, "a", readertest.NewFake(kafka.Partitions), l.Addr().String()))
	ids, facts := devices(20)
	b := join(t, kafka, "b")
	b.Apply(facts...)
	settled(t, b)
	r := startRouter(t, kafka, "a", "b")
	ready(t, r)
	for range 10 {
		if err := askEverything(t, r, ids); err != nil {
			t.Error(err)
		}
	}
}

// A replica that catches up is passed over for one that has, and answers, with its staleness stated, where it is the only one.
func TestRouterPrefersTheFresherReplica(t *testing.T) {
	r, a, b, ids := twoReplicas(t)
	fresh := func() (all bool) {
		t.Helper()
		answer, err := r.GetStates(t.Context(), keys(ids...))
		if err != nil {
			t.Fatal(err)
		}
		all = true
		for _, p := range answer.GetPartitions() {
			all = all && p.GetReady()
		}
		return all
	}
	a.CatchUp(true)
	for range 5 {
		if !fresh() {
			t.Error("an answer of the replica that catches up")
		}
	}
	asked := a.asked.Load()
	if !fresh() || a.asked.Load() != asked {
		t.Error("the replica that catches up is asked again and again")
	}
	if counts, err := r.GetCounts(t.Context(), &presencev1.GetCountsRequest{Cluster: "default"}); err != nil || !counts.GetPartitions()[0].GetReady() {
		t.Errorf("%v, %v", counts, err)
	}
	b.stop()
	servicetest.Eventually(t, testTimeout, func() error {
		if err := askEverything(t, r, ids); err != nil {
			return err
		}
		if fresh() {
			return errors.New("fresh")
		}
		return nil
	})
	a.CatchUp(false)
	preferred(t, r, a, b, ids)
}

// A replica that restores some partitions while it catches up with others is passed over for all of them.
func TestRouterPassesAReplicaThatRestores(t *testing.T) {
	r, a, _, ids := twoReplicas(t)
	a.CatchUp(true)
	a.Own(0, 2)
	for range 3 {
		answer, err := r.GetStates(t.Context(), keys(ids...))
		if err != nil || len(answer.GetEntries()) != len(ids) {
			t.Fatalf("%v, %v", answer, err)
		}
		counts, err := r.GetCounts(t.Context(), &presencev1.GetCountsRequest{Cluster: "default"})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range append(answer.GetPartitions(), counts.GetPartitions()...) {
			if !p.GetReady() {
				t.Errorf("partition %d is of the replica that catches up", p.GetPartition())
			}
		}
	}
}

// Where both are behind, one of them answers, and nobody is asked twice for each request.
func TestRouterOfReplicasThatAreAllBehind(t *testing.T) {
	r, a, b, ids := twoReplicas(t)
	a.CatchUp(true)
	b.CatchUp(true)
	for range 3 {
		if err := askEverything(t, r, ids); err != nil {
			t.Error(err)
		}
	}
	before := int(a.asked.Load()) + b.Calls()
	for range 10 {
		if _, err := r.GetStates(t.Context(), keys(ids...)); err != nil {
			t.Error(err)
		}
	}
	if calls := int(a.asked.Load()) + b.Calls() - before; calls != 10 {
		t.Errorf("%d calls for 10 requests", calls)
	}
}

// A minimum offset that the preferred replica has not reached may be reached by another.
func TestRouterAsksWhoHasReachedTheOffset(t *testing.T) {
	r, a, b, ids := twoReplicas(t)
	f := readertest.Disconnected(readertest.Connected(ids[0]))
	b.Apply(f)
	ask := func(within time.Duration) (*presencev1.GetStatesResponse, error) {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		req := keys(ids[0])
		now, err := r.GetStates(ctx, req)
		if err != nil {
			return nil, err
		}
		offset := now.GetPartitions()[0].GetAppliedOffset() // the one that b has more
		req.Keys[0].MinOffset = &offset
		return r.GetStates(ctx, req)
	}
	answer, err := ask(failover)
	if err != nil || answer.GetEntries()[0].GetStatus() != "offline" {
		t.Errorf("%v, %v", answer, err)
	}
	preferred(t, r, a, b, ids[1:])
	b.stop()
	if answer, err := ask(300 * time.Millisecond); status.Code(err) != codes.FailedPrecondition && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("nobody has reached it: %v, %v", answer, err)
	}
	a.Apply(f)
	preferred(t, r, a, b, ids[1:])
}

// A request without an owner waits, and is answered once there is one.
func TestRouterWaitsForAnOwner(t *testing.T) {
	kafka := startKafka(t)
	r := startRouter(t, kafka, "a")
	ids, facts := devices(5)
	answered := make(chan error, 1)
	began := make(chan struct{})
	go func() {
		close(began)
		_, err := r.GetStates(context.Background(), keys(ids...))
		answered <- err
	}()
	<-began
	// More refreshes than a request once had the patience for.
	waited := time.NewTimer(1500 * time.Millisecond)
	select {
	case err := <-answered:
		t.Fatalf("without an owner: %v", err)
	case <-waited.C:
	}
	fake := readertest.NewFake(kafka.Partitions)
	fake.Apply(facts...)
	joinAs(t, kafka, "a", fake, fake)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}

// An owner that hangs without a replica is not waited for once the group has given its partitions to another.
func TestRouterLeavesAnOwnerThatHangsForANewOne(t *testing.T) {
	kafka := startKafka(t)
	ids, facts := devices(5)
	h := &hanging{Fake: readertest.NewFake(kafka.Partitions)}
	one := joinAs(t, kafka, "a", h.Fake, h)
	settled(t, one)
	r := startRouter(t, kafka, "a")
	ready(t, r)
	h.hang()
	answered := make(chan error, 1)
	go func() {
		_, err := r.GetStates(context.Background(), keys(ids...))
		answered <- err
	}()
	servicetest.Eventually(t, testTimeout, func() error {
		if h.asked.Load() == 0 {
			return errors.New("not asked")
		}
		return nil
	})
	two := join(t, kafka, "a")
	two.Apply(facts...)
	one.die()
	one.leave(t)
	if err := <-answered; err != nil {
		t.Error(err)
	}
}
