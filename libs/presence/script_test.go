package presence

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// TestScripts runs testdata/*: "fold" folds one fact a line into the state of the script so far and prints each outcome and the status
// after the last; "feed" prints what the bridges say of their own subscriptions; "new" forgets everything. Whatever the script's order, every fold also checks L1: the state must not depend on it.
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		var s script
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			switch d.Cmd {
			case "new":
				s = script{dialect: DialectEMQX}
				d.MaybeScanArgs(t, "dialect", &s.dialect)
				return ""
			case "fold":
				return s.fold(t, d.Input)
			case "feed":
				from, to, open := s.cluster.FeedGap()
				return fmt.Sprintf("complete=%t gap=%t from %d to %d\n", s.cluster.FeedComplete(), open, from, to)
			default:
				t.Fatalf("unknown command %s", d.Cmd)
				return ""
			}
		})
	})
}

type script struct {
	dialect string
	facts   []Fact
	state   State
	cluster Cluster
}

func (s *script) fold(t *testing.T, input string) string {
	var out strings.Builder
	for line := range strings.Lines(input) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		args := map[string]string{}
		for _, w := range words[1:] {
			k, v, _ := strings.Cut(w, "=")
			args[k] = v
		}
		if f, ok := s.nodeFact(t, words[0], args); ok {
			fmt.Fprintf(&out, "%s: affects=%t\n", words[0], s.cluster.Apply(&f))
			continue
		}
		f := s.fact(t, words[0], args)
		s.facts = append(s.facts, f)
		fmt.Fprintf(&out, "%s: %s\n", words[0], s.state.Apply(&f))
	}
	s.checkConvergence(t)
	out.WriteString(describe(Status(&s.state, &s.cluster, DefaultAllowanceMS)))
	return out.String()
}

func describe(v Verdict) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s)", v.Status, v.Reason)
	if v.Status == Unknown {
		fmt.Fprintf(&b, " belief %s", v.Belief)
	}
	if v.Conn != nil {
		fmt.Fprintf(&b, " %s/%s", v.Node, v.Conn.Key)
	}
	if v.SinceMS != 0 {
		fmt.Fprintf(&b, " since %d", v.SinceMS)
	}
	if v.Close != ReasonUnknown {
		fmt.Fprintf(&b, " %s", v.Close)
	}
	b.WriteString("\n")
	return b.String()
}

func number(t *testing.T, s string) int64 {
	t.Helper()
	if s == "" {
		return 0
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func (s *script) fact(t *testing.T, kind string, a map[string]string) Fact {
	f := Fact{Cluster: "default", ClientID: "c", Dialect: s.dialect, Node: a["node"], Connection: a["key"], TimeMS: number(t, a["at"]),
		Order: uint32(number(t, a["order"])), Username: a["user"], Peer: a["peer"], Transport: a["transport"], Reason: ParseReason(a["reason"]),
		ConnectedAtMS: number(t, a["connected"])}
	f.ReceivedMS = f.TimeMS + 1
	if a["received"] != "" {
		f.ReceivedMS = number(t, a["received"])
	}
	if a["dialect"] != "" {
		f.Dialect = a["dialect"]
	}
	if a["clean"] != "" {
		f.CleanStart = Some(a["clean"] == "true")
	}
	keyed := ProfileOf(f.Dialect).NamesOpening
	switch kind {
	case "opened":
		f.Kind = Opened
		if keyed && f.Connection == "" {
			f.ConnectedAtMS, f.Connection = f.TimeMS, strconv.FormatInt(f.TimeMS, 10)
		}
	case "closed":
		f.Kind = Closed
		if keyed && f.ConnectedAtMS != 0 {
			f.Connection = strconv.FormatInt(f.ConnectedAtMS, 10)
		}
	case "observed":
		f.Kind, f.QueryStartMS, f.QueryEndMS, f.Online = Observed, f.TimeMS, f.TimeMS+1, Some(a["online"] == "true")
	case "forgotten":
		f.Kind, f.AsOfMS = Forgotten, f.TimeMS
	default:
		t.Fatalf("unknown fact %s", kind)
	}
	f.SetID()
	return f
}

func (s *script) nodeFact(t *testing.T, kind string, a map[string]string) (NodeFact, bool) {
	f := NodeFact{Cluster: "default", Node: a["node"], Bridge: "b" + a["bridge"], ReceivedMS: number(t, a["received"]), StartedMS: number(t, a["started"]),
		StartedReceivedMS: number(t, a["started"]), CompleteSinceMS: number(t, a["complete"]), GapFromMS: number(t, a["from"]), GapToMS: number(t, a["to"]),
		SetBackFromMS: number(t, a["back-from"]), SetBackToMS: number(t, a["back-to"]),
		ResyncedMS: number(t, a["resynced"]), DroppedFromMS: number(t, a["dropped-from"]), DroppedToMS: number(t, a["dropped-to"]), LeaseMS: number(t, a["lease"])}
	if a["covered"] != "" {
		for _, span := range strings.Split(a["covered"], ",") {
			from, to, _ := strings.Cut(span, "-")
			f.Covered.Add(number(t, from), number(t, to))
		}
	}
	if a["started-received"] != "" {
		f.StartedReceivedMS = number(t, a["started-received"])
	}
	name, ok := strings.CutPrefix(kind, "node-")
	if !ok && kind != "feed" {
		return f, false
	}
	if kind == "feed" {
		name = kind
	}
	f.Kind = ParseNodeKind(name)
	if f.Kind == NodeUnknown {
		t.Fatalf("unknown node fact %s", kind)
	}
	return f, true
}

// checkConvergence folds all facts so far in other orders, with duplicates, and through the encoded form between batches.
func (s *script) checkConvergence(t *testing.T) {
	t.Helper()
	want := string(s.state.Append(nil))
	rng := rand.New(rand.NewPCG(1, uint64(len(s.facts))))
	for range 50 {
		if got := string(foldShuffled(t, rng, s.facts)); got != want {
			t.Fatalf("state depends on the order of the facts:\n%x\n%x", got, want)
		}
	}
}

// foldShuffled returns the encoded state of facts folded in a random order, each once or more, in random batches.
func foldShuffled(t failer, rng *rand.Rand, facts []Fact) []byte {
	t.Helper()
	order := slices.Clone(facts)
	for _, f := range facts {
		if rng.IntN(3) == 0 {
			f.ReceivedMS += rng.Int64N(1000)
			order = append(order, f)
		}
	}
	rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
	var st State
	for i := range order {
		st.Apply(&order[i])
		if rng.IntN(2) == 0 {
			continue
		}
		decoded, err := DecodeState(st.Append(nil))
		if err != nil {
			t.Fatalf("decode: %v", err)
		}
		st = decoded
	}
	return st.Append(nil)
}

// failer is what testing.T and rapid.T have in common.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}
