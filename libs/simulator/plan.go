package simulator

import (
	"fmt"
	"hash/fnv"
)

// Mode says what a plan may hold, and so which laws its history must keep.
type Mode uint8

// The modes.
const (
	Exact  Mode = iota // everything is delivered, clocks differ by less than the allowance
	Clocks             // everything is delivered, clocks are set back and forth; each client stays on its node
	Lossy              // facts are lost, and the bridge can see it
	Silent             // facts are lost, or never emitted, and nobody can see it
	numModes
)

var modeWords = [numModes]string{"exact", "clocks", "lossy", "silent"}

func (m Mode) String() string { return modeWords[m] }

// Action is what happens in a step.
type Action uint8

// The actions.
const (
	Connect       Action = iota // a CONNECT that is accepted; it takes over what is open
	End                         // the connection ends, by the step's cause
	Stranger                    // a CONNECT with the client's ID is refused
	Noise                       // something that is none of the clients' presence
	ExpireSession               // the session of a client without connection ends
	Kick                        // an administrator ends the session, open or not
	Crash                       // a node dies
	Stop                        // a node is stopped
	Boot                        // a node starts again
	Storm                       // every client connects
	SetClock                    // a node's clock is set
	Split                       // the cluster falls apart
	Heal                        // it comes together
	Hush                        // a node's heartbeats do not come for a while
	Cut                         // the bridge loses its session
	Join                        // it subscribes again
	Overrun                     // the bridge's spool drops facts
	Sweep                       // the bridge asks for every client
	Kill                        // a connection dies without a word
	Forget                      // a client that is gone is to be forgotten
	Flap                        // the second bridge loses its session, or subscribes again
	numActions
)

var actionWords = [numActions]string{"connect", "end", "stranger", "noise", "expire session", "kick", "crash", "stop", "boot", "storm", "set clock", "split", "heal",
	"hush", "cut", "join", "overrun", "sweep", "kill", "forget", "flap"}

func (a Action) String() string { return actionWords[a] }

// Step is one thing that happens in a cluster.
type Step struct {
	Action Action
	WaitMS int64 // since the step before
	Client int
	Node   int
	Cause  Cause  // End
	Clean  bool   // Connect: clean start; Boot: the bridge keeps its session
	Keep   bool   // Connect: the session outlives the connection; Cut: the broker keeps the session; Split: the bridge sees one side only
	Web    bool   // Connect: over WebSocket
	ByMS   int64  // SetClock: by how much; Hush: how long
	Seed   uint64 // of everything else; 0: the simplest of all
}

// Plan is what a history is made from. The same plan gives the same history.
type Plan struct {
	Setup   *Setup
	Mode    Mode
	Seed    uint64
	Nodes   []*Habits
	SkewMS  []int64 // of each node's clock
	Clients int
	Bridges int  // 1 or 2
	Flaky   bool // of two bridges the second comes later, and comes and goes
	Late    bool // the bridge subscribes after the nodes have started
	Steps   []Step
}

// NewPlan makes a plan from a seed.
func NewPlan(setup *Setup, mode Mode, seed uint64) *Plan {
	name := fnv.New64a()
	fmt.Fprintf(name, "%s/%s/%d", setup.Name, mode, seed)
	d := dice{name.Sum64() | 1}
	p := &Plan{Setup: setup, Mode: mode, Seed: seed, Clients: 1 + d.n(4), Bridges: 1}
	nodes := 1 + d.n(setup.Nodes[0].Nodes)
	if setup.Mixed {
		nodes = max(nodes, 2)
	}
	habits := setup.Nodes[d.n(len(setup.Nodes))]
	for i := range nodes {
		if setup.Mixed {
			habits = setup.Nodes[i%len(setup.Nodes)]
		}
		p.Nodes = append(p.Nodes, habits)
		skew := d.ms(-900, 900)
		if habits.Clock == Fuzzy || habits.Clock == Received || habits.Hidden {
			skew = 0
		}
		p.SkewMS = append(p.SkewMS, skew)
	}
	if habits.Clock != Received && d.in(30) {
		p.Bridges = 2
	}
	p.Late = mode == Lossy && d.in(30)
	p.Flaky = p.Bridges == 2 && d.in(50)
	steps := 4 + d.n(8*p.Clients)
	heal := steps
	if mode == Lossy && d.in(60) {
		heal = steps * 2 / 3
	}
	for i := range steps {
		if i == heal {
			p.addHealing(&d)
		}
		p.Steps = append(p.Steps, p.newStep(&d, i > heal))
	}
	return p
}

// addHealing puts everything right that was lost: nodes, partitions, subscriptions, and what the bridge has missed.
func (p *Plan) addHealing(d *dice) {
	p.Steps = append(p.Steps, Step{Action: Heal, Seed: d.next() | 1})
	for i := range p.Nodes {
		p.Steps = append(p.Steps, Step{Action: Boot, Node: i, Seed: d.next() | 1})
	}
	p.Steps = append(p.Steps, Step{Action: Join, WaitMS: 1, Seed: d.next() | 1}, Step{Action: Sweep, WaitMS: d.ms(150_000, 200_000), Seed: d.next() | 1})
}

// weights of the actions, by mode. What comes in pairs is put right by the simulation: a node that is up does not boot.
var weights = [numModes][numActions]uint8{
	Exact:  {Connect: 44, End: 30, Stranger: 5, Noise: 4, ExpireSession: 3, Kick: 3, Crash: 2, Stop: 1, Boot: 4, Storm: 2, Hush: 1, Forget: 1},
	Clocks: {Connect: 44, End: 30, Stranger: 4, Noise: 1, ExpireSession: 2, Kick: 2, Crash: 1, Boot: 3, SetClock: 10},
	Lossy: {Connect: 40, End: 28, Stranger: 4, Noise: 2, ExpireSession: 2, Kick: 2, Crash: 2, Stop: 1, Boot: 4, Storm: 2, Split: 2, Heal: 4, Hush: 2, Cut: 4, Join: 8,
		Overrun: 2, Sweep: 4},
	Silent: {Connect: 40, End: 30, Stranger: 3, Noise: 1, Kick: 1, Crash: 1, Boot: 3, Kill: 6, Sweep: 1},
}

var weightSums = func() (sums [numModes]int) {
	for m := range weights {
		for _, w := range weights[m] {
			sums[m] += int(w)
		}
	}
	return sums
}()

func (p *Plan) newStep(d *dice, healed bool) Step {
	s := Step{Client: d.n(p.Clients), Node: d.n(len(p.Nodes)), Clean: d.in(50), Keep: d.in(40), WaitMS: newWait(d), Seed: d.next() | 1}
	s.Web = !p.Setup.TCPOnly && d.in(40)
	mode := p.Mode
	if healed {
		mode = Exact
	}
	w := d.n(weightSums[mode])
	for a := range weights[mode] {
		if w -= int(weights[mode][a]); w < 0 {
			s.Action = Action(a)
			break
		}
	}
	if p.Flaky && d.in(20) {
		s.Action = Flap
	}
	switch s.Action {
	case Stranger:
		if !p.Setup.Strangers {
			s.Action = Connect
		}
	case End:
		s.Cause = newCause(d, p.Setup.Plain)
	case SetClock:
		h := p.Nodes[s.Node]
		if h.Clock == Received || h.Clock == Fuzzy || h.Hidden || h.Beat == NoBeat {
			s.Action = Connect
			break
		}
		by := [...]int64{1_500, 1_500, 40, 3_600_000, 7_200_000, 12_000}
		s.ByMS = by[d.n(len(by))]
		if d.in(50) {
			s.ByMS = -s.ByMS
		}
	case Hush:
		s.ByMS = d.ms(60_000, 120_000)
	}
	return s
}

func newWait(d *dice) int64 {
	switch w := d.n(100); {
	case w < 15:
		return 0
	case w < 30:
		return d.ms(1, 3)
	case w < 50:
		return d.ms(5, 100)
	case w < 70:
		return d.ms(100, 2_000)
	case w < 90:
		return d.ms(2_000, 15_000)
	case w < 98:
		return d.ms(15_000, 120_000)
	}
	return d.ms(3_600_000, 8_000_000)
}

func newCause(d *dice, plain bool) Cause {
	switch c := d.n(20); {
	case c < 7:
		return CauseNormal
	case c < 14:
		return CauseLost
	case c < 17:
		return CauseKeepAlive
	case plain || c < 18:
		return CauseKicked
	case c < 19:
		return CauseProtocol
	}
	return [...]Cause{CauseNotAuthorized, CauseQuota}[d.n(2)]
}

func (s *Step) String() string {
	text := fmt.Sprintf("+%dms %s c%d n%d", s.WaitMS, s.Action, s.Client, s.Node)
	for _, flag := range []struct {
		set  bool
		word string
	}{{s.Clean, "clean"}, {s.Keep, "keep"}, {s.Web, "web"}, {s.Seed == 0, "calm"}} {
		if flag.set {
			text += " " + flag.word
		}
	}
	if s.ByMS != 0 {
		text += fmt.Sprintf(" by %dms", s.ByMS)
	}
	return text
}
