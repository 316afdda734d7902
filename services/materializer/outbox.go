package materializer

import (
	"context"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// maxOutbox is how many records of a partition may wait for publication before its fold waits; a batch may overshoot it once.
const maxOutbox = 8 << 10

// outbox is the part of a partition's outbox that is not published yet, as it is in the store, in order.
type outbox struct {
	mu      sync.Mutex
	entries []store.Entry
	next    uint64        // sequence number of the next entry
	changed chan struct{} // closed at the next push or removal
}

func newOutbox() *outbox { return &outbox{next: 1, changed: make(chan struct{})} }

// announce wakes all who wait. The caller holds mu.
func (o *outbox) announce() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// nextSeq is the sequence number of an entry that ahead others of its batch precede. Only the fold calls it and push.
func (o *outbox) nextSeq(ahead int) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.next + uint64(ahead)
}

func (o *outbox) push(entries []store.Entry) {
	if len(entries) == 0 {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.entries = append(o.entries, entries...)
	o.next = entries[len(entries)-1].Seq + 1
	o.announce()
}

// remove drops the first n entries, which are published.
func (o *outbox) remove(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	clear(o.entries[:n])
	if o.entries = o.entries[n:]; len(o.entries) == 0 {
		o.entries = nil
	}
	o.announce()
}

func (o *outbox) depth() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.entries)
}

func (o *outbox) full() bool { return o.depth() >= maxOutbox }

// head returns at most limit of the first entries, once there are any.
func (o *outbox) head(ctx context.Context, limit int) ([]store.Entry, error) {
	var head []store.Entry
	err := o.wait(ctx, func() bool {
		head = o.entries[:min(limit, len(o.entries)):min(limit, len(o.entries))]
		return len(head) > 0
	})
	return head, err
}

// atLeast returns once there are n entries.
func (o *outbox) atLeast(ctx context.Context, n int) error {
	return o.wait(ctx, func() bool { return len(o.entries) >= n })
}

// room returns once the outbox is well below its bound.
func (o *outbox) room(ctx context.Context) error {
	return o.wait(ctx, func() bool { return len(o.entries) < maxOutbox/2 })
}

// drained returns once the outbox is empty.
func (o *outbox) drained(ctx context.Context) error {
	return o.wait(ctx, func() bool { return len(o.entries) == 0 })
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

// messageOf is what the outbox keeps of a record.
func messageOf(r *kgo.Record) store.Message {
	m := store.Message{TimeMS: r.Timestamp.UnixMilli(), Key: r.Key, Value: r.Value, Headers: make([]store.Header, len(r.Headers))}
	for i, h := range r.Headers {
		m.Headers[i] = store.Header{Key: h.Key, Value: h.Value}
	}
	return m
}

// recordOf is the inverse of messageOf.
func recordOf(m *store.Message, partition int32) *kgo.Record {
	r := &kgo.Record{
		Topic: eventlog.TopicClientState, Partition: partition, Key: m.Key, Value: m.Value, Timestamp: time.UnixMilli(m.TimeMS),
		Headers: make([]kgo.RecordHeader, len(m.Headers)),
	}
	for i, h := range m.Headers {
		r.Headers[i] = kgo.RecordHeader{Key: h.Key, Value: h.Value}
	}
	return r
}
