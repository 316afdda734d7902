package query

import (
	"slices"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// joinParts makes one answer of several owners' answers. Each owner has folded all of node-events, but perhaps not equally far: where
// they differ, the more doubtful view is taken.
func joinParts(parts []*presencev1.GetStatesResponse, keys int) *presencev1.GetStatesResponse {
	whole := &presencev1.GetStatesResponse{Entries: make([]*presencev1.StateEntry, 0, keys)}
	for i, p := range parts {
		whole.Entries = append(whole.Entries, p.GetEntries()...)
		whole.Partitions = append(whole.Partitions, p.GetPartitions()...)
		if i == 0 {
			whole.Health = p.GetHealth()
			continue
		}
		whole.Health = joinHealth(whole.GetHealth(), p.GetHealth())
	}
	slices.SortFunc(whole.Entries, func(a, b *presencev1.StateEntry) int { return int(a.GetIndex()) - int(b.GetIndex()) })
	return whole
}

func joinHealth(a, b *presencev1.ClusterHealth) *presencev1.ClusterHealth {
	h := &presencev1.ClusterHealth{Complete: a.GetComplete() && b.GetComplete(), Gap: a.GetGap()}
	if h.Gap == nil {
		h.Gap = b.GetGap()
	}
	h.Nodes = joinBy(a.GetNodes(), b.GetNodes(), (*presencev1.NodeHealth).GetNode, func(x, y *presencev1.NodeHealth) *presencev1.NodeHealth {
		if y.GetGone() && !x.GetGone() || y.GetSilent() && !x.GetSilent() && !x.GetGone() {
			return y
		}
		return x
	})
	h.Feeds = joinBy(a.GetFeeds(), b.GetFeeds(), (*presencev1.FeedHealth).GetBridge, func(x, y *presencev1.FeedHealth) *presencev1.FeedHealth {
		if x.GetConnected() && !y.GetConnected() || x.GetConnected() == y.GetConnected() && y.GetAliveMs() < x.GetAliveMs() {
			return y
		}
		return x
	})
	return h
}

// joinBy joins two lists by name; pick chooses where both have one.
func joinBy[T any](a, b []T, name func(T) string, pick func(x, y T) T) []T {
	joined := slices.Clone(a)
	for _, y := range b {
		i := slices.IndexFunc(joined, func(x T) bool { return name(x) == name(y) })
		if i < 0 {
			joined = append(joined, y)
			continue
		}
		joined[i] = pick(joined[i], y)
	}
	return joined
}
