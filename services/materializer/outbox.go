package materializer

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/mqtt-presence/presence/services/materializer/store"
)

// maxOutbox is how many bytes of a partition's records may wait for publication before its fold waits; a batch may overshoot it once.
const maxOutbox = 8 << 20

// outbox is the part of a partition's outbox that is not published yet, as it is in the store, in order.
type outbox struct {
	mu      sync.Mutex
	chunks  []store.Chunk
	records int           // in chunks
	bytes   int           // of chunks, in memory
	stored  int           // bytes of chunks that are in the store only
	spilled int           // stored, and what is to be pushed
	total   *atomic.Int64 // spilled of all partitions
	next    uint64        // sequence number of the next chunk
	rushed  bool          // what there is need not wait for more
	changed chan struct{} // closed at the next push or removal
}

func newOutbox() *outbox {
	return &outbox{next: 1, changed: make(chan struct{}), total: new(atomic.Int64)}
}

// announce wakes all who wait. The caller holds mu.
func (o *outbox) announce() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// nextSeq is the sequence number of a chunk that ahead others of its batch precede. Only the fold calls it and push.
func (o *outbox) nextSeq(ahead int) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next + uint64(ahead)
}

func (o *outbox) push(chunks []store.Chunk) {
	if len(chunks) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.chunks = append(o.chunks, chunks...)
	for i := range chunks {
		o.records += chunks[i].Records
		o.bytes += chunks[i].Bytes()
		if chunks[i].Released() {
			o.stored += chunks[i].Size()
		}
	}
	o.next = chunks[len(chunks)-1].Seq + 1
	o.announce()
}

// remove drops the first n chunks, which are published. It reports whether they were the last ones that are in the store only.
func (o *outbox) remove(n int) (drained bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	stored := o.stored
	for i := range o.chunks[:n] {
		o.records -= o.chunks[i].Records
		o.bytes -= o.chunks[i].Bytes()
		if o.chunks[i].Released() {
			o.stored -= o.chunks[i].Size()
		}
	}
	o.unspill(stored - o.stored)
	clear(o.chunks[:n])
	if o.chunks = o.chunks[n:]; len(o.chunks) == 0 {
		o.chunks = nil
	}
	o.announce()
	return stored > 0 && o.stored == 0
}

// spill notes a chunk that is only on disk, before it is pushed.
func (o *outbox) spill(c *store.Chunk) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.spilled += c.Size()
	o.total.Add(int64(c.Size()))
}

// unspill takes back some of it. The caller holds mu.
func (o *outbox) unspill(n int) {
	o.spilled -= n
	o.total.Add(-int64(n))
}

// end takes the outbox out of the total.
func (o *outbox) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.unspill(o.spilled)
}

// depth is the number of records.
func (o *outbox) depth() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.records
}

func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bytes >= maxOutbox || o.stored > 0 && o.total.Load() >= maxSpilled
}

// head returns the first chunks, once there are any: as many as have at most limit records, but one at least.
func (o *outbox) head(ctx context.Context, limit int) ([]store.Chunk, error) {
	var head []store.Chunk
	err := o.wait(ctx, func() bool {
		n, records := 0, 0
		for n < len(o.chunks) && (n == 0 || records+o.chunks[n].Records <= limit) {
			records += o.chunks[n].Records
			n++
		}
		head = o.chunks[:n:n]
		return n > 0
	})
	return head, err
}

// atLeast returns once there are n records, or half of what the outbox holds, or the outbox is rushed.
func (o *outbox) atLeast(ctx context.Context, n int) error {
	return o.wait(ctx, func() bool { return o.rushed || o.records >= n || o.bytes+o.stored >= maxOutbox/2 })
}

// rush has nothing wait for more any longer.
func (o *outbox) rush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.rushed = true
	o.announce()
}

// room returns once the outbox is well below its bound.
func (o *outbox) room(ctx context.Context) error {
	return o.wait(ctx, func() bool { return o.bytes < maxOutbox/2 && (o.stored == 0 || o.total.Load() < maxSpilled/2) })
}

// drained returns once the outbox is empty.
func (o *outbox) drained(ctx context.Context) error {
	return o.wait(ctx, func() bool { return len(o.chunks) == 0 })
}

// wait returns once the condition, which is called with mu held, is true, or with the error of ctx.
func (o *outbox) wait(ctx context.Context, condition func() bool) error {
	for {
		o.mu.Lock()
		ok, changed := condition(), o.changed
		o.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
