package materializer

import (
	"github.com/mqtt-presence/presence/libs/service"
)

// outdatedMS is how far, by the partition's clock, others may have gone on before rows that were left behind are of no use: as long as client-state
// keeps every record, and half as long as it keeps the tombstones of clients that were forgotten or have expired.
const outdatedMS = 7 * dayMS

// outdated reports whether rows cannot be brought up to date from what they were: facts between them and what client-events still has are lost, or
// tombstones may be. Who was forgotten meanwhile would come back. It is no use to know that if client-state does not go further.
func (m *merge) outdated(first int64) bool {
	if !m.found || m.checkpoint < max(m.was.Next, first) {
		return false
	}
	own := m.was.ClockMS
	if own == 0 { // The clock stands still on the first day.
		own = m.was.AppliedMS
	}
	return m.was.Next < first || m.clockMS-own > outdatedMS
}

// startAnew drops everything that the store has of the partition, which is then filled as if it had never had anything.
func (p *partition) startAnew() error {
	p.log.Warn("the store is too old to catch up: the partition is filled anew from client-state, without evidence and history of before", service.KeyOffset, p.meta.Next)
	err := p.parts.store.Clear(p.id)
	if err != nil {
		return err
	}
	if p.meta, _, err = p.parts.store.Meta(p.id); err != nil {
		return err
	}
	p.noteAllowance()
	p.indexes, err = p.parts.store.Indexes(p.id)
	return err
}
