package presencectl

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// testNow is the time of all tests.
var testNow = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(testNow.Add(-d)) }

// hostile is a client ID that would clear the screen, go back a line, and turn what follows around.
const hostile = "x\x1b[2J\u009b1A\r\n\u202eevil"

// fake is a PresenceService that knows a few clients.
type fake struct {
	presencev1.UnimplementedPresenceServiceServer
	clients []*presencev1.Client
	watch   func(*presencev1.WatchClientsRequest, grpc.ServerStreamingServer[presencev1.WatchClientsResponse]) error
	fail    error // of GetStatus and DeleteClient

	mu            sync.Mutex
	fails         int // how often they fail; 0: always
	deletions     int
	authorization []string
	batches       []int
	cluster       string // of the last GetStatus
}

func newFake() *fake {
	client := func(id, status, reason string, since time.Duration) *presencev1.Client {
		return &presencev1.Client{
			ClientId: id, Cluster: "default", Status: status, StatusReason: reason, Belief: strings.Replace(status, unknown, online, 1), Since: ago(since),
			Connection: &presencev1.ClientConnection{
				Key: "1769853600000", Node: "emqx@10.0.3.11", ConnectedAt: ago(since), Username: "fleet", Peer: "203.0.113.7", ProtocolVersion: 5,
				KeepAliveS: proto.Uint32(60), CleanStart: proto.Bool(false),
			},
			LastTransition:  &presencev1.Transition{PreviousStatus: offline, Time: ago(since), EventOffset: 17, NodeEventOffset: 3},
			DetectionDelayS: proto.Uint32(90),
			Freshness:       &presencev1.Freshness{Partition: 3, AppliedOffset: 18, LagRecords: proto.Int64(0), LagMs: proto.Int64(0), Feed: "ok", Node: "ok"},
		}
	}
	stale := client("late", online, "connected", time.Hour)
	stale.Freshness = &presencev1.Freshness{Stale: true, StaleReasons: []string{"lagging", "feed_gap"}, LagRecords: proto.Int64(7), LagMs: proto.Int64(12_000)}
	f := &fake{clients: []*presencev1.Client{
		client("-", online, "connected", time.Minute),
		client("dev1", online, "connected", 26*time.Hour),
		client("dev2", offline, "closed", 5*time.Minute),
		client("dev3", unknown, "order_undecided", 1500*time.Millisecond),
		stale,
		client(hostile, online, "connected", time.Second),
		client("with space", online, "connected", time.Second),
	}}
	f.clients[5].Connection.Node = "node\t\x1b]0;title\a"
	return f
}

func (f *fake) start(t *testing.T, opts ...grpc.ServerOption) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(append(opts,
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			f.mu.Lock()
			f.authorization = metadata.ValueFromIncomingContext(ctx, "authorization")
			f.mu.Unlock()
			return handler(ctx, req)
		}))...)
	presencev1.RegisterPresenceServiceServer(server, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return l.Addr().String()
}

func (f *fake) find(id string) *presencev1.Client {
	i := slices.IndexFunc(f.clients, func(c *presencev1.Client) bool { return c.GetClientId() == id })
	if i < 0 {
		return nil
	}
	return f.clients[i]
}

// failure returns the error of a call that is to fail; mu must be held.
func (f *fake) failure() error {
	err := f.fail
	if f.fails > 0 {
		if f.fails--; f.fails == 0 {
			f.fail = nil
		}
	}
	return err
}

func (f *fake) GetStatus(_ context.Context, req *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	f.mu.Lock()
	f.cluster = req.GetCluster()
	err := f.failure()
	f.mu.Unlock()
	c := f.find(req.GetClientId())
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		return &presencev1.GetStatusResponse{Status: offline, StatusReason: "never_seen"}, nil
	}
	return &presencev1.GetStatusResponse{Online: c.GetBelief() == online, Status: c.GetStatus(), StatusReason: c.GetStatusReason(), Freshness: c.GetFreshness()}, nil
}

func (f *fake) GetClient(_ context.Context, req *presencev1.GetClientRequest) (*presencev1.Client, error) {
	if c := f.find(req.GetClientId()); c != nil {
		return c, nil
	}
	return nil, status.Errorf(codes.NotFound, "client %q of cluster default was never seen; it is offline", req.GetClientId())
}

func (f *fake) BatchGetClients(_ context.Context, req *presencev1.BatchGetClientsRequest) (*presencev1.BatchGetClientsResponse, error) {
	f.mu.Lock()
	f.batches = append(f.batches, len(req.GetClientIds()))
	f.mu.Unlock()
	answer := &presencev1.BatchGetClientsResponse{}
	for _, id := range req.GetClientIds() {
		c := f.find(id)
		if c == nil {
			c = &presencev1.Client{ClientId: id, Cluster: "default", Status: offline, StatusReason: "never_seen", Belief: offline}
		}
		answer.Clients = append(answer.Clients, c)
	}
	return answer, nil
}

func (f *fake) ListClients(_ context.Context, req *presencev1.ListClientsRequest) (*presencev1.ListClientsResponse, error) {
	answer := &presencev1.ListClientsResponse{Exact: true}
	skip := len(req.GetPageToken())
	total := int64(0)
	for _, c := range f.clients {
		if !strings.HasPrefix(c.GetClientId(), req.GetClientIdPrefix()) || req.GetStatus() != "" && c.GetStatus() != req.GetStatus() {
			continue
		}
		total++
		switch {
		case int(total) <= skip:
		case len(answer.Clients) < min(int(req.GetPageSize()), 3) || req.GetPageSize() == 0:
			answer.Clients = append(answer.Clients, c)
		default:
			answer.NextPageToken = strings.Repeat("t", skip+len(answer.Clients))
		}
	}
	if req.GetClientIdPrefix() == "" {
		answer.Total = &total
	}
	return answer, nil
}

func (f *fake) ListSessions(_ context.Context, req *presencev1.ListSessionsRequest) (*presencev1.ListSessionsResponse, error) {
	answer := &presencev1.ListSessionsResponse{ClientId: req.GetClientId(), Cluster: "default", CompleteSince: ago(7 * 24 * time.Hour), Sessions: []*presencev1.Session{
		{State: "open", Node: "n1", Key: "3", ConnectedAt: ago(time.Hour), Username: "fleet", Peer: "203.0.113.7", ProtocolVersion: 5},
		{State: "closed", Node: "n1", Key: "2", ConnectedAt: ago(5 * time.Hour), DisconnectedAt: ago(2 * time.Hour), End: "stated", Reason: "keep_alive_timeout", RawReason: "keepalive timeout"},
		{State: "closed", Node: "n2", Key: "1", ConnectedAt: ago(50 * time.Hour), DisconnectedAt: ago(5 * time.Hour), End: "inferred", Reason: "superseded"},
	}}
	if req.GetAt() != nil {
		answer.At = &presencev1.StatusAt{Time: req.GetAt(), Status: online, Reason: "connected", Session: proto.Int32(0)}
	}
	return answer, nil
}

func (f *fake) ExplainClient(_ context.Context, req *presencev1.ExplainClientRequest) (*presencev1.Explanation, error) {
	return &presencev1.Explanation{
		ClientId: req.GetClientId(), Cluster: "default", Status: unknown, StatusReason: "close_ambiguous", Belief: offline, Since: ago(time.Minute),
		Rule:        "The end names no connection. \x1b[31mIt may be another's.",
		Connections: []*presencev1.ExplainedConnection{{Node: "n1", Current: true, Summary: "Opened at n1."}, {Node: "n2", Summary: "Opened at n2, and ended."}},
		Observations: []*presencev1.ExplainedObservation{
			{Online: true, Node: "n1", QueryStart: ago(time.Hour), QueryEnd: ago(time.Hour), Source: "emqx-rest"}},
		Facts: []*presencev1.ExplainedFact{
			{Offset: 12, Type: "disconnected", Outcome: "applied", Explanation: "It changed what is known.", Node: "n1", Time: ago(time.Minute), Received: ago(time.Minute), Reason: proto.String("normal")},
			{Offset: 9, Type: "connected", Outcome: "duplicate", Explanation: "A copy.", Node: "n1", Time: ago(time.Hour), Received: ago(time.Hour), Key: proto.String("k\n")},
		},
		FactsNote:   "Older facts are not listed.",
		Transitions: []*presencev1.ExplainedTransition{{Status: unknown, PreviousStatus: online, StatusReason: "close_ambiguous", EventOffset: 12, NodeEventOffset: 4, Cause: "client_fact"}},
		Nodes:       []*presencev1.ExplainedNode{{Node: "n1", State: "ok", Summary: "Its clients are as its events say."}},
		Feed:        &presencev1.ExplainedFeed{State: "ok", Summary: "Nothing is missing.", Complete: true},
	}, nil
}

func (f *fake) GetStats(_ context.Context, req *presencev1.GetStatsRequest) (*presencev1.Stats, error) {
	counts := &presencev1.StatusCounts{Online: 5, Offline: 1, Unknown: 1, Total: 7}
	s := &presencev1.Stats{
		Cluster: "default", Clients: counts, Exact: true,
		Nodes:    []*presencev1.NodeCounts{{Node: "", Clients: &presencev1.StatusCounts{Offline: 1, Total: 1}}, {Node: "emqx@10.0.3.11", Clients: counts}, {Node: "a\nb", Clients: counts}},
		Clusters: []*presencev1.ClusterCounts{{Cluster: "default", Clients: counts}, {Cluster: "eu-1", Clients: &presencev1.StatusCounts{Online: 3, Total: 3}}},
	}
	switch {
	case req.GetSkipUsernames():
	case req.GetPageToken() == "":
		s.Usernames, s.NextPageToken = []*presencev1.UsernameCount{{Username: "fleet", Clients: 6}}, "u"
	default:
		s.Usernames = []*presencev1.UsernameCount{{Username: "ops", Clients: 1}}
	}
	return s, nil
}

func (f *fake) ListNodes(context.Context, *presencev1.ListNodesRequest) (*presencev1.ListNodesResponse, error) {
	return &presencev1.ListNodesResponse{
		Cluster: "default",
		Nodes: []*presencev1.Node{
			{Node: "emqx@10.0.3.11", State: "ok", StartedAt: ago(240 * time.Hour), AliveAt: ago(4 * time.Second), Clients: &presencev1.StatusCounts{Online: 5, Offline: 1, Total: 6}},
			{Node: "emqx@10.0.3.12", State: "silent", StartedAt: ago(240 * time.Hour), AliveAt: ago(200 * time.Second), SilentAt: ago(110 * time.Second), Clients: &presencev1.StatusCounts{Unknown: 1, Total: 1}},
			{Node: "$(reboot)", State: "unheard"},
		},
		Feeds:    []*presencev1.Feed{{Bridge: "bridge-1", State: "ok", AliveAt: ago(time.Second), LeaseMs: 10_000, DroppedCount: 12}},
		Gap:      &presencev1.Gap{From: ago(time.Hour), To: ago(59 * time.Minute)},
		Complete: false,
	}, nil
}

func (f *fake) DeleteClient(_ context.Context, req *presencev1.DeleteClientRequest) (*presencev1.DeleteClientResponse, error) {
	f.mu.Lock()
	f.deletions++
	err := f.failure()
	f.mu.Unlock()
	if err != nil {
		return nil, err
	}
	answer := &presencev1.DeleteClientResponse{ClientId: req.GetClientId(), Cluster: "default", AsOf: ago(0), Partition: 2, Offset: 40, Applied: true, EventsGoneBy: ago(-7 * 24 * time.Hour)}
	if req.GetClientId() == "dev2" {
		answer.Applied, answer.EventsGoneBy = false, nil
	}
	return answer, nil
}

func (f *fake) CheckIndexes(_ context.Context, req *presencev1.CheckIndexesRequest) (*presencev1.CheckIndexesResponse, error) {
	return &presencev1.CheckIndexesResponse{Ok: false, Partitions: []*presencev1.IndexCheck{
		{Partition: 0, Clients: 10, IndexEntries: 30, Counters: 4},
		{Partition: 1, Clients: 11, IndexEntries: 32, Counters: 4, Differences: []string{"username index: \x1b[0m is missing"}, Repairing: req.GetRepair()},
	}}, nil
}

func (f *fake) CompareReplicas(_ context.Context, req *presencev1.CompareReplicasRequest) (*presencev1.CompareReplicasResponse, error) {
	all := []*presencev1.ReplicaComparison{
		{Partition: 0, Replica: "b", Reference: "a", Offset: 40, Clients: 10, ReferenceClients: 10, Equal: true, Digest: "11", ReferenceDigest: "11"},
		{Partition: 1, Replica: "b", Reference: "a", Offset: 41, Clients: 11, ReferenceClients: 12, Digest: "21", ReferenceDigest: "22",
			FirstDifference: &presencev1.ReplicaDifference{Cluster: "default", ClientId: hostile, ReferenceDigest: "c0ffee"}},
		{Partition: 2, Replica: "b", Reference: "a", Error: "partition 2 has no owner in replica b\x1b[0m"},
	}
	if len(req.GetPartitions()) == 0 {
		return &presencev1.CompareReplicasResponse{Comparisons: all}, nil
	}
	answer := &presencev1.CompareReplicasResponse{Ok: true}
	for _, p := range req.GetPartitions() {
		if p < 0 || int(p) >= len(all) {
			return nil, status.Errorf(codes.InvalidArgument, "partitions: there is no partition %d", p)
		}
		answer.Ok = answer.GetOk() && all[p].GetEqual()
		answer.Comparisons = append(answer.Comparisons, all[p])
	}
	return answer, nil
}

func (f *fake) WatchClients(req *presencev1.WatchClientsRequest, stream grpc.ServerStreamingServer[presencev1.WatchClientsResponse]) error {
	return f.watch(req, stream)
}

func limited() error {
	s, err := status.New(codes.ResourceExhausted, "too many calls of account dev").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(3 * time.Second)})
	if err != nil {
		return err
	}
	return s.Err()
}
