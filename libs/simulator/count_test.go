package simulator

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/mqtt-presence/presence/libs/presence"
)

// counts is what is known of many histories.
type counts struct {
	histories, facts   int
	clients            int // of which something was seen
	unknown, wrong     int
	beliefWrong, stale int
	arrived, latest    int // clients that the naive folds get wrong
	hazards            [NumHazards + 1]int
	collided           int // clients answered wrongly for two of whose connections the broker has one key
}

func (c *counts) add(r *run) {
	c.histories++
	naive := foldNaively(r.h)
	for i := range r.h.Clients {
		t, v := &r.h.Clients[i], &r.verdicts[i]
		c.facts += len(r.facts[i])
		if !r.seen[i] {
			continue
		}
		c.clients++
		switch {
		case v.Status == presence.Unknown:
			c.unknown++
			if (v.Belief == presence.Online) != t.Online {
				c.beliefWrong++
			}
		case r.gap:
			c.stale++
		case (v.Status == presence.Online) != t.Online:
			c.wrong++
			if t.Collided {
				c.collided++
			}
		}
		if naive[i].arrived != t.Online {
			c.arrived++
		}
		if naive[i].latest != t.Online {
			c.latest++
		}
	}
	for n := range c.hazards {
		if r.h.Hazards.Has(n) {
			c.hazards[n]++
		}
	}
}

func (c *counts) merge(o *counts) {
	c.histories += o.histories
	c.facts += o.facts
	c.clients += o.clients
	c.unknown += o.unknown
	c.wrong += o.wrong
	c.beliefWrong += o.beliefWrong
	c.stale += o.stale
	c.arrived += o.arrived
	c.latest += o.latest
	for n := range c.hazards {
		c.hazards[n] += o.hazards[n]
	}
	c.collided += o.collided
}

func percent(part, whole int) float64 { return 100 * float64(part) / float64(max(whole, 1)) }

// table collects the counts of all setups and modes.
type table struct {
	mu   sync.Mutex
	rows map[string]*counts
}

func (t *table) add(name string, c *counts) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.rows == nil {
		t.rows = map[string]*counts{}
	}
	if t.rows[name] == nil {
		t.rows[name] = &counts{}
	}
	t.rows[name].merge(c)
}

// total returns the sum of the rows whose name ends so.
func (t *table) total(suffix string) *counts {
	sum := &counts{}
	for name, c := range t.rows {
		if strings.HasSuffix(name, suffix) {
			sum.merge(c)
		}
	}
	return sum
}

// String lists the rows: how many of a hundred clients were unknown, believed wrongly while unknown, answered wrongly, answered under a feed gap, and
// got wrong by the naive folds.
func (t *table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-26s %9s %8s %8s %8s %8s %8s %8s %8s\n", "setup/mode", "histories", "clients", "unknown%", "belief%", "wrong%", "stale%", "arrived%", "latest%")
	for _, name := range slices.Sorted(maps.Keys(t.rows)) {
		c := t.rows[name]
		fmt.Fprintf(&b, "%-26s %9d %8d %8.2f %8.2f %8.2f %8.2f %8.1f %8.1f\n", name, c.histories, c.clients, percent(c.unknown, c.clients), percent(c.beliefWrong, c.clients),
			percent(c.wrong, c.clients), percent(c.stale, c.clients), percent(c.arrived, c.clients), percent(c.latest, c.clients))
	}
	return b.String()
}

func (c *counts) hazardTable() string {
	var b strings.Builder
	for n := 1; n <= NumHazards; n++ {
		fmt.Fprintf(&b, "H%-3d %-32s %8d histories\n", n, HazardNames[n], c.hazards[n])
	}
	return b.String()
}
