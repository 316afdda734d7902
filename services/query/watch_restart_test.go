package query_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// fleet is a fleet of clients whose transitions are numbered: the n-th of a client has the event offset n.
type fleet struct {
	clients   int
	published []atomic.Int64 // by client
}

func fleetID(client int) string { return fmt.Sprintf("g%d-dev%d", client%10, client) }

// record makes the next transition of a client.
func (f *fleet) record(p *publisher, client int) *kgo.Record {
	n := f.published[client].Add(1)
	from, to := presence.Offline, presence.Online
	if n%2 == 0 {
		from, to = to, from
	}
	return p.transition(fleetID(client), from, to, func(s *eventlog.ClientState) {
		s.EventOffset, s.Node, s.Username = n, fmt.Sprint("n", client%5), fmt.Sprint("u", client%7)
	})
}

// follower is one watcher, which comes back with its last token whenever its stream ends.
type follower struct {
	req     *presencev1.WatchClientsRequest
	name    string // of the filter
	selects func(client int, n int64) bool

	mu    sync.Mutex
	seen  map[string][]int64 // event offsets by client, in the order of arrival
	fault error
	count atomic.Int64
}

// follow watches until ctx ends.
func (f *follower) follow(ctx context.Context, conn *grpc.ClientConn, ready func()) {
	begun := false
	for ctx.Err() == nil {
		once, cancel := context.WithCancel(ctx)
		stream, err := presencev1.NewPresenceServiceClient(conn).WatchClients(once, f.req, grpc.WaitForReady(true))
		for err == nil {
			var m *presencev1.WatchClientsResponse
			if m, err = stream.Recv(); err != nil {
				break
			}
			if m.GetResumeToken() != "" {
				f.req.ResumeToken = m.GetResumeToken()
			}
			f.take(m)
			if !begun {
				begun = true
				ready()
			}
			if m.GetType() == "skipped" {
				// It comes back for what it was too slow for.
				f.req.ResumeToken = m.GetSkipped().GetResumeToken()
				break
			}
		}
		cancel()
		if code := status.Code(err); err != nil && ctx.Err() == nil && code != codes.Unavailable && code != codes.Canceled {
			f.mu.Lock()
			f.fault = err
			f.mu.Unlock()
			return
		}
	}
}

func (f *follower) take(m *presencev1.WatchClientsResponse) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m.GetType() == "transition" {
		id := m.GetTransition().GetClientId()
		f.seen[id] = append(f.seen[id], m.GetTransition().GetEventOffset())
		f.count.Add(1)
	}
}

// check compares what was seen with what was published.
func (f *follower) check(all *fleet) (want int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault != nil {
		return 0, f.fault
	}
	for client := range all.clients {
		var expected []int64
		for n := int64(1); n <= all.published[client].Load(); n++ {
			if f.selects(client, n) {
				expected = append(expected, n)
			}
		}
		want += int64(len(expected))
		seen := f.seen[fleetID(client)]
		for i, n := range seen {
			if i >= len(expected) || n != expected[i] {
				return want, fmt.Errorf("filter %s: client %s: transition %d is number %d; seen %v", f.name, fleetID(client), i, n, seen)
			}
		}
		if len(seen) < len(expected) {
			return want, fmt.Errorf("filter %s: client %s: %d transitions of %d", f.name, fleetID(client), len(seen), len(expected))
		}
	}
	return want, nil
}

// newFollower makes one of several kinds of filters.
func newFollower(i, clients int) *follower {
	f := &follower{req: &presencev1.WatchClientsRequest{}, seen: make(map[string][]int64)}
	switch i % 50 {
	case 0:
		f.selects = func(int, int64) bool { return true }
	case 1:
		f.req.Node, f.selects = "n3", func(c int, _ int64) bool { return c%5 == 3 }
	case 2:
		f.req.Username, f.selects = "u2", func(c int, _ int64) bool { return c%7 == 2 }
	case 3:
		f.req.ClientIdPrefix, f.selects = "g4-", func(c int, _ int64) bool { return c%10 == 4 }
	case 4:
		f.req.Status, f.req.ClientIdPrefix, f.selects = "unknown", "g4-", func(int, int64) bool { return false }
	default:
		one, two := i%clients, (i*31+7)%clients
		f.req.ClientIds, f.selects = []string{fleetID(one), fleetID(two)}, func(c int, _ int64) bool { return c == one || c == two }
	}
	f.name = f.req.String()
	return f
}

// testWatchersOverRestart has many watchers follow a fleet while the service is restarted: each gets every transition that it asked for, in
// order, exactly once.
func testWatchersOverRestart(t testing.TB, watchers, clients int, within time.Duration, edit ...func(*query.Config)) (second *server) {
	t.Helper()
	_, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	cfg := watchConfig(t, kafka, edit...)
	first := serve(t, cfg, readertest.NewFake(kafka.Partitions))
	cfg.HTTPAddr, cfg.GRPCAddr = first.service.HTTPAddr().String(), first.service.GRPCAddr().String()

	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "authorization", basic("read", password)))
	defer cancel()
	all := &fleet{clients: clients, published: make([]atomic.Int64, clients)}
	followers := make([]*follower, watchers)
	var begun, following sync.WaitGroup
	var conn *grpc.ClientConn
	for i := range followers {
		if i%500 == 0 {
			var err error
			if conn, err = grpc.NewClient(cfg.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
				t.Fatal(err)
			}
			defer func(c *grpc.ClientConn) {
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}(conn)
		}
		f, over := newFollower(i, clients), conn
		followers[i] = f
		begun.Add(1)
		following.Go(func() { f.follow(ctx, over, begun.Done) })
	}
	begun.Wait()

	// Transitions are produced all the time, before, while and after the service is away.
	p := newPublisher(t, kafka)
	producing, stop := context.WithCancel(ctx)
	var produced sync.WaitGroup
	produced.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for next := 0; producing.Err() == nil; {
			records := make([]*kgo.Record, 10)
			for i := range records {
				records[i] = all.record(p, next%clients)
				next++
			}
			if err := p.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
				t.Errorf("publish: %v", err)
				return
			}
			select {
			case <-tick.C:
			case <-producing.Done():
			}
		}
	})
	reach := func(n int64) {
		t.Helper()
		servicetest.Eventually(t, within, func() error {
			if got := followers[0].count.Load(); got < n {
				return fmt.Errorf("the first watcher has %d of %d transitions", got, n)
			}
			return nil
		})
	}
	reach(300)
	first.stop()
	if err := <-first.stopped; err != nil {
		t.Fatalf("stop: %v", err)
	}
	second = serve(t, cfg, readertest.NewFake(kafka.Partitions))
	reach(followers[0].count.Load() + 300)
	stop()
	produced.Wait()
	var want int64
	for _, f := range followers {
		servicetest.Eventually(t, within, func() error {
			n, err := f.check(all)
			if err == nil {
				want += n
			}
			return err
		})
	}
	cancel()
	following.Wait()
	t.Logf("%d watchers were told %d transitions of %d clients", watchers, want, clients)
	return second
}

// BenchmarkWatchersOverRestart is the same with 10,000 watchers.
func BenchmarkWatchersOverRestart(b *testing.B) {
	for b.Loop() {
		testWatchersOverRestart(b, 10_000, 10_000, 5*time.Minute)
	}
}

func TestWatchersOverRestart(t *testing.T) {
	t.Run("in memory", func(t *testing.T) { testWatchersOverRestart(t, 200, 50, testTimeout) })
	// A ring so small that all come back from before it.
	t.Run("catching up", func(t *testing.T) {
		second := testWatchersOverRestart(t, 40, 50, testTimeout, func(c *query.Config) { c.WatchBuffer = 40 })
		if n := counterOf(t, second.reg, "presence_query_watch_catch_ups_total"); n < 20 {
			t.Errorf("%v of 40 watchers caught up", n)
		}
	})
}
