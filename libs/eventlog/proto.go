package eventlog

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// marshal never fails for messages whose strings are valid UTF-8; others become an empty value, which no reader accepts.
func marshal(m proto.Message) []byte { return appendMarshal(nil, m) }

// appendMarshal is marshal after dst.
func appendMarshal(dst []byte, m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
	if err != nil {
		return dst
	}
	return b
}

func unmarshal(b []byte, m proto.Message) error {
	if err := proto.Unmarshal(b, m); err != nil {
		return fmt.Errorf("%w: not a protobuf %s: %w", ErrBadRecord, m.ProtoReflect().Descriptor().Name(), err)
	}
	return nil
}

func pointer[T comparable](v presence.Opt[T]) *T {
	if !v.Valid {
		return nil
	}
	return &v.Value
}

func opt[T comparable](v *T) presence.Opt[T] {
	if v == nil {
		return presence.Opt[T]{}
	}
	return presence.Some(*v)
}

func factProto(f *presence.Fact) []byte {
	return marshal(&presencev1.ClientEvent{
		Id: f.ID, Type: f.Kind.String(), Cluster: f.Cluster, ClientId: f.ClientID, Node: f.Node, Connection: f.Connection,
		TimeMs: f.TimeMS, Order: f.Order, ReceivedMs: f.ReceivedMS, ConnectedAtMs: f.ConnectedAtMS, DisconnectedAtMs: f.DisconnectedAtMS,
		Username: f.Username, Peer: f.Peer, Transport: f.Transport, ProtocolVersion: uint32(f.ProtocolVersion),
		KeepAliveS: pointer(f.KeepAliveS), CleanStart: pointer(f.CleanStart), SessionExpiryS: pointer(f.SessionExpiryS),
		Reason: f.Reason.String(), RawReason: f.RawReason, Dialect: f.Dialect,
		Online: pointer(f.Online), QueryStartMs: f.QueryStartMS, QueryEndMs: f.QueryEndMS, Source: f.Source, AsOfMs: f.AsOfMS,
	})
}

// notNegative checks what JSON checks while reading.
func notNegative(fields map[string]int64) error {
	for name, v := range fields {
		if v < 0 {
			return fmt.Errorf("%w: field %q: %d is negative", ErrBadRecord, name, v)
		}
	}
	return nil
}

func factFromProto(b []byte, f *presence.Fact) error {
	var m presencev1.ClientEvent
	if err := unmarshal(b, &m); err != nil {
		return err
	}
	if m.GetProtocolVersion() > math.MaxUint8 {
		return fmt.Errorf("%w: field \"protocol_version\": %d is not within 0 to 255", ErrBadRecord, m.GetProtocolVersion())
	}
	*f = presence.Fact{
		ID: m.GetId(), Kind: presence.ParseKind(m.GetType()), Cluster: m.GetCluster(), ClientID: m.GetClientId(), Node: m.GetNode(), Connection: m.GetConnection(),
		TimeMS: m.GetTimeMs(), Order: m.GetOrder(), ReceivedMS: m.GetReceivedMs(), ConnectedAtMS: m.GetConnectedAtMs(), DisconnectedAtMS: m.GetDisconnectedAtMs(),
		Username: m.GetUsername(), Peer: m.GetPeer(), Transport: m.GetTransport(), ProtocolVersion: uint8(m.GetProtocolVersion()),
		KeepAliveS: opt(m.KeepAliveS), CleanStart: opt(m.CleanStart), SessionExpiryS: opt(m.SessionExpiryS),
		Reason: presence.ParseReason(m.GetReason()), RawReason: m.GetRawReason(), Dialect: m.GetDialect(),
		Online: opt(m.Online), QueryStartMS: m.GetQueryStartMs(), QueryEndMS: m.GetQueryEndMs(), Source: m.GetSource(), AsOfMS: m.GetAsOfMs(),
	}
	return notNegative(map[string]int64{"time_ms": f.TimeMS, "received_ms": f.ReceivedMS, "connected_at_ms": f.ConnectedAtMS,
		"disconnected_at_ms": f.DisconnectedAtMS, "query_start_ms": f.QueryStartMS, "query_end_ms": f.QueryEndMS, "as_of_ms": f.AsOfMS})
}

func nodeProto(f *presence.NodeFact) []byte {
	return marshal(&presencev1.NodeEvent{
		Id: f.ID, Type: f.Kind.String(), Cluster: f.Cluster, Node: f.Node, Bridge: f.Bridge, Dialect: f.Dialect, TimeMs: f.TimeMS, ReceivedMs: f.ReceivedMS,
		UptimeMs: pointer(f.UptimeMS), StartedMs: f.StartedMS, StartedReceivedMs: f.StartedReceivedMS,
		CompleteSinceMs: f.CompleteSinceMS, GapFromMs: f.GapFromMS, GapToMs: f.GapToMS, ResyncedMs: f.ResyncedMS,
		DroppedCount: f.DroppedCount, DroppedFromMs: f.DroppedFromMS, DroppedToMs: f.DroppedToMS, LeaseMs: f.LeaseMS,
		SetBackFromMs: f.SetBackFromMS, SetBackToMs: f.SetBackToMS, CoveredMs: coveredText(f),
	})
}

func nodeFromProto(b []byte, f *presence.NodeFact) error {
	var m presencev1.NodeEvent
	if err := unmarshal(b, &m); err != nil {
		return err
	}
	*f = presence.NodeFact{
		ID: m.GetId(), Kind: presence.ParseNodeKind(m.GetType()), Cluster: m.GetCluster(), Node: m.GetNode(), Bridge: m.GetBridge(), Dialect: m.GetDialect(),
		TimeMS: m.GetTimeMs(), ReceivedMS: m.GetReceivedMs(), UptimeMS: opt(m.UptimeMs), StartedMS: m.GetStartedMs(), StartedReceivedMS: m.GetStartedReceivedMs(),
		CompleteSinceMS: m.GetCompleteSinceMs(), GapFromMS: m.GetGapFromMs(), GapToMS: m.GetGapToMs(), ResyncedMS: m.GetResyncedMs(),
		DroppedCount: m.GetDroppedCount(), DroppedFromMS: m.GetDroppedFromMs(), DroppedToMS: m.GetDroppedToMs(), LeaseMS: m.GetLeaseMs(),
		SetBackFromMS: m.GetSetBackFromMs(), SetBackToMS: m.GetSetBackToMs(),
	}
	if err := setCovered(f, m.GetCoveredMs()); err != nil {
		return fmt.Errorf("%w: field \"covered_ms\": %w", ErrBadRecord, err)
	}
	return notNegative(map[string]int64{"time_ms": f.TimeMS, "received_ms": f.ReceivedMS, "uptime_ms": f.UptimeMS.Value, "started_ms": f.StartedMS,
		"started_received_ms": f.StartedReceivedMS, "complete_since_ms": f.CompleteSinceMS, "gap_from_ms": f.GapFromMS, "gap_to_ms": f.GapToMS,
		"resynced_ms": f.ResyncedMS, "dropped_count": f.DroppedCount, "dropped_from_ms": f.DroppedFromMS, "dropped_to_ms": f.DroppedToMS, "lease_ms": f.LeaseMS,
		"set_back_from_ms": f.SetBackFromMS, "set_back_to_ms": f.SetBackToMS})
}

func appendStateProto(dst []byte, s *ClientState) []byte {
	if s.Checkpoint {
		return appendMarshal(dst, &presencev1.ClientState{Type: checkpointType, EventOffset: s.EventOffset, NodeEventOffset: s.NodeEventOffset})
	}
	return appendMarshal(dst, &presencev1.ClientState{
		Type: stateType, Transition: &s.Transition, Cluster: s.Cluster, ClientId: s.ClientID, Status: s.Status.String(),
		PreviousStatus: s.PreviousStatus.String(), StatusReason: s.StatusReason.String(), Belief: s.Belief.String(), SinceMs: s.SinceMS,
		Node: s.Node, Connection: s.Connection, ConnectedAtMs: s.ConnectedAtMS, Username: s.Username, Peer: s.Peer,
		Reason: s.Reason.String(), RawReason: s.RawReason, TimeMs: s.TimeMS, EventOffset: s.EventOffset, NodeEventOffset: s.NodeEventOffset, State: s.State,
	})
}

func stateFromProto(b []byte, s *ClientState) error {
	var m presencev1.ClientState
	if err := unmarshal(b, &m); err != nil {
		return err
	}
	*s = ClientState{
		Transition: m.GetTransition(), Cluster: m.GetCluster(), ClientID: m.GetClientId(), Status: presence.ParsePresence(m.GetStatus()),
		PreviousStatus: presence.ParsePresence(m.GetPreviousStatus()), StatusReason: presence.ParseStatusReason(m.GetStatusReason()),
		Belief: presence.ParsePresence(m.GetBelief()), SinceMS: m.GetSinceMs(), Node: m.GetNode(), Connection: m.GetConnection(),
		ConnectedAtMS: m.GetConnectedAtMs(), Username: m.GetUsername(), Peer: m.GetPeer(), Reason: presence.ParseReason(m.GetReason()),
		RawReason: m.GetRawReason(), TimeMS: m.GetTimeMs(), EventOffset: m.GetEventOffset(), NodeEventOffset: m.GetNodeEventOffset(), State: m.GetState(),
	}
	return s.setType(m.GetType())
}
