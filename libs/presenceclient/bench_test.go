package presenceclient_test

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// constant answers without looking, so that what differs is the cost of the calls.
type constant struct {
	presencev1.UnimplementedPresenceServiceServer
}

func (constant) GetStatus(context.Context, *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	return &presencev1.GetStatusResponse{Status: "online", Online: true, StatusReason: "connected", Freshness: &presencev1.Freshness{Feed: "ok"}}, nil
}

func (constant) BatchGetClients(_ context.Context, req *presencev1.BatchGetClientsRequest) (*presencev1.BatchGetClientsResponse, error) {
	answer := &presencev1.BatchGetClientsResponse{Freshness: &presencev1.Freshness{Feed: "ok"}, Clients: make([]*presencev1.Client, len(req.GetClientIds()))}
	for i, id := range req.GetClientIds() {
		answer.Clients[i] = &presencev1.Client{
			ClientId: id, Cluster: "default", Status: "online", Belief: "online", StatusReason: "connected",
			Connection: &presencev1.ClientConnection{Node: "emqx@10.0.3.11", Key: "1760000000123", Username: "fleet", Peer: "203.0.113.7:4711"},
		}
	}
	return answer, nil
}

// BenchmarkStatus compares concurrent lookups that are calls of their own with those that share calls, over loopback.
func BenchmarkStatus(b *testing.B) {
	for _, callers := range []int{1, 16, 256} {
		for _, coalesce := range []time.Duration{0, time.Millisecond} {
			b.Run(fmt.Sprintf("callers=%d/coalesce=%t", callers, coalesce > 0), func(b *testing.B) {
				client := newClient(b, presenceclient.Config{Target: serve(b, constant{}), Coalesce: presenceclient.Coalesce{Window: coalesce}})
				b.SetParallelism(max(1, callers/runtime.GOMAXPROCS(0)))
				b.ReportAllocs()
				if callers == 1 {
					for b.Loop() {
						if s, err := client.Status(b.Context(), "VIN0000001"); err != nil || !s.Online() {
							b.Fatalf("%v, error %v", s, err)
						}
					}
					return
				}
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if s, err := client.Status(b.Context(), "VIN0000001"); err != nil || !s.Online() {
							b.Errorf("%v, error %v", s, err)
							return
						}
					}
				})
			})
		}
	}
}
