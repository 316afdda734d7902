package query

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// BenchmarkWatchHub is one transition told to whom it concerns, among 10,000 watchers: with all of them at single clients, and with all
// reading everything for a prefix of their own. At 1,000 transitions per second there is 1 ms for each, times the cores.
func BenchmarkWatchHub(b *testing.B) {
	const watchers = 10_000
	for name, filter := range map[string]func(i int) *presencev1.WatchClientsRequest{
		"single clients": func(i int) *presencev1.WatchClientsRequest {
			return &presencev1.WatchClientsRequest{ClientIds: []string{fmt.Sprint("dev", i)}}
		},
		"prefixes": func(i int) *presencev1.WatchClientsRequest {
			return &presencev1.WatchClientsRequest{ClientIdPrefix: fmt.Sprint("dev", i)}
		},
	} {
		b.Run(name, func(b *testing.B) {
			h := newHubTest(b)
			ctx, cancel := context.WithCancel(b.Context())
			var running, begun sync.WaitGroup
			running.Go(func() { h.hub.wake(ctx) })
			var told atomic.Int64
			for i := range watchers {
				v, err := h.begin(ctx, filter(10_000+i))
				if err != nil {
					b.Fatal(err)
				}
				begun.Add(1)
				first := sync.OnceFunc(begun.Done)
				running.Go(func() {
					defer v.end()
					// It ends with ctx.
					_ = v.run(ctx, countingSink{first, &told})
				})
			}
			begun.Wait()
			transitions := make([]*watchEntry, b.N)
			for i := range transitions {
				transitions[i] = h.entry(fmt.Sprint("dev", 10_000+i%watchers), presence.Offline, presence.Online, "c")
			}
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			b.ResetTimer()
			// As the publishers do, in transactions; never further ahead than the ring is long.
			for from := 0; from < len(transitions); {
				to := min(from+100, len(transitions))
				h.tell(transitions[from:to]...)
				for from = to; told.Load() < int64(to-50_000); {
					<-tick.C
				}
			}
			for told.Load() < int64(b.N) {
				<-tick.C
			}
			b.StopTimer()
			cancel()
			running.Wait()
		})
	}
}

// countingSink counts transitions.
type countingSink struct {
	first func()
	told  *atomic.Int64
}

func (s countingSink) entry(*watchEntry, string) error { s.told.Add(1); return nil }

func (s countingSink) message(*presencev1.WatchClientsResponse) error { s.first(); return nil }

func (s countingSink) flush() error { return nil }
