package materializer

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/mqtt-presence/presence/services/materializer/store"
)

// progress is how far a partition has come, as readers see it.
type progress struct {
	// commits counts the begins and the ends of commits: it is odd while one is under way, and what was read between two equal even
	// counts belongs together.
	commits atomic.Uint64

	mu      sync.Mutex
	next    int64 // next offset to apply
	applied int64 // received time of the latest applied record
	end     int64 // end offset as Kafka last reported it, -1 before
	endMS   int64 // when it did
	caught  int64 // latest report of an end offset that had been reached
	target  int64 // end offset at the start: ready once it is reached
	ready   bool
	changed chan struct{} // closed at the next advance; nil if nobody waits
	least   int64         // the smallest offset that somebody waits for
}

// freshness is one reading of a progress.
type freshness struct {
	next, appliedMS, end, endMS, caughtUpMS int64
	ready                                   bool
}

// at makes it that of what a view of the store shows; the rest was read before the view was made.
func (f *freshness) at(m *store.Meta) {
	f.next, f.appliedMS, f.end = m.Next, m.AppliedMS, max(f.end, m.Next)
}

// start sets what is known before the first record is applied.
func (p *progress) start(next, appliedMS, target, nowMS int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next, p.applied, p.target, p.end, p.endMS = next, appliedMS, target, target, nowMS
	p.ready = next >= target
	p.noteCaughtUp()
}

// noteCaughtUp is called with the lock held, after next or the end offset has changed.
func (p *progress) noteCaughtUp() {
	if p.next >= p.end {
		p.caught = p.endMS
	}
}

// committing is called before a batch becomes visible; advance follows, unless the batch could not be committed, which ends the partition.
func (p *progress) committing() { p.commits.Add(1) }

// advance notes that everything below next is applied and visible.
func (p *progress) advance(next, appliedMS int64) {
	defer p.commits.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next, p.applied = next, appliedMS
	p.ready = p.ready || next >= p.target
	p.noteCaughtUp()
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

// setBackMS is by how much the clock is behind a report that was noted only where it was set back.
const setBackMS = 5_000

// sawEnd notes an end offset that Kafka reported, and for which it was asked at askedMS: it may be much older than now. Reports may overtake one
// another; the largest counts.
func (p *progress) sawEnd(end, askedMS, nowMS int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	askedMS = min(askedMS, nowMS)
	if nowMS < p.endMS-setBackMS {
		// What was noted in a future that will not come for long would hide how old the latest report is.
		p.endMS, p.caught = askedMS, min(p.caught, askedMS)
	}
	p.end, p.endMS = max(p.end, end), max(p.endMS, askedMS)
	p.noteCaughtUp()
}

func (p *progress) read() freshness {
	p.mu.Lock()
	defer p.mu.Unlock()
	return freshness{next: p.next, appliedMS: p.applied, end: max(p.end, p.next), endMS: p.endMS, caughtUpMS: p.caught, ready: p.ready}
}

// wait returns once the record at offset is applied, or false when ctx ends before.
func (p *progress) wait(ctx context.Context, offset int64) bool {
	for {
		p.mu.Lock()
		if p.next > offset {
			p.mu.Unlock()
			return true
		}
		if p.changed == nil {
			p.changed, p.least = make(chan struct{}), offset
		}
		p.least = min(p.least, offset)
		changed := p.changed
		p.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}
