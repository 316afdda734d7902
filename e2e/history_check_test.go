package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

const fabricated = "fabricated"

// fabricate returns the history of a client that was online, taken over and offline: four facts, each with its transition.
func fabricate() *history {
	h := &history{clients: map[string]*clientHistory{}}
	c := &clientHistory{}
	h.clients[string(eventlog.ClientKey(cluster, fabricated))] = c
	fact := func(kind presence.Kind, ms int64, order uint32, reason presence.Reason) {
		f := factRecord{offset: int64(len(c.facts))}
		f.Fact = presence.Fact{
			Kind: kind, Cluster: cluster, ClientID: fabricated, Node: "m", Dialect: presence.DialectMosquitto20, TimeMS: ms, Order: order,
			ReceivedMS: ms + 5, Reason: reason, Transport: "tcp",
		}
		f.SetID()
		c.facts = append(c.facts, f)
	}
	fact(presence.Opened, 1000, 1, presence.ReasonUnknown)
	fact(presence.Closed, 5000, 1, presence.ReasonTakenOver)
	fact(presence.Opened, 5000, 2, presence.ReasonUnknown)
	fact(presence.Closed, 7000, 1, presence.ReasonNormal)
	previous := presence.Offline
	for i := range c.facts {
		v := h.verdictAt(c, int64(i)+1, -1)
		s := stateRecord{ClientState: eventlog.ClientState{
			Transition: true, Cluster: cluster, ClientID: fabricated, Status: v.Status, PreviousStatus: previous, Belief: v.Belief,
			StatusReason: v.Reason, Node: v.Node, EventOffset: int64(i), NodeEventOffset: -1,
		}}
		s.value = eventlog.AppendClientStateJSON(nil, &s.ClientState)
		c.states = append(c.states, s)
		previous = v.Status
	}
	return h
}

// TestHistoryCheck breaks each promise that history.check is there for.
func TestHistoryCheck(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(c *clientHistory)
		want  string // of the error; empty: none
	}{
		{"nothing", func(*clientHistory) {}, ""},
		{"fact copied", func(c *clientHistory) {
			f := c.facts[3]
			f.offset, f.ReceivedMS = 4, f.ReceivedMS+100
			c.facts = append(c.facts, f)
		}, ""},
		{"fact copied by a bridge that knows less", func(c *clientHistory) {
			f := c.facts[2]
			f.offset, f.Transport = 4, ""
			c.facts = append(c.facts, f)
		}, ""},
		{"publisher crashed", func(c *clientHistory) { c.states = append(c.states[:3:3], c.states[1:]...) }, ""},
		{"fact copied with other content", func(c *clientHistory) {
			f := c.facts[3]
			f.offset, f.Transport = 4, "websocket"
			c.facts = append(c.facts, f)
		}, "two facts have the ID"},
		{"published again with other bytes", func(c *clientHistory) {
			s := c.states[2]
			s.value = append(slices.Clone(s.value), ' ')
			c.states = append(c.states, s)
		}, "two states have the version"},
		{"out of order", func(c *clientHistory) { c.states[1], c.states[2] = c.states[2], c.states[1] }, "comes after"},
		{"one lost", func(c *clientHistory) { c.states = slices.Delete(c.states, 1, 2) }, "a transition is missing between"},
		{"two lost", func(c *clientHistory) { c.states = slices.Delete(c.states, 1, 3) }, "no transition was published for the fact at offset 1"},
		{"last lost", func(c *clientHistory) { c.states = c.states[:3] }, "no transition was published for the fact at offset 3"},
		{"all lost", func(c *clientHistory) { c.facts, c.states = c.facts[:1], nil }, "no transition was published"},
		{"one invented", func(c *clientHistory) {
			s := c.states[3]
			s.EventOffset, s.PreviousStatus, s.Status = 4, presence.Offline, presence.Online
			c.states = append(c.states, s)
		}, "the fold makes offline (closed)"},
		{"nothing changed", func(c *clientHistory) {
			s := c.states[3]
			s.EventOffset, s.PreviousStatus = 4, presence.Offline
			c.states = append(c.states, s)
		}, "the transition changes nothing"},
		{"wrong reason", func(c *clientHistory) { c.states[3].StatusReason = presence.BrokerObserved }, "the fold makes offline (closed)"},
		{"fact lost", func(c *clientHistory) { c.facts = slices.Delete(c.facts, 2, 3) }, "the fold makes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := fabricate()
			tc.spoil(h.client(fabricated))
			err := h.check(fabricated)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("check says %v, want %q", err, tc.want)
			}
		})
	}
}
