package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// scenarioExplanation: after a takeover, and after the end, the explanation lists the facts as the log has them, and says what became of each.
func scenarioExplanation(t *testing.T, tgt Target) {
	const id = "scenario-explanation"
	first := connect(t, tgt, id)
	tgt.expectOnline(t, id)
	second := connect(t, tgt, id)
	if err := first.waitClosed(); err != nil {
		t.Fatal(err)
	}
	tgt.expectFacts(t, id, 2, presence.ReasonTakenOver)
	tgt.expectOnline(t, id)
	x := tgt.explain(t, id, "online", presence.Connected)
	if c := x.GetConnections(); len(c) == 0 || !c[0].GetCurrent() || c[0].GetEnd() != nil {
		t.Errorf("the newest connection is open, and the explanation says %v", c)
	}
	if n := x.GetNodes(); len(n) == 0 || n[0].GetState() == "gone" || n[0].GetState() == "silent" || x.GetFeed().GetState() != "ok" {
		t.Errorf("nodes %v, feed %v", n, x.GetFeed())
	}

	must(t, second.disconnect())
	tgt.expectOffline(t, id)
	x = tgt.explain(t, id, "offline", presence.ConnectionClosed)
	if e := x.GetConnections()[0].GetEnd(); e.GetReason() != "normal" {
		t.Errorf("the connection ended normally, and the explanation says %v", x.GetConnections())
	}
	if got := x.GetTransitions()[0]; got.GetStatus() != "offline" || got.GetPreviousStatus() != "online" || got.GetEventOffset() != x.GetFacts()[0].GetOffset() {
		t.Errorf("the latest transition is %v, the latest fact %v", got, x.GetFacts()[0])
	}

	code, _, body, err := tgt.asker.call(t.Context(), http.MethodGet, "/v1/clients/scenario-not-explained/explanation", nil)
	if err != nil || code != http.StatusNotFound || !strings.Contains(string(body), "never_seen") {
		t.Errorf("a client never seen is explained with %d %s, %v", code, body, err)
	}
	_, err = tgt.asker.rpc.ExplainClient(tgt.asker.authorized(t.Context()), &presencev1.ExplainClientRequest{ClientId: "scenario-not-explained"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("a client never seen is explained over gRPC: %v", err)
	}
}

// explain waits until both transports explain a status with all facts that the log has of the client.
func (tgt Target) explain(t *testing.T, clientID, wantStatus string, rule presence.StatusReason) *presencev1.Explanation {
	t.Helper()
	var x *presencev1.Explanation
	servicetest.Eventually(t, patience, func() error {
		var err error
		if x, err = tgt.asker.explain(t.Context(), clientID); err != nil {
			return err
		}
		if x.GetStatus() != wantStatus || x.GetStatusReason() != rule.String() || !strings.HasPrefix(x.GetRule(), rule.Explain()) {
			return fmt.Errorf("client %q is explained as %s (%s): %s", clientID, x.GetStatus(), x.GetStatusReason(), x.GetRule())
		}
		if err := tgt.history.read(t.Context()); err != nil {
			return err
		}
		return lists(x, tgt.history.Client(clientID).Facts)
	})
	return x
}

// lists checks that an explanation has these facts, the newest first, each with an outcome.
func lists(x *presencev1.Explanation, facts []chaos.Fact) error {
	got := x.GetFacts()
	if len(got) != len(facts) || len(facts) == 0 || x.FactsSinceOffset == nil || x.GetFactsSinceOffset() > facts[0].Offset {
		return fmt.Errorf("%d facts, complete since offset %v, the log has %d", len(got), x.FactsSinceOffset, len(facts))
	}
	for i := range facts {
		want, f := &facts[len(facts)-1-i], got[i]
		if f.GetOffset() != want.Offset || f.GetType() != want.Kind.String() || f.GetNode() != want.Node || f.GetKey() != want.Connection ||
			f.GetReason() != want.Reason.String() || f.GetReceived().AsTime().UnixMilli() != want.ReceivedMS {
			return fmt.Errorf("fact %d is %v, the log has %+v", i, f, want)
		}
		outcome := presence.ParseOutcome(f.GetOutcome())
		if outcome.String() != f.GetOutcome() || !strings.HasPrefix(f.GetExplanation(), outcome.Explain()) || f.GetIgnored() != outcome.Ignored() {
			return fmt.Errorf("the outcome of fact %d is %v", i, f)
		}
	}
	return nil
}

// explain asks over both transports, which must agree.
func (a *asker) explain(ctx context.Context, clientID string) (*presencev1.Explanation, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	viaGRPC, err := a.rpc.ExplainClient(a.authorized(ctx), &presencev1.ExplainClientRequest{ClientId: clientID})
	if err != nil {
		return nil, fmt.Errorf("ExplainClient: %w", err)
	}
	viaREST := &presencev1.Explanation{}
	code, err := a.rest(ctx, http.MethodGet, "/v1/clients/"+segment(clientID)+"/explanation", nil, viaREST)
	if err == nil && code != http.StatusOK {
		err = fmt.Errorf("GET /v1/clients/%.200s/explanation answers %d", segment(clientID), code)
	}
	if err != nil {
		return nil, err
	}
	one, other := proto.CloneOf(viaGRPC), proto.CloneOf(viaREST)
	one.Freshness, other.Freshness, one.Nodes, other.Nodes = nil, nil, nil, nil // of another moment
	if !proto.Equal(one, other) {
		return nil, fmt.Errorf("gRPC and REST explain client %q differently: %v; %v", clientID, viaGRPC, viaREST)
	}
	return viaGRPC, nil
}
