//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// faults end a part of the deployment while clients come and go.
var faults = []struct {
	name string
	run  func(t *testing.T, s *split, tgt Target)
}{
	{"materializer killed", faultMaterializerKilled},
	{"materializer away past its session", faultMaterializerAway},
	{"bridge killed under traffic", faultBridgeKilled},
	{"Kafka restarted under traffic", faultKafkaRestarted},
	{"bridge killed with a filled spool", faultSpoolKilled},
	// It leaves every client of the others offline, so it comes last.
	{"bridge away for too long, broker restarted", faultBridgeAway},
}

const (
	// faultPatience bounds the wait for what a fault delays: a session of 10 s that ends, a rebalance, a log to be read.
	faultPatience = 90 * time.Second
	// queueExpiry is more than Mosquitto keeps a log line for a session that is away, which is 20 s.
	queueExpiry = 23 * time.Second
	// scenarioClient is one whom the scenarios have left.
	scenarioClient = "scenario-disconnect"
	// connectEvery is the time between two connects: 50 a second.
	connectEvery = 20 * time.Millisecond
	// lifetime is how many connects later a client meets its fate: in another second than it came, since one second's order may be lost
	// with the bridge that counted it.
	lifetime = 125
)

// fate is how a client of the traffic ends.
type fate int

const (
	stays fate = iota
	disconnects
	isKilled
	fates
)

// traffic connects clients at a steady pace, each with an ID of its own, and ends two thirds of them again.
type traffic struct {
	connected atomic.Int64 // clients so far
	stop      context.CancelFunc
	stopped   chan struct{}

	// To be read when it has stopped.
	clients []*mqttClient
	ended   int // clients that have met their fate
	err     error
}

func startTraffic(t *testing.T, tgt Target, prefix string) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	tr := &traffic{stop: cancel, stopped: make(chan struct{})}
	t.Cleanup(func() {
		cancel()
		<-tr.stopped
		for _, c := range tr.clients {
			_ = c.conn.Close()
		}
	})
	go func() {
		defer close(tr.stopped)
		tr.err = tr.run(ctx, tgt.MQTT, prefix)
	}()
	return tr
}

func (tr *traffic) run(ctx context.Context, addr, prefix string) error {
	tick := time.NewTicker(connectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c, err := dialMQTT(context.WithoutCancel(ctx), addr, fmt.Sprintf("%s-%04d", prefix, len(tr.clients)))
		if err != nil {
			return err
		}
		tr.clients = append(tr.clients, c)
		tr.connected.Add(1)
		if len(tr.clients)-tr.ended <= lifetime {
			continue
		}
		switch old := tr.clients[tr.ended]; fate(tr.ended) % fates {
		case disconnects:
			err = old.disconnect()
		case isKilled:
			err = old.kill()
		}
		if err != nil {
			return err
		}
		tr.ended++
	}
}

// more waits until that many more clients have connected.
func (tr *traffic) more(t *testing.T, n int64) {
	t.Helper()
	goal := tr.connected.Load() + n
	servicetest.Eventually(t, faultPatience, func() error {
		if got := tr.connected.Load(); got < goal {
			return fmt.Errorf("%d clients have connected, waiting for %d", got, goal)
		}
		return nil
	})
}

// finish ends the traffic; the clients that are connected stay so.
func (tr *traffic) finish(t *testing.T) {
	t.Helper()
	tr.stop()
	<-tr.stopped
	if tr.err != nil {
		t.Fatalf("traffic: %v", tr.err)
	}
	t.Logf("%d clients connected, %d of them have met their fate", len(tr.clients), tr.ended)
}

// fate returns how a client has ended, or that it stays.
func (tr *traffic) fate(i int) fate {
	if i >= tr.ended {
		return stays
	}
	return fate(i) % fates
}

// losses are what a fault may cost, and what it may not, beyond the delay.
type losses struct {
	// doubts is how many killed clients may be unknown (close_ambiguous), with the right belief.
	doubts int
	// copies says that facts may be in the log again with another order, so that they have other IDs.
	copies bool
}

// expect waits until all clients are answered for rightly, over both transports, and checks what Kafka has of each: its connection, its end,
// and the transitions that follow from them.
func (tr *traffic) expect(t *testing.T, tgt Target, may losses) {
	t.Helper()
	ids := make([]string, len(tr.clients))
	for i, c := range tr.clients {
		ids[i] = c.id
	}
	var answers []*presencev1.Client
	servicetest.Eventually(t, faultPatience, func() error {
		var err error
		if answers, err = tgt.asker.askAll(t.Context(), ids); err != nil {
			return err
		}
		doubts := 0
		for i, a := range answers {
			want, reason := "online", "connected"
			if tr.fate(i) != stays {
				want, reason = "offline", "closed"
			}
			switch {
			case a.GetStatus() == want && a.GetStatusReason() == reason:
			case tr.fate(i) == isKilled && a.GetStatusReason() == "close_ambiguous" && a.GetBelief() == want && doubts < may.doubts:
				doubts++
			default:
				return fmt.Errorf("client %q is %s (%s), belief %s, want %s (%s)", ids[i], a.GetStatus(), a.GetStatusReason(), a.GetBelief(), want, reason)
			}
		}
		return nil
	})
	servicetest.Eventually(t, faultPatience, func() error {
		if err := tgt.history.read(t.Context()); err != nil {
			return err
		}
		for i, a := range answers {
			if err := errors.Join(tgt.history.agrees(a), tr.logged(tgt.history, i, may)); err != nil {
				return err
			}
		}
		return nil
	})
}

// logged checks that the log has the facts of a client.
func (tr *traffic) logged(h *history, i int, may losses) error {
	id, end := tr.clients[i].id, presence.ReasonUnknown
	closes := 1
	switch tr.fate(i) {
	case disconnects:
		end = presence.ReasonNormal
	case isKilled:
		end = presence.ReasonConnectionLost
	default:
		closes = 0
	}
	opened, closed := h.Client(id).FactsOf(presence.Opened), h.Client(id).FactsOf(presence.Closed)
	enough := len(opened) == 1 && len(closed) == closes
	if may.copies {
		enough = len(opened) >= 1 && (len(closed) > 0) == (closes > 0)
	}
	if !enough || closes > 0 && closed[0].Reason != end {
		return fmt.Errorf("client %q: the log should have one connection and %d ends, and has\n%s", id, closes, h.Client(id))
	}
	return nil
}

func faultMaterializerKilled(t *testing.T, s *split, tgt Target) {
	tr := startTraffic(t, tgt, "materializer-killed")
	tr.more(t, 150)
	s.materializers[0].kill(t)
	tr.more(t, 100)
	s.materializers[0].restart(t)
	tr.more(t, 150)
	tr.finish(t)
	tr.expect(t, tgt, losses{})
}

// faultMaterializerAway lets the other one take over, which has no rows of those partitions, and gives them back.
func faultMaterializerAway(t *testing.T, s *split, tgt Target) {
	tr := startTraffic(t, tgt, "materializer-away")
	tr.more(t, 150)
	s.materializers[1].kill(t)
	tr.more(t, 100)
	tr.finish(t)
	tr.expect(t, tgt, losses{})
	s.materializers[1].restart(t)
	tr.expect(t, tgt, losses{})
	again := startTraffic(t, tgt, "materializer-back")
	again.more(t, 150)
	again.finish(t)
	again.expect(t, tgt, losses{})
	tr.expect(t, tgt, losses{})
}

// faultBridgeKilled relies on the broker, which queues its log lines for the bridge's session for 20 s.
func faultBridgeKilled(t *testing.T, s *split, tgt Target) {
	tr := startTraffic(t, tgt, "bridge-killed")
	tr.more(t, 150)
	s.bridge.kill(t)
	tr.more(t, 200)
	s.bridge.restart(t)
	tr.more(t, 100)
	tr.finish(t)
	// Between the line that tells a connection's transport and the one that tells its client, one connection may have lost the former.
	tr.expect(t, tgt, losses{doubts: 1, copies: true})
	expectWholeFeed(t, tgt, scenarioClient)
}

func faultKafkaRestarted(t *testing.T, s *split, tgt Target) {
	tr := startTraffic(t, tgt, "kafka-restarted")
	tr.more(t, 150)
	s.kafka.stop(t)
	tr.more(t, 100)
	if n := spooled(t, s.bridge); n < 100 {
		t.Errorf("%d records are in the spool, while 100 clients connected without Kafka", n)
	}
	s.kafka.restart(t)
	servicetest.Eventually(t, faultPatience, func() error {
		if n := spooled(t, s.bridge); n != 0 {
			return fmt.Errorf("%d records are still in the spool", n)
		}
		return nil
	})
	tr.more(t, 100)
	tr.finish(t)
	tr.expect(t, tgt, losses{})
	expectWholeFeed(t, tgt, scenarioClient)
}

// faultSpoolKilled takes Kafka away, and then the bridge with what only its disk has. The bridge comes back before Kafka does: the broker's
// queue does not wait for it.
func faultSpoolKilled(t *testing.T, s *split, tgt Target) {
	tr := startTraffic(t, tgt, "spool-killed")
	tr.more(t, 150)
	s.kafka.kill(t)
	tr.more(t, 100)
	s.bridge.kill(t)
	tr.more(t, 50)
	s.bridge.startOnly(t)
	tr.more(t, 50)
	s.kafka.restart(t)
	s.bridge.awaitReady(t)
	tr.more(t, 50)
	tr.finish(t)
	tr.expect(t, tgt, losses{doubts: 1, copies: true})
	expectWholeFeed(t, tgt, scenarioClient)
}

// faultBridgeAway keeps the bridge away for longer than the broker keeps its log lines: what was lost cannot be known, so no answer may be
// sure of itself. A new generation of the broker, which ends every connection, makes the answers whole again.
func faultBridgeAway(t *testing.T, s *split, tgt Target) {
	const left, stayed, after = "bridge-away-left", "bridge-away-stayed", "bridge-away-after"
	c := connect(t, tgt, left)
	connect(t, tgt, stayed)
	tgt.expectOnline(t, left)
	tgt.expectOnline(t, stayed)
	tr := startTraffic(t, tgt, "bridge-away")
	s.bridge.kill(t)
	must(t, c.disconnect())
	tr.more(t, int64(queueExpiry/connectEvery))
	tr.finish(t)
	s.bridge.restart(t)
	for _, id := range []string{left, stayed, scenarioClient} {
		servicetest.Eventually(t, patience, func() error {
			a, err := tgt.asker.ask(t.Context(), id)
			if err != nil {
				return err
			}
			if f := a.GetFreshness(); !f.GetStale() || f.GetFeed() != "gap" || !slices.Contains(f.GetStaleReasons(), "feed_gap") {
				return fmt.Errorf("client %q is %s with freshness %v, while log lines were lost", id, a.GetStatus(), f)
			}
			return nil
		})
	}
	must(t, connect(t, tgt, left).disconnect())
	tgt.expectOffline(t, left)

	s.broker.stop(t)
	s.broker.restart(t)
	tgt.expect(t, stayed, "offline", presence.NodeRestarted.String())
	tgt.expectOffline(t, left)
	expectWholeFeed(t, tgt, scenarioClient)
	c = connect(t, tgt, after)
	tgt.expectOnline(t, after)
	must(t, c.disconnect())
	tgt.expectOffline(t, after)
}

// expectWholeFeed waits until answers are fresh, and nothing is said to be missing; it asks for a client that is known.
func expectWholeFeed(t *testing.T, tgt Target, id string) {
	t.Helper()
	servicetest.Eventually(t, patience, func() error {
		a, err := tgt.asker.ask(t.Context(), id)
		if err != nil {
			return err
		}
		if f := a.GetFreshness(); f.GetStale() || f.GetFeed() != "ok" {
			return fmt.Errorf("client %q is answered with freshness %v", id, f)
		}
		return nil
	})
}

// spooled returns how many records are in a bridge's spool.
func spooled(t *testing.T, bridge *dockerContainer) int {
	t.Helper()
	n, err := spooledAt(t.Context(), bridge.addr(t, adminPort))
	must(t, err)
	return n
}
