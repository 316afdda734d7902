package query

import (
	"fmt"
	"slices"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Replicas returns the names of the replicas, in the order of preference.
func (r *Router) Replicas() []string { return slices.Clone(r.cfg.Replicas) }

// Partitions returns the number of partitions, 0 before the first routing.
func (r *Router) Partitions() int32 {
	table, _ := r.routing()
	if table == nil {
		return 0
	}
	return table.partitions
}

// OwnerIn returns who owns a partition in the replica at a place of Replicas, as far as Kafka has told. An error asks for a new routing.
func (r *Router) OwnerIn(replica int, partition int32) (presencev1.StateServiceClient, error) {
	table, _ := r.routing()
	addr := ""
	if table != nil && replica < len(table.replicas) && partition < table.partitions {
		addr = table.replicas[replica].owners[partition]
	}
	if addr == "" {
		r.Reroute()
		return nil, unavailable(fmt.Sprintf("partition %d has no owner in replica %s", partition, r.cfg.Replicas[replica]))
	}
	return r.connect(addr)
}

// Reroute has Kafka asked who owns what, soon.
func (r *Router) Reroute() {
	select {
	case r.trigger <- struct{}{}:
	default:
	}
}
