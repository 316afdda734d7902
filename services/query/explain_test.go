package query_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files")

// t0 is where the histories of this file begin: 2025-10-09T08:53:20Z.
const t0 = int64(1_760_000_000_000)

// history is what brokers and bridges said, seconds after t0.
type history struct {
	facts []presence.Fact
	nodes []presence.NodeFact
}

func (h *history) fact(f presence.Fact) {
	f.Cluster, f.ClientID = "default", "dev1"
	f.ReceivedMS = f.TimeMS + 12
	h.facts = append(h.facts, f)
}

func emqxOpened(node, key string, second int64) presence.Fact {
	return presence.Fact{Kind: presence.Opened, Dialect: "emqx", Node: node, Connection: key, TimeMS: t0 + 1000*second + 1, ConnectedAtMS: t0 + 1000*second}
}

func emqxClosed(o presence.Fact, second int64, reason presence.Reason, raw string) presence.Fact {
	o.Kind, o.Reason, o.RawReason = presence.Closed, reason, raw
	o.TimeMS, o.DisconnectedAtMS = t0+1000*second+1, t0+1000*second
	return o
}

func mosquitto(kind presence.Kind, second int64, order uint32) presence.Fact {
	return presence.Fact{Kind: kind, Dialect: "mosquitto-2.0", Node: "mosquitto", TimeMS: t0 + 1000*second, Order: order}
}

func started(node string, second int64) presence.NodeFact {
	ms := t0 + 1000*second
	return presence.NodeFact{Kind: presence.NodeStarted, Cluster: "default", Node: node, Dialect: "emqx", TimeMS: ms, ReceivedMS: ms, StartedMS: ms, StartedReceivedMS: ms}
}

// feed is a bridge that has been connected since a second, and always is within its lease.
func feed(since int64) presence.NodeFact {
	return presence.NodeFact{Kind: presence.Feed, Cluster: "default", Bridge: "b1", TimeMS: t0, ReceivedMS: t0, CompleteSinceMS: t0 + 1000*since, LeaseMS: 1 << 50}
}

var explanations = map[string]func(h *history, r *presencev1.GetStatesResponse){
	"takeover": func(h *history, _ *presencev1.GetStatesResponse) {
		first, second := emqxOpened("n1", "1760000010000", 10), emqxOpened("n1", "1760000020000", 20)
		h.fact(first)
		h.fact(second)
		h.fact(emqxClosed(first, 21, presence.ReasonTakenOver, "takenover"))
		h.nodes = append(h.nodes, started("n1", 0), feed(-10))
	},
	"close_ambiguous": func(h *history, _ *presencev1.GetStatesResponse) {
		h.fact(mosquitto(presence.Opened, 10, 1))
		stranger := mosquitto(presence.Closed, 30, 2)
		stranger.Reason, stranger.RawReason = presence.ReasonNotAuthorized, "not authorised"
		h.fact(stranger)
		h.nodes = append(h.nodes, feed(-10))
	},
	"closed_unkeyed": func(h *history, _ *presencev1.GetStatesResponse) {
		h.fact(mosquitto(presence.Opened, 10, 1))
		end := mosquitto(presence.Closed, 30, 2)
		end.Reason = presence.ReasonNormal
		h.fact(end)
		h.nodes = append(h.nodes, feed(-10))
	},
	"closed": func(h *history, _ *presencev1.GetStatesResponse) {
		open := emqxOpened("n1", "1760000010000", 10)
		h.fact(open)
		h.fact(open)
		h.fact(emqxClosed(open, 100, presence.ReasonKeepAliveTimeout, "keepalive_timeout"))
		h.nodes = append(h.nodes, started("n1", 0), feed(-10))
	},
	"older_connection_open": func(h *history, _ *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "1760000010000", 10))
		// Of the newer one, elsewhere, only the end was seen.
		h.fact(emqxClosed(emqxOpened("n2", "1760000050000", 50), 60, presence.ReasonNormal, "normal"))
		h.nodes = append(h.nodes, started("n1", 0), started("n2", 0), feed(-10))
	},
	"earlier_connection": func(h *history, r *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "1760000010000", 10))
		h.fact(emqxOpened("n1", "1760000020000", 20))
		h.nodes = append(h.nodes, started("n1", 0), feed(-10))
		// As where the clock of the node was set back.
		r.Entries = []*presencev1.StateEntry{{Connection: &presencev1.Connection{Key: "1760000010000", ConnectedAtMs: t0 + 10_000}, Evidence: &presencev1.Evidence{}}}
	},
	"node_restarted": func(h *history, _ *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "1760000010000", 10))
		h.nodes = append(h.nodes, started("n1", 60), feed(-10))
	},
	"node_silent_in_a_gap": func(h *history, r *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "1760000010000", 10))
		silent := started("n1", 90)
		silent.Kind = presence.NodeSilent
		down := feed(0)
		down.CompleteSinceMS, down.GapFromMS = 0, t0+80_000
		h.nodes = append(h.nodes, started("n1", 0), silent, down)
		// The materializer's store was filled from client-state.
		r.Entries = []*presencev1.StateEntry{{Evidence: &presencev1.Evidence{LoggedFrom: 7}}}
	},
	"observed": func(h *history, r *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "1760000010000", 10))
		asked := presence.Fact{Kind: presence.Observed, Dialect: "emqx", TimeMS: t0 + 100_000, Online: presence.Some(false),
			QueryStartMS: t0 + 99_000, QueryEndMS: t0 + 99_020, Source: "emqx-api"}
		h.fact(asked)
		h.nodes = append(h.nodes, started("n1", 0), feed(5))
		r.Entries = []*presencev1.StateEntry{{Evidence: &presencev1.Evidence{Cut: true}}}
	},
	"no_node": func(h *history, _ *presencev1.GetStatesResponse) {
		h.fact(presence.Fact{Kind: presence.Observed, Dialect: "status-topic", TimeMS: t0 + 10_000, Online: presence.Some(true),
			QueryStartMS: t0 + 10_000, QueryEndMS: t0 + 10_000, Source: "retained"})
		h.fact(presence.Fact{Kind: presence.Closed, Dialect: "status-topic", TimeMS: t0 + 60_000, Reason: presence.ReasonConnectionLost, RawReason: "Offline"})
		h.nodes = append(h.nodes, feed(5))
	},
	"end_of_another": func(h *history, _ *presencev1.GetStatesResponse) {
		f := presence.Fact{Kind: presence.Opened, Dialect: "custom-reusable", Node: "n1", Connection: "k1", TimeMS: t0 + 10_000}
		h.fact(f)
		f.Kind, f.Connection, f.TimeMS, f.Reason = presence.Closed, "k2", t0+20_000, presence.ReasonNormal
		h.fact(f)
		h.nodes = append(h.nodes, feed(5))
	},
	"equal_stamps": func(h *history, _ *presencev1.GetStatesResponse) {
		h.fact(mosquitto(presence.Opened, 10, 0))
		end := mosquitto(presence.Closed, 10, 0)
		end.Reason = presence.ReasonNormal
		h.fact(end)
		h.nodes = append(h.nodes, feed(-10))
	},
	"never_seen": func(h *history, _ *presencev1.GetStatesResponse) {
		h.nodes = append(h.nodes, started("n1", 0), feed(-10))
	},
	"never_seen_incomplete": func(h *history, _ *presencev1.GetStatesResponse) {
		h.nodes = append(h.nodes, started("n1", 0), feed(10))
	},
	"never_seen_no_cluster": func(*history, *presencev1.GetStatesResponse) {},
	"older_materializer": func(h *history, r *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "k", 1))
		r.Entries = []*presencev1.StateEntry{{}}
	},
	"evidence_is_turned_off": func(h *history, r *presencev1.GetStatesResponse) {
		h.fact(emqxOpened("n1", "k", 1))
		r.Entries = []*presencev1.StateEntry{{Evidence: &presencev1.Evidence{LoggedFrom: -1}}}
	},
}

func TestExplanation(t *testing.T) {
	for name, build := range explanations {
		t.Run(name, func(t *testing.T) {
			h, like := &history{}, &presencev1.GetStatesResponse{}
			build(h, like)
			fake := readertest.NewFake(1)
			fake.Apply(h.facts...)
			fake.ApplyNodes(h.nodes...)
			fake.Edit(func(r *presencev1.GetStatesResponse) error {
				if len(like.GetEntries()) == 0 {
					return nil
				}
				e := r.GetEntries()[0]
				if c := like.GetEntries()[0].GetConnection(); c != nil {
					e.Connection = c
				}
				want := like.GetEntries()[0].GetEvidence()
				switch {
				case want == nil:
					e.Evidence = nil
				case want.GetLoggedFrom() < 0:
					e.Evidence = &presencev1.Evidence{State: e.GetEvidence().GetState(), LoggedFrom: -1}
				default:
					e.Evidence.LoggedFrom, e.Evidence.Cut = want.GetLoggedFrom(), want.GetCut()
				}
				return nil
			})
			s := serve(t, testConfig(t), fake)
			a := s.do("GET", "/v1/clients/dev1/explanation", "read", "")
			overGRPC, err := s.rpc.ExplainClient(as(t, "read"), &presencev1.ExplainClientRequest{ClientId: "dev1"})
			if strings.HasPrefix(name, "never_seen") {
				if a.status != http.StatusNotFound || status.Code(err) != codes.NotFound {
					t.Errorf("REST answers %d, gRPC %v", a.status, err)
				}
			} else {
				overREST := &presencev1.Explanation{}
				if err := protojson.Unmarshal([]byte(a.body), overREST); err != nil || a.status != http.StatusOK {
					t.Fatalf("%d %s: %v", a.status, a.body, err)
				}
				if err != nil || !proto.Equal(overREST, overGRPC) {
					t.Errorf("REST %v, gRPC %v, %v", overREST, overGRPC, err)
				}
			}
			golden(t, filepath.Join("testdata", "explanation", name+".json"), a.body)
		})
	}
}

// The materializer's log cuts long texts, its state does not: they are the same all the same.
func TestExplanationOfLongTexts(t *testing.T) {
	h := &history{}
	open := emqxOpened(strings.Repeat("n", 200), strings.Repeat("k", 200), 10)
	h.fact(open)
	h.fact(emqxClosed(open, 20, presence.ReasonNormal, "normal"))
	fake := readertest.NewFake(1)
	fake.Apply(h.facts...)
	fake.Edit(func(r *presencev1.GetStatesResponse) error {
		for _, f := range r.GetEntries()[0].GetEvidence().GetFacts() {
			f.Node, f.Connection = f.GetNode()[:125]+"…", f.GetConnection()[:125]+"…"
		}
		return nil
	})
	x, err := serve(t, testConfig(t), fake).rpc.ExplainClient(as(t, "read"), &presencev1.ExplainClientRequest{ClientId: "dev1"})
	if err != nil || len(x.GetFacts()) != 2 {
		t.Fatalf("%v, %v", x, err)
	}
	for i, want := range []string{"It ends the newest connection to its node.", "It is the newest connection to its node."} {
		if got := x.GetFacts()[i].GetExplanation(); !strings.HasSuffix(got, want) {
			t.Errorf("fact %d: %q, want %q", i, got, want)
		}
	}
}

// golden compares JSON with a file, but for white space.
func golden(t *testing.T, file, body string) {
	t.Helper()
	var got bytes.Buffer
	if err := json.Indent(&got, []byte(body), "", "  "); err != nil {
		t.Fatalf("%.300s: %v", body, err)
	}
	got.WriteByte('\n')
	if *rewrite {
		if err := os.WriteFile(file, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("the answer is\n%s\nand %s (see -rewrite) has\n%s", got.Bytes(), file, want)
	}
}

func TestExplanationIsAskedForLikeAClient(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	fake.Apply(readertest.Connected("a/b"))
	s := serve(t, testConfig(t), fake)
	const path = "/v1/clients/a%2Fb/explanation"
	for _, c := range []struct {
		method, path, user string
		want               int
	}{
		{"GET", path, "read", 200},
		{"GET", path + "?cluster=default&min_offset=0", "read", 200},
		{"GET", path + "?cluster=elsewhere", "read", 404},
		{"GET", path + "?cluster=Else", "read", 400},
		{"GET", path + "?min_offset=-1", "read", 400},
		{"GET", path + "?offset=1", "read", 400},
		{"GET", "/v1/clients/%FF/explanation", "read", 400},
		{"GET", "/v1/clients//explanation", "read", 400},
		{"GET", "/v1/clients/a/b/explanation", "read", 404},
		{"POST", path, "read", 405},
		{"GET", path, "connect", 403},
		{"GET", path, "", 401},
	} {
		if a := s.do(c.method, c.path, c.user, ""); a.status != c.want {
			t.Errorf("%s %s as %q: %d %s, want %d", c.method, c.path, c.user, a.status, a.body, c.want)
		}
	}
	fake.Edit(func(r *presencev1.GetStatesResponse) error {
		for _, e := range r.GetEntries() {
			if e.GetEvidence() != nil {
				e.Evidence.State = []byte("?")
			}
		}
		return nil
	})
	if a := s.do("GET", path, "read", ""); a.status != 500 || strings.Contains(a.body, "corrupt") {
		t.Errorf("a state that cannot be read: %d %s", a.status, a.body)
	}
	for _, c := range []struct {
		user string
		want codes.Code
	}{{"connect", codes.PermissionDenied}, {"", codes.Unauthenticated}} {
		if _, err := s.rpc.ExplainClient(as(t, c.user), &presencev1.ExplainClientRequest{ClientId: "a/b"}); status.Code(err) != c.want {
			t.Errorf("as %q over gRPC: %v, want %v", c.user, err, c.want)
		}
	}
}
