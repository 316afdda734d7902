package presence

import (
	"slices"
	"strconv"
	"testing"
)

// The hazards of which the fold alone, given the facts, must make the best. Others are in the scripts, the simulator and the bridge.

// everyOrder folds facts in every order, or in many if there are many, and hands each status to check.
func everyOrder(t *testing.T, c *Cluster, facts []Fact, check func(t *testing.T, v Verdict)) {
	t.Helper()
	var permute func(int)
	permute = func(n int) {
		if n > 1 {
			for i := range n {
				facts[i], facts[n-1] = facts[n-1], facts[i]
				permute(n - 1)
				facts[i], facts[n-1] = facts[n-1], facts[i]
			}
			return
		}
		var s State
		for _, i := range slices.Concat(facts, facts) { // each twice
			s.Apply(&i)
		}
		check(t, Status(&s, c, DefaultAllowanceMS))
	}
	permute(len(facts))
}

func openedAt(dialect, node string, ms int64) Fact {
	return Fact{Kind: Opened, Dialect: dialect, Node: node, Connection: strconv.FormatInt(ms, 10), ConnectedAtMS: ms, TimeMS: ms, ReceivedMS: ms}
}

func closedAt(dialect, node string, opened, ms int64, r Reason) Fact {
	return Fact{Kind: Closed, Dialect: dialect, Node: node, Connection: strconv.FormatInt(opened, 10), ConnectedAtMS: opened, DisconnectedAtMS: ms,
		TimeMS: ms, ReceivedMS: ms, Reason: r}
}

func want(status Presence, reason StatusReason) func(*testing.T, Verdict) {
	return func(t *testing.T, v Verdict) {
		t.Helper()
		if v.Status != status || v.Reason != reason {
			t.Fatalf("%v (%v), want %v (%v)", v.Status, v.Reason, status, reason)
		}
	}
}

// EMQX 4 and 5.0 send nothing for a connection that is taken over: a newer one ends it, and its own end is the client's.
func TestNoClosedOnTakeover_H5(t *testing.T) {
	facts := []Fact{openedAt(DialectEMQX43, "a", 1_000), openedAt(DialectEMQX43, "b", 60_000)}
	everyOrder(t, nil, facts, want(Online, Connected))
	everyOrder(t, nil, append(facts, closedAt(DialectEMQX43, "b", 60_000, 90_000, ReasonConnectionLost)), want(Offline, ConnectionSuperseded))
}

// A process that is killed says nothing: the client's next connection on the node, or the broker's answer, ends what it held.
func TestSilentEnd_H6(t *testing.T) {
	killed := openedAt(DialectEMQX, "a", 1_000)
	everyOrder(t, nil, []Fact{killed, openedAt(DialectEMQX, "a", 60_000), closedAt(DialectEMQX, "a", 60_000, 70_000, ReasonNormal)}, want(Offline, ConnectionClosed))
	everyOrder(t, nil, []Fact{killed, {Kind: Observed, Online: Some(false), QueryStartMS: 20_000}}, want(Offline, BrokerObserved))
	persistent := Fact{Kind: Opened, Dialect: DialectNanoMQ, Node: "n", TimeMS: 1_000, ReceivedMS: 1_000, CleanStart: Some(false)}
	everyOrder(t, nil, []Fact{persistent}, func(t *testing.T, v Verdict) {
		if v.Status != Unknown || v.Belief != Online {
			t.Fatalf("%v, belief %v: the end of a persistent session is silent", v.Status, v.Belief)
		}
	})
}

// In a partition a client may have two connections. It is online while either is known to be, and when the newer ends, the older's end is missed.
func TestPartition_H13(t *testing.T) {
	both := []Fact{openedAt(DialectEMQX, "a", 1_000), openedAt(DialectEMQX, "b", 60_000)}
	everyOrder(t, nil, both, want(Online, Connected))
	both = append(both, closedAt(DialectEMQX, "b", 60_000, 90_000, ReasonNormal))
	everyOrder(t, nil, both, want(Unknown, OlderConnectionOpen))
	everyOrder(t, nil, append(both, closedAt(DialectEMQX, "a", 1_000, 91_000, ReasonDiscarded), openedAt(DialectEMQX, "b", 92_000)), want(Online, Connected))
}

// A query that was asked within the settle time does not know the connection yet; a later one counts.
func TestQueryRace_H14(t *testing.T) {
	opened := openedAt(DialectEMQX, "a", 10_000)
	no := Fact{Kind: Observed, Online: Some(false), QueryStartMS: 10_000 + SettleMS - 1, QueryEndMS: 10_000 + SettleMS}
	everyOrder(t, nil, []Fact{opened, no}, want(Online, Connected))
	no.QueryStartMS++
	everyOrder(t, nil, []Fact{opened, no}, want(Offline, BrokerObserved))
}

// The session of a client that left ends hours later: of a connection that is over, and so of no client that has come back.
func TestSessionExpiry_H17(t *testing.T) {
	const hour = 3_600_000
	facts := []Fact{openedAt(DialectEMQX, "a", 1_000), closedAt(DialectEMQX, "a", 1_000, 5_000, ReasonConnectionLost),
		closedAt(DialectEMQX, "a", 1_000, 2*hour, ReasonSessionExpired)}
	everyOrder(t, nil, facts, func(t *testing.T, v Verdict) {
		if v.Status != Offline || v.SinceMS != 5_000 {
			t.Fatalf("%v since %d, want offline since the connection's end", v.Status, v.SinceMS)
		}
	})
	everyOrder(t, nil, append(facts, openedAt(DialectEMQX, "a", hour)), want(Online, Connected))
}
