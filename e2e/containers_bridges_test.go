//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// boundedCluster is the name that a bridge gives to the broker whose spool is the smallest that there is.
	boundedCluster = "bounded"
	boundedSpool   = 1 << 20
	// bridgeAway is longer than the lease of a bridge's word, and shorter than what Mosquitto keeps a log line for.
	bridgeAway = 11 * time.Second
	// kafkaAway is how long Kafka is down.
	kafkaAway = time.Minute
	// staleWithin is how long after the end of Kafka the first answer may be that is not stale: --stale-after, and what a heartbeat is late by.
	staleWithin = chaosStaleAfter + 5*time.Second
	// comeEvery is the time between two visitors: 100 a second.
	comeEvery = 10 * time.Millisecond
)

// bridged is Presence with two bridges of one cluster, and one of another whose spool is small: all of them read the same broker.
type bridged struct {
	*split
	second, bounded *dockerContainer
	tgt             Target
	boundedHistory  *history

	known *visitors // whose status is settled
	ids   []string  // theirs
	asked *inquiry  // about them, all the time

	dropped *visitors // of whom the third bridge had to drop facts
}

func startBridged(t *testing.T) *bridged {
	t.Helper()
	b := &bridged{split: startSplit(t), known: newVisitors(t)}
	start := func(name string, env map[string]string) *dockerContainer {
		env["PRESENCE_MQTT_URL"], env["PRESENCE_DATA_DIR"], env["PRESENCE_KAFKA_REPLICATION_FACTOR"] = "mqtt://broker:1883", "/data", "1"
		env["PRESENCE_BRIDGE_NAME"] = name
		return b.bridge.d.start(service(name, "bridge", env))
	}
	b.second = start("bridge-2", map[string]string{})
	b.bounded = start("bridge-3", map[string]string{"PRESENCE_CLUSTER": boundedCluster, "PRESENCE_SPOOL_MAX_BYTES": fmt.Sprint(boundedSpool)})
	b.tgt = b.target(t).open(t)
	b.boundedHistory = newHistoryOf(t, b.tgt.Kafka, boundedCluster)
	b.tgt.warmUp(t)
	b.known.come(t, b.tgt.MQTT, "known", 200)
	b.known.checkAnswers(t, b.tgt)
	b.ids = slices.Sorted(maps.Keys(b.known.online))
	expectWholeFeed(t, b.tgt, b.ids[0])
	b.asked = startInquiry(t, map[string]*asker{"query": b.tgt.asker}, b.ids, 1)
	return b
}

// steady has visitors come at a pace; finish ends that.
func (c *visitors) steady(t *testing.T, addr, prefix string) (finish func()) {
	t.Helper()
	const workers = 4
	ctx, cancel := context.WithCancel(t.Context())
	began := time.Now()
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			tick := time.NewTicker(workers * comeEvery)
			defer tick.Stop()
			for i := w; errs[w] == nil; i += workers {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				errs[w] = c.one(context.WithoutCancel(ctx), addr, fmt.Sprintf("%s-%05d", prefix, i), i)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return func() {
		t.Helper()
		cancel()
		wg.Wait()
		c.took += time.Since(began)
		must(t, errors.Join(errs...))
	}
}

// more waits for that many more events.
func (c *visitors) more(t *testing.T, n int64) {
	t.Helper()
	goal := c.events.Load() + n
	servicetest.Eventually(t, patience, func() error {
		if got := c.events.Load(); got < goal {
			return fmt.Errorf("%d of %d events", got, goal)
		}
		return nil
	})
}

// checkAnswers waits until both transports have the truth of every client. No answer that is sure of itself may be another one then.
func (c *visitors) checkAnswers(t *testing.T, tgt Target) {
	t.Helper()
	ids := slices.Sorted(maps.Keys(c.online))
	unknown := map[string]int{}
	servicetest.Eventually(t, faultPatience, func() error {
		answers, err := tgt.asker.askAll(t.Context(), ids)
		if err != nil {
			return err
		}
		clear(unknown)
		for _, a := range answers {
			switch {
			case a.GetStatus() == "unknown" && tgt.history.doubtful(a.GetClientId()):
				unknown[a.GetStatusReason()]++
			case (a.GetStatus() == "online") != c.online[a.GetClientId()] || a.GetStatus() == "unknown":
				return fmt.Errorf("client %q is %s (%s), its connection is alive: %t", a.GetClientId(), a.GetStatus(), a.GetStatusReason(), c.online[a.GetClientId()])
			}
		}
		return nil
	})
	t.Logf("%d clients are answered for rightly, of them unknown: %v", len(ids), unknown)
}

// doubtful reports whether a client has a fact of which is not known where in its second it stands.
func (h *history) doubtful(clientID string) bool {
	for _, f := range h.Client(clientID).Facts {
		if f.Order == 0 {
			return true
		}
	}
	return false
}

// count returns how many facts the log has of the visitors, without copies.
func (c *visitors) count(h *history) int64 {
	n := 0
	for id := range c.online {
		n += len(h.Client(id).FactsOf(presence.Opened)) + len(h.Client(id).FactsOf(presence.Closed))
	}
	return int64(n)
}

// expectFacts waits until the log has a fact for each event.
func (c *visitors) expectFacts(t *testing.T, h *history) {
	t.Helper()
	servicetest.Eventually(t, faultPatience, func() error {
		if err := h.read(t.Context()); err != nil {
			return err
		}
		if got, want := c.count(h), c.events.Load(); got != want {
			return fmt.Errorf("cluster %s: the log has %d facts of %d events", h.Cluster, got, want)
		}
		return nil
	})
}

// TestContainersBridges has two bridges of one cluster, over a real broker and a real Kafka: it kills one of them with its session, which another
// process resumes, and then takes Kafka away for a minute. A third bridge, whose spool has room for less than that, says what it had to drop.
func TestContainersBridges(t *testing.T) {
	b := startBridged(t)
	t.Run("one of two bridges killed", func(t *testing.T) { bridgesOneKilled(t, b) })
	t.Run("Kafka away for a minute", func(t *testing.T) { bridgesKafkaAway(t, b) })
	// It leaves every client offline, so it comes last.
	t.Run("broker restarted after drops", func(t *testing.T) { bridgesHealed(t, b) })
}

// bridgesOneKilled expects answers from the other bridge's facts all the time, and everything from both in the end: what the broker has queued for the
// killed one's session is not lost.
func bridgesOneKilled(t *testing.T, b *bridged) {
	c := newVisitors(t)
	finish := c.steady(t, b.tgt.MQTT, "one-killed")
	c.more(t, 300)
	b.tgt.history.expectOverlap(t, "bridge-2", 0)
	b.bridge.kill(t)
	killed := time.Now()
	connect(t, b.tgt, "one-killed-new")
	b.tgt.expectOnline(t, "one-killed-new")
	waitUntil(t.Context(), killed.Add(bridgeAway))
	b.bridge.restart(t)
	t.Logf("the bridge was away for %v", time.Since(killed).Round(time.Millisecond))
	c.more(t, 300)
	finish()
	c.checkLog(t, b.tgt.history, 2).whole(t)
	c.checkAnswers(t, b.tgt)
	expectWholeFeed(t, b.tgt, b.ids[0])
	c.expectTwice(t, b.tgt.history)
	b.expectSettled(t, func(time.Time) (may, must bool) { return false, false })
}

// expectTwice waits until both bridges have told every fact, but for those of the one second that a process which was killed cannot number: it leaves
// them to the other bridge.
func (c *visitors) expectTwice(t *testing.T, h *history) {
	t.Helper()
	once := map[int64]int{}
	servicetest.Eventually(t, faultPatience, func() error {
		if err := h.read(t.Context()); err != nil {
			return err
		}
		clear(once)
		for id := range c.online {
			copies := map[string]int{}
			for _, f := range h.Client(id).Facts {
				copies[f.ID]++
			}
			for _, f := range h.Client(id).Facts {
				if copies[f.ID] == 1 && f.Order != 0 {
					once[f.TimeMS]++
				}
			}
		}
		if len(once) > 1 {
			return fmt.Errorf("only one bridge has told the facts of these seconds, so many each: %v", once)
		}
		return nil
	})
	t.Logf("only one bridge has told these facts, by their second: %v", once)
}

// expectSettled checks the answers about settled clients since the last time: each question has one, the right one, which is stale when it must be and
// only when it may be.
func (b *bridged) expectSettled(t *testing.T, stale func(sent time.Time) (may, must bool)) {
	t.Helper()
	b.asked.mu.Lock()
	defer b.asked.mu.Unlock()
	for _, f := range b.asked.failures {
		t.Errorf("%s asked at %v has no answer: %v", f.by, f.sent, f.err)
	}
	var wrong []string
	staleAnswers, mustAnswers := 0, 0
	for i := range b.asked.answers {
		a := &b.asked.answers[i]
		may, must := stale(a.Sent)
		if must {
			mustAnswers++
		}
		if a.Stale {
			staleAnswers++
		}
		if a.Status == "unknown" || (a.Status == "online") != b.known.online[a.Client] || a.Stale && !may || !a.Stale && must {
			wrong = append(wrong, fmt.Sprintf("its connection is alive: %t, stale may be: %t, must be: %t: %s", b.known.online[a.Client], may, must, a))
		}
	}
	if n := len(wrong); n > 0 {
		t.Errorf("%d answers about settled clients are wrong, among them:\n%s", n, strings.Join(wrong[:min(n, 5)], "\n"))
	}
	t.Logf("%d answers about settled clients, %d of them stale, %d had to be", len(b.asked.answers), staleAnswers, mustAnswers)
	if len(b.asked.answers) == 0 {
		t.Error("nobody was asked for")
	}
	b.asked.failures, b.asked.answers = nil, nil
}

// bridgesKafkaAway expects that answers are stale while Kafka is away, and that nothing is lost and every client's facts are in their order when it is
// back, except what had no room: that is counted, and makes the answers of that cluster stale.
func bridgesKafkaAway(t *testing.T, b *bridged) {
	c := newVisitors(t)
	c.come(t, b.tgt.MQTT, "minute-before", 50)
	c.expectFacts(t, b.tgt.history)
	c.expectFacts(t, b.boundedHistory)
	finish := c.steady(t, b.tgt.MQTT, "minute")
	c.more(t, 300)
	b.kafka.kill(t)
	killed := time.Now()
	waitUntil(t.Context(), killed.Add(kafkaAway))
	for _, bridge := range []*dockerContainer{b.bridge, b.second} {
		if n := int64(spooled(t, bridge)); n < c.events.Load()/2 {
			t.Errorf("%d records are in the spool of %s after %d events", n, bridge.name, c.events.Load())
		}
	}
	back := time.Now()
	b.kafka.restart(t)
	c.more(t, 300)
	finish()
	for _, bridge := range []*dockerContainer{b.bridge, b.second, b.bounded} {
		servicetest.Eventually(t, faultPatience, func() error {
			if n := spooled(t, bridge); n != 0 {
				return fmt.Errorf("%d records are still in the spool of %s", n, bridge.name)
			}
			return nil
		})
	}
	c.checkLog(t, b.tgt.history, 1).whole(t)
	c.expectFacts(t, b.tgt.history)
	c.checkAnswers(t, b.tgt)
	expectWholeFeed(t, b.tgt, b.ids[0])
	healed := time.Now()
	t.Logf("answers are whole again %v after Kafka was started", healed.Sub(back).Round(time.Millisecond))
	b.asked.finish()
	b.expectSettled(t, func(sent time.Time) (may, must bool) {
		return sent.After(killed) && sent.Before(healed), sent.After(killed.Add(staleWithin)) && sent.Before(back)
	})
	b.dropped = c
	b.expectDropped(t)
}

// expectDropped expects that the third bridge says how much it has dropped, and that no answer of its cluster is sure of itself.
func (b *bridged) expectDropped(t *testing.T) {
	t.Helper()
	c := b.dropped
	// onTheWay is what Kafka may have written when it was killed without saying so: it is spooled all the same, and dropped from there.
	const onTheWay = 100
	var dropped int64
	servicetest.Eventually(t, patience, func() error {
		if err := b.boundedHistory.read(t.Context()); err != nil {
			return err
		}
		dropped = b.boundedHistory.Table().Feeds["bridge-3"].DroppedCount
		if missing := c.events.Load() - c.count(b.boundedHistory); missing <= 0 || dropped < missing || dropped > missing+onTheWay {
			return fmt.Errorf("%d facts are missing of %d, the feed says %d", missing, c.events.Load(), dropped)
		}
		return nil
	})
	t.Logf("%d of %d facts were dropped", dropped, c.events.Load())
	servicetest.Eventually(t, patience, func() error {
		nodes, err := b.tgt.asker.rpc.ListNodes(b.tgt.asker.authorized(t.Context()), &presencev1.ListNodesRequest{Cluster: boundedCluster})
		if err != nil {
			return err
		}
		if f := nodes.GetFeeds(); len(f) != 1 || f[0].GetDroppedCount() != dropped || nodes.GetGap() == nil || !nodes.GetFreshness().GetStale() {
			return fmt.Errorf("%d facts were dropped, and not said so: %v", dropped, nodes)
		}
		return b.eachBounded(t, func(a *presencev1.Client, f *presencev1.Freshness) error {
			if !f.GetStale() || !slices.Contains(f.GetStaleReasons(), "feed_gap") {
				return fmt.Errorf("facts were dropped, and an answer is not stale: %v, %v", a, f)
			}
			return nil
		})
	})
}

// eachBounded checks the answers of the third bridge's cluster.
func (b *bridged) eachBounded(t *testing.T, check func(*presencev1.Client, *presencev1.Freshness) error) error {
	t.Helper()
	const most = 1_000
	for ids := range slices.Chunk(slices.Sorted(maps.Keys(b.dropped.online)), most) {
		r, err := b.tgt.asker.rpc.BatchGetClients(b.tgt.asker.authorized(t.Context()), &presencev1.BatchGetClientsRequest{ClientIds: ids, Cluster: boundedCluster})
		if err != nil {
			return err
		}
		for _, a := range r.GetClients() {
			if err := check(a, r.GetFreshness()); err != nil {
				return err
			}
		}
	}
	return nil
}

// bridgesHealed restarts the broker, which ends every connection: what was dropped does not matter any more, and answers are sure again.
func bridgesHealed(t *testing.T, b *bridged) {
	b.broker.stop(t)
	b.broker.restart(t)
	servicetest.Eventually(t, patience, func() error {
		return b.eachBounded(t, func(a *presencev1.Client, f *presencev1.Freshness) error {
			if f.GetStale() || a.GetStatus() != "offline" {
				return fmt.Errorf("after a new generation of the only node: %v, %v", a, f)
			}
			return nil
		})
	})
	expectWholeFeed(t, b.tgt, b.ids[0])
}
