package query_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// materializer is a member of a replica's group with a reader behind it.
type materializer struct {
	*readertest.Fake
	addr  string
	group string
	kafka eventlog.Config
	stop  func() // of the StateService
	die   func() // of the member; leave ends its membership

	mu    sync.Mutex
	owned []int32
}

// join starts a StateService and makes it a static member of the replica's group.
func join(t *testing.T, kafka eventlog.Config, replica string) *materializer {
	t.Helper()
	fake := readertest.NewFake(kafka.Partitions)
	return joinAs(t, kafka, replica, fake, fake)
}

// joinAs makes a StateService, behind which is the fake, a static member of the replica's group.
func joinAs(t *testing.T, kafka eventlog.Config, replica string, fake *readertest.Fake, service presencev1.StateServiceServer) *materializer {
	t.Helper()
	addr, stop := readertest.Serve(t, service)
	m := joinAt(t, kafka, replica, fake, addr)
	m.stop = stop
	return m
}

// joinAt makes an address a static member of the replica's group.
func joinAt(t *testing.T, kafka eventlog.Config, replica string, fake *readertest.Fake, addr string) *materializer {
	t.Helper()
	m := &materializer{Fake: fake, addr: addr, group: "presence-materializer-" + replica, kafka: kafka}
	m.Own()
	change := func(f func(p int32)) func(context.Context, *kgo.Client, map[string][]int32) {
		return func(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
			m.mu.Lock()
			defer m.mu.Unlock()
			for _, p := range topics[eventlog.TopicClientEvents] {
				f(p)
			}
			m.Own(m.owned...)
		}
	}
	lost := change(func(p int32) { m.owned = slices.DeleteFunc(m.owned, func(o int32) bool { return o == p }) })
	client := eventlogtest.NewClient(t, kafka,
		kgo.ConsumerGroup(m.group), kgo.InstanceID(m.addr), kgo.ConsumeTopics(eventlog.TopicClientEvents),
		kgo.OnPartitionsAssigned(change(func(p int32) { m.owned = append(m.owned, p) })),
		kgo.OnPartitionsRevoked(lost), kgo.OnPartitionsLost(lost),
		// A client that is closed while it waits in a rebalance waits it out.
		kgo.HeartbeatInterval(100*time.Millisecond), kgo.RebalanceTimeout(2*time.Second))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			client.PollFetches(ctx)
		}
	}()
	m.die = sync.OnceFunc(func() {
		cancel()
		<-done
		client.Close()
	})
	t.Cleanup(m.die)
	return m
}

// owns returns the partitions that the group has assigned.
func (m *materializer) owns() []int32 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.owned)
}

// settled waits until a group's members own all partitions, each at least one.
func settled(t *testing.T, members ...*materializer) {
	t.Helper()
	servicetest.Eventually(t, testTimeout, func() error {
		all := 0
		for _, m := range members {
			owned := len(m.owns())
			if owned == 0 {
				return fmt.Errorf("%s owns nothing", m.addr)
			}
			all += owned
		}
		if all != eventlogtest.Partitions {
			return fmt.Errorf("%d of %d partitions are owned", all, eventlogtest.Partitions)
		}
		return nil
	})
}

// leave ends the membership, as the session timeout would do to a materializer that is dead.
func (m *materializer) leave(t *testing.T) {
	t.Helper()
	admin := kadm.NewClient(eventlogtest.NewClient(t, m.kafka))
	if _, err := admin.LeaveGroup(as(t, ""), kadm.LeaveGroup(m.group).InstanceIDs(m.addr)); err != nil {
		t.Fatalf("leave %s: %v", m.group, err)
	}
}

func startKafka(t *testing.T, opts ...kfake.Opt) eventlog.Config {
	t.Helper()
	_, kafka := eventlogtest.NewCluster(t, opts...)
	eventlogtest.Ensure(t, kafka)
	return kafka
}

func startRouter(t *testing.T, kafka eventlog.Config, replicas ...string) *query.Router {
	t.Helper()
	cfg := query.DefaultConfig()
	cfg.Config, cfg.Replicas = kafka, replicas
	r, err := query.NewRouter(cfg, discardLog(), newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			t.Errorf("run the router: %v", err)
		}
	})
	return r
}

func ready(t *testing.T, r *query.Router) {
	t.Helper()
	servicetest.Eventually(t, testTimeout, func() error { return r.Ready(t.Context()) })
}

func keys(ids ...string) *presencev1.GetStatesRequest {
	req := &presencev1.GetStatesRequest{Cluster: "default"}
	for _, id := range ids {
		req.Keys = append(req.Keys, &presencev1.StateKey{ClientId: id})
	}
	return req
}

func devices(n int) (ids []string, facts []presence.Fact) {
	for i := range n {
		ids = append(ids, fmt.Sprint("dev", i))
		facts = append(facts, readertest.Connected(ids[i]))
	}
	return ids, facts
}

// checkAll asks for all clients at once and expects them online.
func checkAll(t *testing.T, r query.StateReader, ids []string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	answer, err := r.GetStates(ctx, keys(ids...))
	if err != nil {
		return err
	}
	if len(answer.GetEntries()) != len(ids) {
		return fmt.Errorf("%d entries for %d clients", len(answer.GetEntries()), len(ids))
	}
	for i, e := range answer.GetEntries() {
		if int(e.GetIndex()) != i || e.GetStatus() != "online" {
			return fmt.Errorf("entry %d is %v", i, e)
		}
	}
	return nil
}

func TestConformance(t *testing.T) {
	fill := func(f *readertest.Fake, facts []presence.Fact, nodes []presence.NodeFact) {
		f.ApplyNodes(nodes...)
		f.Apply(facts...)
	}
	t.Run("in process", func(t *testing.T) {
		readertest.Run(t, func(_ *testing.T, facts []presence.Fact, nodes []presence.NodeFact) query.StateReader {
			f := readertest.NewFake(eventlogtest.Partitions)
			fill(f, facts, nodes)
			return f
		})
	})
	t.Run("over gRPC", func(t *testing.T) {
		readertest.Run(t, func(t *testing.T, facts []presence.Fact, nodes []presence.NodeFact) query.StateReader {
			kafka := startKafka(t)
			one, two := join(t, kafka, "a"), join(t, kafka, "a")
			fill(one.Fake, facts, nodes)
			fill(two.Fake, facts, nodes)
			settled(t, one, two)
			r := startRouter(t, kafka, "a")
			ready(t, r)
			return r
		})
	})
}

func TestRouterFollowsTheGroup(t *testing.T) {
	kafka := startKafka(t)
	r := startRouter(t, kafka, "a")
	ids, facts := devices(60)
	short, cancel := context.WithTimeout(as(t, ""), 300*time.Millisecond)
	defer cancel()
	if _, err := r.GetStates(short, keys(ids[0])); status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "has no owner") {
		t.Errorf("without any owner: %v", err)
	}
	if err := r.Ready(t.Context()); err == nil {
		t.Error("ready without any owner")
	}
	one := join(t, kafka, "a")
	one.Apply(facts...)
	ready(t, r)
	two := join(t, kafka, "a")
	two.Apply(facts...)
	servicetest.Eventually(t, testTimeout, func() error {
		if err := checkAll(t, r, ids); err != nil {
			return err
		}
		if two.Calls() == 0 {
			return errors.New("the second member was not asked")
		}
		return nil
	})

	// One dies. Until its session times out its partitions have no answer, and the others have.
	settled(t, one, two)
	dead := two.owns()
	two.stop()
	for _, id := range ids {
		p := eventlog.Partition(eventlog.ClientKey("default", id), kafka.Partitions)
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := r.GetStates(ctx, keys(id))
		cancel()
		switch {
		case !slices.Contains(dead, p):
			if err != nil {
				t.Errorf("partition %d has an owner: %v", p, err)
			}
		case status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), fmt.Sprintf("partition %d ", p)):
			t.Errorf("partition %d has none: %v", p, err)
		}
	}
	if err := r.Ready(t.Context()); err != nil {
		t.Errorf("one dead owner makes the router unready: %v", err)
	}
	two.leave(t)
	servicetest.Eventually(t, testTimeout, func() error { return checkAll(t, r, ids) })
}

// A routing that is out of date is mended within the request that finds out.
func TestRouterAsksAgainWhenNotOwned(t *testing.T) {
	kafka := startKafka(t)
	one := join(t, kafka, "a")
	ids, facts := devices(20)
	one.Apply(facts...)
	r := startRouter(t, kafka, "a")
	ready(t, r)
	asked := 0
	one.Edit(func(answer *presencev1.GetStatesResponse) error {
		if asked++; asked > 1 {
			return nil
		}
		for _, e := range answer.GetEntries() {
			answer.NotOwned = append(answer.NotOwned, e.GetIndex())
		}
		answer.Entries = nil
		return nil
	})
	if err := checkAll(t, r, ids); err != nil || asked != 2 {
		t.Errorf("asked %d times: %v", asked, err)
	}
	// An owner that breaks its promise is an error, not a wrong answer.
	one.Edit(func(answer *presencev1.GetStatesResponse) error {
		answer.Entries = answer.GetEntries()[1:]
		return nil
	})
	if err := checkAll(t, r, ids); status.Code(err) != codes.Internal {
		t.Errorf("a key without an answer: %v", err)
	}
	one.Edit(func(*presencev1.GetStatesResponse) error { return status.Error(codes.FailedPrecondition, "not yet") })
	if err := checkAll(t, r, ids); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("an error that is final: %v", err)
	}
}

func TestRouterFallsOverToAReplica(t *testing.T) {
	kafka := startKafka(t)
	a, b := join(t, kafka, "a"), join(t, kafka, "b")
	ids, facts := devices(20)
	a.Apply(facts...)
	b.Apply(facts...)
	r := startRouter(t, kafka, "a", "b")
	ready(t, r)
	servicetest.Eventually(t, testTimeout, func() error {
		if err := checkAll(t, r, ids); err != nil {
			return err
		}
		if a.Calls() == 0 {
			return errors.New("the preferred replica was not asked")
		}
		return nil
	})
	before := b.Calls()
	if err := checkAll(t, r, ids); err != nil || b.Calls() != before {
		t.Errorf("replica b was asked while a answers: %v", err)
	}
	a.stop()
	if err := checkAll(t, r, ids); err != nil {
		t.Errorf("replica a is dead, b is not: %v", err)
	}
}

func TestRoutingAge(t *testing.T) {
	cluster, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	one := join(t, kafka, "a")
	ids, facts := devices(5)
	one.ApplyNodes(readertest.Healthy()...)
	one.Apply(facts...)
	r := startRouter(t, kafka, "a")
	ready(t, r)
	at := r.RoutedAt()
	if at.IsZero() {
		t.Fatal("ready, but never routed")
	}
	// Kafka does not answer any more: the last routing stays in use, and answers say that it is old.
	cluster.ControlKey(15, func(request kmsg.Request) (kmsg.Response, error, bool) {
		cluster.KeepControl()
		return nil, errors.New("no"), true
	})
	cfg := testConfig(t)
	cfg.StaleAfter = 10 * time.Millisecond
	s := serve(t, cfg, r)
	servicetest.Eventually(t, testTimeout, func() error {
		answer, err := s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: ids[0]})
		if err != nil {
			return err
		}
		if !answer.GetOnline() || !slices.Contains(answer.GetFreshness().GetStaleReasons(), "routing_stale") {
			return fmt.Errorf("answer %v", answer)
		}
		return nil
	})
}
