package bridge

import (
	"strings"
	"testing"

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
