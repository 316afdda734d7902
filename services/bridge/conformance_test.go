package bridge

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// The conformance kit: what every dialect must pass. A dialect gives it a directory of testdata with a manifest.json, and, if it is
// configured, a bridge.yaml; see docs/adding-a-broker.md.

var update = flag.Bool("update", false, "rewrite what the manifests of testdata want")

// receivedMS is when the messages of testdata are received: a little after their own stamps.
const receivedMS = 1_760_000_100_000

// TestConformance puts every dialect of the table through the kit.
func TestConformance(t *testing.T) {
	all := conformances(t)
	for _, d := range dialects {
		if !slices.ContainsFunc(all, func(c *conformance) bool { return c.dialect == d }) {
			t.Errorf("dialect %s has no testdata: write testdata/%s/manifest.json", d.name, d.name)
		}
	}
	for _, c := range all {
		t.Run(filepath.Base(c.dir), func(t *testing.T) { testConformance(t, c) })
	}
}

// testConformance is the kit.
func testConformance(t *testing.T, c *conformance) {
	t.Run("messages", c.testMessages)
	t.Run("scenarios", c.testScenarios)
	if *update {
		c.write(t)
	}
	t.Run("subscribed", c.testSubscribed)
	t.Run("auto", c.testAuto)
	t.Run("deterministic", c.testDeterministic)
	t.Run("unknown fields", c.testUnknownFields)
	t.Run("client IDs", c.testClientIDs)
	t.Run("damaged", c.testDamaged)
	t.Run("hostile", c.testHostile)
}

// rows calls f for each message.
func (c *conformance) rows(t *testing.T, f func(t *testing.T, row *messageRow, m *message)) {
	t.Helper()
	for i := range c.manifest.Messages {
		row := &c.manifest.Messages[i]
		name := row.File
		if row.Version != "" {
			name += " of " + row.Version
		}
		t.Run(name, func(t *testing.T) { f(t, row, c.message(t, row)) })
	}
}

// render writes what became of a message as lines that people can read. IDs are left out.
func render(d decoded) []string {
	var lines []string
	for _, f := range d.facts {
		f.ID = ""
		lines = append(lines, string(eventlog.AppendFactJSON(nil, &f)))
	}
	if s := d.signal; s != nil {
		what := map[signalKind]string{
			signalUptime: "uptime", signalClock: "clock", signalMembers: "members", signalStarted: "started", signalStopped: "stopped", signalLost: "lost",
			signalAlive: "alive",
		}[s.kind]
		lines = append(lines, strings.TrimSpace(fmt.Sprintf("signal %s %s %s%s %d %s", what, s.dialect, s.node, s.clientID, s.ms, strings.Join(s.members, ","))))
	}
	if d.ignored != "" {
		lines = append(lines, "ignored "+d.ignored)
	}
	if d.dead != nil {
		lines = append(lines, "dead "+d.dead.reason+": "+d.dead.detail)
	}
	return lines
}

// testMessages compares what becomes of each message with what the manifest wants, and with what its author states.
func (c *conformance) testMessages(t *testing.T) {
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		d := c.newDecoder(row.Version)
		if !d.owns(m) {
			t.Error("the dialect does not own it")
		}
		result := read(d, m)
		checkDecoded(t, result)
		if row.Stated != nil {
			row.Stated.check(t, result)
		}
		got := render(result)
		if *update {
			row.Want = got
		} else if !slices.Equal(got, row.Want) {
			t.Errorf("\n got %s\nwant %s", strings.Join(got, "\n     "), strings.Join(row.Want, "\n     "))
		}
	})
}

func (s *stated) check(t *testing.T, d decoded) {
	t.Helper()
	got := "dead"
	switch {
	case len(d.facts) > 0 && (d.facts[0].Kind == presence.Opened || d.facts[0].Kind == presence.Observed && d.facts[0].Online.Value):
		got = "connected"
	case len(d.facts) > 0:
		got = "disconnected"
	case d.signal != nil:
		got = "signal"
	case d.ignored != "":
		got = "ignore"
	}
	if got != s.Event {
		t.Errorf("the message says %s, it is stated to say %s", got, s.Event)
	}
	for i := range d.facts {
		if f := &d.facts[i]; f.ClientID != s.ClientID || f.Connection != s.Connection {
			t.Errorf("it is about client %q, connection %q; stated are %q, %q", f.ClientID, f.Connection, s.ClientID, s.Connection)
		}
	}
}

// testScenarios replays messages as they arrive, and compares the status at the end with the truth: it may be unknown, but never wrong, and
// its belief is right.
func (c *conformance) testScenarios(t *testing.T) {
	for i := range c.manifest.Scenarios {
		row := &c.manifest.Scenarios[i]
		t.Run(strings.TrimSpace(row.File+" "+row.Hazards), func(t *testing.T) {
			verdict := c.replay(t, row)
			truth := presence.Offline
			if row.Online {
				truth = presence.Online
			}
			if row.BeliefOpen && verdict.Status != presence.Unknown {
				t.Errorf("status %v (%v), where nothing can be known", verdict.Status, verdict.Reason)
			}
			if verdict.Belief != truth && !row.BeliefOpen || verdict.Status != truth && verdict.Status != presence.Unknown {
				t.Errorf("status %v (%v), belief %v; the client is %v", verdict.Status, verdict.Reason, verdict.Belief, truth)
			}
			got := fmt.Sprintf("%v %v", verdict.Status, verdict.Reason)
			if *update {
				row.Want = got
			} else if got != row.Want {
				t.Errorf("got %s, want %s", got, row.Want)
			}
		})
	}
}

func (c *conformance) replay(t *testing.T, scenario *scenarioRow) presence.Verdict {
	t.Helper()
	f, err := os.Open(filepath.Join(c.dir, scenario.File))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, n := c.newDecoder(scenario.Version), newNodes("default")
	n.load()
	var state presence.State
	var cluster presence.Cluster
	apply := func(facts []presence.NodeFact) {
		for i := range facts {
			cluster.Apply(&facts[i])
		}
	}
	now := int64(receivedMS)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var row struct {
			Topic, Payload string
			PayloadHex     string `json:"payload_hex"` // of a payload that is not text
			Retain         bool
			WaitMS         int64 `json:"wait_ms"` // before it is received
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		if row.PayloadHex != "" {
			b, err := hex.DecodeString(row.PayloadHex)
			if err != nil {
				t.Fatalf("payload_hex: %v", err)
			}
			row.Payload = string(b)
		}
		now += 2*pairMS + row.WaitMS
		apply(n.tick(now))
		result := read(d, &message{topic: row.Topic, payload: []byte(row.Payload), retain: row.Retain, receivedMS: now})
		if result.dead != nil {
			t.Fatalf("%s: %v", row.Payload, *result.dead)
		}
		for i := range result.facts {
			if result.facts[i].ClientID != scenario.ClientID {
				t.Fatalf("fact about %q", result.facts[i].ClientID)
			}
			state.Apply(&result.facts[i])
		}
		if result.signal != nil {
			apply(n.apply(result.signal, now))
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
	apply(n.tick(now + 2*pairMS))
	return presence.Status(&state, &cluster, presence.DefaultAllowanceMS)
}

// testSubscribed checks that the dialect subscribes to what it reads.
func (c *conformance) testSubscribed(t *testing.T) {
	filters := filtersOf([]*dialect{c.dialect}, c.mqtt)
	if !slices.ContainsFunc(filters, func(f filter) bool { return f.events }) {
		t.Error("no filter is marked as the one with the events")
	}
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		n := 0
		for _, f := range filters {
			if matches(f.topic, m.topic) {
				n++
			}
		}
		// What tells nothing need not be asked for.
		if n != 1 && !(n == 0 && row.Stated != nil && row.Stated.Event == "ignore") {
			t.Errorf("%d filters match topic %q", n, m.topic)
		}
	})
}

// matches reports whether a topic filter matches a topic (MQTT 5, 4.7).
func matches(filter, topic string) bool {
	levels := strings.Split(topic, "/")
	for i, f := range strings.Split(filter, "/") {
		switch {
		case f == "#":
			return true
		case i >= len(levels), f != "+" && f != levels[i]:
			return false
		case i == strings.Count(filter, "/"):
			return i == len(levels)-1
		}
	}
	return false
}

// testAuto checks that, with all dialects in use, a message goes to the one that can read it; those that need configuration leave the
// messages of others alone.
func (c *conformance) testAuto(t *testing.T) {
	list := selectDialects(dialectAuto)
	if !slices.Contains(list, c.dialect) {
		list = append(slices.Clone(list), c.dialect)
	}
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		for _, other := range list {
			d := other.newDecoder(c.config())
			d.connected(sessionStart{})
			if !d.owns(m) {
				continue
			}
			if other != c.dialect && !row.Shared {
				t.Errorf("%s takes it", other.name)
			}
			return
		}
		t.Error("nobody takes it")
	})
}
