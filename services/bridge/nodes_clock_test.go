package bridge

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// setBack returns the time that the facts about n1 say its clock was set back, in seconds after t0, empty if they say that it was not.
func setBack(t *testing.T, n *nodes, kind presence.NodeKind) string {
	t.Helper()
	f, ok := n.node("n1").latest[kind]
	if !ok {
		t.Fatalf("no fact of kind %v", kind)
	}
	if f.SetBackFromMS == 0 && f.SetBackToMS == 0 {
		return ""
	}
	return fmt.Sprintf("%g..%g", float64(f.SetBackFromMS-t0)/1000, float64(f.SetBackToMS-t0)/1000)
}

func TestClockSetBack_H9(t *testing.T) {
	type b struct{ uptime, clock, received float64 }
	for _, test := range []struct {
		name  string
		beats []b
		want  string // from..to
	}{
		{"goes on", []b{{100, 0, 0}, {130, 30, 30}, {160, 60, 60}}, ""},
		// Just before the step the clock read 60 at most, right after it -30 at least.
		{"a minute back", []b{{100, 0, 0}, {130, 30, 30}, {160, 0, 60}, {190, 30, 90}}, "60.25..-30.25"},
		{"is kept", []b{{100, 0, 0}, {130, 30, 30}, {160, 0, 60}, {190, 30, 90}, {220, 60, 120}}, "60.25..-30.25"},
		{"not confirmed yet", []b{{100, 0, 0}, {130, 30, 30}, {160, 0, 60}}, ""},
		{"halves of two heartbeats", []b{{100, 0, 0}, {130, 30, 30}, {160, 30, 60}, {190, 90, 90}, {220, 120, 120}}, ""},
		{"halves of two heartbeats, twice", []b{{100, 0, 0}, {130, 0, 30}, {160, -30, 60}, {190, 90, 90}, {220, 120, 120}}, ""},
		{"late and queued", []b{{100, 0, 0}, {130, 30, 900}, {160, 60, 900.1}, {190, 90, 1000}}, ""},
		{"a second back", []b{{100, 0, 0}, {130, 29, 30}, {160, 59, 60}}, ""},
		{"a little more", []b{{100, 0, 0}, {130, 28.9, 30}, {160, 58.9, 60}}, "30.25..-1.35"},
		{"slowly", []b{{100, 0, 0}, {130, 29.2, 30}, {160, 58.4, 60}, {190, 87.6, 90}, {220, 116.8, 120}}, ""},
		{"ahead", []b{{100, 0, 0}, {130, 630, 30}, {160, 660, 60}}, ""},
		{"ahead and back", []b{{100, 0, 0}, {130, 630, 30}, {160, 660, 60}, {190, 90, 90}, {220, 120, 120}}, "690.25..59.75"},
		{"ahead and back at once", []b{{100, 0, 0}, {130, 630, 30}, {160, 60, 60}, {190, 90, 90}}, ""},
		{"back twice, apart", []b{{100, 0, 0}, {130, 20, 30}, {160, 50, 60}, {1060, 950, 960}, {1090, 970, 990}, {1120, 1000, 1020}}, "980.25..939.75"},
		{"back twice, overlapping", []b{{100, 0, 0}, {130, -570, 30}, {160, -540, 60}, {190, -810, 90}, {220, -780, 120}}, "30.25..-840.25"},
		{"back and ahead again", []b{{100, 0, 0}, {130, -570, 30}, {160, -540, 60}, {190, 90, 90}, {220, 120, 120}}, "30.25..-600.25"},
		// The boot was at 85 by the bridge's clock, when the clock before would have read that.
		{"at a restart", []b{{100, 0, 0}, {130, 30, 30}, {5, -910, 90}, {35, -880, 120}}, "86..-916"},
		{"at a restart, one late", []b{{100, 0, 0}, {130, 30, 30}, {5, 90, 900}, {35, 120, 120}}, ""},
		{"at a restart, the other late", []b{{100, 0, 0}, {130, 30, 30}, {5, 90, 90}, {35, 120, 900}}, ""},
		{"at a restart, ahead", []b{{100, 0, 0}, {130, 30, 30}, {5, 5000, 90}, {35, 5030, 120}}, ""},
		{"after a restart", []b{{100, 0, 0}, {5, 30, 30}, {35, 60, 60}, {65, 30, 90}, {95, 60, 120}}, "90.25..-0.25"},
	} {
		t.Run(test.name, func(t *testing.T) {
			n := loaded()
			for _, b := range test.beats {
				beat(n, b.uptime, b.clock, b.received)
			}
			if got := setBack(t, n, presence.NodeAlive); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestClockSetBackIsKept goes through a new generation, and a restart of the bridge that reads the log.
func TestClockSetBackIsKept(t *testing.T) {
	n := loaded()
	beat(n, 100, 0, 0)
	beat(n, 130, 30, 30)
	beat(n, 160, 0, 60)
	beat(n, 190, 30, 90)
	const want = "60.25..-30.25"
	beat(n, 5, 60, 120)
	if got := setBack(t, n, presence.NodeStarted); got != want {
		t.Errorf("the next generation: got %q, want %q", got, want)
	}
	for _, kinds := range [][]presence.NodeKind{{presence.NodeAlive, presence.NodeStarted}, {presence.NodeStarted, presence.NodeAlive}} {
		next := newNodes("default")
		for _, kind := range kinds {
			f := n.node("n1").latest[kind]
			next.recall(&f)
		}
		next.load()
		beat(next, 35, 90, 150)
		if got := setBack(t, next, presence.NodeAlive); got != want {
			t.Errorf("after a restart of the bridge: got %q, want %q", got, want)
		}
		// Set back while the bridge was away, in a generation that it knows.
		beat(next, 65, -880, 180)
		beat(next, 95, -850, 210)
		if got := setBack(t, next, presence.NodeAlive); got != "120.25..-910.25" {
			t.Errorf("another step: %q", got)
		}
	}
}

// TestQueuedHeartbeatsShowNoStep has heartbeats that the broker kept for the session: how late they are is not known.
func TestQueuedHeartbeatsShowNoStep(t *testing.T) {
	n := loaded()
	beat(n, 100, 0, 0)
	n.interrupted(t0 + 10_000)
	n.resumed(t0+10_000, t0+600_000)
	beat(n, 5, 90, 600)
	beat(n, 35, 120, 601)
	if got := setBack(t, n, presence.NodeAlive); got != "" {
		t.Errorf("a new generation, heard late: %q", got)
	}
	beat(n, 535, 620, 620)
	if got := setBack(t, n, presence.NodeAlive); got != "" {
		t.Errorf("and in time: %q", got)
	}

	n.interrupted(t0 + 630_000)
	n.resumed(t0+630_000, t0+1_000_000)
	beat(n, 565, 650, 1000.5)
	beat(n, 5, -200, 1100)
	beat(n, 35, -170, 1130)
	if got := setBack(t, n, presence.NodeAlive); got != "" {
		t.Errorf("how far the clock was ahead before is not known: %q", got)
	}
}

func TestClockSetBackOfWholeSeconds(t *testing.T) {
	n := loaded()
	for _, b := range [][3]int64{{100, 0, 0}, {130, 31, 30}, {160, 60, 60}, {190, 30, 90}, {220, 60, 120}} {
		at := t0 + b[2]*1000
		n.apply(&signal{kind: signalUptime, node: "n1", ms: b[0] * 1000, granularityMS: 1000, paired: true}, at)
		n.apply(&signal{kind: signalClock, node: "n1", ms: t0 + b[1]*1000, granularityMS: 1000, paired: true}, at)
	}
	if got := setBack(t, n, presence.NodeAlive); got != "92.25..-2.25" {
		t.Errorf("got %q", got)
	}
	// A second earlier than its boot is the rounding of both.
	n.apply(&signal{kind: signalUptime, node: "n1", ms: 200_000, granularityMS: 1000, paired: true}, t0+125_000)
	if facts := n.apply(&signal{kind: signalClock, node: "n1", ms: t0 + 39_000, granularityMS: 1000, paired: true}, t0+125_000); len(facts) != 0 {
		t.Errorf("an old heartbeat that comes late: %v", names(facts))
	}
}

// TestMosquittoCopiesAreNoStep_H9 has Mosquitto resume a session as it was when it was saved, before it was killed: lines come again that the bridge
// has settled. That is no clock that was set back; a line among them that is none of those is.
func TestMosquittoCopiesAreNoStep_H9(t *testing.T) {
	d := mosquittoDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	now := int64(t0)
	line := func(client string, stampS int64) *stepBack {
		now += 10
		return d.decode(&message{topic: mosquittoLog + "N", payload: fmt.Appendf(nil, "%d: Client %s disconnected.", t0/1000+stampS, client), receivedMS: now}).stepBack
	}
	again := sessionStart{resumed: true, complete: true}
	none := func(client string, stampS int64) {
		t.Helper()
		if step := line(client, stampS); step != nil {
			t.Errorf("client %s, stamp %d: %+v", client, stampS, step)
		}
	}
	d.connected(sessionStart{})
	for s := range int64(10) {
		none("a", s)
		none("b", s)
	}
	for range 3 {
		d.connected(again)
		for s := range int64(4) {
			none("a", 4+s)
			none("b", 4+s)
		}
	}
	// The connection was lost before the copies were over, and the next one begins later.
	d.connected(again)
	none("a", 6)
	d.connected(again)
	none("b", 8)
	none("c", 12)

	// The clock is set back while the connection is down; with copies before what is new, too.
	d.connected(again)
	if step := line("c", 11); step == nil || *step != (stepBack{mosquittoNode, t0 + 12_000, t0 + 10_999}) {
		t.Errorf("a second back: %+v", step)
	}
	none("d", 13)
	d.connected(again)
	none("c", 11)
	if step := line("e", 5); step == nil || *step != (stepBack{mosquittoNode, t0 + 13_000, t0 + 4_999}) {
		t.Errorf("after a copy: %+v", step)
	}
	d.connected(again)
	none("e", 5)
	none("f", 5) // the copy is of after the step, which was told
}

func TestLineMemoryIsBounded(t *testing.T) {
	var m lineMemory
	if m.has("0") {
		t.Error("a line that never came")
	}
	const n = linesRemembered + 100
	for i := range n {
		m.add(strconv.Itoa(i))
	}
	if m.has("99") || !m.has("100") || !m.has(strconv.Itoa(n-1)) || !m.has("101") || len(m.hashes) != linesRemembered {
		t.Errorf("%d lines are kept", len(m.hashes))
	}
}

// TestMosquittoClockSetBack_H9 has the stamps of the log go backwards.
func TestMosquittoClockSetBack_H9(t *testing.T) {
	d := mosquittoDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	now := int64(t0)
	line := func(stampS int64) *stepBack {
		now += 10
		return d.decode(&message{topic: mosquittoLog + "N", payload: fmt.Appendf(nil, "%d: Client d1 disconnected.", t0/1000+stampS), receivedMS: now}).stepBack
	}
	d.connected(sessionStart{})
	for _, s := range []int64{0, 1, 5, 5} {
		if step := line(s); step != nil {
			t.Errorf("stamp %d: %+v", s, step)
		}
	}
	if r := d.decode(&message{topic: mosquittoLog + "I", payload: fmt.Appendf(nil, "%d: Saving in-memory database to /mosquitto.db.", t0/1000+4), receivedMS: now}); r.stepBack != nil {
		t.Errorf("the line of a broker that stops: %+v", r.stepBack)
	}
	if step := line(5); step != nil {
		t.Errorf("after it: %+v", step)
	}
	// However small a step, what ends after it may seem to end before it began.
	if step := line(4); step == nil || *step != (stepBack{mosquittoNode, t0 + 5_000, t0 + 3_999}) {
		t.Errorf("one second back: %+v", step)
	}
	if step := line(5); step != nil {
		t.Errorf("forward again: %+v", step)
	}
	step := line(-100)
	if step == nil || *step != (stepBack{mosquittoNode, t0 + 5_000, t0 - 100_001}) {
		t.Fatalf("step %+v", step)
	}
	if again := line(-99); again != nil {
		t.Errorf("one step shows twice: %+v", again)
	}
	d.connected(sessionStart{})
	if other := line(-200); other != nil {
		t.Errorf("another session: %+v", other)
	}

	n := loaded()
	if facts := n.setBack(step); len(facts) != 0 {
		t.Errorf("facts before the first heartbeat: %+v", facts)
	}
	single(n, 37, 0)
	f := n.node(mosquittoNode).latest[presence.NodeAlive]
	early := newNodes("default")
	early.setBack(step)
	early.recall(&presence.NodeFact{Kind: presence.NodeAlive, Node: mosquittoNode, TimeMS: 1, ReceivedMS: 1, UptimeMS: presence.Some[int64](1), SetBackFromMS: 9, SetBackToMS: 8})
	early.load()
	if c := early.node(mosquittoNode).clock; c.fromMS != step.fromMS || c.toMS != step.toMS {
		t.Errorf("a step from before the log was read: %+v", c)
	}
	if f.SetBackFromMS != step.fromMS || f.SetBackToMS != step.toMS {
		t.Errorf("the first heartbeat after: %+v", f)
	}
	facts := n.setBack(&stepBack{mosquittoNode, t0 + 900_000, t0 + 800_000})
	if len(facts) != 1 || facts[0].SetBackFromMS != t0+900_000 || facts[0].ReceivedMS != f.ReceivedMS || facts[0].ID == f.ID {
		t.Errorf("facts %+v", facts)
	}
}
