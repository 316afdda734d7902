package query

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Each case is a client's past, in seconds, and what is said of it every second from 0 on. A letter is a status and its reason, a digit
// behind it the session that decided.
//
//	O online, connected    o online, another reason    F offline, not_connected    f offline, another reason
//	? unknown: i inferred  p history_pruned  g feed_gap  n not_applied  s the status reason of the current connection
func TestStatusAt(t *testing.T) {
	type conn struct{ opened, ended int64 }
	history := func(sessions ...*presencev1.HistorySession) *presencev1.History {
		return &presencev1.History{Sessions: sessions}
	}
	stated := func(c conn) *presencev1.HistorySession {
		return &presencev1.HistorySession{Node: "n1", Connection: connectedAt(c.opened), EndedMs: c.ended * 1000, Stated: true, Reason: "normal"}
	}
	inferred := func(c conn) *presencev1.HistorySession {
		return &presencev1.HistorySession{Node: "n1", Connection: connectedAt(c.opened), EndedMs: c.ended * 1000, Reason: "superseded"}
	}
	current := func(status, reason string, opened, since int64, h *presencev1.History) *presencev1.StateEntry {
		return &presencev1.StateEntry{
			Found: true, Status: status, StatusReason: reason, SinceMs: since * 1000, Node: "n1", Connection: connectedAt(opened), History: h,
		}
	}
	gap := func(from, to int64) func(*input) {
		return func(in *input) { in.h.Gap = &presencev1.FeedGap{FromMs: from * 1000, ToMs: to * 1000} }
	}
	for _, c := range []struct {
		name   string
		e      *presencev1.StateEntry
		change func(*input)
		want   string // for 0 s, 1 s, ... 12 s; applied is 10 s
	}{
		// The current connection alone; nodes began at 1 s, and everything since was received.
		{"online", current("online", "connected", 3, 3, nil), nil, "p F F O0 O0 O0 O0 O0 O0 O0 O0 n n"},
		{"closed", current("offline", "closed", 3, 6, nil), nil, "p F F O0 O0 O0 f0 f0 f0 f0 f0 n n"},
		{"ended by a restart", current("offline", "node_restarted", 3, 6, nil), nil, "p F F i0 i0 i0 f0 f0 f0 f0 f0 n n"},
		{"denied by a query", current("offline", "observed", 3, 6, nil), nil, "p F F i0 i0 i0 f0 f0 f0 f0 f0 n n"},
		{"superseded", current("offline", "superseded", 3, 6, nil), nil, "p F F O0 O0 O0 f0 f0 f0 f0 f0 n n"},
		{"order undecided", current("unknown", "order_undecided", 3, 3, nil), nil, "p F F s0 s0 s0 s0 s0 s0 s0 s0 n n"},
		{"close ambiguous", current("unknown", "close_ambiguous", 3, 6, nil), nil, "p F F s0 s0 s0 s0 s0 s0 s0 s0 n n"},
		{"successor unseen", current("unknown", "successor_unseen", 3, 6, nil), nil, "p F F s0 s0 s0 s0 s0 s0 s0 s0 n n"},
		{"older connection open", current("unknown", "older_connection_open", 3, 6, nil), nil, "p F F s0 s0 s0 s0 s0 s0 s0 s0 n n"},
		{"pruned", current("unknown", "history_pruned", 3, 6, nil), nil, "p F F s0 s0 s0 s0 s0 s0 s0 s0 n n"},
		{"node silent since 8, heard at 5", current("unknown", "node_silent", 3, 8, nil), aliveAt(5), "p F F O0 O0 O0 s0 s0 s0 s0 s0 n n"},
		{"node gone since 6, heard at 9", current("unknown", "node_gone", 3, 6, nil), aliveAt(9), "p F F O0 O0 O0 s0 s0 s0 s0 s0 n n"},
		{"online by a query, opening unknown", current("online", "observed", 0, 6, nil), nil, "i0 i0 i0 i0 i0 i0 o0 o0 o0 o0 o0 n n"},
		{"online by a query", current("online", "observed", 3, 6, nil), nil, "p F F i0 i0 i0 o0 o0 o0 o0 o0 n n"},
		{"closed, opening unknown", current("offline", "closed", 0, 6, nil), nil, "i0 i0 i0 i0 i0 i0 f0 f0 f0 f0 f0 n n"},
		{"offline by a query, no connection", none("offline", "observed", 6, nil), nil, "p F F F F F f f f f f n n"},
		{"online by a query, no connection", none("online", "observed", 6, nil), nil, "i i i i i i o o o o o n n"},
		{"only strangers", none("unknown", "never_seen", 0, nil), nil, "p F F F F F F F F F F n n"},

		// With a history.
		{"between two", current("online", "connected", 7, 7, history(stated(conn{2, 4}))), nil, "p F O1 O1 F F F O0 O0 O0 O0 n n"},
		{"after two", current("offline", "closed", 6, 8, history(stated(conn{2, 4}))), nil, "p F O1 O1 F F O0 O0 f0 f0 f0 n n"},
		{"only an inferred end separates", current("online", "connected", 7, 7, history(inferred(conn{2, 7}))), nil, "p F i1 i1 i1 i1 i1 O0 O0 O0 O0 n n"},
		{"an inferred end before", current("online", "connected", 7, 7, history(inferred(conn{2, 4}))), nil, "p F i1 i1 F F F O0 O0 O0 O0 n n"},
		{"an end that nobody knows", current("online", "connected", 7, 7, history(inferred(conn{2, 0}))), nil, "p F i1 i1 i1 i1 i1 O0 O0 O0 O0 n n"},
		{"an opening that nobody saw", current("online", "connected", 7, 7, history(stated(conn{0, 4}))), nil, "i1 i1 i1 i1 F F F O0 O0 O0 O0 n n"},
		{"an opening that nobody saw, after another", current("online", "connected", 8, 8, history(stated(conn{0, 6}), stated(conn{1, 3}))), nil,
			"p O2 O2 i1 i1 i1 F F O0 O0 O0 n n"},
		{"overlap by skew", current("online", "connected", 4, 4, history(stated(conn{2, 6}))), nil, "p F O1 O1 O1 O1 O0 O0 O0 O0 O0 n n"},
		{"an undecided one after another", current("unknown", "order_undecided", 6, 6, history(stated(conn{2, 4}))), nil, "p F O1 O1 F F s0 s0 s0 s0 s0 n n"},
		{"an opening unknown after another", current("online", "observed", 0, 8, history(stated(conn{2, 4}))), nil, "p F O1 O1 i0 i0 i0 i0 o0 o0 o0 n n"},
		{"three", current("offline", "closed", 8, 9, history(stated(conn{5, 6}), stated(conn{2, 3}))), nil, "p F O2 F F O1 F F O0 f0 f0 n n"},

		// What may be missing.
		{"history cut", current("online", "connected", 7, 7, &presencev1.History{
			Sessions: []*presencev1.HistorySession{stated(conn{5, 6})}, CompleteSinceMs: 5000,
		}), nil, "p p p p p O1 F O0 O0 O0 O0 n n"},
		{"history cut within a connection", current("online", "connected", 8, 8, &presencev1.History{
			Sessions: []*presencev1.HistorySession{stated(conn{3, 6})}, CompleteSinceMs: 5000,
		}), nil, "p p p O1 O1 O1 F F O0 O0 O0 n n"},
		{"not complete", current("online", "connected", 3, 3, nil), func(in *input) { in.h.Complete = false }, "p p p O0 O0 O0 O0 O0 O0 O0 O0 n n"},
		{"not complete, but known before", current("online", "connected", 7, 7, history(stated(conn{2, 4}))), func(in *input) { in.h.Complete = false },
			"p p O1 O1 F F F O0 O0 O0 O0 n n"},
		{"a node that began later", current("online", "connected", 6, 6, nil), func(in *input) { in.h.Nodes[1].StartedMs = 4000 }, "p p p p F F O0 O0 O0 O0 O0 n n"},
		{"a node that is gone", current("online", "connected", 6, 6, nil), func(in *input) {
			in.h.Nodes[1].Gone, in.h.Nodes[1].GoneMs = true, 5000
		}, "p p p p p F O0 O0 O0 O0 O0 n n"},

		// A gap that nothing has healed.
		{"gap while online", current("online", "connected", 3, 3, nil), gap(5, 7), "p F F O0 O0 g0 g0 g0 g0 g0 g0 n n"},
		{"gap that lasts", current("online", "connected", 3, 3, nil), gap(5, 0), "p F F O0 O0 g0 g0 g0 g0 g0 g0 n n"},
		{"gap before the opening", current("online", "connected", 6, 6, nil), gap(2, 4), "p F g g g g O0 O0 O0 O0 O0 n n"},
		{"gap up to the opening", current("online", "connected", 6, 6, nil), gap(2, 6), "p F g g g g O0 O0 O0 O0 O0 n n"},
		{"gap after the end", current("offline", "closed", 3, 5, nil), gap(7, 8), "p F F O0 O0 f0 f0 g g g g n n"},
		{"gap over the end", current("offline", "closed", 3, 5, nil), gap(4, 8), "p F F O0 O0 g g g g g g n n"},
		{"gap before the end", current("offline", "closed", 3, 8, nil), gap(4, 6), "p F F O0 O0 O0 O0 O0 f0 f0 f0 n n"},
		{"gap between two", current("online", "connected", 8, 8, history(stated(conn{1, 3}))), gap(5, 6), "p O1 O1 F F g g g O0 O0 O0 n n"},
		{"gap before both", current("online", "connected", 8, 8, history(stated(conn{3, 5}))), gap(1, 2), "p g g O1 O1 F F F O0 O0 O0 n n"},
		{"gap over a node that is silent", current("unknown", "node_silent", 3, 8, nil), both(aliveAt(6), gap(5, 0)), "p F F O0 O0 s0 s0 s0 s0 s0 s0 n n"},

		// A gap that was healed, and one that another bridge covers.
		{"healed gap after the end", current("offline", "closed", 3, 5, nil), healed(6, 8), "p F F O0 O0 f0 g g g f0 f0 n n"},
		{"healed gap between two", current("online", "connected", 8, 8, history(stated(conn{1, 3}))), healed(5, 6), "p O1 O1 F F g g F O0 O0 O0 n n"},
		{"healed gap within a connection", current("online", "connected", 3, 3, nil), healed(5, 7), "p F F O0 O0 O0 O0 O0 O0 O0 O0 n n"},
		{"facts dropped at a bound", current("offline", "closed", 3, 5, nil), func(in *input) {
			in.h.Feeds[0].DroppedFromMs, in.h.Feeds[0].DroppedToMs = 6000, 7000
		}, "p F F O0 O0 f0 g g f0 f0 f0 n n"},
		{"another bridge was there", current("offline", "closed", 3, 5, nil), both(healed(6, 8), other(0, 0)), "p F F O0 O0 f0 f0 f0 f0 f0 f0 n n"},
		{"another bridge came later", current("offline", "closed", 3, 5, nil), both(healed(6, 8), func(in *input) {
			other(0, 0)(in)
			in.h.Feeds[1].CompleteSinceMs = 7000
		}), "p F F O0 O0 f0 g g g f0 f0 n n"},
		{"another bridge was out, too", current("offline", "closed", 3, 5, nil), both(healed(6, 8), other(8, 9)), "p F F O0 O0 f0 g g g g f0 n n"},

		// What is not applied, or not heard.
		{"applied late", current("online", "connected", 3, 3, nil), func(in *input) { in.p.AppliedTimeMs = 5000 }, "p F F O0 O0 O0 n n n n n n n"},
		{"caught up since", current("online", "connected", 3, 3, nil), func(in *input) { in.p.CaughtUpTimeMs = 12_000 }, "p F F O0 O0 O0 O0 O0 O0 O0 O0 O0 O0"},
		{"nothing waits", current("online", "connected", 3, 3, nil), func(in *input) { in.p.AppliedOffset, in.p.EndOffset, in.p.EndOffsetTimeMs = 7, 7, 11_000 },
			"p F F O0 O0 O0 O0 O0 O0 O0 O0 O0 n"},
		{"something waits", current("online", "connected", 3, 3, nil), func(in *input) { in.p.AppliedOffset, in.p.EndOffset, in.p.EndOffsetTimeMs = 6, 7, 11_000 },
			"p F F O0 O0 O0 O0 O0 O0 O0 O0 n n"},
		{"catching up", current("online", "connected", 3, 3, nil), func(in *input) {
			in.p.Ready, in.p.AppliedOffset, in.p.EndOffset, in.p.EndOffsetTimeMs, in.p.CaughtUpTimeMs = false, 7, 7, 12_000, 12_000
		}, "p F F O0 O0 O0 O0 O0 O0 O0 O0 n n"},
		{"nothing is known of the partition", current("offline", "closed", 3, 5, nil), func(in *input) { in.p = nil }, "n n n O0 O0 n n n n n n n n"},
		{"feed down since 6", current("online", "connected", 3, 3, nil), func(in *input) { in.h.Feeds[0].Connected, in.h.Feeds[0].AliveMs = false, 6000 },
			"p F F O0 O0 O0 O0 g g g g n n"},
		{"a stated end, though the feed was down", current("offline", "closed", 3, 8, nil), func(in *input) { in.h.Feeds[0].Connected, in.h.Feeds[0].AliveMs = false, 6000 },
			"p F F O0 O0 O0 O0 O0 g g g n n"},
		{"no feed was ever heard", current("online", "connected", 3, 3, nil), func(in *input) { in.h.Feeds = nil }, "p g g g g g g g g g g n n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in := newInput()
			if c.change != nil {
				c.change(in)
			}
			past := pastOf(c.e)
			past.know(in.p, in.h, clock{now: time.UnixMilli(12_000), staleAfter: time.Second})
			var got []string
			for s := range int64(13) {
				got = append(got, letter(past.at(timestamppb.New(time.UnixMilli(s*1000))), c.e))
				// Up to the next stamp nothing changes.
				if within := letter(past.at(&timestamppb.Timestamp{Seconds: s, Nanos: 999_999}), c.e); within != got[s] {
					t.Errorf("%d s: %s, and %s a moment later", s, got[s], within)
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("\ngot  %s\nwant %s", strings.Join(got, " "), c.want)
			}
		})
	}
}

// input is what an answer is made of besides the client's entry.
type input struct {
	p *presencev1.PartitionFreshness
	h *presencev1.ClusterHealth
}

func newInput() *input {
	return &input{
		p: &presencev1.PartitionFreshness{Ready: true, AppliedOffset: 5, EndOffset: 7, AppliedTimeMs: 10_000, EndOffsetTimeMs: 5000},
		h: &presencev1.ClusterHealth{
			Complete: true,
			Nodes:    []*presencev1.NodeHealth{{Node: "n1", StartedMs: 1000, AliveMs: 12_000}, {Node: "n2", StartedMs: 500, AliveMs: 12_000}},
			Feeds:    []*presencev1.FeedHealth{{Bridge: "b1", Connected: true, AliveMs: 12_000, LeaseMs: 1000}},
		},
	}
}

func aliveAt(seconds int64) func(*input) {
	return func(in *input) { in.h.Nodes[0].AliveMs = seconds * 1000 }
}

// healed is an interruption of the first bridge that something has healed since.
func healed(from, to int64) func(*input) {
	return func(in *input) {
		f := in.h.Feeds[0]
		f.GapFromMs, f.GapToMs, f.CompleteSinceMs = from*1000, to*1000, to*1000
	}
}

// other is a second bridge, with an interruption of its own if from is not 0.
func other(from, to int64) func(*input) {
	return func(in *input) {
		in.h.Feeds = append(in.h.Feeds, &presencev1.FeedHealth{
			Bridge: "b2", Connected: true, AliveMs: 12_000, LeaseMs: 1000, CompleteSinceMs: 1000, GapFromMs: from * 1000, GapToMs: to * 1000,
		})
	}
}

func both(a, b func(*input)) func(*input) {
	return func(in *input) {
		a(in)
		b(in)
	}
}

func connectedAt(seconds int64) *presencev1.Connection {
	return &presencev1.Connection{Key: fmt.Sprint("k", seconds), ConnectedAtMs: seconds * 1000}
}

func none(status, reason string, since int64, h *presencev1.History) *presencev1.StateEntry {
	return &presencev1.StateEntry{Found: true, Status: status, StatusReason: reason, SinceMs: since * 1000, History: h}
}

func letter(v *presencev1.StatusAt, e *presencev1.StateEntry) string {
	l := map[string]string{
		"online connected": "O", "offline not_connected": "F", "unknown inferred": "i", "unknown history_pruned": "p", "unknown feed_gap": "g", "unknown not_applied": "n",
	}[v.GetStatus()+" "+v.GetReason()]
	if l == "p" && v.Session != nil {
		l = "s"
	}
	if l == "" && v.GetReason() == e.GetStatusReason() {
		l = map[string]string{"online": "o", "offline": "f", "unknown": "s"}[v.GetStatus()]
	}
	if v.Session != nil {
		l += fmt.Sprint(v.GetSession())
	}
	return l
}
