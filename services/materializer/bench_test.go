package materializer

import (
	"context"
	"fmt"
	"log/slog"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// benchPartition returns a partition over an empty store, without Kafka: what is folded is committed, and stays in the outbox.
func benchPartition(b testing.TB, publish bool, evidence int) *partition {
	b.Helper()
	db, err := store.Open(b.TempDir(), store.Options{CacheBytes: 64 << 20, FS: vfs.Default, EvidencePerClient: evidence})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	cfg := DefaultConfig()
	cfg.DataDir, cfg.NoServer, cfg.Publish, cfg.Kafka.Brokers, cfg.Kafka.Partitions = "data", true, publish, []string{"127.0.0.1:1"}, 1
	cfg.EvidencePerClient = evidence
	log := slog.New(slog.DiscardHandler)
	m, err := New(cfg, log, newRegistry())
	if err != nil {
		b.Fatal(err)
	}
	ps := &parts{cfg: cfg, store: db, fetcher: &fetcher{wake: make(chan struct{}, 1)}, metrics: m.metrics, log: log}
	ps.dead = &deadLetters{metrics: m.metrics}
	ps.nodes = newNodes(ps.dead, m.metrics, log)
	m.shared.Store(ps)
	p := newPartition(0, ps)
	if p.indexes, err = db.Indexes(0); err != nil {
		b.Fatal(err)
	}
	m.setServed(0, p)
	p.progress.start(0, 0, 1<<62, 0)
	b.Cleanup(func() { m.setServed(0, nil) })
	return p
}

// benchRecords returns the records of n facts about the given number of clients: half of them open a connection, half end it.
func benchRecords(n, clients int) []*kgo.Record {
	records := make([]*kgo.Record, n)
	for i := range records {
		id, ms := fmt.Sprintf("VIN%019d", i*7919%clients), int64(i/clients)*10_000
		f := opened(id, "emqx@10.0.3.11", ms)
		if i/clients%2 == 1 {
			f = closedAt(id, "emqx@10.0.3.11", ms-10_000, ms)
		}
		records[i] = eventlog.FactRecord(&f, eventlog.JSON)
		records[i].Offset = int64(i)
	}
	return records
}

// BenchmarkFold decodes, folds and commits facts, in batches as of a replay, and of live traffic; "publish" also writes the outbox, which
// is emptied as a publisher would; "unexplained" keeps no evidence, "unremembered" no sessions either.
func BenchmarkFold(b *testing.B) {
	for _, c := range []struct {
		name     string
		batch    int
		publish  bool
		evidence int
		sessions int
	}{
		{"replay", catchUpBatch, false, store.DefaultEvidence, store.DefaultSessions}, {"replay-unexplained", catchUpBatch, false, 0, store.DefaultSessions},
		{"replay-unremembered", catchUpBatch, false, 0, 0},
		{"replay-publish", catchUpBatch, true, store.DefaultEvidence, store.DefaultSessions},
		{"replay-publish-unexplained", catchUpBatch, true, 0, store.DefaultSessions},
		{"live-publish", 64, true, store.DefaultEvidence, store.DefaultSessions},
		{"live-publish-unexplained", 64, true, 0, store.DefaultSessions}, {"live-publish-unremembered", 64, true, 0, 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			const clients = 100_000
			records := benchRecords(8*clients, clients)
			p := benchPartition(b, c.publish, c.evidence)
			p.parts.cfg.SessionsPerClient = c.sessions
			b.ReportAllocs()
			b.ResetTimer()
			done := 0
			for done < b.N {
				begin := done % len(records)
				batch := records[begin:min(begin+c.batch, len(records))]
				if begin == 0 {
					p.meta.Next = 0 // the same history again: every fact is known
				}
				if err := p.foldBatch(context.Background(), batch); err != nil {
					b.Fatal(err)
				}
				if n := p.outbox.depth(); n > 0 {
					head, err := p.outbox.head(context.Background(), n)
					if err != nil {
						b.Fatal(err)
					}
					drop := p.parts.store.NewBatch(0)
					drop.DeleteOutbox(head[0].Seq, head[n-1].Seq)
					if err := drop.Commit(); err != nil {
						b.Fatal(err)
					}
					p.outbox.remove(n)
				}
				done += len(batch)
			}
			b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "facts/s")
		})
	}
}

func BenchmarkGetStates(b *testing.B) {
	const clients = 100_000
	p := benchPartition(b, false, store.DefaultEvidence)
	records := benchRecords(clients, clients)
	for len(records) > 0 {
		n := min(catchUpBatch, len(records))
		if err := p.foldBatch(context.Background(), records[:n]); err != nil {
			b.Fatal(err)
		}
		records = records[n:]
	}
	m := &Materializer{cfg: p.parts.cfg, log: p.log, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprintf("VIN%019d", i*91%clients)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		resp, err := m.GetStates(context.Background(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: ids[i%len(ids)]}}})
		if err != nil || !resp.GetEntries()[0].GetFound() {
			b.Fatal(resp, err)
		}
	}
}
