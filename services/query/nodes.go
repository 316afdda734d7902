package query

import (
	"cmp"
	"context"
	"slices"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Words of Feed.state, besides ok.
const (
	feedDisconnected = "disconnected"
	feedExpired      = "expired" // no heartbeat came within the lease
)

// ListNodes implements the call of both transports.
func (a *answers) ListNodes(ctx context.Context, req *presencev1.ListNodesRequest) (*presencev1.ListNodesResponse, error) {
	cluster, err := a.validCluster(req.GetCluster())
	if err != nil {
		return nil, err
	}
	r, err := a.counts(ctx, cluster)
	if err != nil {
		return nil, err
	}
	h, clock := r.GetHealth(), a.clock()
	answer := &presencev1.ListNodesResponse{Cluster: cluster, Complete: h.GetComplete(), Freshness: a.worstOf(r)}
	clients := make(map[string]*presencev1.StatusCounts)
	for _, n := range nodeCounts(r.GetCounts()) {
		clients[n.GetNode()] = n.GetClients()
	}
	for _, n := range h.GetNodes() {
		answer.Nodes = append(answer.Nodes, &presencev1.Node{
			Node: n.GetNode(), State: nodeHealth(h, n.GetNode()), StartedAt: timestamp(n.GetStartedMs()), AliveAt: timestamp(n.GetAliveMs()),
			SilentAt: timestamp(n.GetSilentMs()), GoneAt: timestamp(n.GetGoneMs()), Clients: cmp.Or(clients[n.GetNode()], &presencev1.StatusCounts{}),
		})
		delete(clients, n.GetNode())
	}
	for name, counts := range clients {
		if name != "" {
			answer.Nodes = append(answer.Nodes, &presencev1.Node{Node: name, State: nodeUnheard, Clients: counts})
		}
	}
	slices.SortFunc(answer.GetNodes(), func(a, b *presencev1.Node) int { return cmp.Compare(a.GetNode(), b.GetNode()) })
	for _, f := range h.GetFeeds() {
		state := healthOK
		switch {
		case clock.ageMS(f.GetAliveMs()) > f.GetLeaseMs():
			state = feedExpired
		case !f.GetConnected():
			state = feedDisconnected
		}
		answer.Feeds = append(answer.Feeds, &presencev1.Feed{
			Bridge: f.GetBridge(), State: state, AliveAt: timestamp(f.GetAliveMs()), LeaseMs: f.GetLeaseMs(), DroppedCount: f.GetDroppedCount(),
		})
	}
	slices.SortFunc(answer.GetFeeds(), func(a, b *presencev1.Feed) int { return cmp.Compare(a.GetBridge(), b.GetBridge()) })
	if gap := h.GetGap(); gap != nil {
		answer.Gap = &presencev1.Gap{From: timestamp(gap.GetFromMs()), To: timestamp(gap.GetToMs())}
	}
	return answer, nil
}
