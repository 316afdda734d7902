package query

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// freshFor is how long a freshness is told again.
	freshFor = time.Second
	// freshWait is how long a message waits for a newer one.
	freshWait = 250 * time.Millisecond
	// maxFreshClusters bounds the clusters that a freshness is kept of: names come from callers.
	maxFreshClusters = 256
)

// watchFreshness is the freshness of all partitions, by cluster, for all watchers.
type watchFreshness struct {
	answers *answers
	flight  singleflight.Group

	mu    sync.Mutex
	known map[string]clusterFreshness
}

type clusterFreshness struct {
	answer *presencev1.GetCountsResponse // the last one, nil if there was none
	is     *presencev1.Freshness
	at     time.Time
}

func newWatchFreshness(a *answers) *watchFreshness {
	return &watchFreshness{answers: a, known: make(map[string]clusterFreshness)}
}

// of returns the freshness of a cluster. It does not wait for long: what the reader said last ages, and so says itself that it is old.
func (f *watchFreshness) of(ctx context.Context, cluster string) *presencev1.Freshness {
	f.mu.Lock()
	known := f.known[cluster]
	f.mu.Unlock()
	if known.is != nil && time.Since(known.at) < freshFor {
		return known.is
	}
	asked := f.flight.DoChan(cluster, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), f.answers.cfg.RequestTimeout)
		defer cancel()
		answer, err := f.answers.reader.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: cluster})
		if err != nil {
			return known, nil
		}
		newer := clusterFreshness{answer: answer, is: f.compute(answer), at: time.Now()}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.known) >= maxFreshClusters {
			clear(f.known)
		}
		f.known[cluster] = newer
		return newer, nil
	})
	timer := time.NewTimer(freshWait)
	defer timer.Stop()
	select {
	case r := <-asked:
		if newer, ok := r.Val.(clusterFreshness); ok && newer.at != known.at {
			return newer.is
		}
	case <-timer.C:
	case <-ctx.Done():
	}
	return f.compute(known.answer)
}

// compute is the worst of all partitions.
func (f *watchFreshness) compute(answer *presencev1.GetCountsResponse) *presencev1.Freshness {
	c := clock{now: time.Now(), staleAfter: f.answers.cfg.StaleAfter}
	if router, ok := f.answers.reader.(routed); ok {
		c.routedAt = router.RoutedAt()
	}
	all := make([]*presencev1.Freshness, 0, len(answer.GetPartitions()))
	for _, p := range answer.GetPartitions() {
		all = append(all, c.freshness(p, answer.GetHealth(), ""))
	}
	if len(all) == 0 || len(all) < int(answer.GetPartitionCount()) {
		// Of the others nothing is known.
		all = append(all, c.freshness(nil, answer.GetHealth(), ""))
	}
	return worst(all)
}
