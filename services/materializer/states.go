package materializer

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// maxKeys bounds a read.
const maxKeys = 10_000

// Reason and domain of the error for a minimum offset that was not reached.
const (
	reasonMinOffset = "MIN_OFFSET_NOT_REACHED"
	errorDomain     = "presence"
)

// GetStates answers for clients of one cluster, with statuses computed from the rows and the node table as they are now. Keys of
// partitions that are not owned, or not restored yet, are listed as such. A minimum offset is waited for until ctx ends.
//
// Errors are gRPC statuses: InvalidArgument for a bad cluster or client ID, FailedPrecondition with ErrorInfo reason
// MIN_OFFSET_NOT_REACHED, Internal for a store that cannot be read.
func (m *Materializer) GetStates(ctx context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	keys := req.GetKeys()
	m.metrics.reads.Observe(float64(len(keys)))
	if err := eventlog.ValidCluster(req.GetCluster()); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "cluster: %v", err)
	}
	if len(keys) > maxKeys {
		return nil, status.Errorf(codes.InvalidArgument, "keys: %d are more than %d; ask in parts", len(keys), maxKeys)
	}
	resp := &presencev1.GetStatesResponse{Entries: make([]*presencev1.StateEntry, 0, len(keys))}
	owned := m.owned()
	r := m.reader()
	defer r.done()
	r.cluster, r.explain, r.sessions = req.GetCluster(), req.GetExplain(), req.GetHistory()
	for i, k := range keys {
		if err := eventlog.ValidClientID(k.GetClientId()); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "keys[%d]: %v", i, err)
		}
		r.key = eventlog.AppendClientKey(r.key[:0], req.GetCluster(), k.GetClientId())
		id := eventlog.Partition(r.key, m.cfg.Kafka.Partitions)
		p := owned[id]
		if p == nil {
			resp.NotOwned = append(resp.NotOwned, uint32(i))
			continue
		}
		if k.MinOffset != nil && !p.progress.wait(ctx, k.GetMinOffset()) {
			return nil, notReached(id, k.GetMinOffset(), p.progress.read().next)
		}
		// Read before the row: the row is at least as new as the freshness that goes with it.
		next := r.progressOf(p)
		if r.table == nil {
			r.table = p.parts.nodes.table()
		}
		entry, err := r.entry(p, next)
		if err != nil {
			return nil, status.Errorf(codes.Internal, "read client %d of the request: %v", i, err)
		}
		entry.Index = uint32(i)
		resp.Entries = append(resp.Entries, entry)
	}
	ps := m.shared.Load()
	if ps == nil {
		return resp, nil
	}
	if r.table == nil {
		r.table = ps.nodes.table()
	}
	resp.Partitions = m.freshnessOf(r.seen, r.table)
	resp.Health = r.table.health(req.GetCluster())
	return resp, nil
}

// ReadStatus is GetStates of one client for callers in the same process that want its status and belief alone: they are spared the message. owned is
// false if its partition is not owned, or not restored yet. Cluster and client ID must be valid.
func (m *Materializer) ReadStatus(cluster, clientID string) (status, belief presence.Presence, owned bool, err error) {
	m.metrics.reads.Observe(1)
	r := m.reader()
	defer r.done()
	r.key = eventlog.AppendClientKey(r.key, cluster, clientID)
	p := m.owned()[eventlog.Partition(r.key, m.cfg.Kafka.Partitions)]
	if p == nil {
		return 0, 0, false, nil
	}
	r.cluster, r.table = cluster, p.parts.nodes.table()
	v, _, _, err := r.verdict(p)
	return v.Status, v.Belief, true, err
}

// partitionFreshness is how far a partition had come when its first row was about to be read.
type partitionFreshness struct {
	id int32
	freshness
}

// freshnessOf describes partitions as they were read before their rows and the node table.
func (m *Materializer) freshnessOf(seen []partitionFreshness, table *nodeTable) []*presencev1.PartitionFreshness {
	ps := m.shared.Load()
	if ps == nil {
		return nil
	}
	nodeEnd := max(ps.nodes.end.Load(), table.next)
	all := make([]*presencev1.PartitionFreshness, 0, len(seen))
	slices.SortFunc(seen, func(a, b partitionFreshness) int { return cmp.Compare(a.id, b.id) })
	for _, f := range seen {
		all = append(all, &presencev1.PartitionFreshness{
			Partition: f.id, AppliedOffset: f.next, EndOffset: f.end, AppliedTimeMs: f.appliedMS, EndOffsetTimeMs: f.endMS,
			NodeAppliedOffset: table.next, NodeEndOffset: nodeEnd, Ready: f.ready, CaughtUpTimeMs: f.caughtUpMS,
		})
	}
	return all
}

func notReached(partition int32, want, next int64) error {
	s := status.Newf(codes.FailedPrecondition, "partition %d has applied the offsets below %d, min_offset %d is not reached: try again, or ask without it", partition, next, want)
	detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reasonMinOffset, Domain: errorDomain, Metadata: map[string]string{
		"partition": fmt.Sprint(partition), "applied_offset": fmt.Sprint(next), "min_offset": fmt.Sprint(want),
	}})
	if err != nil {
		return s.Err()
	}
	return detailed.Err()
}

// reader is the working memory of one read. It is reused: nothing of an answer may point into key and value.
type reader struct {
	m        *Materializer
	cluster  string
	explain  bool
	sessions bool
	table    *nodeTable
	key      []byte
	value    []byte
	row      store.Row
	seen     []partitionFreshness // those that were read
}

// maxReaderBytes is the largest buffer that is kept for the next read.
const maxReaderBytes = 64 << 10

func (m *Materializer) reader() *reader {
	if r, ok := m.readers.Get().(*reader); ok {
		return r
	}
	return &reader{m: m}
}

// done gives the reader back.
func (r *reader) done() {
	if cap(r.key)+cap(r.value) > maxReaderBytes {
		return
	}
	*r = reader{m: r.m, key: r.key[:0], value: r.value[:0], seen: r.seen[:0]}
	r.m.readers.Put(r)
}

// progressOf returns the applied offset of a partition, as it was when its first row was about to be read.
func (r *reader) progressOf(p *partition) int64 {
	for i := range r.seen {
		if r.seen[i].id == p.id {
			return r.seen[i].next
		}
	}
	f := p.progress.read()
	r.seen = append(r.seen, partitionFreshness{p.id, f})
	return f.next
}

// verdict reads the row of the client of r.key, and says what it and the node table make of it; found is false if there is no row.
func (r *reader) verdict(p *partition) (v presence.Verdict, state []byte, found bool, err error) {
	r.value, found, err = p.parts.store.AppendRow(r.value[:0], p.id, r.key)
	if err != nil {
		return v, nil, false, err
	}
	r.row = store.Row{}
	if found {
		if state, err = r.row.Decode(r.value); err != nil {
			return v, nil, false, err
		}
	}
	return presence.Status(&r.row.State, r.table.cluster(r.cluster), p.allowanceMS()), state, found, nil
}

// entry reads the client of r.key; next is the partition's applied offset.
func (r *reader) entry(p *partition, next int64) (*presencev1.StateEntry, error) {
	v, state, found, err := r.verdict(p)
	if err != nil {
		return nil, err
	}
	e := r.describe(p, &v, found, next)
	if r.explain && e.GetFound() {
		// The log is read after the row: it may hold a fact more, never one less.
		if e.Evidence, err = r.evidence(p, state); err != nil {
			return nil, err
		}
	}
	if r.sessions && e.GetFound() {
		if e.History, err = r.history(p, &v); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// describe returns what r.row and a verdict on it say of a client; found is false if there is no row.
func (r *reader) describe(p *partition, v *presence.Verdict, found bool, next int64) *presencev1.StateEntry {
	// One allocation: a read of one client has little else to do.
	d := &struct {
		entry      presencev1.StateEntry
		connection presencev1.Connection
		seconds    [2]uint32
		cleanStart bool
	}{}
	e := &d.entry
	e.Found, e.Status, e.Belief, e.StatusReason, e.SinceMs = !r.row.State.Empty(), v.Status.String(), v.Belief.String(), v.Reason.String(), v.SinceMS
	e.Node, e.Reason, e.RawReason, e.Partition, e.ReceivedMs = v.Node, v.Close.String(), v.Raw, p.id, r.row.ReceivedMS
	if c := v.Conn; c != nil {
		e.Dialect, e.Connection = c.Dialect, &d.connection
		describeConnection(e.Connection, c, &d.seconds, &d.cleanStart)
	}
	if !found || r.row.State.Empty() {
		e.ReceivedMs = 0 // a marker tells nobody that the client was there
		return e
	}
	l := &r.row.Last
	e.TransitionTimeMs, e.PreviousStatus, e.EventOffset, e.NodeEventOffset = l.TimeMS, l.Previous.String(), l.Version.Event, l.Version.Node
	if changes(l, v) {
		// A sweep is on its way to this row: the transition that it will publish.
		e.TransitionTimeMs, e.PreviousStatus = r.table.touched[r.cluster].timeMS, l.Status.String()
		e.EventOffset, e.NodeEventOffset = max(next-1, r.row.Latest.Event), r.table.next-1
	}
	return e
}

// describeConnection fills in what is known of a connection; optional values go to the memory given for them.
func describeConnection(to *presencev1.Connection, c *presence.Connection, seconds *[2]uint32, cleanStart *bool) {
	to.Key, to.ConnectedAtMs, to.Username, to.Peer, to.Transport, to.ProtocolVersion = c.Key, c.OpenedMS, c.Username, c.Peer, c.Transport, uint32(c.ProtocolVersion)
	to.KeepAliveS, to.CleanStart, to.SessionExpiryS = optional(c.KeepAliveS, &seconds[0]), optional(c.CleanStart, cleanStart), optional(c.SessionExpiryS, &seconds[1])
}

// optional puts a value where at points to, and returns nil if there is none.
func optional[T comparable](o presence.Opt[T], at *T) *T {
	if !o.Valid {
		return nil
	}
	*at = o.Value
	return at
}

func connectionOf(c *presence.Connection) *presencev1.Connection {
	to := &presencev1.Connection{}
	describeConnection(to, c, new([2]uint32), new(bool))
	return to
}

func pointer[T comparable](o presence.Opt[T]) *T { return optional(o, new(T)) }

// healthOf describes nodes and feeds; c may be nil.
func healthOf(c *presence.Cluster) *presencev1.ClusterHealth {
	h := &presencev1.ClusterHealth{}
	if c == nil {
		return h
	}
	for _, name := range slices.Sorted(maps.Keys(c.Nodes)) {
		n := c.Nodes[name]
		h.Nodes = append(h.Nodes, &presencev1.NodeHealth{Node: name, StartedMs: n.StartedMS, AliveMs: n.AliveMS, Gone: n.Gone(), Silent: n.Silent(), GoneMs: n.GoneMS, SilentMs: n.SilentMS})
	}
	for _, bridge := range slices.Sorted(maps.Keys(c.Feeds)) {
		f := c.Feeds[bridge]
		h.Feeds = append(h.Feeds, &presencev1.FeedHealth{
			Bridge: bridge, AliveMs: f.ReceivedMS, LeaseMs: f.LeaseMS, Connected: f.CompleteSinceMS != 0, DroppedCount: f.DroppedCount,
			GapFromMs: f.GapFromMS, GapToMs: f.GapToMS, DroppedFromMs: f.DroppedFromMS, DroppedToMs: f.DroppedToMS, CompleteSinceMs: f.CompleteSinceMS,
		})
	}
	if from, to, open := c.FeedGap(); open {
		h.Gap = &presencev1.FeedGap{FromMs: from, ToMs: to}
	}
	h.Complete = c.FeedComplete()
	return h
}
