package query

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// How long an owner may take before another replica's is asked as well.
const (
	hedgeKeys       = 150 * time.Millisecond // for clients
	hedgePartitions = 400 * time.Millisecond // for all of its partitions
)

// freshen bounds how long another replica may take to answer in place of one that answered, but is far behind.
const freshen = 400 * time.Millisecond

// question is a request to the owners of its items, which are keys or partitions. A is what one owner answers. Its functions are called from
// several goroutines.
type question[A any] struct {
	// items numbers them.
	items func(t *routing) []int
	// partition of an item.
	partition func(t *routing, item int) int32
	// ask asks one owner for some of the items.
	ask func(ctx context.Context, owner presencev1.StateServiceClient, items []int) (A, error)
	// check returns the places in items of those that the owner does not own. An error is final.
	check func(answer A, items []int) (notOwned []int, err error)
	// fresh returns how fresh an answer is; nil if it does not say.
	fresh func(answer A) []*presencev1.PartitionFreshness
	// hedge is how long an owner may take before another replica's is asked as well; 0: as long as the request.
	hedge time.Duration
	// waits: the owner waits for something, so that its silence says nothing of it.
	waits bool
}

// askOwners asks the owner of each item and returns their answers: that of the first replica, unless another one's is quicker by far, or fresher by
// far. Items that nobody answers for are asked for again whenever the routing was refreshed, while ctx lasts.
func askOwners[A any](ctx context.Context, r *Router, q question[A]) ([]A, error) {
	w := &asking[A]{question: q, router: r}
	var answers []A
	var pending []int
	var lastErr error
	for {
		table, refreshed := r.routing()
		if table != nil {
			if pending == nil {
				pending = q.items(table)
			}
			out := w.askAll(ctx, table, pending, nil)
			if out.final != nil {
				return nil, out.final
			}
			answers = append(answers, out.answers...)
			if len(out.left) == 0 {
				return answers, nil
			}
			pending, lastErr = out.left, out.err
		}
		r.soon()
		select {
		case <-refreshed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, status.FromContextError(ctx.Err()).Err()
			}
			return nil, w.noOwner(table, pending, lastErr)
		}
	}
}

// asking is a question on its way through the owners. It does not change.
type asking[A any] struct {
	question[A]
	router *Router
}

// outcome is what became of some items.
type outcome[A any] struct {
	answers []A
	left    []int // that nobody answered for
	err     error // why, if an owner failed
	final   error // ends the request
}

func (o *outcome[A]) complete() bool { return o.final == nil && len(o.left) == 0 }

func (o *outcome[A]) add(p outcome[A]) {
	o.answers, o.left = append(o.answers, p.answers...), append(o.left, p.left...)
	if p.err != nil {
		o.err = p.err
	}
	if o.final == nil {
		o.final = p.final
	}
}

// failures are the owners that are not to be asked (again), by address; partition -1 stands for all. It is never changed.
type failures map[string]map[int32]bool

func (f failures) has(addr string, partition int32) bool {
	return f[addr][-1] || f[addr][partition]
}

// with returns the failures and one more.
func (f failures) with(addr string, partitions ...int32) failures {
	more := make(failures, len(f)+1)
	for a, of := range f {
		more[a] = of
	}
	of := make(map[int32]bool, len(more[addr])+len(partitions))
	for p := range more[addr] {
		of[p] = true
	}
	for _, p := range partitions {
		of[p] = true
	}
	more[addr] = of
	return more
}

// ownerCall is the part of a question that one owner is asked.
type ownerCall struct {
	addr  string
	items []int
}

// plan groups items by the owner to ask; left are those that nobody can be asked for.
func (w *asking[A]) plan(table *routing, items []int, failed failures) (calls []*ownerCall, left []int) {
	doubts := w.router.standings.doubts()
	for _, i := range items {
		p := w.partition(table, i)
		addr := table.owner(p, failed, doubts)
		if addr == "" {
			left = append(left, i)
			continue
		}
		at := slices.IndexFunc(calls, func(c *ownerCall) bool { return c.addr == addr })
		if at < 0 {
			at, calls = len(calls), append(calls, &ownerCall{addr: addr})
		}
		calls[at].items = append(calls[at].items, i)
	}
	return calls, left
}

// askAll has each item answered by one owner.
func (w *asking[A]) askAll(ctx context.Context, table *routing, items []int, failed failures) outcome[A] {
	calls, left := w.plan(table, items, failed)
	out := outcome[A]{left: left}
	if len(calls) == 1 {
		out.add(w.settle(ctx, table, calls[0], failed))
		return out
	}
	parts := make([]outcome[A], len(calls))
	var wg sync.WaitGroup
	for i, c := range calls {
		wg.Go(func() { parts[i] = w.settle(ctx, table, c, failed) })
	}
	wg.Wait()
	for _, p := range parts {
		out.add(p)
	}
	return out
}

// settle has the items of a call answered: by its owner, or by others where that one fails, lets wait, or does not own them.
func (w *asking[A]) settle(ctx context.Context, table *routing, c *ownerCall, failed failures) outcome[A] {
	answer, instead, err := w.race(ctx, table, c, failed)
	switch {
	case instead != nil:
		return *instead
	case err != nil && !w.retryable(ctx, err):
		return outcome[A]{final: err}
	case err != nil:
		out := w.askAll(ctx, table, c.items, failed.with(c.addr, -1))
		if isIndexes(err) && !out.complete() {
			// No other replica answers instead, or it builds them too: it takes longer than the request may.
			return outcome[A]{final: err}
		}
		if out.err == nil {
			out.err = fmt.Errorf("ask %s: %w", c.addr, err)
		}
		return out
	}
	notOwned, err := w.check(answer, c.items)
	if err != nil {
		return outcome[A]{final: fmt.Errorf("answer of the materializer at %s: %w", c.addr, err)}
	}
	if len(notOwned) == 0 {
		return w.fresher(ctx, table, c, answer, failed)
	}
	items, partitions := make([]int, len(notOwned)), make([]int32, len(notOwned))
	for i, at := range notOwned {
		items[i] = c.items[at]
		partitions[i] = w.partition(table, items[i])
	}
	failed = failed.with(c.addr, partitions...)
	if w.fresh != nil && len(table.replicas) > 1 && w.router.standings.note(c.addr, w.fresh(answer), w.router.clock()) > 0 {
		// It restores some partitions and catches up with others: those, too, may be better asked for elsewhere.
		return w.askAll(ctx, table, c.items, failed)
	}
	var out outcome[A]
	if len(notOwned) < len(c.items) {
		out.answers = []A{answer}
	}
	out.add(w.askAll(ctx, table, items, failed))
	return out
}

// race asks one owner, and if that takes long, others for the same items: the first whole answer counts. It returns that of the owner, or what
// came instead of it.
func (w *asking[A]) race(ctx context.Context, table *routing, c *ownerCall, failed failures) (answer A, instead *outcome[A], err error) {
	if w.hedge == 0 {
		answer, err = w.call(ctx, c)
		return answer, nil, err
	}
	own, cancel := context.WithCancel(ctx)
	defer cancel()
	var other outcome[A]
	done, failedToo := make(chan struct{}), make(chan struct{})
	timer := time.AfterFunc(w.hedge, func() {
		defer close(done)
		others, stop := context.WithCancel(ctx)
		defer stop()
		defer context.AfterFunc(own, stop)()
		if other = w.elsewhere(others, failedToo, table, c, failed.with(c.addr, -1)); other.complete() {
			cancel()
		}
	})
	answer, err = w.call(own, c)
	if timer.Stop() {
		return answer, nil, err
	}
	if err == nil {
		cancel()
		<-done
		w.router.metrics.hedges.WithLabelValues("own").Inc()
		return answer, nil, nil
	}
	close(failedToo)
	<-done
	if !other.complete() {
		w.router.metrics.hedges.WithLabelValues("none").Inc()
		return answer, nil, err
	}
	w.router.metrics.hedges.WithLabelValues("other").Inc()
	if !w.waits {
		w.router.standings.suspect(c.addr)
	}
	return answer, &other, nil
}

// elsewhere has the items of a call answered by others, as soon as there are any for all of them. It waits for that until the owner has failed too.
func (w *asking[A]) elsewhere(ctx context.Context, failedToo <-chan struct{}, table *routing, c *ownerCall, failed failures) outcome[A] {
	for first := true; ; first = false {
		if _, left := w.plan(table, c.items, failed); len(left) > 0 && first {
			// The routing may be older than the owner's trouble.
			w.router.soon()
		} else if len(left) == 0 {
			if out := w.askAll(ctx, table, c.items, failed); out.complete() {
				return out
			}
		}
		_, refreshed := w.router.routing()
		select {
		case <-refreshed:
		case <-failedToo:
			return outcome[A]{left: c.items}
		case <-ctx.Done():
			return outcome[A]{left: c.items}
		}
		table, _ = w.router.routing()
	}
}

// call asks one owner.
func (w *asking[A]) call(ctx context.Context, c *ownerCall) (answer A, err error) {
	client, err := w.router.connect(c.addr)
	if err == nil {
		answer, err = w.ask(ctx, client, c.items)
	}
	code := status.Code(err)
	w.router.metrics.calls.WithLabelValues(code.String()).Inc()
	if code == codes.Unavailable && !isIndexes(err) {
		w.router.standings.suspect(c.addr)
	}
	return answer, err
}

// fresher returns an owner's answer, or that of others if they are known to be further, or not known not to be, where this one is far behind.
func (w *asking[A]) fresher(ctx context.Context, table *routing, c *ownerCall, answer A, failed failures) outcome[A] {
	own := outcome[A]{answers: []A{answer}}
	if w.fresh == nil || len(table.replicas) == 1 {
		return own
	}
	now := w.router.clock()
	behind := w.router.standings.note(c.addr, w.fresh(answer), now)
	if behind == 0 {
		return own
	}
	calls, left := w.plan(table, c.items, failed)
	if len(left) > 0 || len(calls) == 1 && calls[0].addr == c.addr {
		return own
	}
	within, cancel := context.WithTimeout(ctx, freshen)
	defer cancel()
	other := outcome[A]{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, o := range calls {
		wg.Go(func() {
			part := outcome[A]{left: o.items}
			if answer, err := w.call(within, o); err == nil {
				if notOwned, err := w.check(answer, o.items); err == nil && len(notOwned) == 0 {
					part = outcome[A]{answers: []A{answer}}
					w.router.standings.note(o.addr, w.fresh(answer), now)
				}
			} else if status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
				w.router.standings.suspect(o.addr)
			}
			mu.Lock()
			defer mu.Unlock()
			other.add(part)
		})
	}
	wg.Wait()
	if !other.complete() || !w.ahead(&other, &own, now) {
		return own
	}
	return other
}

// ahead reports whether the answers of one outcome are fresher than those of another about the same items.
func (w *asking[A]) ahead(one, other *outcome[A], now clock) bool {
	score := func(o *outcome[A]) (late int, applied int64) {
		for _, a := range o.answers {
			for _, p := range w.fresh(a) {
				if now.late(p) {
					late++
				}
				applied += p.GetAppliedOffset()
			}
		}
		return late, applied
	}
	late, applied := score(one)
	otherLate, otherApplied := score(other)
	return late < otherLate || late == otherLate && applied > otherApplied
}

// noOwner says what is missing.
func (w *asking[A]) noOwner(table *routing, pending []int, err error) error {
	if table == nil {
		return unavailable("the owners of the partitions are not known yet: kafka has not answered; ask again")
	}
	p := w.partition(table, pending[0])
	what := "has no owner"
	if err != nil {
		what = "has an owner that does not answer"
		w.router.log.Debug("owner does not answer", service.KeyPartition, p, service.KeyError, err)
	}
	return unavailable(fmt.Sprintf("partition %d of %s %s right now; ask again", p, eventlog.TopicClientEvents, what))
}

// retryable reports whether another owner, or the same one later, may answer; if there is no time left for that, noOwner says what is missing.
func (w *asking[A]) retryable(ctx context.Context, err error) bool {
	switch status.Code(err) {
	case codes.Unavailable:
		return true
	case codes.Canceled:
		// The connection was closed under the call, unless it is the caller who has gone.
		return ctx.Err() == nil
	case codes.DeadlineExceeded:
		return !w.waits
	}
	return false
}
