package simulator

import (
	"math/bits"

	"github.com/mqtt-presence/presence/libs/presence"
)

// NumHazards is how many hazards there are, H1 to H22.
const NumHazards = 22

// Hazards is a set of hazards, by number.
type Hazards uint32

func (h *Hazards) set(n int) { *h |= 1 << n }

// Has reports whether the hazard of that number is in the set.
func (h Hazards) Has(n int) bool { return h&(1<<n) != 0 }

// Len returns how many hazards are in the set.
func (h Hazards) Len() int { return bits.OnesCount32(uint32(h)) }

// HazardNames says in a few words what H1 to H22 are.
var HazardNames = [NumHazards + 1]string{1: "duplicate", 2: "reorder across nodes", 3: "ghost disconnect after takeover", 4: "stranger's refused CONNECT",
	5: "no disconnect on takeover", 6: "no disconnect at all", 7: "event time inversion", 8: "equal timestamps", 9: "clock skew", 10: "node crash or stop",
	11: "restart, then storm", 12: "ingest outage", 13: "two live connections", 14: "active query races", 15: "client ID bytes", 16: "poison message",
	17: "session outlives connection", 18: "retained replay", 19: "version drift", 20: "literals for no username", 21: "gateway and bridge clients",
	22: "self events"}

// findHazards finds those hazards that are a matter of what arrived when.
func (h *History) findHazards() {
	type seen struct {
		last, newest *Event // of all; of the connects
	}
	clients := make([]seen, len(h.Clients))
	storm := 0
	ids := map[string]bool{}
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		if d.IsNode {
			if d.Node.Kind == presence.NodeStarted && storm >= 2 {
				h.Hazards.set(11)
			}
			if d.Node.Kind == presence.NodeStarted {
				storm = 0
			}
			continue
		}
		if !d.IsFact || d.Event == nil {
			continue
		}
		e := d.Event
		if ids[d.Fact.ID] {
			h.Hazards.set(1)
		}
		ids[d.Fact.ID] = true
		if !plainID(e.ClientID) {
			h.Hazards.set(15)
		}
		c := &clients[e.Client]
		if c.last != nil && c.last != e {
			h.pair(c.last, e)
		}
		c.last = e
		if e.Kind == Connected {
			if c.newest == nil || c.newest.Seq < e.Seq {
				c.newest = e
			}
			if h.bootedSince(e) {
				storm++
			}
		}
		if e.Kind == Disconnected && c.newest != nil && e.Conn != c.newest.Conn && e.Conn < c.newest.Conn {
			h.Hazards.set(3)
			if d.Fact.ClosedMS() > c.newest.openedMS() {
				h.Hazards.set(7)
			}
		}
	}
}

// openedMS is when the connection opened, as the event tells it.
func (e *Event) openedMS() int64 {
	if e.Habits.ConnectedAt {
		return e.ConnectedAtMS
	}
	return e.StampMS
}

// pair looks at two events of a client that arrived one after the other.
func (h *History) pair(a, b *Event) {
	if a.Node != b.Node && a.Seq > b.Seq {
		h.Hazards.set(2)
	}
	if a.Habits.Dialect != b.Habits.Dialect {
		h.Hazards.set(19)
	}
	if a.Habits.Clock == Received {
		return
	}
	if a.StampMS == b.StampMS {
		h.Hazards.set(8)
	}
	if (a.Seq < b.Seq) != (a.StampMS < b.StampMS) && a.StampMS != b.StampMS {
		if a.Node != b.Node || a.Habits.Clock == Fuzzy {
			h.Hazards.set(9)
		}
	}
	if a.Kind == Disconnected && b.Kind == Connected && a.Conn < b.Conn && a.Seq < b.Seq && a.DisconnectedAtMS > b.openedMS() {
		h.Hazards.set(7)
	}
}

// bootedSince reports whether the event is of a generation of its node that has just begun, and not the first.
func (h *History) bootedSince(e *Event) bool {
	for _, n := range h.sim.nodes {
		if n.name == e.Node && n.gen > 1 && e.TrueMS >= n.bootMS && e.TrueMS < n.bootMS+30_000 {
			return true
		}
	}
	return false
}
