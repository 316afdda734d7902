package eventlog

import (
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/presence"
)

// CheckpointKey is the key of a partition's checkpoint record. It has no "/", so it is no client's.
const CheckpointKey = "checkpoint"

// ClientState is a record of client-state: a transition, a folded state that changed without one, or a partition's checkpoint.
type ClientState struct {
	Checkpoint bool // all states up to EventOffset are published in this partition; only EventOffset, NodeEventOffset and ClockMS count
	Transition bool // status or current connection changed

	Cluster, ClientID string
	Status            presence.Presence
	PreviousStatus    presence.Presence
	Belief            presence.Presence
	StatusReason      presence.StatusReason
	SinceMS           int64
	Node, Connection  string // of the current connection, or the last one
	ConnectedAtMS     int64
	Username, Peer    string
	Reason            presence.Reason // why the connection ended, if it did
	RawReason         string
	TimeMS            int64 // event time of the fact behind it

	// EventOffset and NodeEventOffset are the version: the offsets of the facts behind it, monotone per client. A checkpoint's EventOffset
	// is the next offset to be read.
	EventOffset, NodeEventOffset int64

	State []byte // presence.State.Append

	// ClockMS is the partition's clock, by which clients expire, at EventOffset. Only in a checkpoint, in a header; 0: not known.
	ClockMS int64
}

// StateRecord returns the record, for the partition that the client's facts are in.
func StateRecord(s *ClientState, partition int32, format Format) *kgo.Record {
	r := &kgo.Record{}
	FillStateRecord(r, s, partition, format)
	return r
}

// FillStateRecord makes r what StateRecord returns, in the memory of its key and value. The headers are shared: they must not be changed.
func FillStateRecord(r *kgo.Record, s *ClientState, partition int32, format Format) {
	key, value := r.Key[:0], r.Value[:0]
	if s.Checkpoint {
		key = append(key, CheckpointKey...)
	} else {
		key = AppendClientKey(key, s.Cluster, s.ClientID)
	}
	if format == Protobuf {
		value = appendStateProto(value, s)
	} else {
		value = AppendClientStateJSON(value, s)
	}
	*r = kgo.Record{Topic: TopicClientState, Partition: partition, Key: key, Value: value, Headers: format.headers(), Timestamp: time.UnixMilli(s.TimeMS)}
	if s.Checkpoint && s.ClockMS != 0 {
		r.Headers = append(r.Headers, decimalHeader(headerClock, s.ClockMS))
	}
}

// DecodeClientState reads a record of client-state other than a [Tombstone]. The error wraps ErrBadRecord and names the field.
func DecodeClientState(r *kgo.Record, s *ClientState) error {
	format, err := formatOf(r)
	if err != nil {
		return err
	}
	if format == Protobuf {
		err = stateFromProto(r.Value, s)
	} else {
		err = decodeClientStateJSON(r.Value, s)
	}
	if err != nil {
		return err
	}
	if s.Checkpoint {
		s.ClockMS = clockOf(r)
		return nil
	}
	if err := ValidCluster(s.Cluster); err != nil {
		return fmt.Errorf("%w: field \"cluster\": %w", ErrBadRecord, err)
	}
	if err := ValidClientID(s.ClientID); err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return nil
}

const (
	stateType      = "state"
	checkpointType = "checkpoint"
)

// AppendClientStateJSON appends the JSON form.
func AppendClientStateJSON(dst []byte, s *ClientState) []byte {
	var w objectWriter
	w.open(dst)
	if s.Checkpoint {
		w.str("type", checkpointType)
		w.zero("event_offset", s.EventOffset)
		w.zero("node_event_offset", s.NodeEventOffset)
		return w.close()
	}
	w.str("type", stateType)
	w.bool("transition", s.Transition)
	w.str("cluster", s.Cluster)
	w.str("client_id", s.ClientID)
	w.str("status", s.Status.String())
	w.str("previous_status", s.PreviousStatus.String())
	w.str("status_reason", s.StatusReason.String())
	w.str("belief", s.Belief.String())
	w.int("since_ms", s.SinceMS)
	w.str("node", s.Node)
	w.str("connection", s.Connection)
	w.int("connected_at_ms", s.ConnectedAtMS)
	w.str("username", s.Username)
	w.str("peer", s.Peer)
	w.str("reason", s.Reason.String())
	w.str("raw_reason", s.RawReason)
	w.int("time_ms", s.TimeMS)
	w.zero("event_offset", s.EventOffset)
	w.zero("node_event_offset", s.NodeEventOffset)
	w.base64("state", s.State)
	return w.close()
}

func decodeClientStateJSON(b []byte, s *ClientState) error {
	*s = ClientState{}
	r := objectReader{b: b}
	kind := ""
	err := r.object(func(name []byte) {
		switch string(name) {
		case "type":
			r.str(&kind)
		case "transition":
			r.bool(&s.Transition)
		case "cluster":
			r.str(&s.Cluster)
		case "client_id":
			r.str(&s.ClientID)
		case "status":
			s.Status = presence.ParsePresence(string(r.raw()))
		case "previous_status":
			s.PreviousStatus = presence.ParsePresence(string(r.raw()))
		case "status_reason":
			s.StatusReason = presence.ParseStatusReason(string(r.raw()))
		case "belief":
			s.Belief = presence.ParsePresence(string(r.raw()))
		case "since_ms":
			r.ms(&s.SinceMS)
		case "node":
			r.str(&s.Node)
		case "connection":
			r.str(&s.Connection)
		case "connected_at_ms":
			r.ms(&s.ConnectedAtMS)
		case "username":
			r.str(&s.Username)
		case "peer":
			r.str(&s.Peer)
		case "reason":
			s.Reason = presence.ParseReason(string(r.raw()))
		case "raw_reason":
			r.str(&s.RawReason)
		case "time_ms":
			r.ms(&s.TimeMS)
		case "event_offset":
			r.int(&s.EventOffset, -1, 1<<62)
		case "node_event_offset":
			r.int(&s.NodeEventOffset, -1, 1<<62)
		case "state":
			r.bytes(&s.State)
		default:
			r.skip()
		}
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return s.setType(kind)
}

func (s *ClientState) setType(kind string) error {
	switch kind {
	case checkpointType:
		s.Checkpoint = true
	case stateType:
	default:
		return fmt.Errorf("%w: field \"type\" is %q, neither state nor checkpoint", ErrBadRecord, kind)
	}
	return nil
}
