package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// table prints one line for each result, as it comes, and keeps the first error.
type table struct {
	out io.Writer
	err error
}

const tableFormat = "%-34s %-58s %-18s %s\n"

func (t *table) head() { t.line("what", "measured", "goal", "") }

func (t *table) line(what, measured, goal, verdict string) {
	if _, err := fmt.Fprintf(t.out, tableFormat, what, measured, goal, verdict); err != nil && t.err == nil {
		t.err = fmt.Errorf("print the result: %w", err)
	}
}

// result prints what was measured beside a goal.
func (t *table) result(what, measured, goal string, met bool) {
	verdict := "miss"
	if met {
		verdict = "pass"
	}
	t.line(what, measured, goal, verdict)
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
