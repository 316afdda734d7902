package chaos

import (
	"maps"
	"slices"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// Clients returns the IDs of all clients of which there is a record, ascending.
func (l *Ledger) Clients() []string { return slices.Sorted(maps.Keys(l.clients)) }

// Client returns what is known of a client, nothing if there is no record of it.
func (l *Ledger) Client(clientID string) *Client {
	if c := l.clients[clientID]; c != nil {
		return c
	}
	return &Client{ID: clientID, partition: eventlog.Partition(eventlog.ClientKey(l.Cluster, clientID), l.Partitions)}
}

// FactsOf returns a client's facts of a kind, the first copy of each.
func (c *Client) FactsOf(kind presence.Kind) []presence.Fact {
	var facts []presence.Fact
	seen := map[string]bool{}
	for i := range c.Facts {
		if f := &c.Facts[i].Fact; f.Kind == kind && !seen[f.ID] {
			seen[f.ID] = true
			facts = append(facts, *f)
		}
	}
	return facts
}

// Transitions returns a client's transitions without repetitions.
func (c *Client) Transitions() []State {
	var list []State
	for i := range c.states {
		if s := &c.states[i]; s.Transition && (len(list) == 0 || s.version().after(list[len(list)-1].version())) {
			list = append(list, *s)
		}
	}
	return list
}

// Table returns what all node facts make.
func (l *Ledger) Table() *presence.Cluster { return l.tableAt(end) }

// DeadLetters returns all dead letters, in their order.
func (l *Ledger) DeadLetters() []eventlog.DeadLetter { return l.deadLetters }
