package presence

import (
	"testing"

	"pgregory.net/rapid"
)

// bridgeLife is a bridge as it really was: when it was subscribed, and what it lost meanwhile.
type bridgeLife struct {
	up      []Span // ascending
	dropped []Span // within one of up each, ascending
	deadMS  int64  // when it said its last word, without knowing
}

// drawLife draws a life until endMS.
func drawLife(t *rapid.T, endMS int64) bridgeLife {
	var l bridgeLife
	ms := rapid.Int64Range(1, endMS-1).Draw(t, "begins")
	for ms < endMS && len(l.up) < MaxCovered-2 {
		until := min(endMS, ms+rapid.Int64Range(0, 2*endMS).Draw(t, "up for"))
		l.up = append(l.up, Span{ms, until})
		ms = until + rapid.Int64Range(1, 5_000).Draw(t, "down for")
	}
	if last := l.up[len(l.up)-1]; last.ToMS-last.FromMS > 2 && rapid.Bool().Draw(t, "drops") {
		from := rapid.Int64Range(last.FromMS+1, last.ToMS-1).Draw(t, "drops from")
		l.dropped = append(l.dropped, Span{from, rapid.Int64Range(from, last.ToMS-1).Draw(t, "drops to")})
	}
	l.deadMS = endMS
	if last := l.up[len(l.up)-1]; last.ToMS == endMS && rapid.Bool().Draw(t, "dies") {
		floor := last.FromMS
		if len(l.dropped) > 0 {
			floor = max(floor, l.dropped[0].ToMS+1)
		}
		l.deadMS = rapid.Int64Range(floor, endMS).Draw(t, "dies at")
	}
	return l
}

// receives reports whether the bridge surely has what was emitted at an instant: it was subscribed, and stayed so, without a loss, until the event
// must have come.
func (l *bridgeLife) receives(ms int64) bool {
	for _, s := range l.up {
		if s.FromMS > ms || ms+overlapMS > min(s.ToMS, l.deadMS) {
			continue
		}
		ok := true
		for _, d := range l.dropped {
			// What was dropped came at the time of d, and was emitted then or before.
			ok = ok && (ms >= d.ToMS || ms+overlapMS <= d.FromMS)
		}
		if ok {
			return true
		}
	}
	return false
}

// fact is what the bridge has said last.
func (l *bridgeLife) fact(name string, endMS int64) NodeFact {
	f := NodeFact{Kind: Feed, Bridge: name, ReceivedMS: min(endMS, l.deadMS), LeaseMS: leaseMS}
	for i, s := range l.up {
		whole := s.FromMS
		for _, d := range l.dropped {
			if s.FromMS <= d.FromMS && d.ToMS <= s.ToMS {
				f.DroppedFromMS, f.DroppedToMS, f.DroppedCount = d.FromMS, d.ToMS, 1
				f.Covered.Add(whole, d.FromMS)
				whole = d.ToMS
			}
		}
		if i > 0 {
			f.GapFromMS, f.GapToMS = l.up[i-1].ToMS, s.FromMS
		}
		if i == len(l.up)-1 && s.ToMS == endMS {
			f.CompleteSinceMS = whole
			continue
		}
		f.Covered.Add(whole, s.ToMS)
		if i == len(l.up)-1 {
			f.GapFromMS, f.GapToMS = s.ToMS, 0
		}
	}
	return f
}

const leaseMS = 10_000

// TestFeedsAgainstTime compares what several bridges have seen together with every instant of the time that they tell of.
func TestFeedsAgainstTime(t *testing.T) {
	const endMS = 60_000
	gaps, wholes, together := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var c Cluster
		var lives []bridgeLife
		begin, present := int64(endMS), false
		for i := range rapid.IntRange(1, 3).Draw(t, "bridges") {
			l := drawLife(t, endMS)
			lives = append(lives, l)
			f := l.fact(string(rune('a'+i)), endMS)
			c.Apply(&f)
			begin = min(begin, l.up[0].FromMS)
		}
		said := int64(0) // the latest word of all
		for _, f := range c.Feeds {
			said = max(said, f.ReceivedMS)
		}
		for _, f := range c.Feeds {
			present = present || f.CompleteSinceMS != 0 && said-f.ReceivedMS <= f.LeaseMS
		}
		started := int64(0)
		if rapid.Bool().Draw(t, "a node") {
			// One that starts later than a bridge can tell of is told of by a clock that was set back.
			started = rapid.Int64Range(1, min(endMS, said+leaseMS)).Draw(t, "node starts")
			c.Apply(&NodeFact{Kind: NodeStarted, Node: "n", ReceivedMS: started, StartedMS: started, StartedReceivedMS: started})
		}
		// What a bridge that has died may have missed since shows only when its lease is over.
		horizon := said - overlapMS
		for _, f := range c.Feeds {
			if f.CompleteSinceMS != 0 && said-f.ReceivedMS <= f.LeaseMS {
				horizon = min(horizon, f.ReceivedMS-overlapMS)
			}
		}
		// A loss just before the node started may be one after it, by another clock.
		lost, lostBefore, lostFrom, lostTo := false, false, int64(0), int64(0)
		for ms := max(begin, started-2*overlapMS); ms <= horizon; ms++ {
			received := false
			for i := range lives {
				received = received || lives[i].receives(ms)
			}
			switch {
			case received:
			case ms < started:
				lostBefore = true
			default:
				if !lost {
					lostFrom = ms
				}
				lost, lostTo = true, ms
			}
		}
		from, to, gap := c.FeedGap()
		if lost && !gap {
			t.Fatalf("what was emitted at %d to %d may have reached nobody, and there is no gap: %+v", lostFrom, lostTo, c.Feeds)
		}
		if gap && present && to <= horizon && !lost && !lostBefore && to > from {
			t.Fatalf("there is a gap from %d to %d, and all was received since %d: %+v", from, to, max(begin, started), c.Feeds)
		}
		if gap && lost && to != 0 && lostTo > max(to, from)+overlapMS {
			t.Fatalf("the gap ends at %d, and what was emitted at %d may have reached nobody: %+v", to, lostTo, c.Feeds)
		}
		whole := c.FeedComplete()
		if whole && (gap || lost || started == 0 || started < begin) {
			t.Fatalf("the feed is complete, with gap %v, loss %v, since %d, and the node started at %d: %+v", gap, lost, begin, started, c.Feeds)
		}
		margin := int64(0)
		if len(c.Feeds) > 1 {
			margin = overlapMS
		}
		if !whole && present && !gap && started-margin >= begin && started != 0 {
			t.Fatalf("the feed is not complete, though nothing was lost since the node started at %d: %+v", started, c.Feeds)
		}
		if gap {
			gaps++
		}
		if whole {
			wholes++
		}
		if whole && len(lives) > 1 {
			alone := false
			for _, f := range c.Feeds {
				one := Cluster{Nodes: c.Nodes, Feeds: map[string]NodeFact{f.Bridge: f}}
				alone = alone || one.FeedComplete()
			}
			if !alone {
				together++
			}
		}
	})
	t.Logf("%d with a gap, %d complete, %d of them only together", gaps, wholes, together)
}

// TestCoverage_bounded has more spans than there is room for: what is given up counts as missing, never as seen.
func TestCoverage_bounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var c Coverage
		ms := int64(1)
		kept := map[int64]bool{}
		for range rapid.IntRange(0, 3*MaxCovered).Draw(t, "spans") {
			from := ms + rapid.Int64Range(1, 20).Draw(t, "after")
			to := from + rapid.Int64Range(0, 20).Draw(t, "long")
			c.Add(from, to)
			for at := from; at < to; at++ {
				kept[at] = true
			}
			if rapid.IntRange(0, 3).Draw(t, "cut") == 0 {
				cut := rapid.Int64Range(1, to).Draw(t, "cut from")
				until := cut + rapid.Int64Range(0, 30).Draw(t, "cut for")
				c.Cut(cut, until)
				for at := cut; at < until; at++ {
					delete(kept, at)
				}
			}
			ms = to
		}
		last := int64(0)
		for _, s := range c[:c.Len()] {
			if s.FromMS < last || s.ToMS < s.FromMS {
				t.Fatalf("the spans are not in order: %v", c)
			}
			last = s.ToMS
			for at := s.FromMS; at < s.ToMS; at++ {
				if !kept[at] {
					t.Fatalf("%d is not covered, and the spans say so: %v", at, c)
				}
			}
		}
	})
}
