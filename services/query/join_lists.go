package query

import (
	"cmp"
	"slices"
	"strings"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// comparePositions orders places of a list.
func comparePositions(a, b *presencev1.Position) int {
	return cmp.Or(cmp.Compare(a.GetSinceMs(), b.GetSinceMs()), cmp.Compare(a.GetClientId(), b.GetClientId()))
}

// placer returns the place of an entry in the list that a request asks for.
type placer func(e *presencev1.StateEntry) *presencev1.Position

func byState(req *presencev1.ListStatesRequest) placer {
	if req.SinceFromMs != nil || req.SinceBeforeMs != nil {
		return func(e *presencev1.StateEntry) *presencev1.Position {
			return &presencev1.Position{SinceMs: e.GetSinceMs(), ClientId: e.GetClientId()}
		}
	}
	return func(e *presencev1.StateEntry) *presencev1.Position {
		return &presencev1.Position{ClientId: e.GetClientId()}
	}
}

// joinLists merges the lists of several owners. What lies beyond the place that one of them has read up to is left for the next page: a
// client that this one holds may come before.
func joinLists(parts []*presencev1.ListStatesResponse, at placer, limit int) *presencev1.ListStatesResponse {
	if len(parts) == 1 {
		return parts[0]
	}
	whole := &presencev1.ListStatesResponse{Exact: true}
	var total int64
	counted := true
	for i, p := range parts {
		whole.Entries = append(whole.Entries, p.GetEntries()...)
		whole.Partitions = append(whole.Partitions, p.GetPartitions()...)
		whole.Exact = whole.GetExact() && p.GetExact()
		whole.PartitionCount = p.GetPartitionCount()
		if to := p.GetReadTo(); to != nil && (whole.GetReadTo() == nil || comparePositions(to, whole.GetReadTo()) < 0) {
			whole.ReadTo = to
		}
		counted = counted && p.Total != nil
		total += p.GetTotal()
		whole.Health = joinHealths(i, whole.GetHealth(), p.GetHealth())
	}
	if counted {
		whole.Total = &total
	}
	slices.SortFunc(whole.Entries, func(a, b *presencev1.StateEntry) int { return comparePositions(at(a), at(b)) })
	if to := whole.GetReadTo(); to != nil {
		whole.Entries = slices.DeleteFunc(whole.Entries, func(e *presencev1.StateEntry) bool { return comparePositions(at(e), to) > 0 })
	}
	if limit > 0 && len(whole.GetEntries()) > limit {
		whole.Entries = whole.GetEntries()[:limit]
		whole.ReadTo = at(whole.GetEntries()[limit-1])
	}
	return whole
}

// joinHealths joins the health of the part with index i to that of the parts before.
func joinHealths(i int, whole, part *presencev1.ClusterHealth) *presencev1.ClusterHealth {
	if i == 0 {
		return part
	}
	return joinHealth(whole, part)
}

// joinCounts adds the counters of several owners.
func joinCounts(parts []*presencev1.GetCountsResponse) *presencev1.GetCountsResponse {
	whole := &presencev1.GetCountsResponse{Exact: true}
	for i, p := range parts {
		whole.Counts = append(whole.Counts, p.GetCounts()...)
		whole.Clusters = append(whole.Clusters, p.GetClusters()...)
		whole.Partitions = append(whole.Partitions, p.GetPartitions()...)
		whole.Exact = whole.GetExact() && p.GetExact()
		whole.PartitionCount = p.GetPartitionCount()
		whole.Health = joinHealths(i, whole.GetHealth(), p.GetHealth())
	}
	whole.Counts, whole.Clusters = addCounts(whole.GetCounts()), addCounts(whole.GetClusters())
	return whole
}

// addCounts adds the counters of the same name, and sorts them.
func addCounts(counts []*presencev1.StateCount) []*presencev1.StateCount {
	slices.SortStableFunc(counts, func(a, b *presencev1.StateCount) int {
		return cmp.Or(cmp.Compare(a.GetCluster(), b.GetCluster()), cmp.Compare(a.GetNode(), b.GetNode()), cmp.Compare(a.GetStatus(), b.GetStatus()))
	})
	var sums []*presencev1.StateCount
	for _, c := range counts {
		if n := len(sums); n > 0 && sums[n-1].GetCluster() == c.GetCluster() && sums[n-1].GetNode() == c.GetNode() && sums[n-1].GetStatus() == c.GetStatus() {
			sums[n-1].Clients += c.GetClients()
			continue
		}
		sums = append(sums, c)
	}
	return sums
}

// joinUsernames merges the lists of several owners and adds up who is in more than one. What lies beyond the last name of a list that is
// not at its end is left for the next call: that owner may hold more of it.
func joinUsernames(parts []*presencev1.ListUsernamesResponse, limit int) *presencev1.ListUsernamesResponse {
	if len(parts) == 1 {
		return parts[0]
	}
	whole := &presencev1.ListUsernamesResponse{Exact: true, End: true}
	var names []*presencev1.StateUsername
	to := ""
	for i, p := range parts {
		names = append(names, p.GetUsernames()...)
		whole.Partitions = append(whole.Partitions, p.GetPartitions()...)
		whole.Exact = whole.GetExact() && p.GetExact()
		whole.PartitionCount = p.GetPartitionCount()
		whole.Health = joinHealths(i, whole.GetHealth(), p.GetHealth())
		if p.GetEnd() {
			continue
		}
		last := ""
		if n := len(p.GetUsernames()); n > 0 {
			last = p.GetUsernames()[n-1].GetUsername()
		}
		if whole.GetEnd() || last < to {
			to = last
		}
		whole.End = false
	}
	slices.SortStableFunc(names, func(a, b *presencev1.StateUsername) int { return strings.Compare(a.GetUsername(), b.GetUsername()) })
	for _, u := range names {
		if !whole.GetEnd() && u.GetUsername() > to {
			break
		}
		n := len(whole.GetUsernames())
		switch {
		case n > 0 && whole.GetUsernames()[n-1].GetUsername() == u.GetUsername():
			whole.GetUsernames()[n-1].Clients += u.GetClients()
			continue
		case limit > 0 && n == limit:
			whole.End = false
			return whole
		}
		whole.Usernames = append(whole.GetUsernames(), u)
	}
	return whole
}
