package materializer

import (
	"runtime"
	"time"
)

// A partition that is far behind keeps its working set open over many takes from the queue, so that a row is written once for many facts, and is
// not even read where the store has none. That takes memory, so partitions take turns: few of them catch up at a time, each with its part of
// workingBytes, and the others are not read from Kafka meanwhile. Readers see the rows and the offset of the latest commit; who waits for an offset
// that was folded has it committed.
const (
	// workingBytes bounds the working sets of all partitions that catch up. What a set is written from, and its indexes, take as much again at most.
	workingBytes = 256 << 20
	// maxTurns is how many partitions catch up at a time on a machine with as many processors.
	maxTurns = 4
	// farBehind is from how many records on a partition needs a turn.
	farBehind = 4 * catchUpBatch
	// maxOpenOutbox is how many bytes of records a set may hold back from publication.
	maxOpenOutbox = 4 * maxOutbox
	// maxOpen is how long a set stays open: after a crash it is folded again. For one who waits for an offset it is minOpen.
	maxOpen = 5 * time.Second
	minOpen = 200 * time.Millisecond
	// loadRows is from how many rows on the first set of an empty partition is loaded as files, which costs some synced writes.
	loadRows = 4 << 10
)

// turns holds one element for each partition that catches up.
type turns chan struct{}

func newTurns() turns { return make(turns, min(runtime.GOMAXPROCS(0), maxTurns)) }

// far reports whether the partition is so far behind that it needs a turn.
func (p *partition) far() bool {
	f := p.progress.read()
	return f.end-f.next >= farBehind && p.parts.turns != nil
}

// read has the partition's records fetched.
func (p *partition) read() { p.parts.fetcher.add(p.id, p.meta.Next, p.queue) }

// due reports whether the working set is to be committed.
func (p *partition) due() bool {
	f := &p.folds
	if f.empty() {
		return false
	}
	if !p.turn || p.progress.reached(p.meta.Next) || p.grown() {
		return true
	}
	open := time.Since(f.began)
	return open >= maxOpen || open >= minOpen && p.progress.awaited(p.meta.Next) || p.stops.below() <= max(p.meta.Next, p.queue.first())
}

// grown reports whether the working set has reached a bound.
func (p *partition) grown() bool {
	f := &p.folds
	return f.outSize >= maxOpenOutbox || f.memory() >= workingBytes/max(cap(p.parts.turns), 1)
}

// endTurn lets another partition catch up.
func (p *partition) endTurn() {
	if p.turn {
		<-p.parts.turns
		p.turn = false
	}
}

// reached reports whether a partition that has folded everything below an offset has caught up.
func (p *progress) reached(next int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ready || next >= p.target
}

// awaited reports whether somebody waits for an offset below the given one.
func (p *progress) awaited(next int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed != nil && p.least < next
}
