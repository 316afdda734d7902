package materializer

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// TestPublishesWhatItFoldedBefore turns publishing on for a replica that has folded without, while nobody else published: who fills a store from
// client-state alone must get everything.
func TestPublishesWhatItFoldedBefore(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	silent := l.config(fs)
	silent.Publish = false
	m := l.start(silent).ready()
	m.get("a", l.facts(opened("b", "n1", 0), opened("gone", "n1", 0), closedAt("b", "n1", 0, 10), opened("a", "n1", 0)))
	l.facts(forgotten("gone", 20, 20))
	m.caughtUp(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	if n := len(l.read(eventlog.TopicClientState)); n != 0 {
		t.Fatalf("a replica that does not publish wrote %d records", n)
	}
	for range 2 { // the second start has nothing to publish
		m = l.start(l.config(fs)).ready()
		servicetest.Eventually(t, patience, func() error {
			var got []string
			for _, r := range l.read(eventlog.TopicClientState) {
				if string(r.Key) != eventlog.CheckpointKey {
					got = append(got, fmt.Sprintf("%s %v", r.Key, r.Value != nil))
				}
			}
			slices.Sort(got)
			if want := []string{"default/a true", "default/b true", "default/gone false"}; !slices.Equal(got, want) {
				return fmt.Errorf("client-state has %v, want %v", got, want)
			}
			return nil
		})
		if err := m.stop(); err != nil {
			t.Fatal(err)
		}
	}
}
