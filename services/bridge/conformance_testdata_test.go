package bridge

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

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
