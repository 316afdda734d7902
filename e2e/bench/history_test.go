package main

import (
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// TestHistory folds histories and compares with what they say of themselves.
func TestHistory(t *testing.T) {
	now := time.UnixMilli(1_760_000_000_000)
	for name, h := range map[string]history{
		"drawn":   {clients: 300, events: 4_000},
		"some":    {clients: 1_000, events: 500},
		"at rest": {clients: 1_000, atRest: true},
		"again":   {clients: 100, atRest: true, connections: 3},
	} {
		states := map[string]*presence.State{}
		last := int64(0)
		want, err := h.each(now, func(f *presence.Fact) error {
			if states[f.ClientID] == nil {
				states[f.ClientID] = &presence.State{}
			}
			if outcome := states[f.ClientID].Apply(f); outcome != presence.Applied {
				t.Errorf("%s: %v of %s is %v", name, f.Kind, f.ClientID, outcome)
			}
			if f.TimeMS < last-time.Hour.Milliseconds() || f.TimeMS > now.UnixMilli() {
				t.Errorf("%s: a fact of %d", name, f.TimeMS)
			}
			last = max(last, f.TimeMS)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var have counts
		for _, s := range states {
			switch presence.Status(s, &presence.Cluster{}, presence.DefaultAllowanceMS).Status {
			case presence.Online:
				have.online++
			case presence.Offline:
				have.offline++
			default:
				have.unknown++
			}
		}
		if have != want || have.total() != int64(len(states)) || have.total() == 0 {
			t.Errorf("%s: %+v, and it says %+v", name, have, want)
		}
	}
}

func TestRandomID(t *testing.T) {
	seen := map[string]bool{}
	for i := range 10_000 {
		id := randomID(i)
		if len(id) != 22 || seen[id] {
			t.Fatalf("client %d is %q", i, id)
		}
		seen[id] = true
	}
}
