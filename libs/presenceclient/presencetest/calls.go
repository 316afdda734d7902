package presencetest

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	maxClientID     = 65_535
	maxBatch        = 1_000
	maxPage         = 1_000
	defaultPage     = 100
	reasonNeverSeen = "never_seen"
)

// GetStatus implements the call.
func (f *Fake) GetStatus(_ context.Context, req *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	c, err := f.one(req.GetCluster(), req.GetClientId())
	if err != nil {
		return nil, err
	}
	return &presencev1.GetStatusResponse{
		Online: c.GetBelief() == presenceclient.StatusOnline, Status: c.GetStatus(), StatusReason: c.GetStatusReason(), Freshness: c.GetFreshness(),
	}, nil
}

// GetClient implements the call.
func (f *Fake) GetClient(_ context.Context, req *presencev1.GetClientRequest) (*presencev1.Client, error) {
	c, err := f.one(req.GetCluster(), req.GetClientId())
	switch {
	case err != nil:
		return nil, err
	case c.GetStatusReason() == reasonNeverSeen:
		return nil, status.Error(codes.NotFound, "client_id: this client was never seen, and the feed is complete: it is offline")
	case req.MinOffset != nil && req.GetMinOffset() < 0:
		return nil, invalid("min_offset", "is negative")
	case req.MinOffset != nil && req.GetMinOffset() >= c.GetFreshness().GetAppliedOffset():
		return nil, notApplied(req.GetMinOffset())
	}
	return c, nil
}

// BatchGetClients implements the call.
func (f *Fake) BatchGetClients(_ context.Context, req *presencev1.BatchGetClientsRequest) (*presencev1.BatchGetClientsResponse, error) {
	if n := len(req.GetClientIds()); n < 1 || n > maxBatch {
		return nil, invalid("client_ids", fmt.Sprintf("holds %d client IDs; give 1 to %d", n, maxBatch))
	}
	answer := &presencev1.BatchGetClientsResponse{}
	for i, id := range req.GetClientIds() {
		if err := checkID(fmt.Sprintf("client_ids[%d]", i), id); err != nil {
			return nil, err
		}
		c := f.get(req.GetCluster(), id)
		answer.Freshness, c.Freshness = c.GetFreshness(), nil
		answer.Clients = append(answer.Clients, c)
	}
	return answer, nil
}

// one returns a client, which may be one never seen.
func (f *Fake) one(cluster, id string) (*presencev1.Client, error) {
	if err := checkID("client_id", id); err != nil {
		return nil, err
	}
	return f.get(cluster, id), nil
}

func (f *Fake) get(cluster, id string) *presencev1.Client {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &presencev1.Client{
		ClientId: id, Cluster: clusterOf(cluster), Status: presenceclient.StatusOffline, StatusReason: reasonNeverSeen, Belief: presenceclient.StatusOffline,
	}
	if known := f.clients[key{clusterOf(cluster), id}]; known != nil {
		c = proto.CloneOf(known.now)
	}
	c.Freshness = f.freshness()
	return c
}

func clusterOf(cluster string) string { return cmp.Or(cluster, DefaultCluster) }

// freshness is that of one partition with all changes applied.
func (f *Fake) freshness() *presencev1.Freshness {
	return &presencev1.Freshness{
		AppliedOffset: int64(len(f.log)), AppliedTime: timestamppb.Now(), LagRecords: new(int64), LagMs: new(int64),
		Stale: len(f.stale) > 0, StaleReasons: slices.Clone(f.stale), Feed: "ok", Node: "ok",
	}
}

// ExplainClient implements the call, as far as the fake knows more than the status.
func (f *Fake) ExplainClient(_ context.Context, req *presencev1.ExplainClientRequest) (*presencev1.Explanation, error) {
	c, err := f.one(req.GetCluster(), req.GetClientId())
	switch {
	case err != nil:
		return nil, err
	case c.GetStatusReason() == reasonNeverSeen:
		return nil, status.Error(codes.NotFound, "client_id: this client was never seen, and the feed is complete: it is offline")
	}
	e := &presencev1.Explanation{
		ClientId: c.ClientId, Cluster: c.Cluster, Status: c.Status, StatusReason: c.StatusReason, Belief: c.Belief, Since: c.Since, Freshness: c.Freshness,
		Rule: "The test set this status.", FactsNote: "There are no facts: the status was set by a test.",
		Feed: &presencev1.ExplainedFeed{State: "ok", Summary: "There is no feed.", Complete: true},
	}
	if conn := c.GetConnection(); conn != nil {
		e.Connections = []*presencev1.ExplainedConnection{{
			Node: conn.Node, Current: true, Key: conn.Key, ConnectedAt: conn.ConnectedAt, Summary: "Set by the test.",
		}}
	}
	return e, nil
}

// ListClients implements the call. The page token names the filter and the place.
func (f *Fake) ListClients(_ context.Context, req *presencev1.ListClientsRequest) (*presencev1.ListClientsResponse, error) {
	size, err := pageSize(req.GetPageSize())
	if err != nil {
		return nil, err
	}
	bare := proto.CloneOf(req)
	bare.PageSize, bare.PageToken = 0, ""
	after, err := place(req.GetPageToken(), bare.String())
	if err != nil {
		return nil, err
	}
	bySince := req.GetSinceFrom() != nil || req.GetSinceBefore() != nil
	position := func(c *presencev1.Client) string {
		if bySince {
			return fmt.Sprintf("%020d %s", c.GetSince().AsTime().UnixNano(), c.ClientId)
		}
		return c.ClientId
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var selected []*presencev1.Client
	for _, k := range f.sorted(clusterOf(req.GetCluster())) {
		if c := f.clients[k].now; selects(req, c) {
			selected = append(selected, c)
		}
	}
	slices.SortFunc(selected, func(a, b *presencev1.Client) int { return strings.Compare(position(a), position(b)) })
	total := int64(len(selected))
	answer := &presencev1.ListClientsResponse{Exact: true, Freshness: f.freshness()}
	if !bySince && req.GetClientIdPrefix() == "" && (req.GetUsername() == "" || req.GetStatus() == "" && req.GetNode() == "") {
		answer.Total = &total
	}
	for _, c := range selected {
		if after != "" && position(c) <= after {
			continue
		}
		if len(answer.Clients) == size {
			answer.NextPageToken = token(bare.String(), position(answer.Clients[size-1]))
			break
		}
		answer.Clients = append(answer.Clients, proto.CloneOf(c))
	}
	return answer, nil
}

func selects(req *presencev1.ListClientsRequest, c *presencev1.Client) bool {
	since := c.GetSince().AsTime()
	return (req.GetStatus() == "" || c.Status == req.GetStatus()) &&
		(req.GetNode() == "" || c.GetConnection().GetNode() == req.GetNode()) &&
		(req.GetUsername() == "" || c.GetConnection().GetUsername() == req.GetUsername()) &&
		strings.HasPrefix(c.ClientId, req.GetClientIdPrefix()) &&
		(req.GetSinceFrom() == nil || !since.Before(req.GetSinceFrom().AsTime())) &&
		(req.GetSinceBefore() == nil || since.Before(req.GetSinceBefore().AsTime()))
}

func pageSize(asked int32) (int, error) {
	switch {
	case asked < 0 || asked > maxPage:
		return 0, invalid("page_size", fmt.Sprintf("is %d; give 1 to %d", asked, maxPage))
	case asked == 0:
		return defaultPage, nil
	}
	return int(asked), nil
}

func token(filter, position string) string {
	return base64.RawURLEncoding.EncodeToString([]byte(filter + "\x00" + position))
}

// place returns the position in a page token, and refuses a token of another filter.
func place(pageToken, filter string) (string, error) {
	if pageToken == "" {
		return "", nil
	}
	text, err := base64.RawURLEncoding.DecodeString(pageToken)
	if err != nil {
		return "", invalid("page_token", "is none of this service")
	}
	position, ok := strings.CutPrefix(string(text), filter+"\x00")
	if !ok {
		return "", invalid("page_token", "is of another filter")
	}
	return position, nil
}

// ListSessions implements the call.
func (f *Fake) ListSessions(_ context.Context, req *presencev1.ListSessionsRequest) (*presencev1.ListSessionsResponse, error) {
	if err := checkID("client_id", req.GetClientId()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	known := f.clients[key{clusterOf(req.GetCluster()), req.GetClientId()}]
	if known == nil {
		return nil, status.Error(codes.NotFound, "client_id: this client was never seen")
	}
	answer := &presencev1.ListSessionsResponse{ClientId: req.GetClientId(), Cluster: clusterOf(req.GetCluster()), Freshness: f.freshness()}
	if known.now.GetConnection() != nil {
		answer.Sessions = append(answer.Sessions, current(known.now))
	}
	for _, s := range slices.Backward(known.sessions) {
		answer.Sessions = append(answer.Sessions, proto.CloneOf(s))
	}
	if req.GetAt() != nil {
		answer.At = statusAt(req.GetAt(), answer.Sessions)
	}
	return answer, nil
}

// current returns the latest connection as a session.
func current(c *presencev1.Client) *presencev1.Session {
	conn := c.GetConnection()
	s := &presencev1.Session{
		State: "open", Node: conn.Node, Key: conn.Key, ConnectedAt: conn.ConnectedAt, Username: conn.Username, Peer: conn.Peer,
		Transport: conn.Transport, ProtocolVersion: conn.ProtocolVersion,
	}
	switch c.Status {
	case presenceclient.StatusOffline:
		s.State, s.DisconnectedAt, s.End, s.Reason, s.RawReason = "closed", c.Since, "stated", conn.CloseReason, conn.CloseRawReason
	case presenceclient.StatusUnknown:
		s.State = "unknown"
	}
	return s
}

// ended returns the connection that another one follows, as a session.
func ended(c *presencev1.Client, at *timestamppb.Timestamp) *presencev1.Session {
	s := current(c)
	if s.State != "closed" {
		s.State, s.DisconnectedAt, s.End, s.Reason = "closed", at, "inferred", "superseded"
	}
	return s
}

func statusAt(at *timestamppb.Timestamp, sessions []*presencev1.Session) *presencev1.StatusAt {
	answer := &presencev1.StatusAt{Time: at, Status: presenceclient.StatusOffline, Reason: "not_connected"}
	for i, s := range sessions {
		began := s.GetConnectedAt() != nil && !at.AsTime().Before(s.GetConnectedAt().AsTime())
		over := s.GetDisconnectedAt() != nil && !at.AsTime().Before(s.GetDisconnectedAt().AsTime())
		if !began || over {
			continue
		}
		i := int32(i)
		answer.Session, answer.Status, answer.Reason = &i, presenceclient.StatusOnline, "connected"
		if s.State == "unknown" {
			answer.Status, answer.Reason = presenceclient.StatusUnknown, "inferred"
		}
		break
	}
	return answer
}

// DeleteClient implements the call.
func (f *Fake) DeleteClient(_ context.Context, req *presencev1.DeleteClientRequest) (*presencev1.DeleteClientResponse, error) {
	if err := checkID("client_id", req.GetClientId()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	offset := int64(len(f.log))
	f.forget(key{clusterOf(req.GetCluster()), req.GetClientId()})
	return &presencev1.DeleteClientResponse{
		ClientId: req.GetClientId(), Cluster: clusterOf(req.GetCluster()), AsOf: timestamppb.Now(), Offset: offset, Applied: true,
		EventsGoneBy: timestamppb.New(time.Now().Add(7 * 24 * time.Hour)), Freshness: f.freshness(),
	}, nil
}

// CheckIndexes implements the call: the fake has no indexes that could be wrong.
func (f *Fake) CheckIndexes(context.Context, *presencev1.CheckIndexesRequest) (*presencev1.CheckIndexesResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &presencev1.CheckIndexesResponse{Ok: true, Partitions: []*presencev1.IndexCheck{{Clients: int64(len(f.clients))}}}, nil
}

// CompareReplicas implements the call: the fake is one replica.
func (f *Fake) CompareReplicas(context.Context, *presencev1.CompareReplicasRequest) (*presencev1.CompareReplicasResponse, error) {
	return nil, status.Error(codes.FailedPrecondition, "this service knows one replica only, there is nothing to compare")
}

// checkID refuses what MQTT does not allow.
func checkID(field, id string) error {
	if id == "" || len(id) > maxClientID || !utf8.ValidString(id) {
		return invalid(field, fmt.Sprintf("is not 1 to %d bytes of UTF-8", maxClientID))
	}
	return nil
}

func invalid(field, what string) error {
	return detailed(status.New(codes.InvalidArgument, field+" "+what), &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: what}},
	})
}
