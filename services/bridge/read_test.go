package bridge

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/presence"
)

func TestArrivalsKeepTheOrder(t *testing.T) {
	var a arrivals
	for i, c := range []struct {
		receivedMS, atMS int64
		order            uint32
	}{{100, 100, 1}, {100, 100, 2}, {101, 101, 1}, {50, 101, 2}, {101, 101, 3}, {102, 102, 1}} {
		if at, order := a.next(c.receivedMS); at != c.atMS || order != c.order {
			t.Errorf("message %d, received at %d: stamp %d, order %d; want %d, %d", i+1, c.receivedMS, at, order, c.atMS, c.order)
		}
	}
}

func TestUnwritableFactsSayWhy(t *testing.T) {
	for want, spoil := range map[string]func(f *presence.Fact){
		deadEmptyID:   func(f *presence.Fact) { f.ClientID = "" },
		deadClientID:  func(f *presence.Fact) { f.ClientID = "a\xff" },
		deadLongID:    func(f *presence.Fact) { f.ClientID = strings.Repeat("a", 65_536) },
		deadNode:      func(f *presence.Fact) { f.Node = "\xff" },
		deadField:     func(f *presence.Fact) { f.Username = "\xff" },
		deadTimestamp: func(f *presence.Fact) { f.TimeMS = 0 },
	} {
		f := presence.Fact{Kind: presence.Opened, ClientID: strings.Repeat("a", 65_535), Node: "n", TimeMS: maxStampMS}
		if why := unwritable(&f); why != nil {
			t.Fatalf("a fact without fault: %+v", why)
		}
		if spoil(&f); unwritable(&f) == nil || unwritable(&f).reason != want {
			t.Errorf("%s: got %+v", want, unwritable(&f))
		}
	}
	for name, f := range map[string]presence.Fact{
		"time in microseconds": {Kind: presence.Opened, ClientID: "a", TimeMS: 1_760_000_000_123_456},
		"opening time":         {Kind: presence.Opened, ClientID: "a", TimeMS: 1, ConnectedAtMS: -1},
		"closing time":         {Kind: presence.Closed, ClientID: "a", TimeMS: 1, DisconnectedAtMS: maxStampMS + 1},
	} {
		if why := unwritable(&f); why == nil || why.reason != deadTimestamp {
			t.Errorf("%s: %+v", name, why)
		}
	}
}

// TestLongTexts has a client of RMQTT that writes a megabyte into its DISCONNECT: the broker repeats it as the reason.
func TestLongTexts(t *testing.T) {
	d := rmqttDialect.newDecoder(decoderConfig{cluster: "default", location: time.UTC})
	event := func(peer, reason string) decoded {
		return read(d, &message{topic: "$SYS/brokers/1/clients/c/disconnected", receivedMS: 1,
			payload: fmt.Appendf(nil, `{"clientid":"c","ipaddress":%q,"disconnected_at":1760000060123,"reason":%q}`, peer, reason)})
	}
	const head = "Disconnect(V5(Disconnect { reason_string: "
	var ids [2]string
	for i := range ids {
		got := event("203.0.113.7:1", head+strings.Repeat("a", i)+strings.Repeat("\u00e9", 1<<19))
		if len(got.facts) != 1 || got.dead != nil {
			t.Fatalf("%d facts, %+v", len(got.facts), got.dead)
		}
		f := got.facts[0]
		if f.Reason != presence.ReasonNormal || len(f.RawReason) < maxReason-1 || len(f.RawReason) > maxReason || !utf8.ValidString(f.RawReason) || !strings.HasPrefix(f.RawReason, head) {
			t.Errorf("reason %v, %d bytes: %.80s", f.Reason, len(f.RawReason), f.RawReason)
		}
		ids[i] = f.ID
		if f.SetID(); f.ID != ids[i] {
			t.Error("the ID is not that of the fact")
		}
	}
	if ids[0] == ids[1] {
		t.Error("two facts have one ID")
	}
	if got := event(strings.Repeat("1", 1<<16), "Kicked"); got.dead == nil || got.dead.reason != deadField {
		t.Errorf("a peer of 64 KiB: %+v", got)
	}
}
