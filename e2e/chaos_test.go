//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

const (
	// chaosStaleAfter is the query services' --stale-after.
	chaosStaleAfter = 10 * time.Second
	// chaosSlack is what may lie between a moment and its being noticed, on a machine that has other things to do.
	chaosSlack = 500 * time.Millisecond
	// chaosPatience bounds the wait for the end of what faults delay: spools, rebalances, restores.
	chaosPatience = 3 * time.Minute
	// recovery is how long a replica that had a fault may take until it answers again.
	recovery = 20 * time.Second
	// restart is how long a query service may take until it answers again.
	restart = 5 * time.Second
	// kafkaStart is how long brokers that were killed may take until they answer: 34 s were seen where two processors had to start all three.
	kafkaStart = 40 * time.Second
)

// chaosOptions are the run's, from the environment.
type chaosOptions struct {
	seed    uint64
	lasts   time.Duration
	rate    float64
	clients int
}

func chaosFromEnv(t *testing.T) chaosOptions {
	t.Helper()
	var errs [4]error
	o := chaosOptions{}
	env := func(name, otherwise string) string { return cmp.Or(os.Getenv("PRESENCE_E2E_CHAOS_"+name), otherwise) }
	o.seed, errs[0] = strconv.ParseUint(env("SEED", "61"), 10, 64)
	o.lasts, errs[1] = time.ParseDuration(env("DURATION", "90s"))
	o.rate, errs[2] = strconv.ParseFloat(env("RATE", "300"), 64)
	o.clients, errs[3] = strconv.Atoi(env("CLIENTS", "2000"))
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatalf("PRESENCE_E2E_CHAOS_SEED, _DURATION, _RATE, _CLIENTS: %v", err)
	}
	o.clients = (o.clients + crowdWorkers - 1) / crowdWorkers * crowdWorkers
	return o
}

// done is a step as it was carried out.
type done struct {
	chaos.Step
	began, healed time.Time
}

// TestChaos kills, stops, cuts off and restarts every kind of process while clients come and go, and proves afterwards that every answer and every
// transition was what the facts make.
func TestChaos(t *testing.T) {
	o := chaosFromEnv(t)
	steps := chaos.Plan(o.seed, o.lasts)
	t.Logf("seed %d, %v, %.0f events/s of %d clients; the same again: make chaos SEED=%[1]d DURATION=%[2]v RATE=%.0[3]f CLIENTS=%[4]d", o.seed, o.lasts, o.rate, o.clients)
	for _, step := range steps {
		t.Logf("plan: %v", step)
	}
	s := startChaosStack(t)
	askers := map[string]*asker{}
	for _, name := range chaos.Processes()[chaos.Query] {
		askers[name] = newChaosAsker(t, s.addr(name, "8080"), s.addr(name, "8081"))
	}
	tail := s.follow(t)
	load := startCrowd(t, s.addr("broker", "1883"), o.clients, o.rate, o.seed)
	ids := make([]string, 0, o.clients)
	for _, m := range load.members {
		ids = append(ids, m.id)
	}
	asked := startInquiry(t, askers, ids, o.seed)
	carried := s.carryOut(t, steps, o.lasts, load)
	load.finish()
	online := load.truth()
	asked.finish()
	t.Logf("load: %d events, %d connects refused", load.events.Load(), load.refused.Load())

	s.quiesce(t)
	final := settle(t, askers, ids)
	servicetest.Eventually(t, patience, func() error { return askers["query-1"].sameReplicas(t.Context()) })
	ledger := chaos.NewLedger(cluster, presence.DefaultAllowanceMS, chaosPartitions)
	s.checkLedger(t, ledger)
	checkFinal(t, ledger, final, online)
	if err := ledger.CheckAnswers(append(asked.answers[:len(asked.answers):len(asked.answers)], final...)); err != nil {
		t.Errorf("answers: %v", err)
	}
	if err := tail.Check(asked.answers, chaosStaleAfter, chaosSlack); err != nil {
		t.Errorf("freshness: %v", err)
	}
	checkFailures(t, asked.failures, carried)
	summarise(t, o, ledger, asked, carried)
}

// follow notes what the log has, as it comes.
func (s *chaosStack) follow(t *testing.T) *chaos.Tail {
	t.Helper()
	from := map[int32]kgo.Offset{}
	for p := range int32(chaosPartitions) {
		from[p] = kgo.NewOffset().At(0)
	}
	cl, err := kgo.NewClient(append(s.opts[:len(s.opts):len(s.opts)], kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicClientEvents: from}))...)
	must(t, err)
	tail := &chaos.Tail{}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			fetches := cl.PollFetches(ctx)
			now := time.Now()
			// Errors are those of faults: the client tries again.
			fetches.EachPartition(func(p kgo.FetchTopicPartition) {
				if p.Err == nil && p.HighWatermark > 0 {
					tail.Saw(p.Partition, now, p.HighWatermark)
				}
			})
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
		cl.Close()
	})
	return tail
}

// carryOut carries the steps out, those of each kind one after another, and returns when all are taken back and the time is over.
func (s *chaosStack) carryOut(t *testing.T, steps []chaos.Step, lasts time.Duration, load *crowd) []done {
	t.Helper()
	began := time.Now()
	byKind := map[chaos.Kind][]chaos.Step{}
	for _, step := range steps {
		kind := step.Kind
		if kind == chaos.ReplicaB {
			kind = chaos.ReplicaA // only one of them is away at a time
		}
		byKind[kind] = append(byKind[kind], step)
	}
	var mu sync.Mutex
	var all []done
	var errs []error
	var running sync.WaitGroup
	for _, list := range byKind {
		running.Go(func() {
			for _, step := range list {
				d, err := s.carry(t, step, began, load)
				mu.Lock()
				all, errs = append(all, d), append(errs, err)
				mu.Unlock()
			}
		})
	}
	running.Wait()
	waitUntil(t.Context(), began.Add(lasts))
	for name := range s.containers {
		errs = append(errs, s.expectRunning(t, name))
	}
	must(t, errors.Join(errs...))
	slices.SortFunc(all, func(a, b done) int { return a.began.Compare(b.began) })
	return all
}

func (s *chaosStack) carry(t *testing.T, step chaos.Step, began time.Time, load *crowd) (done, error) {
	ctx := t.Context()
	waitUntil(ctx, began.Add(step.At))
	for _, name := range step.Targets {
		if err := s.expectRunning(t, name); err != nil {
			return done{Step: step}, err
		}
	}
	d := done{Step: step, began: time.Now()}
	if err := s.inflict(ctx, step); err != nil {
		return d, err
	}
	t.Logf("%s +%.1fs: %v (%d events so far)", d.began.UTC().Format("15:04:05.000"), d.began.Sub(began).Seconds(), step, load.events.Load())
	waitUntil(ctx, d.began.Add(step.For))
	err := s.heal(ctx, step)
	d.healed = time.Now()
	t.Logf("%s +%.1fs: taken back: %v", d.healed.UTC().Format("15:04:05.000"), d.healed.Sub(began).Seconds(), step)
	return d, err
}

// expectRunning fails the test if a process has ended that nobody has killed. It is started again, so that the run can go on.
func (s *chaosStack) expectRunning(t *testing.T, name string) error {
	how, err := s.ended(t.Context(), name)
	if how != "" {
		t.Error(how)
	}
	return err
}

// quiesce waits until the log has not grown for a while: what clients did last takes its way through broker and bridges, which may have spooled it.
func (s *chaosStack) quiesce(t *testing.T) {
	t.Helper()
	const calm = 8 * time.Second
	cl, err := kgo.NewClient(s.opts...)
	must(t, err)
	defer cl.Close()
	adm := kadm.NewClient(cl)
	var last int64
	since := time.Now()
	servicetest.Eventually(t, chaosPatience, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		ends, err := adm.ListEndOffsets(ctx, eventlog.TopicClientEvents)
		if err == nil {
			err = ends.Error()
		}
		if err != nil {
			return err
		}
		total := int64(0)
		ends.Each(func(o kadm.ListedOffset) { total += o.Offset })
		if total != last {
			last, since = total, time.Now()
		}
		if quiet := time.Since(since); quiet < calm {
			return fmt.Errorf("client-events has grown %v ago", quiet.Round(time.Second))
		}
		return nil
	})
}

// settle waits until all query services have an answer for every client that has all of the log.
func settle(t *testing.T, askers map[string]*asker, ids []string) []chaos.Answer {
	t.Helper()
	began := time.Now()
	var final []chaos.Answer
	for _, name := range slices.Sorted(maps.Keys(askers)) {
		servicetest.Eventually(t, chaosPatience, func() error {
			ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
			defer cancel()
			answers, err := askers[name].settled(ctx, ids, name+" in the end")
			if err == nil {
				final = append(final, answers...)
			}
			return err
		})
	}
	t.Logf("all answers had all of the log after %v", time.Since(began).Round(time.Millisecond))
	return final
}

// checkLedger reads all topics until they fit: what is published last may still be on its way.
func (s *chaosStack) checkLedger(t *testing.T, ledger *chaos.Ledger) {
	t.Helper()
	r, err := chaos.NewReader(ledger, s.opts)
	must(t, err)
	defer r.Close()
	deadline := time.Now().Add(time.Minute)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), chaosPatience)
		err := r.Read(ctx)
		cancel()
		must(t, err)
		if err = ledger.Check(); err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("topics: %v", err)
			return
		}
		waitUntil(t.Context(), time.Now().Add(2*time.Second))
	}
}

// checkFinal wants the fold of all facts in every last answer, and no confident one that is wrong.
func checkFinal(t *testing.T, ledger *chaos.Ledger, final []chaos.Answer, online map[string]bool) {
	t.Helper()
	unknown := map[string]int{}
	var wrong []string
	confident, stale, connected := 0, 0, 0
	for _, is := range online {
		if is {
			connected++
		}
	}
	for i := range final {
		a := &final[i]
		v := ledger.Final(a.Client)
		if a.Status != v.Status.String() || a.Reason != v.Reason.String() || a.Belief != v.Belief.String() {
			wrong = append(wrong, fmt.Sprintf("the fold of all facts is %s (%s): %s\n%s", v.Status, v.Reason, a, ledger.Client(a.Client)))
		}
		switch {
		case a.Stale:
			stale++
		case a.Status == "unknown":
			unknown[fmt.Sprintf("%s, belief right: %t", a.Reason, (a.Belief == "online") == online[a.Client])]++
		case (a.Status == "online") != online[a.Client]:
			wrong = append(wrong, fmt.Sprintf("the client's connection is alive: %t, and a confident answer is wrong: %s\n%s", online[a.Client], a, ledger.Client(a.Client)))
		default:
			confident++
		}
	}
	if n := len(wrong); n > 0 {
		t.Errorf("%d of %d last answers are wrong, among them:\n%s", n, len(final), strings.Join(wrong[:min(n, 5)], "\n"))
	}
	t.Logf("in the end %d of %d clients are connected; of %d answers %d are confident and right, %d are stale, unknown are %v",
		connected, len(online), len(final), confident, stale, unknown)
}

// checkFailures wants an answer to every question that somebody could answer: the query service that was asked, and one of the replicas.
func checkFailures(t *testing.T, failures []failure, carried []done) {
	t.Helper()
	var inexcusable []string
	for i := range failures {
		if f := &failures[i]; !f.excused(carried) {
			inexcusable = append(inexcusable, fmt.Sprintf("%s by %s asked at %s, after %v: %v", f.from, f.by, f.sent.UTC().Format("15:04:05.000"),
				f.ended.Sub(f.sent).Round(time.Millisecond), f.err))
		}
	}
	if n := len(inexcusable); n > 0 {
		t.Errorf("%d questions have no answer while a replica was there, among them:\n%s", n, strings.Join(inexcusable[:min(n, 10)], "\n"))
	}
}

func (f *failure) excused(carried []done) bool {
	a, b := false, false
	for i := range carried {
		d := &carried[i]
		overlaps := func(after time.Duration) bool {
			return !d.began.After(f.ended) && !d.backBy(after, carried).Before(f.sent)
		}
		switch {
		case d.Kind == chaos.Query && d.Targets[0] == f.from && d.Action != chaos.Cut && overlaps(restart):
			return true
		case d.Kind == chaos.Query && d.Targets[0] == f.from && slices.ContainsFunc(d.Peers, func(p string) bool { return strings.HasPrefix(p, string(chaos.ReplicaA)) }):
			a = a || overlaps(restart)
		case d.Kind == chaos.ReplicaA:
			a = a || overlaps(recovery)
		case d.Kind == chaos.ReplicaB:
			b = b || overlaps(recovery)
		}
	}
	return a && b
}

// backBy is when a process must be back that takes so long to recover. To recover it needs Kafka: a fault of Kafka meanwhile begins that anew, once.
func (d *done) backBy(after time.Duration, carried []done) time.Time {
	alone := d.healed.Add(after)
	back := alone
	for i := range carried {
		k := &carried[i]
		if k.Kind != chaos.Kafka {
			continue
		}
		there := k.healed
		if k.Action == chaos.Kill || k.Action == chaos.Restart {
			there = there.Add(kafkaStart)
		}
		if !k.began.After(alone) && there.After(d.began) && there.Add(after).After(back) {
			back = there.Add(after)
		}
	}
	return back
}

func summarise(t *testing.T, o chaosOptions, ledger *chaos.Ledger, asked *inquiry, carried []done) {
	t.Helper()
	stale := map[string]int{}
	staleAnswers := 0
	for i := range asked.answers {
		if a := &asked.answers[i]; a.Stale {
			staleAnswers++
			stale[strings.Join(a.StaleReasons, "+")]++
		}
	}
	steps := make([]chaos.Step, len(carried))
	for i, d := range carried {
		steps[i] = d.Step
	}
	size := ledger.Size()
	t.Logf("summary of seed %d: %.0f facts/s", o.seed, float64(size.Facts-size.Copies)/o.lasts.Seconds())
	t.Logf("topics: %+v", size)
	t.Logf("faults: %s", strings.Join(chaos.Count(steps), "; "))
	t.Logf("questions: %d, answers checked: %d, stale: %.1f %% (%v), errors: %d, slowest answer: %v, %s", asked.asked, len(asked.answers),
		100*float64(staleAnswers)/float64(max(1, len(asked.answers))), stale, len(asked.failures), asked.slowest.Round(time.Millisecond), asked.slow)
	errs := map[string]int{}
	for i := range asked.failures {
		errs[fmt.Sprintf("%s: %.120s", asked.failures[i].by, asked.failures[i].err)]++
	}
	for _, e := range slices.Sorted(maps.Keys(errs)) {
		t.Logf("error, %d times: %s", errs[e], e)
	}
}
