package query

import (
	"cmp"
	"container/heap"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// maxRankings bounds the rankings of usernames at a time: each reads all of them.
	maxRankings = 2
	// rankingWait is how long a ranking waits for its turn.
	rankingWait = time.Second
	// rankingTimeout bounds a ranking; REST answers within a little more.
	rankingTimeout = 20 * time.Second
	// maxUsernames bounds the usernames that one ranking reads.
	maxUsernames = 5_000_000
	// usernamesPerRead is how many are read at a time.
	usernamesPerRead = 10_000
)

// GetStats implements the call of both transports.
func (a *answers) GetStats(ctx context.Context, req *presencev1.GetStatsRequest) (*presencev1.Stats, error) {
	cluster, err := a.validCluster(req.GetCluster())
	if err != nil {
		return nil, err
	}
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	filter := filterOf("GetStats", cluster)
	after, more, err := a.tokens.read(req.GetPageToken(), filter)
	if err != nil {
		return nil, err
	}
	if more && req.GetSkipUsernames() {
		return nil, invalid("skip_usernames", "skip_usernames leaves out what page_token asks for; give one of them")
	}
	r, err := a.counts(ctx, cluster)
	if err != nil {
		return nil, err
	}
	stats := &presencev1.Stats{Cluster: cluster, Clients: &presencev1.StatusCounts{}, Exact: r.GetExact(), Freshness: a.worstOf(r)}
	stats.Nodes = nodeCounts(r.GetCounts())
	for _, n := range stats.GetNodes() {
		addStatus(stats.GetClients(), n.GetClients())
	}
	stats.Clusters = clusterCounts(r.GetClusters())
	if req.GetSkipUsernames() {
		return stats, nil
	}
	best := &ranking{size: size, all: !more, after: &presencev1.UsernameCount{Clients: after.number, Username: after.text}}
	if err := a.rank(ctx, cluster, best, stats); err != nil {
		return nil, err
	}
	stats.Usernames = best.sorted()
	if best.more {
		last := stats.GetUsernames()[len(stats.GetUsernames())-1]
		stats.NextPageToken = a.tokens.make(filter, place{last.GetClients(), last.GetUsername()})
	}
	return stats, nil
}

// counts reads the counters of all partitions.
func (a *answers) counts(ctx context.Context, cluster string) (*presencev1.GetCountsResponse, error) {
	within, cancel := context.WithTimeout(ctx, a.cfg.RequestTimeout)
	defer cancel()
	r, err := a.reader.GetCounts(within, &presencev1.GetCountsRequest{Cluster: cluster})
	if err != nil {
		return nil, a.readError(ctx, err, nil)
	}
	return r, a.readAll(ctx, r)
}

// addCount adds clients to the count of their status, and to the total.
func addCount(to *presencev1.StatusCounts, status string, clients int64) {
	switch status {
	case "online":
		to.Online += clients
	case "offline":
		to.Offline += clients
	case "unknown":
		to.Unknown += clients
	}
	to.Total += clients
}

func addStatus(to, of *presencev1.StatusCounts) {
	to.Online += of.GetOnline()
	to.Offline += of.GetOffline()
	to.Unknown += of.GetUnknown()
	to.Total += of.GetTotal()
}

// nodeCounts are ascending by name. A counter of nobody is none.
func nodeCounts(counts []*presencev1.StateCount) []*presencev1.NodeCounts {
	byName := make(map[string]*presencev1.NodeCounts)
	var nodes []*presencev1.NodeCounts
	for _, c := range counts {
		if c.GetClients() == 0 {
			continue
		}
		n := byName[c.GetNode()]
		if n == nil {
			n = &presencev1.NodeCounts{Node: c.GetNode(), Clients: &presencev1.StatusCounts{}}
			byName[c.GetNode()] = n
			nodes = append(nodes, n)
		}
		addCount(n.GetClients(), c.GetStatus(), c.GetClients())
	}
	slices.SortFunc(nodes, func(a, b *presencev1.NodeCounts) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	return nodes
}

func clusterCounts(counts []*presencev1.StateCount) []*presencev1.ClusterCounts {
	byName := make(map[string]*presencev1.ClusterCounts)
	var clusters []*presencev1.ClusterCounts
	for _, c := range counts {
		if c.GetClients() == 0 {
			continue
		}
		n := byName[c.GetCluster()]
		if n == nil {
			n = &presencev1.ClusterCounts{Cluster: c.GetCluster(), Clients: &presencev1.StatusCounts{}}
			byName[c.GetCluster()] = n
			clusters = append(clusters, n)
		}
		addCount(n.GetClients(), c.GetStatus(), c.GetClients())
	}
	slices.SortFunc(clusters, func(a, b *presencev1.ClusterCounts) int { return cmp.Compare(a.GetCluster(), b.GetCluster()) })
	return clusters
}

// rank offers all usernames of a cluster to best, in its turn, and joins what the reads say of themselves to stats.
func (a *answers) rank(ctx context.Context, cluster string, best *ranking, stats *presencev1.Stats) error {
	turn, cancel := context.WithTimeout(ctx, rankingWait)
	err := a.ranking.Acquire(turn, 1)
	cancel()
	if err != nil {
		if ctx.Err() != nil {
			return a.readError(ctx, ctx.Err(), nil)
		}
		return retryLater(codes.ResourceExhausted, "as many rankings of usernames are under way as may be; ask again, or set skip_usernames", retryDelay)
	}
	defer a.ranking.Release(1)
	within, cancel := context.WithTimeout(ctx, rankingTimeout)
	defer cancel()
	ask := &presencev1.ListUsernamesRequest{Cluster: cluster, Limit: usernamesPerRead}
	seen := 0
	for {
		r, err := a.usernames(within, ctx, ask)
		if err != nil {
			return err
		}
		stats.Exact = stats.GetExact() && r.GetExact()
		stats.Freshness = worst([]*presencev1.Freshness{stats.GetFreshness(), a.worstOf(r)})
		for _, u := range r.GetUsernames() {
			best.offer(u)
		}
		n := len(r.GetUsernames())
		if seen += n; seen > maxUsernames {
			return invalid("skip_usernames", fmt.Sprintf("cluster %s has more than %d usernames, which is more than one call ranks; set skip_usernames", cluster, maxUsernames))
		}
		if r.GetEnd() {
			return nil
		}
		if n == 0 || ask.After != nil && r.GetUsernames()[n-1].GetUsername() <= ask.GetAfter() {
			return a.internal(ctx, errors.New("a list of usernames makes no progress"))
		}
		last := r.GetUsernames()[n-1].GetUsername()
		ask = &presencev1.ListUsernamesRequest{Cluster: cluster, Limit: usernamesPerRead, After: &last}
	}
}

// usernames reads some; within bounds the whole ranking, ctx is the caller's.
func (a *answers) usernames(within, ctx context.Context, ask *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
	each, cancel := context.WithTimeout(within, a.cfg.RequestTimeout)
	defer cancel()
	r, err := a.reader.ListUsernames(each, ask)
	switch {
	case err != nil && within.Err() != nil && ctx.Err() == nil:
		return nil, unavailable(fmt.Sprintf("the usernames could not be ranked within %v; set skip_usernames", rankingTimeout))
	case err != nil:
		return nil, a.readError(ctx, err, nil)
	}
	return r, a.readAll(ctx, r)
}

// ranking keeps the largest counts after a place: largest first, then ascending by name. It holds size of them, the least on top.
type ranking struct {
	size  int
	all   bool // from the beginning
	after *presencev1.UsernameCount
	kept  []*presencev1.UsernameCount
	more  bool // there are others after those kept
}

func compareUsernames(a, b *presencev1.UsernameCount) int {
	return cmp.Or(cmp.Compare(b.GetClients(), a.GetClients()), cmp.Compare(a.GetUsername(), b.GetUsername()))
}

// offer takes a username in if it is one of the page.
func (r *ranking) offer(s *presencev1.StateUsername) {
	if s.GetClients() <= 0 {
		return
	}
	if len(r.kept) == r.size && s.GetClients() < r.kept[0].GetClients() {
		r.more = true
		return
	}
	u := &presencev1.UsernameCount{Username: s.GetUsername(), Clients: s.GetClients()}
	if !r.all && compareUsernames(u, r.after) <= 0 {
		return
	}
	if len(r.kept) < r.size {
		heap.Push(r, u)
		return
	}
	r.more = true
	if compareUsernames(u, r.kept[0]) < 0 {
		r.kept[0] = u
		heap.Fix(r, 0)
	}
}

func (r *ranking) sorted() []*presencev1.UsernameCount {
	slices.SortFunc(r.kept, compareUsernames)
	return r.kept
}

// Len, Less, Swap, Push and Pop implement heap.Interface.
func (r *ranking) Len() int           { return len(r.kept) }
func (r *ranking) Less(i, j int) bool { return compareUsernames(r.kept[i], r.kept[j]) > 0 }
func (r *ranking) Swap(i, j int)      { r.kept[i], r.kept[j] = r.kept[j], r.kept[i] }

// Push adds an element.
func (r *ranking) Push(x any) {
	if u, ok := x.(*presencev1.UsernameCount); ok {
		r.kept = append(r.kept, u)
	}
}

// Pop removes the last element.
func (r *ranking) Pop() any {
	n := len(r.kept) - 1
	u := r.kept[n]
	r.kept = r.kept[:n]
	return u
}
