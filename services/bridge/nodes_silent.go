package bridge

import (
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
)

const (
	// silentAfter is how many heartbeats must stay away until a node is silent.
	silentAfter = 3
	// lateMS is how late the last of them may be, of a broker that is busy.
	lateMS = 5_000
	// tickGapMS is how far apart two ticks may be while the bridge runs as it should.
	tickGapMS = 5_000
)

// heartbeatMS is the time between two heartbeats of a node, as the broker of a dialect or profile is shipped; 0 if it has none.
func heartbeatMS(name string) int64 {
	for _, d := range dialects {
		if d.name == name || slices.Contains(d.profiles, name) {
			return d.heartbeat.Milliseconds()
		}
	}
	return 0
}

// every notes how long after the one before a heartbeat was sent, or received. Two that agree, one after the other, are the interval: heartbeats
// get lost, and a silence is none.
func (m *node) every(ms int64) {
	if ms > 0 && abs(ms-m.gapMS) <= ms/5 {
		m.everyMS = ms
	}
	m.gapMS = ms
}

// wake notes if the bridge stood still until nowMS, as its host slept, or its clock was set: ticks come more often, and never before the one before.
func (n *nodes) wake(nowMS int64) {
	if n.tickedMS == 0 || nowMS-n.tickedMS <= tickGapMS && n.tickedMS-nowMS <= stepMS {
		return
	}
	if nowMS < n.tickedMS {
		// What lies ahead was received by now.
		n.queuedSinceMS, n.queuedUntilMS, n.heardMS = min(n.queuedSinceMS, nowMS), min(n.queuedUntilMS, nowMS+queueMS), min(n.heardMS, nowMS)
	}
	n.tickedMS, n.wokeMS = nowMS, nowMS
	if n.upSinceMS != 0 {
		n.upSinceMS = nowMS
	}
	for _, m := range n.byName {
		m.receivedMS, m.heardMS, m.toldMS = min(m.receivedMS, nowMS), min(m.heardMS, nowMS), min(m.toldMS, nowMS)
		m.uptime.valid, m.datetime.valid, m.burstUntilMS = false, false, 0
		m.clock.leapt()
	}
}

// silences returns a fact for each node that has been silent for longer than its heartbeats allow, to this bridge and to all others, once per silence. Only what the bridge would
// have heard counts: not the time before its subscription, nor one in which the bridge itself stood still, or its clock was set forward (L7). A
// broker whose heartbeats are configured to be rarer than usual is given three of those that were seen.
func (n *nodes) silences(nowMS int64) []presence.NodeFact {
	n.wake(nowMS)
	n.tickedMS = nowMS
	if !n.loaded || n.upSinceMS == 0 {
		return nil
	}
	var facts []presence.NodeFact
	for _, name := range n.names() {
		m := n.byName[name]
		every := heartbeatMS(m.dialect)
		if every == 0 || m.gone || m.silent || m.heardMS == 0 {
			continue
		}
		if nowMS-max(m.heardMS, m.toldMS, n.upSinceMS) > silentAfter*max(every, m.everyMS)+lateMS {
			m.silent = true
			facts = append(facts, n.fact(presence.NodeSilent, name, m.dialect, 0, nowMS))
		}
	}
	return facts
}

// told takes a fact of a node that the log has. A node that another bridge hears is not silent, whatever lies between it and this one. What it says
// besides does not count here: heartbeats of two sessions come in no order, and a generation is told by the order of one's own.
func (n *nodes) told(f *presence.NodeFact, nowMS int64) {
	m := n.byName[f.Node]
	if m == nil || f.Kind != presence.NodeAlive && f.Kind != presence.NodeStarted {
		return
	}
	m.toldMS = max(m.toldMS, min(f.ReceivedMS, nowMS))
	if m.silent && m.latest[presence.NodeSilent].ReceivedMS < f.ReceivedMS {
		m.silent = false
	}
}
