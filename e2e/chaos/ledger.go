package chaos

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// Ledger is what a run has left in Kafka, as consumers with read_committed see it.
type Ledger struct {
	Cluster     string
	AllowanceMS int64 // for the skew between two nodes' clocks, as the materializers have it
	Partitions  int32

	clients     map[string]*Client // by ID
	nodes       []nodes
	publishers  map[int32]*publisher
	checkpoints map[int32][]checkpoint
	states      map[int32]int64 // records of client-state by partition: where a checkpoint stands among them
	facts       int
	deadLetters []eventlog.DeadLetter
	broken      []error // what was wrong when it came
}

// NewLedger returns an empty ledger for one MQTT cluster.
func NewLedger(cluster string, allowanceMS int64, partitions int32) *Ledger {
	return &Ledger{
		Cluster: cluster, AllowanceMS: allowanceMS, Partitions: partitions, clients: map[string]*Client{}, publishers: map[int32]*publisher{},
		checkpoints: map[int32][]checkpoint{}, states: map[int32]int64{},
	}
}

// Client is what concerns one client, each in offset order.
type Client struct {
	ID    string
	Facts []Fact // with the copies

	partition int32
	states    []State
	misplaced []error
}

// Fact is a fact in the log.
type Fact struct {
	presence.Fact
	Offset int64
}

// State is what was published of a client.
type State struct {
	eventlog.ClientState
	offset int64
	value  []byte
}

// version is the pair of offsets behind a state.
type version struct{ event, node int64 }

func (s *State) version() version { return version{s.EventOffset, s.NodeEventOffset} }

// after reports whether v is later than o: nothing in it went back, and something went on.
func (v version) after(o version) bool { return v.event >= o.event && v.node >= o.node && v != o }

// nodes is the table of nodes with the node facts up to an offset.
type nodes struct {
	offset int64
	table  *presence.Cluster
	// affects says that the fact may change statuses.
	affects bool
}

// publisher is who publishes a partition of client-state.
type publisher struct {
	id    int64
	epoch int16
	past  map[int64]bool
}

type checkpoint struct {
	offset int64 // of the record
	version
}

// Add takes in a record of one of the topics; those of one partition in order. An error says that the record cannot be read.
func (l *Ledger) Add(r *kgo.Record) error {
	if r.Attrs.IsControl() {
		return nil
	}
	var err error
	switch r.Topic {
	case eventlog.TopicClientEvents:
		err = l.addFact(r)
	case eventlog.TopicClientState:
		err = l.addState(r)
	case eventlog.TopicNodeEvents:
		err = l.addNode(r)
	case eventlog.TopicDeadLetters:
		var d eventlog.DeadLetter
		if d, err = eventlog.DecodeDeadLetter(r); err == nil {
			l.deadLetters = append(l.deadLetters, d)
		}
	}
	if err != nil {
		return fmt.Errorf("%s partition %d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	return nil
}

func (l *Ledger) addFact(r *kgo.Record) error {
	f := Fact{Offset: r.Offset}
	if err := eventlog.DecodeFact(r, &f.Fact); err != nil || f.Cluster != l.Cluster {
		return err
	}
	c := l.of(f.ClientID)
	c.Facts = append(c.Facts, f)
	l.facts++
	c.place(r, l.Cluster)
	return nil
}

func (l *Ledger) addState(r *kgo.Record) error {
	l.addPublisher(r)
	if r.Value == nil {
		return nil
	}
	s := State{value: r.Value, offset: r.Offset}
	if err := eventlog.DecodeClientState(r, &s.ClientState); err != nil {
		return err
	}
	l.states[r.Partition]++
	if s.Checkpoint {
		l.checkpoints[r.Partition] = append(l.checkpoints[r.Partition], checkpoint{r.Offset, s.version()})
		return nil
	}
	if s.Cluster != l.Cluster {
		return nil
	}
	c := l.of(s.ClientID)
	c.states = append(c.states, s)
	c.place(r, l.Cluster)
	return nil
}

// addPublisher wants the producers' sessions of a partition in order: each is fenced when its successor begins. A producer that has used up its
// epochs goes on with another ID.
func (l *Ledger) addPublisher(r *kgo.Record) {
	p := l.publishers[r.Partition]
	if p == nil {
		p = &publisher{id: r.ProducerID, epoch: r.ProducerEpoch, past: map[int64]bool{}}
		l.publishers[r.Partition] = p
	}
	switch {
	case r.ProducerID < 0:
		l.broken = append(l.broken, wrong(r, "comes from no transaction"))
	case r.ProducerID == p.id && r.ProducerEpoch < p.epoch, p.past[r.ProducerID]:
		what := fmt.Sprintf("comes from a fenced producer: ID %d, epoch %d after ID %d, epoch %d", r.ProducerID, r.ProducerEpoch, p.id, p.epoch)
		l.broken = append(l.broken, wrong(r, what))
		return
	}
	if r.ProducerID != p.id {
		p.past[p.id] = true
	}
	p.id, p.epoch = r.ProducerID, r.ProducerEpoch
}

func (l *Ledger) addNode(r *kgo.Record) error {
	var f presence.NodeFact
	if err := eventlog.DecodeNodeFact(r, &f); err != nil || f.Cluster != l.Cluster {
		return err
	}
	table := &presence.Cluster{}
	if n := len(l.nodes); n > 0 {
		table = copyOf(l.nodes[n-1].table)
	}
	affects := table.Apply(&f) || len(l.nodes) == 0
	l.nodes = append(l.nodes, nodes{r.Offset, table, affects})
	return nil
}

func copyOf(c *presence.Cluster) *presence.Cluster {
	to := &presence.Cluster{Nodes: make(map[string]*presence.Node, len(c.Nodes)), Feeds: make(map[string]presence.NodeFact, len(c.Feeds))}
	for name, n := range c.Nodes {
		node := *n
		to.Nodes[name] = &node
	}
	for bridge, f := range c.Feeds {
		to.Feeds[bridge] = f
	}
	return to
}

// tableAt returns the table with the node facts below an offset.
func (l *Ledger) tableAt(below int64) *presence.Cluster {
	i, _ := slices.BinarySearchFunc(l.nodes, below, func(n nodes, offset int64) int { return cmp.Compare(n.offset, offset) })
	if i == 0 {
		return &presence.Cluster{}
	}
	return l.nodes[i-1].table
}

// end is an offset behind all that a partition has.
const end = int64(1) << 62

// of returns a client to which a record is to be added.
func (l *Ledger) of(id string) *Client {
	c := l.Client(id)
	l.clients[id] = c
	return c
}

// place checks a record's key and partition.
func (c *Client) place(r *kgo.Record, cluster string) {
	switch {
	case !bytes.Equal(r.Key, eventlog.ClientKey(cluster, c.ID)):
		c.misplaced = append(c.misplaced, wrong(r, fmt.Sprintf("has the key %q, and is of client %q", r.Key, c.ID)))
	case r.Partition != c.partition:
		c.misplaced = append(c.misplaced, wrong(r, fmt.Sprintf("is in partition %d, client %q belongs to %d", r.Partition, c.ID, c.partition)))
	}
}

func wrong(r *kgo.Record, what string) error {
	return fmt.Errorf("%s partition %d offset %d %s", r.Topic, r.Partition, r.Offset, what)
}

// Size is what a ledger holds.
type Size struct {
	Clients, Facts, Copies, Transitions, Repeated, Checkpoints, NodeFacts int
}

// Size counts. Copies are facts that are there already, repeated are states that were published already.
func (l *Ledger) Size() Size {
	s := Size{Clients: len(l.clients), Facts: l.facts, NodeFacts: len(l.nodes)}
	for _, c := range l.clients {
		seen := make(map[string]bool, len(c.Facts))
		for i := range c.Facts {
			if seen[c.Facts[i].ID] {
				s.Copies++
			}
			seen[c.Facts[i].ID] = true
		}
		published := make(map[version]bool, len(c.states))
		for i := range c.states {
			switch v := c.states[i].version(); {
			case published[v]:
				s.Repeated++
			default:
				published[v] = true
				if c.states[i].Transition {
					s.Transitions++
				}
			}
		}
	}
	for _, list := range l.checkpoints {
		s.Checkpoints += len(list)
	}
	return s
}
