package bridge

import (
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// newTestFeed returns a feed of Mosquitto, whose queue holds 20 s, as it is after a first start.
func newTestFeed(t *testing.T) *feed {
	t.Helper()
	f := newFeed("default", "b1", 10*time.Second)
	f.fact.Dialect = presence.DialectMosquitto20
	f.subscribed(subscription{connectedMS: 900, subscribedMS: 1000})
	if _, ok := f.assert(1500); ok {
		t.Error("asserted before the log was read")
	}
	if err := f.recall(nil, nil); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *feed) state() coverage {
	// What was covered before has tests of its own.
	return coverage{CompleteSinceMS: f.fact.CompleteSinceMS, GapFromMS: f.fact.GapFromMS, GapToMS: f.fact.GapToMS}
}

func wantState(t *testing.T, what string, f *feed, want coverage) {
	t.Helper()
	if got := f.state(); got != want {
		t.Errorf("%s: got %+v, want %+v", what, got, want)
	}
}

func TestFeedAcrossConnections_H12(t *testing.T) {
	f := newTestFeed(t)
	wantState(t, "first start", f, coverage{CompleteSinceMS: 1000})
	f.assert(50_000)
	f.interrupted(51_000)
	wantState(t, "down", f, coverage{GapFromMS: 51_000})
	f.subscribed(subscription{resumed: true, connectedMS: 60_000, subscribedMS: 60_100})
	wantState(t, "resumed in time", f, coverage{CompleteSinceMS: 1000})

	f.interrupted(70_000)
	f.subscribed(subscription{resumed: true, connectedMS: 89_000, subscribedMS: 89_100})
	wantState(t, "resumed too late", f, coverage{CompleteSinceMS: 89_100, GapFromMS: 70_000, GapToMS: 89_100})

	f.interrupted(100_000)
	f.subscribed(subscription{resumed: true, connectedMS: 101_000, subscribedMS: 101_100})
	wantState(t, "resumed in time after a gap", f, coverage{CompleteSinceMS: 89_100, GapFromMS: 70_000, GapToMS: 89_100})

	f.interrupted(110_000)
	f.interrupted(112_000)
	f.subscribed(subscription{resumed: false, connectedMS: 113_000, subscribedMS: 113_100})
	wantState(t, "a new session", f, coverage{CompleteSinceMS: 113_100, GapFromMS: 110_000, GapToMS: 113_100})

	f.fact.Dialect = presence.DialectEMQX
	f.interrupted(120_000)
	f.subscribed(subscription{resumed: true, connectedMS: 120_100, subscribedMS: 120_200})
	wantState(t, "a dialect of QoS 0", f, coverage{CompleteSinceMS: 120_200, GapFromMS: 120_000, GapToMS: 120_200})
}

func TestFeedAcrossProcesses_H12(t *testing.T) {
	before := newTestFeed(t)
	logged, _ := before.assert(50_000)
	saved, err := before.save()
	if err != nil {
		t.Fatal(err)
	}
	again := func(logged *presence.NodeFact, saved []byte, s subscription) *feed {
		f := newFeed("default", "b1", 10*time.Second)
		f.subscribed(s)
		if err := f.recall(logged, saved); err != nil {
			t.Fatal(err)
		}
		return f
	}
	inTime := subscription{resumed: true, connectedMS: 60_000, subscribedMS: 60_100}
	wantState(t, "crash, resumed", again(&logged, saved, inTime), coverage{CompleteSinceMS: 1000})
	wantState(t, "crash, resumed, the disk lost", again(&logged, nil, inTime), coverage{CompleteSinceMS: 1000})
	wantState(t, "crash, resumed, the log lost", again(nil, saved, inTime), coverage{CompleteSinceMS: 1000})
	wantState(t, "crash, new session", again(&logged, saved, subscription{connectedMS: 60_000, subscribedMS: 60_100}), coverage{CompleteSinceMS: 60_100, GapFromMS: 50_000, GapToMS: 60_100})
	wantState(t, "crash, resumed too late", again(&logged, saved, subscription{resumed: true, connectedMS: 69_000, subscribedMS: 69_100}), coverage{CompleteSinceMS: 69_100, GapFromMS: 50_000, GapToMS: 69_100})

	before.interrupted(51_000)
	stopped, _ := before.assert(51_500)
	if saved, err = before.save(); err != nil {
		t.Fatal(err)
	}
	wantState(t, "stop, resumed", again(&stopped, saved, inTime), coverage{CompleteSinceMS: 1000})
	wantState(t, "stop, resumed, the disk lost", again(&stopped, nil, inTime), coverage{CompleteSinceMS: 60_100, GapFromMS: 51_000, GapToMS: 60_100})
	wantState(t, "stop, new session", again(&stopped, saved, subscription{connectedMS: 60_000, subscribedMS: 60_100}), coverage{CompleteSinceMS: 60_100, GapFromMS: 51_000, GapToMS: 60_100})

	// The log is read only after the connection was lost and made again.
	f := newFeed("default", "b1", 10*time.Second)
	f.subscribed(inTime)
	f.interrupted(61_000)
	f.subscribed(subscription{resumed: true, connectedMS: 62_000, subscribedMS: 62_100})
	if err := f.recall(&logged, saved); err != nil {
		t.Fatal(err)
	}
	wantState(t, "two connections before the log", f, coverage{CompleteSinceMS: 62_100, GapFromMS: 51_000, GapToMS: 62_100})
	if f.fact.Dialect != presence.DialectMosquitto20 {
		t.Errorf("dialect %q is not recalled", f.fact.Dialect)
	}
}

func TestFeedDrops(t *testing.T) {
	f := newTestFeed(t)
	f.dropped(3, 2000, 4000)
	f.dropped(2, 4500, 5000)
	if f.fact.DroppedCount != 5 || f.fact.DroppedFromMS != 2000 || f.fact.DroppedToMS != 5000 {
		t.Errorf("drops %+v", f.fact)
	}
	wantState(t, "incomplete up to the drop", f, coverage{CompleteSinceMS: 5000})
	c := presence.Cluster{}
	c.Apply(&f.fact)
	if from, to, open := c.FeedGap(); !open || from != 2000 || to != 5000 {
		t.Errorf("gap %d to %d, open %v", from, to, open)
	}
	f.dropped(1, 60_000, 60_000)
	if f.fact.DroppedCount != 6 || f.fact.DroppedFromMS != 60_000 {
		t.Errorf("later drops %+v", f.fact)
	}

	f = newFeed("default", "b1", 10*time.Second)
	f.dropped(7, 100, 200)
	if err := f.recall(&presence.NodeFact{Kind: presence.Feed, ReceivedMS: 50, CompleteSinceMS: 10, DroppedCount: 4, DroppedFromMS: 1, DroppedToMS: 2}, nil); err != nil {
		t.Fatal(err)
	}
	if f.fact.DroppedCount != 11 || f.fact.DroppedToMS != 200 {
		t.Errorf("drops before the log was read: %+v", f.fact)
	}
}

func TestFeedLost(t *testing.T) {
	f := newTestFeed(t)
	f.assert(8000)
	f.lost(9000)
	wantState(t, "the broker dropped messages", f, coverage{CompleteSinceMS: 9000, GapFromMS: 8000, GapToMS: 9000})
}

// TestFeedCovers tells of what was covered before, so that other bridges' feeds can make up for the rest.
func TestFeedCovers(t *testing.T) {
	f := newTestFeed(t)
	want := func(what string, spans ...presence.Span) {
		t.Helper()
		var c presence.Coverage
		copy(c[:], spans)
		if f.fact.Covered != c {
			t.Errorf("%s: covered %v, want %v", what, f.fact.Covered, c)
		}
	}
	want("at first")
	f.assert(5_000)
	f.interrupted(6_000)
	want("down", presence.Span{FromMS: 1000, ToMS: 6000})
	f.dropped(1, 5_000, 5_500)
	want("dropped what was received before", presence.Span{FromMS: 1000, ToMS: 5000}, presence.Span{FromMS: 5500, ToMS: 6000})
	f.subscribed(subscription{resumed: true, connectedMS: 7_000, subscribedMS: 7_100})
	want("resumed", presence.Span{FromMS: 1000, ToMS: 5000})
	if f.fact.CompleteSinceMS != 5_500 {
		t.Errorf("complete since %d, the drop was until 5500", f.fact.CompleteSinceMS)
	}
	f.dropped(1, 20_000, 20_100)
	f.dropped(1, 21_000, 21_100)
	want("dropped twice within the lease", presence.Span{FromMS: 1000, ToMS: 5000}, presence.Span{FromMS: 5500, ToMS: 20_000})
	f.lost(30_000)
	want("the broker dropped", presence.Span{FromMS: 1000, ToMS: 5000}, presence.Span{FromMS: 5500, ToMS: 20_000})
	f.assert(40_000)
	saved, err := f.save()
	if err != nil {
		t.Fatal(err)
	}
	again := newFeed("default", "b1", 10*time.Second)
	if err := again.recall(nil, saved); err != nil {
		t.Fatal(err)
	}
	if n := again.fact.Covered.Len(); n != 3 || again.fact.Covered[2] != (presence.Span{FromMS: 30_000, ToMS: 40_000}) {
		t.Errorf("after a restart: covered %v", again.fact.Covered)
	}
}
