package simulator

import (
	"slices"
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
)

// maxStateBytes bounds the state of a client, per node that it was seen on (L8): one connection and its end, the Closed that may concern a
// later one, and for the client the answers of queries.
const maxStateBytes = 4_096

// hostile checks a history of one client with thousands of events: the state stays small, and no answer is wrong.
func hostile(t *testing.T, p *Plan) {
	t.Helper()
	r := fold(Run(p))
	for _, problem := range r.check() {
		small := Shrink(p, func(q *Plan) bool {
			return slices.ContainsFunc(fold(Run(q)).check(), func(other string) bool { return kind(other) == kind(problem) })
		})
		t.Fatalf("%s\n%s", problem, Run(small))
	}
	if n, limit := len(r.states[0].Append(nil)), maxStateBytes*len(p.Nodes); n > limit {
		t.Errorf("after %d facts the state has %d bytes, more than %d", len(r.facts[0]), n, limit)
	}
	for i := range r.states[0].Nodes {
		if n := len(r.states[0].Nodes[i].Closes); n > presence.MaxCloses {
			t.Errorf("node %s keeps %d Closed, more than %d", r.states[0].Nodes[i].Node, n, presence.MaxCloses)
		}
	}
}

// TestHostileClient_H8 reconnects thousands of times within seconds, most of them in one stamp.
func TestHostileClient_H8(t *testing.T) {
	for _, setup := range Setups() {
		t.Run(setup.Name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(max(4/slowdown, 1)) {
				p := NewPlan(&setup, Exact, seed+1)
				p.Clients, p.Steps = 1, nil
				d := dice{seed + 99}
				for range 3_000 / slowdown {
					step := Step{Action: Connect, Node: d.n(len(p.Nodes)), Clean: d.in(50), Keep: d.in(50), Web: !setup.TCPOnly && d.in(30), Seed: d.next() | 1}
					if d.in(30) {
						step.WaitMS = d.ms(0, 3)
					}
					if p.Nodes[0].Key == SequenceKey {
						// Its keys come again after 256 connections: not while the first one's will is under way.
						step.WaitMS += 30
					}
					if d.in(30) {
						step.Action, step.Cause = End, newCause(&d, setup.Plain)
					}
					p.Steps = append(p.Steps, step)
				}
				hostile(t, p)
			}
		})
	}
}

// TestHostileStranger_H4 fails thousands of times to connect with the ID of a client that is connected all the time, or has left.
func TestHostileStranger_H4(t *testing.T) {
	for _, setup := range Setups() {
		if !setup.Strangers {
			continue
		}
		t.Run(setup.Name, func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(4) {
				p := NewPlan(&setup, Exact, seed+1)
				p.Clients = 1
				d := dice{seed + 7}
				p.Steps = []Step{{Action: Connect, Seed: 1}}
				for i := range 3_000 / slowdown {
					if i == 1_500/slowdown && seed%2 == 1 {
						p.Steps = append(p.Steps, Step{Action: End, WaitMS: 5, Seed: 1})
					}
					p.Steps = append(p.Steps, Step{Action: Stranger, Node: d.n(len(p.Nodes)), WaitMS: d.ms(0, 5), Seed: d.next() | 1})
				}
				hostile(t, p)
			}
		})
	}
}
