package materializer

import (
	"context"
	"runtime"
	"time"
)

// A partition that is far behind keeps its working set open over many takes from the queue, so that a row is written once for many facts, and is
// not even read where the store has none. That takes memory, so partitions take turns: few of them catch up at a time, each with its part of
// workingBytes, and the others are not read from Kafka meanwhile. Readers see the rows and the offset of the latest commit; who waits for an offset
// that was folded has it committed. What such a set has to publish goes to disk before it is committed, and is read from there when it is
// published, so that it does not bound the set.
const (
	// workingBytes bounds the working sets of all partitions that catch up. What a set is written from, and its indexes, take as much again at most.
	workingBytes = 384 << 20
	// maxTurns is how many partitions catch up at a time on a machine with as many processors.
	maxTurns = 4
	// farBehind is from how many records on a partition needs a turn.
	farBehind = 4 * catchUpBatch
	// maxOpenOutbox is how many bytes of records a set may hold back from publication in memory, and spillOutbox from how many on what a set has
	// of them is written to disk. maxSpilled bounds what all partitions have there and not published yet; who has nothing there is not
	// held up by others.
	maxOpenOutbox = 4 * maxOutbox
	spillOutbox   = maxOutbox / 2
	maxSpilled    = 256 << 20
	// maxOpen is how long a set stays open: after a crash it is folded again. For one who waits for an offset it is minOpen.
	maxOpen = 5 * time.Second
	minOpen = 200 * time.Millisecond
	// turnPatience is how long a partition keeps its turn that waits for publication.
	turnPatience = 30 * time.Second
	// loadRows is the default of partition.loadRows.
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
	if f.onDisk > 0 && p.parts.spilled.Load() >= maxSpilled {
		return true
	}
	return f.outSize-f.onDisk >= maxOpenOutbox || f.memory() >= workingBytes/max(cap(p.parts.turns), 1)
}

// spill writes the full chunks of the outbox of a partition that catches up to disk, once they are many.
func (p *partition) spill() error {
	f := &p.folds
	if !p.turn || f.outSize-f.onDisk < p.spillFrom {
		return nil
	}
	for ; f.spilled+1 < len(f.out); f.spilled++ {
		if f.spill == nil {
			var err error
			if f.spill, err = p.parts.store.NewSpill(p.id); err != nil {
				return err
			}
		}
		c := &f.out[f.spilled]
		c.Seq = p.outbox.nextSeq(f.spilled)
		if err := f.spill.Put(c); err != nil {
			return err
		}
		p.outbox.spill(c)
	}
	if f.spilled > 0 {
		// As outSize counts, which leaves out what a chunk has beside keys and values: what is left in memory is one chunk.
		f.onDisk = f.outSize - f.out[f.spilled].Bytes()
	}
	return nil
}

// closeSpill drops what the set has written of its outbox.
func (f *fold) closeSpill() error {
	s := f.spill
	if f.spill = nil; s == nil {
		return nil
	}
	return s.Close()
}

// endTurn lets another partition catch up.
func (p *partition) endTurn() {
	if p.turn {
		<-p.parts.turns
		p.turn = false
	}
}

// roomInTurn waits for room in the outbox. A turn that is of no use meanwhile, as when Kafka takes nothing, is given back after a while.
func (p *partition) roomInTurn(ctx context.Context) error {
	if p.turn {
		patient, cancel := context.WithTimeout(ctx, p.turnPatience)
		err := p.outbox.room(patient)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		p.endTurn()
		p.waits = p.parts.turns
	}
	return p.outbox.room(ctx)
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
