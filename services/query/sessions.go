package query

import (
	"cmp"
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Words of Session.state and Session.end.
const (
	sessionOpen    = "open"
	sessionClosed  = "closed"
	sessionUnknown = "unknown"
	endStated      = "stated"
	endInferred    = "inferred"
)

// ListSessions implements the call of both transports.
func (a *answers) ListSessions(ctx context.Context, req *presencev1.ListSessionsRequest) (*presencev1.ListSessionsResponse, error) {
	if err := validMinOffset(req.MinOffset); err != nil {
		return nil, err
	}
	if req.GetAt() != nil {
		if err := req.GetAt().CheckValid(); err != nil {
			return nil, invalid("at", "at is not a time: give one of RFC 3339, such as 2026-01-31T12:00:00Z")
		}
	}
	r, e, err := a.readFor(ctx, req.GetCluster(), req.GetClientId(), req.MinOffset, detail{history: true})
	if err != nil {
		return nil, err
	}
	if !e.GetFound() {
		return nil, status.Error(codes.NotFound, neverSeen(e, a.freshness(r, e)))
	}
	past := pastOf(e)
	answer := &presencev1.ListSessionsResponse{
		ClientId: req.GetClientId(), Cluster: a.clusterOf(req.GetCluster()), CompleteSince: timestamp(past.completeSinceMS), Freshness: a.freshness(r, e),
	}
	for i := range past.spans {
		answer.Sessions = append(answer.Sessions, past.spans[i].session())
	}
	if req.GetAt() != nil {
		var p *presencev1.PartitionFreshness
		for _, of := range r.GetPartitions() {
			if of.GetPartition() == e.GetPartition() {
				p = of
			}
		}
		past.know(p, r.GetHealth(), a.clock())
		answer.At = past.at(req.GetAt())
	}
	return answer, nil
}

// span is one connection of a client in time. Times are epoch milliseconds by the clock of its node; 0 is unknown.
type span struct {
	openedMS, endedMS int64
	state             string // open, closed or unknown
	stated            bool   // the broker told when it ended; else endedMS is the latest that it can have been
	current           bool   // the status is about this one
	node              string
	reason, raw       string
	conn              *presencev1.Connection
}

func (s *span) session() *presencev1.Session {
	v := &presencev1.Session{
		State: s.state, Node: s.node, Key: s.conn.GetKey(), ConnectedAt: timestamp(s.openedMS), DisconnectedAt: timestamp(s.endedMS), Reason: s.reason,
		RawReason: s.raw, Username: s.conn.GetUsername(), Peer: s.conn.GetPeer(), Transport: s.conn.GetTransport(), ProtocolVersion: s.conn.GetProtocolVersion(),
	}
	switch {
	case s.endedMS == 0:
	case s.stated:
		v.End = endStated
	default:
		v.End = endInferred
	}
	return v
}

// pastOf puts the connection that the status is about and those before into one list, newest first.
func pastOf(e *presencev1.StateEntry) *past {
	p := &past{
		status: e.GetStatus(), reason: e.GetStatusReason(), sinceMS: e.GetSinceMs(), node: e.GetNode(),
		completeSinceMS: e.GetHistory().GetCompleteSinceMs(),
	}
	if e.GetConnection() != nil {
		p.spans = append(p.spans, currentSpan(e))
	}
	for _, h := range e.GetHistory().GetSessions() {
		s := span{
			openedMS: h.GetConnection().GetConnectedAtMs(), endedMS: h.GetEndedMs(), state: sessionClosed, stated: h.GetStated(), node: h.GetNode(),
			reason: h.GetReason(), raw: h.GetRawReason(), conn: h.GetConnection(),
		}
		if s.endedMS == 0 {
			s.state = sessionUnknown
		}
		p.spans = append(p.spans, s)
	}
	slices.SortStableFunc(p.spans, func(a, b span) int { return cmp.Compare(b.beganMS(), a.beganMS()) })
	return p
}

// beganMS is when the connection opened, at the latest; one of which no time is known is the newest.
func (s *span) beganMS() int64 { return cmp.Or(s.openedMS, s.endedMS, forever) }

// currentSpan is the connection that the status is about. Only a Closed that is known to be its own states its end.
func currentSpan(e *presencev1.StateEntry) span {
	s := span{
		openedMS: e.GetConnection().GetConnectedAtMs(), state: sessionUnknown, current: true, node: e.GetNode(), reason: e.GetStatusReason(),
		conn: e.GetConnection(),
	}
	switch e.GetStatus() {
	case presence.Online.String():
		s.state, s.reason = sessionOpen, ""
	case presence.Offline.String():
		s.state, s.endedMS = sessionClosed, e.GetSinceMs()
		switch presence.ParseStatusReason(e.GetStatusReason()) {
		case presence.ConnectionClosed, presence.ConnectionSuperseded:
			s.stated, s.reason, s.raw = true, e.GetReason(), e.GetRawReason()
		default:
			// A restart of its node, or the broker's answer to a query: it was over by then.
		}
	}
	return s
}
