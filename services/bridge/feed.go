package bridge

import (
	"cmp"
	"encoding/json"
	"fmt"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// feed is the bridge's record of its own subscription to one cluster: since when it is complete, and which interruption, or drop, makes it
// incomplete (L7). Each Feed fact is its whole state. Times are data, on the bridge's clock. It is used by one goroutine at a time.
//
//	            connected()            subscribed()
//	down ----------------------> up ----------------> complete since SUBACK, or since before if nothing was lost
//	 ^                                                   |
//	 +------------------- interrupted() ----------------+  a gap from the last sign of the connection
type feed struct {
	fact   presence.NodeFact
	loaded bool // the log's last Feed fact is known
	// before is CompleteSinceMS before the interruption that lasts, with the gap that was known then: a session that is resumed without
	// loss takes them back.
	before coverage
	// coveredMS is when the subscription was last known to be whole.
	coveredMS int64
	session   *subscription // the subscription that stands, nil if there is none
	broken    bool          // a connection was lost before the log was read
	reliedMS  int64         // when the latest fact that was left to another bridge was received
	clockMS   int64         // what the bridge's clock showed at the latest assertion
}

// setBack moves what lies ahead of the bridge's clock as it is now, since the clock was set back by that much: a time counts as covered only as far as
// the clock has come, and a gap is where it was.
func (c *coverage) setBack(nowMS, byMS int64) {
	for _, ms := range []*int64{&c.CompleteSinceMS, &c.GapFromMS, &c.GapToMS} {
		*ms = movedBack(*ms, nowMS, byMS)
	}
	covered := c.Covered
	c.Covered = presence.Coverage{}
	for _, s := range covered[:covered.Len()] {
		c.Covered.Add(movedBack(s.FromMS, nowMS, byMS), movedBack(s.ToMS, nowMS, byMS))
	}
}

func movedBack(ms, nowMS, byMS int64) int64 {
	if ms > nowMS {
		return max(min(ms-byMS, nowMS), 1)
	}
	return ms
}

// clock notes what the bridge's clock shows.
func (f *feed) clock(nowMS int64) {
	if by := f.clockMS - nowMS; by > stepMS {
		c := f.current()
		c.setBack(nowMS, by)
		f.set(c)
		f.before.setBack(nowMS, by)
		for _, ms := range []*int64{&f.coveredMS, &f.reliedMS, &f.fact.DroppedFromMS, &f.fact.DroppedToMS} {
			*ms = movedBack(*ms, nowMS, by)
		}
	}
	f.clockMS = nowMS
}

// coverage is the part of a Feed fact that an interruption changes.
type coverage struct {
	CompleteSinceMS int64             `json:"complete_since_ms,omitempty"`
	GapFromMS       int64             `json:"gap_from_ms,omitempty"`
	GapToMS         int64             `json:"gap_to_ms,omitempty"`
	Covered         presence.Coverage `json:"covered"`
}

// incomplete notes that a fact of that time is lost. What is missing stays out of what was covered.
func (c *coverage) incomplete(fromMS, toMS int64) {
	c.Covered.Cut(fromMS, toMS)
	if c.CompleteSinceMS == 0 {
		return
	}
	if c.CompleteSinceMS < fromMS {
		c.Covered.Add(c.CompleteSinceMS, fromMS)
	}
	c.CompleteSinceMS = max(c.CompleteSinceMS, toMS)
}

// subscription is what the broker said when the bridge subscribed.
type subscription struct {
	resumed      bool
	connectedMS  int64 // CONNACK
	subscribedMS int64 // SUBACK
}

func newFeed(cluster, name string, lease time.Duration) *feed {
	return &feed{fact: presence.NodeFact{Kind: presence.Feed, Cluster: cluster, Bridge: name, LeaseMS: lease.Milliseconds()}}
}

// memory is what a bridge keeps of a feed on its own disk: what Kafka did not get before a crash.
type memory struct {
	Fact      presence.NodeFact `json:"fact"`
	Before    coverage          `json:"before"`
	CoveredMS int64             `json:"covered_ms"`
}

func (f *feed) save() ([]byte, error) {
	b, err := json.Marshal(memory{f.fact, f.before, f.coveredMS})
	if err != nil {
		return nil, fmt.Errorf("encode the feed of cluster %s: %w", f.fact.Cluster, err)
	}
	return b, nil
}

// recallDrops takes what a process before saved that had not read the log: what it has dropped.
func (f *feed) recallDrops(saved []byte) error {
	var m memory
	if err := json.Unmarshal(saved, &m); err != nil {
		return fmt.Errorf("decode the saved drops of cluster %s: %w", f.fact.Cluster, err)
	}
	if m.Fact.DroppedCount > 0 {
		f.dropped(m.Fact.DroppedCount, m.Fact.DroppedFromMS, m.Fact.DroppedToMS)
	}
	return nil
}

// recall takes the last Feed fact of this bridge in the log, nil if there is none, and what save returned, nil if that is lost. It is
// called once; what happened before it is settled now.
func (f *feed) recall(logged *presence.NodeFact, saved []byte) error {
	var m memory
	if saved != nil {
		if err := json.Unmarshal(saved, &m); err != nil {
			return fmt.Errorf("decode the saved feed of cluster %s: %w", f.fact.Cluster, err)
		}
	}
	if logged != nil && logged.ReceivedMS > m.Fact.ReceivedMS {
		// The disk is new, or older than the log.
		m = memory{Fact: *logged, CoveredMS: logged.ReceivedMS}
		if logged.CompleteSinceMS == 0 {
			m.CoveredMS = logged.GapFromMS
		}
	}
	own := f.fact
	f.clockMS = m.Fact.ToldMS()
	f.fact, f.before, f.coveredMS = m.Fact, m.Before, max(m.CoveredMS, f.coveredMS)
	f.fact.Kind, f.fact.Cluster, f.fact.Bridge, f.fact.LeaseMS = own.Kind, own.Cluster, own.Bridge, own.LeaseMS
	f.fact.Dialect = cmp.Or(own.Dialect, f.fact.Dialect)
	f.fact.DroppedCount += own.DroppedCount
	if own.DroppedToMS != 0 {
		f.fact.DroppedFromMS, f.fact.DroppedToMS = own.DroppedFromMS, own.DroppedToMS
	}
	if own.DroppedCount != 0 {
		f.incomplete(own.DroppedFromMS, own.DroppedToMS)
	}
	f.loaded = true
	session := f.session
	// The process that wrote it is gone, and its connection with it.
	f.interrupted(m.CoveredMS)
	if session != nil {
		f.session, f.broken = session, false
		f.settle()
	}
	return nil
}

// interrupted is called when the connection is lost; atMS is the last sign of it.
func (f *feed) interrupted(atMS int64) {
	f.session = nil
	if !f.loaded {
		f.broken = true
		return
	}
	if f.fact.CompleteSinceMS != 0 {
		f.before = f.current()
		down := coverage{GapFromMS: atMS, Covered: f.before.Covered}
		down.Covered.Add(f.before.CompleteSinceMS, atMS)
		f.set(down)
		f.coveredMS = max(f.coveredMS, atMS)
	}
}

func (f *feed) current() coverage {
	return coverage{f.fact.CompleteSinceMS, f.fact.GapFromMS, f.fact.GapToMS, f.fact.Covered}
}

func (f *feed) set(c coverage) {
	f.fact.CompleteSinceMS, f.fact.GapFromMS, f.fact.GapToMS, f.fact.Covered = c.CompleteSinceMS, c.GapFromMS, c.GapToMS, c.Covered
}

// subscribed is called at each SUBACK.
func (f *feed) subscribed(s subscription) {
	if f.loaded {
		f.clock(s.subscribedMS)
	}
	// Without the log, how long the first of several interruptions lasted is not known.
	s.resumed = s.resumed && !f.broken
	f.session, f.broken = &s, !f.loaded && !s.resumed
	if f.loaded {
		f.settle()
	}
}

// settle decides whether the subscription continues the one before.
func (f *feed) settle() {
	s := f.session
	if f.complete(s.resumed, f.coveredMS, s.connectedMS) && f.before.CompleteSinceMS != 0 {
		f.set(f.before)
	} else {
		f.fact.CompleteSinceMS = max(s.subscribedMS, f.reliedMS)
		if f.fact.GapFromMS != 0 && f.fact.GapToMS == 0 {
			f.fact.GapToMS = f.fact.CompleteSinceMS
		}
	}
	f.before = coverage{}
	f.coveredMS = max(f.coveredMS, s.subscribedMS)
}

// expiryMarginMS is kept from the broker's expiry of queued events: the session's queue takes its time to drain.
const expiryMarginMS = 2_000

// complete reports whether a session that was resumed at connectedMS has kept every event since lastMS, when the connection before was last
// heard; 0 if that is not known.
func (f *feed) complete(resumed bool, lastMS, connectedMS int64) bool {
	d := dialectByName(f.fact.Dialect)
	// A clock that was set back in between does not tell how long it was.
	return resumed && d != nil && lastMS != 0 && lastMS-connectedMS <= stepMS && connectedMS-lastMS+expiryMarginMS <= d.queueExpiry.Milliseconds()
}

// lost is called when the broker says that it dropped messages to the bridge: the subscription is complete only from then on.
func (f *feed) lost(atMS int64) {
	if !f.loaded || f.fact.CompleteSinceMS == 0 {
		return
	}
	from := min(max(f.coveredMS, f.fact.CompleteSinceMS), atMS)
	c := f.current()
	c.incomplete(from, atMS)
	c.CompleteSinceMS, c.GapFromMS, c.GapToMS = atMS, from, atMS
	f.set(c)
}

// relied is called when a fact was left to another bridge that was received at atMS, before anything else of the session counts.
func (f *feed) relied(atMS int64) {
	f.reliedMS = max(f.reliedMS, atMS)
	if f.fact.CompleteSinceMS != 0 && f.fact.CompleteSinceMS < atMS {
		f.fact.CompleteSinceMS = atMS
		if f.fact.GapToMS != 0 && f.fact.GapToMS < atMS {
			f.fact.GapToMS = atMS
		}
	}
}

// dropped is called when facts were dropped at the spool's bound. Drops that follow one another within the lease are one: what came between them is
// not worth telling.
func (f *feed) dropped(count, fromMS, toMS int64) {
	if f.fact.DroppedCount == 0 || fromMS-f.fact.DroppedToMS > f.fact.LeaseMS {
		f.fact.DroppedFromMS = fromMS
	} else {
		fromMS = min(fromMS, f.fact.DroppedToMS)
	}
	f.fact.DroppedCount += count
	f.fact.DroppedToMS = max(f.fact.DroppedToMS, toMS)
	f.incomplete(fromMS, toMS)
}

// incomplete notes that facts that were received between two times are lost.
func (f *feed) incomplete(fromMS, toMS int64) {
	c := f.current()
	c.incomplete(fromMS, toMS)
	f.set(c)
	f.before.incomplete(fromMS, toMS)
}

// assert returns the Feed fact as of nowMS: everything received before is durable.
func (f *feed) assert(nowMS int64) (presence.NodeFact, bool) {
	if !f.loaded {
		return presence.NodeFact{}, false
	}
	f.clock(nowMS)
	if f.fact.CompleteSinceMS != 0 {
		f.coveredMS = max(f.coveredMS, nowMS)
	}
	// What is received orders the facts, and so does not go back with the clock.
	f.fact.TimeMS, f.fact.ReceivedMS = nowMS, max(nowMS, f.fact.ReceivedMS+1)
	setNodeID(&f.fact)
	return f.fact, true
}
