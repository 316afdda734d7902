package simulator

import (
	"fmt"
	"sort"
	"strconv"
)

const (
	clusterName = "default"
	epochMS     = 1_760_000_000_000 // when every history begins
	leaseMS     = 75_000            // a node is silent if no heartbeat comes within
	beatMS      = 30_000            // between two heartbeats of a node
	membersMS   = 60_000            // between two lists of the running nodes
)

// sim runs a plan. Its clock is the true time; every node and the bridges have their own.
type sim struct {
	plan    *Plan
	h       *History
	nowMS   int64
	timers  []timer
	timed   int
	nodes   []*node
	clients []*client
	conns   int
	bridges []*bridge
	quietMS int64 // until when a sweep waits: what was told before a loss has arrived and settled then (L5), and a query knows what was lost
}

type timer struct {
	atMS int64
	seq  int
	do   func()
}

type node struct {
	index   int
	name    string
	habits  *Habits
	clockMS int64 // what its clock is ahead of the true time
	up      bool
	gen     int
	bootMS  int64 // true time
	downMS  int64 // true time of its last end
	side    int   // of the partition
	cutOff  bool  // its events and heartbeats do not reach the bridges
	hushMS  int64 // its heartbeats do not come until then

	// What the bridges know of it.
	seenGen      int
	beatenMS     int64
	silent, gone bool
	wasSetBack   bool
	setBack      bool // its clock was set back, which the next heartbeat shows
	backFromMS   int64
	backToMS     int64
	backAtMS     int64 // true time
	shownFromMS  int64
	shownToMS    int64
}

type client struct {
	index     int
	id        string
	username  string
	ip        string
	port      int
	protocol  uint8
	keepAlive uint32

	live    []*conn // by age
	newest  int     // number of its newest connection
	ended   *conn   // the last connection that ended, as long as its session lives
	muted   *conn   // the last connection that ended without a word, as long as its session lives
	endedMS int64
	version uint32
	bdSeq   int
	keys    map[string]bool
	free    []int // ports that may come again

	collided  bool // two connections had one key where the dialect promises that none do
	doubled   bool // two connections were live at a time
	mourned   bool // a connection died without a word
	forgotten bool
}

type conn struct {
	num         int
	client      *client
	node        *node
	gen         int
	openedMS    int64 // true time
	connectedMS int64 // on the node's clock
	key         string
	port        int
	version     uint32
	clean       bool
	keep        bool // the session outlives it
	web         bool
	closed      bool
	opened      *Event
}

// Run makes the history of a plan.
func Run(p *Plan) *History {
	s := &sim{plan: p, nowMS: epochMS, h: &History{Plan: p}}
	s.h.sim = s
	setup := dice{p.Seed | 1}
	for i, h := range p.Nodes {
		s.nodes = append(s.nodes, &node{index: i, name: nodeName(h, i), habits: h, clockMS: p.SkewMS[i], up: true, gen: 1, bootMS: epochMS})
	}
	for i := range p.Clients {
		c := &client{index: i, id: clientIDs[(int(p.Seed%uint64(len(clientIDs)))+i)%len(clientIDs)], ip: fmt.Sprintf("203.0.113.%d", 7+i), port: 52590,
			protocol: [...]uint8{4, 5, 3}[setup.n(3)], keepAlive: uint32(setup.ms(10, 60)), bdSeq: 250 + setup.n(10), keys: map[string]bool{}}
		if setup.in(60) {
			c.username = "fleet"
		}
		s.clients = append(s.clients, c)
	}
	for i := range p.Bridges {
		s.bridges = append(s.bridges, newBridge(s, i))
	}
	s.begin(&setup)
	for i := range p.Steps {
		if p.Late && i == len(p.Steps)/3 {
			s.advance(s.nowMS + 10_000)
			s.bridges[0].join(false)
			s.advance(s.nowMS + 10_000)
		}
		s.step(&p.Steps[i])
	}
	s.end()
	return s.h
}

// nodeName returns how a broker of those habits calls its i-th node.
func nodeName(h *Habits, i int) string {
	switch h.Words {
	case wordsEMQX5, wordsEMQX4:
		return fmt.Sprintf("emqx@10.0.3.%d", 11+i)
	case wordsRMQTT:
		return strconv.Itoa(i + 1)
	case wordsMosquitto20, wordsMosquitto21:
		return "mosquitto"
	}
	return fmt.Sprintf("node%d", i+1)
}

// clientIDs are the IDs that clients have; what a topic can carry differs, what a fact can does not (H15).
var clientIDs = []string{"VIN0000001", "d1", "GID@@@dev-1", "plant 7/press \"3\"", "50%", "grüße", "gru\u0308ße", "device:(p2, c1, k60)", "床-1", "a as b", "D1", "x/y/z"}

// plainID reports whether an ID is made of nothing but letters and digits.
func plainID(id string) bool {
	for _, r := range id {
		if (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			return false
		}
	}
	return true
}

// at plans something for later.
func (s *sim) at(ms int64, do func()) {
	s.timed++
	t := timer{ms, s.timed, do}
	i := sort.Search(len(s.timers), func(i int) bool { return s.timers[i].atMS > ms })
	s.timers = append(s.timers, timer{})
	copy(s.timers[i+1:], s.timers[i:])
	s.timers[i] = t
}

// advance lets time pass.
func (s *sim) advance(toMS int64) {
	for len(s.timers) > 0 && s.timers[0].atMS <= toMS {
		t := s.timers[0]
		s.timers = s.timers[1:]
		s.nowMS = max(s.nowMS, t.atMS)
		t.do()
	}
	s.nowMS = max(s.nowMS, toMS)
}

func (n *node) clock(trueMS int64) int64 { return trueMS + n.clockMS }

// stamp returns what the node writes into an event now.
func (s *sim) stamp(n *node, d *dice) int64 {
	switch n.habits.Clock {
	case Seconds:
		return n.clock(s.nowMS) / 1000 * 1000
	case Fuzzy:
		return s.nowMS + d.ms(0, 240_000) - 120_000
	}
	return n.clock(s.nowMS)
}

func (a *node) reaches(b *node) bool { return a.side == b.side && b.up }

// begin starts the nodes and the bridges' subscriptions.
func (s *sim) begin(d *dice) {
	if s.plan.Late {
		for _, n := range s.nodes {
			n.bootMS -= 3_600_000
		}
		return
	}
	for _, b := range s.bridges {
		if b.index == 0 || !s.plan.Flaky {
			b.join(false)
		}
	}
	s.nowMS += 5_000
	for _, n := range s.nodes {
		n.bootMS = s.nowMS
		if s.plan.Mode == Clocks {
			// A clock that is set below the start of its generation leaves open what is of which generation.
			n.bootMS -= 86_400_000
		}
		s.beatSoon(n, d.ms(1, 500))
	}
}

func (s *sim) step(st *Step) {
	s.advance(s.nowMS + st.WaitMS)
	d := dice{st.Seed}
	c, n := s.clients[st.Client], s.nodes[st.Node]
	if s.plan.Mode == Clocks {
		// Between nodes whose clocks are hours apart nothing can be said: a client stays on its node.
		n = s.nodes[st.Client%len(s.nodes)]
	}
	if !s.bridges[0].began && st.Action >= Crash {
		return
	}
	switch st.Action {
	case Connect:
		s.connect(c, n, st, &d)
	case End:
		s.endConn(c, st.Cause, &d)
	case Stranger:
		s.stranger(c, n, &d)
	case Noise:
		s.noise(c, n, &d)
	case ExpireSession:
		s.expire(c, &d)
	case Kick:
		s.kick(c, &d)
	case Crash, Stop:
		s.stop(n, st.Action == Stop, &d)
	case Boot:
		s.boot(n, &d)
	case Storm:
		for _, c := range s.clients {
			s.connect(c, s.nodes[d.n(len(s.nodes))], st, &d)
			s.advance(s.nowMS + d.ms(0, 20))
		}
	case SetClock:
		s.setClock(n, st.ByMS, &d)
	case Split:
		s.split(st.Keep, &d)
	case Heal:
		s.heal(&d)
	case Hush:
		s.hush(n, st.ByMS, &d)
	case Cut:
		s.advance(s.nowMS + 1)
		s.bridges[d.n(len(s.bridges))].cut(st.Keep)
	case Join:
		s.advance(s.nowMS + 1)
		for _, b := range s.bridges {
			b.join(true)
		}
	case Overrun:
		s.bridges[d.n(len(s.bridges))].overrun(d.ms(10, 3_000))
	case Sweep:
		s.sweep(&d)
	case Kill:
		if len(c.live) > 0 {
			s.close(c.live[len(c.live)-1])
			c.mourned = true
			s.h.Hazards.set(6)
		}
	case Forget:
		s.forget(c)
	case Flap:
		s.advance(s.nowMS + 1)
		if b := s.bridges[len(s.bridges)-1]; b.index > 0 && b.up {
			b.cut(st.Keep)
		} else if b.index > 0 {
			b.join(false)
		}
	}
}

// end lets everything that is under way come to rest.
func (s *sim) end() {
	d := dice{s.plan.Seed}
	if s.plan.Mode == Exact || s.plan.Mode == Clocks {
		for _, n := range s.nodes {
			s.boot(n, &d)
		}
	}
	s.advance(s.nowMS + 2*leaseMS)
	for _, n := range s.nodes {
		n.hushMS = 0
		s.beat(n)
	}
	s.advance(s.nowMS + 2*leaseMS)
	for _, b := range s.bridges {
		b.assert()
	}
	s.finish()
}

// forget has a client that is gone for good forgotten, all of it.
func (s *sim) forget(c *client) {
	s.advance(s.nowMS + 2*leaseMS)
	if len(c.live) > 0 {
		return
	}
	s.h.forget(c, s.nowMS)
	// Nothing that happens later may be stamped before.
	s.advance(s.nowMS + 250_000)
	c.ended, c.muted = nil, nil
}
