package bridge

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

func TestRMQTTReason(t *testing.T) {
	for raw, want := range map[string]presence.Reason{
		"":                                  presence.ReasonUnknown,
		"Disconnect":                        presence.ReasonNormal,
		"Disconnect(V3)":                    presence.ReasonNormal,
		"RemoteClose":                       presence.ReasonConnectionLost,
		"ReadWriteError":                    presence.ReasonConnectionLost,
		"ReadWriteTimeout":                  presence.ReasonConnectionLost,
		"ReadWriteError,RemoteClose":        presence.ReasonConnectionLost,
		"KeepaliveTimeout":                  presence.ReasonKeepAliveTimeout,
		"KeepaliveTimeout,RemoteClose":      presence.ReasonKeepAliveTimeout,
		"Kicked":                            presence.ReasonTakenOver,
		"Disconnect(V3),Kicked":             presence.ReasonTakenOver,
		"ByAdminKick":                       presence.ReasonKicked,
		"ByAdminKick,RemoteClose":           presence.ReasonKicked,
		"SubscribeRefused":                  presence.ReasonNotAuthorized,
		"PublishRefused":                    presence.ReasonNotAuthorized,
		"SubscribeFailed":                   presence.ReasonOther,
		"SubscribeFailed(too many)":         presence.ReasonOther,
		"ProtocolError(a, b)":               presence.ReasonProtocolError,
		"ProtocolError(a,Kicked)":           presence.ReasonProtocolError,
		"HandshakeRateExceeded":             presence.ReasonQuotaExceeded,
		"MessageQueueFull":                  presence.ReasonQuotaExceeded,
		"SessionExpiration":                 presence.ReasonSessionExpired,
		"Unknown":                           presence.ReasonOther,
		"free text":                         presence.ReasonOther,
		"free text,RemoteClose":             presence.ReasonConnectionLost,
		",":                                 presence.ReasonUnknown,
		`Disconnect(V5("),Kicked,(")`:       presence.ReasonNormal,
		`Disconnect(V5("\"),Kicked,("))`:    presence.ReasonNormal,
		`ProtocolError("),RemoteClose`:      presence.ReasonProtocolError, // a quote without its other half
		`free "text,Kicked`:                 presence.ReasonTakenOver,     // nothing of the client's stands outside of parentheses
		`Disconnect(V5()),KeepaliveTimeout`: presence.ReasonNormal,
	} {
		if got := rmqttReason(raw); got != want {
			t.Errorf("%q: got %v, want %v", raw, got, want)
		}
	}
}

// A local time is an instant in whichever zone is the nearest to the event, in the hour that comes twice too.
func TestRMQTTLocalTime_H9(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	// Summer time ends: 02:30 comes at 00:30 and at 01:30 UTC.
	first := time.Date(2026, 10, 25, 0, 30, 0, 0, time.UTC).UnixMilli()
	for _, tt := range []struct {
		name     string
		location *time.Location
		local    string
		at, want int64
	}{
		{"first of two", berlin, "2026-10-25 02:30:00.007", first, first + 7},
		{"second of two", berlin, "2026-10-25 02:30:00.007", first + 3_600_000, first + 3_600_000 + 7},
		{"not configured", time.UTC, "2026-10-25 02:30:00.007", first, first + 7},
		{"late by a minute", berlin, "2026-10-25 02:31:00.000", first, first + 60_000},
		{"nothing to compare with", time.UTC, "2026-10-25 02:30:00.007", 0, first + 2*3_600_000 + 7},
		{"no fraction", time.UTC, "2026-10-25 00:30:00", first, first},
	} {
		d := &rmqttDecoder{location: tt.location}
		if got, ok := d.published(tt.local, tt.at); !ok || got != tt.want {
			t.Errorf("%s: got %d, %t, want %d", tt.name, got, ok, tt.want)
		}
	}
	for _, local := range []string{"", "2026-10-25", "0000-01-01 00:00:00.000", "2026-13-25 02:30:00.007"} {
		if got, ok := (&rmqttDecoder{location: time.UTC}).published(local, 0); ok {
			t.Errorf("%q: got %d", local, got)
		}
	}
}

// A heartbeat without an uptime says that the node is alive, and that it did not leave; one from the session's queue says nothing.
func TestRMQTTHeartbeat(t *testing.T) {
	n := newNodes("default")
	s := &signal{kind: signalAlive, dialect: presence.DialectRMQTT, node: "1"}
	facts := n.apply(s, receivedMS)
	if len(facts) != 1 || facts[0].Kind != presence.NodeAlive || facts[0].Node != "1" || facts[0].UptimeMS.Valid || facts[0].StartedMS != 0 || facts[0].ReceivedMS != receivedMS {
		t.Fatalf("facts %+v", facts)
	}
	checkNodeFact(t, &facts[0])
	var cluster presence.Cluster
	cluster.Apply(&presence.NodeFact{Kind: presence.NodeSilent, Cluster: "default", Node: "1", Dialect: presence.DialectRMQTT, TimeMS: receivedMS - 1, ReceivedMS: receivedMS - 1})
	cluster.Apply(&facts[0])
	if cluster.Nodes["1"].Silent() {
		t.Error("the node is silent after its heartbeat")
	}
	n.resumed(receivedMS, receivedMS+60_000)
	if facts := n.apply(s, receivedMS+60_001); len(facts) != 0 {
		t.Errorf("a heartbeat that may be a minute old: facts %+v", facts)
	}
}

// FuzzRMQTTReason lets a hostile client choose what its DISCONNECT says: it never passes for a reason of the broker.
func FuzzRMQTTReason(f *testing.F) {
	for _, s := range []string{"", "bye", "),Kicked", `"))),Kicked,(((`, `\"),Kicked,("`, "\\", "\"", "\n),Kicked", "\u202e"} {
		f.Add(s, "KeepaliveTimeout")
	}
	f.Fuzz(func(t *testing.T, said, next string) {
		raw := "Disconnect(V5(Disconnect { reason_code: NormalDisconnection, reason_string: Some(" + strconv.Quote(said) + "), user_properties: [] }))"
		if got := rmqttReason(raw); got != presence.ReasonNormal {
			t.Fatalf("%s: got %v", raw, got)
		}
		want := presence.ReasonNormal
		if rmqttReason(next) == presence.ReasonTakenOver {
			want = presence.ReasonTakenOver
		}
		if got := rmqttReason(raw + "," + next); got != want {
			t.Fatalf("%s,%s: got %v, want %v", raw, next, got, want)
		}
	})
}

// TestRMQTTClockSetBack_H9 sets the clock of a node back: no heartbeat tells it, but no event is late by as much.
func TestRMQTTClockSetBack_H9(t *testing.T) {
	d := rmqttDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	event := func(node string, stampMS, atMS int64) *stepBack {
		t.Helper()
		payload := fmt.Sprintf(`{"ipaddress":"203.0.113.7:52571","clientid":"d1","connected_at":%d,"time":""}`, stampMS)
		got := d.decode(&message{topic: "$SYS/brokers/" + node + "/clients/d1/connected", payload: []byte(payload), receivedMS: atMS})
		if len(got.facts) != 1 {
			t.Fatalf("got %+v", got)
		}
		return got.stepBack
	}
	const base, hour = int64(1_760_000_000_000), int64(3_600_000)
	d.connected(sessionStart{})
	for _, step := range []*stepBack{
		event("1", base, base+5), event("2", base-hour, base+5), event("1", base+hour, base+6), event("1", base+hour+1_000, base+300_000),
	} {
		if step != nil {
			t.Errorf("a clock that is off, one that was set forward, or a late event, is taken for %+v", *step)
		}
	}
	step := event("1", base+400_000, base+400_005)
	if step == nil || step.node != "1" || step.fromMS != base+hour+1_000 || step.toMS > base+400_000 {
		t.Errorf("an hour back is %+v", step)
	}
	if step := event("1", base+400_010, base+400_015); step != nil {
		t.Errorf("the next event is another step, %+v", *step)
	}
	d.connected(sessionStart{resumed: true})
	if step := event("1", base+400_020, base+2*hour); step != nil {
		t.Errorf("an event that waited for the session is taken for %+v", *step)
	}
	if step := event("1", base, base+2*hour+queueMS); step == nil {
		t.Error("nothing is seen once the queue is empty")
	}

	n := newNodes("default")
	n.load()
	n.apply(&signal{kind: signalAlive, dialect: "rmqtt", node: "1"}, base)
	n.setBack(step)
	if facts := n.apply(&signal{kind: signalAlive, dialect: "rmqtt", node: "1"}, base+60_000); len(facts) != 1 || facts[0].SetBackFromMS != step.fromMS {
		t.Errorf("the next heartbeat tells of no step: %+v", facts)
	}
}
