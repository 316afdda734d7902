package materializer

import (
	"context"
	"testing"
	"time"
)

// TestPace gives each partition fewer transactions the longer they take and the more of them there are, and none for ever.
func TestPace(t *testing.T) {
	for _, c := range []struct {
		partitions int
		took, want time.Duration
	}{
		{1, time.Millisecond, publishInterval},
		{1, 50 * time.Millisecond, publishInterval},
		{1, 300 * time.Millisecond, 600 * time.Millisecond},
		{16, time.Millisecond, publishInterval},
		{16, 25 * time.Millisecond, 800 * time.Millisecond},
		{16, time.Second, publishMaxInterval},
	} {
		var p pace
		// Each partition begins its transactions when they are due.
		due := make([]time.Time, c.partitions)
		last := make([]time.Duration, c.partitions)
		start := time.Unix(0, 0)
		for i := range due {
			due[i] = start
		}
		for range 50 * c.partitions {
			i := 0
			for j := range due {
				if due[j].Before(due[i]) {
					i = j
				}
			}
			next := p.due(due[i], c.took)
			due[i], last[i] = next, next.Sub(due[i])
		}
		var sum time.Duration
		for _, interval := range last {
			sum += interval
			if interval < publishInterval || interval > publishMaxInterval {
				t.Errorf("%d partitions, %v: an interval of %v", c.partitions, c.took, interval)
			}
		}
		if mean := sum / time.Duration(c.partitions); mean < c.want*9/10 || mean > c.want*11/10 {
			t.Errorf("%d partitions, %v: every %v, want %v", c.partitions, c.took, mean, c.want)
		}
	}
}

// TestRush does not wait for more when a partition is given up.
func TestRush(t *testing.T) {
	o := newOutbox()
	done := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	go func() { done <- o.atLeast(ctx, maxTransaction) }()
	o.rush()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
