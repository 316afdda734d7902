package materializer

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"
	"time"

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

// cpuTime is the time that all threads of the process have computed.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
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
			cpu := cpuTime(b)
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
				if err := publishAll(p); err != nil {
					b.Fatal(err)
				}
				done += len(batch)
			}
			b.ReportMetric(float64(done)/b.Elapsed().Seconds(), "facts/s")
			b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(done), "cpu-µs/fact")
		})
	}
}

// history is the log of a partition as a fetch finds it: keys and values in few pieces of memory.
type history struct {
	bytes []byte
	ends  []int // of the keys and the values
}

// record returns records as a fetch makes them.
func (h *history) fetch(offset, n int) []*kgo.Record {
	records := make([]*kgo.Record, 0, n)
	batch := make([]kgo.Record, min(n, len(h.ends)/2-offset))
	for i := range batch {
		at := 2 * (offset + i)
		begin := 0
		if at > 0 {
			begin = h.ends[at-1]
		}
		batch[i] = kgo.Record{Key: h.bytes[begin:h.ends[at]:h.ends[at]], Value: h.bytes[h.ends[at]:h.ends[at+1]:h.ends[at+1]], Offset: int64(offset + i)}
		records = append(records, &batch[i])
	}
	return records
}

// benchHistories returns what n facts about random clients make of the given number of partitions: a connection, its end, the next connection.
func benchHistories(b *testing.B, n, clients int, partitions int32) []history {
	b.Helper()
	logs := make([]history, partitions)
	random := rand.New(rand.NewPCG(1, 2))
	openedMS := make([]int64, clients)
	for i := range n {
		c := random.IntN(clients)
		id, node, ms := fmt.Sprintf("VIN%010d", c), fmt.Sprintf("emqx@10.0.0.%d", c%8), 1+int64(i)*3_600_000/int64(n)
		f := opened(id, node, ms)
		if f.Username, f.Peer = fmt.Sprintf("fleet-%d", c%100), fmt.Sprintf("10.%d.%d.%d:%d", c>>16&255, c>>8&255, c&255, 30000+c%30000); openedMS[c] != 0 {
			f = closedAt(id, node, openedMS[c], ms)
			ms = 0
		}
		openedMS[c] = ms
		r := eventlog.FactRecord(&f, eventlog.JSON)
		h := &logs[eventlog.Partition(r.Key, partitions)]
		h.bytes = append(h.bytes, r.Key...)
		h.ends = append(h.ends, len(h.bytes))
		h.bytes = append(h.bytes, r.Value...)
		h.ends = append(h.ends, len(h.bytes))
	}
	return logs
}

// BenchmarkRebuild folds 8 partitions into an empty store, each up to its end, and has their indexes complete: what a replay costs, without the
// fetch. "publish" also writes the outbox, which is emptied as a publisher would.
func BenchmarkRebuild(b *testing.B) {
	const facts, clients, partitions = 1_000_000, 200_000, 8
	logs := benchHistories(b, facts, clients, partitions)
	for _, publish := range []bool{false, true} {
		b.Run(map[bool]string{false: "silent", true: "publish"}[publish], func(b *testing.B) {
			b.ReportAllocs()
			var cpu time.Duration
			for range b.N {
				b.StopTimer()
				first := benchPartition(b, publish, store.DefaultEvidence)
				ps := first.parts
				ps.cfg.Kafka.Partitions, ps.turns = partitions, newTurns()
				b.StartTimer()
				began := cpuTime(b)
				var wg sync.WaitGroup
				for id := range int32(partitions) {
					wg.Go(func() {
						if err := rebuild(ps, id, &logs[id]); err != nil {
							b.Error(err)
						}
					})
				}
				wg.Wait()
				cpu += cpuTime(b) - began
			}
			b.ReportMetric(float64(b.N*facts)/b.Elapsed().Seconds(), "facts/s")
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N*facts), "cpu-µs/fact")
		})
	}
}

// rebuild folds a history into an empty partition.
func rebuild(ps *parts, id int32, h *history) (err error) {
	p := newPartition(id, ps)
	if p.indexes, err = ps.store.Indexes(id); err != nil {
		return err
	}
	end := len(h.ends) / 2
	p.progress.start(0, 0, int64(end), 0)
	ps.turns <- struct{}{}
	p.turn, p.folds.blank = true, true
	defer p.endTurn()
	for at := 0; at < end && err == nil; at += catchUpBatch {
		if err = p.fold(context.Background(), h.fetch(at, catchUpBatch)); err != nil || !p.due() {
			continue
		}
		if err = p.flush(); err == nil {
			err = publishAll(p)
		}
	}
	for err == nil && p.toIndex() {
		err = p.indexChunk(indexRows)
	}
	return err
}

// publishAll empties the outbox.
func publishAll(p *partition) error {
	n := p.outbox.depth()
	if n == 0 {
		return nil
	}
	head, err := p.outbox.head(context.Background(), n)
	if err != nil {
		return err
	}
	drop := p.parts.store.NewBatch(p.id)
	drop.DeleteOutbox(head[0].Seq, head[len(head)-1].Seq)
	p.outbox.remove(len(head))
	return drop.Commit()
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
