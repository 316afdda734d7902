package query

import (
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Words of Freshness.stale_reasons.
const (
	staleLagging    = "lagging"       // applied longer ago than stale-after, and more is waiting
	staleLagUnknown = "lag_unknown"   // Kafka's end offset is unknown, or known for longer than stale-after
	staleCatchingUp = "catching_up"   // the partition has not reached the end seen at start
	staleFeedDown   = "feed_down"     // no bridge is connected and within its lease
	staleFeedGap    = "feed_gap"      // facts were lost and nothing has healed that yet
	staleRouting    = "routing_stale" // Kafka has not confirmed who owns what for longer than stale-after
)

// Words of Freshness.feed and Freshness.node.
const (
	healthOK    = "ok"
	feedGap     = "gap"
	feedDown    = "down"
	nodeSilent  = "silent"
	nodeGone    = "gone"
	nodeUnheard = "unheard" // nothing but clients was heard of it
)

// clock is what an answer's freshness is measured against.
type clock struct {
	now        time.Time
	staleAfter time.Duration
	routedAt   time.Time // when the owners were last confirmed; zero if nothing is routed
}

// freshness says how far the answers of one partition may lag behind the brokers. node is that of the client's connection, empty if
// none is known. p is nil if the reader said nothing about the partition.
func (c clock) freshness(p *presencev1.PartitionFreshness, h *presencev1.ClusterHealth, node string) *presencev1.Freshness {
	f := &presencev1.Freshness{
		Partition:         p.GetPartition(),
		AppliedOffset:     p.GetAppliedOffset(),
		NodeAppliedOffset: p.GetNodeAppliedOffset(),
		AppliedTime:       timestamp(p.GetAppliedTimeMs()),
		Feed:              healthOK,
		Node:              nodeHealth(h, node),
	}
	c.lag(f, p)
	if !p.GetReady() {
		f.StaleReasons = append(f.StaleReasons, staleCatchingUp)
	}
	if h.GetGap() != nil {
		f.Feed = feedGap
		f.StaleReasons = append(f.StaleReasons, staleFeedGap)
	}
	if !c.fed(h) {
		f.Feed = feedDown
		f.StaleReasons = append(f.StaleReasons, staleFeedDown)
	}
	if !c.routedAt.IsZero() && c.now.Sub(c.routedAt) > c.staleAfter {
		f.StaleReasons = append(f.StaleReasons, staleRouting)
	}
	f.Stale = len(f.StaleReasons) > 0
	return f
}

// lag sets lag_records and lag_ms if they are known, and says if they are not, or too large.
func (c clock) lag(f *presencev1.Freshness, p *presencev1.PartitionFreshness) {
	records, ms, known := c.lagOf(p)
	if !known {
		f.StaleReasons = append(f.StaleReasons, staleLagUnknown)
		return
	}
	f.LagRecords, f.LagMs = &records, &ms
	if ms > c.staleAfter.Milliseconds() {
		f.StaleReasons = append(f.StaleReasons, staleLagging)
	}
}

// lagOf returns how far a partition is behind, if that is known.
func (c clock) lagOf(p *presencev1.PartitionFreshness) (records, ms int64, known bool) {
	if p == nil || p.GetEndOffset() < 0 || c.ageMS(p.GetEndOffsetTimeMs()) > c.staleAfter.Milliseconds() {
		return 0, 0, false
	}
	// What is waiting came after the last record applied, and after the last time that nothing was waiting. Where nothing is known to be waiting, it came
	// after the end offset was reported.
	since := max(p.GetAppliedTimeMs(), p.GetCaughtUpTimeMs())
	if records = max(0, p.GetEndOffset()-p.GetAppliedOffset()); records == 0 {
		since = max(since, p.GetEndOffsetTimeMs())
	}
	return records, c.ageMS(since), true
}

// late reports whether answers of a partition are stale by its owner's fault.
func (c clock) late(p *presencev1.PartitionFreshness) bool {
	_, ms, known := c.lagOf(p)
	return !p.GetReady() || !known || ms > c.staleAfter.Milliseconds()
}

// ageMS is the time since an instant in epoch milliseconds; 0 for one that a faster clock puts into the future.
func (c clock) ageMS(ms int64) int64 { return max(0, c.now.UnixMilli()-ms) }

// fed reports whether at least one bridge is connected to the cluster and within its lease.
func (c clock) fed(h *presencev1.ClusterHealth) bool {
	for _, feed := range h.GetFeeds() {
		if feed.GetConnected() && c.ageMS(feed.GetAliveMs()) <= feed.GetLeaseMs() {
			return true
		}
	}
	return false
}

// nodeHealth is the state of a broker node: ok where no node is concerned.
func nodeHealth(h *presencev1.ClusterHealth, node string) string {
	if node == "" {
		return healthOK
	}
	for _, n := range h.GetNodes() {
		if n.GetNode() != node {
			continue
		}
		switch {
		case n.GetGone():
			return nodeGone
		case n.GetSilent():
			return nodeSilent
		}
		return healthOK
	}
	return nodeUnheard
}

// worst joins the freshness of several partitions into that of a batch: the numbers of the partition that lags most, and every
// reason to distrust any of them. It is nil for none.
func worst(all []*presencev1.Freshness) *presencev1.Freshness {
	if len(all) == 0 {
		return nil
	}
	last := all[0]
	reasons := make(map[string]bool)
	feed, node := healthOK, healthOK
	for _, f := range all {
		if lagsMore(f, last) {
			last = f
		}
		for _, r := range f.GetStaleReasons() {
			reasons[r] = true
		}
		feed, node = worse(feed, f.GetFeed()), worse(node, f.GetNode())
	}
	w := &presencev1.Freshness{
		Partition: last.GetPartition(), AppliedOffset: last.GetAppliedOffset(), AppliedTime: last.GetAppliedTime(),
		LagRecords: last.LagRecords, LagMs: last.LagMs, Feed: feed, Node: node, NodeAppliedOffset: last.GetNodeAppliedOffset(),
	}
	for _, r := range []string{staleLagging, staleLagUnknown, staleCatchingUp, staleFeedGap, staleFeedDown, staleRouting} {
		if reasons[r] {
			w.StaleReasons = append(w.StaleReasons, r)
		}
	}
	w.Stale = len(w.StaleReasons) > 0
	return w
}

// lagsMore orders by lag in time, then in records; an unknown lag is larger than any.
func lagsMore(a, b *presencev1.Freshness) bool {
	switch {
	case a.LagMs == nil || b.LagMs == nil:
		return a.LagMs == nil && b.LagMs != nil
	case a.GetLagMs() != b.GetLagMs():
		return a.GetLagMs() > b.GetLagMs()
	}
	return a.GetLagRecords() > b.GetLagRecords()
}

// worse returns the graver word.
func worse(a, b string) string {
	for _, w := range []string{feedDown, nodeGone, feedGap, nodeSilent, nodeUnheard} {
		if a == w || b == w {
			return w
		}
	}
	return healthOK
}

// timestamp converts epoch milliseconds; nil for 0, which means unknown.
func timestamp(ms int64) *timestamppb.Timestamp {
	if ms == 0 {
		return nil
	}
	return timestamppb.New(time.UnixMilli(ms))
}
