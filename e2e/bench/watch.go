package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// watchedClients change at random while the watches last.
	watchedClients = 10_000
	// watchesPerConnection keeps below the streams that the service lets one connection have.
	watchesPerConnection = 500
	watchedIDs           = 10
	watchHeartbeat       = 10 * time.Second
	// produceTick is the time between two batches of changes.
	produceTick = 10 * time.Millisecond
	// quiet is how long a watch may get nothing, while something is missing, before the run gives up.
	quiet = 2 * time.Minute
)

// change is a transition that was caused.
type change struct {
	id       string
	node     string
	username string
	online   bool
	ms       int64 // event time, and when it was produced
}

// watcher is one watch and what it has seen.
type watcher struct {
	filter presenceclient.Watch
	wants  func(*change) bool

	began    chan struct{} // closed at the first message: the watch is in place
	expected atomic.Int64

	mu        sync.Mutex
	seen      map[string][]int64 // event times by client ID, as they came
	delivered int
	skipped   int64
	breaks    int
	delays    delays
	err       error
}

// newWatcher returns the i-th of several kinds of watches. Of 10,000, a dozen want each change.
func newWatcher(i int) *watcher {
	r := rand.New(rand.NewPCG(uint64(i), 23))
	w := &watcher{began: make(chan struct{}), seen: map[string][]int64{}}
	switch i % 4 {
	case 0:
		name := username(r.IntN(usernames))
		w.filter.Username = name
		w.wants = func(c *change) bool { return c.username == name }
	case 1:
		// The first eight digits of nine: ten clients. Below, seven and one node of five: twenty.
		prefix := clientID(r.IntN(watchedClients))[:8]
		w.filter.Prefix = prefix
		w.wants = func(c *change) bool { return strings.HasPrefix(c.id, prefix) }
	case 2:
		ids := map[string]bool{}
		for range watchedIDs {
			ids[clientID(r.IntN(watchedClients))] = true
		}
		for id := range ids {
			w.filter.ClientIDs = append(w.filter.ClientIDs, id)
		}
		w.wants = func(c *change) bool { return ids[c.id] }
	case 3:
		at, prefix := node(r.IntN(nodes)), clientID(r.IntN(watchedClients))[:7]
		w.filter.Node, w.filter.Prefix = at, prefix
		w.wants = func(c *change) bool { return c.node == at && strings.HasPrefix(c.id, prefix) }
	}
	w.filter.Heartbeat = watchHeartbeat
	w.filter.Interrupted = func(error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.breaks++
	}
	return w
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context, client *presenceclient.Client, timed *atomic.Bool) {
	var began sync.Once
	for message, err := range client.Watch(ctx, w.filter) {
		if ctx.Err() != nil {
			return
		}
		now := time.Now()
		w.mu.Lock()
		switch {
		case err != nil:
			w.err = err
		case message.GetType() == presenceclient.EventTransition:
			w.transition(message.GetTransition(), now, timed.Load())
		case message.GetType() == presenceclient.EventSkipped:
			w.skipped += message.GetSkipped().GetRecords()
		}
		w.mu.Unlock()
		began.Do(func() { close(w.began) })
	}
}

func (w *watcher) transition(t *presencev1.ClientTransition, now time.Time, timed bool) {
	at := t.GetTime().AsTime()
	w.seen[t.GetClientId()] = append(w.seen[t.GetClientId()], at.UnixMilli())
	w.delivered++
	if timed {
		w.delays = append(w.delays, now.Sub(at))
	}
}

// measureWatch lets many watch, changes clients at a rate, restarts the query service in between, and checks what each watch got.
func measureWatch(ctx context.Context, cfg config, s *stack, t *table) (err error) {
	now := time.Now()
	for _, f := range nodesAlive(now) {
		if err := s.produce(ctx, eventlog.NodeRecord(&f, s.kafkaConf.Format())); err != nil {
			return err
		}
	}
	watching, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var clients []*presenceclient.Client
	defer func() {
		stop()
		wg.Wait()
		for _, c := range clients {
			err = errors.Join(err, c.Close())
		}
	}()
	watchers := make([]*watcher, cfg.Watchers)
	var timed atomic.Bool
	for i := range watchers {
		if i%watchesPerConnection == 0 {
			client, err := s.client()
			if err != nil {
				return err
			}
			clients = append(clients, client)
		}
		w, client := newWatcher(i), clients[len(clients)-1]
		watchers[i] = w
		wg.Go(func() { w.run(watching, client, &timed) })
	}
	for _, w := range watchers {
		select {
		case <-w.began:
		case <-ctx.Done():
			return fmt.Errorf("wait for the watches to begin: %w", ctx.Err())
		}
	}
	t.line("watches begun", fmt.Sprintf("%d in %v", cfg.Watchers, time.Since(now).Round(time.Millisecond)), "", "")
	changes, down, err := s.change(ctx, cfg, watchers, &timed)
	if err != nil {
		return err
	}
	caught, err := awaitDelivery(ctx, watchers)
	if err != nil {
		t.line("watch", err.Error(), "", "")
	}
	stop()
	wg.Wait()
	return t.watches(watchers, changes, down, caught)
}

// change causes transitions. A third of the way on the query service is stopped, and started again after another sixth.
func (s *stack) change(ctx context.Context, cfg config, watchers []*watcher, timed *atomic.Bool) ([]change, time.Duration, error) {
	r := rand.New(rand.NewPCG(3, 29))
	open := make([]presence.Fact, watchedClients)
	changes := make([]change, 0, cfg.Changes)
	tick := time.NewTicker(produceTick)
	defer tick.Stop()
	var stoppedAt time.Time
	var down time.Duration
	timed.Store(true)
	began := time.Now()
	for len(changes) < cfg.Changes {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
		switch at := len(changes); {
		case stoppedAt.IsZero() && at >= cfg.Changes/3:
			stoppedAt = time.Now()
			timed.Store(false)
			if err := s.stopQuery(); err != nil {
				return nil, 0, err
			}
		case down == 0 && at >= cfg.Changes/2:
			if err := s.startQuery(ctx); err != nil {
				return nil, 0, err
			}
			down = time.Since(stoppedAt)
		}
		due := min(cfg.Changes, int(time.Since(began).Seconds()*float64(cfg.Rate)), len(changes)+cfg.Rate)
		var records []*kgo.Record
		for len(changes) < due {
			c, f := nextChange(r, open)
			changes = append(changes, c)
			records = append(records, eventlog.FactRecord(&f, s.kafkaConf.Format()))
			for _, w := range watchers {
				if w.wants(&c) {
					w.expected.Add(1)
				}
			}
		}
		if err := s.produce(ctx, records...); err != nil {
			return nil, 0, err
		}
	}
	return changes, down, nil
}

// nextChange lets a client of chance connect, or disconnect if it is connected.
func nextChange(r *rand.Rand, open []presence.Fact) (change, presence.Fact) {
	i := r.IntN(len(open))
	// Stamps of one client grow, whatever the clock does.
	ms := max(time.Now().UnixMilli(), open[i].TimeMS+1)
	c := change{id: clientID(i), node: node(i), username: username(i), online: open[i].Kind != presence.Opened, ms: ms}
	f := openedAt(i, ms)
	if !c.online {
		f = closedAt(open[i], ms)
	}
	open[i] = f
	return c, f
}

// awaitDelivery waits until every watch has as many transitions as were caused for it, and returns how long that took.
func awaitDelivery(ctx context.Context, watchers []*watcher) (time.Duration, error) {
	began, progress, last := time.Now(), time.Now(), int64(-1)
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		var missing int64
		for _, w := range watchers {
			w.mu.Lock()
			missing += max(0, w.expected.Load()-int64(w.delivered))
			if w.err != nil {
				missing = -1
			}
			w.mu.Unlock()
			if missing < 0 {
				return 0, w.err
			}
		}
		if missing == 0 {
			return time.Since(began), nil
		}
		if missing != last {
			progress, last = time.Now(), missing
		}
		if time.Since(progress) > quiet {
			return time.Since(began), fmt.Errorf("%d transitions did not come, and none has for %v", missing, quiet)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// watches prints what the watches got, and returns an error if it is not what they asked for, or not in order.
func (t *table) watches(watchers []*watcher, changes []change, down, caught time.Duration) error {
	var expected, delivered, wrong, breaks int
	var skipped int64
	var d delays
	var first error
	for i, w := range watchers {
		want := map[string][]int64{}
		for j := range changes {
			if c := &changes[j]; w.wants(c) {
				want[c.id] = append(want[c.id], c.ms)
				expected++
			}
		}
		delivered += w.delivered
		skipped += w.skipped
		breaks += w.breaks
		d = append(d, w.delays...)
		if w.err != nil {
			first = cmp.Or(first, fmt.Errorf("watch %d ended: %w", i, w.err))
		}
		for id := range merged(want, w.seen) {
			if !slices.Equal(want[id], w.seen[id]) {
				wrong++
				first = cmp.Or(first, fmt.Errorf("watch %d (%+v): client %s changed at %v, and the watch was told of %v", i, w.filter, id, want[id], w.seen[id]))
			}
		}
	}
	t.line("watched changes", fmt.Sprintf("%d, query service away for %v", len(changes), down.Round(time.Millisecond)), "", "")
	t.line("streams made anew", fmt.Sprintf("%d, all delivered %v after the last change", breaks, caught.Round(time.Millisecond)), "", "")
	t.line("delivery before the restart", d.sorted().String(), "", "")
	t.result(fmt.Sprintf("%d watches", len(watchers)), fmt.Sprintf("%d of %d delivered, %d clients out of order, %d skipped", delivered, expected, wrong, skipped),
		"all, in order", delivered == expected && wrong == 0 && skipped == 0)
	return first
}

func merged(a, b map[string][]int64) map[string]struct{} {
	all := map[string]struct{}{}
	for id := range a {
		all[id] = struct{}{}
	}
	for id := range b {
		all[id] = struct{}{}
	}
	return all
}
