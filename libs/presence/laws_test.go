package presence

import (
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"testing"

	"pgregory.net/rapid"
)

// anyFact draws facts from few values, so that they meet: same keys, equal stamps, other nodes, all kinds and dialects, nonsense included.
func anyFact(t *rapid.T) Fact {
	ms := rapid.SampledFrom([]int64{0, 1, 1000, 1000, 1001, 2000, 2000, 3000, 5000, 9000, MaxAgeMS, MaxAgeMS + 2000, 2*MaxAgeMS + 5000, 2 * AWSSkewMS, 2*AWSSkewMS + 1000, 2*AWSSkewMS + 2000})
	f := Fact{
		Kind:          rapid.SampledFrom([]Kind{Opened, Opened, Opened, Closed, Closed, Closed, Closed, Observed, Forgotten, KindUnknown}).Draw(t, "kind"),
		Cluster:       "default",
		ClientID:      "c",
		Dialect:       rapid.SampledFrom([]string{DialectEMQX, DialectEMQX50, DialectMosquitto20, DialectAWS, DialectRMQTT, DialectTDMQ, "other"}).Draw(t, "dialect"),
		Node:          rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "node"),
		TimeMS:        ms.Draw(t, "time"),
		Order:         rapid.Uint32Range(0, 4).Draw(t, "order"),
		ReceivedMS:    ms.Draw(t, "received"),
		Username:      rapid.SampledFrom([]string{"", "u", "v"}).Draw(t, "username"),
		Peer:          rapid.SampledFrom([]string{"", "192.0.2.1:1", "192.0.2.1:2"}).Draw(t, "peer"),
		Transport:     rapid.SampledFrom([]string{"", "tcp", "websocket"}).Draw(t, "transport"),
		Reason:        Reason(rapid.Uint8Range(0, uint8(ReasonOther)).Draw(t, "reason")),
		Online:        Some(rapid.Bool().Draw(t, "online")),
		QueryStartMS:  ms.Draw(t, "query start"),
		AsOfMS:        rapid.SampledFrom([]int64{0, 500, 1000, 1500}).Draw(t, "as of"),
		ConnectedAtMS: rapid.SampledFrom([]int64{0, 0, 1000, 2000, 3000}).Draw(t, "connected at"),
	}
	switch rapid.IntRange(0, 2).Draw(t, "key") {
	case 0:
		f.Connection = strconv.FormatInt(f.ConnectedAtMS, 10)
	case 1:
		f.Connection = rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key name")
	}
	if rapid.Bool().Draw(t, "keep alive known") {
		f.KeepAliveS = Some(rapid.Uint32Range(0, 2).Draw(t, "keep alive"))
	}
	f.SetID()
	return f
}

// TestConvergence_H1_H2 is L1: order, duplicates and batches make no difference. L9 goes along: nothing panics.
func TestConvergence_H1_H2(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		facts := rapid.SliceOfN(rapid.Custom(anyFact), 1, 40).Draw(t, "facts")
		var st State
		for i := range facts {
			if o := st.Apply(&facts[i]); o >= NumOutcomes {
				t.Fatalf("outcome %d", o)
			}
		}
		want := string(st.Append(nil))
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		for range 4 {
			if got := string(foldShuffled(t, rng, facts)); got != want {
				t.Fatalf("state depends on the order of the facts:\n%x\n%x", got, want)
			}
		}
		if v := Status(&st, nil, DefaultAllowanceMS); v.Belief != Online && v.Belief != Offline {
			t.Fatalf("no belief: %+v", v)
		}
		for i := range st.Nodes {
			if len(st.Nodes[i].Closes) > MaxCloses {
				t.Fatalf("%d closes kept", len(st.Nodes[i].Closes))
			}
		}
	})
}

// TestConvergenceOfEqualStamps_H8 is L1 where it is hardest: more closes than are kept, within two seconds, with and without their order.
func TestConvergenceOfEqualStamps_H8(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		facts := make([]Fact, 0, 48)
		for range rapid.IntRange(15, 45).Draw(t, "facts") {
			f := Fact{Kind: Closed, Dialect: DialectMosquitto20, Node: "m", TimeMS: rapid.SampledFrom([]int64{1000, 2000}).Draw(t, "time"),
				Order:  rapid.SampledFrom([]uint32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21}).Draw(t, "order"),
				Reason: rapid.SampledFrom([]Reason{ReasonNormal, ReasonTakenOver}).Draw(t, "reason")}
			if rapid.IntRange(0, 9).Draw(t, "kind") == 0 {
				f.Kind, f.Transport = Opened, "tcp"
			}
			facts = append(facts, f)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		want := string(foldShuffled(t, rng, facts))
		for range 4 {
			if got := string(foldShuffled(t, rng, facts)); got != want {
				t.Fatalf("state depends on the order of the facts:\n%x\n%x", got, want)
			}
		}
	})
}

// TestClusterConvergence is L1 for the table of nodes and feeds.
func TestClusterConvergence(t *testing.T) {
	anyMS := rapid.SampledFrom([]int64{0, 1000, 1000, 2000, 3000})
	anyNodeFact := func(t *rapid.T) NodeFact {
		return NodeFact{
			Kind: NodeKind(rapid.Uint8Range(0, uint8(Feed)).Draw(t, "kind")), Node: rapid.SampledFrom([]string{"a", "b"}).Draw(t, "node"),
			Bridge: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "bridge"), Dialect: rapid.SampledFrom([]string{"", DialectEMQX}).Draw(t, "dialect"),
			ReceivedMS: anyMS.Draw(t, "received"), UptimeMS: Some(anyMS.Draw(t, "uptime")), StartedMS: anyMS.Draw(t, "started"),
			StartedReceivedMS: anyMS.Draw(t, "started received"), CompleteSinceMS: anyMS.Draw(t, "complete since"), GapFromMS: anyMS.Draw(t, "gap from"),
			GapToMS: anyMS.Draw(t, "gap to"), ResyncedMS: anyMS.Draw(t, "resynced"), DroppedFromMS: anyMS.Draw(t, "dropped from"),
			DroppedToMS: anyMS.Draw(t, "dropped to"), SetBackFromMS: anyMS.Draw(t, "set back from"), SetBackToMS: anyMS.Draw(t, "set back to"),
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		facts := rapid.SliceOfN(rapid.Custom(anyNodeFact), 1, 20).Draw(t, "facts")
		var want, got Cluster
		for i := range facts {
			want.Apply(&facts[i])
		}
		order := rapid.Permutation(append(slices.Clone(facts), facts...)).Draw(t, "order")
		for i := range order {
			got.Apply(&order[i])
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("the table depends on the order of the facts:\n%+v\n%+v", got, want)
		}
	})
}

// TestFeedsOfOneInstant has two values of a feed that differ in what is no business of a feed.
func TestFeedsOfOneInstant(t *testing.T) {
	a := NodeFact{Kind: Feed, Bridge: "x", Node: "a", ReceivedMS: 2000, UptimeMS: Some[int64](1000), StartedMS: 1000}
	b := NodeFact{Kind: Feed, Bridge: "x", ReceivedMS: 2000, UptimeMS: Some[int64](2000), StartedReceivedMS: 3000, SetBackFromMS: 2000, SetBackToMS: 1000}
	var ab, ba Cluster
	ab.Apply(&a)
	ab.Apply(&b)
	ba.Apply(&b)
	ba.Apply(&a)
	if !reflect.DeepEqual(ab, ba) {
		t.Errorf("the table depends on the order of the facts:\n%+v\n%+v", ab, ba)
	}
}

// TestCodecRoundTrip decodes what Append wrote into the same state.
func TestCodecRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var st State
		for _, f := range rapid.SliceOfN(rapid.Custom(anyFact), 0, 30).Draw(t, "facts") {
			st.Apply(&f)
		}
		got, err := DecodeState(st.Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		if string(got.Append(nil)) != string(st.Append(nil)) {
			t.Fatalf("%+v became %+v", st, got)
		}
		if len(st.Nodes) > 0 && len(st.Nodes[0].Closes) == 0 && !reflect.DeepEqual(got.Nodes[0], normal(st.Nodes[0])) {
			t.Fatalf("%+v became %+v", st.Nodes[0], got.Nodes[0])
		}
	})
}

// normal clears what a connection that was not seen does not have.
func normal(n NodeState) NodeState {
	if len(n.Closes) == 0 {
		n.Closes = nil
	}
	if len(n.Marks) == 0 {
		n.Marks = nil
	}
	if len(n.Earlier) == 0 {
		n.Earlier = nil
	}
	return n
}

// FuzzDecodeState must not panic, and what it accepts must encode to something that decodes.
func FuzzDecodeState(f *testing.F) {
	var st State
	st.Apply(&Fact{Kind: Opened, Dialect: DialectEMQX, Node: "a", TimeMS: 1000, ConnectedAtMS: 999, Connection: "999", ReceivedMS: 1001, Username: "u"})
	f.Add(st.Append(nil))
	f.Add([]byte{stateFormat})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := DecodeState(b)
		if err != nil {
			return
		}
		if _, err := DecodeState(s.Append(nil)); err != nil {
			t.Fatalf("%x: %v", b, err)
		}
		Status(&s, nil, DefaultAllowanceMS)
	})
}

// TestKeyedExactness_H2_H3_H7_H9 is L2 for a keyed dialect that emits a Closed on takeover: with every fact delivered, in any order, and clocks that
// differ by less than the allowance, the status is the truth.
func TestKeyedExactness_H2_H3_H7_H9(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := []string{"a", "b", "c"}
		skew := map[string]int64{}
		for _, n := range nodes {
			skew[n] = rapid.Int64Range(-900, 900).Draw(t, "skew "+n)
		}
		now, liveNode, liveAt := int64(1_000_000), "", int64(0)
		var facts []Fact
		end := func(r Reason) {
			f := Fact{Kind: Closed, Cluster: "default", ClientID: "c", Dialect: DialectEMQX, Node: liveNode, Connection: strconv.FormatInt(liveAt, 10),
				ConnectedAtMS: liveAt, DisconnectedAtMS: now + skew[liveNode], TimeMS: now + skew[liveNode], ReceivedMS: now, Reason: r}
			f.SetID()
			facts = append(facts, f)
			liveNode = ""
		}
		for range rapid.IntRange(1, 20).Draw(t, "steps") {
			now += rapid.SampledFrom([]int64{1, 1, 50, 1000, 5000}).Draw(t, "pause")
			if liveNode != "" && rapid.Bool().Draw(t, "close") {
				end(ReasonConnectionLost)
				continue
			}
			if liveNode != "" {
				end(ReasonTakenOver)
				now++
			}
			liveNode = rapid.SampledFrom(nodes).Draw(t, "node")
			liveAt = now + skew[liveNode]
			f := Fact{Kind: Opened, Cluster: "default", ClientID: "c", Dialect: DialectEMQX, Node: liveNode, Connection: strconv.FormatInt(liveAt, 10),
				ConnectedAtMS: liveAt, TimeMS: liveAt + 1, ReceivedMS: now}
			f.SetID()
			facts = append(facts, f)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		st, err := DecodeState(foldShuffled(t, rng, facts))
		if err != nil {
			t.Fatal(err)
		}
		want := Offline
		if liveNode != "" {
			want = Online
		}
		v := Status(&st, nil, DefaultAllowanceMS)
		if v.Status != want || want == Online && (v.Node != liveNode || v.Conn.OpenedMS != liveAt) {
			t.Fatalf("status %s (%s) of %s/%d, truth %s %s/%d", v.Status, v.Reason, v.Node, v.Conn.OpenedMS, want, liveNode, liveAt)
		}
	})
}
