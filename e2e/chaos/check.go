package chaos

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// maxShown is how many errors of one check are shown.
const maxShown = 5

// first joins the first of many errors.
func first(errs []error) error {
	if len(errs) <= maxShown {
		return errors.Join(errs...)
	}
	return fmt.Errorf("%d errors, the first of them: %w", len(errs), errors.Join(errs[:maxShown]...))
}

// Check checks all that doc.go says of the records; nil if it is so.
func (l *Ledger) Check() error {
	errs := append(l.broken[:len(l.broken):len(l.broken)], l.checkCheckpoints()...)
	if n := len(l.deadLetters); n > 0 {
		errs = append(errs, fmt.Errorf("%d dead letters, the first: %+v", n, l.deadLetters[0]))
	}
	for _, id := range l.Clients() {
		if err := l.CheckClient(id); err != nil {
			errs = append(errs, err)
		}
	}
	return first(errs)
}

// CheckClient checks what Check does of one client's records.
func (l *Ledger) CheckClient(clientID string) error {
	c := l.Client(clientID)
	list, err := c.inOrder()
	if err = cmp.Or(first(c.misplaced), err, c.CheckCopies(), checkChain(list), l.checkFold(c, list)); err != nil {
		return fmt.Errorf("client %q: %w\n%s", clientID, err, c)
	}
	return nil
}

// CheckCopies wants copies of a fact to be equal but for when they were received and for what one of them does not know.
func (c *Client) CheckCopies() error {
	seen := make(map[string]*presence.Fact, len(c.Facts))
	for i := range c.Facts {
		f := &c.Facts[i].Fact
		before := seen[f.ID]
		if before == nil {
			seen[f.ID] = f
			continue
		}
		if !f.CopyOf(before) {
			return fmt.Errorf("two facts have the ID %s: %+v and %+v", f.ID, *before, *f)
		}
	}
	return nil
}

// inOrder returns the states without repetitions, and wants versions that ascend and repetitions with equal bytes.
func (c *Client) inOrder() ([]*State, error) {
	values := make(map[version][]byte, len(c.states))
	var list []*State
	for i := range c.states {
		s := &c.states[i]
		before, ok := values[s.version()]
		switch {
		case ok && !bytes.Equal(before, s.value):
			return list, fmt.Errorf("two states have the version %v: %s and %s", s.version(), before, s.value)
		case ok:
		case len(list) > 0 && !s.version().after(list[len(list)-1].version()):
			return list, fmt.Errorf("a state of version %v comes after %v", s.version(), list[len(list)-1].version())
		default:
			values[s.version()] = s.value
			list = append(list, s)
		}
	}
	return list, nil
}

func checkChain(list []*State) error {
	var a *State
	for _, b := range list {
		if !b.Transition {
			continue
		}
		if a != nil && b.PreviousStatus != a.Status {
			return fmt.Errorf("a transition is missing between %s and %s", a, b)
		}
		if a != nil && a.Status == b.Status && a.Node == b.Node && a.Connection == b.Connection {
			return fmt.Errorf("the transition changes nothing: %s and %s", a, b)
		}
		a = b
	}
	return nil
}

// fold applies a client's facts one after another.
type fold struct {
	l     *Ledger
	c     *Client
	state presence.State
	next  int // index of the first fact that is not applied
}

// to applies the facts below an offset. Offsets must not go back.
func (f *fold) to(below int64) {
	for f.next < len(f.c.Facts) && f.c.Facts[f.next].Offset < below {
		f.state.Apply(&f.c.Facts[f.next].Fact)
		f.next++
	}
}

// verdict returns what the facts applied and the node facts below an offset make.
func (f *fold) verdict(belowNode int64) presence.Verdict {
	return presence.Status(&f.state, f.l.tableAt(belowNode), f.l.AllowanceMS)
}

// is reports whether a verdict is what a transition said.
func (s *State) is(v *presence.Verdict) bool {
	key := ""
	if v.Conn != nil {
		key = v.Conn.Key
	}
	return s.Status == v.Status && s.Node == v.Node && s.Connection == key
}

func (l *Ledger) checkFold(c *Client, list []*State) error {
	f := fold{l: l, c: c}
	var last *State // transition
	for _, s := range list {
		if err := f.unchanged(last, s.EventOffset, s.NodeEventOffset); err != nil {
			return err
		}
		f.to(s.EventOffset + 1)
		if !bytes.Equal(f.state.Append(nil), s.State) {
			return fmt.Errorf("the folded state of %s is not what the facts make", s)
		}
		if !s.Transition {
			continue
		}
		if v := f.verdict(s.NodeEventOffset + 1); !s.is(&v) || s.StatusReason != v.Reason || s.Belief != v.Belief {
			return fmt.Errorf("the fold makes %s (%s) of what %s says it is from", v.Status, v.Reason, s)
		}
		last = s
	}
	if err := f.unchanged(last, end, end); err != nil {
		return err
	}
	v := f.verdict(end)
	if last == nil && v.Status != presence.Offline || last != nil && !last.is(&v) {
		return fmt.Errorf("the facts make the client %s (%s) in the end, and no transition says so", v.Status, v.Reason)
	}
	return nil
}

// unchanged wants that no fact below an offset changes what the last transition said. Which of the nodes' facts were known then is between the two
// versions.
func (f *fold) unchanged(last *State, until, untilNode int64) error {
	said := &State{ClientState: eventlog.ClientState{Status: presence.Offline, NodeEventOffset: -1}}
	if last != nil {
		said = last
	}
	for f.next < len(f.c.Facts) && f.c.Facts[f.next].Offset < until {
		offset := f.c.Facts[f.next].Offset
		f.to(offset + 1)
		if !f.possible(said, untilNode) {
			v := f.verdict(untilNode)
			return fmt.Errorf("no transition was published for the fact at offset %d, which makes the client %s (%s) after %s", offset, v.Status, v.Reason, said)
		}
	}
	return nil
}

// possible reports whether some table of nodes from a transition's on makes what it said.
func (f *fold) possible(said *State, untilNode int64) bool {
	if v := f.verdict(said.NodeEventOffset + 1); said.is(&v) {
		return true
	}
	if v := f.verdict(untilNode); said.is(&v) {
		return true
	}
	for i := range f.l.nodes {
		n := &f.l.nodes[i]
		if !n.affects || n.offset <= said.NodeEventOffset || n.offset >= untilNode {
			continue
		}
		if v := presence.Status(&f.state, n.table, f.l.AllowanceMS); said.is(&v) {
			return true
		}
	}
	return false
}

// checkCheckpoints wants that what a checkpoint covers was published before it. A change of nodes may touch a client later: it has a newer version of
// the nodes.
func (l *Ledger) checkCheckpoints() []error {
	var errs []error
	for partition, list := range l.checkpoints {
		for i := 1; i < len(list); i++ {
			if list[i].event < list[i-1].event {
				errs = append(errs, fmt.Errorf("partition %d: the checkpoint at offset %d is of offset %d, the one before it of %d",
					partition, list[i].offset, list[i].event, list[i-1].event))
			}
		}
	}
	for _, c := range l.clients {
		published := make(map[version]bool, len(c.states))
		list := l.checkpoints[c.partition]
		passed := 0
		for i := range c.states {
			s := &c.states[i]
			for passed < len(list) && list[passed].offset < s.offset {
				passed++
			}
			if passed > 0 && !published[s.version()] {
				if at := list[passed-1]; s.EventOffset < at.event && s.NodeEventOffset <= at.node {
					errs = append(errs, fmt.Errorf("client %q: %s comes for the first time at offset %d, after the checkpoint at %d of version %v", c.ID, s, s.offset, at.offset, at.version))
				}
			}
			published[s.version()] = true
		}
	}
	return errs
}

// String tells a client's history.
func (c *Client) String() string {
	const most = 60 // lines
	var lines []string
	for i := range c.Facts {
		lines = append(lines, fmt.Sprintf("  fact %d: %s", c.Facts[i].Offset, eventlog.AppendFactJSON(nil, &c.Facts[i].Fact)))
	}
	for i := range c.states {
		lines = append(lines, fmt.Sprintf("  at %d: %s", c.states[i].offset, &c.states[i]))
	}
	if len(lines) > most {
		lines = append(lines[:most/2:most/2], append([]string{"  ..."}, lines[len(lines)-most/2:]...)...)
	}
	return strings.Join(lines, "\n")
}

func (s *State) String() string {
	what := "transition"
	if !s.Transition {
		what = "state"
	}
	return fmt.Sprintf("%s %d.%d from %s to %s (%s) of connection %q at %d %s", what, s.EventOffset, s.NodeEventOffset,
		s.PreviousStatus, s.Status, s.StatusReason, s.Connection, s.ConnectedAtMS, s.Reason)
}
