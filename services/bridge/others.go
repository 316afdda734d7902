package bridge

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// overlapMS is how long another bridge must have been subscribed so that it has what this one cannot place.
	overlapMS = presence.DefaultAllowanceMS
	// ownFeeds is how many of the Feed facts of its own a bridge remembers, to tell them from those of another one with its name. While facts are
	// dropped there is one for each time that some are, and the log may come late.
	ownFeeds = 64 << 10
	// loadPatience is how long a session waits for what the log says of other bridges.
	loadPatience = 2 * time.Second
	// rivalMemory is how long another bridge with the same name is reported after its last sign.
	rivalMemory = time.Minute
)

// others is what a bridge knows of the other bridges of its cluster, from the log. It is guarded by the cluster.
type others struct {
	feeds map[string]presence.NodeFact // by bridge: the latest
	own   map[string]bool              // IDs of the latest Feed facts of this process
	order []string                     // of own, oldest first
	// rivalMS is when the log had a Feed fact with this bridge's name that another process wrote; 0: never.
	rivalMS int64
	logged  time.Time
}

func (o *others) wrote(id string) {
	if o.own == nil {
		o.own = map[string]bool{}
	}
	if o.own[id] {
		return
	}
	if len(o.order) == ownFeeds {
		delete(o.own, o.order[0])
		o.order = o.order[1:]
	}
	o.own[id] = true
	o.order = append(o.order, id)
}

// covers reports whether another bridge has seen every line of the stamp at nowMS from its beginning, as far as one can know: it says so itself, and
// if it is wrong, since it has died, the Feed facts of both show the gap.
func (o *others) covers(nowMS int64) bool {
	for _, f := range o.feeds {
		since := max(f.CompleteSinceMS, f.DroppedToMS)
		if f.CompleteSinceMS != 0 && since+overlapMS <= nowMS && nowMS-f.ToldMS() <= f.LeaseMS {
			return true
		}
	}
	return false
}

// noteFeed takes a Feed fact of another bridge.
func (o *others) noteFeed(f *presence.NodeFact) {
	if o.feeds == nil {
		o.feeds = map[string]presence.NodeFact{}
	}
	if f.ReceivedMS >= o.feeds[f.Bridge].ReceivedMS {
		o.feeds[f.Bridge] = *f
	}
}

// told takes a node fact that the log has, whoever wrote it.
func (c *cluster) told(f *presence.NodeFact, nowMS int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case f.Cluster != c.name:
	case f.Kind != presence.Feed:
		c.nodes.told(f, nowMS)
	case f.Bridge != c.feed.fact.Bridge:
		c.others.noteFeed(f)
	case !c.others.own[f.ID] && f.ReceivedMS > c.startedMS:
		c.others.rivalMS = nowMS
		if now := time.Now(); now.Sub(c.others.logged) > dropLogInterval {
			c.others.logged = now
			c.log.Error("another bridge has this one's name, so that what the two miss cannot be told: give every bridge its own bridge-name", "bridge", f.Bridge)
		}
	}
}

// serves reports whether a cluster's facts come through this subscription.
func (c *cluster) serves(name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.clusters(), name)
}

// repair writes facts again that the log has, but not last.
func (c *cluster) repair(facts []presence.NodeFact, nowMS int64) {
	for i := range facts {
		f := &facts[i]
		c.log.Debug("a later record of the node events says less; writing the earlier one again", service.KeyNode, f.Node, "type", f.Kind.String())
		c.pipeline.submit(&delivery{cluster: c.name, receivedMS: nowMS, transient: true, records: c.nodeRecords([]presence.NodeFact{*f}, []string{f.Cluster})})
	}
}

// rival says that another client, or bridge, has what must be this bridge's own; nil if none does.
func (c *cluster) rival(nowMS int64) error {
	var errs []error
	if c.others.rivalMS != 0 && nowMS-c.others.rivalMS < rivalMemory.Milliseconds() {
		errs = append(errs, errors.New("another bridge asserts its feed under the same name: give every bridge its own bridge-name"))
	}
	if taken := c.session.takenOver(); !taken.IsZero() && nowMS-taken.UnixMilli() < rivalMemory.Milliseconds() {
		errs = append(errs, fmt.Errorf("another client with the mqtt client ID %q took the session over: give every bridge its own bridge-name or mqtt-client-id", c.session.clientID))
	}
	return errors.Join(errs...)
}
