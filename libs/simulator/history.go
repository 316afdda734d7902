package simulator

import (
	"cmp"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
)

// History is what happened in a cluster, what the bridges received of it, and the truth at its end.
type History struct {
	Plan       *Plan
	Events     []*Event   // in the order of emission
	Deliveries []Delivery // in the order of arrival
	Clients    []Client
	Hazards    Hazards
	EndMS      int64

	sessions []session
	sim      *sim
}

type session struct {
	bridge  int
	sinceMS int64
	// left: another bridge is there, to which the lines are left that this one cannot number.
	left bool
}

// Delivery is one arrival: of an event, with the fact that an ideal reader makes of it, of the answer to a query, or of what a bridge says
// of a node or of its own subscription.
type Delivery struct {
	ReceivedMS int64
	Bridge     int
	Client     int // index of the client that the fact is about
	Event      *Event
	Fact       presence.Fact
	IsFact     bool
	Node       presence.NodeFact
	IsNode     bool
	// Query: the bridge asserts the fact only if the state at that time says something else than the answer.
	Query bool

	lost, held bool
}

// Client is one client, and the truth about it at the end of the history.
type Client struct {
	ID     string
	Online bool
	Conn   int    // number of its newest open connection, 0 if it has none
	Key    string // of that connection
	Node   string // of that connection

	Collided  bool // two of its connections had one key where the dialect means that none do
	Doubled   bool // two of its connections were open at a time (H13)
	Mourned   bool // a connection or an event of it vanished without a trace (H6)
	Forgotten bool
	Live      int  // open connections
	Outlived  bool // its open connection is older than one that has ended (H13)
}

func (h *History) nodeFact(f presence.NodeFact) {
	h.Deliveries = append(h.Deliveries, Delivery{ReceivedMS: f.ReceivedMS, Node: f, IsNode: true, Client: -1})
}

func (h *History) forget(c *client, atMS int64) {
	f := presence.Fact{Kind: presence.Forgotten, Cluster: clusterName, ClientID: c.id, AsOfMS: atMS, TimeMS: atMS, ReceivedMS: atMS, Source: "api"}
	f.SetID()
	h.Deliveries = append(h.Deliveries, Delivery{ReceivedMS: atMS, Client: c.index, Fact: f, IsFact: true})
	c.forgotten = true
}

// finish puts the arrivals in order, reads the facts, and writes down the truth.
func (s *sim) finish() {
	h := s.h
	h.EndMS = s.nowMS
	h.Deliveries = slices.DeleteFunc(h.Deliveries, func(d Delivery) bool { return d.lost || d.held })
	slices.SortStableFunc(h.Deliveries, func(a, b Delivery) int { return cmp.Compare(a.ReceivedMS, b.ReceivedMS) })
	orders := make([]lineOrder, len(s.bridges))
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		if d.Event == nil {
			continue
		}
		var order uint32
		left := false
		switch d.Event.Habits.Clock {
		case Seconds:
			order = orders[d.Bridge].next(h, d, d.Event.StampMS)
			left = order == 0 && orders[d.Bridge].left && !orders[d.Bridge].whole
		case Received:
			// The bridge's own stamps are in order, and it knows the order of those that are equal.
			order = orders[d.Bridge].next(h, d, d.ReceivedMS)
		}
		d.Client = d.Event.Client
		if !left {
			d.Event.Lost = ""
		}
		if d.Client >= 0 {
			d.Fact, d.IsFact = d.Event.fact(d.ReceivedMS, order)
			d.IsFact = d.IsFact && !left
			if unsure := (dice{(h.Plan.Seed+uint64(d.Event.Seq))*0xbf58476d1ce4e5b9 | 1}); d.Bridge > 0 && unsure.in(30) {
				// Its session began between the line that told and this one: a copy of a fact that knows less.
				d.Fact.Transport = ""
			}
		}
	}
	for _, c := range s.clients {
		t := Client{ID: c.id, Online: len(c.live) > 0, Live: len(c.live), Collided: c.collided, Doubled: c.doubled, Mourned: c.mourned, Forgotten: c.forgotten}
		if t.Online {
			k := c.live[len(c.live)-1]
			t.Conn, t.Key, t.Node, t.Outlived = k.num, k.key, s.factNode(k.node), k.num < c.newest
		}
		h.Clients = append(h.Clients, t)
	}
	h.findHazards()
}

// lineOrder numbers the log lines within one stamp, as a bridge's session sees them.
type lineOrder struct {
	session int64 // since when
	stampMS int64
	count   uint32
	whole   bool // the session saw the stamp begin
	left    bool // see session
	lines   int
}

func (o *lineOrder) next(h *History, d *Delivery, at int64) uint32 {
	for _, s := range h.sessions {
		if s.bridge == d.Bridge && s.sinceMS <= d.ReceivedMS && s.sinceMS > o.session {
			*o = lineOrder{session: s.sinceMS, left: s.left}
		}
	}
	switch {
	case o.lines == 0:
		o.stampMS, o.whole = at, d.Event.TrueMS >= o.session+firstStampMS || d.Event.Habits.Clock == Received
	case at > o.stampMS:
		o.stampMS, o.count, o.whole = at, 0, true
	case at < o.stampMS:
		// The clock was set back: how often the stamp has come is not known.
		return 0
	}
	o.lines++
	if !o.whole {
		return 0
	}
	o.count++
	return o.count
}
