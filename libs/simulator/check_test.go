package simulator

import (
	"bytes"
	"fmt"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
)

// run is a history, folded.
type run struct {
	h        *History
	cluster  presence.Cluster
	states   []presence.State
	facts    [][]presence.Fact // by client, in the order of arrival
	nodes    []presence.NodeFact
	verdicts []presence.Verdict
	gap      bool   // the feed has a gap that nothing has healed
	seen     []bool // a connection of the client was told of, and not forgotten
	asked    []bool // a query asked for the client
	problems []string
}

const allowanceMS = presence.DefaultAllowanceMS

// manyFacts about one client may fill a set of the state (L8).
const manyFacts = presence.MaxCloses

// fold applies a history in the order of arrival. The answer to a query is asserted if the status differs from it.
func fold(h *History) *run {
	r := &run{h: h, states: make([]presence.State, len(h.Clients)), facts: make([][]presence.Fact, len(h.Clients)), seen: make([]bool, len(h.Clients)),
		asked: make([]bool, len(h.Clients))}
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		switch {
		case d.IsNode:
			r.node(&d.Node)
		case d.IsFact:
			s := &r.states[d.Client]
			r.asked[d.Client] = r.asked[d.Client] || d.Query
			if d.Query && r.agrees(s, &d.Fact) {
				continue
			}
			outcome := s.Apply(&d.Fact)
			switch {
			case d.Fact.Kind == presence.Forgotten:
				r.seen[d.Client] = false
			case outcome != presence.TooOld && (d.Fact.Kind == presence.Opened || d.Fact.Online.Value):
				r.seen[d.Client] = true
			}
			r.facts[d.Client] = append(r.facts[d.Client], d.Fact)
		}
	}
	for i := range r.states {
		r.verdicts = append(r.verdicts, presence.Status(&r.states[i], &r.cluster, allowanceMS))
	}
	_, _, r.gap = r.cluster.FeedGap()
	return r
}

// restarted reports whether some node has started again.
func (h *History) restarted() bool {
	return slices.ContainsFunc(h.sim.nodes, func(n *node) bool { return n.gen > 1 })
}

// agrees reports whether the state says what the answer of a query says: the same status, and no connection without end but the one that
// the answer names, as far as it names one.
func (r *run) agrees(s *presence.State, f *presence.Fact) bool {
	v := presence.Status(s, &r.cluster, allowanceMS)
	if !f.Online.Value || v.Status != presence.Online {
		return v.Status == presence.Offline && !f.Online.Value
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		named := (f.Node == "" || f.Node == n.Node) && (f.Connection == "" || f.Connection == n.Conn.Key)
		if n.Known && !n.Ended && !named {
			return false
		}
	}
	return (f.Node == "" || f.Node == v.Node) && (f.Connection == "" || v.Conn != nil && f.Connection == v.Conn.Key)
}

// node applies a node fact; one about the bridge's own subscription must turn nobody offline (L7).
func (r *run) node(f *presence.NodeFact) {
	r.nodes = append(r.nodes, *f)
	if f.Kind != presence.Feed || r.h.Plan.Mode != Lossy {
		r.cluster.Apply(f)
		return
	}
	before := make([]presence.Verdict, len(r.states))
	for i := range r.states {
		before[i] = presence.Status(&r.states[i], &r.cluster, allowanceMS)
	}
	r.cluster.Apply(f)
	for i := range r.states {
		after := presence.Status(&r.states[i], &r.cluster, allowanceMS)
		if after.Belief != before[i].Belief || before[i].Status == presence.Online && after.Status != presence.Online {
			r.problem("L7: c%d was %s, and is %s after a Feed fact alone", i, before[i].Status, after.Status)
		}
	}
}

func (r *run) problem(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// check checks the laws that the history's mode promises.
func (r *run) check() []string {
	d := dice{r.h.Plan.Seed ^ 0xabcdef | 1}
	r.converges(&d)
	r.restores(&d)
	for i := range r.h.Clients {
		if !r.h.Clients[i].Mourned {
			r.right(i)
		}
	}
	r.settles(&d)
	r.floors(&d)
	return r.problems
}

// right checks the answer for a client: if it is confident it is the truth (L4), and it is confident where the setup promises it (L2).
func (r *run) right(i int) {
	c, v, e := &r.h.Clients[i], &r.verdicts[i], expectations[r.h.Plan.Setup.Name]
	online := v.Status == presence.Online
	if c.Outlived && (r.asked[i] || r.h.Plan.Late || !r.h.Plan.tellsTakeovers()) {
		// L2: no partition in progress. An older connection that outlives a newer one is lost to a dialect that does not tell of takeovers, to an
		// answer that named the newer one, and to a bridge that did not see it open.
		return
	}
	if c.Collided {
		// H8: two connections with one key are one to the broker's own events. What the answer is worth is counted.
		return
	}
	if v.Status != presence.Unknown && !r.gap && online != c.Online {
		r.problem("c%d is %s (%s), the truth is %s", i, v.Status, v.Reason, truth(c.Online))
		return
	}
	if !e.exact || r.h.Plan.Mode != Exact && r.h.Plan.Mode != Clocks || !r.seen[i] || r.h.Plan.Mode == Clocks && !e.exactClocks {
		return
	}
	// L2 holds as long as no set is full (L8), and what was never seen is known to be offline only where the feed is complete (L7).
	full := v.Reason == presence.HistoryPruned && (r.h.Plan.Mode == Clocks || len(r.facts[i]) > manyFacts)
	// Nor is it known of which generation a connection is whose node was started and set back.
	generation := v.Reason == presence.OrderUndecided && r.h.Plan.Mode == Clocks && r.h.restarted()
	if v.Status == presence.Unknown && !full && !generation && !(v.Reason == presence.NeverSeen && !r.cluster.FeedComplete()) {
		r.problem("L2: c%d is unknown (%s), the truth is %s", i, v.Reason, truth(c.Online))
	}
	if v.Status == presence.Online && (v.Conn == nil || v.Conn.Key != c.Key || v.Node != c.Node) {
		r.problem("L2: c%d is online by another connection than %s on %s", i, c.Key, c.Node)
	}
}

// tellsTakeovers reports whether every node's dialect always tells of a takeover.
func (p *Plan) tellsTakeovers() bool {
	for _, h := range p.Nodes {
		if h.Dialect != presence.DialectEMQX && h.Dialect != presence.DialectRMQTT {
			return false
		}
	}
	return true
}

func truth(online bool) presence.Presence {
	if online {
		return presence.Online
	}
	return presence.Offline
}

// converges checks L1: any order, any duplicates, any batches.
func (r *run) converges(d *dice) {
	var buf []byte
	shuffled := make([]presence.State, len(r.states))
	for i := range r.states {
		facts := append([]presence.Fact(nil), r.facts[i]...)
		for range len(facts) / 4 {
			facts = append(facts, facts[d.n(len(facts))])
		}
		for k := len(facts) - 1; k > 0; k-- {
			j := d.n(k + 1)
			facts[k], facts[j] = facts[j], facts[k]
		}
		s := &shuffled[i]
		for k := range facts {
			s.Apply(&facts[k])
			if d.in(10) {
				buf = s.Append(buf[:0])
				restored, err := presence.DecodeState(buf)
				if err != nil {
					r.problem("L1: the state of c%d cannot be decoded: %v", i, err)
					return
				}
				*s = restored
			}
		}
		if want, got := r.states[i].Append(nil), s.Append(nil); !bytes.Equal(want, got) {
			r.problem("L1: the state of c%d depends on the order of its facts:\n%s\n%s", i, show(&r.states[i]), show(s))
		}
	}
	var cluster presence.Cluster
	for k := len(r.nodes) - 1; k > 0; k-- {
		j := d.n(k + 1)
		r.nodes[k], r.nodes[j] = r.nodes[j], r.nodes[k]
	}
	for k := range r.nodes {
		cluster.Apply(&r.nodes[k])
		if d.in(20) {
			cluster.Apply(&r.nodes[d.n(k+1)])
		}
	}
	for i := range r.states {
		if v := presence.Status(&r.states[i], &cluster, allowanceMS); v.Status != r.verdicts[i].Status || v.Reason != r.verdicts[i].Reason || v.Belief != r.verdicts[i].Belief {
			r.problem("L1: c%d is %s (%s), and %s (%s) after another order of node facts", i, r.verdicts[i].Status, r.verdicts[i].Reason, v.Status, v.Reason)
		}
	}
	if _, _, gap := cluster.FeedGap(); gap != r.gap || cluster.FeedComplete() != r.cluster.FeedComplete() {
		r.problem("L1: the feed depends on the order of node facts")
	}
}

// restores checks that a fold that goes on from its record ends as one that never stopped.
func (r *run) restores(d *dice) {
	for i := range r.states {
		var s presence.State
		stop := d.n(len(r.facts[i]) + 1)
		for k := range r.facts[i] {
			if k == stop {
				restored, err := presence.DecodeState(s.Append(nil))
				if err != nil {
					r.problem("the state of c%d cannot be restored: %v", i, err)
					return
				}
				s = restored
			}
			s.Apply(&r.facts[i][k])
		}
		if !bytes.Equal(s.Append(nil), r.states[i].Append(nil)) {
			r.problem("the state of c%d differs after a restore before fact %d", i, stop)
		}
	}
}

// settles checks L5: an answer whose query began less than the settle time after the Opened came does not count against it.
func (r *run) settles(d *dice) {
	for i := range r.states {
		v := &r.verdicts[i]
		if v.Status != presence.Online || v.Reason != presence.Connected || v.Conn == nil {
			continue
		}
		s, err := presence.DecodeState(r.states[i].Append(nil))
		if err != nil {
			continue
		}
		at := v.Conn.ReceivedMS + d.ms(0, presence.SettleMS-1)
		f := presence.Fact{Kind: presence.Observed, Cluster: clusterName, ClientID: r.h.Clients[i].ID, Dialect: v.Conn.Dialect, Source: "check",
			Online: presence.Some(false), QueryStartMS: at, QueryEndMS: at + 20, TimeMS: at + 20, ReceivedMS: at + 20}
		f.SetID()
		s.Apply(&f)
		// It may count against an older connection on another node, and so make the order matter where takeovers are not told of (L3).
		w := presence.Status(&s, &r.cluster, allowanceMS)
		if w.Status == presence.Offline || w.Status == presence.Unknown && expectations[r.h.Plan.Setup.Name].exact {
			r.problem("L5: c%d turns %s (%s) by an answer %d ms after its Opened", i, w.Status, w.Reason, at-v.Conn.ReceivedMS)
		}
	}
}

// floors checks L6: a new generation of one node ends every connection of that node, and of no other.
func (r *run) floors(d *dice) {
	if r.h.Plan.Nodes[0].Beat < UptimeBeat || r.h.Plan.Mode != Exact {
		return
	}
	n := r.h.sim.nodes[d.n(len(r.h.sim.nodes))]
	at := r.h.EndMS + 10_000
	f := presence.NodeFact{Kind: presence.NodeStarted, Cluster: clusterName, Node: n.name, Dialect: n.habits.Dialect, TimeMS: n.clock(at), ReceivedMS: at,
		UptimeMS: presence.Some(int64(0)), StartedMS: n.clock(at), StartedReceivedMS: at}
	r.cluster.Apply(&f)
	for i := range r.states {
		c, w := &r.h.Clients[i], presence.Status(&r.states[i], &r.cluster, allowanceMS)
		if c.Collided {
			continue
		}
		if c.Online && c.Node == n.name && w.Status == presence.Online {
			r.problem("L6: c%d is online (%s) after its node %s has started anew", i, w.Reason, n.name)
		}
		// Which of two connections within the allowance is the older one may be undecided, or decided now, where no takeover is told of (L3).
		if w.Status != presence.Offline && !expectations[r.h.Plan.Setup.Name].exact {
			continue
		}
		if c.Online && c.Node != n.name && (w.Status != r.verdicts[i].Status || w.Belief != r.verdicts[i].Belief) {
			r.problem("L6: c%d on %s turns %s (%s) as %s starts anew", i, c.Node, w.Status, w.Reason, n.name)
		}
	}
}

func show(s *presence.State) string { return fmt.Sprintf("%+v", *s) }
