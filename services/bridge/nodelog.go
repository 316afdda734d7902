package bridge

import (
	"cmp"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// repairAfter is how long the last record of a key may say less than the ones before it until a bridge puts that right: whoever wrote it, or wrote at
// the same time, is about to.
const repairAfter = time.Second

// nodeLog is what node-events say of the nodes, by key. The topic is compacted, so that the last record of a key must say all that the ones before it
// said: what is left of the topic is all that a later reader gets. Several bridges write one key, and what one of them had in its spool may come
// after what another has written since.
type nodeLog struct {
	keys map[string]*nodeKey
}

// nodeKey is one key of node-events. Of a feed, which one bridge writes, the last record counts.
type nodeKey struct {
	last   presence.NodeFact // as the log has it
	joined presence.NodeFact // with what the records before it say
	lessAt time.Time         // since when last says less than joined; zero: it does not
}

// add takes the next record of the topic.
func (l *nodeLog) add(f *presence.NodeFact, now time.Time) {
	if l.keys == nil {
		l.keys = map[string]*nodeKey{}
	}
	key := string(eventlog.NodeKey(f))
	k := l.keys[key]
	if k == nil {
		k = &nodeKey{joined: *f}
		l.keys[key] = k
	}
	k.last, k.joined = *f, joinNodeFacts(&k.joined, f)
	if says(&k.last) == says(&k.joined) {
		k.lessAt = time.Time{}
	} else if k.lessAt.IsZero() {
		k.lessAt = now
	}
}

// facts returns what the log says.
func (l *nodeLog) facts() []presence.NodeFact {
	var facts []presence.NodeFact
	for _, k := range l.keys {
		facts = append(facts, k.joined)
	}
	return facts
}

// repairs returns what is to be written again, of the clusters for which mine returns true.
func (l *nodeLog) repairs(now time.Time, mine func(cluster string) bool) []presence.NodeFact {
	var facts []presence.NodeFact
	for _, k := range l.keys {
		if k.lessAt.IsZero() || now.Sub(k.lessAt) < repairAfter || !mine(k.joined.Cluster) {
			continue
		}
		// If it gets lost, once more.
		k.lessAt = now
		facts = append(facts, k.joined)
	}
	return facts
}

// joinNodeFacts returns the later of two facts of one key, with what only the other one knows.
func joinNodeFacts(a, b *presence.NodeFact) presence.NodeFact {
	later, other := *a, b
	if compareNodeFacts(b, a) >= 0 {
		later, other = *b, a
	}
	if later.Kind == presence.Feed {
		return later
	}
	if later.Kind == presence.NodeStarted && (other.ReceivedMS > later.ReceivedMS || other.ReceivedMS == later.ReceivedMS && other.UptimeMS.Value > later.UptimeMS.Value) {
		// A start is a sign of life as well.
		later.ReceivedMS, later.TimeMS, later.UptimeMS = other.ReceivedMS, other.TimeMS, other.UptimeMS
		setNodeID(&later)
	}
	if later.SetBackFromMS == 0 && other.SetBackFromMS != 0 {
		later.SetBackFromMS, later.SetBackToMS = other.SetBackFromMS, other.SetBackToMS
		setNodeID(&later)
	}
	return later
}

// compareNodeFacts orders the facts of one key as the fold does ([presence.Cluster.Apply]): a start by when the generation began, all others by when
// they were received.
func compareNodeFacts(a, b *presence.NodeFact) int {
	if a.Kind == presence.NodeStarted {
		if c := cmp.Or(cmp.Compare(a.StartedReceivedMS, b.StartedReceivedMS), cmp.Compare(a.StartedMS, b.StartedMS)); c != 0 {
			return c
		}
	}
	return cmp.Or(cmp.Compare(a.ReceivedMS, b.ReceivedMS), cmp.Compare(a.UptimeMS.Value, b.UptimeMS.Value), cmp.Compare(a.SetBackFromMS, b.SetBackFromMS),
		cmp.Compare(b.SetBackToMS, a.SetBackToMS), cmp.Compare(a.Dialect, b.Dialect), cmp.Compare(a.ID, b.ID))
}

// saying is what the fold takes from a fact of a node.
type saying struct {
	receivedMS, uptimeMS, startedMS, startedReceivedMS, setBackFromMS, setBackToMS int64
}

// says returns nothing for a feed, which has one writer.
func says(f *presence.NodeFact) saying {
	if f.Kind == presence.Feed {
		return saying{}
	}
	s := saying{receivedMS: f.ReceivedMS, uptimeMS: f.UptimeMS.Value, setBackFromMS: f.SetBackFromMS, setBackToMS: f.SetBackToMS}
	if f.Kind == presence.NodeStarted {
		s.startedMS, s.startedReceivedMS = f.StartedMS, f.StartedReceivedMS
	}
	return s
}
