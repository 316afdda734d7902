package materializer

import (
	"context"
	"errors"
	"testing"
)

// A stop has the open set committed, and shows the store as it is at its offset, also where that is in a gap of the log.
func TestStopsWithAnOpenSet(t *testing.T) {
	p := catchingUp(t, 1<<40)
	records := benchRecords(60, 10)
	fold := func(from, to int) {
		t.Helper()
		if err := p.fold(context.Background(), records[from:to]); err != nil {
			t.Fatal(err)
		}
		if p.due() {
			t.Fatal("the set is due though nobody wants a stop")
		}
	}
	stopAt := func(offset int64) *stop {
		w := &stop{offset: offset, done: make(chan struct{})}
		p.stops.add(w)
		return w
	}
	// made has the stop made as work does, once the set is due, and returns the next offset that its view shows.
	made := func(w *stop) int64 {
		t.Helper()
		if !p.due() {
			t.Fatalf("the set is not due, and a stop at %d waits", w.offset)
		}
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
		p.makeStops()
		select {
		case <-w.done:
		default:
			t.Fatalf("the stop at %d is not made", w.offset)
		}
		if w.view == nil {
			return 0
		}
		meta, _, err := w.view.Meta(p.id)
		if err = errors.Join(err, w.view.Close()); err != nil {
			t.Fatal(err)
		}
		return meta.Next
	}

	fold(0, 10)
	w := stopAt(10)
	if next := made(w); next != 10 || w.at != 10 || w.err != nil {
		t.Errorf("at %d of an open set of 10: %+v, the view shows %d", w.offset, w, next)
	}
	fold(10, 20)
	w = stopAt(asIs)
	if next := made(w); next != 20 || w.at != 20 || w.err != nil {
		t.Errorf("as it is, with an open set up to 20: %+v, the view shows %d", w, next)
	}
	fold(20, 30)
	if made(stopAt(25)); p.progress.read().next != 30 {
		t.Errorf("%d are committed for a stop that was passed", p.progress.read().next)
	}
	fold(30, 40)
	w = stopAt(45)
	if p.due() {
		t.Fatal("due for an offset that may still come")
	}
	p.queue.push(records[50:])
	if got := p.queue.take(nil, 100, p.stops.below()); len(got) > 0 {
		t.Fatalf("%d records from the stop on are taken", len(got))
	}
	if next := made(w); next != 40 || w.at != 45 || w.err != nil {
		t.Errorf("at 45, with nothing from 40 to 50: %+v, the view shows %d", w, next)
	}
}
