package broker

import (
	"sync"
	"time"
)

// clock is the node's clock. It follows the machine's wall clock when that steps forwards, as after a suspension, and runs on when
// that steps back: the order of a client's stamps must be the order of its connections.
type clock struct {
	mu   sync.Mutex
	base time.Time // has a monotonic reading
	off  time.Duration
}

func newClock() *clock { return &clock{base: time.Now()} }

// now returns the node's time, without a monotonic reading.
func (c *clock) now() time.Time {
	t := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	steady := c.base.Round(0).Add(t.Sub(c.base) + c.off)
	if wall := t.Round(0); wall.After(steady) {
		c.off += wall.Sub(steady)
		return wall
	}
	return steady
}

func (c *clock) nowMS() int64 { return c.now().UnixMilli() }
