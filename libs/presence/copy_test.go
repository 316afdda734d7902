package presence

import (
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// forgetful returns a copy of a fact as a bridge may write it whose session has not seen all that came before.
func forgetful(t *rapid.T, f Fact) Fact {
	for name, forget := range map[string]func(){
		"transport":        func() { f.Transport = "" },
		"username":         func() { f.Username = "" },
		"protocol version": func() { f.ProtocolVersion = 0 },
		"keep alive":       func() { f.KeepAliveS = Opt[uint32]{} },
		"clean start":      func() { f.CleanStart = Opt[bool]{} },
		"session expiry":   func() { f.SessionExpiryS = Opt[uint32]{} },
	} {
		if rapid.Bool().Draw(t, "without "+name) {
			forget()
		}
	}
	f.SetID()
	return f
}

// described draws an Opened of which everything is known.
func described(t *rapid.T) Fact {
	f := Fact{
		Kind: Opened, Cluster: "default", ClientID: "c", Dialect: rapid.SampledFrom([]string{DialectMosquitto20, DialectEMQX, DialectRMQTT}).Draw(t, "dialect"), Node: "m",
		TimeMS: rapid.Int64Range(1, 50).Draw(t, "seconds") * 1000, Order: rapid.Uint32Range(0, 2).Draw(t, "order"), ReceivedMS: 60_000,
		Peer:     rapid.SampledFrom([]string{"192.0.2.1:1", "192.0.2.1:2"}).Draw(t, "peer"),
		Username: rapid.SampledFrom([]string{"u", "v"}).Draw(t, "username"), Transport: rapid.SampledFrom([]string{"tcp", "websocket", "quic"}).Draw(t, "transport"),
		ProtocolVersion: rapid.Uint8Range(3, 5).Draw(t, "protocol"), KeepAliveS: Some(rapid.Uint32Range(0, 1).Draw(t, "keep alive")),
		CleanStart: Some(rapid.Bool().Draw(t, "clean")), SessionExpiryS: Some(rapid.Uint32Range(0, 1).Draw(t, "expiry")),
	}
	if f.Dialect != DialectMosquitto20 {
		f.Connection = rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "key")
	}
	f.SetID()
	return f
}

// TestCopiesConverge_H2 is L1 for copies that differ in what one does not know.
func TestCopiesConverge_H2(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var facts []Fact
		for _, f := range rapid.SliceOfN(rapid.Custom(described), 1, 40).Draw(t, "facts") {
			for range rapid.IntRange(1, 3).Draw(t, "copies") {
				c := forgetful(t, f)
				if !c.CopyOf(&f) || !f.CopyOf(&c) || c.ID != f.ID {
					t.Fatalf("no copies:\n%+v\n%+v", f, c)
				}
				facts = append(facts, c)
			}
		}
		for range rapid.IntRange(0, 10).Draw(t, "closes") {
			facts = append(facts, Fact{Kind: Closed, Dialect: DialectMosquitto20, Node: "m", TimeMS: rapid.Int64Range(1, 51).Draw(t, "closed") * 1000,
				Reason: rapid.SampledFrom([]Reason{ReasonTakenOver, ReasonConnectionLost}).Draw(t, "reason")})
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

// TestCopiesKnowTogether has two copies of an Opened that know everything between them: the state does as well, and so does the answer, now and when the
// connection is only the one before.
func TestCopiesKnowTogether(t *testing.T) {
	whole := Fact{Kind: Opened, Dialect: DialectMosquitto20, Node: "m", TimeMS: 1000, Order: 1, ReceivedMS: 1001, Peer: "192.0.2.1:1", Username: "u",
		Transport: "tcp", ProtocolVersion: 4, KeepAliveS: Some[uint32](0), CleanStart: Some(false), SessionExpiryS: Some[uint32](0)}
	half, rest := whole, whole
	half.Transport, half.KeepAliveS, half.CleanStart = "", Opt[uint32]{}, Opt[bool]{}
	rest.Username, rest.ProtocolVersion, rest.SessionExpiryS = "", 0, Opt[uint32]{}
	next := Fact{Kind: Opened, Dialect: DialectMosquitto20, Node: "m", TimeMS: 5000, Order: 1, ReceivedMS: 5001, Peer: "192.0.2.1:2", Transport: "tcp"}
	lost := Fact{Kind: Closed, Dialect: DialectMosquitto20, Node: "m", TimeMS: 9000, Order: 1, ReceivedMS: 9001, Reason: ReasonConnectionLost}
	var want State
	want.Apply(&whole)
	for _, copies := range [][]Fact{{half, rest}, {rest, half}, {half, whole}, {half, rest, half}} {
		var st State
		for i := range copies {
			st.Apply(&copies[i])
		}
		if string(st.Append(nil)) != string(want.Append(nil)) {
			t.Errorf("%+v, want %+v", st, want)
		}
	}
	for _, others := range [][]Fact{{lost}, {next, lost}} {
		facts := append([]Fact{half, rest}, others...)
		rng := rand.New(rand.NewPCG(1, 1))
		for range 50 {
			rng.Shuffle(len(facts), func(i, j int) { facts[i], facts[j] = facts[j], facts[i] })
			var st State
			for i := range facts {
				st.Apply(&facts[i])
			}
			if v := Status(&st, nil, DefaultAllowanceMS); v.Status != Offline {
				t.Fatalf("%s (%s) after %+v", v.Status, v.Reason, facts)
			}
		}
	}
	unordered := half
	unordered.Order = 0
	if v := Status(fold([]Fact{whole, unordered, next, lost}), nil, DefaultAllowanceMS); v.Status != Offline {
		t.Errorf("%s (%s) although of one connection the transport is known from the fact that has an order", v.Status, v.Reason)
	}
	if facts := slices.Clone([]Fact{half, next, lost}); Status(fold(facts), nil, DefaultAllowanceMS).Status != Unknown {
		t.Error("without the copy that knows the transport the dead socket is certain")
	}
}

func fold(facts []Fact) *State {
	var st State
	for i := range facts {
		st.Apply(&facts[i])
	}
	return &st
}

// TestNoCopies lists what copies of one fact never differ in.
func TestNoCopies(t *testing.T) {
	f := Fact{ID: "1", Kind: Opened, Dialect: DialectMosquitto20, Username: "u", Transport: "tcp", KeepAliveS: Some[uint32](1), TimeMS: 1}
	for name, spoil := range map[string]func(*Fact){
		"ID":         func(f *Fact) { f.ID = "2" },
		"time":       func(f *Fact) { f.TimeMS = 2 },
		"peer":       func(f *Fact) { f.Peer = "192.0.2.1:1" },
		"order":      func(f *Fact) { f.Order = 1 },
		"username":   func(f *Fact) { f.Username = "v" },
		"transport":  func(f *Fact) { f.Transport = "websocket" },
		"keep alive": func(f *Fact) { f.KeepAliveS.Value = 2 },
		"dialect":    func(f *Fact) { f.Dialect = DialectEMQX },
	} {
		g := f
		spoil(&g)
		if f.CopyOf(&g) || g.CopyOf(&f) {
			t.Errorf("copies may differ in their %s", name)
		}
	}
}
