package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// questionDeadline is what every request has to do with while a replica exists: an owner that hangs would let it wait for longer.
const questionDeadline = 3 * time.Second

// failover is how long an answer may take while a replica takes over.
const failover = time.Second

// fleet produces facts of clients that come and go.
type fleet struct {
	s    *processes
	ids  []string
	tail chaos.Tail

	latest map[string]presence.Fact
	random *rand.Rand
	ms     int64
}

func newFleet(s *processes, clients int) *fleet {
	f := &fleet{s: s, latest: map[string]presence.Fact{}, random: rand.New(rand.NewPCG(1, 1)), ms: time.Now().UnixMilli()}
	for i := range clients {
		f.ids = append(f.ids, fmt.Sprint("dev", i))
	}
	return f
}

// next produces a fact about a client.
func (f *fleet) next(ctx context.Context, id string) error {
	f.ms = max(f.ms+1, time.Now().UnixMilli())
	fact, online := f.latest[id]
	if online {
		fact.Kind, fact.TimeMS, fact.ReceivedMS, fact.DisconnectedAtMS, fact.Reason, fact.RawReason = presence.Closed, f.ms, f.ms, f.ms, presence.ReasonNormal, "normal"
		delete(f.latest, id)
	} else {
		fact = presence.Fact{
			Kind: presence.Opened, Cluster: cluster, ClientID: id, Dialect: presence.DialectEMQX, Node: "n1", Connection: fmt.Sprint(f.ms),
			TimeMS: f.ms, ReceivedMS: f.ms, ConnectedAtMS: f.ms, Username: "fleet",
		}
		f.latest[id] = fact
	}
	fact.SetID()
	r, err := f.s.client.ProduceSync(ctx, eventlog.FactRecord(&fact, eventlog.JSON)).First()
	if err == nil {
		f.tail.Saw(r.Partition, time.Now(), r.Offset+1)
	}
	return err
}

// first has every client connect.
func (f *fleet) first(t *testing.T) {
	t.Helper()
	for _, id := range f.ids {
		must(t, f.next(t.Context(), id))
	}
}

// run goes on until ctx ends.
func (f *fleet) run(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := f.next(ctx, f.ids[f.random.IntN(len(f.ids))]); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// questions are asked all the time.
type questions struct {
	rpc  presencev1.PresenceServiceClient
	base string
	ids  []string

	mu      sync.Mutex
	phase   string
	asked   map[string]int
	stale   map[string]int // by phase
	reasons map[string]bool
	slowest map[string]string // by phase
	took    map[string]time.Duration
	late    map[string]int // took longer than failover
	answers []chaos.Answer
	errs    []error
}

func newQuestions(t *testing.T, query *process, ids []string) *questions {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+query.rpc, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &questions{
		rpc: presencev1.NewPresenceServiceClient(conn), base: "http://" + query.rest, ids: ids, asked: map[string]int{}, stale: map[string]int{}, reasons: map[string]bool{},
		slowest: map[string]string{}, took: map[string]time.Duration{}, late: map[string]int{},
	}
}

func authorised(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", basicAuth())
}

func basicAuth() string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth("dev", processPassword)
	return r.Header.Get("Authorization")
}

// during names what happens now, for the report.
func (q *questions) during(phase string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.phase = phase
}

// kinds of questions, by what they ask.
func (q *questions) kinds() map[string]func(ctx context.Context, id string) (*presencev1.Freshness, []*presencev1.Client, error) {
	return map[string]func(ctx context.Context, id string) (*presencev1.Freshness, []*presencev1.Client, error){
		"short call": func(ctx context.Context, id string) (*presencev1.Freshness, []*presencev1.Client, error) {
			return nil, nil, q.short(ctx, id)
		},
		"GetStatus": func(ctx context.Context, id string) (*presencev1.Freshness, []*presencev1.Client, error) {
			answer, err := q.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: id})
			return answer.GetFreshness(), nil, err
		},
		"GetClient": func(ctx context.Context, id string) (*presencev1.Freshness, []*presencev1.Client, error) {
			c, err := q.rpc.GetClient(ctx, &presencev1.GetClientRequest{ClientId: id})
			return c.GetFreshness(), []*presencev1.Client{c}, err
		},
		"BatchGetClients": func(ctx context.Context, _ string) (*presencev1.Freshness, []*presencev1.Client, error) {
			answer, err := q.rpc.BatchGetClients(ctx, &presencev1.BatchGetClientsRequest{ClientIds: q.ids})
			return answer.GetFreshness(), nil, err
		},
		"ListClients": func(ctx context.Context, _ string) (*presencev1.Freshness, []*presencev1.Client, error) {
			answer, err := q.rpc.ListClients(ctx, &presencev1.ListClientsRequest{PageSize: 1000})
			if err == nil && len(answer.GetClients()) != len(q.ids) {
				err = fmt.Errorf("%d of %d clients", len(answer.GetClients()), len(q.ids))
			}
			return answer.GetFreshness(), nil, err
		},
		"GetStats": func(ctx context.Context, _ string) (*presencev1.Freshness, []*presencev1.Client, error) {
			answer, err := q.rpc.GetStats(ctx, &presencev1.GetStatsRequest{})
			if err == nil && int(answer.GetClients().GetTotal()) != len(q.ids) {
				err = fmt.Errorf("%d of %d clients", answer.GetClients().GetTotal(), len(q.ids))
			}
			return answer.GetFreshness(), nil, err
		},
	}
}

// short asks the seed call.
func (q *questions) short(ctx context.Context, id string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, q.base+"/client-id/"+id+"/status", http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", basicAuth())
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(answer.Body)
	if err = errors.Join(err, answer.Body.Close()); err == nil && (answer.StatusCode != http.StatusOK || !strings.HasPrefix(string(body), `{"online":`)) {
		err = fmt.Errorf("%d: %s", answer.StatusCode, body)
	}
	return err
}

// run asks questions of all kinds, a kind each in turn, until ctx ends.
func (q *questions) run(ctx context.Context, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 7))
	kinds := q.kinds()
	names := make([]string, 0, len(kinds))
	for name := range kinds {
		names = append(names, name)
	}
	slices.Sort(names)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for i := int(seed); ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		name := names[i%len(names)]
		within, cancel := context.WithTimeout(authorised(ctx), questionDeadline)
		sent := time.Now()
		fresh, clients, err := kinds[name](within, q.ids[random.IntN(len(q.ids))])
		cancel()
		if ctx.Err() != nil {
			return
		}
		q.keep(name, sent, fresh, clients, err)
	}
}

func (q *questions) keep(name string, sent time.Time, fresh *presencev1.Freshness, clients []*presencev1.Client, err error) {
	took := time.Since(sent)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked[q.phase]++
	if err != nil {
		q.errs = append(q.errs, fmt.Errorf("%s: %s after %v: %w", q.phase, name, took, err))
		return
	}
	if fresh.GetStale() {
		q.stale[q.phase]++
		q.reasons[name+": "+strings.Join(fresh.GetStaleReasons(), ", ")] = true
	}
	if took > failover {
		q.late[q.phase]++
	}
	if took > q.took[q.phase] {
		q.took[q.phase], q.slowest[q.phase] = took, name
	}
	for _, c := range clients {
		q.answers = append(q.answers, chaos.StatedBy(c, name, sent))
	}
}

// failsOver sees that answers came in time in phases in which an owner was away, but for one of a hundred, which a busy machine may have kept waiting.
func (q *questions) failsOver(t *testing.T, phases ...string) {
	t.Helper()
	for _, p := range phases {
		if late := q.late[p]; late*100 > q.asked[p] {
			t.Errorf("%s: %d of %d answers took longer than %v", p, late, q.asked[p], failover)
		}
	}
}

// report logs what the phases were like.
func (q *questions) report(t *testing.T, phases ...string) {
	t.Helper()
	for _, why := range slices.Sorted(maps.Keys(q.reasons)) {
		t.Logf("stale was %s", why)
	}
	for _, p := range phases {
		t.Logf("%-28s %5d answers, %4d stale, the slowest after %v (%s)", p+":", q.asked[p], q.stale[p], q.took[p].Round(time.Millisecond), q.slowest[p])
	}
}

// sightings are the transitions that a watch has told: how often each, by client and version.
type sightings struct {
	mu   sync.Mutex
	seen map[string]int
	done chan error
}

// watch tells transitions until ctx ends; it returns once it has begun.
func watch(ctx context.Context, t *testing.T, rpc presencev1.PresenceServiceClient) *sightings {
	t.Helper()
	s := &sightings{seen: map[string]int{}, done: make(chan error, 1)}
	stream, err := rpc.WatchClients(authorised(ctx), &presencev1.WatchClientsRequest{Heartbeat: durationpb.New(time.Second)})
	must(t, err)
	_, err = stream.Recv()
	must(t, err)
	go func() {
		for {
			m, err := stream.Recv()
			if ctx.Err() != nil {
				err = nil
			}
			if err != nil || m == nil {
				s.done <- err
				return
			}
			if c := m.GetTransition(); c != nil {
				s.mu.Lock()
				s.seen[sighting(c.GetClientId(), c.GetEventOffset(), c.GetNodeEventOffset())]++
				s.mu.Unlock()
			}
		}
	}()
	return s
}

func sighting(id string, event, node int64) string { return fmt.Sprint(id, " ", event, " ", node) }

// missed compares with what was published.
func (s *sightings) missed(published map[string]bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for v := range published {
		if s.seen[v] != 1 {
			return fmt.Errorf("the watch has told transition %q %d times", v, s.seen[v])
		}
	}
	return nil
}
