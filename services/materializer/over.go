package materializer

import (
	"maps"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// over is what a call over whole partitions reads: rows and offsets of one view of the store, and the node table, which is at least as new as the
// rows: what they do not show of it is told by the offset up to which they were swept.
type over struct {
	cluster  string
	ids      []int32 // ascending
	notOwned []int32
	parts    map[int32]*partition
	fresh    map[int32]freshness
	view     *store.View // nil if there is no partition
	table    *nodeTable
	indexed  map[int32]bool // the indexes are what the rows say
	swept    map[int32]bool // the rows of the cluster show the node table
	sweptAll bool           // those of all clusters do, in all partitions
}

// over begins a call over the given partitions, or over all that are owned if there are none. It must be closed.
func (m *Materializer) over(cluster string, ids []int32) (*over, error) {
	owned := m.owned()
	if len(ids) == 0 {
		ids = slices.Collect(maps.Keys(owned))
	}
	o := &over{
		cluster: cluster, parts: map[int32]*partition{}, fresh: map[int32]freshness{}, indexed: map[int32]bool{}, swept: map[int32]bool{}, sweptAll: true,
	}
	for _, id := range slices.Compact(slices.Sorted(slices.Values(ids))) {
		if p := owned[id]; p != nil {
			o.ids, o.parts[id], o.fresh[id] = append(o.ids, id), p, p.progress.read()
		} else {
			o.notOwned = append(o.notOwned, id)
		}
	}
	ps := m.shared.Load()
	if ps == nil {
		o.table = &nodeTable{}
		return o, nil
	}
	if len(o.ids) == 0 {
		o.table = ps.nodes.table()
		return o, nil
	}
	var err error
	if o.view, err = ps.store.NewView(); err != nil {
		return nil, err
	}
	// One that was given up meanwhile may have been in other hands before the view.
	owned = m.owned()
	o.ids = slices.DeleteFunc(o.ids, func(id int32) bool {
		gone := owned[id] != o.parts[id]
		if gone {
			o.notOwned = append(o.notOwned, id)
		}
		return gone
	})
	o.table = ps.nodes.table()
	for _, id := range o.ids {
		if err := o.look(id); err != nil {
			return nil, closeView(o.view, err)
		}
	}
	return o, nil
}

// look reads how far the facts, the indexes and the node facts in the rows of a partition are.
func (o *over) look(id int32) (err error) {
	if o.indexed[id], err = o.view.Indexed(id); err != nil {
		return err
	}
	meta, _, err := o.view.Meta(id)
	if err != nil {
		return err
	}
	fresh := o.fresh[id]
	fresh.at(&meta)
	o.fresh[id] = fresh
	t, touched := o.table.touched[o.cluster]
	o.swept[id] = !touched || t.offset <= meta.SweptNode
	o.sweptAll = o.sweptAll && o.table.affected <= meta.SweptNode
	return nil
}

func (o *over) close() error {
	if o.view == nil {
		return nil
	}
	return o.view.Close()
}

func closeView(v *store.View, err error) error {
	if cerr := v.Close(); cerr != nil && err == nil {
		return cerr
	}
	return err
}

// scans reports whether a list has to look through the rows of a partition.
func (o *over) scans(id int32) bool { return !o.indexed[id] || !o.swept[id] }

// exact reports whether indexes and counters of the cluster are what an answer to each of its clients would say.
func (o *over) exact() bool { return !slices.ContainsFunc(o.ids, o.scans) }

// built reports whether the counters of all clusters are complete.
func (o *over) built() bool {
	return !slices.ContainsFunc(o.ids, func(id int32) bool { return !o.indexed[id] })
}

// standings returns the standings of a status, nil if it is empty.
func (o *over) standings(word string) []store.Standing {
	if word == "" {
		return nil
	}
	s := presence.ParsePresence(word)
	standings := []store.Standing{store.Standing(s)}
	if o.neverSeen(o.cluster) == s {
		standings = append(standings, store.NeverSeen)
	}
	return standings
}

// statusOf returns the status that clients of a cluster with a standing have.
func (o *over) statusOf(cluster string, s store.Standing) presence.Presence {
	if s == store.NeverSeen {
		return o.neverSeen(cluster)
	}
	return presence.Presence(s)
}

// neverSeen is the status of clients of a cluster that were never seen. No allowance matters to it.
func (o *over) neverSeen(cluster string) presence.Presence {
	return presence.Status(&presence.State{}, o.table.cluster(cluster), 0).Status
}

func (o *over) health() *presencev1.ClusterHealth { return o.table.health(o.cluster) }

func (o *over) freshness(m *Materializer) []*presencev1.PartitionFreshness {
	fresh := make([]partitionFreshness, 0, len(o.ids))
	for _, id := range o.ids {
		fresh = append(fresh, partitionFreshness{id, o.fresh[id]})
	}
	return m.freshnessOf(fresh, o.table)
}
