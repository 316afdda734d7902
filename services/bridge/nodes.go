package bridge

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
)

const (
	// pairMS is how far apart an uptime and a datetime of one heartbeat may arrive. Two of a kind within it are a burst: heartbeats that
	// the broker kept while the bridge was away, which of them belong together is not known.
	pairMS = 1_000
	// queueMS is how long after a session was resumed what the broker kept for it may come, or after an event that it kept for as long;
	// maxQueueMS is how long at most: a node whose clock is behind always tells of old events.
	queueMS    = 2_000
	maxQueueMS = 60_000
	// sameBootMS is how far apart two readings of one boot instant may be, on the node's clock.
	sameBootMS = 250
)

// nodes turns what messages tell about the nodes of a cluster into node facts. Times are data: nothing here reads a clock. It is used by
// one goroutine at a time.
//
// A new generation of a node (L6) has begun if its uptime became smaller, or if the boot that it claims lies after its previous heartbeat,
// by the bridge's clock and, where the node tells it, by the node's clock too: a clock that is set changes one of them only. On one host both are
// set at once, by the first answer of a time server or by a sleep, in which no uptime grows; so that across a leap of the bridge's clock only the
// smaller uptime counts.
type nodes struct {
	cluster string
	byName  map[string]*node
	loaded  bool     // the log's node facts are known
	early   []signal // heartbeats from before; the latest of each node

	// heardMS is when the connection before was last heard: of a single node, the generation that answered it was still there.
	heardMS int64
	// Until queuedUntilMS a heartbeat may be one that the broker kept for the session, sent at any time from queuedSinceMS on.
	queuedSinceMS, queuedUntilMS int64
	resumedMS                    int64

	upSinceMS int64 // since when heartbeats would have been received, 0 if the subscription is down
	tickedMS  int64
	wokeMS    int64 // when the bridge's clock leapt last, 0: never
}

// node is what is known of one node.
type node struct {
	known      bool // it had a heartbeat or a start, now or in the log
	uptimeMS   int64
	receivedMS int64 // of the latest heartbeat, on the bridge's clock
	clockMS    int64 // of the latest heartbeat, on the node's clock; 0 if unknown
	gone       bool

	heardMS int64  // of the latest heartbeat of whichever kind, on the bridge's clock
	toldMS  int64  // of the latest heartbeat that any bridge has asserted
	dialect string // of it
	gapMS   int64  // between the latest two heartbeats
	everyMS int64  // their interval as it was seen, 0 if it was not
	silent  bool   // asserted, since the latest heartbeat

	clock steps // of the node's clock
	// latest are the facts of each kind that were asserted last, as the log has them.
	latest map[presence.NodeKind]presence.NodeFact

	uptime, datetime pending // halves of a heartbeat that have not met
	burstUntilMS     int64
}

type pending struct {
	signal     signal
	receivedMS int64
	valid      bool
}

func newNodes(cluster string) *nodes { return &nodes{cluster: cluster, byName: map[string]*node{}} }

func (n *nodes) node(name string) *node {
	if n.byName[name] == nil {
		n.byName[name] = &node{latest: map[presence.NodeKind]presence.NodeFact{}}
	}
	return n.byName[name]
}

// recall takes a node fact that is already in the log.
func (n *nodes) recall(f *presence.NodeFact) {
	m := n.node(f.Node)
	if f.ReceivedMS >= m.latest[f.Kind].ReceivedMS {
		m.latest[f.Kind] = *f
	}
	switch f.Kind {
	case presence.NodeAlive, presence.NodeStarted:
		m.known = true
		if f.ReceivedMS >= m.heardMS {
			m.heardMS, m.dialect = f.ReceivedMS, f.Dialect
		}
		if f.ReceivedMS > m.receivedMS {
			m.receivedMS, m.uptimeMS, m.clockMS = f.ReceivedMS, f.UptimeMS.Value, f.TimeMS
			if f.TimeMS == f.ReceivedMS {
				// The bridge's clock stands for a node's that is not known.
				m.clockMS = 0
			}
		}
	case presence.NodeGone, presence.NodeSilent, presence.Feed, presence.NodeUnknown:
	}
}

// interrupted is called when a connection has ended that was last heard at atMS.
func (n *nodes) interrupted(atMS int64) { n.heardMS, n.upSinceMS = atMS, 0 }

// subscribed is called at each SUBACK.
func (n *nodes) subscribed(atMS int64) { n.upSinceMS = atMS }

// resumed is called when a session is resumed whose connection was down from sinceMS to nowMS.
func (n *nodes) resumed(sinceMS, nowMS int64) {
	n.queuedSinceMS, n.queuedUntilMS, n.resumedMS = max(sinceMS, 1), nowMS+queueMS, nowMS
}

// event is called for each event of a client: while old ones come after a session was resumed, heartbeats may be old, too.
func (n *nodes) event(timeMS, receivedMS int64) {
	if timeMS > 0 && receivedMS-timeMS > queueMS && receivedMS < n.queuedUntilMS && receivedMS < n.resumedMS+maxQueueMS {
		n.queuedUntilMS = receivedMS + queueMS
	}
}

// load ends recalling and returns the facts of the heartbeats that came before.
func (n *nodes) load() []presence.NodeFact {
	n.loaded = true
	for _, m := range n.byName {
		m.recalled()
	}
	var facts []presence.NodeFact
	for i := range n.early {
		s := &n.early[i]
		facts = append(facts, n.heartbeat(s, s.receivedMS)...)
	}
	n.early = nil
	return n.assert(facts)
}

// recalled ends recalling of a node: of facts of two kinds the later counts.
func (m *node) recalled() {
	m.gone = m.latest[presence.NodeGone].ReceivedMS > m.heardMS
	m.silent = m.latest[presence.NodeSilent].ReceivedMS > m.heardMS
	seen := m.clock
	m.clock = steps{}
	for _, kind := range []presence.NodeKind{presence.NodeStarted, presence.NodeAlive} {
		if f, ok := m.latest[kind]; ok {
			m.clock.recall(&f)
		}
	}
	if seen.fromMS != 0 {
		m.clock.setBack(seen.fromMS, seen.toMS)
	}
}

// assert notes facts that are about to be asserted. Of one node the latest counts, by when it was received, and of its generations the one that began
// last: where the bridge's clock was set back, they come behind those before all the same.
func (n *nodes) assert(facts []presence.NodeFact) []presence.NodeFact {
	for i := range facts {
		f := &facts[i]
		latest := n.node(f.Node).latest
		var last int64
		for _, l := range latest {
			last = max(last, l.ReceivedMS)
		}
		moved := false
		if last-f.ReceivedMS > stepMS {
			f.ReceivedMS, moved = last+1, true
		}
		if began := latest[presence.NodeStarted].StartedReceivedMS; f.Kind == presence.NodeStarted && began-f.StartedReceivedMS > stepMS && moved {
			f.StartedReceivedMS = began + 1
		}
		latest[f.Kind] = *f
	}
	return facts
}

// asserted returns what the log has of all nodes: the latest fact of each kind.
func (n *nodes) asserted() []presence.NodeFact {
	var facts []presence.NodeFact
	for _, name := range n.names() {
		for _, kind := range []presence.NodeKind{presence.NodeStarted, presence.NodeAlive, presence.NodeGone, presence.NodeSilent} {
			if f, ok := n.byName[name].latest[kind]; ok {
				facts = append(facts, f)
			}
		}
	}
	return facts
}

func (n *nodes) names() []string { return slices.Sorted(maps.Keys(n.byName)) }

// apply takes a signal and returns the facts that follow from it.
func (n *nodes) apply(s *signal, receivedMS int64) []presence.NodeFact {
	n.wake(receivedMS)
	return n.assert(n.facts(s, receivedMS))
}

func (n *nodes) facts(s *signal, receivedMS int64) []presence.NodeFact {
	switch s.kind {
	case signalUptime, signalClock:
		return n.half(s, receivedMS)
	case signalStarted:
		return n.started(s, receivedMS)
	case signalStopped:
		n.node(s.node).gone = true
		return []presence.NodeFact{n.fact(presence.NodeGone, s.node, s.dialect, s.clockMS, receivedMS)}
	case signalMembers:
		return n.members(s, receivedMS)
	case signalAlive:
		return n.alive(s, receivedMS)
	case signalLost:
	}
	return nil
}

// tick gives up waiting for the other half of heartbeats, and finds the nodes that are silent. It is to be called at least every second.
func (n *nodes) tick(nowMS int64) []presence.NodeFact {
	var facts []presence.NodeFact
	for _, name := range n.names() {
		m := n.byName[name]
		if m.uptime.valid && nowMS-m.uptime.receivedMS > pairMS {
			m.uptime.valid = false
			facts = append(facts, n.heartbeat(&m.uptime.signal, m.uptime.receivedMS)...)
		}
	}
	return n.assert(append(facts, n.silences(nowMS)...))
}

// half takes an uptime or a clock and joins it with the other half of the heartbeat.
func (n *nodes) half(s *signal, receivedMS int64) []presence.NodeFact {
	if !s.paired {
		return n.heartbeat(s, receivedMS)
	}
	m := n.node(s.node)
	mine, other := &m.uptime, &m.datetime
	if s.kind == signalClock {
		mine, other = other, mine
	}
	if mine.valid && receivedMS-mine.receivedMS <= pairMS {
		m.burstUntilMS = receivedMS + pairMS
	}
	if !other.valid || receivedMS-other.receivedMS > pairMS {
		*mine = pending{*s, receivedMS, true}
		return nil
	}
	uptime, clock := s, &other.signal
	if s.kind == signalClock {
		uptime, clock = clock, uptime
	}
	both := *uptime
	both.clockMS = clock.ms
	mine.valid, other.valid = false, false
	if receivedMS <= m.burstUntilMS {
		return nil
	}
	return n.heartbeat(&both, receivedMS)
}

// heartbeat takes a whole heartbeat.
func (n *nodes) heartbeat(s *signal, receivedMS int64) []presence.NodeFact {
	if !n.loaded {
		// Whether a generation is new can only be told against the log.
		s := *s
		s.receivedMS = receivedMS
		n.early = append(slices.DeleteFunc(n.early, func(o signal) bool { return o.node == s.node }), s)
		return nil
	}
	m := n.node(s.node)
	if s.paired && m.stale(s) {
		return nil
	}
	if s.paired && s.clockMS == 0 && m.clockMS != 0 {
		// Without the clock that the node always tells, an uptime of unknown age proves nothing about generations. But the node speaks.
		if !m.silent {
			m.heardMS = receivedMS
		}
		return nil
	}
	sentMS := receivedMS
	if receivedMS < n.queuedUntilMS {
		sentMS = min(sentMS, n.queuedSinceMS)
	}
	// The claimed boot is not later than the true one: an uptime is too large by less than its granularity.
	bootMS, bootReceivedMS := int64(0), sentMS-s.ms-s.granularityMS
	if s.clockMS != 0 {
		bootMS = s.clockMS - s.ms - s.granularityMS
		if !s.paired {
			// The clock is that of the receipt, the uptime that of the sending.
			bootMS -= receivedMS - sentMS
		}
	}
	started := !m.known || s.ms < m.uptimeMS || m.receivedMS >= n.wokeMS && m.bootedSince(bootMS, bootReceivedMS)
	if started && m.known && !s.paired && n.heardMS < receivedMS {
		if late := n.heardMS - bootReceivedMS; late > 0 {
			bootReceivedMS += late
			if bootMS != 0 {
				bootMS += late
			}
		}
	}
	if !started && n.upSinceMS != 0 && m.heardMS >= n.upSinceMS {
		m.every(s.ms - m.uptimeMS)
	}
	if s.paired && s.clockMS != 0 {
		m.clock.heartbeat(reading{uptimeMS: s.ms, clockMS: s.clockMS, receivedMS: receivedMS, granularityMS: s.granularityMS, queued: receivedMS < n.queuedUntilMS}, started)
	}
	m.known, m.gone, m.silent = true, false, false
	m.uptimeMS, m.receivedMS, m.clockMS = s.ms, receivedMS, s.clockMS
	m.heardMS, m.dialect = receivedMS, s.dialect

	f := n.fact(presence.NodeAlive, s.node, s.dialect, s.clockMS, receivedMS)
	f.UptimeMS = presence.Some(s.ms)
	f.StartedMS, f.StartedReceivedMS = bootMS, max(bootReceivedMS, 1)
	if bootMS == 0 {
		// Without its clock, the bridge's is the best guess at the node's.
		f.StartedMS = receivedMS - s.ms - s.granularityMS
	}
	if s.granularityMS > 0 {
		// Stamps of that granularity are of its beginning.
		f.StartedMS -= f.StartedMS % s.granularityMS
	}
	f.StartedMS = max(f.StartedMS, 1)
	f.SetBackFromMS, f.SetBackToMS = m.clock.fromMS, m.clock.toMS
	setNodeID(&f)
	if !started {
		return []presence.NodeFact{f}
	}
	g := f
	g.Kind = presence.NodeStarted
	setNodeID(&g)
	return []presence.NodeFact{g, f}
}

// stale reports whether a heartbeat is an old one of the generation that is known: its uptime is smaller for the same boot.
func (m *node) stale(s *signal) bool {
	return m.known && s.clockMS != 0 && m.clockMS != 0 && s.ms < m.uptimeMS &&
		abs((s.clockMS-s.ms)-(m.clockMS-m.uptimeMS)) <= sameBootMS+2*s.granularityMS
}

// bootedSince reports whether a boot, by the node's clock and by the bridge's, lies after the latest heartbeat.
func (m *node) bootedSince(bootMS, bootReceivedMS int64) bool {
	return bootReceivedMS > m.receivedMS && (bootMS == 0 || m.clockMS == 0 || bootMS > m.clockMS)
}

// started takes the node's own word that it has started.
func (n *nodes) started(s *signal, receivedMS int64) []presence.NodeFact {
	m := n.node(s.node)
	m.known, m.gone, m.silent = true, false, false
	m.uptimeMS, m.receivedMS, m.clockMS = 0, receivedMS, s.clockMS
	m.heardMS, m.dialect = receivedMS, s.dialect
	f := n.fact(presence.NodeStarted, s.node, s.dialect, s.clockMS, receivedMS)
	f.UptimeMS = presence.Some(int64(0))
	// The line may have waited in the session's queue; its stamp, of a whole second, bounds how long.
	f.StartedMS, f.StartedReceivedMS = s.ms, min(receivedMS, s.ms+s.granularityMS)
	f.SetBackFromMS, f.SetBackToMS = m.clock.fromMS, m.clock.toMS
	setNodeID(&f)
	return []presence.NodeFact{f}
}

// alive takes a heartbeat that tells nothing else, so that generations of the node stay unknown. One that the broker kept for the session is
// of unknown age, and the next one comes soon.
func (n *nodes) alive(s *signal, receivedMS int64) []presence.NodeFact {
	if receivedMS < n.queuedUntilMS {
		return nil
	}
	m := n.node(s.node)
	if n.upSinceMS != 0 && m.heardMS >= n.upSinceMS {
		m.every(receivedMS - m.heardMS)
	}
	m.known, m.gone, m.silent, m.receivedMS = true, false, false, receivedMS
	m.heardMS, m.dialect = receivedMS, s.dialect
	f := n.fact(presence.NodeAlive, s.node, s.dialect, 0, receivedMS)
	f.SetBackFromMS, f.SetBackToMS = m.clock.fromMS, m.clock.toMS
	setNodeID(&f)
	return []presence.NodeFact{f}
}

// members takes the cluster's own list of its nodes. A retained copy is of unknown age: it names nodes, and proves nobody's absence.
func (n *nodes) members(s *signal, receivedMS int64) []presence.NodeFact {
	for _, name := range s.members {
		n.node(name)
	}
	if s.retained || !n.loaded {
		return nil
	}
	var facts []presence.NodeFact
	for _, name := range n.names() {
		m := n.byName[name]
		listed := slices.Contains(s.members, name)
		if !listed && !m.gone {
			facts = append(facts, n.fact(presence.NodeGone, name, s.dialect, 0, receivedMS))
		}
		m.gone = !listed
	}
	return facts
}

// fact returns a node fact with its times. A node whose clock is unknown gets the bridge's.
func (n *nodes) fact(kind presence.NodeKind, name, dialect string, clockMS, receivedMS int64) presence.NodeFact {
	f := presence.NodeFact{Kind: kind, Cluster: n.cluster, Node: name, Dialect: dialect, TimeMS: clockMS, ReceivedMS: receivedMS}
	if clockMS == 0 {
		f.TimeMS = receivedMS
	}
	setNodeID(&f)
	return f
}

// setNodeID gives a node fact its ID, from what names it.
func setNodeID(f *presence.NodeFact) {
	name := f.Node
	if f.Kind == presence.Feed {
		name = f.Bridge
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%s/%q/%d/%d/%d/%d/%d", f.Cluster, f.Kind, name, f.TimeMS, f.UptimeMS.Value, f.StartedMS, f.SetBackFromMS, f.SetBackToMS))
	f.ID = hex.EncodeToString(sum[:16])
}
