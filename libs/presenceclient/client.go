package presenceclient

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// maxBatch is the most client IDs that the service takes in one call, and maxBatchBytes a bound below the size of a message that it takes.
	maxBatch      = 1_000
	maxBatchBytes = 4 << 20
	// batchesAtOnce bounds the calls that one Batch has under way.
	batchesAtOnce = 4
)

// Client asks a Presence query service. Make one with [New] and share it: it is one connection.
type Client struct {
	conn    *grpc.ClientConn
	rpc     presencev1.PresenceServiceClient
	cluster string
	timeout time.Duration
	lookups *coalescer // nil: every lookup is a call
}

// New returns a client, which connects when it is first used. Close it when it is no longer needed.
func New(cfg Config) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure the presence client: %w", err)
	}
	cfg = cfg.withDefaults()
	conn, err := grpc.NewClient(cfg.Target, cfg.dialOptions()...)
	if err != nil {
		return nil, fmt.Errorf("configure the presence client: Target %q: %w", cfg.Target, err)
	}
	c := &Client{conn: conn, rpc: presencev1.NewPresenceServiceClient(conn), cluster: cfg.Cluster, timeout: cfg.Timeout}
	if cfg.Coalesce.Window > 0 {
		c.lookups = newCoalescer(cfg.Coalesce, c.rpc)
	}
	return c, nil
}

// Close ends the connection, and with it every call and watch of the client and of those that In returned.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("close the presence client: %w", err)
	}
	return nil
}

// In returns a client that asks about another MQTT broker cluster over the same connection.
func (c *Client) In(cluster string) *Client {
	in := *c
	in.cluster = cluster
	return &in
}

// RPC returns the generated client over the same connection, for requests that no method here makes.
func (c *Client) RPC() presencev1.PresenceServiceClient { return c.rpc }

// Status asks whether a client is connected. A client never seen is no error: it is offline, or unknown if the service cannot exclude that it
// was missed. It needs the permission connect, and with Coalesce read.
func (c *Client) Status(ctx context.Context, clientID string) (Status, error) {
	if err := checkID("client_id", clientID); err != nil {
		return Status{}, failed("ask for the status", err)
	}
	var answer Status
	err := c.lookup(ctx, clientID, func(ctx context.Context) error {
		r, err := c.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: clientID, Cluster: c.cluster})
		answer = Status{Word: r.GetStatus(), Belief: StatusOffline, Reason: r.GetStatusReason(), Freshness: r.GetFreshness()}
		if r.GetOnline() {
			answer.Belief = StatusOnline
		}
		return err
	}, func(shared *presencev1.Client) error {
		answer = StatusOf(shared)
		return nil
	})
	if err != nil {
		return Status{}, failed("ask for the status", err)
	}
	return answer, nil
}

// Get returns what is known of a client. The error of one that was never seen is told by [IsNeverSeen].
func (c *Client) Get(ctx context.Context, clientID string) (*presencev1.Client, error) {
	if err := checkID("client_id", clientID); err != nil {
		return nil, failed("get the client", err)
	}
	var answer *presencev1.Client
	err := c.lookup(ctx, clientID, func(ctx context.Context) error {
		var err error
		answer, err = c.rpc.GetClient(ctx, &presencev1.GetClientRequest{ClientId: clientID, Cluster: c.cluster})
		return err
	}, func(shared *presencev1.Client) error {
		if shared.GetStatusReason() == reasonNeverSeen {
			return status.Errorf(codes.NotFound, "client_id: this client was never seen; it is %s", StatusOf(shared))
		}
		answer = shared
		return nil
	})
	if err != nil {
		return nil, failed("get the client", err)
	}
	return answer, nil
}

// lookup asks alone, or takes a shared answer.
func (c *Client) lookup(ctx context.Context, clientID string, alone func(context.Context) error, shared func(*presencev1.Client) error) error {
	if c.lookups == nil || !c.lookups.takes(ctx) {
		return alone(ctx)
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.timeout)
		defer cancel()
	}
	b, i := c.lookups.join(ctx, c.cluster, clientID)
	if b == nil {
		defer c.lookups.returned()
		return alone(ctx)
	}
	answer, err := c.lookups.wait(ctx, b, i)
	switch {
	case errors.Is(err, errAskAlone):
		return alone(ctx)
	case err != nil:
		return err
	}
	return shared(answer)
}

// GetAfter returns what is known of a client once the record at minOffset of its client-events partition has been applied: a caller that wrote the
// event, or read it there, reads it here. The error of one that did not come in time is told by [IsNotApplied]. It is never coalesced.
func (c *Client) GetAfter(ctx context.Context, clientID string, minOffset int64) (*presencev1.Client, error) {
	if err := checkID("client_id", clientID); err != nil {
		return nil, failed("get the client", err)
	}
	answer, err := c.rpc.GetClient(ctx, &presencev1.GetClientRequest{ClientId: clientID, Cluster: c.cluster, MinOffset: &minOffset})
	if err != nil {
		return nil, failed("get the client", err)
	}
	return answer, nil
}

// Batch returns what is known of any number of clients, in the order given. A client never seen is no error: its status reason is never_seen. It is
// split into calls of up to 1,000, a few at once; each client has the freshness of its call.
func (c *Client) Batch(ctx context.Context, clientIDs []string) ([]*presencev1.Client, error) {
	for i, id := range clientIDs {
		if err := checkID(fmt.Sprintf("client_ids[%d]", i), id); err != nil {
			return nil, failed("get the clients", err)
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answers := make([]*presencev1.Client, len(clientIDs))
	var wg sync.WaitGroup
	slots := make(chan struct{}, batchesAtOnce)
	for next := 0; next < len(clientIDs) && ctx.Err() == nil; {
		begin, end := next, chunk(clientIDs, next)
		next = end
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if err := batch(ctx, c.rpc, c.cluster, clientIDs[begin:end], answers[begin:end]); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		err := context.Cause(ctx)
		if errors.Is(err, ctx.Err()) {
			err = status.FromContextError(err).Err()
		}
		return nil, failed("get the clients", err)
	}
	return answers, nil
}

// chunk returns where a call that begins with the client ID at begin ends.
func chunk(clientIDs []string, begin int) int {
	end, size := begin, 0
	for end < len(clientIDs) && end-begin < maxBatch && (end == begin || size+len(clientIDs[end]) <= maxBatchBytes) {
		size += len(clientIDs[end])
		end++
	}
	return end
}

// batch makes one call and puts its answers into clients.
func batch(ctx context.Context, rpc presencev1.PresenceServiceClient, cluster string, clientIDs []string, clients []*presencev1.Client) error {
	r, err := rpc.BatchGetClients(ctx, &presencev1.BatchGetClientsRequest{ClientIds: clientIDs, Cluster: cluster})
	if err != nil {
		return err
	}
	if len(r.GetClients()) != len(clientIDs) {
		return status.Errorf(codes.Internal, "the service answered for %d clients in place of %d", len(r.GetClients()), len(clientIDs))
	}
	for i, client := range r.GetClients() {
		if client.GetFreshness() == nil {
			client.Freshness = r.GetFreshness()
		}
		clients[i] = client
	}
	return nil
}

// Sessions returns the latest connections of a client, newest first.
func (c *Client) Sessions(ctx context.Context, clientID string) (*presencev1.ListSessionsResponse, error) {
	return c.sessions(ctx, clientID, nil)
}

// SessionsAt returns the same, and in its field at whether the client was connected at a time, by its node's clock.
func (c *Client) SessionsAt(ctx context.Context, clientID string, at time.Time) (*presencev1.ListSessionsResponse, error) {
	return c.sessions(ctx, clientID, timestamppb.New(at))
}

func (c *Client) sessions(ctx context.Context, clientID string, at *timestamppb.Timestamp) (*presencev1.ListSessionsResponse, error) {
	if err := checkID("client_id", clientID); err != nil {
		return nil, failed("list the sessions", err)
	}
	r, err := c.rpc.ListSessions(ctx, &presencev1.ListSessionsRequest{ClientId: clientID, Cluster: c.cluster, At: at})
	if err != nil {
		return nil, failed("list the sessions", err)
	}
	return r, nil
}

// Explain returns the evidence behind a client's status.
func (c *Client) Explain(ctx context.Context, clientID string) (*presencev1.Explanation, error) {
	if err := checkID("client_id", clientID); err != nil {
		return nil, failed("explain the status", err)
	}
	r, err := c.rpc.ExplainClient(ctx, &presencev1.ExplainClientRequest{ClientId: clientID, Cluster: c.cluster})
	if err != nil {
		return nil, failed("explain the status", err)
	}
	return r, nil
}

// Stats counts the clients of the cluster by status and node, and, where usernames is not 0, returns that many of the usernames with most
// clients, at most 1,000.
func (c *Client) Stats(ctx context.Context, usernames int) (*presencev1.Stats, error) {
	if usernames < 0 || usernames > maxBatch {
		return nil, failed("count the clients", invalid("page_size", fmt.Sprintf("is %d usernames; ask for 0 to %d", usernames, maxBatch)))
	}
	r, err := c.rpc.GetStats(ctx, &presencev1.GetStatsRequest{Cluster: c.cluster, PageSize: int32(usernames), SkipUsernames: usernames == 0})
	if err != nil {
		return nil, failed("count the clients", err)
	}
	return r, nil
}

// Nodes returns the broker nodes and the feeds of the cluster, and how they are.
func (c *Client) Nodes(ctx context.Context) (*presencev1.ListNodesResponse, error) {
	r, err := c.rpc.ListNodes(ctx, &presencev1.ListNodesRequest{Cluster: c.cluster})
	if err != nil {
		return nil, failed("list the nodes", err)
	}
	return r, nil
}

// Delete forgets everything known of a client up to now. It needs the permission admin. The answer says whether that is applied, and
// until when the log still has events of the client. After UNAVAILABLE it is not known whether the client was forgotten.
func (c *Client) Delete(ctx context.Context, clientID string) (*presencev1.DeleteClientResponse, error) {
	if err := checkID("client_id", clientID); err != nil {
		return nil, failed("delete the client", err)
	}
	r, err := c.rpc.DeleteClient(ctx, &presencev1.DeleteClientRequest{ClientId: clientID, Cluster: c.cluster})
	if err != nil {
		return nil, failed("delete the client", err)
	}
	return r, nil
}
