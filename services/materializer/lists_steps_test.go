package materializer

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// expire looks at the next rows for those that are gone, from the first one if no walk is under way.
func (w *rowWorld) expire(p *partition) {
	w.t.Helper()
	if !p.expiry.active {
		p.expiry = expiry{active: true, rows: w.random.IntN(2) == 0}
	}
	w.must(p.expiryChunk(context.Background()))
}

// merge reads what another process, that owned the partition meanwhile, has published of some clients.
func (w *rowWorld) merge(p *partition) {
	w.t.Helper()
	var records []*kgo.Record
	for range 1 + w.random.IntN(4) {
		if r := w.published(p); r != nil {
			records = append(records, r)
		}
	}
	m := &merge{p: p, found: true, unpublished: map[string][]unpublished{}, newest: map[string]record{}}
	w.must(m.apply(context.Background(), records))
	p.sweep, p.expiry = sweep{}, expiry{}
	w.replay(p)
}

// published makes a record that is newer than a client's row, or as new, or older; nil if the client is of another partition.
func (w *rowWorld) published(p *partition) *kgo.Record {
	w.t.Helper()
	cluster, id := pick(w, worldClusters), pick(w, worldClients)
	key, table := eventlog.ClientKey(cluster, id), w.nodes.table()
	if eventlog.Partition(key, worldPartitions) != p.id {
		return nil
	}
	version := store.Version{Event: max(p.meta.Next-2+w.random.Int64N(3), 0), Node: table.next - 1}
	if w.random.IntN(3) == 0 {
		t := eventlog.Tombstone{Cluster: cluster, ClientID: id, Reason: eventlog.RemovedExpired, TimeMS: t0 + w.nowMS, EventOffset: version.Event, NodeEventOffset: version.Node}
		if w.random.IntN(2) == 0 {
			t.Reason, t.AsOfMS = eventlog.RemovedForgotten, t0+w.nowMS
		}
		return eventlog.TombstoneRecord(&t, p.id)
	}
	value, found, err := w.db.AppendRow(nil, p.id, key)
	w.must(err)
	var r store.Row
	if found && w.random.IntN(2) == 0 {
		_, err = r.Decode(value)
		w.must(err)
	}
	for range 1 + w.random.IntN(2) {
		f := opened(id, pick(w, worldNodes), w.nowMS-w.random.Int64N(5000))
		f.Username = pick(w, worldUsers)
		r.State.Apply(&f)
	}
	v := presence.Status(&r.State, table.cluster(cluster), p.allowanceMS())
	return eventlog.StateRecord(&eventlog.ClientState{
		Transition: w.random.IntN(2) == 0, Cluster: cluster, ClientID: id, Status: v.Status, PreviousStatus: r.Last.Status, Belief: v.Belief, StatusReason: v.Reason,
		SinceMS: v.SinceMS, Node: v.Node, Connection: connectionKey(&v), TimeMS: t0 + w.nowMS, EventOffset: version.Event, NodeEventOffset: version.Node,
		State: r.State.Append(nil),
	}, p.id, eventlog.JSON)
}
