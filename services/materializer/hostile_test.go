package materializer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// largest returns the records of clients with IDs of the largest kind, of bytes that JSON writes as six.
func largest(n int) []*kgo.Record {
	records := make([]*kgo.Record, n)
	for i := range records {
		f := opened(fmt.Sprintf("%05d", i)+strings.Repeat("\x01", eventlog.MaxClientIDBytes-5), "n1", int64(i)*1000)
		records[i] = eventlog.FactRecord(&f, eventlog.JSON)
		records[i].Offset = int64(i)
	}
	return records
}

// However much a take makes, the set is committed once it has grown to its bound, and what comes of it is the same.
func TestTakeOfTheLargestRecords(t *testing.T) {
	records := largest(200)
	want, p := expiring(t, true, 24*time.Hour), catchingUp(t, 1<<40)
	want.meta.SweptNode, p.meta.SweptNode = -1, -1
	for _, r := range records {
		want.outbox.remove(len(want.outbox.chunks))
		if err := want.foldBatch(context.Background(), []*kgo.Record{r}); err != nil {
			t.Fatal(err)
		}
	}
	for from := 0; from < len(records); {
		p.outbox.remove(len(p.outbox.chunks)) // what is published stays in the store, to be compared
		n, err := p.foldPart(context.Background(), records[from:])
		if err != nil {
			t.Fatal(err)
		}
		p.folds.records += n
		from += n
		if size := p.folds.outSize; size > maxOpenOutbox+2<<20 {
			t.Fatalf("a set of %d records holds back %d bytes", n, size)
		}
		if p.meta.Next != int64(from) {
			t.Fatalf("the offset is %d after %d records", p.meta.Next, from)
		}
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := dumpAll(t, p), dumpAll(t, want); got != want {
		t.Errorf("rows differ from those of single facts, which have %d bytes; %d bytes", len(want), len(got))
	}
}

// While the outbox has no room, what was folded is committed: Kafka may take nothing for minutes.
func TestWhoWaitsForRoomHasCommitted(t *testing.T) {
	p := catchingUp(t, 1<<40)
	records := benchRecords(20, 10)
	if err := p.fold(context.Background(), records[:10]); err != nil || p.due() {
		t.Fatalf("the set is due, error %v", err)
	}
	p.outbox.bytes = maxOutbox
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := p.fold(ctx, records[10:]); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("error %v, want that there was no room", err)
	}
	if next := p.progress.read().next; next != 10 {
		t.Errorf("%d records are committed, 10 were folded", next)
	}
}

// Records wait in queues up to a number of bytes, too.
func TestQueueOfTheLargestRecords(t *testing.T) {
	f := &fetcher{queues: map[int32]*queue{}, paused: map[int32]bool{}}
	q := newQueue(&progress{}, func() {})
	f.queues[0] = q
	records := largest(200)
	q.push(records[:100])
	if f.full() {
		t.Error("100 records are too many")
	}
	q.push(records[100:])
	if !f.full() {
		t.Error("200 records of 450 kB are not too many")
	}
	f.paused[0] = true
	if f.full() {
		t.Error("a partition that is paused counts")
	}
	delete(f.paused, 0)
	if q.take(nil, 1000, 1<<40); f.full() || q.size.Load() != 0 {
		t.Errorf("an empty queue has %d bytes", q.size.Load())
	}
}

// A client with the largest names on every node of a cluster has a record of client-state like any other.
func TestStateOfTheLargestNames(t *testing.T) {
	l := newLog(t)
	id := strings.Repeat("\x01", eventlog.MaxClientIDBytes)
	m := l.start(l.config(vfs.NewMem())).ready()
	for i := range 20 {
		f := of(opened(id, fmt.Sprintf("n%d", i), int64(i)*1000), func(f *presence.Fact) { f.Username = id })
		m.get(id, l.facts(f))
	}
	m.published(l)
	if got := l.transitions(id); len(got) == 0 {
		t.Error("no transition was published")
	}
}
