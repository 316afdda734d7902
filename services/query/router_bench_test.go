package query_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// owner answers for its partitions with as little work as can be, so that what is measured is the router.
type owner struct {
	presencev1.UnimplementedStateServiceServer
}

func (owner) GetStates(_ context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	answer := &presencev1.GetStatesResponse{Entries: make([]*presencev1.StateEntry, len(req.GetKeys()))}
	for i := range answer.Entries {
		answer.Entries[i] = &presencev1.StateEntry{Index: uint32(i), Found: true, Status: "online", Belief: "online", StatusReason: "connected"}
	}
	return answer, nil
}

// BenchmarkRouter asks, over loopback, for one client and for a batch whose clients are spread over all partitions of two owners.
func BenchmarkRouter(b *testing.B) {
	_, kafka := eventlogtest.NewCluster(b)
	eventlogtest.Ensure(b, kafka)
	for range 2 {
		addr, stop := readertest.Serve(b, owner{})
		b.Cleanup(stop)
		member(b, kafka, addr)
	}
	cfg := query.DefaultConfig()
	cfg.Config, cfg.Replicas = kafka, []string{"a"}
	r, err := query.NewRouter(cfg, discardLog(), newRegistry())
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error, 1)
	go func() { stopped <- r.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-stopped; err != nil {
			b.Error(err)
		}
	})
	servicetest.Eventually(b, testTimeout, func() error { return r.Ready(b.Context()) })
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("clients=%d", n), func(b *testing.B) {
			ids, _ := devices(n)
			req := keys(ids...)
			// The second owner may be about to join.
			servicetest.Eventually(b, testTimeout, func() error { _, err := r.GetStates(b.Context(), req); return err })
			b.ReportAllocs()
			for b.Loop() {
				answer, err := r.GetStates(b.Context(), req)
				if err != nil || len(answer.GetEntries()) != n {
					b.Fatalf("%d entries, error %v", len(answer.GetEntries()), err)
				}
			}
		})
	}
}

// member makes an address a static member of the first replica's group, and waits until partitions are assigned to it.
func member(b *testing.B, kafka eventlog.Config, addr string) {
	b.Helper()
	assigned := make(chan []int32, 16)
	client := eventlogtest.NewClient(b, kafka,
		kgo.ConsumerGroup("presence-materializer-a"), kgo.InstanceID(addr), kgo.ConsumeTopics(eventlog.TopicClientEvents), kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, topics map[string][]int32) {
			if p := topics[eventlog.TopicClientEvents]; len(p) > 0 {
				assigned <- slices.Clone(p)
			}
		}))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			client.PollFetches(ctx)
		}
	}()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	select {
	case <-assigned:
	case <-b.Context().Done():
		b.Fatal("no partitions are assigned")
	}
}
