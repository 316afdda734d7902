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
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

var update = flag.Bool("update", false, "rewrite what the manifests of testdata expect")

// receivedMS is when the messages of testdata are received: a little after their own stamps.
const receivedMS = 1_760_000_100_000

// manifest lists the messages of one broker, with what is to come of them, and scenarios, with the truth at their end.
type manifest struct {
	Messages []struct {
		File     string   `json:"file"`
		Topic    string   `json:"topic,omitempty"`
		TopicHex string   `json:"topic_hex,omitempty"`
		Retain   bool     `json:"retain,omitempty"`
		Version  string   `json:"version,omitempty"` // what the broker says of itself before
		Want     []string `json:"want"`
	} `json:"messages"`
	Scenarios []struct {
		File     string `json:"file"`
		Version  string `json:"version,omitempty"`
		ClientID string `json:"client_id"`
		Online   bool   `json:"online"`
		Want     string `json:"want"` // status and reason
	} `json:"scenarios"`
}

func readManifest(t *testing.T, broker string) manifest {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", broker, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

func writeManifest(t *testing.T, broker string, m manifest) {
	t.Helper()
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", " ")
	if err := e.Encode(m); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join("testdata", broker, "manifest.json"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newDecoder returns the decoder of a broker, on a connection of its own, that has seen the broker's version.
func newDecoder(t testing.TB, broker, version string) decoder {
	t.Helper()
	name := map[string]string{"emqx": presence.DialectEMQX, "mosquitto": presence.DialectMosquitto20}[broker]
	d := dialectByName(name).newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	d.connected(sessionStart{})
	if version != "" {
		topic, payload, _ := strings.Cut(version, " ")
		d.decode(&message{topic: topic, payload: []byte(payload), retain: true, receivedMS: receivedMS})
	}
	return d
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

func TestMessages(t *testing.T) {
	for _, broker := range []string{"emqx", "mosquitto"} {
		m := readManifest(t, broker)
		for i := range m.Messages {
			row := &m.Messages[i]
			payload, err := os.ReadFile(filepath.Join("testdata", broker, row.File))
			if err != nil {
				t.Fatal(err)
			}
			topic := row.Topic
			if row.TopicHex != "" {
				b, err := hex.DecodeString(row.TopicHex)
				if err != nil {
					t.Fatal(err)
				}
				topic = string(b)
			}
			d := newDecoder(t, broker, row.Version)
			msg := &message{topic: topic, payload: payload, retain: row.Retain, receivedMS: receivedMS}
			if !d.owns(msg) {
				t.Errorf("%s/%s: the dialect does not own the message", broker, row.File)
			}
			result := d.decode(msg)
			got := render(result)
			for _, f := range result.facts {
				if len(f.ID) != 32 {
					t.Errorf("%s/%s: the fact's ID is %q", broker, row.File, f.ID)
				}
			}
			if *update {
				row.Want = got
				continue
			}
			if strings.Join(got, "\n") != strings.Join(row.Want, "\n") {
				t.Errorf("%s/%s:\n got %s\nwant %s", broker, row.File, strings.Join(got, "\n     "), strings.Join(row.Want, "\n     "))
			}
		}
		if *update {
			writeManifest(t, broker, m)
		}
	}
}

// TestScenarios replays messages as they arrive, and compares the status at the end with the truth: it may be unknown, but never wrong, and
// its belief is right.
func TestScenarios(t *testing.T) {
	for _, broker := range []string{"emqx", "mosquitto"} {
		m := readManifest(t, broker)
		for i := range m.Scenarios {
			row := &m.Scenarios[i]
			t.Run(row.File, func(t *testing.T) {
				verdict := replay(t, broker, row.File, row.Version, row.ClientID)
				truth := presence.Offline
				if row.Online {
					truth = presence.Online
				}
				if verdict.Belief != truth || verdict.Status != truth && verdict.Status != presence.Unknown {
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
		if *update {
			writeManifest(t, broker, m)
		}
	}
}

func replay(t *testing.T, broker, file, version, clientID string) presence.Verdict {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", broker, file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, n := newDecoder(t, broker, version), newNodes("default")
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
			Retain         bool
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		now += 2 * pairMS
		apply(n.tick(now))
		result := d.decode(&message{topic: row.Topic, payload: []byte(row.Payload), retain: row.Retain, receivedMS: now})
		if result.dead != nil {
			t.Fatalf("%s: %v", row.Payload, *result.dead)
		}
		for i := range result.facts {
			if result.facts[i].ClientID != clientID {
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
