package e2e

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	stormClients = 1_000
	// stormWorkers is how many of them connect at the same time.
	stormWorkers = 16
	// stormPatience bounds the wait for what thousands of connections leave to do, on a busy machine.
	stormPatience = 90 * time.Second
	// stormConnections is how many connections each of them makes, as fast as it can.
	stormConnections = 4
)

// course is what a client of the storm does.
type course int

const (
	takesOver       course = iota // each connection takes the one before over; the last stays
	takesOverLeaves               // the same; the last disconnects
	takesOverDies                 // the same; the last is killed
	comesBack                     // connects and disconnects again and again; the last stays
	comesBackLeaves               // the same; the last disconnects as well
	breaks                        // connects and is killed again and again; the last stays
	breaksDies                    // the same; the last is killed as well
	takesOverBreaks               // takes over, and is killed, by turns; the last stays
	races                         // its connections race for the ID; one of them wins and stays
	courses
)

var courseNames = [courses]string{
	"takes over", "takes over, leaves", "takes over, dies", "comes back", "comes back, leaves", "breaks", "breaks, dies", "takes over, breaks", "races",
}

func (c course) String() string { return courseNames[c] }

func (c course) stays() bool {
	return c != takesOverLeaves && c != takesOverDies && c != comesBackLeaves && c != breaksDies
}

// courseOf gives every course to the same number of clients. Where ends are in doubt nobody dies: a death right after the connect cannot be told from
// the late end of the connection that was taken over.
func courseOf(client int, tgt Target) course {
	c := course(client) % courses
	if tgt.Doubts {
		switch c {
		case takesOverDies:
			return takesOverLeaves
		case breaksDies:
			return comesBackLeaves
		}
	}
	return c
}

// storm has many clients take their own IDs over, leave and come back as fast as they can.
type storm struct {
	tgt     Target
	clients []*stormClient
}

type stormClient struct {
	id     string
	course course
	open   []*mqttClient // not ended by the client itself, in the order of connecting unless it races
}

func newStorm(t *testing.T, tgt Target) *storm {
	t.Helper()
	s := &storm{tgt: tgt}
	prefix := "storm-tcp"
	if strings.HasPrefix(tgt.MQTT, "ws://") {
		prefix = "storm-ws"
	}
	for i := range stormClients {
		s.clients = append(s.clients, &stormClient{id: fmt.Sprintf("%s-%04d", prefix, i), course: courseOf(i, tgt)})
	}
	t.Cleanup(func() {
		for _, c := range s.clients {
			for _, conn := range c.open {
				_ = conn.conn.Close()
			}
		}
	})
	return s
}

func (s *storm) ids() []string {
	ids := make([]string, len(s.clients))
	for i, c := range s.clients {
		ids[i] = c.id
	}
	return ids
}

// each calls f for each client, for many at a time.
func (s *storm) each(t *testing.T, f func(ctx context.Context, c *stormClient) error) {
	t.Helper()
	work := make(chan *stormClient)
	errs := make(chan error, stormWorkers)
	for range stormWorkers {
		go func() {
			var err error
			for c := range work {
				if err == nil {
					err = f(t.Context(), c)
				}
			}
			errs <- err
		}()
	}
	for _, c := range s.clients {
		work <- c
	}
	close(work)
	var all []error
	for range stormWorkers {
		all = append(all, <-errs)
	}
	must(t, errors.Join(all...))
}

// rage runs every client's course, but for the end of those that leave or die after a takeover.
func (s *storm) rage(t *testing.T) {
	t.Helper()
	s.each(t, func(ctx context.Context, c *stormClient) error {
		if c.course == races {
			return c.race(ctx, s.tgt.MQTT)
		}
		for i := range stormConnections {
			conn, err := dialMQTT(ctx, s.tgt.MQTT, c.id)
			if err != nil {
				return err
			}
			last := i == stormConnections-1
			switch {
			case c.course == comesBack && !last, c.course == comesBackLeaves:
				err = conn.disconnect()
			case c.course == breaks && !last, c.course == breaksDies, c.course == takesOverBreaks && !last && i%2 == 1:
				err = conn.kill()
			default:
				c.open = append(c.open, conn)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// race connects several times at once. The broker may end a connection before it has accepted it: another one has taken its ID over.
func (c *stormClient) race(ctx context.Context, addr string) error {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range stormConnections {
		wg.Go(func() {
			if conn, err := dialMQTT(ctx, addr, c.id); err == nil {
				mu.Lock()
				defer mu.Unlock()
				c.open = append(c.open, conn)
			}
		})
	}
	wg.Wait()
	if len(c.open) == 0 {
		return fmt.Errorf("client %q: none of its %d connections was accepted", c.id, stormConnections)
	}
	return nil
}

// end has the clients leave or die whose course it is.
func (s *storm) end(t *testing.T) {
	t.Helper()
	s.each(t, func(_ context.Context, c *stormClient) error {
		last := len(c.open) - 1
		var err error
		switch {
		case c.course == takesOverLeaves:
			err = c.open[last].disconnect()
		case c.course == takesOverDies:
			err = c.open[last].kill()
		default:
			return nil
		}
		c.open = c.open[:last]
		return err
	})
}

// truth asks the broker on every connection whether it is there, and returns which clients have one.
func (s *storm) truth(t *testing.T) map[string]bool {
	t.Helper()
	var mu sync.Mutex
	online := map[string]bool{}
	s.each(t, func(_ context.Context, c *stormClient) error {
		n, last := 0, false
		for _, conn := range c.open {
			alive, err := conn.alive()
			if err != nil {
				return err
			}
			if last = alive; alive {
				n++
			}
		}
		if n > 1 || (n == 1) != c.course.stays() || n == 1 && !last && c.course != races {
			return fmt.Errorf("client %q (%s): the broker answers on %d connections, the last one: %t", c.id, c.course, n, last)
		}
		mu.Lock()
		defer mu.Unlock()
		online[c.id] = n == 1
		return nil
	})
	return online
}

// scenarioStorm ends with every client's answer being the broker's own truth: what it answers on each connection, and what agree, which may
// be nil, compares with the broker's own count or table. Where the target has doubts the answer may be unknown, with the right belief.
func scenarioStorm(t *testing.T, tgt Target, agree func(t *testing.T, online map[string]bool)) {
	s := newStorm(t, tgt)
	s.rage(t)
	s.end(t)
	online := s.truth(t)
	if agree != nil {
		agree(t, online)
	}
	s.expect(t, online)
	s.expectHistory(t)
}

// expect waits until all clients are answered for rightly, over both transports, and the records in Kafka agree.
func (s *storm) expect(t *testing.T, online map[string]bool) {
	t.Helper()
	doubts := 0
	servicetest.Eventually(t, stormPatience, func() error {
		answers, err := s.tgt.asker.askAll(t.Context(), s.ids())
		if err != nil {
			return err
		}
		if doubts, err = s.compare(answers, online); err != nil {
			return err
		}
		// A right answer may be that of an earlier connection: what was published since says so.
		if err := s.tgt.history.read(t.Context()); err != nil {
			return err
		}
		for _, a := range answers {
			if err := s.tgt.history.agrees(a); err != nil {
				return err
			}
		}
		return nil
	})
	t.Logf("%d clients, %d unknown with the right belief", len(s.clients), doubts)
}

// compare returns how many answers are unknown with the right belief, and an error for those that are wrong.
func (s *storm) compare(answers []*presencev1.Client, online map[string]bool) (doubts int, err error) {
	var wrong []error
	for i, a := range answers {
		want := "offline"
		if online[s.clients[i].id] {
			want = "online"
		}
		switch {
		case a.GetStatus() == want:
		case s.tgt.Doubts && a.GetStatus() == "unknown" && a.GetBelief() == want:
			doubts++
		default:
			wrong = append(wrong, fmt.Errorf("client %q (%s) is %s (%s), belief %s, want %s",
				a.GetClientId(), s.clients[i].course, a.GetStatus(), a.GetStatusReason(), a.GetBelief(), want))
		}
	}
	if n := len(wrong); n > 0 {
		return 0, fmt.Errorf("%d clients are answered for wrongly, among them: %w", n, errors.Join(wrong[:min(n, 5)]...))
	}
	return doubts, nil
}

// expectHistory checks that the storm was one, and that nobody who always had a connection was ever told to be offline.
func (s *storm) expectHistory(t *testing.T) {
	t.Helper()
	h := s.tgt.history
	opened, takeovers, equal, late := 0, 0, 0, 0
	for _, c := range s.clients {
		facts := h.Client(c.id).Facts
		for i, f := range facts {
			switch {
			case f.Kind == presence.Opened:
				opened++
			case f.Reason.Takeover():
				takeovers++
			}
			if c.isLate(facts[:i], &f.Fact) {
				late++
			}
			if slices.ContainsFunc(facts[:i], func(o chaos.Fact) bool { return o.Kind != f.Kind && o.TimeMS == f.TimeMS }) {
				equal++
			}
		}
		if c.course != takesOver && c.course != races {
			continue
		}
		for _, tr := range h.Client(c.id).Transitions() {
			if tr.Status == presence.Offline {
				t.Errorf("client %q has always had a connection and was offline: %s\n%s", c.id, &tr, h.Client(c.id))
			}
		}
	}
	t.Logf("%d connections, %d ends by takeover, %d ends after the beginning of the next connection, %d facts with the stamp of another", opened, takeovers, late, equal)
	if opened < 3*stormClients || takeovers < stormClients || equal == 0 || (late > 0) != s.tgt.LateEnds {
		t.Error("that was no storm, or not the one that is wanted")
	}
}

// isLate reports whether a fact is the end of a connection that comes after the next one's beginning.
func (c *stormClient) isLate(before []chaos.Fact, f *presence.Fact) bool {
	switch {
	case f.Kind != presence.Closed || len(before) == 0:
		return false
	case f.Connection != "":
		return slices.ContainsFunc(before, func(o chaos.Fact) bool { return o.Kind == presence.Opened && o.Connection > f.Connection })
	}
	// Without a key only those are certain whose client never broke a connection.
	return f.Reason == presence.ReasonConnectionLost && (c.course == takesOver || c.course == takesOverLeaves)
}
