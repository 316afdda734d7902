package materializer

import (
	"testing"
)

// Whatever happens, and in whichever order: indexes that are said to be valid are what the rows say, lists and counters are what a scan of
// the rows says, and what may be off is said to be.
func TestListsAreWhatTheRowsSay(t *testing.T) {
	seeds, steps := uint64(8), 300
	if testing.Short() {
		seeds = 3
	}
	for seed := range seeds {
		w := newRowWorld(t, seed)
		for i := range steps {
			w.step()
			w.checkStore()
			w.checkList(w.filter())
			if i%10 == 0 {
				w.checkCounts(pick(w, worldClusters))
			}
			if i%50 == 49 {
				w.settle()
				w.checkStore()
				for range 10 {
					w.checkList(w.filter())
				}
				w.checkCounts(pick(w, worldClusters))
			}
		}
	}
}

// A client that does not change while the pages are read is listed exactly once, or not at all if the filter does not select it.
func TestPagesUnderWrites(t *testing.T) {
	for seed := range uint64(12) {
		w := newRowWorld(t, 1000+seed)
		for range 300 {
			w.fact()
		}
		for range 30 {
			w.settle()
			q := w.filter()
			q.Limit = 1 + w.random.Int32N(4)
			changed := map[string]bool{}
			before := w.truths(q.GetCluster())
			got, _ := w.list(q, func() {
				for range w.random.IntN(4) {
					changed[w.fact()] = true
				}
			})
			times := map[string]int{}
			for _, c := range got {
				times[c.id]++
			}
			for _, c := range before {
				want := 0
				if selects(q, c) {
					want = 1
				}
				if !changed[q.GetCluster()+"/"+c.id] && times[c.id] != want {
					t.Fatalf("seed %d, %v: client %q is listed %d times, want %d", seed, q, c.id, times[c.id], want)
				}
			}
		}
	}
}
