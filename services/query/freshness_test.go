package query

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func TestFreshness(t *testing.T) {
	now := time.UnixMilli(1_760_000_000_000)
	ago := func(d time.Duration) int64 { return now.Add(-d).UnixMilli() }
	type input struct {
		p        *presencev1.PartitionFreshness
		h        *presencev1.ClusterHealth
		node     string
		routedAt time.Time
	}
	for _, c := range []struct {
		name    string
		change  func(*input)
		reasons string
		records int64 // -1: unknown
		ms      int64
		feed    string
		node    string
	}{
		{"quiet for a day", func(in *input) { in.p.AppliedTimeMs = ago(24 * time.Hour) }, "", 0, 1000, "ok", "ok"},
		{"nothing was ever applied", func(in *input) { in.p.AppliedTimeMs, in.p.AppliedOffset, in.p.EndOffset = 0, 0, 0 }, "", 0, 1000, "ok", "ok"},
		{"end offset of just now", func(in *input) { in.p.EndOffsetTimeMs = ago(0) }, "", 0, 0, "ok", "ok"},
		{"end offset of a while ago, and a record applied since", func(in *input) {
			in.p.EndOffsetTimeMs, in.p.AppliedTimeMs = ago(8*time.Second), ago(2*time.Second)
		}, "", 0, 2000, "ok", "ok"},
		{"a little behind", func(in *input) { in.p.EndOffset = 107 }, "", 7, 1000, "ok", "ok"},
		{"at the bound", func(in *input) { in.p.EndOffset, in.p.AppliedTimeMs = 107, ago(10*time.Second) }, "", 7, 10_000, "ok", "ok"},
		{"quiet for long, and one record on its way", func(in *input) {
			in.p.EndOffset, in.p.AppliedTimeMs, in.p.CaughtUpTimeMs = 101, ago(time.Hour), ago(300*time.Millisecond)
		}, "", 1, 300, "ok", "ok"},
		{"too far behind", func(in *input) { in.p.EndOffset, in.p.AppliedTimeMs = 107, ago(10_001*time.Millisecond) }, "lagging", 7, 10_001, "ok", "ok"},
		{"applied past the end offset last reported", func(in *input) { in.p.EndOffset = 99 }, "", 0, 1000, "ok", "ok"},
		{"end offset unknown", func(in *input) { in.p.EndOffset = -1 }, "lag_unknown", -1, 0, "ok", "ok"},
		{"end offset known for long", func(in *input) { in.p.EndOffsetTimeMs = ago(10_001 * time.Millisecond) }, "lag_unknown", -1, 0, "ok", "ok"},
		{"nothing said about the partition", func(in *input) { in.p = nil }, "lag_unknown catching_up", -1, 0, "ok", "ok"},
		{"catching up", func(in *input) { in.p.Ready = false }, "catching_up", 0, 1000, "ok", "ok"},
		{"no feed", func(in *input) { in.h.Feeds = nil }, "feed_down", 0, 1000, "down", "ok"},
		{"no health", func(in *input) { in.h = nil }, "feed_down", 0, 1000, "down", "unheard"},
		{"feed not connected", func(in *input) { in.h.Feeds[0].Connected = false }, "feed_down", 0, 1000, "down", "ok"},
		{"feed at the end of its lease", func(in *input) { in.h.Feeds[0].AliveMs = ago(30 * time.Second) }, "", 0, 1000, "ok", "ok"},
		{"feed past its lease", func(in *input) { in.h.Feeds[0].AliveMs = ago(30_001 * time.Millisecond) }, "feed_down", 0, 1000, "down", "ok"},
		{"feed's clock is ahead", func(in *input) { in.h.Feeds[0].AliveMs = ago(-time.Minute) }, "", 0, 1000, "ok", "ok"},
		{"one of two feeds is down", func(in *input) {
			in.h.Feeds = append([]*presencev1.FeedHealth{{Bridge: "b2"}}, in.h.Feeds...)
		}, "", 0, 1000, "ok", "ok"},
		{"gap", func(in *input) { in.h.Gap = &presencev1.FeedGap{FromMs: 1, ToMs: 2} }, "feed_gap", 0, 1000, "gap", "ok"},
		{"gap that lasts", func(in *input) {
			in.h.Gap, in.h.Feeds[0].Connected = &presencev1.FeedGap{FromMs: 1}, false
		}, "feed_gap feed_down", 0, 1000, "down", "ok"},
		{"node silent", func(in *input) { in.h.Nodes[0].Silent = true }, "", 0, 1000, "ok", "silent"},
		{"node gone", func(in *input) { in.h.Nodes[0].Silent, in.h.Nodes[0].Gone = true, true }, "", 0, 1000, "ok", "gone"},
		{"another node gone", func(in *input) { in.h.Nodes[0].Gone, in.node = true, "n2" }, "", 0, 1000, "ok", "unheard"},
		{"no node", func(in *input) { in.h.Nodes[0].Gone, in.node = true, "" }, "", 0, 1000, "ok", "ok"},
		{"routing at the bound", func(in *input) { in.routedAt = now.Add(-10 * time.Second) }, "", 0, 1000, "ok", "ok"},
		{"routing too old", func(in *input) { in.routedAt = now.Add(-10*time.Second - 1) }, "routing_stale", 0, 1000, "ok", "ok"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := &input{
				p: &presencev1.PartitionFreshness{
					Partition: 3, AppliedOffset: 100, EndOffset: 100, AppliedTimeMs: ago(time.Second), EndOffsetTimeMs: ago(time.Second), Ready: true,
				},
				h: &presencev1.ClusterHealth{
					Nodes: []*presencev1.NodeHealth{{Node: "n1"}},
					Feeds: []*presencev1.FeedHealth{{Bridge: "b1", Connected: true, AliveMs: ago(time.Second), LeaseMs: 30_000}},
				},
				node: "n1",
			}
			c.change(in)
			f := clock{now: now, staleAfter: 10 * time.Second, routedAt: in.routedAt}.freshness(in.p, in.h, in.node)
			if got := strings.Join(f.GetStaleReasons(), " "); got != c.reasons || f.GetStale() != (c.reasons != "") {
				t.Errorf("stale %v because %q, want %q", f.GetStale(), got, c.reasons)
			}
			if known := f.LagRecords != nil; known != (c.records >= 0) || known != (f.LagMs != nil) {
				t.Errorf("lag is %v records, %v ms", f.LagRecords, f.LagMs)
			} else if known && (f.GetLagRecords() != c.records || f.GetLagMs() != c.ms) {
				t.Errorf("lag is %d records, %d ms; want %d, %d", f.GetLagRecords(), f.GetLagMs(), c.records, c.ms)
			}
			if f.GetFeed() != c.feed || f.GetNode() != c.node {
				t.Errorf("feed %q, node %q; want %q, %q", f.GetFeed(), f.GetNode(), c.feed, c.node)
			}
		})
	}
}

func TestWorst(t *testing.T) {
	fine := &presencev1.Freshness{Partition: 1, LagRecords: proto.Int64(0), LagMs: proto.Int64(0), Feed: "ok", Node: "ok"}
	late := &presencev1.Freshness{Partition: 2, LagRecords: proto.Int64(5), LagMs: proto.Int64(20_000), Stale: true, StaleReasons: []string{"lagging"}, Feed: "ok", Node: "silent"}
	dark := &presencev1.Freshness{Partition: 3, Stale: true, StaleReasons: []string{"lag_unknown", "feed_gap"}, Feed: "gap", Node: "ok"}
	if worst(nil) != nil {
		t.Error("worst of none")
	}
	if w := worst([]*presencev1.Freshness{fine}); !proto.Equal(w, fine) {
		t.Errorf("worst of one is %v", w)
	}
	for _, order := range [][]*presencev1.Freshness{{fine, late}, {late, fine}} {
		if w := worst(order); !proto.Equal(w, late) {
			t.Errorf("worst is %v, want %v", w, late)
		}
	}
	for _, order := range [][]*presencev1.Freshness{{fine, late, dark}, {dark, late, fine}, {late, dark, late}} {
		w := worst(order)
		want := []string{"lagging", "lag_unknown", "feed_gap"}
		if w.GetPartition() != 3 || w.LagMs != nil || !w.GetStale() || !slices.Equal(w.GetStaleReasons(), want) || w.GetFeed() != "gap" || w.GetNode() != "silent" {
			t.Errorf("worst is %v", w)
		}
	}
}
