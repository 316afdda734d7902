package presencetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// GetStats implements the call.
func (f *Fake) GetStats(_ context.Context, req *presencev1.GetStatsRequest) (*presencev1.Stats, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	cluster := clusterOf(req.GetCluster())
	after, err := place(req.GetPageToken(), "stats "+cluster)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &presencev1.Stats{Cluster: cluster, Clients: &presencev1.StatusCounts{}, Exact: true, Freshness: f.freshness()}
	clusters := map[string]*presencev1.StatusCounts{}
	for k, c := range f.clients {
		count(of(clusters, k.cluster), c.now.Status)
	}
	for _, name := range slices.Sorted(maps.Keys(clusters)) {
		answer.Clusters = append(answer.Clusters, &presencev1.ClusterCounts{Cluster: name, Clients: clusters[name]})
	}
	usernames := map[string]int64{}
	for _, k := range f.sorted(cluster) {
		c := f.clients[k].now
		count(answer.Clients, c.Status)
		if name := c.GetConnection().GetUsername(); name != "" {
			usernames[name]++
		}
	}
	nodes := f.nodes(cluster)
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		answer.Nodes = append(answer.Nodes, &presencev1.NodeCounts{Node: name, Clients: nodes[name]})
	}
	if req.GetSkipUsernames() {
		return answer, nil
	}
	names := slices.SortedFunc(maps.Keys(usernames), func(a, b string) int {
		return cmp.Or(cmp.Compare(usernames[b], usernames[a]), cmp.Compare(a, b))
	})
	position := func(name string) string { return fmt.Sprintf("%019d %s", 1<<62-usernames[name], name) }
	for _, name := range names {
		if after != "" && position(name) <= after {
			continue
		}
		if len(answer.Usernames) == size {
			answer.NextPageToken = token("stats "+cluster, position(answer.Usernames[size-1].Username))
			break
		}
		answer.Usernames = append(answer.Usernames, &presencev1.UsernameCount{Username: name, Clients: usernames[name]})
	}
	return answer, nil
}

// ListNodes implements the call: the nodes of the clients' connections, all well.
func (f *Fake) ListNodes(_ context.Context, req *presencev1.ListNodesRequest) (*presencev1.ListNodesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	answer := &presencev1.ListNodesResponse{Cluster: clusterOf(req.GetCluster()), Complete: true, Freshness: f.freshness()}
	nodes := f.nodes(answer.Cluster)
	for _, name := range slices.Sorted(maps.Keys(nodes)) {
		if name != "" {
			answer.Nodes = append(answer.Nodes, &presencev1.Node{Node: name, State: "ok", AliveAt: answer.Freshness.AppliedTime, Clients: nodes[name]})
		}
	}
	return answer, nil
}

// nodes counts the clients of a cluster by the node of their connection.
func (f *Fake) nodes(cluster string) map[string]*presencev1.StatusCounts {
	nodes := map[string]*presencev1.StatusCounts{}
	for k, c := range f.clients {
		if k.cluster == cluster {
			count(of(nodes, c.now.GetConnection().GetNode()), c.now.Status)
		}
	}
	return nodes
}

// of returns the counts of a name, new if there are none.
func of(counts map[string]*presencev1.StatusCounts, name string) *presencev1.StatusCounts {
	if counts[name] == nil {
		counts[name] = &presencev1.StatusCounts{}
	}
	return counts[name]
}

func count(counts *presencev1.StatusCounts, status string) {
	counts.Total++
	switch status {
	case presenceclient.StatusOnline:
		counts.Online++
	case presenceclient.StatusOffline:
		counts.Offline++
	default:
		counts.Unknown++
	}
}
