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
// The answer is what the facts below the applied offset of each partition make, and the node facts below its applied node-events offset:
// those of a later fact are in no entry, and those of an earlier one are in all.
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
	r := m.reader()
	defer r.done()
	r.cluster, r.explain, r.sessions = req.GetCluster(), req.GetExplain(), req.GetHistory()
	if err := r.prepare(ctx, keys); err != nil {
		return nil, err
	}
	done, err := false, error(nil)
	if len(keys) == 1 {
		done, err = r.readOne(keys[0], resp)
	}
	if !done && err == nil {
		err = r.readAll(keys, resp)
	}
	if err != nil {
		return nil, storeError(err)
	}
	if r.table == nil {
		ps := m.shared.Load()
		if ps == nil {
			return resp, nil
		}
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
	if _, _, err = r.load(p.parts.store, p); err != nil {
		return 0, 0, true, err
	}
	v := presence.Status(&r.row.State, p.parts.nodes.table().cluster(cluster), p.allowanceMS())
	return v.Status, v.Belief, true, nil
}

// partitionFreshness is how far a partition had come as it was read.
type partitionFreshness struct {
	id int32
	freshness
}

// freshnessOf describes partitions as they were read.
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
	ids      []int32              // the partition of each key
	seen     []partitionFreshness // those that were read
}

// source is where rows and what is kept beside them are read: the store, or a view of it.
type source interface {
	AppendRow(dst []byte, partition int32, client []byte) (_ []byte, found bool, err error)
	Logged(partition int32) (int64, error)
	Evidence(partition int32, client []byte) (entries []store.Evidence, complete int, cut bool, err error)
	History(partition int32) (sinceMS int64, err error)
	Sessions(partition int32, client []byte) (sessions []store.Session, endings []store.Ending, cut bool, err error)
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
	*r = reader{m: r.m, key: r.key[:0], value: r.value[:0], ids: r.ids[:0], seen: r.seen[:0]}
	r.m.readers.Put(r)
}

// prepare finds the partitions of the keys and waits for the minimum offsets.
func (r *reader) prepare(ctx context.Context, keys []*presencev1.StateKey) error {
	for i, k := range keys {
		if err := eventlog.ValidClientID(k.GetClientId()); err != nil {
			return status.Errorf(codes.InvalidArgument, "keys[%d]: %v", i, err)
		}
		id := r.locate(k)
		r.ids = append(r.ids, id)
		if k.MinOffset == nil {
			continue
		}
		if p := r.m.owned()[id]; p != nil && !p.progress.wait(ctx, k.GetMinOffset()) {
			return notReached(id, k.GetMinOffset(), p.progress.read().next)
		}
	}
	return nil
}

// locate makes k the key to read and returns its partition.
func (r *reader) locate(k *presencev1.StateKey) int32 {
	r.key = eventlog.AppendClientKey(r.key[:0], r.cluster, k.GetClientId())
	return eventlog.Partition(r.key, r.m.cfg.Kafka.Partitions)
}

// readOne answers for the one client of r.key without a view of the store, which costs more than all the rest. It returns false if row and offset
// may not belong together, since a batch was committed meanwhile, or the partition was given up.
func (r *reader) readOne(k *presencev1.StateKey, resp *presencev1.GetStatesResponse) (done bool, err error) {
	served, id := r.m.served.Load(), r.ids[0]
	p := (*served)[id]
	if p == nil {
		resp.NotOwned = append(resp.NotOwned, 0)
		return true, nil
	}
	commits := p.progress.commits.Load()
	if commits%2 != 0 {
		return false, nil
	}
	fresh := p.progress.read()
	entry, err := r.entry(p.parts.store, p, &fresh)
	if err != nil {
		return false, err
	}
	if p.progress.commits.Load() != commits || r.m.served.Load() != served && r.m.owned()[id] != p {
		r.table = nil
		return false, nil
	}
	resp.Entries, r.seen = append(resp.Entries, entry), append(r.seen, partitionFreshness{id, fresh})
	return true, nil
}

// readAll answers for clients as a view of the store shows them, so that they belong together, and each to the offset of its partition.
func (r *reader) readAll(keys []*presencev1.StateKey, resp *presencev1.GetStatesResponse) (err error) {
	owned := r.m.owned()
	for _, id := range r.ids {
		if p := owned[id]; p != nil && r.freshOf(id) == nil {
			r.seen = append(r.seen, partitionFreshness{id, p.progress.read()})
		}
	}
	var view *store.View
	if len(r.seen) > 0 {
		if view, err = r.m.shared.Load().store.NewView(); err != nil {
			return err
		}
		defer func() { err = closeView(view, err) }()
		if err := r.lookUp(view, owned); err != nil {
			return err
		}
	}
	for i, k := range keys {
		id := r.ids[i]
		fresh := r.freshOf(id)
		if fresh == nil {
			resp.NotOwned = append(resp.NotOwned, uint32(i))
			continue
		}
		r.locate(k)
		entry, err := r.entry(view, owned[id], fresh)
		if err != nil {
			return fmt.Errorf("client %d of the request: %w", i, err)
		}
		entry.Index = uint32(i)
		resp.Entries = append(resp.Entries, entry)
	}
	return nil
}

// lookUp sets the offsets that a view shows. A partition that was given up meanwhile may have been in other hands before the view was made.
func (r *reader) lookUp(view *store.View, owned map[int32]*partition) error {
	now := r.m.owned()
	r.seen = slices.DeleteFunc(r.seen, func(f partitionFreshness) bool { return now[f.id] != owned[f.id] })
	for i := range r.seen {
		meta, _, err := view.Meta(r.seen[i].id)
		if err != nil {
			return err
		}
		r.seen[i].at(&meta)
	}
	return nil
}

// freshOf returns how far a partition that is read has come, nil if it is not.
func (r *reader) freshOf(id int32) *freshness {
	for i := range r.seen {
		if r.seen[i].id == id {
			return &r.seen[i].freshness
		}
	}
	return nil
}

// load reads the row of the client of r.key; found is false if there is none.
func (r *reader) load(from source, p *partition) (state []byte, found bool, err error) {
	r.value, found, err = from.AppendRow(r.value[:0], p.id, r.key)
	r.row = store.Row{}
	if err == nil && found {
		state, err = r.row.Decode(r.value)
	}
	return state, found, err
}

// entry reads the client of r.key from a source that is as fresh as stated.
func (r *reader) entry(from source, p *partition, fresh *freshness) (*presencev1.StateEntry, error) {
	state, found, err := r.load(from, p)
	if err != nil {
		return nil, err
	}
	if ahead := r.row.Latest.Event + 1; found && ahead > fresh.next && len(r.ids) == 1 {
		// The row was restored from client-state, and the facts behind it are still to be passed over. It has all of this client's up to its
		// version; of others that are asked for with it nothing can be said.
		fresh.next, fresh.end = ahead, max(fresh.end, ahead)
	}
	if r.table == nil {
		// After the row, which may show transitions of the nodes: a table of before would not know of them.
		r.table = p.parts.nodes.table()
	}
	v := presence.Status(&r.row.State, r.table.cluster(r.cluster), p.allowanceMS())
	e := r.describe(p, &v, found, fresh.next)
	if r.explain && e.GetFound() {
		if e.Evidence, err = r.evidence(from, p, state); err != nil {
			return nil, err
		}
	}
	if r.sessions && e.GetFound() {
		if e.History, err = r.history(from, p, &v, fresh.appliedMS); err != nil {
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
			Bridge: bridge, AliveMs: f.ToldMS(), LeaseMs: f.LeaseMS, Connected: f.CompleteSinceMS != 0, DroppedCount: f.DroppedCount,
			GapFromMs: f.GapFromMS, GapToMs: f.GapToMS, DroppedFromMs: f.DroppedFromMS, DroppedToMs: f.DroppedToMS, CompleteSinceMs: f.CompleteSinceMS,
		})
	}
	if from, to, open := c.FeedGap(); open {
		h.Gap = &presencev1.FeedGap{FromMs: from, ToMs: to}
	}
	h.Complete = c.FeedComplete()
	return h
}
