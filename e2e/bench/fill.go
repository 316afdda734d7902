package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

const (
	dialect   = "emqx"
	nodes     = 5
	usernames = 1_000
	// day is how long ago the oldest connection began.
	day = 24 * time.Hour
	// produceChunk is how many records are made and awaited at once.
	produceChunk = 20_000
)

func node(i int) string { return fmt.Sprintf("emqx@10.0.3.%d", 11+i%nodes) }

func username(i int) string { return fmt.Sprintf("fleet-%04d", i%usernames) }

// clientID is 22 characters long and spreads over all beginnings, as random IDs do.
func clientID(i int) string {
	r := rand.New(rand.NewPCG(uint64(i), 7))
	return fmt.Sprintf("%09d-%012x", i, r.Uint64()&(1<<48-1))
}

// opened is client i's connection, which began some time of the last day.
func opened(i int, now time.Time) presence.Fact {
	at := now.Add(-time.Duration(rand.New(rand.NewPCG(uint64(i), 11)).Int64N(int64(day)))).UnixMilli()
	return openedAt(i, at)
}

func openedAt(i int, ms int64) presence.Fact {
	f := presence.Fact{
		Kind: presence.Opened, Cluster: cluster, ClientID: clientID(i), Dialect: dialect, Node: node(i), Connection: strconv.FormatInt(ms, 10),
		TimeMS: ms, ReceivedMS: ms + 1, ConnectedAtMS: ms, Username: username(i), Peer: fmt.Sprintf("203.0.113.%d:%d", i%250, 1024+i%60_000), ProtocolVersion: 5,
		KeepAliveS: presence.Some[uint32](60), CleanStart: presence.Some(false), SessionExpiryS: presence.Some[uint32](7200),
	}
	f.SetID()
	return f
}

func closedAt(o presence.Fact, ms int64) presence.Fact {
	f := presence.Fact{
		Kind: presence.Closed, Cluster: cluster, ClientID: o.ClientID, Dialect: dialect, Node: o.Node, Connection: o.Connection,
		TimeMS: ms, ReceivedMS: ms + 1, ConnectedAtMS: o.ConnectedAtMS, DisconnectedAtMS: ms,
		Reason: presence.ReasonKeepAliveTimeout, RawReason: "keepalive_timeout",
	}
	f.SetID()
	return f
}

// nodesAlive says of all nodes that they run since before the day, and of the feed that it is complete.
func nodesAlive(now time.Time) []presence.NodeFact {
	ms, began := now.UnixMilli(), now.Add(-2*day).UnixMilli()
	facts := []presence.NodeFact{{
		Kind: presence.Feed, Cluster: cluster, Bridge: "bench", Dialect: dialect, TimeMS: ms, ReceivedMS: ms,
		CompleteSinceMS: now.Add(-3 * day).UnixMilli(), LeaseMS: day.Milliseconds(),
	}}
	for i := range nodes {
		facts = append(facts, presence.NodeFact{
			Kind: presence.NodeAlive, Cluster: cluster, Node: node(i), Dialect: dialect, TimeMS: ms, ReceivedMS: ms,
			UptimeMS: presence.Some((2 * day).Milliseconds()), StartedMS: began, StartedReceivedMS: began,
		})
	}
	return facts
}

// fill writes the facts of n clients: 7 of 10 are online, the others offline.
func (s *stack) fill(ctx context.Context, n int) error {
	now := time.Now()
	var records []*kgo.Record
	for _, f := range nodesAlive(now) {
		records = append(records, eventlog.NodeRecord(&f, s.kafkaConf.Format()))
	}
	for i := range n {
		o := opened(i, now)
		records = append(records, eventlog.FactRecord(&o, s.kafkaConf.Format()))
		if i%10 >= 7 {
			c := closedAt(o, min(o.TimeMS+time.Hour.Milliseconds(), now.UnixMilli()))
			records = append(records, eventlog.FactRecord(&c, s.kafkaConf.Format()))
		}
		if len(records) >= produceChunk || i == n-1 {
			if err := s.produce(ctx, records...); err != nil {
				return err
			}
			records = records[:0]
		}
	}
	return nil
}

func (s *stack) produce(ctx context.Context, records ...*kgo.Record) error {
	if err := s.producer.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return fmt.Errorf("produce facts: %w", err)
	}
	return nil
}

// silence asserts that a node is silent: its clients become unknown, without a fact about any of them.
func (s *stack) silence(ctx context.Context, i int) error {
	ms := time.Now().UnixMilli()
	f := presence.NodeFact{Kind: presence.NodeSilent, Cluster: cluster, Node: node(i), Dialect: dialect, TimeMS: ms, ReceivedMS: ms}
	return s.produce(ctx, eventlog.NodeRecord(&f, s.kafkaConf.Format()))
}

// awaitTotal waits until so many clients are counted exactly and nothing lags behind.
func (s *stack) awaitTotal(ctx context.Context, n int64) error {
	client, err := s.client()
	if err != nil {
		return err
	}
	err = await(ctx, "the store to be filled", func(ctx context.Context) error {
		stats, err := client.Stats(ctx, 0)
		switch f := stats.GetFreshness(); {
		case err != nil:
			return err
		case stats.GetClients().GetTotal() != n || !stats.GetExact() || f.LagRecords == nil || f.GetLagRecords() != 0:
			return fmt.Errorf("%d of %d clients are counted, exact: %t, behind: %d records", stats.GetClients().GetTotal(), n, stats.GetExact(), f.GetLagRecords())
		}
		return nil
	})
	return errors.Join(err, client.Close())
}
