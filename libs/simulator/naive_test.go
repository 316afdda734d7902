package simulator

import "github.com/mqtt-presence/presence/libs/presence"

// naive are the two folds that are usually written: the last event to arrive wins; the last event by its own time wins. They keep one event
// a client, as a table that is updated by each message does.
type naive struct {
	arrived, latest bool
	latestMS        int64
}

func foldNaively(h *History) []naive {
	folds := make([]naive, len(h.Clients))
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		if !d.IsFact || d.Fact.Kind != presence.Opened && d.Fact.Kind != presence.Closed {
			continue
		}
		n := &folds[d.Client]
		online, atMS := d.Fact.Kind == presence.Opened, d.Fact.OpenedMS()
		if !online {
			atMS = d.Fact.ClosedMS()
		}
		n.arrived = online
		if atMS >= n.latestMS {
			n.latest, n.latestMS = online, atMS
		}
	}
	return folds
}
