package bridge

import (
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

// ReportDropped asserts that a broker in the same process (Config.Dial) has dropped events on their way to the bridge, which happened
// between from and to.
func (b *Bridge) ReportDropped(count int, from, to time.Time) {
	for _, c := range b.clusters {
		c.mu.Lock()
		c.feed.dropped(int64(count), from.UnixMilli(), to.UnixMilli())
		c.mu.Unlock()
		c.log.Error("the broker dropped events; answers are stale until the gap is healed", service.KeyCount, count)
		c.askAssert()
	}
}
