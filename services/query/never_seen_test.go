package query

import (
	"strings"
	"testing"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// An answer that is an error has no freshness beside it: the message must not be surer than the answer is.
func TestNeverSeenIsNoSurerThanItIs(t *testing.T) {
	stale := &presencev1.Freshness{Stale: true, StaleReasons: []string{staleFeedDown, staleLagging}}
	for _, c := range []struct {
		name, status string
		fresh        *presencev1.Freshness
		want         string
	}{
		{"complete", "offline", &presencev1.Freshness{}, "the feed is complete: it is offline"},
		{"complete and stale", "offline", stale, "what is known is stale (feed_down, lagging): it was offline before"},
		{"not complete", "unknown", &presencev1.Freshness{}, "not known to be complete"},
		{"not complete and stale", "unknown", stale, "not known to be complete"},
	} {
		if got := neverSeen(&presencev1.StateEntry{Status: c.status}, c.fresh); !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q in it", c.name, got, c.want)
		}
	}
}
