package bridge

import (
	"fmt"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
)

// beat is a heartbeat of EMQX: both halves, received together. Times are seconds after t0.
const t0 = 1_760_000_000_000

func beat(n *nodes, uptimeS, clockS, receivedS float64) []string {
	at := t0 + int64(receivedS*1000)
	facts := n.apply(&signal{kind: signalUptime, node: "n1", ms: int64(uptimeS * 1000), paired: true}, at)
	facts = append(facts, n.apply(&signal{kind: signalClock, node: "n1", ms: t0 + int64(clockS*1000), paired: true}, at+2)...)
	return names(facts)
}

func single(n *nodes, uptimeS, receivedS float64) []string {
	at := t0 + int64(receivedS*1000)
	return names(n.apply(&signal{kind: signalUptime, node: "mosquitto", ms: int64(uptimeS) * 1000, granularityMS: 1000, clockMS: at}, at))
}

// names writes facts as kind and start, in seconds after t0.
func names(facts []presence.NodeFact) []string {
	var out []string
	for _, f := range facts {
		out = append(out, fmt.Sprintf("%v@%g", f.Kind, float64(f.StartedMS-t0)/1000))
	}
	return out
}

func loaded() *nodes {
	n := newNodes("default")
	n.load()
	return n
}

func check(t *testing.T, what string, got []string, want string) {
	t.Helper()
	if strings.Join(got, " ") != want {
		t.Errorf("%s: got %v, want %s", what, got, want)
	}
}

func TestGenerations_H10(t *testing.T) {
	n := loaded()
	check(t, "first", beat(n, 100, 0, 0), "started@-100 alive@-100")
	check(t, "goes on", beat(n, 130, 30, 30), "alive@-100")
	check(t, "a clock that steps forward is not a start", beat(n, 160, 3660, 60), "alive@3500")
	check(t, "nor one that steps back", beat(n, 190, 90, 90), "alive@-100")
	check(t, "late delivery is not a start", beat(n, 220, 120, 900), "alive@-100")
	check(t, "a smaller uptime is", beat(n, 5, 930, 930), "started@925 alive@925")
	check(t, "a start while the bridge was away, with a greater uptime", beat(n, 1000, 2930, 2930), "started@1930 alive@1930")
	check(t, "a start at the very uptime of before", beat(n, 1000, 3940, 3940), "started@2940 alive@2940")
	check(t, "an old heartbeat of this generation is nothing", beat(n, 900, 3840, 3950), "")
	check(t, "a start and a clock that was set back", beat(n, 3, -1000, 4000), "started@-1003 alive@-1003")
}

func TestGenerationsWithoutClock_H10(t *testing.T) {
	n := loaded()
	check(t, "first", single(n, 37, 0), "started@-38 alive@-38")
	check(t, "goes on", single(n, 47, 10.3), "alive@-38")
	check(t, "a smaller uptime", single(n, 3, 20), "started@16 alive@16")
	// 8 s after the last heartbeat, an uptime of 8 s that may be 7.1 s in truth.
	check(t, "within its granularity nothing is new", single(n, 8, 28.5), "alive@19")
	check(t, "a greater uptime of a start after the last heartbeat", single(n, 60, 100), "started@39 alive@39")
	n.interrupted(t0 + 120_700)
	check(t, "a start after the old generation was last heard", single(n, 3, 123), "started@120 alive@120")
}

func TestHalvesOfHeartbeats(t *testing.T) {
	n := loaded()
	uptime := func(s int64, atMS int64) []string {
		return names(n.apply(&signal{kind: signalUptime, node: "n1", ms: s * 1000, paired: true}, t0+atMS))
	}
	clock := func(s int64, atMS int64) []string {
		return names(n.apply(&signal{kind: signalClock, node: "n1", ms: t0 + s*1000, paired: true}, t0+atMS))
	}
	check(t, "an uptime waits", uptime(100, 0), "")
	check(t, "its clock comes", clock(0, 5), "started@-100 alive@-100")
	check(t, "a clock first", clock(30, 30_000), "")
	check(t, "then the uptime", uptime(130, 30_010), "alive@-100")
	check(t, "an uptime whose clock is lost", uptime(160, 60_000), "")
	check(t, "proves nothing", names(n.tick(t0+62_000)), "")
	// What the broker kept comes at once, clocks before uptimes: which belong together is not known.
	check(t, "burst", clock(90, 200_000), "")
	check(t, "burst", clock(120, 200_001), "")
	check(t, "burst", uptime(190, 200_002), "")
	check(t, "burst", uptime(220, 200_003), "")
	check(t, "after the burst", names(n.tick(t0+202_000)), "")

	n = loaded()
	check(t, "a node that tells no clock", uptime(100, 0), "")
	check(t, "is waited for", names(n.tick(t0+500)), "")
	check(t, "and taken at its word", names(n.tick(t0+1500)), "started@-100 alive@-100")
	check(t, "again", uptime(30, 60_000), "")
	check(t, "again", names(n.tick(t0+62_000)), "started@30 alive@30")
}

func TestHeartbeatsBeforeTheLogIsRead(t *testing.T) {
	n := newNodes("default")
	check(t, "before", beat(n, 100, 0, 0), "")
	n.recall(&presence.NodeFact{Kind: presence.NodeAlive, Node: "n1", TimeMS: t0 - 30_000, ReceivedMS: t0 - 30_000, UptimeMS: presence.Some[int64](70_000)})
	check(t, "the same generation", names(n.load()), "alive@-100")

	n = newNodes("default")
	check(t, "before", beat(n, 100, 0, 0), "")
	n.recall(&presence.NodeFact{Kind: presence.NodeAlive, Node: "n1", TimeMS: t0 - 300_000, ReceivedMS: t0 - 300_000, UptimeMS: presence.Some[int64](70_000)})
	check(t, "another generation", names(n.load()), "started@-100 alive@-100")
}

func TestQueuedHeartbeatsClaimNoLateBoot(t *testing.T) {
	n := loaded()
	beat(n, 100, 0, 0)
	n.resumed(t0+10_000, t0+600_000)
	// Sent 30 s after the first, received after ten minutes.
	facts := n.apply(&signal{kind: signalUptime, node: "n2", ms: 5_000, paired: true}, t0+600_100)
	facts = append(facts, n.apply(&signal{kind: signalClock, node: "n2", ms: t0 + 30_000, paired: true}, t0+600_101)...)
	if len(facts) != 2 || facts[0].Kind != presence.NodeStarted || facts[0].StartedMS != t0+25_000 || facts[0].StartedReceivedMS > t0+25_000 {
		t.Errorf("facts %+v", facts)
	}
}

// A broker without a clock of its own boots while the bridge is away, and keeps its first heartbeat for the session. It comes late, behind all else that
// was kept: connections that were opened meanwhile must not count as those of before the boot.
func TestQueuedFirstHeartbeatEndsNobody_H10(t *testing.T) {
	for _, backlogS := range []float64{1, 2.5, 9} {
		n := loaded()
		check(t, "before", single(n, 100, 0), "started@-101 alive@-101")
		n.interrupted(t0 + 10_000)
		n.resumed(t0+10_000, t0+30_000)
		for s := 0.0; s <= backlogS; s += 0.5 {
			n.event(t0+int64(20_000+1000*s), t0+30_000+int64(1000*s)) // ten seconds old
		}
		check(t, fmt.Sprintf("behind %g s of events", backlogS), single(n, 0, 30+backlogS), "started@10 alive@10")
		check(t, "live again", single(n, 90, 110), "alive@19")
	}
	n := loaded()
	single(n, 100, 0)
	n.interrupted(t0 + 10_000)
	n.resumed(t0+10_000, t0+30_000)
	for s := 0.0; s <= 90; s++ {
		n.event(t0+int64(1000*s), t0+30_000+int64(1000*s)) // of a node whose clock is behind
	}
	check(t, "of a clock that is behind", single(n, 1, 120), "started@118 alive@118")
}

func TestMembers_H10_H18(t *testing.T) {
	n := loaded()
	beat(n, 100, 0, 0)
	members := func(retained bool, names ...string) []presence.NodeFact {
		return n.apply(&signal{kind: signalMembers, members: names, retained: retained}, t0+1000)
	}
	if facts := members(true, "n2"); len(facts) != 0 {
		t.Errorf("a retained list proves an absence: %+v", facts)
	}
	if facts := members(false, "n1", "n2"); len(facts) != 0 {
		t.Errorf("facts %+v", facts)
	}
	if facts := members(false, "n2"); len(facts) != 1 || facts[0].Kind != presence.NodeGone || facts[0].Node != "n1" {
		t.Errorf("facts %+v", facts)
	}
	if facts := members(false, "n2"); len(facts) != 0 {
		t.Errorf("a node is gone twice: %+v", facts)
	}
	beat(n, 130, 30, 30)
	if facts := members(false, "n2"); len(facts) != 1 {
		t.Errorf("a node that was back is gone again: %+v", facts)
	}
}

// TestALeapOfTheClockIsNoStart has the bridge's host, on which the broker runs too, sleep for three hours, or be told the time at last: both clocks
// leap, the uptime does not.
func TestALeapOfTheClockIsNoStart_H9_H10(t *testing.T) {
	ticks := func(n *nodes, fromS, toS float64) {
		for s := fromS; s < toS; s++ {
			n.tick(t0 + int64(s*1000))
		}
	}
	const leap = 3 * 3600
	n := loaded()
	check(t, "first", beat(n, 100, 0, 0), "started@-100 alive@-100")
	ticks(n, 0, 20)
	check(t, "a heartbeat before the next tick", beat(n, 130, leap+30, leap+30), "alive@10700")
	ticks(n, leap+30, leap+60)
	check(t, "goes on", beat(n, 160, leap+60, leap+60), "alive@10700")
	ticks(n, leap+60, leap+70)
	check(t, "a start after it", beat(n, 5, leap+70, leap+70), "started@10865 alive@10865")
	ticks(n, leap+70, leap+100)
	check(t, "a start with a greater uptime", beat(n, 20, leap+100, leap+100), "started@10880 alive@10880")
	ticks(n, 2*leap+100, 2*leap+110)
	check(t, "a start while the bridge stood still", beat(n, 10, 2*leap+110, 2*leap+110), "started@21700 alive@21700")

	n = loaded()
	check(t, "no clock", single(n, 37, 0), "started@-38 alive@-38")
	ticks(n, 0, 9)
	ticks(n, leap, leap+1)
	check(t, "no clock, after the leap", single(n, 47, leap+1), "alive@10753")
}
