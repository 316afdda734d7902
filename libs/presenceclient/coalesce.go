package presenceclient

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// deniedFor is how long nothing is gathered after the service has refused a batch: permissions can change while it runs.
const deniedFor = time.Minute

// errAskAlone says that a lookup got no answer from its shared call and is to ask by itself.
var errAskAlone = errors.New("ask alone")

// coalescer gathers lookups into batches, as Coalesce describes.
type coalescer struct {
	cfg Coalesce
	rpc presencev1.PresenceServiceClient

	deniedUntil atomic.Int64 // Unix nanoseconds

	mu     sync.Mutex
	flying int                // calls under way: batches, and lookups that went first
	open   map[string]*shared // by cluster; not sent yet
}

// shared is one call for several lookups.
type shared struct {
	cluster string
	ids     []string
	size    int         // bytes of the IDs
	timer   *time.Timer // sends it

	// Guarded by coalescer.mu.
	waiting  int       // lookups that still want the answer
	deadline time.Time // the latest of the lookups
	cancel   context.CancelFunc

	late    chan struct{} // closed when it has taken longer than Patience
	done    chan struct{} // closed when clients or err is set
	clients []*presencev1.Client
	err     error
}

func newCoalescer(cfg Coalesce, rpc presencev1.PresenceServiceClient) *coalescer {
	return &coalescer{cfg: cfg, rpc: rpc, open: map[string]*shared{}}
}

// takes reports whether a lookup with this context may be one of several.
func (co *coalescer) takes(ctx context.Context) bool {
	if _, own := metadata.FromOutgoingContext(ctx); own {
		return false
	}
	until := co.deniedUntil.Load()
	return until == 0 || time.Now().UnixNano() >= until
}

// join adds a lookup, whose context has a deadline, to a batch, and returns its place. Without a batch the lookup goes first: it asks by
// itself, and calls returned.
func (co *coalescer) join(ctx context.Context, cluster, id string) (*shared, int) {
	co.mu.Lock()
	defer co.mu.Unlock()
	if co.flying == 0 {
		co.flying++
		return nil, 0
	}
	b := co.open[cluster]
	if b != nil && b.size+len(id) > maxBatchBytes {
		co.send(b)
		b = nil
	}
	if b == nil {
		b = &shared{cluster: cluster, late: make(chan struct{}), done: make(chan struct{})}
		b.timer = time.AfterFunc(co.cfg.Window, func() {
			co.mu.Lock()
			defer co.mu.Unlock()
			if co.open[cluster] == b {
				co.send(b)
			}
		})
		co.open[cluster] = b
	}
	i := len(b.ids)
	b.ids = append(b.ids, id)
	b.size += len(id)
	b.waiting++
	if deadline, ok := ctx.Deadline(); ok && deadline.After(b.deadline) {
		b.deadline = deadline
	}
	if len(b.ids) == co.cfg.MaxBatch {
		co.send(b)
	}
	return b, i
}

// wait returns the answer for the lookup at place i of a batch.
func (co *coalescer) wait(ctx context.Context, b *shared, i int) (*presencev1.Client, error) {
	select {
	case <-b.done:
	case <-b.late:
		co.leave(b)
		return nil, errAskAlone
	case <-ctx.Done():
		co.leave(b)
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if b.err == nil {
		return b.clients[i], nil
	}
	switch status.Code(b.err) {
	case codes.PermissionDenied, codes.Unavailable, codes.DeadlineExceeded:
		// Status alone needs less; and one partition without an owner fails a batch, but not the lookups of others.
		return nil, errAskAlone
	}
	return nil, b.err
}

// leave takes a lookup out; the last one ends the call.
func (co *coalescer) leave(b *shared) {
	co.mu.Lock()
	defer co.mu.Unlock()
	if b.waiting--; b.waiting > 0 {
		return
	}
	if co.open[b.cluster] == b {
		delete(co.open, b.cluster)
		b.timer.Stop()
		return
	}
	b.cancel()
}

// send makes a batch's call. The caller holds mu.
func (co *coalescer) send(b *shared) {
	delete(co.open, b.cluster)
	b.timer.Stop()
	co.flying++
	var ctx context.Context
	ctx, b.cancel = context.WithDeadline(context.Background(), b.deadline)
	late := time.AfterFunc(co.cfg.Patience, func() { close(b.late) })
	// To leave a batch that waits for a limit would only make more calls that are over it.
	ctx = context.WithValue(ctx, onLimit{}, func() { late.Stop() })
	go func() {
		defer co.returned()
		b.clients = make([]*presencev1.Client, len(b.ids))
		b.err = batch(ctx, co.rpc, b.cluster, b.ids, b.clients)
		late.Stop()
		b.cancel()
		if status.Code(b.err) == codes.PermissionDenied {
			co.deniedUntil.Store(time.Now().Add(deniedFor).UnixNano())
		}
		close(b.done)
	}()
}

// returned counts a call that has ended. After the last one, those that wait go out.
func (co *coalescer) returned() {
	co.mu.Lock()
	defer co.mu.Unlock()
	if co.flying--; co.flying > 0 {
		return
	}
	for _, b := range co.open {
		co.send(b)
	}
}
