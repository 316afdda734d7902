package materializer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// BenchmarkIndexes folds a first pass of 800,000 facts about 100,000 clients over an empty store: without indexes, as while a partition catches
// up; with the indexes built at its end; and with indexes that every batch maintains, as in live traffic. Run it with -benchtime=1x.
func BenchmarkIndexes(b *testing.B) {
	const clients, facts = 100_000, 800_000
	records := benchRecords(facts, clients)
	for _, name := range []string{"none", "built-after", "maintained"} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				p := benchPartition(b, false, store.DefaultEvidence)
				b.StartTimer()
				if name == "maintained" {
					buildIndexes(b, p)
				}
				for batch := range slices.Chunk(records, catchUpBatch) {
					if err := p.foldBatch(context.Background(), batch); err != nil {
						b.Fatal(err)
					}
				}
				if name == "built-after" {
					began := time.Now()
					buildIndexes(b, p)
					b.ReportMetric(clients/time.Since(began).Seconds(), "built-rows/s")
				}
			}
			b.ReportMetric(float64(b.N)*facts/b.Elapsed().Seconds(), "facts/s")
		})
	}
}

func buildIndexes(b testing.TB, p *partition) {
	b.Helper()
	for !p.indexes.Valid() {
		if err := p.indexChunk(indexRows); err != nil {
			b.Fatal(err)
		}
	}
}

// The fleet of BenchmarkListStates: three quarters of the clients are online.
const (
	fleetPartitions = 8
	fleetNodes      = 10
	fleetUsers      = 1000
)

// benchFleet returns a materializer with a fleet in its store, indexed.
func benchFleet(b testing.TB, clients int) *Materializer {
	b.Helper()
	first := benchPartition(b, false, 0)
	ps, m := first.parts, &Materializer{metrics: first.parts.metrics}
	ps.cfg.Kafka.Partitions = fleetPartitions
	m.cfg = ps.cfg
	m.shared.Store(ps)
	served := map[int32]*partition{}
	records := map[int32][]*kgo.Record{}
	flush := func(id int32) {
		if err := served[id].foldBatch(context.Background(), records[id]); err != nil {
			b.Fatal(err)
		}
		records[id] = records[id][:0]
	}
	for id := range int32(fleetPartitions) {
		p := newPartition(id, ps)
		var err error
		if p.indexes, err = ps.store.Indexes(id); err != nil {
			b.Fatal(err)
		}
		p.progress.start(0, 0, 0, 0)
		served[id] = p
	}
	var next [fleetPartitions]int64
	for i := range clients {
		id, node := fleetID(i), fmt.Sprintf("emqx@10.0.3.%d", i%fleetNodes)
		opens := opened(id, node, int64(i)*10)
		opens.Username = fmt.Sprint("fleet-", i*7919>>5%fleetUsers)
		ends := closedAt(id, node, int64(i)*10, int64(i)*10+5)
		r := eventlog.FactRecord(&opens, eventlog.JSON)
		p := eventlog.Partition(r.Key, fleetPartitions)
		r.Offset = next[p]
		next[p]++
		records[p] = append(records[p], r)
		if i/fleetNodes%4 == 0 {
			r := eventlog.FactRecord(&ends, eventlog.JSON)
			r.Offset = next[p]
			next[p]++
			records[p] = append(records[p], r)
		}
		if len(records[p]) >= catchUpBatch {
			flush(p)
		}
	}
	for id, p := range served {
		flush(id)
		buildIndexes(b, p)
	}
	m.served.Store(&served)
	return m
}

func fleetID(i int) string { return fmt.Sprintf("VIN%019d", i) }

// BenchmarkListStates reads pages of 100 out of a fleet of a million clients (-short: of 100,000), in 8 partitions, that begin anywhere in the
// list. It reports the slowest of a hundred as p99-ms.
func BenchmarkListStates(b *testing.B) {
	clients := 1_000_000
	if testing.Short() {
		clients = 100_000
	}
	m := benchFleet(b, clients)
	from := t0 + int64(clients)*5
	for _, c := range []struct {
		name string
		q    *presencev1.ListStatesRequest
	}{
		{"all", &presencev1.ListStatesRequest{}},
		{"status", &presencev1.ListStatesRequest{Status: "offline"}},
		{"node", &presencev1.ListStatesRequest{Node: "emqx@10.0.3.7"}},
		{"status-node", &presencev1.ListStatesRequest{Status: "online", Node: "emqx@10.0.3.7"}},
		{"username", &presencev1.ListStatesRequest{Username: "fleet-77"}},
		{"prefix", &presencev1.ListStatesRequest{ClientIdPrefix: "VIN"}},
		{"status-prefix", &presencev1.ListStatesRequest{Status: "offline", ClientIdPrefix: "VIN"}},
		{"since", &presencev1.ListStatesRequest{SinceFromMs: &from}},
		{"status-since", &presencev1.ListStatesRequest{Status: "offline", SinceFromMs: &from}},
		{"node-since", &presencev1.ListStatesRequest{Node: "emqx@10.0.3.7", SinceFromMs: &from}},
		{"username-status", &presencev1.ListStatesRequest{Username: "fleet-77", Status: "online"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			random := rand.New(rand.NewPCG(1, 1))
			c.q.Cluster, c.q.Limit, c.q.Count = "default", 100, true
			var took []time.Duration
			entries := 0
			b.ReportAllocs()
			for b.Loop() {
				at := random.IntN(clients)
				if c.q.GetClientIdPrefix() != "" {
					c.q.ClientIdPrefix = fleetID(at)[:len(fleetID(at))-4] // of 10,000 clients
				}
				c.q.After = &presencev1.Position{SinceMs: t0 + int64(at)*10, ClientId: fleetID(at)}
				began := time.Now()
				resp, err := m.ListStates(context.Background(), c.q)
				took = append(took, time.Since(began))
				if err != nil {
					b.Fatal(err)
				}
				if !resp.GetExact() {
					b.Fatal("not exact")
				}
				entries += len(resp.GetEntries())
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
			b.ReportMetric(float64(entries)/float64(b.N), "entries/op")
		})
	}
}

// BenchmarkCheckStore compares indexes and counters of a fleet of 100,000 clients with its rows.
func BenchmarkCheckStore(b *testing.B) {
	const clients = 100_000
	m := benchFleet(b, clients)
	for b.Loop() {
		resp, err := m.CheckStore(context.Background(), &presencev1.CheckStoreRequest{})
		if err != nil {
			b.Fatal(err)
		}
		for _, c := range resp.GetChecks() {
			if len(c.GetDifferences()) > 0 {
				b.Fatal(c)
			}
		}
	}
	b.ReportMetric(float64(b.N)*clients/b.Elapsed().Seconds(), "clients/s")
}
