package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// history is what a run has left in Kafka, as consumers with read_committed see it: the facts, and the states published from them. It checks
// that they fit: see [history.check]. It is used by one goroutine.
type history struct {
	kafka *kgo.Client
	admin *kadm.Client
	next  map[string]map[int32]int64 // offsets to be read next

	clients     map[string]*clientHistory // by record key
	nodes       []nodeRecord              // in offset order
	deadLetters []eventlog.DeadLetter
}

// clientHistory is what concerns one client, each in offset order.
type clientHistory struct {
	partition int32
	facts     []factRecord
	states    []stateRecord
}

type factRecord struct {
	presence.Fact
	offset int64
}

type nodeRecord struct {
	presence.NodeFact
	offset int64
}

type stateRecord struct {
	eventlog.ClientState
	partition int32
	value     []byte
}

// version is the pair of offsets behind a state.
func (s *stateRecord) version() version { return version{s.EventOffset, s.NodeEventOffset} }

type version struct{ event, node int64 }

// after reports whether v is later than o: nothing in it went back, and something went on.
func (v version) after(o version) bool { return v.event >= o.event && v.node >= o.node && v != o }

func newHistory(t *testing.T, cfg eventlog.Config) *history {
	t.Helper()
	opts, err := cfg.Opts(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	// Control records show how far a partition has been read where a transaction ends it.
	cl, err := kgo.NewClient(append(opts, kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return &history{kafka: cl, admin: kadm.NewClient(cl), next: map[string]map[int32]int64{}, clients: map[string]*clientHistory{}}
}

// read reads on to what is committed now.
func (h *history) read(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ends, err := h.admin.ListCommittedOffsets(ctx, eventlog.TopicClientEvents, eventlog.TopicClientState, eventlog.TopicNodeEvents, eventlog.TopicDeadLetters)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("list the ends of the topics: %w", err)
	}
	added := map[string]map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) {
		if h.next[o.Topic] == nil {
			h.next[o.Topic] = map[int32]int64{}
		}
		if _, ok := h.next[o.Topic][o.Partition]; !ok {
			h.next[o.Topic][o.Partition] = 0
			if added[o.Topic] == nil {
				added[o.Topic] = map[int32]kgo.Offset{}
			}
			added[o.Topic][o.Partition] = kgo.NewOffset().At(0)
		}
	})
	h.kafka.AddConsumePartitions(added)
	for !h.reached(ends) {
		fetches := h.kafka.PollFetches(ctx)
		if err := fetches.Err0(); err != nil {
			return fmt.Errorf("read the topics: %w", err)
		}
		var errs []error
		fetches.EachError(func(topic string, partition int32, err error) {
			errs = append(errs, fmt.Errorf("read %s partition %d: %w", topic, partition, err))
		})
		fetches.EachRecord(func(r *kgo.Record) { errs = append(errs, h.add(r)) })
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}

func (h *history) reached(ends kadm.ListedOffsets) bool {
	all := true
	ends.Each(func(o kadm.ListedOffset) { all = all && h.next[o.Topic][o.Partition] >= o.Offset })
	return all
}

func (h *history) add(r *kgo.Record) error {
	h.next[r.Topic][r.Partition] = r.Offset + 1
	if r.Attrs.IsControl() {
		return nil
	}
	var err error
	switch r.Topic {
	case eventlog.TopicClientEvents:
		f := factRecord{offset: r.Offset}
		if err = eventlog.DecodeFact(r, &f.Fact); err == nil {
			c := h.of(r)
			c.facts = append(c.facts, f)
			err = placed(r, f.Cluster, f.ClientID, c)
		}
	case eventlog.TopicClientState:
		s := stateRecord{partition: r.Partition, value: r.Value}
		if r.Value == nil {
			break
		}
		if err = eventlog.DecodeClientState(r, &s.ClientState); err == nil && !s.Checkpoint {
			c := h.of(r)
			c.states = append(c.states, s)
			err = placed(r, s.Cluster, s.ClientID, c)
		}
	case eventlog.TopicNodeEvents:
		n := nodeRecord{offset: r.Offset}
		if err = eventlog.DecodeNodeFact(r, &n.NodeFact); err == nil {
			h.nodes = append(h.nodes, n)
		}
	case eventlog.TopicDeadLetters:
		var d eventlog.DeadLetter
		if d, err = eventlog.DecodeDeadLetter(r); err == nil {
			h.deadLetters = append(h.deadLetters, d)
		}
	}
	if err != nil {
		return fmt.Errorf("%s partition %d offset %d: %w", r.Topic, r.Partition, r.Offset, err)
	}
	return nil
}

func (h *history) of(r *kgo.Record) *clientHistory {
	c := h.clients[string(r.Key)]
	if c == nil {
		c = &clientHistory{partition: r.Partition}
		h.clients[string(r.Key)] = c
	}
	return c
}

// placed checks a record's key, and that all records of a client are in one partition.
func placed(r *kgo.Record, cluster, clientID string, c *clientHistory) error {
	switch {
	case !bytes.Equal(r.Key, eventlog.ClientKey(cluster, clientID)):
		return fmt.Errorf("the key is %q, the client %q of cluster %s", r.Key, clientID, cluster)
	case r.Partition != c.partition:
		return fmt.Errorf("other records of client %q are in partition %d", clientID, c.partition)
	}
	return nil
}

// client returns what is known of a client, empty if nothing is.
func (h *history) client(clientID string) *clientHistory {
	if c := h.clients[string(eventlog.ClientKey(cluster, clientID))]; c != nil {
		return c
	}
	return &clientHistory{}
}

// facts returns a client's facts of a kind, the first copy of each.
func (h *history) facts(clientID string, kind presence.Kind) []presence.Fact {
	var facts []presence.Fact
	seen := map[string]bool{}
	for _, f := range h.client(clientID).facts {
		if f.Kind == kind && !seen[f.ID] {
			seen[f.ID] = true
			facts = append(facts, f.Fact)
		}
	}
	return facts
}

// transitions returns a client's transitions without repetitions.
func (h *history) transitions(clientID string) []stateRecord {
	var list []stateRecord
	for _, s := range h.client(clientID).states {
		if s.Transition && (len(list) == 0 || s.version().after(list[len(list)-1].version())) {
			list = append(list, s)
		}
	}
	return list
}

// agrees checks a client's records, and that the last transition is the answer.
func (h *history) agrees(answer *presencev1.Client) error {
	id := answer.GetClientId()
	if err := h.check(id); err != nil {
		return err
	}
	list := h.transitions(id)
	if len(list) == 0 {
		return fmt.Errorf("client %q: no transition is published, the answer is %s", id, answer.GetStatus())
	}
	last := list[len(list)-1]
	told := version{answer.GetLastTransition().GetEventOffset(), answer.GetLastTransition().GetNodeEventOffset()}
	if last.Status.String() != answer.GetStatus() || last.version() != told || last.Node != answer.GetConnection().GetNode() ||
		last.PreviousStatus.String() != answer.GetLastTransition().GetPreviousStatus() {
		return fmt.Errorf("client %q: the last transition is %s, the answer %v", id, &last, answer)
	}
	return nil
}

// check checks what is promised of a client's records:
//
//   - copies of a fact are equal but for when they were received, and for what one does not know;
//   - states come in version order; what comes again, after a crash of its publisher, has the same version and the same bytes;
//   - each transition begins where the one before it ended, and changes something;
//   - none is invented: each is what the fold makes of the facts up to its version;
//   - none is lost: between two of them, and after the last, no fact changes the verdict.
func (h *history) check(clientID string) error {
	c := h.client(clientID)
	if err := errors.Join(c.checkCopies(), c.checkOrder(), h.checkChain(clientID), h.checkFold(clientID)); err != nil {
		return fmt.Errorf("client %q: %w\n%s", clientID, err, c)
	}
	return nil
}

func (c *clientHistory) checkCopies() error {
	first := map[string]presence.Fact{}
	for _, f := range c.facts {
		before, ok := first[f.ID]
		if !ok {
			first[f.ID] = f.Fact
		} else if !f.CopyOf(&before) {
			return fmt.Errorf("two facts have the ID %s: %+v and %+v", f.ID, before, f.Fact)
		}
	}
	return nil
}

func (c *clientHistory) checkOrder() error {
	byVersion := map[version][]byte{}
	latest := version{-1, -1}
	for i := range c.states {
		s := &c.states[i]
		before, ok := byVersion[s.version()]
		switch {
		case ok && !bytes.Equal(before, s.value):
			return fmt.Errorf("two states have the version %v: %s and %s", s.version(), before, s.value)
		case ok:
		case !s.version().after(latest):
			return fmt.Errorf("a state of version %v comes after %v: %s", s.version(), latest, s)
		default:
			byVersion[s.version()], latest = s.value, s.version()
		}
	}
	return nil
}

func (h *history) checkChain(clientID string) error {
	list := h.transitions(clientID)
	for i := 1; i < len(list); i++ {
		a, b := &list[i-1], &list[i]
		if b.PreviousStatus != a.Status {
			return fmt.Errorf("a transition is missing between %s and %s", a, b)
		}
		if a.Status == b.Status && a.Node == b.Node && a.Connection == b.Connection {
			return fmt.Errorf("the transition changes nothing: %s and %s", a, b)
		}
	}
	return nil
}

// verdictAt folds a client's facts below an offset, with the nodes' facts up to another.
func (h *history) verdictAt(c *clientHistory, belowEvent, node int64) presence.Verdict {
	var state presence.State
	for i := range c.facts {
		if f := &c.facts[i]; f.offset < belowEvent {
			state.Apply(&f.Fact)
		}
	}
	var table presence.Cluster
	for i := range h.nodes {
		if n := &h.nodes[i]; n.offset <= node && n.Cluster == cluster {
			table.Apply(&n.NodeFact)
		}
	}
	return presence.Status(&state, &table, presence.DefaultAllowanceMS)
}

// is reports whether a verdict is what a transition said.
func (s *stateRecord) is(v *presence.Verdict) bool {
	key := ""
	if v.Conn != nil {
		key = v.Conn.Key
	}
	return s.Status == v.Status && s.Node == v.Node && s.Connection == key
}

func (h *history) checkFold(clientID string) error {
	c := h.client(clientID)
	list := h.transitions(clientID)
	for i := range list {
		s := &list[i]
		if v := h.verdictAt(c, s.EventOffset+1, s.NodeEventOffset); !s.is(&v) || s.StatusReason != v.Reason {
			return fmt.Errorf("the fold makes %s (%s) of what %s says it is from", v.Status, v.Reason, s)
		}
		until, untilNode := int64(1)<<62, h.lastNode()
		if i+1 < len(list) {
			until, untilNode = list[i+1].EventOffset, list[i+1].NodeEventOffset
		}
		for _, f := range c.facts {
			if f.offset <= s.EventOffset || f.offset >= until {
				continue
			}
			// Which of the nodes' facts were known then is between the two versions.
			before, after := h.verdictAt(c, f.offset+1, s.NodeEventOffset), h.verdictAt(c, f.offset+1, untilNode)
			if !s.is(&before) && !s.is(&after) {
				return fmt.Errorf("no transition was published for the fact at offset %d, which makes the client %s (%s)", f.offset, after.Status, after.Reason)
			}
		}
	}
	if len(list) == 0 && len(c.facts) > 0 {
		if v := h.verdictAt(c, 1<<62, h.lastNode()); v.Status != presence.Offline {
			return fmt.Errorf("no transition was published, and the facts make the client %s (%s)", v.Status, v.Reason)
		}
	}
	return nil
}

func (h *history) lastNode() int64 {
	if len(h.nodes) == 0 {
		return -1
	}
	return h.nodes[len(h.nodes)-1].offset
}

// String tells a client's history, for a failed test.
func (c *clientHistory) String() string {
	var b bytes.Buffer
	for _, f := range c.facts {
		fmt.Fprintf(&b, "  fact %d: %s\n", f.offset, eventlog.AppendFactJSON(nil, &f.Fact))
	}
	for i := range c.states {
		fmt.Fprintf(&b, "  state: %s\n", &c.states[i])
	}
	return b.String()
}

func (s *stateRecord) String() string {
	what := "transition"
	if !s.Transition {
		what = "state"
	}
	return fmt.Sprintf("%s %d.%d from %s to %s (%s) of connection %q at %d %s", what, s.EventOffset, s.NodeEventOffset,
		cmp.Or(s.PreviousStatus.String(), "nothing"), s.Status, s.StatusReason, s.Connection, s.ConnectedAtMS, s.Reason)
}
