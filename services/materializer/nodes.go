package materializer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// nodeTable is one version of what is known of all nodes and feeds. It is never changed: a newer one replaces it.
type nodeTable struct {
	clusters map[string]*presence.Cluster
	healths  map[string]*presencev1.ClusterHealth // by cluster: as reads tell it; never changed either
	touched  map[string]touch                     // by cluster: the latest fact that may have changed a client's status
	next     int64                                // next node-events offset to apply; next - 1 is the node part of versions
	affected int64                                // largest offset in touched, -1 if there is none
	// replaced is closed once a table with another affected offset is there.
	replaced chan struct{}
}

type touch struct {
	offset int64
	timeMS int64
}

// health describes the nodes and feeds of a cluster, to be read only.
func (t *nodeTable) health(cluster string) *presencev1.ClusterHealth {
	if h := t.healths[cluster]; h != nil {
		return h
	}
	return healthOf(t.clusters[cluster])
}

// cluster returns the table of a cluster, nil if nothing is known of it.
func (t *nodeTable) cluster(name string) *presence.Cluster { return t.clusters[name] }

// nodes reads node-events, from the beginning at every start, and keeps the latest table.
type nodes struct {
	current atomic.Pointer[nodeTable]
	end     atomic.Int64 // end offset as Kafka last reported it
	// loaded is closed once everything that was there at the start is applied.
	loaded  chan struct{}
	dead    *deadLetters
	metrics *metrics
	log     *slog.Logger
}

func newNodes(dead *deadLetters, m *metrics, log *slog.Logger) *nodes {
	n := &nodes{loaded: make(chan struct{}), dead: dead, metrics: m, log: log}
	n.current.Store(&nodeTable{affected: -1, replaced: make(chan struct{})})
	return n
}

func (n *nodes) table() *nodeTable { return n.current.Load() }

// isLoaded reports whether everything that was there at the start is applied.
func (n *nodes) isLoaded() bool {
	select {
	case <-n.loaded:
		return true
	default:
		return false
	}
}

// run applies node facts until ctx ends.
func (n *nodes) run(ctx context.Context, cfg eventlog.Config, log *eventlog.ClientLog) error {
	opts, err := cfg.SharedOpts(log)
	if err != nil {
		return err
	}
	cl, err := kgo.NewClient(append(opts,
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.TopicNodeEvents: {0: kgo.NewOffset().AtStart()}}),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.FetchMaxWait(maxFetchWait),
	)...)
	if err != nil {
		return fmt.Errorf("create the consumer of %s: %w", eventlog.TopicNodeEvents, err)
	}
	defer cl.Close()
	var trouble fetchTrouble
	first, end, err := bounds(ctx, kadm.NewClient(cl), eventlog.TopicNodeEvents, 0)
	for ; isAway(err) && ctx.Err() == nil; first, end, err = bounds(ctx, kadm.NewClient(cl), eventlog.TopicNodeEvents, 0) {
		trouble.note(ctx, n.log, eventlog.TopicNodeEvents, err, false)
	}
	if err != nil {
		return ignoreCancel(ctx, err)
	}
	n.end.Store(end)
	if first == end {
		n.skipTo(end)
	}
	for ctx.Err() == nil {
		if n.table().next >= end && !n.isLoaded() {
			n.log.Debug("node events are loaded", service.KeyOffset, end)
			close(n.loaded)
		}
		fetches := cl.PollFetches(ctx)
		err := fetchError(ctx, fetches)
		if err != nil && !isAway(err) {
			return err
		}
		records := fetches.Records()
		trouble.note(ctx, n.log, eventlog.TopicNodeEvents, err, len(records) > 0)
		for err = n.apply(ctx, records); isAway(err) && ctx.Err() == nil; err = n.apply(ctx, records) {
			trouble.note(ctx, n.log, eventlog.TopicDeadLetters, err, false)
		}
		if err != nil {
			return ignoreCancel(ctx, err)
		}
		fetches.EachPartition(func(p kgo.FetchTopicPartition) { n.sawEnd(p.HighWatermark) })
	}
	return nil
}

func (n *nodes) sawEnd(end int64) {
	for {
		old := n.end.Load()
		if end <= old || n.end.CompareAndSwap(old, end) {
			return
		}
	}
}

// skipTo notes that there is nothing below an offset.
func (n *nodes) skipTo(next int64) {
	t := *n.table()
	t.next = next
	n.current.Store(&t)
}

// apply folds records into a new table and makes it the current one.
func (n *nodes) apply(ctx context.Context, records []*kgo.Record) error {
	if len(records) == 0 {
		return nil
	}
	old := n.table()
	t := &nodeTable{clusters: maps.Clone(old.clusters), healths: maps.Clone(old.healths), touched: old.touched, next: old.next, affected: old.affected, replaced: old.replaced}
	if t.clusters == nil {
		t.clusters, t.healths = map[string]*presence.Cluster{}, map[string]*presencev1.ClusterHealth{}
	}
	cloned := map[string]bool{}
	var poison []*eventlog.DeadLetter
	for _, r := range records {
		t.next = r.Offset + 1
		if r.Value == nil {
			continue // a tombstone: what it took back stays known until the next start
		}
		var f presence.NodeFact
		if err := eventlog.DecodeNodeFact(r, &f); err != nil {
			poison = append(poison, poisonOf(r, reasonBadRecord, err.Error()))
			continue
		}
		if !cloned[f.Cluster] {
			t.clusters[f.Cluster], cloned[f.Cluster] = cloneCluster(t.clusters[f.Cluster]), true
		}
		n.metrics.nodeFacts.WithLabelValues(f.Kind.String()).Inc()
		known := f.Kind == presence.Feed || t.clusters[f.Cluster].Nodes[f.Node] != nil
		// A node that joins takes back that all nodes have restarted since some time. Of those that are read at the start it is not known
		// when they joined: to take that for a change would have every start sweep all rows.
		if joins := !known && n.isLoaded(); !t.clusters[f.Cluster].Apply(&f) && !joins {
			continue
		}
		if t.affected == old.affected {
			t.touched = maps.Clone(t.touched)
			if t.touched == nil {
				t.touched = map[string]touch{}
			}
		}
		t.touched[f.Cluster] = touch{offset: r.Offset, timeMS: max(f.TimeMS, 0)}
		t.affected = r.Offset
	}
	if err := n.dead.send(ctx, poison); err != nil {
		return err
	}
	for cluster := range cloned {
		t.healths[cluster] = healthOf(t.clusters[cluster])
	}
	if t.affected != old.affected {
		t.replaced = make(chan struct{})
	}
	n.current.Store(t)
	if t.affected != old.affected {
		close(old.replaced)
	}
	return nil
}

// cloneCluster copies what Cluster.Apply changes in place.
func cloneCluster(c *presence.Cluster) *presence.Cluster {
	if c == nil {
		return &presence.Cluster{}
	}
	d := &presence.Cluster{Nodes: make(map[string]*presence.Node, len(c.Nodes)), Feeds: maps.Clone(c.Feeds)}
	for name, n := range c.Nodes {
		node := *n
		d.Nodes[name] = &node
	}
	return d
}
