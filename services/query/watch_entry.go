package query

import (
	"bytes"
	"fmt"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Types of a WatchClientsResponse.
const (
	watchTransition  = "transition"
	watchRemoved     = "removed"
	watchClient      = "client"
	watchSnapshotEnd = "snapshot_end"
	watchSkipped     = "skipped"
	watchHeartbeat   = "heartbeat"
)

// Fields of a WatchClientsResponse that are encoded by hand, since they are shared.
const (
	fieldType        protowire.Number = 1
	fieldResumeToken protowire.Number = 2
	fieldTransition  protowire.Number = 3
)

// entryOverhead is what an entry takes besides its texts, in bytes.
const entryOverhead = 320

// clientName names a client of any cluster.
type clientName struct{ cluster, id string }

// connectionName names a connection, as far as a transition tells.
type connectionName struct {
	node, key     string
	connectedAtMS int64
}

// watchEntry is a record of client-state that watchers can be told. Its bytes are shared by all of them, and never changed.
type watchEntry struct {
	partition int32
	offset    int64
	timeMS    int64  // the record was written at this time or later
	token     string // of the position after it, in the hub's own sequence
	client    clientName
	version   [2]int64

	removed          bool
	status, previous presence.Presence
	username         string
	connectionName

	body []byte // the message without its token, for gRPC
	json atomic.Pointer[[]byte]
}

// kind is the type of the message.
func (e *watchEntry) kind() string {
	if e.removed {
		return watchRemoved
	}
	return watchTransition
}

// size is what the entry takes in memory, in bytes; the form for SSE is about as large as all the rest.
func (e *watchEntry) size() int64 {
	return int64(entryOverhead + len(e.token) + len(e.client.cluster) + len(e.client.id) + len(e.username) + len(e.node) + len(e.key) + 3*len(e.body))
}

// decodeWatch reads a record; nil if it is nothing that a watcher is told. State is scratch space.
func decodeWatch(r *kgo.Record, state *eventlog.ClientState) (*watchEntry, error) {
	switch {
	case r.Attrs.IsControl() || string(r.Key) == eventlog.CheckpointKey:
		return nil, nil
	case len(r.Value) == 0:
		return decodeRemoved(r)
	}
	if err := eventlog.DecodeClientState(r, state); err != nil {
		return nil, fmt.Errorf("decode a record of %s: %w", r.Topic, err)
	}
	if state.Checkpoint || !state.Transition {
		return nil, nil
	}
	e := &watchEntry{
		partition: r.Partition, offset: r.Offset,
		client: clientName{state.Cluster, state.ClientID}, version: [2]int64{state.EventOffset, state.NodeEventOffset},
		status: state.Status, previous: state.PreviousStatus, username: state.Username,
		connectionName: connectionName{state.Node, state.Connection, state.ConnectedAtMS},
	}
	return e, e.encode(&presencev1.ClientTransition{
		ClientId: state.ClientID, Cluster: state.Cluster,
		Status: state.Status.String(), PreviousStatus: state.PreviousStatus.String(),
		StatusReason: state.StatusReason.String(), Belief: state.Belief.String(), Since: timestamp(state.SinceMS),
		Node: state.Node, Key: state.Connection, ConnectedAt: timestamp(state.ConnectedAtMS), Username: state.Username, Peer: state.Peer,
		CloseReason: state.Reason.String(), CloseRawReason: state.RawReason,
		Time: timestamp(state.TimeMS), EventOffset: state.EventOffset, NodeEventOffset: state.NodeEventOffset,
	})
}

// decodeRemoved reads a tombstone; nil for one that is not of the contract.
func decodeRemoved(r *kgo.Record) (*watchEntry, error) {
	var t eventlog.Tombstone
	ok, err := eventlog.DecodeTombstone(r, &t)
	if err != nil {
		return nil, fmt.Errorf("decode a tombstone of %s: %w", r.Topic, err)
	}
	if !ok {
		return nil, nil
	}
	e := &watchEntry{
		partition: r.Partition, offset: r.Offset, removed: true,
		client: clientName{t.Cluster, t.ClientID}, version: [2]int64{t.EventOffset, t.NodeEventOffset},
	}
	return e, e.encode(&presencev1.ClientTransition{
		ClientId: t.ClientID, Cluster: t.Cluster, StatusReason: t.Reason, Time: timestamp(t.TimeMS),
		EventOffset: t.EventOffset, NodeEventOffset: t.NodeEventOffset,
	})
}

// encode sets the body.
func (e *watchEntry) encode(t *presencev1.ClientTransition) error {
	inner, err := proto.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode a transition of partition %d at offset %d: %w", e.partition, e.offset, err)
	}
	kind := e.kind()
	b := make([]byte, 0, len(kind)+len(inner)+8)
	b = protowire.AppendTag(b, fieldType, protowire.BytesType)
	b = protowire.AppendString(b, kind)
	b = protowire.AppendTag(b, fieldTransition, protowire.BytesType)
	e.body = protowire.AppendBytes(b, inner)
	return nil
}

// watchJSON is the JSON of REST.
var watchJSON = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// transitionJSON is the JSON of the transition, made once for all watchers.
func (e *watchEntry) transitionJSON() ([]byte, error) {
	if made := e.json.Load(); made != nil {
		return *made, nil
	}
	var m presencev1.WatchClientsResponse
	if err := proto.Unmarshal(e.body, &m); err != nil {
		return nil, fmt.Errorf("decode a transition of partition %d at offset %d: %w", e.partition, e.offset, err)
	}
	made, err := watchJSON.Marshal(m.GetTransition())
	if err != nil {
		return nil, fmt.Errorf("encode a transition of partition %d at offset %d: %w", e.partition, e.offset, err)
	}
	made = bytes.Clone(made)
	e.json.Store(&made)
	return made, nil
}

// recentVersions is the window of records, of each partition, in which a copy is known for one. A publisher that does not know if a
// transaction was committed writes it again, right after: a transaction has at most 1,024 records.
const recentVersions = 4 << 10

// versions knows the copies of a partition's records.
type versions struct {
	seen  map[versionOf]struct{}
	order []versionOf // a ring
	next  int
}

type versionOf struct {
	client  clientName
	version [2]int64
	removed bool
}

// copied reports whether the entry is a copy of one before.
func (v *versions) copied(e *watchEntry) bool {
	key := versionOf{e.client, e.version, e.removed}
	if _, ok := v.seen[key]; ok {
		return true
	}
	if v.seen == nil {
		v.seen = make(map[versionOf]struct{})
	}
	v.seen[key] = struct{}{}
	if len(v.order) < recentVersions {
		v.order = append(v.order, key)
		return false
	}
	delete(v.seen, v.order[v.next])
	v.order[v.next] = key
	v.next = (v.next + 1) % recentVersions
	return false
}
