package query

import (
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Words of StatusAt.reason, besides the status reasons.
const (
	atConnected    = "connected"
	atNotConnected = "not_connected" // between two connections, or before the first
	atInferred     = "inferred"      // a connection may have ended before or after: that it was over later is all that is known
	atPruned       = "history_pruned"
	atGap          = "feed_gap"
	atNotApplied   = "not_applied"
)

// forever is later than every time.
const forever = math.MaxInt64

// past is what is known of a client's connections in time, and how far that can be relied upon. Times are epoch milliseconds.
type past struct {
	spans []span // newest first

	// The status now.
	status, reason, node string
	sinceMS              int64

	completeSinceMS int64 // connections that ended before may be missing; 0: none is
	heardSinceMS    int64 // all that opened since was received; forever if that was never so
	appliedMS       int64 // all that Kafka had up to then is applied
	fedMS           int64 // a bridge was connected up to then; forever while one is
	gapFromMS       int64 // in a gap that nothing has healed; 0: there is none
	gapToMS         int64 // forever while it lasts
	nodeAliveMS     int64 // the latest heartbeat of the current connection's node
	healed          []gap // in which events were lost; what is open by now was found out since
}

// gap is a time in which events may have been lost.
type gap struct{ fromMS, toMS int64 }

// gapsOf returns the latest interruptions and losses of the bridges that no other bridge covers. Older ones left no trace.
func gapsOf(feeds []*presencev1.FeedHealth) []gap {
	of := func(f *presencev1.FeedHealth) []gap {
		var all []gap
		for _, g := range []gap{{f.GetGapFromMs(), f.GetGapToMs()}, {f.GetDroppedFromMs(), f.GetDroppedToMs()}} {
			if g.toMS != 0 {
				all = append(all, g)
			}
		}
		return all
	}
	covers := func(f *presencev1.FeedHealth, g gap) bool {
		return f.GetCompleteSinceMs() != 0 && f.GetCompleteSinceMs() <= g.fromMS &&
			!slices.ContainsFunc(of(f), func(own gap) bool { return own.fromMS <= g.toMS && own.toMS >= g.fromMS })
	}
	var gaps []gap
	for _, f := range feeds {
		for _, g := range of(f) {
			if !slices.ContainsFunc(feeds, func(other *presencev1.FeedHealth) bool { return covers(other, g) }) {
				gaps = append(gaps, g)
			}
		}
	}
	return gaps
}

// know fills in what the freshness of the client's partition and the cluster's health tell.
func (p *past) know(f *presencev1.PartitionFreshness, h *presencev1.ClusterHealth, now clock) {
	p.appliedMS = f.GetAppliedTimeMs()
	if f.GetReady() {
		p.appliedMS = max(p.appliedMS, f.GetCaughtUpTimeMs())
		if f.GetEndOffset() >= 0 && f.GetEndOffset() <= f.GetAppliedOffset() {
			p.appliedMS = max(p.appliedMS, f.GetEndOffsetTimeMs())
		}
	}
	p.fedMS = forever
	if !now.fed(h) {
		p.fedMS = 0
		for _, feed := range h.GetFeeds() {
			p.fedMS = max(p.fedMS, feed.GetAliveMs())
		}
	}
	if gap := h.GetGap(); gap != nil {
		p.gapFromMS, p.gapToMS = max(gap.GetFromMs(), 1), forever
		if gap.GetToMs() != 0 {
			p.gapToMS = gap.GetToMs()
		}
	}
	p.healed = gapsOf(h.GetFeeds())
	// Whatever was open after every node began was opened after its node began, and that was received.
	p.heardSinceMS = forever
	if h.GetComplete() {
		p.heardSinceMS = 0
	}
	for _, n := range h.GetNodes() {
		if h.GetComplete() {
			p.heardSinceMS = max(p.heardSinceMS, n.GetStartedMs())
			if n.GetGone() {
				p.heardSinceMS = max(p.heardSinceMS, n.GetGoneMs())
			}
		}
		if n.GetNode() == p.node {
			p.nodeAliveMS = n.GetAliveMs()
		}
	}
}

// at answers whether the client was connected at t. It depends on p and t alone:
//
//	within a connection whose end is stated ........ online
//	after what was applied, or heard ............... unknown (not_applied, feed_gap)
//	since the current connection began ............. what the status says, from when it says so; before, if a broker's word separates
//	                                                 them, online, else unknown (inferred)
//	within one whose end is inferred or not known .. unknown (inferred)
//	where connections may be missing ............... unknown (history_pruned, feed_gap)
//	else ........................................... offline
//
// A gap makes unknown what an event lost in it could change: a connection that is open may have ended in the gap, and one that nobody
// knows of may have begun there and lasted until the next that is known. In one that was healed, a connection may have begun and ended.
func (p *past) at(t *timestamppb.Timestamp) *presencev1.StatusAt {
	v := p.decide(t.AsTime())
	v.Time = t
	return v
}

func (p *past) decide(t time.Time) *presencev1.StatusAt {
	ms := t.UnixMilli() // rounds down, as the stamps are
	covered, uncertain, last := -1, -1, -1
	for i := range p.spans {
		s := &p.spans[i]
		switch {
		case s.current && s.state != sessionClosed:
			// sinceCurrent answers for it.
		case p.overMS(i) <= ms:
			if last < 0 || p.overMS(i) > p.overMS(last) {
				last = i
			}
		case ms < p.earliestMS(i):
		case s.stated && s.openedMS != 0:
			if covered < 0 {
				covered = i
			}
		case uncertain < 0:
			uncertain = i
		}
	}
	if covered >= 0 {
		return said("online", atConnected, covered)
	}
	switch {
	case ms > p.appliedMS || p.appliedMS == 0:
		return said("unknown", atNotApplied, -1)
	case ms > p.fedMS:
		return said("unknown", atGap, -1)
	}
	if v := p.sinceCurrent(ms); v != nil {
		return v
	}
	if uncertain >= 0 {
		return said("unknown", atInferred, uncertain)
	}
	return p.between(ms, last)
}

// overMS is when a connection that is not current was over, at the latest: by its end, or by the next one's opening.
func (p *past) overMS(i int) int64 {
	if p.spans[i].endedMS != 0 {
		return p.spans[i].endedMS
	}
	for j := i - 1; j >= 0; j-- {
		if p.spans[j].openedMS > p.spans[i].openedMS {
			return p.spans[j].openedMS
		}
	}
	return forever
}

// earliestMS is when a connection opened, at the earliest: where that is not known, after the others before it were over. An index of -1
// stands for one of which nothing else is known.
func (p *past) earliestMS(i int) int64 {
	if i >= 0 && p.spans[i].openedMS != 0 {
		return p.spans[i].openedMS
	}
	earliest, until := int64(math.MinInt64), int64(forever)
	if i >= 0 && p.spans[i].endedMS != 0 {
		until = p.spans[i].endedMS
	}
	for j := range p.spans {
		if over := p.overMS(j); j != i && over <= until && over != forever {
			earliest = max(earliest, over)
		}
	}
	return earliest
}

// sinceCurrent answers for a time at which the connection that is current, or the status, had begun; nil for one before.
func (p *past) sinceCurrent(ms int64) *presencev1.StatusAt {
	current := -1
	for i := range p.spans {
		if p.spans[i].current {
			current = i
		}
	}
	begun := p.sinceMS != 0 && ms >= p.sinceMS
	switch {
	case p.status == "offline":
		switch {
		case !begun:
			return nil
		case p.inGap(ms, p.sinceMS), p.inHealed(ms):
			return said("unknown", atGap, -1)
		}
		return said("offline", p.reason, current)
	case !begun && (current < 0 && p.status != "online" || ms < p.earliestMS(current)):
		return nil
	case p.status == "online" && begun:
		if p.inGap(ms, p.earliestMS(current)) {
			return said("unknown", atGap, current)
		}
		return said("online", p.reason, current)
	case p.status == "online":
		// The broker said that it was online. Since when, nobody did.
		return said("unknown", atInferred, current)
	case p.heardOpen(ms, current) && !begun && !p.inGap(ms, p.earliestMS(current)):
		return said("online", atConnected, current)
	}
	return said("unknown", p.reason, current)
}

// heardOpen reports whether nothing is wrong but that the connection's node was not heard any more, and it still was then: until it was last
// heard, the end of a connection would have been.
func (p *past) heardOpen(ms int64, current int) bool {
	return (p.reason == "node_silent" || p.reason == "node_gone") && current >= 0 && p.spans[current].openedMS != 0 && ms <= p.nodeAliveMS
}

// between answers for a time in no connection that is known; last is the index of the one that ended before, -1 for none.
func (p *past) between(ms int64, last int) *presencev1.StatusAt {
	var endedMS int64
	if last >= 0 {
		endedMS = p.overMS(last)
	}
	switch {
	case ms < p.completeSinceMS:
		return said("unknown", atPruned, -1)
	case p.inGap(ms, endedMS), p.inHealed(ms):
		return said("unknown", atGap, -1)
	case last < 0 && ms < p.heardSinceMS:
		return said("unknown", atPruned, -1)
	}
	return said("offline", atNotConnected, -1)
}

// inGap reports whether an event before ms, and after afterMS, may have been lost.
func (p *past) inGap(ms, afterMS int64) bool {
	return p.gapFromMS != 0 && p.gapFromMS <= ms && p.gapToMS > afterMS
}

func (p *past) inHealed(ms int64) bool {
	return slices.ContainsFunc(p.healed, func(g gap) bool { return g.fromMS <= ms && ms <= g.toMS })
}

func said(status, reason string, session int) *presencev1.StatusAt {
	v := &presencev1.StatusAt{Status: status, Reason: reason}
	if session >= 0 {
		i := int32(session)
		v.Session = &i
	}
	return v
}
