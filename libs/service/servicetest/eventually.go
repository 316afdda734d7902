package servicetest

import (
	"testing"
	"time"
)

// pollInterval is the time between two calls of a check.
const pollInterval = 5 * time.Millisecond

// Eventually calls check at once and then every 5 ms until it returns nil. If it does
// not within the given time, the test fails at once with check's last error. Check runs in the
// caller's goroutine and bounds its own time.
func Eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("not within %v: %v", within, err)
			return
		case <-tick.C:
		}
	}
}
