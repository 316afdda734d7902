package query

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// groupPrefix begins the consumer group of a materializer's replica.
const groupPrefix = "presence-materializer-"

// routing says who owns which partition. It is never changed once others can see it.
type routing struct {
	partitions int32
	replicas   []replica // in the order of preference
	confirmed  time.Time // when Kafka last named an owner, or said for certain that there is none
}

// replica is one materializer group, which owns every partition once.
type replica struct {
	group  string
	owners []string // StateService address by partition; empty: no owner
}

// owner returns whom to ask for a partition: of the owners that did not fail, the one with the least doubt about it, and of several the one of the
// first replica; empty if there is none.
func (t *routing) owner(partition int32, failed failures, doubts map[string]*standing) string {
	best, bestRank, bestApplied := "", 0, int64(0)
	for _, r := range t.replicas {
		o := r.owners[partition]
		if o == "" || failed.has(o, partition) {
			continue
		}
		if rank, applied := doubts[o].rank(partition); best == "" || rank < bestRank || rank == bestRank && applied > bestApplied {
			best, bestRank, bestApplied = o, rank, applied
		}
	}
	return best
}

// ownedBy returns the partitions of an owner.
func (t *routing) ownedBy(addr string) (partitions []int32) {
	if t == nil {
		return nil
	}
	for _, r := range t.replicas {
		for p, o := range r.owners {
			if o == addr {
				partitions = append(partitions, int32(p))
			}
		}
	}
	return partitions
}

// unowned returns the number of partitions without an owner in any replica.
func (t *routing) unowned() int {
	n := 0
	for p := range t.partitions {
		if t.owner(p, nil, nil) == "" {
			n++
		}
	}
	return n
}

// addrs returns every address that is routed to.
func (t *routing) addrs() map[string]bool {
	all := make(map[string]bool)
	for _, r := range t.replicas {
		for _, o := range r.owners {
			if o != "" {
				all[o] = true
			}
		}
	}
	return all
}

// discover asks Kafka for the partitions of client-events, and for the members and assignments of each replica's group. A replica that
// cannot be described or is rebalancing keeps the owners that old knows. The error joins what went wrong for single replicas; the
// routing is nil only if nothing could be learnt.
func discover(ctx context.Context, adm *kadm.Client, replicas []string, old *routing) (*routing, error) {
	topics, err := adm.ListTopics(ctx, eventlog.TopicClientEvents)
	if err != nil {
		return nil, fmt.Errorf("ask kafka for the partitions of %s: %w", eventlog.TopicClientEvents, err)
	}
	topic := topics[eventlog.TopicClientEvents]
	if topic.Err != nil || len(topic.Partitions) == 0 {
		return nil, fmt.Errorf("ask kafka for the partitions of %s; the materializer or bridge creates the topic: %w",
			eventlog.TopicClientEvents, errors.Join(topic.Err))
	}
	groups := make([]string, len(replicas))
	for i, r := range replicas {
		groups[i] = groupPrefix + r
	}
	described, err := adm.DescribeGroups(ctx, groups...)
	if err != nil && len(described) == 0 {
		return nil, fmt.Errorf("ask kafka for the members of %v: %w", groups, err)
	}
	return route(described, groups, int32(len(topic.Partitions)), old, time.Now())
}

// route reads the owners off the groups' descriptions.
func route(described kadm.DescribedGroups, groups []string, partitions int32, old *routing, now time.Time) (*routing, error) {
	t := &routing{partitions: partitions, replicas: make([]replica, len(groups))}
	if old != nil {
		t.confirmed = old.confirmed
	}
	var errs []error
	for i, group := range groups {
		owners, known, err := ownersOf(described, group, partitions)
		if err != nil {
			errs = append(errs, err)
		}
		switch {
		case known:
			t.confirmed = now
		case old != nil && old.partitions == partitions:
			owners = old.replicas[i].owners
		}
		t.replicas[i] = replica{group: group, owners: owners}
	}
	return t, errors.Join(errs...)
}

// ownersOf reads the owners by partition off a group's description. Known is false while the group rebalances or cannot be described.
func ownersOf(described kadm.DescribedGroups, group string, partitions int32) (owners []string, known bool, err error) {
	owners = make([]string, partitions)
	g, ok := described[group]
	switch {
	case !ok:
		return owners, false, fmt.Errorf("ask kafka for the members of %s: no answer", group)
	case errors.Is(g.Err, kerr.GroupIDNotFound):
		return owners, true, nil
	case g.Err != nil:
		return owners, false, fmt.Errorf("ask kafka for the members of %s: %w", group, g.Err)
	}
	switch g.State {
	case "Stable":
	case "Empty", "Dead":
		return owners, true, nil
	default:
		return owners, false, nil
	}
	var errs []error
	for _, m := range g.Members {
		assigned, ok := m.Assigned.AsConsumer()
		if !ok {
			errs = append(errs, fmt.Errorf("member %s of %s has no consumer assignment", m.MemberID, group))
			continue
		}
		addr := ""
		if m.InstanceID != nil {
			addr = *m.InstanceID
		}
		if _, _, err := net.SplitHostPort(addr); err != nil {
			errs = append(errs, fmt.Errorf("member %s of %s: its instance ID must be its StateService address: %w", m.MemberID, group, err))
			continue
		}
		for _, t := range assigned.Topics {
			if t.Topic != eventlog.TopicClientEvents {
				continue
			}
			for _, p := range t.Partitions {
				if p >= 0 && p < partitions {
					owners[p] = addr
				}
			}
		}
	}
	return owners, true, errors.Join(errs...)
}
