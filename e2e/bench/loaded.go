package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// askPace is the time between two lookups of one kind under load, of all its callers.
	askPace = 2 * time.Millisecond
	// writePace is the time between two bursts of facts.
	writePace = 5 * time.Millisecond
)

// measureLoaded asks in process, over REST and over gRPC, while facts are folded and their transitions published.
func measureLoaded(ctx context.Context, cfg config, t *tools, dir string, report *table) (err error) {
	rates, err := numbers("write-rates", cfg.WriteRates)
	if err != nil {
		return err
	}
	k, err := t.startKafka(ctx, filepath.Join(dir, "kafka"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.stop()) }()
	ctx, cancel := k.whileAlive(ctx)
	defer cancel()
	s, err := startStack(ctx, filepath.Join(dir, "stack"), k.addr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	report.progress("filling %d clients", cfg.Clients)
	if err := s.fill(ctx, cfg.Clients); err != nil {
		return err
	}
	if err := s.awaitTotal(ctx, int64(cfg.Clients)); err != nil {
		return err
	}
	for _, rate := range append([]int{0}, rates...) {
		report.progress("%d facts/s", rate)
		if err := s.underLoad(ctx, cfg, rate, report); err != nil {
			return fmt.Errorf("%d facts/s: %w", rate, err)
		}
	}
	return nil
}

// underLoad asks for a time in the three ways while facts are written at a rate.
func (s *stack) underLoad(ctx context.Context, cfg config, rate int, report *table) error {
	turn := cfg.Round * time.Duration(cfg.Rounds)
	callers, closeAll, err := s.loadedCallers(ctx, cfg.Callers)
	if err != nil {
		return err
	}
	before, err := s.applied(ctx)
	if err != nil {
		return errors.Join(err, closeAll())
	}
	began := time.Now()
	writing, stop := context.WithCancel(ctx)
	written := make(chan error, 1)
	go func() { written <- s.write(writing, cfg.Clients, rate) }()
	took, err := askAll(ctx, cfg, callers, turn)
	after, failed := s.applied(ctx)
	elapsed := time.Since(began)
	if err = errors.Join(err, failed); err == nil && rate > 0 {
		err = report.profileHere(ctx, fmt.Sprintf("loaded, %d facts per second", rate), cfg.Profile, func(d time.Duration) error {
			_, err := askAll(ctx, cfg, callers, d)
			return err
		})
	}
	stop()
	if err := errors.Join(err, <-written, closeAll()); err != nil {
		return err
	}
	folded := float64(after-before) / elapsed.Seconds()
	report.line(fmt.Sprintf("while %d facts/s are written", rate), fmt.Sprintf("%.0f/s folded and published", folded), "", "")
	for i, l := range callers[0] {
		report.line("  "+l.name, fmt.Sprintf("%v", took[i].sorted()), "", "")
	}
	// The next rate begins with nothing left behind.
	return s.awaitTotal(ctx, int64(cfg.Clients))
}

// askAll lets all callers ask for a time, in turns, and returns how long each kind of lookup took.
func askAll(ctx context.Context, cfg config, callers [][]lookup, d time.Duration) ([]delays, error) {
	began := time.Now()
	var wg sync.WaitGroup
	took, errs := make([][]delays, len(callers)), make([][]error, len(callers))
	for c, lookups := range callers {
		took[c], errs[c] = make([]delays, len(lookups)), make([]error, len(lookups))
		for i, l := range lookups {
			wg.Go(func() {
				r := rand.New(rand.NewPCG(uint64(c), uint64(i)))
				took[c][i], errs[c][i] = pace(ctx, began.Add(time.Duration(c)*askPace), time.Duration(len(callers))*askPace, d, func() error {
					client := r.IntN(cfg.Clients)
					return l.ask(clientID(client - client%10)) // one of those that are online
				})
			})
		}
	}
	wg.Wait()
	all := make([]delays, len(callers[0]))
	for c := range callers {
		for i := range all {
			all[i] = append(all[i], took[c][i]...)
		}
	}
	return all, errors.Join(slices.Concat(errs...)...)
}

// lookup is a way to ask for a client that is online.
type lookup struct {
	name string
	ask  func(id string) error
}

// loadedCallers returns the lookups of n callers, each with connections of its own: none waits for an answer to another.
func (s *stack) loadedCallers(ctx context.Context, n int) (callers [][]lookup, closeAll func() error, err error) {
	var closes []func() error
	closeAll = func() error {
		var errs []error
		for _, c := range closes {
			errs = append(errs, c())
		}
		return errors.Join(errs...)
	}
	for range n {
		lookups, closeOne, err := s.lookups(ctx)
		if err != nil {
			return nil, nil, errors.Join(err, closeAll())
		}
		callers, closes = append(callers, lookups), append(closes, closeOne)
	}
	return callers, closeAll, nil
}

func (s *stack) lookups(ctx context.Context) ([]lookup, func() error, error) {
	conn, err := net.Dial("tcp", s.queryConf.HTTPAddr)
	if err != nil {
		return nil, nil, fmt.Errorf("connect: %w", err)
	}
	web := newWebCaller(conn, user, password)
	_, rpc, closeRPC, err := grpcSide(ctx, 0, s.queryConf.GRPCAddr, "")
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	authorized := authorized(ctx)
	return []lookup{
		{"GetStates in process", func(id string) error {
			answer, err := s.reader.GetStates(ctx, &presencev1.GetStatesRequest{Cluster: cluster, Keys: []*presencev1.StateKey{{ClientId: id}}})
			if err == nil && (len(answer.GetEntries()) != 1 || answer.GetEntries()[0].GetStatus() != "online") {
				err = fmt.Errorf("client %s: the answer is %v", id, answer)
			}
			return err
		}},
		{"REST, the short call", func(id string) error {
			online, err := web.online(id)
			if err == nil && !online {
				err = fmt.Errorf("client %s is not online", id)
			}
			return err
		}},
		{"gRPC, GetStatus", func(id string) error {
			answer, err := rpc.GetStatus(authorized, &presencev1.GetStatusRequest{ClientId: id})
			if err == nil && !answer.GetOnline() {
				err = fmt.Errorf("client %s: the answer is %v", id, answer)
			}
			return err
		}},
	}, func() error { return errors.Join(conn.Close(), closeRPC()) }, nil
}

// pace asks at a pace for a time, from begin on. Who asks late because the answer before was late is not excused: the wait counts from when the question was due.
// Questions that are still due at the end are not asked any more.
func pace(ctx context.Context, begin time.Time, interval, d time.Duration, ask func() error) (delays, error) {
	var took delays
	for due := begin; due.Sub(begin) < d && time.Since(begin) < d; due = due.Add(interval) {
		if err := until(ctx, due); err != nil {
			return took, err
		}
		if err := ask(); err != nil {
			return took, err
		}
		took = append(took, time.Since(due))
	}
	return took, nil
}

// until waits for a time.
func until(ctx context.Context, at time.Time) error {
	wait := time.Until(at)
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// write opens new connections of clients that are online, each a transition, at a rate until ctx ends.
func (s *stack) write(ctx context.Context, clients, rate int) error {
	if rate == 0 {
		return nil
	}
	r := rand.New(rand.NewPCG(uint64(rate), 37))
	var failed atomic.Pointer[error]
	begin := time.Now()
	for n := 0; ; {
		if err := until(ctx, begin.Add(time.Duration(n)*time.Second/time.Duration(rate)+writePace)); err != nil {
			break
		}
		for due := int(time.Since(begin).Seconds() * float64(rate)); n < due; n++ {
			client := r.IntN(clients)
			f := openedAt(client-client%10, time.Now().UnixMilli())
			s.producer.Produce(context.WithoutCancel(ctx), eventlog.FactRecord(&f, s.kafkaConf.Format()), func(_ *kgo.Record, err error) {
				if err != nil {
					failed.CompareAndSwap(nil, &err)
				}
			})
		}
	}
	err := s.producer.Flush(context.WithoutCancel(ctx))
	if first := failed.Load(); first != nil {
		err = errors.Join(err, *first)
	}
	if err != nil {
		return fmt.Errorf("produce facts: %w", err)
	}
	return nil
}

// applied is how many client events have been folded, over all partitions.
func (s *stack) applied(ctx context.Context) (n int64, err error) {
	answer, err := s.reader.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: cluster})
	if err != nil {
		return 0, fmt.Errorf("ask how far it is: %w", err)
	}
	for _, p := range answer.GetPartitions() {
		n += p.GetAppliedOffset()
	}
	return n, nil
}

// numbers reads an option that is a list of positive numbers.
func numbers(option string, texts []string) ([]int, error) {
	var all []int
	for _, text := range texts {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%s: %q is not a whole number of at least 1", option, text)
		}
		all = append(all, n)
	}
	return all, nil
}
