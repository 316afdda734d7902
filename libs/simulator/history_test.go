package simulator

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
)

var (
	soak     = flag.Duration("soak", 0, "TestSoak makes histories from new seeds for so long")
	soakSeed = flag.Uint64("soak-seed", 0, "first seed of TestSoak, as its closing line tells it; 0: a new one")
)

// volume is how many histories of a setup are made, by mode: more than 100,000 in all.
var volume = [numModes]int{Exact: 2_000, Clocks: 800, Lossy: 1_600, Silent: 400}

const minHazards = 100

// TestHistories checks the laws on many histories of every setup and mode.
func TestHistories(t *testing.T) {
	slowdown := slowdown
	if testing.Short() {
		slowdown *= 10
	}
	var all table
	t.Run("all", func(t *testing.T) {
		for _, setup := range Setups() {
			for mode := range numModes {
				t.Run(setup.Name+"/"+mode.String(), func(t *testing.T) {
					t.Parallel()
					c := &counts{}
					for seed := range uint64(volume[mode] / slowdown) {
						if failure := checkSeed(&setup, mode, seed+1, c); failure != "" {
							t.Fatal(failure)
						}
					}
					unknown, ceiling := percent(c.unknown, c.clients), expectations[setup.Name].ceiling[mode]
					if unknown > ceiling && slowdown == 1 {
						t.Errorf("%.2f%% of %d clients are unknown at rest, stated are at most %.2f%%", unknown, c.clients, ceiling)
					}
					all.add(setup.Name+"/"+mode.String(), c)
				})
			}
		}
	})
	if t.Failed() {
		return
	}
	sum := all.total("")
	t.Logf("%d histories, %d facts, %d clients\n%s", sum.histories, sum.facts, sum.clients, &all)
	t.Logf("hazards\n%s", sum.hazardTable())
	t.Logf("%d clients are answered for wrongly because two of their connections have one key", sum.collided)
	if slowdown > 1 || len(all.rows) < len(Setups())*int(numModes) {
		return
	}
	if sum.histories < 100_000 {
		t.Errorf("only %d histories", sum.histories)
	}
	for n := 1; n <= NumHazards; n++ {
		if sum.hazards[n] < minHazards {
			t.Errorf("H%d (%s) occurred in %d histories, less than %d", n, HazardNames[n], sum.hazards[n], minHazards)
		}
	}
	exact := all.total("/" + Exact.String())
	t.Logf("wrong where everything is delivered: last arrival wins %.1f%%, last event time wins %.1f%%, this fold %.2f%%; where facts vanish unseen: %.1f%%",
		percent(exact.arrived, exact.clients), percent(exact.latest, exact.clients), percent(exact.wrong, exact.clients),
		percent(all.total("/"+Silent.String()).wrong, all.total("/"+Silent.String()).clients))
	if percent(exact.arrived, exact.clients) < 10 || percent(exact.latest, exact.clients) < 10 {
		t.Error("a naive fold is wrong for less than 10% of the clients: the histories are too easy")
	}
}

// checkSeed makes and checks one history. It returns the shrunk history and its problems if a law is broken.
func checkSeed(setup *Setup, mode Mode, seed uint64, c *counts) string {
	p := NewPlan(setup, mode, seed)
	r := fold(Run(p))
	if broken := r.check(); len(broken) > 0 {
		// What is left breaks the same law in the same way.
		same := func(problem string) bool { return kind(problem) == kind(broken[0]) }
		small := Shrink(p, func(q *Plan) bool { return slices.ContainsFunc(fold(Run(q)).check(), same) })
		r := fold(Run(small))
		return fmt.Sprintf("%s, shrunk from seed %d:\n%s\n%s", broken[0], seed, strings.Join(r.check(), "\n"), r.h)
	}
	c.add(r)
	return ""
}

// kind returns a problem without what differs between clients and nodes.
func kind(problem string) string {
	first, _, _ := strings.Cut(problem, "\n")
	return strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, first)
}

// TestSoak does the same from new seeds for as long as -soak says.
func TestSoak(t *testing.T) {
	base := uint64(1) << 32
	switch {
	case *soakSeed != 0:
		base = *soakSeed
	case *soak > 0:
		base = uint64(time.Now().UnixNano())
	}
	deadline := time.Now().Add(*soak)
	var all table
	t.Run("all", func(t *testing.T) {
		for worker := range 2 {
			t.Run(fmt.Sprintf("worker-%d", worker), func(t *testing.T) {
				t.Parallel()
				setups := Setups()
				for round := uint64(worker); ; round += 2 {
					for i := range setups {
						for mode := range numModes {
							c := &counts{}
							for k := range uint64(10) {
								if failure := checkSeed(&setups[i], mode, base+round*10+k, c); failure != "" {
									all.add(setups[i].Name+"/"+mode.String(), c)
									t.Fatal(failure)
								}
							}
							all.add(setups[i].Name+"/"+mode.String(), c)
						}
					}
					if !time.Now().Before(deadline) {
						return
					}
				}
			})
		}
	})
	sum := all.total("")
	if *soak > 0 {
		fmt.Print(&all)
		fmt.Print(sum.hazardTable())
	}
	result := "no law broken"
	if t.Failed() {
		result = "A LAW IS BROKEN"
	}
	fmt.Printf("soak: %s: %d histories, %d facts, %d clients, %d wrong by silent loss or equal keys, %d unknown, %d under a feed gap, from seed %d\n", result, sum.histories, sum.facts,
		sum.clients, sum.wrong, sum.unknown, sum.stale, base)
}
