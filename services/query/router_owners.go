package query

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// suspectFor is how long an owner that let a request wait is asked only for what nobody else owns.
const suspectFor = 5 * time.Second

// question is a request to the owners of its items, which are keys or partitions. A is what one owner answers.
type question[A any] struct {
	// items numbers them.
	items func(t *routing) []int
	// partition of an item.
	partition func(t *routing, item int) int32
	// ask asks one owner for some of the items. Owners are asked at the same time.
	ask func(ctx context.Context, owner presencev1.StateServiceClient, items []int) (A, error)
	// take keeps an answer and returns the places in items of those that the owner does not own. An error is final.
	take func(answer A, items []int) (notOwned []int, err error)
	// patient: an owner may take as long as the request.
	patient bool
}

// askOwners asks the owner of each item, in the first replica that answers. If an owner cannot be reached or does not own a partition any
// more, it asks again with a newer routing, a few times while ctx lasts. It returns nil once every item is answered.
func askOwners[A any](ctx context.Context, r *Router, q question[A]) error {
	w := &asking[A]{question: q, router: r}
	for round := 0; ; round++ {
		table, refreshed := r.routing()
		if table != nil {
			if round == 0 || w.pending == nil {
				w.pending = q.items(table)
			}
			if err := w.askAll(ctx, table); err != nil {
				return err
			}
			if len(w.pending) == 0 {
				return nil
			}
		}
		if round == maxRounds {
			return w.noOwner(table)
		}
		select {
		case r.trigger <- struct{}{}:
		default:
		}
		select {
		case <-refreshed:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return status.FromContextError(ctx.Err()).Err()
			}
			return w.noOwner(table)
		}
	}
}

// asking is a question on its way through the owners.
type asking[A any] struct {
	question[A]
	router  *Router
	pending []int // items that are not answered; nil before the first routing
	lastErr error
}

// ownerCall is the part of a question that one owner answers.
type ownerCall[A any] struct {
	addr   string
	items  []int
	others bool // another replica owns all of the items
	answer A
	err    error
}

// failures are the owners that did not answer, by address; partition -1 stands for all.
type failures map[string]map[int32]bool

func (f failures) add(addr string, partition int32) {
	if f[addr] == nil {
		f[addr] = make(map[int32]bool)
	}
	f[addr][partition] = true
}

// askAll sends the pending items to their owners, and those that an owner failed to answer to the next replica's. What is then still
// pending nobody answered. An error is final.
func (w *asking[A]) askAll(ctx context.Context, table *routing) error {
	failed := make(failures)
	for {
		calls := w.plan(table, failed)
		if len(calls) == 0 {
			return nil
		}
		if len(calls) == 1 {
			w.run(ctx, calls[0])
		} else {
			var wg sync.WaitGroup
			for _, c := range calls {
				wg.Go(func() { w.run(ctx, c) })
			}
			wg.Wait()
		}
		left := make(map[int]bool, len(w.pending))
		for _, i := range w.pending {
			left[i] = true
		}
		for _, c := range calls {
			if c.err != nil {
				if !retryable(ctx, c.err) {
					return c.err
				}
				w.lastErr = fmt.Errorf("ask %s: %w", c.addr, c.err)
				failed.add(c.addr, -1)
				continue
			}
			notOwned, err := w.take(c.answer, c.items)
			if err != nil {
				return fmt.Errorf("answer of the materializer at %s: %w", c.addr, err)
			}
			for _, i := range c.items {
				delete(left, i)
			}
			for _, at := range notOwned {
				w.lastErr = nil
				left[c.items[at]] = true
				failed.add(c.addr, w.partition(table, c.items[at]))
			}
		}
		pending := w.pending[:0]
		for _, i := range w.pending {
			if left[i] {
				pending = append(pending, i)
			}
		}
		w.pending = pending
	}
}

// plan groups the pending items by owner. Those that let others wait lately are asked if nobody else can be.
func (w *asking[A]) plan(table *routing, failed failures) []*ownerCall[A] {
	var calls []*ownerCall[A]
	byAddr := make(map[string]*ownerCall[A])
	slow := w.router.slow()
	for _, i := range w.pending {
		p := w.partition(table, i)
		excluded := func(addr string) bool { return failed[addr][-1] || failed[addr][p] }
		addr := table.owner(p, func(addr string) bool { return excluded(addr) || slow[addr] })
		if addr == "" {
			addr = table.owner(p, excluded)
		}
		if addr == "" {
			continue
		}
		c := byAddr[addr]
		if c == nil {
			c = &ownerCall[A]{addr: addr, others: true}
			byAddr[addr] = c
			calls = append(calls, c)
		}
		c.others = c.others && table.owner(p, func(other string) bool { return other == addr || excluded(other) }) != ""
		c.items = append(c.items, i)
	}
	return calls
}

// run asks one owner. Where another could answer in its place, it is given a part of the time only: a process that hangs neither answers
// nor closes its connection.
func (w *asking[A]) run(ctx context.Context, c *ownerCall[A]) {
	r := w.router
	within := ctx
	if c.others && !w.patient {
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, r.cfg.RequestTimeout/time.Duration(len(r.cfg.Replicas)+1))
		defer cancel()
	}
	client, err := r.connect(c.addr)
	if err == nil {
		c.answer, err = w.ask(within, client, c.items)
	}
	c.err = err
	r.metrics.calls.WithLabelValues(status.Code(err).String()).Inc()
	if code := status.Code(err); code == codes.DeadlineExceeded && ctx.Err() == nil {
		r.suspect(c.addr)
	}
}

// noOwner says what is missing, and since when if the last owner failed.
func (w *asking[A]) noOwner(table *routing) error {
	if table == nil {
		return unavailable("the owners of the partitions are not known yet: kafka has not answered; ask again")
	}
	p := w.partition(table, w.pending[0])
	what := "has no owner"
	if w.lastErr != nil {
		what = "has an owner that does not answer"
		w.router.log.Debug("owner does not answer", service.KeyPartition, p, service.KeyError, w.lastErr)
	}
	return unavailable(fmt.Sprintf("partition %d of %s %s right now; ask again", p, eventlog.TopicClientEvents, what))
}

// retryable reports whether another owner, or the same one later, may answer.
func retryable(ctx context.Context, err error) bool {
	switch status.Code(err) {
	case codes.Unavailable:
		return true
	case codes.Canceled, codes.DeadlineExceeded:
		// The connection was closed under the call, or the owner's part of the time has passed, unless it is the caller who has gone.
		return ctx.Err() == nil
	}
	return false
}

// suspect notes that an owner let a request wait.
func (r *Router) suspect(addr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.suspects[addr] = time.Now().Add(suspectFor)
}

// slow returns the owners that let a request wait a moment ago, nil if there are none.
func (r *Router) slow() map[string]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.suspects) == 0 {
		return nil
	}
	now := time.Now()
	slow := make(map[string]bool)
	for addr, until := range r.suspects {
		if now.After(until) {
			delete(r.suspects, addr)
			continue
		}
		slow[addr] = true
	}
	return slow
}
