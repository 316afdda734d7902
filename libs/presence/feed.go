package presence

import (
	"cmp"
	"slices"
)

// MaxCovered is how many spans a [Coverage] has room for.
const MaxCovered = 8

// overlapMS is how long two bridges must both have been subscribed for the second to continue what the first has seen: an event takes its time
// to each of them, and their clocks differ.
const overlapMS = DefaultAllowanceMS

// Span is a time from which to which a subscription was complete, on the bridge's clock.
type Span struct {
	FromMS int64
	ToMS   int64
}

// Coverage are the latest spans in which a subscription was complete, in their order; what is zero is not used. A span without length says that the
// subscription was complete until then, and leaves open since when.
type Coverage [MaxCovered]Span

// Len returns how many spans are used.
func (c *Coverage) Len() int {
	n := 0
	for n < MaxCovered && c[n].ToMS != 0 {
		n++
	}
	return n
}

// Add notes a span that is later than all others. Where there is no room left, the oldest two are given up: between them and the next one the
// subscription then counts as incomplete, never the other way around.
func (c *Coverage) Add(fromMS, toMS int64) {
	if fromMS <= 0 || toMS < fromMS {
		return
	}
	n := c.Len()
	if n == MaxCovered {
		c[0].ToMS = c[0].FromMS
		copy(c[1:], c[2:])
		n--
	}
	c[n] = Span{fromMS, toMS}
}

// Cut takes a time out, in which facts were lost.
func (c *Coverage) Cut(fromMS, toMS int64) {
	spans := c[:c.Len()]
	rest := Coverage{}
	for _, s := range spans {
		if s.ToMS < fromMS || toMS < s.FromMS {
			rest.Add(s.FromMS, s.ToMS)
			continue
		}
		rest.Add(min(s.FromMS, fromMS), min(s.ToMS, fromMS))
		if toMS < s.ToMS {
			rest.Add(toMS, s.ToMS)
		}
	}
	*c = rest
}

func (c *Coverage) compare(o *Coverage) int {
	return slices.CompareFunc(c[:], o[:], func(a, b Span) int {
		return cmp.Or(cmp.Compare(a.FromMS, b.FromMS), cmp.Compare(a.ToMS, b.ToMS))
	})
}

// seen is what all bridges of a cluster have seen together.
type seen struct {
	gap          bool  // something is missing that nothing has healed
	fromMS, toMS int64 // holds all of it; toMS is 0 while it lasts
	wholeSinceMS int64 // since when nothing is missing; 0: something is, now
}

// seen joins the spans of all bridges; where one takes over from another, there must be an overlap.
func (c *Cluster) seen() seen {
	spans, subscribed := c.spans()
	if len(spans) == 0 {
		return seen{}
	}
	var all seen
	healedMS := c.healedMS()
	missing := func(fromMS, toMS int64) {
		if toMS == 0 || toMS > healedMS {
			all.fromMS, all.toMS = widen(all.fromMS, all.toMS, fromMS, toMS, all.gap)
			all.gap = true
		}
	}
	since, reach := spans[0].FromMS, spans[0].ToMS
	for _, s := range spans[1:] {
		if s.ToMS <= reach {
			continue
		}
		if s.FromMS+overlapMS > reach {
			since = max(reach, s.FromMS)
			missing(min(reach, s.FromMS), since)
		}
		reach = s.ToMS
	}
	if subscribed {
		all.wholeSinceMS = since
	} else {
		missing(reach, 0)
	}
	return all
}

// spans returns in which times the bridges were subscribed, by their beginnings, and whether one of them is. A bridge that has not said anything else
// counts as subscribed until the lease is over that its last word gives it, as told by the words of others: only then it shows that it is not.
func (c *Cluster) spans() (spans []Span, subscribed bool) {
	nowMS, _ := c.toldMS()
	for _, f := range c.Feeds {
		spans = append(spans, f.Covered[:f.Covered.Len()]...)
		if f.GapFromMS != 0 {
			spans = append(spans, Span{f.GapFromMS, f.GapFromMS})
		}
		since := f.CompleteSinceMS
		if f.DroppedToMS != 0 {
			before := Span{f.DroppedFromMS, f.DroppedFromMS}
			if since != 0 {
				before.FromMS, since = min(before.FromMS, since), max(since, f.DroppedToMS)
			}
			spans = append(spans, before)
		}
		if since == 0 {
			continue
		}
		to := max(f.ToldMS(), since)
		if nowMS-f.ToldMS() <= f.LeaseMS {
			to, subscribed = max(nowMS, to), true
		}
		spans = append(spans, Span{since, to})
	}
	slices.SortFunc(spans, func(a, b Span) int { return cmp.Or(cmp.Compare(a.FromMS, b.FromMS), cmp.Compare(b.ToMS, a.ToMS)) })
	return spans, subscribed
}

// ToldMS returns up to when a Feed fact tells of its subscription. ReceivedMS, which orders the facts of a bridge, does not go back with its clock.
func (f *NodeFact) ToldMS() int64 {
	if f.TimeMS == 0 {
		return f.ReceivedMS
	}
	return min(f.TimeMS, f.ReceivedMS)
}

// toldMS returns up to when the latest word of the bridges tells, and the longest of their leases.
func (c *Cluster) toldMS() (ms, leaseMS int64) {
	for _, f := range c.Feeds {
		ms, leaseMS = max(ms, f.ToldMS()), max(leaseMS, f.LeaseMS)
	}
	return ms, leaseMS
}

// healedMS returns until when everything that was missed is made up for: by a finished sweep, or because every node that is still there began its
// generation later. 0: nothing is. Where there are several bridges, the clock by which the generation began need not be that of the bridge that
// missed something: what ended just before counts as missed.
func (c *Cluster) healedMS() int64 {
	var started int64
	toldMS, leaseMS := c.toldMS()
	for _, n := range c.Nodes {
		switch {
		case n.Gone():
		case n.StartedReceivedMS == 0, leaseMS != 0 && n.StartedReceivedMS > toldMS+leaseMS:
			// One that is to begin only was seen by a clock that was set back since: what it heals is not known.
			return c.syncedMS()
		case started == 0 || n.StartedReceivedMS < started:
			started = n.StartedReceivedMS
		}
	}
	if len(c.Feeds) > 1 {
		started = max(started-overlapMS, 0)
	}
	return max(started, c.syncedMS())
}

// syncedMS returns when the latest sweep was finished, 0 if none was.
func (c *Cluster) syncedMS() int64 {
	var ms int64
	for _, f := range c.Feeds {
		ms = max(ms, f.ResyncedMS)
	}
	return ms
}

// FeedComplete reports whether the bridges, one or several of them together, have received everything since every known node's generation began, or
// since a finished sweep, so that a client never seen is offline (L7). Without any node there is nothing to be complete about.
func (c *Cluster) FeedComplete() bool {
	if len(c.Nodes) == 0 {
		return false
	}
	if _, _, unheard := c.unheard(); unheard {
		return false
	}
	since := c.seen().wholeSinceMS
	return since != 0 && c.healedMS() >= since
}

// FeedGap returns the interruption that makes answers stale, on the bridges' clocks: times that no bridge has covered, or in which a node that the
// cluster still has on its list was silent (L4), as far as neither a finished sweep nor newer generations have healed them. toMS is 0 while it
// lasts.
func (c *Cluster) FeedGap() (fromMS, toMS int64, open bool) {
	all := c.seen()
	fromMS, toMS, open = all.fromMS, all.toMS, all.gap
	if from, to, unheard := c.unheard(); unheard {
		fromMS, toMS = widen(fromMS, toMS, from, to, open)
		open = true
	}
	return fromMS, toMS, open
}

// unheard returns when events of a node that was silent may have been lost. toMS is 0 while it is silent.
func (c *Cluster) unheard() (fromMS, toMS int64, open bool) {
	syncedMS := c.syncedMS()
	for _, n := range c.Nodes {
		if !n.unheard(syncedMS) {
			continue
		}
		to := n.AliveMS
		if n.Silent() {
			to = 0
		}
		fromMS, toMS = widen(fromMS, toMS, n.SilentMS, to, open)
		open = true
	}
	return fromMS, toMS, open
}

// widen returns the interval that holds two, whose ends are 0 while they last; the first is none unless has is true.
func widen(from, to, from2, to2 int64, has bool) (int64, int64) {
	switch {
	case !has:
		return from2, to2
	case to == 0 || to2 == 0:
		return min(from, from2), 0
	}
	return min(from, from2), max(to, to2)
}
