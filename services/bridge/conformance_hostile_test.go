package bridge

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

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
