package presence

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
	StartedReceivedMS int64
	AliveMS           int64 // of the latest heartbeat, on the bridge's clock
	UptimeMS          int64
	GoneMS            int64 // when it left the broker's list, on the bridge's clock
	SilentMS          int64 // when its silence was asserted, on the bridge's clock
}

// Gone reports whether the node left the broker's list and no heartbeat has taken that back.
func (n *Node) Gone() bool { return n.GoneMS > n.AliveMS }

// Silent reports whether the node is silent past its lease.
func (n *Node) Silent() bool { return n.SilentMS > n.AliveMS }

// Cluster is the small table of nodes and feeds of one MQTT broker cluster. The zero value is ready for use.
type Cluster struct {
	Nodes map[string]*Node
	Feeds map[string]NodeFact // by bridge: the latest value
}

// Apply folds a node fact. It reports whether the status of any client may have changed: heartbeats alone change none.
func (c *Cluster) Apply(f *NodeFact) (affects bool) {
	if f.Kind == Feed {
		if c.Feeds == nil {
			c.Feeds = map[string]NodeFact{}
		}
		if old, ok := c.Feeds[f.Bridge]; !ok || f.ReceivedMS >= old.ReceivedMS {
			c.Feeds[f.Bridge] = *f
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
	gone, silent, floor := n.Gone(), n.Silent(), n.StartedMS
	if f.Dialect != "" {
		n.Dialect = f.Dialect
	}
	switch f.Kind {
	case NodeAlive, NodeStarted:
		if f.ReceivedMS > n.AliveMS {
			n.AliveMS, n.UptimeMS = f.ReceivedMS, f.UptimeMS.Value
		}
		// A heartbeat tells when the node booted as precisely as its clock runs; only the bridge, which saw the uptime go
		// backwards, may raise the floor: a stepping clock is not a new generation.
		if f.Kind == NodeStarted && f.StartedMS > n.StartedMS {
			n.StartedMS, n.StartedReceivedMS = f.StartedMS, f.StartedReceivedMS
		}
	case NodeGone:
		n.GoneMS = max(n.GoneMS, f.ReceivedMS)
	case NodeSilent:
		n.SilentMS = max(n.SilentMS, f.ReceivedMS)
	case NodeUnknown, Feed:
	}
	return gone != n.Gone() || silent != n.Silent() || floor != n.StartedMS
}

// FeedComplete reports whether some bridge has received everything since every known node's generation began, so that a client
// never seen is offline (L7). Without any node there is nothing to be complete about.
func (c *Cluster) FeedComplete() bool {
	if len(c.Nodes) == 0 {
		return false
	}
	for _, f := range c.Feeds {
		if f.CompleteSinceMS != 0 && (f.ResyncedMS >= f.CompleteSinceMS || c.startedSince(f.CompleteSinceMS)) {
			return true
		}
	}
	return false
}

// FeedGap returns the interruption that makes answers stale, on the bridge's clock: every bridge has one, or lost facts, and neither a
// finished sweep nor a newer generation of every node has healed it. toMS is 0 while it lasts.
func (c *Cluster) FeedGap() (fromMS, toMS int64, open bool) {
	for _, f := range c.Feeds {
		from, to := f.GapFromMS, f.GapToMS
		if f.DroppedToMS > to && (from == 0 || to != 0) {
			from, to = max(from, f.DroppedFromMS), f.DroppedToMS
		}
		if from == 0 || to != 0 && (f.ResyncedMS >= to || c.startedSince(to)) {
			return 0, 0, false
		}
		if !open || from > fromMS {
			fromMS, toMS = from, to
		}
		open = true
	}
	return fromMS, toMS, open
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

// startedAfter returns the latest start of a generation if every node that is still there began its own after ms: after ms by its own clock
// for the node that ms is of, and by the allowance more for others. Otherwise it returns 0.
func (c *Cluster) startedAfter(node string, ms, allowanceMS int64) int64 {
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
		if n.StartedMS <= limit {
			return 0
		}
		latest = max(latest, n.StartedMS)
	}
	return latest
}
