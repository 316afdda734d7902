package bridge

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

// The conformance kit: what every dialect must pass. A dialect gives it a directory of testdata with a manifest.json, and, if it is
// configured, a bridge.yaml; see docs/adding-a-broker.md.

var update = flag.Bool("update", false, "rewrite what the manifests of testdata want")

// receivedMS is when the messages of testdata are received: a little after their own stamps.
const receivedMS = 1_760_000_100_000

// manifest lists the messages of one broker, with what is to come of them, and scenarios, with the truth at their end.
type manifest struct {
	Dialect   string        `json:"dialect,omitempty"` // of the table; without it, the directory's name
	Messages  []messageRow  `json:"messages"`
	Scenarios []scenarioRow `json:"scenarios,omitempty"`
}

type messageRow struct {
	File     string `json:"file"`
	Topic    string `json:"topic,omitempty"`
	TopicHex string `json:"topic_hex,omitempty"` // of a topic that is not UTF-8
	Retain   bool   `json:"retain,omitempty"`
	Version  string `json:"version,omitempty"` // what the broker says of itself before: topic, space, payload
	// Stated is the answer that the broker's documents or source give, written by hand: -update does not touch it.
	Stated *stated `json:"stated,omitempty"`
	// ReceivedStamp: the message tells no time, so that its facts have the time of reception.
	ReceivedStamp bool `json:"received_stamp,omitempty"`
	// Shared: messages of other dialects look the same, and auto gives it to one of them.
	Shared bool     `json:"shared,omitempty"`
	Want   []string `json:"want"`
}

// stated is the answer that a fixture's author gives.
type stated struct {
	Event      string `json:"event"` // connected, disconnected, ignore, signal or dead
	ClientID   string `json:"client_id,omitempty"`
	Connection string `json:"connection,omitempty"`
	// IDPart is the part of the client ID that stands in the message as it is; without it, the whole ID does.
	IDPart string `json:"id_part,omitempty"`
	// FixedID: the ID is configured, not in the message.
	FixedID bool `json:"fixed_id,omitempty"`
	// LossyID: this form of message cannot carry every ID; those that it cannot carry must be dead letters, or not be subscribed to.
	LossyID bool `json:"lossy_id,omitempty"`
}

type scenarioRow struct {
	File     string `json:"file"`
	Hazards  string `json:"hazards,omitempty"` // of docs/hazards.md that it covers, such as "H3 H7"; part of the test's name
	Version  string `json:"version,omitempty"`
	ClientID string `json:"client_id"`
	Online   bool   `json:"online"` // the truth
	Why      string `json:"why,omitempty"`
	// BeliefOpen: what arrives would be the same if the truth were the other, so that the belief may be wrong; the status must be unknown.
	BeliefOpen bool   `json:"belief_open,omitempty"`
	Want       string `json:"want"` // status and reason
}

// conformance is one dialect's testdata.
type conformance struct {
	dir      string
	dialect  *dialect
	mqtt     *MQTTConfig
	location *time.Location
	manifest manifest
}

// conformances returns all of testdata.
func conformances(t testing.TB) []*conformance {
	t.Helper()
	files, err := filepath.Glob("testdata/*/manifest.json")
	if err != nil {
		t.Fatal(err)
	}
	var all []*conformance
	for _, file := range files {
		c := &conformance{dir: filepath.Dir(file)}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		d := json.NewDecoder(bytes.NewReader(b))
		d.DisallowUnknownFields()
		if err := d.Decode(&c.manifest); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		name := c.manifest.Dialect
		if name == "" {
			name = filepath.Base(c.dir)
		}
		if c.dialect = dialectByName(name); c.dialect == nil {
			t.Errorf("%s: the table has no dialect %q; name it in the field \"dialect\"", file, name)
			continue
		}
		c.mqtt = readMQTT(t, c.dir, name)
		if c.location, err = time.LoadLocation(c.mqtt.Timezone); err != nil {
			t.Fatalf("%s: %v", c.dir, err)
		}
		all = append(all, c)
	}
	return all
}

// conformanceOf returns the testdata of a directory.
func conformanceOf(t testing.TB, dir string) *conformance {
	t.Helper()
	for _, c := range conformances(t) {
		if filepath.Base(c.dir) == dir {
			return c
		}
	}
	t.Fatalf("no testdata of %s", dir)
	return nil
}

// readMQTT returns the configuration of a dialect: that of bridge.yaml, if the directory has one.
func readMQTT(t testing.TB, dir, dialect string) *MQTTConfig {
	t.Helper()
	cfg := DefaultConfig()
	cfg.MQTT.Dialect = dialect
	file := filepath.Join(dir, "bridge.yaml")
	if _, err := os.Stat(file); err == nil {
		if err := service.Load("bridge", []string{"--config", file}, nil, &cfg); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
	}
	return &cfg.MQTT
}

func (c *conformance) config() decoderConfig {
	return decoderConfig{cluster: "default", location: c.location, mqtt: c.mqtt}
}

// newDecoder returns the dialect's decoder, on a connection of its own, that has seen the broker's version.
func (c *conformance) newDecoder(version string) decoder {
	d := c.dialect.newDecoder(c.config())
	d.connected(sessionStart{})
	if version != "" {
		topic, payload, _ := strings.Cut(version, " ")
		d.decode(&message{topic: topic, payload: []byte(payload), retain: true, receivedMS: receivedMS})
	}
	return d
}

func (c *conformance) write(t *testing.T) {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(c.manifest); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "manifest.json"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// message returns the message of a row.
func (c *conformance) message(t testing.TB, row *messageRow) *message {
	t.Helper()
	payload, err := os.ReadFile(filepath.Join(c.dir, row.File))
	if err != nil {
		t.Fatal(err)
	}
	topic := row.Topic
	if row.TopicHex != "" {
		b, err := hex.DecodeString(row.TopicHex)
		if err != nil {
			t.Fatalf("%s: topic_hex: %v", row.File, err)
		}
		topic = string(b)
	}
	return &message{topic: topic, payload: payload, retain: row.Retain, receivedMS: receivedMS}
}

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

// testDeterministic decodes each message as two bridges do: copies of a fact differ only in when they were received.
func (c *conformance) testDeterministic(t *testing.T) {
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		later := *m
		later.receivedMS += 1234
		a, b := read(c.newDecoder(row.Version), m), read(c.newDecoder(row.Version), &later)
		if len(a.facts) != len(b.facts) {
			t.Fatalf("%d facts, later %d", len(a.facts), len(b.facts))
		}
		for i := range a.facts {
			f, g := a.facts[i], b.facts[i]
			if row.ReceivedStamp {
				if f.TimeMS != m.receivedMS || f.ID == g.ID {
					t.Errorf("the message tells no time, but its fact is stamped %d, and has the ID %s when received %d ms later", f.TimeMS, g.ID, later.receivedMS-m.receivedMS)
				}
				continue
			}
			if g.ReceivedMS -= 1234; f != g {
				t.Errorf("copies of one fact differ\n one %+v\nother %+v", f, g)
			}
		}
	})
}

// testUnknownFields adds fields to JSON objects, as brokers do with each version.
func (c *conformance) testUnknownFields(t *testing.T) {
	const extra = `"presence_unknown":{"a":[1,{"b":null}],"time":"x"}`
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		object := bytes.TrimSpace(m.payload)
		if !json.Valid(object) || object[0] != '{' || len(object) < 3 {
			return
		}
		want := render(read(c.newDecoder(row.Version), m))
		for where, payload := range map[string]string{
			"first": "{" + extra + "," + string(object[1:]),
			"last":  string(object[:len(object)-1]) + "," + extra + "}",
		} {
			changed := *m
			changed.payload = []byte(payload)
			if got := render(read(c.newDecoder(row.Version), &changed)); !slices.Equal(got, want) {
				t.Errorf("with an unknown field %s:\n got %q\nwant %q", where, got, want)
			}
		}
	})
}

// clientIDs are IDs that are easily lost: every one is an MQTT client ID.
var clientIDs = []string{
	"a/b", "/", "a//b/", "+", "#", "a+b/#", "%", "%2F", "a%20b", " lead", "trail ", "two  spaces", `q"uo'te`, `back\slash`, `{"a":1}`, "a:b,c;d",
	"日本", "é", "e\u0301", "\U0001F600", "$SYS", "null", "true", "0", "undefined", strings.Repeat("x", 256), "<b>&amp;", "\u2028", "\u0085",
}

// testClientIDs puts other IDs into the messages whose ID is stated: each comes out as it went in.
func (c *conformance) testClientIDs(t *testing.T) {
	filters := filtersOf([]*dialect{c.dialect}, c.mqtt)
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		s := row.Stated
		if s == nil || s.ClientID == "" || s.FixedID || len(read(c.newDecoder(row.Version), m).facts) == 0 {
			return
		}
		part := s.IDPart
		if part == "" {
			part = s.ClientID
		}
		inJSON := json.Valid(m.payload) && bytes.HasPrefix(bytes.TrimSpace(m.payload), []byte("{"))
		if !strings.Contains(m.topic, part) && !bytes.Contains(m.payload, []byte(part)) {
			t.Fatalf("the message does not hold %q: state id_part", part)
		}
		for _, id := range clientIDs {
			want := strings.Replace(s.ClientID, part, id, 1)
			inPayload := id
			if inJSON {
				quoted, err := json.Marshal(id)
				if err != nil {
					t.Fatal(err)
				}
				inPayload = string(quoted[1 : len(quoted)-1])
			}
			changed := *m
			changed.topic = strings.Replace(m.topic, part, id, 1)
			changed.payload = []byte(strings.ReplaceAll(string(m.payload), part, inPayload))
			d := c.newDecoder(row.Version)
			if !d.owns(&changed) {
				t.Errorf("%q: the dialect does not own %q", id, changed.topic)
				continue
			}
			result := read(d, &changed)
			checkDecoded(t, result)
			subscribed := slices.ContainsFunc(filters, func(f filter) bool { return matches(f.topic, changed.topic) })
			if len(result.facts) == 0 && !(s.LossyID && (result.dead != nil || !subscribed)) {
				t.Errorf("%q: %q", id, render(result))
			}
			for _, f := range result.facts {
				if f.ClientID != want {
					t.Errorf("%q came out as %q", want, f.ClientID)
				}
			}
		}
	})
}

// tryOne decodes a message, if the dialect owns it, and shows it if that goes wrong.
func tryOne(t *testing.T, d decoder, m *message) {
	t.Helper()
	if !d.owns(m) {
		return
	}
	whole := false
	defer func() {
		if !whole {
			t.Logf("topic %.300q, payload %.600q", m.topic, m.payload)
		}
	}()
	checkDecoded(t, read(d, m))
	whole = true
}

// testDamaged truncates each message at every byte, and replaces each byte, of payload and topic.
func (c *conformance) testDamaged(t *testing.T) {
	hostile := []byte{0, 0xFF, 0xC3, '"', '\\', '{', '[', '/', '9', '-', ' ', '\n'}
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		d := c.newDecoder(row.Version)
		try := func(topic string, payload []byte) {
			tryOne(t, d, &message{topic: topic, payload: payload, retain: m.retain, receivedMS: receivedMS})
		}
		for i := range m.payload {
			try(m.topic, m.payload[:i])
			for _, h := range hostile {
				damaged := bytes.Clone(m.payload)
				damaged[i] = h
				try(m.topic, damaged)
			}
		}
		for i := range len(m.topic) {
			try(m.topic[:i], m.payload)
			for _, h := range hostile {
				damaged := []byte(m.topic)
				damaged[i] = h
				try(string(damaged), m.payload)
			}
		}
	})
}

// testHostile gives the dialect's topics payloads that nobody sends by accident.
func (c *conformance) testHostile(t *testing.T) {
	big := strings.Repeat("a", 1<<20)
	payloads := []string{
		"", " ", "null", "true", "1", `""`, "[]", "{}", "{}{}", big, strings.Repeat("\x00", 1<<10), strings.Repeat("\xff", 1<<10),
		strings.Repeat("[", 1<<18), strings.Repeat(`{"a":`, 1<<16), `{"` + big + `":1}`, "\xEF\xBB\xBF{}",
	}
	numbers := []string{"-1", "0", "1e400", "1.5", "253402300800000", "9223372036854775807", "9223372036854775808", "99999999999999999999", `"x"`, "null", "{}", "[]"}
	seen := map[string]bool{}
	c.rows(t, func(t *testing.T, row *messageRow, m *message) {
		d := c.newDecoder(row.Version)
		try := func(topic, payload string) {
			tryOne(t, d, &message{topic: topic, payload: []byte(payload), retain: m.retain, receivedMS: receivedMS})
		}
		first := !seen[m.topic]
		seen[m.topic] = true
		if first {
			for _, p := range payloads {
				try(m.topic, p)
			}
			for i := strings.IndexByte(m.topic, '/'); i >= 0 && i < len(m.topic); {
				try(m.topic[:i+1]+big[:70_000]+m.topic[i+1:], string(m.payload))
				next := strings.IndexByte(m.topic[i+1:], '/')
				if next < 0 {
					break
				}
				i += 1 + next
			}
		}
		text := string(m.payload)
		if first && row.Stated != nil && row.Stated.ClientID != "" {
			for _, id := range []string{"", big, big[:eventlog.MaxClientIDBytes], "a\xffb", "\x00", "\xed\xa0\x80"} {
				try(m.topic, strings.ReplaceAll(text, row.Stated.ClientID, id))
				try(strings.ReplaceAll(m.topic, row.Stated.ClientID, id), strings.ReplaceAll(text, row.Stated.ClientID, id))
			}
		}
		for start := 0; start < len(text); start++ {
			if text[start] < '0' || text[start] > '9' {
				continue
			}
			end := start
			for end < len(text) && text[end] >= '0' && text[end] <= '9' {
				end++
			}
			for _, n := range numbers {
				try(m.topic, text[:start]+n+text[end:])
			}
			start = end
		}
	})
}

// knownDialects are those whose profile the fold knows.
var knownDialects = []string{
	presence.DialectEMQX, presence.DialectEMQX50, presence.DialectEMQX43, presence.DialectEMQX40, presence.DialectEMQX4Events, presence.DialectRMQTT,
	presence.DialectTDMQ, presence.DialectMosquitto20, presence.DialectMosquitto21, presence.DialectMosquittoPlugin, presence.DialectNanoMQ,
	presence.DialectAWS, presence.DialectStatusTopic, presence.DialectSparkplug, presence.DialectCustom, presence.DialectCustomReusable, presence.DialectCustomUnique,
}

// checkDecoded checks what must hold for every message, whatever is in it.
func checkDecoded(t *testing.T, d decoded) {
	t.Helper()
	ends := 0
	for _, end := range []bool{len(d.facts) > 0, d.signal != nil, d.ignored != "", d.dead != nil} {
		if end {
			ends++
		}
	}
	if ends != 1 {
		t.Fatalf("the message ends in %d ways: %+v", ends, d)
	}
	if d.dead != nil && (d.dead.reason == "" || d.dead.detail == "" || !utf8.ValidString(d.dead.detail)) {
		t.Fatalf("the dead letter does not say why: %+v", d.dead)
	}
	for i := range d.facts {
		checkFact(t, &d.facts[i])
	}
	s := d.signal
	if s == nil || s.kind == signalLost {
		return
	}
	n := newNodes("default")
	n.load()
	one := *s
	one.paired = false
	if one.kind == signalClock {
		return
	}
	for _, f := range n.apply(&one, receivedMS) {
		checkNodeFact(t, &f)
	}
}

// checkFact checks that whoever reads the record of a fact gets the fact.
func checkFact(t *testing.T, f *presence.Fact) {
	t.Helper()
	switch {
	case f.Kind != presence.Opened && f.Kind != presence.Closed && f.Kind != presence.Observed:
		t.Fatalf("a fact of kind %v", f.Kind)
	case eventlog.ValidClientID(f.ClientID) != nil:
		t.Fatalf("fact %+v: %v", f, eventlog.ValidClientID(f.ClientID))
	case !slices.Contains(knownDialects, f.Dialect):
		t.Fatalf("the fold has no profile for dialect %q, or knownDialects lacks it", f.Dialect)
	case f.ReceivedMS != receivedMS && f.ReceivedMS != receivedMS+1234:
		t.Fatalf("received %d", f.ReceivedMS)
	}
	again := *f
	if again.SetID(); again.ID != f.ID {
		t.Fatalf("the ID %q is not that of the fact", f.ID)
	}
	for _, format := range []eventlog.Format{eventlog.JSON, eventlog.Protobuf} {
		var got presence.Fact
		if err := eventlog.DecodeFact(eventlog.FactRecord(f, format), &got); err != nil || got != *f {
			t.Fatalf("%v: %v\n got %+v\nsent %+v", format, err, got, *f)
		}
	}
}

func checkNodeFact(t *testing.T, f *presence.NodeFact) {
	t.Helper()
	for _, format := range []eventlog.Format{eventlog.JSON, eventlog.Protobuf} {
		var got presence.NodeFact
		if err := eventlog.DecodeNodeFact(eventlog.NodeRecord(f, format), &got); err != nil || got != *f {
			t.Fatalf("%v: %v\n got %+v\nsent %+v", format, err, got, *f)
		}
	}
}
