package bridge

import (
	"fmt"
	"testing"
	"time"
)

func TestOrderWithinStamp_H8(t *testing.T) {
	d := mosquittoDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	now := int64(0)
	order := func(level string, stamp int64) uint32 {
		t.Helper()
		now += 10
		topic := mosquittoLog + level
		r := d.decode(&message{topic: topic, payload: fmt.Appendf(nil, "%d: Client d1 disconnected.", stamp), receivedMS: now})
		if level != "N" {
			return 0
		}
		if len(r.facts) != 1 {
			t.Fatalf("no fact: %+v", r)
		}
		return r.facts[0].Order
	}
	want := func(what string, got, want uint32) {
		t.Helper()
		if got != want {
			t.Errorf("%s: order %d, want %d", what, got, want)
		}
	}
	const s = 1_760_000_000
	d.connected(sessionStart{})
	d.subscribed(5)
	want("the session did not see the first stamp begin", order("N", s), 0)
	want("the same stamp", order("N", s), 0)
	want("the next stamp", order("N", s+1), 1)
	order("I", s+1)
	order("M/subscribe", s+1)
	want("lines of other levels count", order("N", s+1), 4)
	want("a clock that was set back", order("N", s-100), 0)
	want("does not disturb the count", order("N", s+1), 5)

	d.connected(sessionStart{resumed: true, complete: true})
	want("a session resumed without loss goes on", order("N", s+1), 6)
	d.connected(sessionStart{resumed: true})
	d.subscribed(now)
	now += 60_000
	want("one with loss does not", order("N", s+61), 0)
	want("until the next stamp", order("N", s+62), 1)

	d.connected(sessionStart{})
	d.subscribed(now)
	now += firstStampMS
	want("a stamp that began after the subscription", order("N", s+65), 1)
}

func TestSameLinesHaveDifferentIDs_H8(t *testing.T) {
	d := mosquittoDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	d.connected(sessionStart{})
	ids := map[string]bool{}
	for stamp := range 2 {
		for range 3 {
			r := d.decode(&message{topic: mosquittoLog + "N", payload: fmt.Appendf(nil, "%d: Client d1 disconnected.", 1_760_000_000+stamp), receivedMS: 1})
			ids[r.facts[0].ID] = true
		}
	}
	// Those of the first stamp cannot be told apart.
	if len(ids) != 4 {
		t.Errorf("%d IDs", len(ids))
	}
}

func TestTransportOfTCPListeners(t *testing.T) {
	d := mosquittoDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	line := func(text string) decoded {
		return d.decode(&message{topic: mosquittoLog + "N", payload: []byte("1760000000: " + text), receivedMS: 1})
	}
	line("New connection from 10.0.0.1:5000 on port 1883.")
	for i, want := range []string{"tcp", ""} {
		f := line("New client connected from 10.0.0.1:5000 as d1 (p2, c1, k60).").facts[0]
		if f.Transport != want {
			t.Errorf("connection %d: transport %q, want %q", i, f.Transport, want)
		}
	}
}

func TestPeerSetIsBounded(t *testing.T) {
	s := newPeerSet(3)
	for i := range 10 {
		s.add(fmt.Sprint(i))
	}
	s.add("9")
	if len(s.members) > 3 || s.remove("7") || !s.remove("8") || !s.remove("9") || s.remove("9") {
		t.Errorf("members %v", s.members)
	}
}

func TestLocalStamps_H9(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	at := func(s string) int64 {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v.UnixMilli()
	}
	for _, c := range []struct{ stamp, received, want string }{
		{"2025-10-09T10:53:20", "2025-10-09T08:53:21Z", "2025-10-09T08:53:20Z"},
		{"2025-10-09 10:53:20", "2025-10-09T08:53:21Z", "2025-10-09T08:53:20Z"},
		{"2025-10-09T10:53:20+0300", "2025-10-09T08:53:21Z", "2025-10-09T07:53:20Z"},
		// Local time has this hour twice.
		{"2025-10-26T02:30:00", "2025-10-26T00:30:01Z", "2025-10-26T00:30:00Z"},
		{"2025-10-26T02:30:00", "2025-10-26T01:30:01Z", "2025-10-26T01:30:00Z"},
	} {
		ms, text := cutStamp(c.stamp+": Client x", berlin, at(c.received))
		if ms != at(c.want) || text != "Client x" {
			t.Errorf("%s received %s: %s %q, want %s", c.stamp, c.received, time.UnixMilli(ms).UTC(), text, c.want)
		}
	}
}

func TestQueuedUptimesAreOfUnknownAge_H12(t *testing.T) {
	d := mosquittoDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	uptime := func(text string, retain bool, atMS int64) decoded {
		return d.decode(&message{topic: mosquittoUptime, payload: []byte(text), retain: retain, receivedMS: atMS})
	}
	d.connected(sessionStart{resumed: true})
	if r := uptime("90 seconds", false, 1000); r.ignored != ignoredQueued {
		t.Errorf("queued: %+v", r)
	}
	if r := uptime("600 seconds", true, 1001); r.ignored != ignoredRetained {
		t.Errorf("retained: %+v", r)
	}
	if r := uptime("610 seconds", false, 1002); r.signal == nil || r.signal.ms != 610_000 {
		t.Errorf("live: %+v", r)
	}
	if r := uptime("1d", false, 1003); r.ignored != ignoredOtherTopic {
		t.Errorf("of another broker: %+v", r)
	}
	d.connected(sessionStart{resumed: true})
	uptime("620 seconds", false, 2000)
	if r := uptime("660 seconds", false, 2000+liveAfterMS); r.signal == nil {
		t.Errorf("no retained one came: %+v", r)
	}
}

func TestClockSkew_H9(t *testing.T) {
	var s skew
	if s.nodeTime(5) != 0 {
		t.Error("a skew without samples")
	}
	s.sample(1000, 1900)
	if got := s.nodeTime(5000); got != 4100 {
		t.Errorf("node time %d, which may be late", got)
	}
	s = skew{}
	for i := range int64(10) {
		s.sample(100_000+i*1000, 10_000+i*1000+i*90)
	}
	if got := s.nodeTime(20_000); got != 110_000 {
		t.Errorf("node time %d of a clock that is 90 s ahead", got)
	}
	s.sample(200_000, 200_500)
	s.sample(300_000, 300_500)
	if got := s.nodeTime(300_000); got != 299_500 {
		t.Errorf("node time %d of a clock that was set right", got)
	}
}
