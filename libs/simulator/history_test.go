package simulator

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// expectation is what a setup's answers are promised to be.
type expectation struct {
	exact       bool // L2: nothing is unknown, and the current connection is the true one
	exactClocks bool // also while clocks are set
	// ceiling is how many of a hundred clients may be unknown at rest, by mode. The silent mode has none: errors are printed.
	ceiling [numModes]float64
}

var expectations = map[string]expectation{
	"emqx":              {exact: true, exactClocks: true},
	"emqx-5.0":          {},
	"emqx-4.3":          {},
	"emqx-4.3-flagged":  {},
	"emqx-mixed":        {},
	"emqx-4.0":          {},
	"emqx-4-events":     {},
	"rmqtt":             {},
	"tdmq":              {},
	"tdmq-keyed":        {exact: true},
	"mosquitto-2.0-tcp": {exact: true},
	"mosquitto-2.0":     {},
	"mosquitto-2.1":     {},
	"mosquitto-plugin":  {},
	"nanomq":            {},
	"aws":               {exact: true},
	"status-topic":      {},
	"sparkplug":         {},
	"custom":            {},
	"custom-reusable":   {},
	"custom-unique-key": {},
}

var (
	soak     = flag.Duration("soak", 0, "make histories from new seeds for so long")
	seedFlag = flag.Uint64("seed", 1, "of the first history")
)

// counts is what is known of many histories of one setup and mode.
type counts struct {
	histories, facts, clients, unknown, wrong, beliefWrong, unsure int
	arrived, latest                                                int // clients that the naive folds get wrong
	hazards                                                        [NumHazards + 1]int
	reasons                                                        map[presence.StatusReason]int
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
			if c.reasons == nil {
				c.reasons = map[presence.StatusReason]int{}
			}
			c.reasons[v.Reason]++
			if (v.Belief == presence.Online) != t.Online {
				c.beliefWrong++
			}
		case r.gap:
			c.unsure++
		case (v.Status == presence.Online) != t.Online:
			c.wrong++
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

var perSetup = [numModes]int{Exact: 2_000, Clocks: 800, Lossy: 1_600, Silent: 400}

func TestHistories(t *testing.T) {
	only := os.Getenv("SIM_ONLY")
	start := time.Now()
	total := map[string]*counts{}
	for _, setup := range Setups() {
		if only != "" && !strings.Contains(setup.Name, only) {
			continue
		}
		for mode := range numModes {
			c := &counts{}
			total[fmt.Sprintf("%s/%s", setup.Name, mode)] = c
			t.Run(fmt.Sprintf("%s/%s", setup.Name, mode), func(t *testing.T) {
				for i := range perSetup[mode] {
					p := NewPlan(&setup, mode, *seedFlag+uint64(i))
					r := fold(Run(p))
					if problems := r.check(); len(problems) > 0 {
						small := Shrink(p, func(q *Plan) bool { return len(fold(Run(q)).check()) > 0 })
						r := fold(Run(small))
						t.Fatalf("%s\n%s", strings.Join(r.check(), "\n"), r.h)
					}
					c.add(r)
				}
				t.Logf("%d histories %d clients unknown %.2f%% (belief wrong %.2f%%) wrong %.2f%% stale %.2f%% naive %.1f%% %.1f%% %v", c.histories, c.clients,
					pc(c.unknown, c.clients), pc(c.beliefWrong, c.clients), pc(c.wrong, c.clients), pc(c.unsure, c.clients), pc(c.arrived, c.clients), pc(c.latest, c.clients), c.reasons)
			})
		}
	}
	var hz [NumHazards + 1]int
	n, f := 0, 0
	for _, c := range total {
		n += c.histories
		f += c.facts
		for i := range hz {
			hz[i] += c.hazards[i]
		}
	}
	t.Logf("%d histories %d facts in %v; hazards %v", n, f, time.Since(start), hz[1:])
}

func pc(a, b int) float64 { return 100 * float64(a) / float64(max(b, 1)) }
