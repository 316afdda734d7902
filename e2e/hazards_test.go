package e2e

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/eclipse/paho.golang/packets"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// intrude tries to connect as somebody else, and is refused: by Mosquitto for its password, by the embedded broker for its will.
func intrude(ctx context.Context, tgt Target, clientID string) error {
	c, err := dialWith(ctx, tgt.MQTT, clientID, func(connect *packets.Connect) {
		if tgt.Unkeyed {
			connect.UsernameFlag, connect.Username, connect.PasswordFlag, connect.Password = true, account, true, []byte("wrong")
		} else {
			connect.WillFlag, connect.WillTopic, connect.WillMessage = true, "$SYS/brokers", []byte("x")
		}
	})
	if err == nil {
		return errors.Join(fmt.Errorf("the broker let a stranger in as client %q", clientID), c.kill())
	}
	var refused *refusedError
	if !errors.As(err, &refused) || refused.code != packets.ConnackNotAuthorized {
		return fmt.Errorf("a stranger was not refused as one: %w", err)
	}
	return nil
}

// scenarioStranger has strangers fail to connect with the IDs of a client that is connected, of one that has gone, and of one that nobody has
// seen. Mosquitto's log then says that the client disconnected: that can cost an answer, and never makes one wrong.
func scenarioStranger(t *testing.T, tgt Target) {
	const id, nobody, intrusions = "hazard-stranger", "hazard-stranger-nobody", 3
	live := connect(t, tgt, id)
	tgt.expectOnline(t, id)
	var ends []presence.Reason
	ghost := func(clientID string) {
		t.Helper()
		must(t, intrude(t.Context(), tgt, clientID))
		if clientID == id && tgt.NamesStrangers {
			ends = append(ends, presence.ReasonNotAuthorized)
		}
	}
	for range intrusions {
		ghost(id)
	}
	ghost(nobody)
	tgt.expectFacts(t, id, 1, ends...)
	if tgt.NamesStrangers {
		tgt.expectDoubt(t, id)
	} else {
		tgt.expectOnline(t, id)
	}
	for _, s := range tgt.history.Client(id).Transitions() {
		if s.Status == presence.Offline || s.Belief == presence.Offline {
			t.Errorf("the client was %s (belief %s) while it had a connection: %s", s.Status, s.Belief, &s)
		}
	}
	if alive, err := live.alive(); !alive {
		t.Fatalf("the client has lost its connection to a stranger: %v", err)
	}

	// The client's own end is certain, whoever comes then.
	must(t, live.disconnect())
	ends = append(ends, presence.ReasonNormal)
	tgt.expectOffline(t, id)
	ghost(id)
	tgt.expectFacts(t, id, 1, ends...)
	tgt.expectOffline(t, id)

	// A new connection ends the doubt.
	connect(t, tgt, id)
	tgt.expectOnline(t, id)

	// A client that nobody has seen is not there because a stranger tried its ID.
	servicetest.Eventually(t, patience, func() error {
		c, err := tgt.asker.ask(t.Context(), nobody)
		switch {
		case c.GetStatus() == "online" || c.GetBelief() == "online":
			t.Fatalf("after a failed login a client never seen is %s, belief %s", c.GetStatus(), c.GetBelief())
		case tgt.NamesStrangers:
			return err
		case !errors.Is(err, errNeverSeen):
			t.Fatalf("a client whose name nobody has told was seen: %v, %v", c, err)
		}
		return nil
	})
}

// scenarioLateGhost takes connections over on Mosquitto, over WebSocket and TCP by turns: a WebSocket's end is logged after its successor's
// beginning, and does not name it.
func scenarioLateGhost(t *testing.T, tgt Target) {
	const id = "hazard-late-ghost"
	ws := tgt.overWebSocket()
	first := connect(t, ws, id)
	tgt.expectOnline(t, id)
	second := connect(t, ws, id)
	must(t, first.waitClosed())
	tgt.expectFacts(t, id, 2, presence.ReasonTakenOver, presence.ReasonConnectionLost)
	if facts := tgt.history.Client(id).Facts; facts[len(facts)-1].Reason != presence.ReasonConnectionLost {
		t.Errorf("the end of the first connection does not come last: %s", tgt.history.Client(id))
	}
	tgt.expectDoubt(t, id)

	// The ghost of the WebSocket comes once more after a connection over TCP, and never after that.
	third := connect(t, tgt, id)
	must(t, second.waitClosed())
	tgt.expectFacts(t, id, 3, presence.ReasonTakenOver, presence.ReasonConnectionLost, presence.ReasonTakenOver, presence.ReasonConnectionLost)
	tgt.expectDoubt(t, id)
	fourth := connect(t, tgt, id)
	must(t, third.waitClosed())
	tgt.expectOnline(t, id)
	fifth := connect(t, ws, id)
	must(t, fourth.waitClosed())
	tgt.expectOnline(t, id)
	for _, s := range tgt.history.Client(id).Transitions() {
		if s.Status == presence.Offline || s.Belief == presence.Offline {
			t.Errorf("the client was %s (belief %s) while it had a connection: %s", s.Status, s.Belief, &s)
		}
	}

	// What only the client itself can have sent is certain over WebSocket, too.
	sixth := connect(t, ws, id)
	must(t, fifth.waitClosed())
	tgt.expectDoubt(t, id)
	must(t, sixth.disconnect())
	tgt.expectOffline(t, id)
}

// expectDoubt waits until a client that is connected is unknown for an end that may have been its own.
func (tgt Target) expectDoubt(t *testing.T, clientID string) {
	t.Helper()
	if got := tgt.expect(t, clientID, "unknown", "close_ambiguous"); got.GetBelief() != "online" {
		t.Errorf("client %q, which is connected, is believed to be %s", clientID, got.GetBelief())
	}
}

// scenarioIdenticalLines makes three short connections within one stamp of Mosquitto's, so that their ends are the same line three times.
func scenarioIdenticalLines(t *testing.T, tgt Target) {
	const tries = 10
	for try := range tries {
		id := fmt.Sprintf("hazard-identical-%d", try)
		for range 3 {
			must(t, connect(t, tgt, id).disconnect())
		}
		tgt.expectFacts(t, id, 3, presence.ReasonNormal, presence.ReasonNormal, presence.ReasonNormal)
		ends := tgt.history.Client(id).FactsOf(presence.Closed)
		if ends[0].TimeMS != ends[2].TimeMS {
			continue // a second began between them
		}
		for i, end := range ends[1:] {
			if end.Order <= ends[i].Order || end.ID == ends[i].ID {
				t.Errorf("identical lines cannot be told apart: %+v and %+v", ends[i], end)
			}
		}
		tgt.expectOffline(t, id)
		if list := tgt.history.Client(id).Transitions(); len(list) != 6 {
			t.Errorf("%d transitions were published, want 6: %s", len(list), tgt.history.Client(id))
		}
		return
	}
	t.Errorf("of %d times three connections none were within a second", tries)
}
