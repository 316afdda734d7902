package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// table prints one line for each result, as it comes, and keeps them for the page, and the first error.
type table struct {
	out io.Writer
	log io.Writer // progress; nil: none
	err error

	part     string
	rows     []row
	profiles []profile
	skipped  []string
	took     []row            // part and time
	failed   map[string]error // by part
	chart    *chart
	inputs   []input
}

// row is one result.
type row struct{ part, what, measured, goal, verdict string }

// profile is where a run spent its CPU time.
type profile struct{ name, top string }

const tableFormat = "%-34s %-58s %-18s %s\n"

func (t *table) head() { t.print("what", "measured", "goal", "") }

func (t *table) line(what, measured, goal, verdict string) {
	t.rows = append(t.rows, row{t.part, what, measured, goal, verdict})
	t.print(what, measured, goal, verdict)
}

func (t *table) print(what, measured, goal, verdict string) {
	if _, err := fmt.Fprintf(t.out, tableFormat, what, measured, goal, verdict); err != nil && t.err == nil {
		t.err = fmt.Errorf("print the result: %w", err)
	}
}

const (
	pass = "pass"
	miss = "miss"
)

// result prints what was measured beside a goal.
func (t *table) result(what, measured, goal string, met bool) {
	verdict := miss
	if met {
		verdict = pass
	}
	t.line(what, measured, goal, verdict)
}

// cost prints a run's rate, and below what it used.
func (t *table) cost(what string, c cost, clients int64) {
	t.line(what, c.measured(), "", "")
	t.line("  used", c.spent(clients), "", "")
}

// times prints how many times the rate of another is ours, if both were measured.
func (t *table) times(other string, ours, theirs cost, goal float64) {
	if ours.events == 0 || theirs.events == 0 {
		return
	}
	ratio := ours.rate() / theirs.rate()
	t.result("  of "+other, fmt.Sprintf("%.1f times", ratio), fmt.Sprintf("at least %.0f times", goal), ratio >= goal)
}

// profile keeps the profile of a run; of several with one name, the last.
func (t *table) profile(name, top string) {
	if top == "" {
		return
	}
	t.profiles = slices.DeleteFunc(t.profiles, func(p profile) bool { return p.name == name })
	t.profiles = append(t.profiles, profile{name, top})
}

// progress tells what is under way.
func (t *table) progress(format string, args ...any) {
	if t.log != nil {
		// Nothing depends on whether somebody reads it.
		_, _ = fmt.Fprintf(t.log, "bench: %s: %s: %s\n", time.Now().Format(time.TimeOnly), t.part, fmt.Sprintf(format, args...))
	}
}

// skip says loudly that a part was not measured.
func (t *table) skip(part string, reason error) {
	t.skipped = append(t.skipped, fmt.Sprintf("%s: %v", part, reason))
	const stars = "**********************************************************************"
	if _, err := fmt.Fprintf(t.out, "%s\n** %s: SKIPPED, nothing of it was measured: %v\n%s\n", stars, part, reason, stars); err != nil && t.err == nil {
		t.err = fmt.Errorf("print the result: %w", err)
	}
}

// fail notes that a part, or what is left of it, was not measured.
func (t *table) fail(part string, err error) {
	if t.failed == nil {
		t.failed = map[string]error{}
	}
	t.failed[part] = err
	t.print(part+": FAILED", "what is above was measured; the error is at the end", "", "")
	t.progress("failed: %v", err)
}

// delays are durations.
type delays []time.Duration

// sorted returns the same, so that at can be asked.
func (d delays) sorted() delays {
	slices.Sort(d)
	return d
}

// at returns the q-quantile of sorted delays: the smallest that is not exceeded by that share.
func (d delays) at(q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[max(int(math.Ceil(q*float64(len(d))))-1, 0)]
}

// String tells the quantiles of sorted delays.
func (d delays) String() string {
	return fmt.Sprintf("p50 %s, p99 %s", milliseconds(d.at(0.5)), milliseconds(d.at(0.99)))
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d.Microseconds())/1000)
}

func medianCost(all []cost) cost {
	slices.SortFunc(all, func(a, b cost) int { return int(math.Copysign(1, a.rate()-b.rate())) })
	return all[len(all)/2]
}
