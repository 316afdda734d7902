package presence

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// The materializer, as query asks it in this process, is held to what query's other readers promise.
func TestMaterializerIsAReader(t *testing.T) {
	readertest.Run(t, func(t *testing.T, facts []presence.Fact, nodes []presence.NodeFact) query.StateReader {
		_, kafka := eventlogtest.NewCluster(t)
		eventlogtest.Ensure(t, kafka)
		client := eventlogtest.NewClient(t, kafka)
		var records []*kgo.Record
		for i := range nodes {
			records = append(records, eventlog.NodeRecord(&nodes[i], kafka.Format()))
		}
		for i := range facts {
			records = append(records, eventlog.FactRecord(&facts[i], kafka.Format()))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := client.ProduceSync(ctx, records...).FirstErr(); err != nil {
			t.Fatalf("write the facts: %v", err)
		}
		cfg := materializer.DefaultConfig()
		cfg.Kafka, cfg.DataDir, cfg.NoServer = kafka, t.TempDir(), true
		m, err := materializer.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
		if err != nil {
			t.Fatal(err)
		}
		running, stop := context.WithCancel(context.Background())
		stopped := make(chan error, 1)
		go func() { stopped <- m.Run(running) }()
		t.Cleanup(func() {
			stop()
			if err := <-stopped; err != nil {
				t.Errorf("run the materializer: %v", err)
			}
		})
		servicetest.Eventually(t, 30*time.Second, func() error { return m.Ready(ctx) })
		return m
	})
}
