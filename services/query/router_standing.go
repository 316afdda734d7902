package query

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// probeInterval is the time between two looks whether owners in doubt are back.
	probeInterval = 250 * time.Millisecond
	// probeTimeout bounds one look: a process that was stopped answers it as soon as it goes on.
	probeTimeout = 5 * time.Second
)

// standings are what is known against owners: that one let a request wait or could not be reached, or that its rows are far behind. Requests avoid
// them where another replica can answer; what lifts a doubt is an answer to a probe, so that no request is spent on finding out.
type standings struct {
	some atomic.Bool // there is one in doubt

	mu    sync.Mutex
	known map[string]*standing // replaced with a copy when changed: plan reads it without the lock
}

// standing of one owner. It is never changed once others can see it.
type standing struct {
	suspect bool
	// behind has the applied offset of each partition of which it is far behind.
	behind map[int32]int64
}

// doubts returns the owners in doubt, by address; nil if there are none. It must not be changed.
func (s *standings) doubts() map[string]*standing {
	if !s.some.Load() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// change replaces the standing of an owner; one against which nothing is known is forgotten.
func (s *standings) change(addr string, change func(*standing)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := &standing{}
	if old := s.known[addr]; old != nil {
		next.suspect, next.behind = old.suspect, maps.Clone(old.behind)
	}
	change(next)
	known := make(map[string]*standing, len(s.known)+1)
	maps.Copy(known, s.known)
	if delete(known, addr); next.suspect || len(next.behind) > 0 {
		known[addr] = next
	}
	s.known = known
	s.some.Store(len(known) > 0)
}

// suspect notes that an owner let a request wait, or could not be reached.
func (s *standings) suspect(addr string) {
	if d := s.doubts()[addr]; d != nil && d.suspect {
		return
	}
	s.change(addr, func(d *standing) { d.suspect = true })
}

// note keeps how far an owner says that it is, and returns of how many partitions it is far behind.
func (s *standings) note(addr string, fresh []*presencev1.PartitionFreshness, now clock) (behind int) {
	for _, p := range fresh {
		if now.late(p) {
			behind++
		}
	}
	if behind == 0 && len(s.doubts()[addr].behindOf()) == 0 {
		return 0
	}
	s.change(addr, func(d *standing) {
		for _, p := range fresh {
			if !now.late(p) {
				delete(d.behind, p.GetPartition())
				continue
			}
			if d.behind == nil {
				d.behind = make(map[int32]int64)
			}
			d.behind[p.GetPartition()] = p.GetAppliedOffset()
		}
	})
	return behind
}

// rank orders owners of a partition by what is known against them, the best first; applied counts among those that are behind.
func (d *standing) rank(partition int32) (rank int, applied int64) {
	switch {
	case d == nil:
		return rankGood, 0
	case d.suspect:
		return rankSuspect, 0
	}
	if applied, behind := d.behind[partition]; behind {
		return rankBehind, applied
	}
	return rankGood, 0
}

const (
	rankGood = iota
	rankBehind
	rankSuspect
)

func (d *standing) behindOf() map[int32]int64 {
	if d == nil {
		return nil
	}
	return d.behind
}

// probing looks after owners in doubt until ctx ends.
func (r *Router) probing(ctx context.Context) {
	var probes sync.WaitGroup
	defer probes.Wait()
	var mu sync.Mutex
	under := make(map[string]bool) // being probed
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for addr := range r.standings.doubts() {
			mu.Lock()
			busy := under[addr]
			under[addr] = true
			mu.Unlock()
			if busy {
				continue
			}
			probes.Go(func() {
				r.probe(ctx, addr)
				mu.Lock()
				defer mu.Unlock()
				delete(under, addr)
			})
		}
	}
}

// probe asks an owner how far it is.
func (r *Router) probe(ctx context.Context, addr string) {
	table, _ := r.routing()
	partitions := table.ownedBy(addr)
	if len(partitions) == 0 {
		// It is not asked any more.
		r.standings.change(addr, func(d *standing) { *d = standing{} })
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	client, err := r.connect(addr)
	if err != nil {
		return
	}
	answer, err := client.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: r.cfg.Cluster, Partitions: partitions})
	if err != nil {
		return
	}
	r.standings.change(addr, func(d *standing) { d.suspect = false })
	r.standings.note(addr, answer.GetPartitions(), r.clock())
	if len(answer.GetNotOwned()) > 0 {
		// It says so to who asks it.
		r.standings.change(addr, func(d *standing) {
			for _, p := range answer.GetNotOwned() {
				delete(d.behind, p)
			}
		})
	}
}

// clock is what the freshness of owners is measured against.
func (r *Router) clock() clock { return clock{now: time.Now(), staleAfter: r.cfg.StaleAfter} }
