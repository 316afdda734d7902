package bridge

import (
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
)

// silence runs n from one second after t0 to another and returns when it says which node is silent.
func silence(n *nodes, fromS, toS int64) map[string]int64 {
	silent := map[string]int64{}
	for s := fromS; s <= toS; s++ {
		for _, f := range n.tick(t0 + s*1000) {
			if f.Kind == presence.NodeSilent {
				silent[f.Node+"@"+f.Dialect] = (f.ReceivedMS - t0) / 1000
			}
		}
	}
	return silent
}

func emqxBeat(n *nodes, uptimeS, atS int64) {
	at := t0 + atS*1000
	n.apply(&signal{kind: signalUptime, dialect: presence.DialectEMQX, node: "n1", ms: uptimeS * 1000, paired: true}, at)
	n.apply(&signal{kind: signalClock, dialect: presence.DialectEMQX, node: "n1", ms: at, paired: true}, at)
}

func wantSilent(t *testing.T, what string, got map[string]int64, node string, atS int64) {
	t.Helper()
	if node == "" && len(got) != 0 {
		t.Errorf("%s: silent %v", what, got)
	}
	if node != "" && (len(got) != 1 || got[node] != atS) {
		t.Errorf("%s: silent %v, want %s at %d", what, got, node, atS)
	}
}

func TestSilence_H10(t *testing.T) {
	n := loaded()
	n.subscribed(t0)
	wantSilent(t, "a node that was never heard", silence(n, 0, 300), "", 0)
	n.node("n1")
	wantSilent(t, "a node that is only listed", silence(n, 301, 700), "", 0)

	emqxBeat(n, 100, 700)
	wantSilent(t, "three heartbeats missing", silence(n, 701, 900), "n1@emqx", 796)
	wantSilent(t, "once", silence(n, 901, 2000), "", 0)
	emqxBeat(n, 1400, 2000)
	wantSilent(t, "another silence", silence(n, 2001, 2200), "n1@emqx", 2096)
	emqxBeat(n, 5, 2200)
	wantSilent(t, "a new generation", silence(n, 2201, 2400), "n1@emqx", 2296)

	emqxBeat(n, 205, 2400)
	n.apply(&signal{kind: signalMembers, dialect: presence.DialectEMQX, members: []string{"n2"}}, t0+2_400_000)
	wantSilent(t, "a node that is gone", silence(n, 2401, 2700), "", 0)
}

func TestOwnOutageIsNoSilence_H12(t *testing.T) {
	n := loaded()
	n.subscribed(t0)
	emqxBeat(n, 100, 0)
	n.interrupted(t0 + 10_000)
	wantSilent(t, "without a subscription", silence(n, 1, 600), "", 0)
	n.subscribed(t0 + 600_000)
	wantSilent(t, "three heartbeats after the subscription", silence(n, 601, 800), "n1@emqx", 696)

	emqxBeat(n, 900, 800)
	silence(n, 800, 810)
	// The bridge stood still; what came meanwhile is still to be read.
	wantSilent(t, "after a standstill", silence(n, 1000, 1090), "", 0)
	emqxBeat(n, 1190, 1090)
	silence(n, 1090, 1100)
	wantSilent(t, "the bridge's clock was set forward", silence(n, 4700, 4790), "", 0)
	wantSilent(t, "and the node is silent", silence(n, 4791, 4800), "n1@emqx", 4796)
}

func TestSilenceByDialect(t *testing.T) {
	for _, test := range []struct {
		dialect string
		after   int64 // seconds
	}{
		{presence.DialectEMQX50, 96}, {presence.DialectEMQX43, 96}, {presence.DialectEMQX40, 96},
		{presence.DialectMosquitto20, 36}, {presence.DialectMosquitto21, 36}, {presence.DialectRMQTT, 186}, {presence.DialectTDMQ, 0},
	} {
		n := loaded()
		n.subscribed(t0)
		s := &signal{kind: signalUptime, dialect: test.dialect, node: "n1", ms: 1000, granularityMS: 1000}
		if test.dialect == presence.DialectRMQTT {
			s = &signal{kind: signalAlive, dialect: test.dialect, node: "n1"}
		}
		n.apply(s, t0)
		node := "n1@" + test.dialect
		if test.after == 0 {
			node = ""
		}
		wantSilent(t, test.dialect, silence(n, 1, 600), node, test.after)
	}
}

// TestHalfAHeartbeatIsNoSilence has the clocks of all heartbeats get lost.
func TestHalfAHeartbeatIsNoSilence(t *testing.T) {
	n := loaded()
	n.subscribed(t0)
	emqxBeat(n, 100, 0)
	for s := int64(30); s <= 300; s += 30 {
		wantSilent(t, "uptimes alone", silence(n, s-29, s), "", 0)
		n.apply(&signal{kind: signalUptime, dialect: presence.DialectEMQX, node: "n1", ms: (100 + s) * 1000, paired: true}, t0+s*1000)
	}
	wantSilent(t, "nothing", silence(n, 301, 500), "n1@emqx", 396)
}

// TestRareHeartbeats has a broker that is configured to send them every five minutes, and one of them lost.
func TestRareHeartbeats(t *testing.T) {
	n := loaded()
	n.subscribed(t0)
	emqxBeat(n, 100, 0)
	wantSilent(t, "until two intervals agree", silence(n, 1, 300), "n1@emqx", 96)
	emqxBeat(n, 400, 300)
	wantSilent(t, "until two intervals agree", silence(n, 301, 600), "n1@emqx", 396)
	emqxBeat(n, 700, 600)
	wantSilent(t, "with one lost", silence(n, 601, 1200), "", 0)
	emqxBeat(n, 1300, 1200)
	wantSilent(t, "three missing", silence(n, 1201, 2200), "n1@emqx", 2106)
}

func TestSilenceAcrossARestart(t *testing.T) {
	before := loaded()
	before.subscribed(t0)
	emqxBeat(before, 100, 0)
	restart := func() *nodes {
		n := newNodes("default")
		for _, f := range before.asserted() {
			n.recall(&f)
		}
		n.subscribed(t0 + 1_000_000)
		return n
	}
	n := restart()
	wantSilent(t, "before the log is read", silence(n, 1000, 1200), "", 0)
	n.load()
	wantSilent(t, "a node that fell silent while the bridge was away", silence(n, 1200, 1201), "n1@emqx", 1200)

	silence(before, 1, 200)
	n = restart()
	n.load()
	wantSilent(t, "a silence that is in the log", silence(n, 1000, 1300), "", 0)
	emqxBeat(n, 1400, 1300)
	wantSilent(t, "a heartbeat, and silence", silence(n, 1301, 1500), "n1@emqx", 1396)
}

// TestRecalledAbsence has a node that came back after it was gone: the log has both facts, in no order.
func TestRecalledAbsence(t *testing.T) {
	before := loaded()
	beat(before, 100, 0, 0)
	before.apply(&signal{kind: signalMembers, members: []string{"n2"}}, t0+1000)
	beat(before, 130, 30, 30)
	n := newNodes("default")
	for _, f := range before.asserted() {
		n.recall(&f)
	}
	n.load()
	if facts := n.apply(&signal{kind: signalMembers, members: []string{"n2"}}, t0+60_000); len(facts) != 1 || facts[0].Kind != presence.NodeGone {
		t.Errorf("a node that goes again: %+v", facts)
	}
}

// TestABusyBrokerIsNotSilent has two heartbeats lost, and the third late.
func TestABusyBrokerIsNotSilent(t *testing.T) {
	n := loaded()
	n.subscribed(t0)
	emqxBeat(n, 100, 0)
	wantSilent(t, "two lost, one late", silence(n, 1, 94), "", 0)
	emqxBeat(n, 194, 94)
	wantSilent(t, "and back", silence(n, 95, 180), "", 0)
}
