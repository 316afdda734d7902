package e2e

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// TestBridgesOutage takes Kafka away from one bridge, and from two, under load, and kills one of them with what only its disk has. Mosquitto queues
// its log lines for a session, so that nothing may be lost, and no status wrong.
func TestBridgesOutage(t *testing.T) {
	for _, names := range [][]string{{"b1"}, {"b1", "b2"}} {
		t.Run(fmt.Sprintf("%d bridges", len(names)), func(t *testing.T) {
			t.Parallel()
			broker := startMosquitto(t, stampForms[0])
			k, cfg := startStoppableKafka(t)
			var bridges []*bridgeProcess
			for _, name := range names {
				b := newBridgeProcess(t, name, broker.tcp, cfg)
				b.start(t)
				bridges = append(bridges, b)
			}
			for _, b := range bridges {
				b.ready(t)
			}
			h := newHistory(t, cfg)
			Target{MQTT: broker.tcp, Unkeyed: true, history: h}.warmUp(t)
			const before, outage = 200, 1_200
			c := newVisitors(t)
			c.come(t, broker.tcp, "before", before)
			k.stop(t)
			c.come(t, broker.tcp, "outage", outage)
			first := bridges[0]
			servicetest.Eventually(t, bridgesPatience, func() error {
				n, err := first.spooled(t.Context())
				if err == nil && n < outage*3/2 {
					err = fmt.Errorf("%d records are in the spool", n)
				}
				return err
			})
			first.kill()
			c.come(t, broker.tcp, "killed", before)
			first.start(t)
			c.come(t, broker.tcp, "again", outage)
			k.start(t)
			for _, b := range bridges {
				b.ready(t)
				b.drained(t)
			}
			c.come(t, broker.tcp, "after", before)
			l := c.checkLog(t, h, len(names))
			l.whole(t)
			if got := l.names(); !slices.Equal(got, names) {
				t.Errorf("the feeds are of %v, want %v", got, names)
			}
		})
	}
}

// TestBridgesSpoolBound takes Kafka away for longer than the spool has room. What is dropped is counted, also by a bridge that is killed meanwhile: then
// what the broker had not been told to forget may count twice.
func TestBridgesSpoolBound(t *testing.T) {
	for _, killed := range []bool{false, true} {
		t.Run(fmt.Sprintf("killed %v", killed), func(t *testing.T) {
			t.Parallel()
			broker := startMosquitto(t, stampForms[0])
			k, cfg := startStoppableKafka(t)
			b := newBridgeProcess(t, "b1", broker.tcp, cfg, "--spool-max-bytes", fmt.Sprint(1<<20))
			b.start(t)
			b.ready(t)
			h := newHistory(t, cfg)
			Target{MQTT: broker.tcp, Unkeyed: true, history: h}.warmUp(t)
			c := newVisitors(t)
			// What the warm-up has left must not be dropped with the rest, where nobody would count it: the feed is ordered, so it is in the log once
			// these are.
			c.come(t, broker.tcp, "before", 20)
			servicetest.Eventually(t, bridgesPatience, func() error {
				if err := h.read(t.Context()); err != nil {
					return err
				}
				logged := int64(0)
				for id := range c.online {
					logged += int64(len(h.Client(id).FactsOf(presence.Opened)) + len(h.Client(id).FactsOf(presence.Closed)))
				}
				if n := c.events.Load(); logged < n {
					return fmt.Errorf("%d of %d facts are in the log", logged, n)
				}
				return nil
			})
			decoded := b.decodes(t, 0) - int(c.events.Load()) // of others
			k.stop(t)
			c.come(t, broker.tcp, "outage", 2_000)
			if killed {
				b.kill()
				b.start(t)
			}
			c.come(t, broker.tcp, "more", 500)
			if !killed {
				// What the broker still holds when Kafka is back need not be dropped.
				b.decodes(t, decoded+int(c.events.Load()))
			}
			k.start(t)
			b.ready(t)
			b.drained(t)
			c.come(t, broker.tcp, "after", 20)
			var feed presence.NodeFact
			servicetest.Eventually(t, bridgesPatience, func() error {
				if err := h.read(t.Context()); err != nil {
					return err
				}
				all := h.Table()
				feed = all.Feeds["b1"]
				_, _, gap := all.FeedGap()
				kept, unseen := 0, int64(0)
				for id := range c.online {
					opened := len(h.Client(id).FactsOf(presence.Opened))
					kept += opened + len(h.Client(id).FactsOf(presence.Closed))
					if opened == 0 {
						unseen++
					}
				}
				missing := c.events.Load() - int64(kept)
				switch {
				case killed && feed.DroppedCount >= unseen && gap == (feed.DroppedCount > 0):
					// What comes again may have another place in its second, and so be another fact: facts cannot be counted. Of a client of whom nothing is
					// known at least the connection was dropped; the broker may also have kept everything.
					return nil
				case killed:
					return fmt.Errorf("nothing is known of %d clients, the feed says %+v", unseen, feed)
				case !gap:
					return fmt.Errorf("answers are not stale, though facts were dropped: %+v", feed)
				case missing <= 0 || feed.DroppedCount != missing:
					return fmt.Errorf("%d facts are missing of %d, the feed says %d", missing, c.events.Load(), feed.DroppedCount)
				}
				return nil
			})
			t.Logf("%d of %d facts were dropped", feed.DroppedCount, c.events.Load())
		})
	}
}

// TestBridgesOfOneName has two bridges take the session from each other: both must say so, and neither may do it without a pause.
func TestBridgesOfOneName(t *testing.T) {
	t.Parallel()
	broker := startMosquitto(t, stampForms[0])
	_, cfg := startStoppableKafka(t)
	var bridges []*bridgeProcess
	for range 2 {
		b := newBridgeProcess(t, "same", broker.tcp, cfg)
		b.start(t)
		bridges = append(bridges, b)
	}
	for i, b := range bridges {
		servicetest.Eventually(t, bridgesPatience, func() error {
			code, body, err := b.get(t.Context(), "/readyz")
			if err == nil && (code == http.StatusOK || !strings.Contains(body, "took the session over: give every bridge its own bridge-name")) {
				err = fmt.Errorf("bridge %d does not tell that another one has its name: %d %s", i, code, body)
			}
			return err
		})
		// It is told before it is logged.
		told := func() int { return strings.Count(b.log.String(), "another client took over the session") }
		servicetest.Eventually(t, bridgesPatience, func() error {
			if told() == 0 {
				return fmt.Errorf("bridge %d logs no takeover", i)
			}
			return nil
		})
		if n := told(); n > 10 {
			t.Errorf("bridge %d: %d takeovers", i, n)
		}
	}
}

// TestBridgesTurns restarts two bridges one after the other, and then lets the first go for good: together they have missed nothing, though each has
// a gap, since its session is new each time.
func TestBridgesTurns(t *testing.T) {
	t.Parallel()
	broker := startMosquitto(t, stampForms[0])
	_, cfg := startStoppableKafka(t)
	h := newHistory(t, cfg)
	c := newVisitors(t)
	// Another client ID is another session: what the broker has queued is for the one before.
	startedMS := map[string]int64{}
	start := func(name string, number int) *bridgeProcess {
		startedMS[name] = time.Now().UnixMilli()
		b := newBridgeProcess(t, name, broker.tcp, cfg, "--mqtt-client-id", fmt.Sprintf("%s-%d", name, number))
		b.start(t)
		b.ready(t)
		return b
	}
	one, two := start("b1", 1), start("b2", 1)
	Target{MQTT: broker.tcp, Unkeyed: true, history: h}.warmUp(t)
	c.come(t, broker.tcp, "both", 100)
	// Each must have been there for a while before the other goes. What the log still has of the process before does not count.
	overlap := func(since string) {
		t.Helper()
		h.expectOverlap(t, since, startedMS[since])
	}
	overlap("b2")
	one.kill()
	c.come(t, broker.tcp, "one-away", 200)
	one = start("b1", 2)
	overlap("b1")
	c.come(t, broker.tcp, "one-back", 200)
	overlap("b1")
	two.kill()
	c.come(t, broker.tcp, "two-away", 200)
	start("b2", 2)
	overlap("b2")
	one.kill()
	c.come(t, broker.tcp, "one-gone", 200)
	l := c.checkLog(t, h, 1)
	l.whole(t)
}
