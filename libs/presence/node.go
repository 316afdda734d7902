package presence

import "cmp"

// NodeKind says what a node or feed fact asserts.
type NodeKind uint8

// The kinds of node facts. Their words are the "type" of a record of node-events and the last part of its key.
const (
	NodeUnknown NodeKind = iota
	NodeAlive            // heartbeat
	NodeStarted          // a new boot generation
	NodeGone             // the node left the broker's own list
	NodeSilent           // no heartbeat within the lease
	Feed                 // the bridge's own subscription
)

var nodeKindWords = [...]string{"unknown", "alive", "started", "gone", "silent", "feed"}

// String returns the word that records use.
func (k NodeKind) String() string { return word(nodeKindWords[:], int(k)) }

// ParseNodeKind is the inverse of String; NodeUnknown for any other word.
func ParseNodeKind(s string) NodeKind { return NodeKind(index(nodeKindWords[:], s)) }

// NodeFact is one thing asserted about a node, or about the bridge's own subscription (Feed). Each is the whole latest value of its
// kind: a later one replaces it. Zero means unknown.
type NodeFact struct {
	ID         string
	Kind       NodeKind
	Cluster    string
	Node       string // not for Feed
	Bridge     string // Feed: which bridge
	Dialect    string
	TimeMS     int64 // on the node's clock; Feed: on the bridge's
	ReceivedMS int64 // on the bridge's clock

	UptimeMS  Opt[int64] // Alive, Started
	StartedMS int64      // Alive, Started: when this generation began, on the node's clock; the floor of its connections
	// StartedReceivedMS is the same instant on the bridge's clock, comparable with the times of a Feed.
	StartedReceivedMS int64

	// Feed. The bridge's record of its own subscription, complete in every value, on the bridge's clock.
	CompleteSinceMS int64 // everything that was delivered since then has been received; 0 if the subscription is down
	GapFromMS       int64 // start of the latest interruption that no resumed session healed; 0 if there was none
	GapToMS         int64 // its end; 0 while it lasts
	ResyncedMS      int64 // when the latest gap was healed by a finished sweep
	DroppedCount    int64 // facts dropped at the spool's bound, since the bridge's first start
	DroppedFromMS   int64 // interval of the latest drops
	DroppedToMS     int64
	LeaseMS         int64 // the feed counts as down if no heartbeat follows within
	// Covered are the times before CompleteSinceMS in which the subscription was complete: what it missed between them, another bridge may have
	// received.
	Covered Coverage

	// Alive, Started: the node's clock was set back, from SetBackFromMS to SetBackToMS, so that stamps between them come twice (H9). The
	// latest such step that the bridge has seen; 0 if there was none.
	SetBackFromMS int64
	SetBackToMS   int64
}

// Node is what is known of one broker node.
type Node struct {
	Name              string
	Dialect           string
	StartedMS         int64 // the floor: no connection of this node opened before it is alive (L6)
	StartedReceivedMS int64 // the same instant on the bridge's clock
	AliveMS           int64 // of the latest heartbeat, on the bridge's clock
	UptimeMS          int64
	GoneMS            int64 // when it left the broker's list, on the bridge's clock
	SilentMS          int64 // when its silence was asserted, on the bridge's clock
	SetBackFromMS     int64 // the latest time that its clock was set back, see [NodeFact]
	SetBackToMS       int64
	setBackReceivedMS int64
}

// Gone reports whether the node left the broker's list and no heartbeat has taken that back.
func (n *Node) Gone() bool { return n.GoneMS > n.AliveMS }

// Silent reports whether the node is silent past its lease.
func (n *Node) Silent() bool { return n.SilentMS > n.AliveMS }

// away reports whether nothing is known of what became of the node's connections.
func (n *Node) away() bool { return n != nil && (n.Gone() || n.Silent()) }

// setBackOver reports whether the node's clock was set back over a time, so that its stamps may be older than they look.
func (n *Node) setBackOver(ms int64) bool {
	return n != nil && n.SetBackFromMS != 0 && n.SetBackToMS <= ms && ms <= n.SetBackFromMS
}

// unheard reports whether events of the node may be lost because it was silent, though the cluster still has it on its list: until it has a newer
// generation or, at syncedMS, a finished sweep has made up for it.
func (n *Node) unheard(syncedMS int64) bool {
	if n.SilentMS == 0 || n.Gone() || n.StartedReceivedMS > n.SilentMS {
		return false
	}
	return n.Silent() || syncedMS < n.SilentMS
}

// Cluster is the small table of nodes and feeds of one MQTT broker cluster. The zero value is ready for use.
type Cluster struct {
	Nodes map[string]*Node
	Feeds map[string]NodeFact // by bridge: the latest value
}

// node returns what is known of a node, nil if nothing is.
func (c *Cluster) node(name string) *Node {
	if c == nil {
		return nil
	}
	return c.Nodes[name]
}

// Apply folds a node fact. It reports whether the status of any client, or since when it has it, may have changed: heartbeats alone change
// none, which leaves it to the caller to see that a node has joined. The table does not depend on the order of the facts: of one kind the
// latest counts.
func (c *Cluster) Apply(f *NodeFact) (affects bool) {
	if f.Kind == Feed {
		if c.Feeds == nil {
			c.Feeds = map[string]NodeFact{}
		}
		feed := *f
		// What a feed has no use for is not compared, and must not come in by the order of arrival.
		feed.Node, feed.UptimeMS, feed.StartedMS, feed.StartedReceivedMS, feed.SetBackFromMS, feed.SetBackToMS = "", Opt[int64]{}, 0, 0, 0, 0
		if old, ok := c.Feeds[f.Bridge]; !ok || compareFeed(&feed, &old) > 0 {
			c.Feeds[f.Bridge] = feed
		}
		return false
	}
	if f.Kind == NodeUnknown {
		return false
	}
	if c.Nodes == nil {
		c.Nodes = map[string]*Node{}
	}
	n := c.Nodes[f.Node]
	if n == nil {
		n = &Node{Name: f.Node}
		c.Nodes[f.Node] = n
	}
	before := *n
	gone, silent := n.Gone(), n.Silent()
	n.Dialect = max(n.Dialect, f.Dialect)
	switch f.Kind {
	case NodeAlive, NodeStarted:
		if f.ReceivedMS > n.AliveMS || f.ReceivedMS == n.AliveMS && f.UptimeMS.Value > n.UptimeMS {
			n.AliveMS, n.UptimeMS = f.ReceivedMS, f.UptimeMS.Value
		}
		// A heartbeat tells when the node booted as precisely as its clock runs; only the bridge, which saw the uptime go
		// backwards, may raise the floor: a stepping clock is not a new generation. Which generation is the latest is told
		// by the bridge's clock, as the node's may have been set between the two.
		if f.Kind == NodeStarted && (f.StartedReceivedMS > n.StartedReceivedMS || f.StartedReceivedMS == n.StartedReceivedMS && f.StartedMS > n.StartedMS) {
			n.StartedMS, n.StartedReceivedMS = f.StartedMS, f.StartedReceivedMS
		}
		if f.SetBackFromMS != 0 && compareSetBack(f, n) > 0 {
			n.SetBackFromMS, n.SetBackToMS, n.setBackReceivedMS = f.SetBackFromMS, f.SetBackToMS, f.ReceivedMS
		}
	case NodeGone:
		n.GoneMS = max(n.GoneMS, f.ReceivedMS)
	case NodeSilent:
		n.SilentMS = max(n.SilentMS, f.ReceivedMS)
	case NodeUnknown, Feed:
	}
	// Of a node that is said to be gone or silent again, it is since when that changes.
	return gone != n.Gone() || silent != n.Silent() || n.Gone() && before.GoneMS != n.GoneMS || n.Silent() && before.SilentMS != n.SilentMS ||
		before.StartedMS != n.StartedMS || before.StartedReceivedMS != n.StartedReceivedMS ||
		before.SetBackFromMS != n.SetBackFromMS || before.SetBackToMS != n.SetBackToMS
}

func compareSetBack(f *NodeFact, n *Node) int {
	return cmp.Or(cmp.Compare(f.ReceivedMS, n.setBackReceivedMS), cmp.Compare(f.SetBackFromMS, n.SetBackFromMS), cmp.Compare(n.SetBackToMS, f.SetBackToMS))
}

// compareFeed orders the values of one bridge's feed: the latest counts, and of two of one instant, by what they say.
func compareFeed(a, b *NodeFact) int {
	return cmp.Or(cmp.Compare(a.ReceivedMS, b.ReceivedMS), cmp.Compare(a.DroppedCount, b.DroppedCount), cmp.Compare(a.GapFromMS, b.GapFromMS),
		cmp.Compare(a.GapToMS, b.GapToMS), cmp.Compare(a.ResyncedMS, b.ResyncedMS), cmp.Compare(a.CompleteSinceMS, b.CompleteSinceMS),
		cmp.Compare(a.DroppedFromMS, b.DroppedFromMS), cmp.Compare(a.DroppedToMS, b.DroppedToMS), cmp.Compare(a.LeaseMS, b.LeaseMS),
		cmp.Compare(a.TimeMS, b.TimeMS), cmp.Compare(a.Dialect, b.Dialect), a.Covered.compare(&b.Covered), cmp.Compare(a.ID, b.ID))
}

// startedSince reports whether every node that is still there began its generation at or after ms, on the bridge's clock.
func (c *Cluster) startedSince(ms int64) bool {
	any := false
	for _, n := range c.Nodes {
		if n.Gone() {
			continue
		}
		if n.StartedReceivedMS < ms {
			return false
		}
		any = true
	}
	return any
}

// restartedSince reports whether any node began its generation after ms, on the bridge's clock.
func (c *Cluster) restartedSince(ms int64) bool {
	if c == nil {
		return false
	}
	for _, n := range c.Nodes {
		if n.StartedReceivedMS > ms {
			return true
		}
	}
	return false
}

// startedAfter returns the latest start of a generation if every node that is still there began its own after ms: after ms by its own clock
// for the node that ms is of, and by the allowance more for others; and after receivedMS, by the bridge's clock. Otherwise it returns 0.
func (c *Cluster) startedAfter(node string, ms, receivedMS, allowanceMS int64) int64 {
	if c == nil {
		return 0
	}
	var latest int64
	for name, n := range c.Nodes {
		if n.Gone() {
			continue
		}
		limit := ms
		if name != node {
			limit += allowanceMS
		}
		if n.StartedMS <= limit || n.StartedReceivedMS != 0 && n.StartedReceivedMS < receivedMS {
			return 0
		}
		latest = max(latest, n.StartedMS)
	}
	return latest
}
