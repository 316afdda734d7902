package chaos

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a kind of process.
type Kind string

// The kinds of processes. The materializers are of two replicas.
const (
	Kafka    Kind = "kafka"
	Broker   Kind = "broker"
	Bridge   Kind = "bridge"
	ReplicaA Kind = "materializer-a"
	ReplicaB Kind = "materializer-b"
	Query    Kind = "query"
)

// Processes returns the processes of a deployment, by kind.
func Processes() map[Kind][]string {
	return map[Kind][]string{
		Kafka:    {"kafka-1", "kafka-2", "kafka-3"},
		Broker:   {"broker"},
		Bridge:   {"bridge-1", "bridge-2"},
		ReplicaA: {"materializer-a-1", "materializer-a-2"},
		ReplicaB: {"materializer-b-1", "materializer-b-2"},
		Query:    {"query-1", "query-2"},
	}
}

// Action is what is done to a process.
type Action string

// The actions. All are taken back after [Step].For.
const (
	Kill    Action = "kill"    // with SIGKILL, then started again on the same disk
	Pause   Action = "pause"   // SIGSTOP, then SIGCONT
	Isolate Action = "isolate" // no packet from or to any other process
	Cut     Action = "cut"     // no packet between it and Step.Peers
	Restart Action = "restart" // SIGTERM, and started again when it has ended
)

// Step is one fault.
type Step struct {
	At      time.Duration // since the beginning
	For     time.Duration // until it is taken back
	Action  Action
	Kind    Kind
	Targets []string // all at once
	Peers   []string // of a cut
}

// String tells the step in one line.
func (s Step) String() string {
	line := fmt.Sprintf("+%.1fs %s %s", s.At.Seconds(), s.Action, strings.Join(s.Targets, ", "))
	if len(s.Peers) > 0 {
		line += " from " + strings.Join(s.Peers, ", ")
	}
	return fmt.Sprintf("%s for %.1f s", line, s.For.Seconds())
}

const (
	// session is that of the consumer groups: a materializer that is away for longer is another owner's, and wakes up fenced.
	session = 10 * time.Second
	// fenced is how long a pause is in which somebody else becomes the owner for certain: the others join anew after the session has ended.
	fenced = session + 3*time.Second
	// calm is the time at the beginning and at the end without a new fault.
	calm = 3 * time.Second
	// allKafkaEvery is the time before the first step that ends all of Kafka, and between two.
	allKafkaEvery = 4 * time.Minute
	// brokerEvery is the time between two ends of the MQTT broker.
	brokerEvery = 3 * time.Minute
)

// settle is how long after a fault the next one of the same kind may come: a broker of Kafka is to be in sync again before the next one goes.
var settle = map[Kind]time.Duration{
	Kafka: 15 * time.Second, Broker: 10 * time.Second, Bridge: 5 * time.Second, ReplicaA: 15 * time.Second, ReplicaB: 15 * time.Second, Query: time.Second,
}

// longest is the longest time for which a kind is away. Mosquitto keeps its log lines for 20 s.
var longest = map[Kind]time.Duration{
	Kafka: 20 * time.Second, Broker: 3 * time.Second, Bridge: 15 * time.Second, ReplicaA: 25 * time.Second, ReplicaB: 25 * time.Second, Query: 10 * time.Second,
}

var actions = map[Kind][]Action{
	Kafka:    {Kill, Pause, Isolate, Cut, Restart},
	Broker:   {Restart, Kill},
	Bridge:   {Kill, Pause, Isolate, Cut, Restart},
	ReplicaA: {Kill, Pause, Isolate, Cut, Restart},
	ReplicaB: {Kill, Pause, Isolate, Cut, Restart},
	Query:    {Kill, Pause, Isolate, Cut, Restart},
}

// peers are the kinds that a process of a kind may be cut off from.
var peers = map[Kind][]Kind{
	Kafka: {Kafka}, Bridge: {Kafka, Broker}, ReplicaA: {Kafka, Query}, ReplicaB: {Kafka, Query}, Query: {Kafka, ReplicaA},
}

// Plan returns the schedule of a seed: if it lasts for a minute and a half, every kind of process is hit at least once, and at least one materializer that
// publishes is paused for so long that it wakes up fenced. At most one process of a kind is away at a time, and of the two replicas only one is, except
// in the few steps that take all of Kafka.
func Plan(seed uint64, lasts time.Duration) []Step {
	steps := plan(seed, lasts, false)
	if !slices.ContainsFunc(steps, Step.fences) {
		return plan(seed, lasts, true)
	}
	return steps
}

// fences reports whether a materializer that publishes wakes up as a former owner.
func (s Step) fences() bool { return s.Kind == ReplicaA && s.Action == Pause && s.For >= fenced }

// plan makes a schedule by chance; mustFence has it begin its turns of replica a with a step that fences.
func plan(seed uint64, lasts time.Duration, mustFence bool) []Step {
	p := planner{rng: rand.New(rand.NewPCG(seed, 0x70726573656e6365)), end: lasts - calm, free: map[Kind]time.Duration{Kafka: calm, Broker: calm + 20*time.Second}}
	p.nextAllKafka, p.mustFence = allKafkaEvery, mustFence
	for at := calm; at < p.end-time.Second; at += time.Second + p.upTo(4*time.Second) {
		p.add(at)
	}
	return p.steps
}

type planner struct {
	rng          *rand.Rand
	end          time.Duration
	free         map[Kind]time.Duration // from when on a kind may be hit
	bag          []Kind                 // still to be hit in this round
	steps        []Step
	nextAllKafka time.Duration
	turn         map[Kind]int // how often each was hit
	mustFence    bool         // the next step of replica a is to fence
}

// upTo returns a time in whole milliseconds.
func (p *planner) upTo(d time.Duration) time.Duration {
	return time.Duration(p.rng.Int64N(d.Milliseconds()+1)) * time.Millisecond
}

func (p *planner) add(at time.Duration) {
	if len(p.bag) == 0 {
		p.bag = []Kind{Kafka, Bridge, ReplicaA, ReplicaB, Query}
		if len(p.steps) == 0 || p.free[Broker] <= at {
			p.bag = append(p.bag, Broker)
		}
		p.rng.Shuffle(len(p.bag), func(i, j int) { p.bag[i], p.bag[j] = p.bag[j], p.bag[i] })
		// Behind the other replica's step a short plan may have no time left for a pause of that length.
		if a, b := slices.Index(p.bag, ReplicaA), slices.Index(p.bag, ReplicaB); p.mustFence && a > b {
			p.bag[a], p.bag[b] = p.bag[b], p.bag[a]
		}
	}
	if at >= p.nextAllKafka && p.free[Kafka] <= at {
		p.nextAllKafka = at + allKafkaEvery
		p.step(Step{At: at, Action: Kill, Kind: Kafka, Targets: Processes()[Kafka], For: time.Second + p.upTo(10*time.Second)})
		return
	}
	i := slices.IndexFunc(p.bag, func(k Kind) bool { return p.free[k] <= at })
	if i >= 0 {
		kind := p.bag[i]
		p.bag = slices.Delete(p.bag, i, i+1)
		p.step(p.draw(at, kind))
		return
	}
	// Nothing of this round may be hit: those that come back soonest may be hit out of turn.
	for _, kind := range []Kind{Bridge, Query} {
		if p.free[kind] <= at {
			p.step(p.draw(at, kind))
			return
		}
	}
}

// draw returns a step for a kind. A kind's actions take turns, each kind from another one on.
func (p *planner) draw(at time.Duration, kind Kind) Step {
	if p.turn == nil {
		p.turn = map[Kind]int{}
	}
	if _, ok := p.turn[kind]; !ok {
		p.turn[kind] = p.rng.IntN(len(actions[kind]))
	}
	long := p.mustFence && kind == ReplicaA
	if long {
		p.mustFence, p.turn[kind] = false, slices.Index(actions[kind], Pause)
	}
	s := Step{At: at, Kind: kind, Action: actions[kind][p.turn[kind]%len(actions[kind])]}
	p.turn[kind]++
	all := Processes()
	s.Targets = []string{all[kind][p.rng.IntN(len(all[kind]))]}
	most := longest[kind]
	switch {
	case s.Action == Restart:
		most = 0
	case (s.Action == Pause || s.Action == Isolate) && (kind == ReplicaA || kind == ReplicaB) && (p.rng.IntN(2) == 0 || long):
		// Half of them are long enough for a successor, by whom the paused one is fenced.
		s.For = fenced
	}
	if s.Action == Cut {
		s.Peers = p.peersOf(kind, s.Targets[0])
	}
	s.For = min(s.For+p.upTo(most-s.For), p.end-at)
	if s.Action != Restart {
		s.For = max(s.For, min(time.Second, p.end-at))
	}
	return s
}

// peersOf draws one process, or all of a kind.
func (p *planner) peersOf(kind Kind, target string) []string {
	of := peers[kind][p.rng.IntN(len(peers[kind]))]
	all := slices.DeleteFunc(Processes()[of], func(name string) bool { return name == target })
	if of != Kafka && p.rng.IntN(2) == 0 {
		return all
	}
	return []string{all[p.rng.IntN(len(all))]}
}

func (p *planner) step(s Step) {
	p.steps = append(p.steps, s)
	free := s.At + s.For + settle[s.Kind]
	p.free[s.Kind] = free
	switch s.Kind {
	case ReplicaA:
		p.free[ReplicaB] = max(p.free[ReplicaB], free)
	case ReplicaB:
		p.free[ReplicaA] = max(p.free[ReplicaA], free)
	case Broker:
		p.free[Broker] = s.At + brokerEvery
	case Kafka, Bridge, Query:
	}
}

// Count returns how often each action hit each kind, a line each, sorted.
func Count(steps []Step) []string {
	count := map[string]int{}
	for _, s := range steps {
		kind := string(s.Kind)
		if len(s.Targets) > 1 {
			kind = "all of " + kind
		}
		count[fmt.Sprintf("%s %s", s.Action, kind)]++
	}
	lines := make([]string, 0, len(count))
	for what, n := range count {
		lines = append(lines, fmt.Sprintf("%d x %s", n, what))
	}
	slices.SortFunc(lines, func(a, b string) int { return cmp.Compare(a[strings.Index(a, "x"):], b[strings.Index(b, "x"):]) })
	return lines
}
