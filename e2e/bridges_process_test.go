package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/presence/kafka"
)

// bridgesPatience bounds what comes after an outage.
const bridgesPatience = 60 * time.Second

var buildBridge = sync.OnceValues(func() (string, error) { return buildService("bridge") })

// bridgeProcess is a bridge as a child process, whose data folder outlives it.
type bridgeProcess struct {
	binary, admin string
	flags         []string
	cmd           *exec.Cmd
	log           *output
	exited        chan struct{}
}

func newBridgeProcess(t *testing.T, name, broker string, cfg eventlog.Config, flags ...string) *bridgeProcess {
	t.Helper()
	binary, err := buildBridge()
	must(t, err)
	b := &bridgeProcess{binary: binary, admin: freeAddr(t), log: &output{}}
	b.flags = append([]string{"--bridge-name", name, "--mqtt-url", "mqtt://" + broker, "--kafka-brokers", strings.Join(cfg.Brokers, ","),
		"--kafka-partitions", strconv.Itoa(int(cfg.Partitions)), "--kafka-replication-factor", "1", "--data-dir", t.TempDir(), "--admin-addr", b.admin,
		"--log-level", "warn", "--feed-heartbeat-interval", "500ms", "--feed-lease", "5s"}, flags...)
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("bridge %s wrote:\n%s", name, b.log)
		}
	})
	return b
}

func (b *bridgeProcess) start(t *testing.T) {
	t.Helper()
	cmd := exec.Command(b.binary, b.flags...)
	cmd.Stdout, cmd.Stderr = b.log, b.log
	must(t, cmd.Start())
	b.cmd, b.exited = cmd, make(chan struct{})
	go func() {
		defer close(b.exited)
		// It ends by being killed.
		_ = cmd.Wait()
	}()
}

// kill ends the process as kill -9 does.
func (b *bridgeProcess) kill() {
	if b.cmd != nil {
		_ = b.cmd.Process.Kill()
		<-b.exited
		b.cmd = nil
	}
}

func (b *bridgeProcess) get(ctx context.Context, path string) (int, string, error) {
	return getAdmin(ctx, b.admin, path)
}

// getAdmin asks at a service's admin address.
func getAdmin(ctx context.Context, addr, path string) (int, string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return 0, "", err
	}
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = r.Body.Close() }()
	body, err := io.ReadAll(r.Body)
	return r.StatusCode, string(body), err
}

func (b *bridgeProcess) ready(t *testing.T) {
	t.Helper()
	servicetest.Eventually(t, bridgesPatience, func() error {
		code, body, err := b.get(t.Context(), "/readyz")
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("not ready: %s", body)
		}
		return err
	})
}

// spooled returns how many records are in its spool.
func (b *bridgeProcess) spooled(ctx context.Context) (int, error) { return spooledAt(ctx, b.admin) }

// spooledAt returns how many records are in the spool of the bridge with an admin address.
func spooledAt(ctx context.Context, addr string) (int, error) {
	return bridgeMetric(ctx, addr, "presence_bridge_spool_records")
}

// bridgeMetric returns the sum of the samples of a metric of the bridge with an admin address; a name may end within the labels.
func bridgeMetric(ctx context.Context, addr, name string) (int, error) {
	_, body, err := getAdmin(ctx, addr, "/metrics")
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(body) {
		if !strings.HasPrefix(line, name) {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
		if err != nil {
			return 0, err
		}
		sum, found = sum+n, true
	}
	if !found {
		return 0, fmt.Errorf("the bridge has no metric %s", name)
	}
	return int(sum), nil
}

// decodes waits until the bridge has made so many facts about clients, and returns how many there are.
func (b *bridgeProcess) decodes(t *testing.T, atLeast int) int {
	t.Helper()
	total := 0
	servicetest.Eventually(t, bridgesPatience, func() error {
		total = 0
		for _, kind := range []string{"connected", "disconnected"} {
			n, err := bridgeMetric(t.Context(), b.admin, `presence_bridge_facts_total{dialect="mosquitto-2.0",type="`+kind)
			if err != nil {
				return err
			}
			total += n
		}
		if total < atLeast {
			return fmt.Errorf("the bridge has made %d facts of %d", total, atLeast)
		}
		return nil
	})
	return total
}

func (b *bridgeProcess) drained(t *testing.T) {
	t.Helper()
	servicetest.Eventually(t, bridgesPatience, func() error {
		n, err := b.spooled(t.Context())
		if err == nil && n != 0 {
			err = fmt.Errorf("%d records are still in the spool", n)
		}
		return err
	})
}

// stoppableKafka is an embedded Kafka that can be taken away, with a folder and an address that stay.
type stoppableKafka struct {
	cfg  kafka.Config
	k    *kafka.Kafka
	addr string
}

func startStoppableKafka(t *testing.T) (*stoppableKafka, eventlog.Config) {
	t.Helper()
	s := &stoppableKafka{cfg: kafka.Config{Addr: freeAddr(t), Dir: t.TempDir()}}
	s.start(t)
	t.Cleanup(func() {
		if s.k != nil {
			_ = s.k.Close()
		}
	})
	cfg := eventlog.DefaultConfig()
	cfg.Brokers, cfg.Partitions, cfg.ReplicationFactor = []string{s.addr}, 4, 1
	return s, cfg
}

func (s *stoppableKafka) start(t *testing.T) {
	t.Helper()
	var err error
	s.k, err = kafka.Open(s.cfg, slog.New(slog.DiscardHandler))
	must(t, err)
	s.addr = s.k.Addr()
}

func (s *stoppableKafka) stop(t *testing.T) {
	t.Helper()
	must(t, s.k.Close())
	s.k = nil
}

// visitors are clients that connect, most of which disconnect again: the truth is known.
type visitors struct {
	mu     sync.Mutex
	online map[string]bool
	open   []*mqttClient
	events atomic.Int64
	took   time.Duration
}

func newVisitors(t *testing.T) *visitors {
	c := &visitors{online: map[string]bool{}}
	t.Cleanup(func() {
		for _, m := range c.open {
			_ = m.conn.Close()
		}
	})
	return c
}

// come has n clients connect, of which every seventh stays. A few connect twice.
func (c *visitors) come(t *testing.T, addr, prefix string, n int) {
	t.Helper()
	const workers = 8
	began := time.Now()
	errs := make([]error, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := w; i < n && errs[w] == nil; i += workers {
				errs[w] = c.one(t.Context(), addr, fmt.Sprintf("%s-%05d", prefix, i), i)
			}
		})
	}
	wg.Wait()
	c.took += time.Since(began)
	must(t, errors.Join(errs...))
}

func (c *visitors) one(ctx context.Context, addr, id string, i int) error {
	for again := i%13 == 0; ; again = false {
		m, err := dialMQTT(ctx, addr, id)
		if err != nil {
			return err
		}
		c.events.Add(1)
		if stays := !again && i%7 == 0; stays {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.online[id], c.open = true, append(c.open, m)
			return nil
		}
		if err := m.disconnect(); err != nil {
			return err
		}
		c.events.Add(1)
		if !again {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.online[id] = false
			return nil
		}
	}
}

// expectOverlap waits until a bridge has seen everything, from a time after its start on, for so long that the others may go.
func (h *history) expectOverlap(t *testing.T, bridge string, startedMS int64) {
	t.Helper()
	servicetest.Eventually(t, bridgesPatience, func() error {
		if err := h.read(t.Context()); err != nil {
			return err
		}
		f := h.Table().Feeds[bridge]
		if f.CompleteSinceMS == 0 || f.CompleteSinceMS < startedMS || f.ReceivedMS-f.CompleteSinceMS < 3*presence.DefaultAllowanceMS/2 {
			return fmt.Errorf("bridge %s is not there for long enough: %+v", bridge, f)
		}
		return nil
	})
}

// logged is what the log says at the end.
type logged struct{ *history }

// checkLog waits until the log has the truth of every client, and checks that each client's facts came in their order. A process that begins a session, or
// resumes that of one that was killed, cannot number the rest of the second: in at most so many seconds while clients came, one for each bridge that was
// killed and for each but the first, which the warm-up waits for; and in no other one may a status be unknown.
func (c *visitors) checkLog(t *testing.T, h *history, unnumberedSeconds int) logged {
	t.Helper()
	l := logged{history: h}
	undecided := 0
	unnumbered := map[int64]int{} // facts by their second
	servicetest.Eventually(t, bridgesPatience, func() error {
		if err := h.read(t.Context()); err != nil {
			return err
		}
		clear(unnumbered)
		undecided = 0
		table := h.Table()
		for id, online := range c.online {
			var s presence.State
			facts := h.Client(id).Facts
			latest, within := int64(0), int64(-1) // within: the last second that has no numbers
			for i := range facts {
				f := &facts[i].Fact
				s.Apply(f)
				latest = max(latest, f.TimeMS)
				if f.Order == 0 {
					unnumbered[f.TimeMS]++
					within = max(within, f.TimeMS)
				}
			}
			want := presence.Offline
			if online {
				want = presence.Online
			}
			v := presence.Status(&s, table, presence.DefaultAllowanceMS)
			if v.Status == presence.Unknown && v.Reason == presence.OrderUndecided && latest == within {
				// Before and after cannot be told apart, and nothing came later.
				undecided++
				continue
			}
			if v.Status != want {
				return fmt.Errorf("client %q is %s (%s), the truth is %s:\n%s", id, v.Status, v.Reason, want, h.Client(id))
			}
		}
		return nil
	})
	if len(unnumbered) > unnumberedSeconds {
		t.Errorf("facts without a number are in %d seconds, want at most %d: %v", len(unnumbered), unnumberedSeconds, unnumbered)
	}
	copies := 0
	for id := range c.online {
		var last presence.Fact
		seen := map[string]bool{}
		// What a killed process could not number was in the log when it came without a number: the other bridge's numbered copy may come after what followed.
		type line struct {
			kind   presence.Kind
			timeMS int64
			peer   string
		}
		unordered := map[line]bool{}
		for _, f := range h.Client(id).Facts {
			l := line{f.Kind, f.TimeMS, f.Peer}
			if f.Order == 0 {
				unordered[l] = true
			}
			if seen[f.ID] || unordered[l] {
				copies++
				continue
			}
			seen[f.ID] = true
			if f.TimeMS < last.TimeMS || f.TimeMS == last.TimeMS && f.Order < last.Order {
				t.Errorf("client %q: the log does not have its facts in their order:\n%s", id, h.Client(id))
				break
			}
			last = f.Fact
		}
		must(t, h.Client(id).CheckCopies())
	}
	t.Logf("%d events in %v (%.0f/s) of %d clients; %d copies of facts in the log, %d clients undecided within the seconds of a kill, facts by second: %v", c.events.Load(), c.took.Round(time.Millisecond),
		float64(c.events.Load())/c.took.Seconds(), len(c.online), copies, undecided, unnumbered)
	return l
}

// whole waits until the latest node facts say that nothing is missing.
func (l logged) whole(t *testing.T) {
	t.Helper()
	servicetest.Eventually(t, bridgesPatience, func() error {
		if err := l.read(t.Context()); err != nil {
			return err
		}
		all := l.Table()
		if from, to, gap := all.FeedGap(); gap {
			return fmt.Errorf("there is a gap from %d to %d: %+v", from, to, all.Feeds)
		}
		return nil
	})
}

// names returns which bridges have asserted a feed.
func (l logged) names() []string {
	return slices.Sorted(maps.Keys(l.Table().Feeds))
}
