package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// scenarios run on every target, one after the other, each with client IDs of its own.
var scenarios = []struct {
	name string
	run  func(t *testing.T, tgt Target)
}{
	{"connect and disconnect", scenarioDisconnect},
	{"killed client", scenarioKilledClient},
	{"takeover", scenarioTakeover},
	{"three short connections", scenarioShortConnections},
	{"explanation", scenarioExplanation},
	{"client IDs", scenarioClientIDs},
	{"never seen", scenarioNeverSeen},
	{"refusals", scenarioRefusals},
}

func runScenarios(t *testing.T, tgt Target) {
	tgt.warmUp(t)
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) { s.run(t, tgt) })
	}
}

func scenarioDisconnect(t *testing.T, tgt Target) {
	const id = "scenario-disconnect"
	c := connect(t, tgt, id)
	online := tgt.expectOnline(t, id)
	if got := online.GetConnection(); got.GetProtocolVersion() != 5 || got.GetKeepAliveS() != keepAliveS || !got.GetCleanStart() || got.GetPeer() == "" {
		t.Errorf("the connection is not as the client made it: %v", got)
	}
	if got, want := online.GetDetectionDelayS(), uint32(keepAliveS*3/2); got != want {
		t.Errorf("detection_delay_s is %d, want %d", got, want)
	}
	must(t, c.disconnect())
	if got := tgt.expectOffline(t, id).GetConnection().GetCloseReason(); got != "normal" {
		t.Errorf("close_reason is %q, want normal", got)
	}
	tgt.expectFacts(t, id, 1, presence.ReasonNormal)

	must(t, connect(t, tgt, id).disconnect())
	tgt.expectFacts(t, id, 2, presence.ReasonNormal, presence.ReasonNormal)
	tgt.expectOffline(t, id)
}

func scenarioKilledClient(t *testing.T, tgt Target) {
	const id = "scenario-killed"
	c := connect(t, tgt, id)
	tgt.expectOnline(t, id)
	must(t, c.kill())
	if got := tgt.expectOffline(t, id).GetConnection().GetCloseReason(); got != "connection_lost" {
		t.Errorf("close_reason is %q, want connection_lost", got)
	}
	tgt.expectFacts(t, id, 1, presence.ReasonConnectionLost)
}

func scenarioTakeover(t *testing.T, tgt Target) {
	const id = "scenario-takeover"
	first := connect(t, tgt, id)
	tgt.expectOnline(t, id)
	second := connect(t, tgt, id)
	// The broker ends the first connection, and says so after or before it accepts the second.
	if err := first.waitClosed(); err != nil {
		t.Fatal(err)
	}
	tgt.expectFacts(t, id, 2, presence.ReasonTakenOver)
	tgt.expectOnline(t, id)
	for _, s := range tgt.history.Client(id).Transitions() {
		if s.Status == presence.Offline || s.Belief == presence.Offline {
			t.Errorf("the client was %s (belief %s) while it had a connection: %s", s.Status, s.Belief, &s)
		}
	}
	must(t, second.disconnect())
	tgt.expectOffline(t, id)
	tgt.expectFacts(t, id, 2, presence.ReasonTakenOver, presence.ReasonNormal)
}

func scenarioShortConnections(t *testing.T, tgt Target) {
	const id = "scenario-short"
	for range 3 {
		must(t, connect(t, tgt, id).disconnect())
	}
	tgt.expectFacts(t, id, 3, presence.ReasonNormal, presence.ReasonNormal, presence.ReasonNormal)
	tgt.expectOffline(t, id)
	if list := tgt.history.Client(id).Transitions(); len(list) != 6 {
		t.Errorf("%d transitions were published, want 6: %s", len(list), tgt.history.Client(id))
	}
	if !tgt.Unkeyed {
		return
	}
	// The lines of one second are identical; their order is what tells them apart.
	var before presence.Fact
	for _, f := range tgt.history.Client(id).Facts {
		if f.Order == 0 || f.TimeMS < before.TimeMS || f.TimeMS == before.TimeMS && f.Order <= before.Order {
			t.Errorf("the fact at offset %d has the stamp %d and the order %d, after %d and %d", f.Offset, f.TimeMS, f.Order, before.TimeMS, before.Order)
		}
		before = f.Fact
	}
}

// clientIDs are hard to carry through paths, keys, topics or log lines.
var clientIDs = []string{
	"a/b", "a%2Fb", "+/#", "x#y", "VIN 1", "日本", "a:b", ".", "..", `"quoted"`, `back\slash`, "a as b (p2, c1, k60)", "[::1]:1883",
	"Case", "case", "\u00e9", "e\u0301",
}

func scenarioClientIDs(t *testing.T, tgt Target) {
	clients := map[string]*mqttClient{}
	for _, id := range clientIDs {
		clients[id] = connect(t, tgt, id)
	}
	for _, id := range clientIDs {
		tgt.expectOnline(t, id)
	}
	for i, id := range clientIDs {
		if i%2 == 0 {
			must(t, clients[id].disconnect())
		}
	}
	for i, id := range clientIDs {
		if i%2 == 0 {
			tgt.expectOffline(t, id)
			tgt.expectFacts(t, id, 1, presence.ReasonNormal)
		} else {
			tgt.expectOnline(t, id)
			tgt.expectFacts(t, id, 1)
		}
	}
	if n := len(tgt.history.DeadLetters()); n != 0 {
		t.Errorf("%d messages became dead letters: %+v", n, tgt.history.DeadLetters())
	}
}

func scenarioNeverSeen(t *testing.T, tgt Target) {
	for _, id := range []string{"scenario-never-seen", "scenario-never/seen+#", strings.Repeat("x", eventlog.MaxClientIDBytes)} {
		c, err := tgt.asker.ask(t.Context(), id)
		switch {
		case !errors.Is(err, errNeverSeen):
			t.Errorf("asked for %.40q of %d bytes: %v, %v", id, len(id), c, err)
		case c.GetStatusReason() != "never_seen" || c.GetBelief() != "offline" || c.GetStatus() == "online":
			t.Errorf("asked for %.40q of %d bytes, which nobody has seen: %s (%s), belief %s", id, len(id), c.GetStatus(), c.GetStatusReason(), c.GetBelief())
		}
	}
}

func scenarioRefusals(t *testing.T, tgt Target) {
	for _, c := range []struct {
		method, path, body string
		want               int
	}{
		{http.MethodGet, "/client-id//status", "", http.StatusBadRequest},
		{http.MethodGet, "/client-id/%FF/status", "", http.StatusBadRequest},
		{http.MethodGet, "/v1/clients/%FF", "", http.StatusBadRequest},
		{http.MethodPost, "/v1/clients:batchGet", `{"client_ids":[]}`, http.StatusBadRequest},
		{http.MethodGet, "/nowhere", "", http.StatusNotFound},
	} {
		code, _, body, err := tgt.asker.call(t.Context(), c.method, c.path, []byte(c.body))
		if err != nil || code != c.want || !strings.HasPrefix(string(body), "{") {
			t.Errorf("%s %s answers %d %.200q %v, want %d and a JSON error", c.method, c.path, code, body, err, c.want)
		}
	}
	if _, err := tgt.asker.rpc.GetClient(tgt.asker.authorized(t.Context()), &presencev1.GetClientRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("GetClient of the empty ID: %v", err)
	}
	stranger := *tgt.asker
	stranger.authorization = "Basic bm86Ym9keQ=="
	code, header, _, err := stranger.call(t.Context(), http.MethodGet, "/client-id/x/status", nil)
	if err != nil || code != http.StatusUnauthorized || !strings.HasPrefix(header.Get("WWW-Authenticate"), "Basic") {
		t.Errorf("a stranger is answered %d, WWW-Authenticate %q, %v", code, header.Get("WWW-Authenticate"), err)
	}
	if _, err := stranger.rpc.GetStatus(stranger.authorized(t.Context()), &presencev1.GetStatusRequest{ClientId: "x"}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stranger is answered over gRPC: %v", err)
	}
}

// expectFacts waits until the log has that many connections of a client, and ends for these reasons, in any order.
func (tgt Target) expectFacts(t *testing.T, clientID string, connected int, reasons ...presence.Reason) {
	t.Helper()
	servicetest.Eventually(t, patience, func() error {
		if err := tgt.history.read(t.Context()); err != nil {
			return err
		}
		opened, closed := tgt.history.Client(clientID).FactsOf(presence.Opened), tgt.history.Client(clientID).FactsOf(presence.Closed)
		missing := map[presence.Reason]int{}
		for _, r := range reasons {
			missing[r]++
		}
		for _, f := range closed {
			r := f.Reason
			if r == presence.ReasonDiscarded {
				r = presence.ReasonTakenOver // which of the two depends on the broker
			}
			if missing[r]--; missing[r] == 0 {
				delete(missing, r)
			}
		}
		if len(opened) != connected || len(missing) != 0 {
			return fmt.Errorf("client %q: want %d connections and ends %v, the log has %s", clientID, connected, reasons, tgt.history.Client(clientID))
		}
		return nil
	})
}
