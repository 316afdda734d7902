package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// maxBatch is the most client IDs of one batch.
const maxBatch = 1_000

// StateReader reads the folded state of clients. The materializer's server is one, in process; so is Router, over the network.
type StateReader interface {
	// GetStates answers for clients of one cluster. An entry, or an index in not_owned, exists for each key. It returns when ctx ends,
	// which may have no deadline: a reader that waits for others bounds that itself, all but the wait for a min_offset.
	// Errors have a gRPC status: UNAVAILABLE if nobody could answer, FAILED_PRECONDITION with ErrorInfo reason
	// MIN_OFFSET_NOT_REACHED if a min_offset was not applied in time. The answer is the caller's, to read only.
	GetStates(ctx context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error)
	// ListStates, GetCounts, ListUsernames and CheckStore are those of StateService. Over the network they answer for all partitions,
	// so not_owned is empty, or fail with UNAVAILABLE.
	ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error)
	GetCounts(ctx context.Context, req *presencev1.GetCountsRequest) (*presencev1.GetCountsResponse, error)
	ListUsernames(ctx context.Context, req *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error)
	CheckStore(ctx context.Context, req *presencev1.CheckStoreRequest) (*presencev1.CheckStoreResponse, error)
}

// routed is a reader that learns from Kafka whom to ask.
type routed interface {
	// RoutedAt is when the owners were last confirmed.
	RoutedAt() time.Time
}

// answers is the service itself, behind both transports: what is asked has been admitted.
type answers struct {
	presencev1.UnimplementedPresenceServiceServer

	cfg       Config
	reader    StateReader
	log       *slog.Logger
	tokens    *tokens
	watches   *watches
	forgetter *forgetter
	listing   *semaphore.Weighted // lists that are read at a time
	ranking   *semaphore.Weighted // rankings of usernames at a time
	checking  *semaphore.Weighted // checks of the indexes at a time
	comparing *semaphore.Weighted // comparisons of the replicas at a time
}

func newAnswers(cfg Config, reader StateReader, log *slog.Logger) (*answers, error) {
	t, err := newTokens(cfg.PageTokenKeyFile)
	if err != nil {
		return nil, err
	}
	return &answers{
		cfg: cfg, reader: reader, log: log, tokens: t, forgetter: newForgetter(cfg, log),
		listing: semaphore.NewWeighted(int64(max(1, runtime.GOMAXPROCS(0)/2))), ranking: semaphore.NewWeighted(maxRankings), checking: semaphore.NewWeighted(1),
		comparing: semaphore.NewWeighted(1),
	}, nil
}

// short is the answer of the seed call.
type short struct{ online, unknown bool }

// online answers the seed call, and nothing else, to be fast.
func (a *answers) online(ctx context.Context, cluster, clientID string) (short, error) {
	if near, ok := a.reader.(nearReader); ok {
		return a.near(ctx, near, cluster, clientID)
	}
	_, e, err := a.read(ctx, cluster, clientID, nil)
	if err != nil {
		return short{}, err
	}
	return short{online: e.GetBelief() == "online", unknown: e.GetStatus() == "unknown"}, nil
}

// nearReader is a reader in the same process, which answers the seed call without a message being made for it.
type nearReader interface {
	// ReadStatus returns what GetStates says of one client, whose ID and cluster are valid; owned is false where that lists it in not_owned.
	ReadStatus(cluster, clientID string) (status, belief presence.Presence, owned bool, err error)
}

func (a *answers) near(ctx context.Context, reader nearReader, cluster, clientID string) (short, error) {
	if err := eventlog.ValidClientID(clientID); err != nil {
		return short{}, invalid("client_id", err.Error())
	}
	cluster, err := a.validCluster(cluster)
	if err != nil {
		return short{}, err
	}
	s, belief, owned, err := reader.ReadStatus(cluster, clientID)
	switch {
	case err != nil:
		return short{}, a.readError(ctx, err, nil)
	case !owned:
		return short{}, errNotOwned()
	}
	return short{online: belief == presence.Online, unknown: s == presence.Unknown}, nil
}

// GetStatus implements the gRPC call.
func (a *answers) GetStatus(ctx context.Context, req *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	r, e, err := a.read(ctx, req.GetCluster(), req.GetClientId(), nil)
	if err != nil {
		return nil, err
	}
	return &presencev1.GetStatusResponse{
		Online:       e.GetBelief() == "online",
		Status:       e.GetStatus(),
		StatusReason: e.GetStatusReason(),
		Freshness:    a.freshness(r, e),
	}, nil
}

// GetClient implements the call of both transports.
func (a *answers) GetClient(ctx context.Context, req *presencev1.GetClientRequest) (*presencev1.Client, error) {
	if err := validMinOffset(req.MinOffset); err != nil {
		return nil, err
	}
	r, e, err := a.read(ctx, req.GetCluster(), req.GetClientId(), req.MinOffset)
	if err != nil {
		return nil, err
	}
	if !e.GetFound() {
		return nil, status.Error(codes.NotFound, neverSeen(e, a.freshness(r, e)))
	}
	c := client(a.clusterOf(req.GetCluster()), req.GetClientId(), e)
	c.Freshness = a.freshness(r, e)
	return c, nil
}

func validMinOffset(offset *int64) error {
	if offset != nil && *offset < 0 {
		return invalid("min_offset", fmt.Sprintf("min_offset %d is negative; give the offset of a record, or leave it out", *offset))
	}
	return nil
}

// neverSeen says what it means that a client was never seen. An answer that is an error has no freshness beside it, so it says that, too.
func neverSeen(e *presencev1.StateEntry, f *presencev1.Freshness) string {
	const never, check = "client_id: this client was never seen, ", ". Check the spelling, which is case-sensitive, and the cluster"
	switch {
	case e.GetStatus() != "offline":
		return never + "but the feed is not known to be complete: it is probably offline" + check
	case f.GetStale():
		return never + "but what is known is stale (" + strings.Join(f.GetStaleReasons(), ", ") + "): it was offline before" + check
	}
	return never + "and the feed is complete: it is offline" + check
}

// BatchGetClients implements the call of both transports. The freshness of the clients stands once, beside them.
func (a *answers) BatchGetClients(ctx context.Context, req *presencev1.BatchGetClientsRequest) (*presencev1.BatchGetClientsResponse, error) {
	ids := req.GetClientIds()
	switch {
	case len(ids) == 0:
		return nil, invalid("client_ids", "client_ids is empty; give 1 to 1,000 client IDs")
	case len(ids) > maxBatch:
		return nil, invalid("client_ids", fmt.Sprintf("client_ids holds %d client IDs; give at most 1,000 and split the rest", len(ids)))
	}
	for i, id := range ids {
		if err := eventlog.ValidClientID(id); err != nil {
			field := fmt.Sprintf("client_ids[%d]", i)
			return nil, invalid(field, field+": "+err.Error())
		}
	}
	if err := passOf(ctx).charge(ctx, costOf(len(ids))); err != nil {
		return nil, err
	}
	keys := make([]presencev1.StateKey, len(ids))
	ask := &presencev1.GetStatesRequest{Keys: make([]*presencev1.StateKey, len(ids))}
	for i, id := range ids {
		keys[i].ClientId = id
		ask.Keys[i] = &keys[i]
	}
	r, err := a.ask(ctx, req.GetCluster(), ask)
	if err != nil {
		return nil, err
	}
	answer := &presencev1.BatchGetClientsResponse{Clients: make([]*presencev1.Client, len(ids))}
	type place struct {
		partition int32
		node      string
	}
	seen := make(map[place]bool)
	var fresh []*presencev1.Freshness
	for _, e := range r.GetEntries() {
		i := e.GetIndex()
		if int(i) >= len(ids) {
			return nil, a.internal(ctx, fmt.Errorf("answer for key %d of %d", i, len(ids)))
		}
		answer.Clients[i] = client(ask.GetCluster(), ids[i], e)
		if at := (place{e.GetPartition(), e.GetNode()}); !seen[at] {
			seen[at] = true
			fresh = append(fresh, a.freshness(r, e))
		}
	}
	for i, c := range answer.Clients {
		if c == nil {
			return nil, unavailable(fmt.Sprintf("client_ids[%d]: nobody owns the partition of this client right now; ask again", i))
		}
	}
	answer.Freshness = worst(fresh)
	return answer, nil
}

// read asks for one client.
func (a *answers) read(ctx context.Context, cluster, clientID string, minOffset *int64) (*presencev1.GetStatesResponse, *presencev1.StateEntry, error) {
	return a.readFor(ctx, cluster, clientID, minOffset, detail{})
}

// detail is what is read of a client besides its state.
type detail struct{ evidence, history bool }

// readFor asks for one client, with more or less detail.
func (a *answers) readFor(ctx context.Context, cluster, clientID string, minOffset *int64, more detail) (*presencev1.GetStatesResponse, *presencev1.StateEntry, error) {
	if err := eventlog.ValidClientID(clientID); err != nil {
		return nil, nil, invalid("client_id", err.Error())
	}
	// One allocation: the seed call has little else to do.
	q := &struct {
		req  presencev1.GetStatesRequest
		key  presencev1.StateKey
		keys [1]*presencev1.StateKey
	}{}
	q.key.ClientId, q.key.MinOffset = clientID, minOffset
	q.keys[0] = &q.key
	q.req.Keys, q.req.Explain, q.req.History = q.keys[:], more.evidence, more.history
	r, err := a.ask(ctx, cluster, &q.req)
	if err != nil {
		return nil, nil, err
	}
	if len(r.GetEntries()) == 0 {
		return nil, nil, errNotOwned()
	}
	return r, r.GetEntries()[0], nil
}

func errNotOwned() error {
	return unavailable("nobody owns the partition of this client right now; ask again")
}

func (a *answers) clusterOf(cluster string) string {
	if cluster == "" {
		return a.cfg.Cluster
	}
	return cluster
}

// validCluster returns the cluster that a request names, or the default one.
func (a *answers) validCluster(cluster string) (string, error) {
	if cluster != "" {
		if err := eventlog.ValidCluster(cluster); err != nil {
			return "", invalid("cluster", "cluster: "+err.Error())
		}
	}
	return a.clusterOf(cluster), nil
}

// ask sets the request's cluster and reads.
func (a *answers) ask(ctx context.Context, cluster string, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	var err error
	if req.Cluster, err = a.validCluster(cluster); err != nil {
		return nil, err
	}
	within := ctx
	minOffset := req.GetKeys()[0].MinOffset
	if minOffset != nil {
		// Only such a read waits; a timer for each of the others would cost more than the read.
		var cancel context.CancelFunc
		within, cancel = context.WithTimeout(ctx, a.cfg.RequestTimeout)
		defer cancel()
	}
	r, err := a.reader.GetStates(within, req)
	if err == nil {
		return r, nil
	}
	return nil, a.readError(ctx, err, minOffset)
}

// readError is what the caller gets to see of a reader's error. What he does not get to see is logged.
func (a *answers) readError(ctx context.Context, err error, minOffset *int64) error {
	if minOffset == nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return status.Error(codes.DeadlineExceeded, "the caller's deadline passed before the state was read; allow more time")
	}
	err = readError(ctx, err, minOffset, a.cfg.RequestTimeout)
	var hidden *internalError
	if errors.As(err, &hidden) {
		a.log.ErrorContext(ctx, "state not read", service.KeyError, hidden.cause)
	}
	return err
}

func (a *answers) internal(ctx context.Context, err error) error {
	a.log.ErrorContext(ctx, "state not read", service.KeyError, err)
	return &internalError{err}
}

func (a *answers) clock() clock {
	c := clock{now: time.Now(), staleAfter: a.cfg.StaleAfter}
	if router, ok := a.reader.(routed); ok {
		c.routedAt = router.RoutedAt()
	}
	return c
}

// freshness of one entry, by the clock of this process.
func (a *answers) freshness(r *presencev1.GetStatesResponse, e *presencev1.StateEntry) *presencev1.Freshness {
	c := a.clock()
	var p *presencev1.PartitionFreshness
	for _, of := range r.GetPartitions() {
		if of.GetPartition() == e.GetPartition() {
			p = of
			break
		}
	}
	f := c.freshness(p, r.GetHealth(), e.GetNode())
	f.Partition = e.GetPartition()
	return f
}

// client builds the public answer from the materializer's.
func client(cluster, clientID string, e *presencev1.StateEntry) *presencev1.Client {
	c := &presencev1.Client{
		ClientId:     clientID,
		Cluster:      cluster,
		Status:       e.GetStatus(),
		StatusReason: e.GetStatusReason(),
		Belief:       e.GetBelief(),
		Since:        timestamp(e.GetSinceMs()),
	}
	if !e.GetFound() {
		return c
	}
	if conn := e.GetConnection(); conn != nil || e.GetNode() != "" {
		c.Connection = &presencev1.ClientConnection{
			Key:             conn.GetKey(),
			Node:            e.GetNode(),
			ConnectedAt:     timestamp(conn.GetConnectedAtMs()),
			Username:        conn.GetUsername(),
			Peer:            conn.GetPeer(),
			Transport:       conn.GetTransport(),
			ProtocolVersion: conn.GetProtocolVersion(),
			CloseReason:     e.GetReason(),
			CloseRawReason:  e.GetRawReason(),
		}
		if conn != nil {
			c.Connection.KeepAliveS, c.Connection.CleanStart, c.Connection.SessionExpiryS = conn.KeepAliveS, conn.CleanStart, conn.SessionExpiryS
		}
		if keepAlive := conn.GetKeepAliveS(); keepAlive > 0 {
			delay := (3*keepAlive + 1) / 2
			c.DetectionDelayS = &delay
		}
	}
	if e.GetTransitionTimeMs() != 0 || e.GetPreviousStatus() != "" {
		c.LastTransition = &presencev1.Transition{
			PreviousStatus:  e.GetPreviousStatus(),
			Time:            timestamp(e.GetTransitionTimeMs()),
			EventOffset:     e.GetEventOffset(),
			NodeEventOffset: e.GetNodeEventOffset(),
		}
	}
	return c
}
