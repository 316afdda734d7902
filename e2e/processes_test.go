package e2e

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// The split deployment as processes: materializers are killed, stopped, added and taken away while everything is asked.
func TestProcesses(t *testing.T) {
	binaries := buildServices(t)
	t.Run("with a replica no request fails", func(t *testing.T) { testReplicas(t, binaries) })
	t.Run("without a replica requests wait, and not for ever", func(t *testing.T) { testNoReplica(t, binaries) })
}

func testReplicas(t *testing.T, binaries string) {
	s := startProcesses(t, binaries)
	a1, a2 := s.materializer("a").start(), s.materializer("a").start()
	b1, b2 := s.materializer("b").start(), s.materializer("b").start()
	query := s.query("--replicas", "a,b").start()
	s.shared("a", a1, a2)
	s.shared("b", b1, b2)
	query.ready()
	f := newFleet(s, 40)
	f.first(t)

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	q := newQuestions(t, query, f.ids)
	everybodyIsKnown(t, q)
	watched := watch(ctx, t, q.rpc)
	since := s.ends(t)
	phases := []string{"calm"}
	during := func(phase string) {
		phases = append(phases, phase)
		q.during(phase)
	}
	q.during("calm")
	var work sync.WaitGroup
	for i := range uint64(6) {
		work.Go(func() { q.run(ctx, i) })
	}
	facts, stopFacts := context.WithCancel(ctx)
	produced := make(chan error, 1)
	go func() { produced <- f.run(facts) }()
	q.more(t, 200)

	during("one is killed")
	a1.end(syscall.SIGKILL)
	q.more(t, 400)
	during("it comes back")
	a1.start().ready()
	s.shared("a", a1, a2)
	q.more(t, 100)

	during("one hangs")
	a2.signal(syscall.SIGSTOP)
	q.more(t, 600)
	during("it goes on")
	a2.signal(syscall.SIGCONT)
	q.more(t, 200)

	during("a third joins")
	a3 := s.materializer("a").start()
	s.shared("a", a1, a2, a3)
	q.more(t, 100)

	during("one leaves for good")
	a1.end(syscall.SIGTERM)
	s.shared("a", a2, a3)
	q.more(t, 100)

	during("the replica is away")
	b1.signal(syscall.SIGSTOP)
	b2.signal(syscall.SIGSTOP)
	q.more(t, 200)
	during("and then the only fresh ones")
	a2.signal(syscall.SIGSTOP)
	a3.signal(syscall.SIGSTOP)
	b1.signal(syscall.SIGCONT)
	b2.signal(syscall.SIGCONT)
	q.more(t, 200)
	a2.signal(syscall.SIGCONT)
	a3.signal(syscall.SIGCONT)

	stopFacts()
	must(t, <-produced)
	ledger := s.settled(t)
	published := s.transitions(t, since)
	servicetest.Eventually(t, patience, func() error { return watched.missed(published) })
	cancel()
	work.Wait()
	must(t, <-watched.done)

	q.report(t, phases...)
	q.failsOver(t, "one is killed", "one hangs", "the replica is away", "and then the only fresh ones")
	t.Logf("%d answers about one client are the fold at their offsets, %d transitions are in the watch", len(q.answers), len(published))
	for _, err := range q.errs {
		t.Error(err)
	}
	if len(q.answers) == 0 || len(published) == 0 {
		t.Error("nothing was asked or published")
	}
	if err := ledger.CheckAnswers(q.answers); err != nil {
		t.Error(err)
	}
	if err := f.tail.Check(q.answers, processStale, 2*time.Second); err != nil {
		t.Error(err)
	}
}

// everybodyIsKnown waits until all clients are in answers.
func everybodyIsKnown(t *testing.T, q *questions) {
	t.Helper()
	servicetest.Eventually(t, patience, func() error {
		ctx, cancel := context.WithTimeout(authorised(t.Context()), callTimeout)
		defer cancel()
		for name, ask := range q.kinds() {
			if _, _, err := ask(ctx, q.ids[0]); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		return nil
	})
}

// more waits for n more answers.
func (q *questions) more(t *testing.T, n int) {
	t.Helper()
	q.mu.Lock()
	phase := q.phase
	n += q.asked[phase]
	q.mu.Unlock()
	servicetest.Eventually(t, patience, func() error {
		q.mu.Lock()
		defer q.mu.Unlock()
		if q.asked[phase] < n {
			return fmt.Errorf("%d of %d answers", q.asked[phase], n)
		}
		return nil
	})
}

// settled waits until everything is published, and checks it.
func (s *processes) settled(t *testing.T) *chaos.Ledger {
	t.Helper()
	opts, err := s.kafka.Opts(slog.New(slog.DiscardHandler))
	must(t, err)
	ledger := chaos.NewLedger(cluster, presence.DefaultAllowanceMS, processPartitions)
	r, err := chaos.NewReader(ledger, opts)
	must(t, err)
	defer r.Close()
	servicetest.Eventually(t, patience, func() error {
		if err := r.Read(t.Context()); err != nil {
			return err
		}
		return ledger.Check()
	})
	return ledger
}

// ends returns the ends of client-state.
func (s *processes) ends(t *testing.T) kadm.ListedOffsets {
	t.Helper()
	ends, err := s.admin.ListCommittedOffsets(t.Context(), eventlog.TopicClientState)
	must(t, err)
	return ends
}

// transitions returns those that were published from some offsets on.
func (s *processes) transitions(t *testing.T, since kadm.ListedOffsets) map[string]bool {
	t.Helper()
	from := map[int32]kgo.Offset{}
	left := map[int32]int64{}
	since.Each(func(o kadm.ListedOffset) { from[o.Partition] = kgo.NewOffset().At(o.Offset) })
	s.ends(t).Each(func(o kadm.ListedOffset) {
		if begin, _ := since.Lookup(o.Topic, o.Partition); o.Offset > begin.Offset {
			left[o.Partition] = o.Offset
		}
	})
	cl := eventlogtest.NewClient(t, s.kafka, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicClientState: from}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	all := map[string]bool{}
	for len(left) > 0 {
		fetches := cl.PollFetches(ctx)
		must(t, fetches.Err())
		for _, r := range fetches.Records() {
			if end, ok := left[r.Partition]; ok && r.Offset >= end-1 {
				delete(left, r.Partition)
			}
			var state eventlog.ClientState
			if r.Attrs.IsControl() || r.Value == nil {
				continue
			}
			must(t, eventlog.DecodeClientState(r, &state))
			if state.Transition {
				all[sighting(state.ClientID, state.EventOffset, state.NodeEventOffset)] = true
			}
		}
	}
	return all
}

func testNoReplica(t *testing.T, binaries string) {
	const requestTimeout = 2 * time.Second
	s := startProcesses(t, binaries)
	one, two := s.materializer("a").start(), s.materializer("a", "--leave-on-stop").start()
	impatient, query := s.query("--request-timeout", requestTimeout.String()).start(), s.query("--request-timeout", "30s").start()
	s.shared("a", one, two)
	f := newFleet(s, 40)
	f.first(t)
	impatient.ready()
	q, hurried := newQuestions(t, query.ready(), f.ids), newQuestions(t, impatient, f.ids)
	everybodyIsKnown(t, q)
	everybodyIsKnown(t, hurried)

	// Nobody answers for the partitions of one that was killed: whoever does not want to wait is told so in time, with the partition.
	one.end(syscall.SIGKILL)
	began := time.Now()
	refused := 0
	for _, id := range f.ids {
		ctx, cancel := context.WithTimeout(authorised(t.Context()), callTimeout)
		_, err := hurried.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: id})
		cancel()
		if err == nil {
			continue
		}
		refused++
		if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "partition ") || len(status.Convert(err).Details()) == 0 {
			t.Errorf("without an owner: %v", err)
		}
		break
	}
	t.Logf("refused after %v", time.Since(began).Round(time.Millisecond))
	if refused == 0 {
		t.Error("a process that was killed is not missed")
	}

	// Whoever waits is answered once it is back.
	answered := q.all(t)
	one.start().ready()
	must(t, <-answered)

	// One that leaves is not waited for: what it owned is answered for by the other.
	s.shared("a", one, two)
	two.end(syscall.SIGTERM)
	must(t, <-q.all(t))
	s.shared("a", one)
}

// all asks questions of all kinds once, about all clients.
func (q *questions) all(t *testing.T) <-chan error {
	t.Helper()
	answered := make(chan error, 1)
	began := time.Now()
	kinds := q.kinds()
	go func() {
		ctx, cancel := context.WithTimeout(authorised(t.Context()), patience)
		defer cancel()
		errs := make([]error, 0, len(kinds)+len(q.ids))
		var mu sync.Mutex
		var work sync.WaitGroup
		ask := func(name, id string) {
			work.Go(func() {
				if _, _, err := kinds[name](ctx, id); err != nil {
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, fmt.Errorf("%s: %w", name, err))
				}
			})
		}
		for name := range kinds {
			ask(name, q.ids[0])
		}
		for _, id := range q.ids {
			ask("short call", id)
		}
		work.Wait()
		t.Logf("all are answered after %v", time.Since(began).Round(time.Millisecond))
		answered <- errors.Join(slices.Clip(errs)...)
	}()
	return answered
}
