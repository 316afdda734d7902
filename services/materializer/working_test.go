package materializer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// randomRecords returns the records of random facts: connections, ends that come late, twice or for nothing, observations, deletions, and silences
// after which clients expire.
func randomRecords(random *rand.Rand, n, clients int) []*kgo.Record {
	records := make([]*kgo.Record, 0, n)
	nowMS := int64(1000)
	openedMS := make([]int64, clients)
	for len(records) < n {
		nowMS += random.Int64N(200)
		if random.IntN(n/4) == 0 {
			nowMS += 40 * dayMS
		}
		c := random.IntN(clients)
		id, node := fmt.Sprintf("client-%d", c), fmt.Sprintf("n%d", random.IntN(2))
		f := opened(id, node, nowMS)
		switch k := random.IntN(20); {
		case k < 8 && openedMS[c] != 0:
			f = closedAt(id, node, openedMS[c], nowMS)
		case k == 8:
			f = of(closedAt(id, node, openedMS[c], nowMS), func(f *presence.Fact) { f.ConnectedAtMS = 0 })
		case k == 9:
			f = presence.Fact{Kind: presence.Forgotten, Cluster: "default", ClientID: id, TimeMS: t0 + nowMS, ReceivedMS: t0 + nowMS,
				AsOfMS: t0 + nowMS - random.Int64N(2000), Source: "test"}
		case k == 10:
			f = presence.Fact{Kind: presence.Observed, Cluster: "default", ClientID: id, Dialect: presence.DialectEMQX, Node: node, TimeMS: t0 + nowMS,
				ReceivedMS: t0 + nowMS, Online: presence.Some(random.IntN(2) == 0), QueryStartMS: t0 + nowMS - 10, QueryEndMS: t0 + nowMS, Source: "test"}
		case k == 11 && len(records) > 0:
			again := *records[random.IntN(len(records))]
			records = append(records, &again)
			continue
		default:
			openedMS[c] = nowMS
		}
		records = append(records, eventlog.FactRecord(&f, eventlog.JSON))
	}
	for i, r := range records {
		r.Offset = int64(i)
	}
	return records
}

// dumpAll is dump with logs, indexes, notes, offset and outbox.
func dumpAll(t testing.TB, p *partition) string {
	t.Helper()
	out := bytes.NewBufferString(dump(t, p))
	if _, err := p.parts.store.Rows(0, nil, 1<<30, func(client, _ []byte) error {
		log, complete, cut, err := p.parts.store.Evidence(0, client)
		fmt.Fprintf(out, "%s %v %d %v\n", client, log, complete, cut)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for !p.indexes.Valid() {
		if err := p.indexChunk(indexRows); err != nil {
			t.Fatal(err)
		}
	}
	view, err := p.parts.store.NewView()
	if err != nil {
		t.Fatal(err)
	}
	check, err := view.Check(context.Background(), 0)
	if err = errors.Join(err, view.Close()); err != nil || len(check.Differences) > 0 {
		t.Errorf("indexes: %v, error %v", check.Differences, err)
	}
	fmt.Fprintf(out, "%+v valid %v\n", check, p.indexes.Valid())
	if err := p.parts.store.Dirty(0, func(client []byte) (bool, error) {
		fmt.Fprintf(out, "dirty %s\n", client)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.parts.store.Markers(0, nil, 1<<30, func(client []byte) error {
		// The note of a client that came back stays until the next walk.
		value, _, err := p.parts.store.AppendRow(nil, 0, client)
		if err != nil {
			return err
		}
		var r store.Row
		if _, err = r.Decode(value); err == nil && r.State.Empty() {
			fmt.Fprintf(out, "marker %s\n", client)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.parts.store.Outbox(0, func(c store.Chunk) error {
		records, err := c.AppendRecords(nil)
		for i := range records {
			fmt.Fprintf(out, "%s %s\n", records[i].Key, records[i].Value)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	meta, _, err := p.parts.store.Meta(0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(out, "%+v\n", meta)
	return out.String()
}

// catchingUp is a partition without rows that has its turn.
func catchingUp(t testing.TB, target int64) *partition {
	t.Helper()
	p := expiring(t, true, 24*time.Hour)
	p.progress.start(0, 0, target, 0)
	p.parts.turns = make(turns, 1)
	p.parts.turns <- struct{}{}
	p.turn, p.folds.blank = true, true
	return p
}

// firstDifference returns the first line in which two dumps differ.
func firstDifference(a, b string) string {
	x, y := bytes.Split([]byte(a), []byte("\n")), bytes.Split([]byte(b), []byte("\n"))
	for i := range min(len(x), len(y)) {
		if !bytes.Equal(x[i], y[i]) {
			return fmt.Sprintf("line %d:\n%s\n%s", i, x[i], y[i])
		}
	}
	return fmt.Sprintf("%d lines, %d lines", len(x), len(y))
}

// However the log is cut into takes and commits, and whatever a crash takes before a commit: rows, logs, histories, indexes, outbox and offset are
// what they are if each fact is committed by itself.
func TestWorkingSetsMakeNoDifference(t *testing.T) {
	for seed := range uint64(40) {
		random := rand.New(rand.NewPCG(seed, 7))
		records := randomRecords(random, 100+random.IntN(400), 2+random.IntN(20))
		want := expiring(t, true, 24*time.Hour)
		want.meta.SweptNode = -1 // as the store says before the first commit
		for _, r := range records {
			if err := want.foldBatch(context.Background(), []*kgo.Record{r}); err != nil {
				t.Fatal(err)
			}
		}
		p := catchingUp(t, int64(len(records)))
		p.meta.SweptNode = -1
		if random.IntN(2) == 0 {
			p.loadRows, p.spillFrom = 1+random.IntN(20), 1
		}
		for p.progress.read().next < int64(len(records)) {
			at := int(p.meta.Next)
			// A take may begin below the offset: what is known is passed over.
			from := max(0, at-random.IntN(3))
			if err := p.fold(context.Background(), records[from:min(at+1+random.IntN(60), len(records))]); err != nil {
				t.Fatal(err)
			}
			switch random.IntN(6) {
			case 0:
				blank := p.progress.read().next == 0
				p.outbox = newOutbox()
				restart(t, p)
				p.folds.blank = blank
				if err := p.loadOutbox(); err != nil {
					t.Fatal(err)
				}
			case 1, 2:
				if err := p.flush(); err != nil {
					t.Fatal(err)
				}
			}
			if p.meta.Next == int64(len(records)) {
				if err := p.flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if got, want := dumpAll(t, p), dumpAll(t, want); got != want {
			t.Fatalf("seed %d: %s", seed, firstDifference(got, want))
		}
	}
}

// The first set of an empty partition is loaded as tables: they are what batches write, and what follows is folded onto them.
func TestLoadIsABatch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 7))
	records := randomRecords(random, 4*loadRows, 2*loadRows)
	for _, complete := range []bool{true, false} {
		want := expiring(t, true, 24*time.Hour)
		p := catchingUp(t, int64(len(records)))
		first := len(records)
		if !complete {
			first = 3 * loadRows
		}
		for batch := range slices.Chunk(records, 512) {
			for _, x := range []*partition{want, p} {
				x.outbox.remove(len(x.outbox.chunks)) // what is published stays in the store, to be compared
			}
			if err := want.foldBatch(context.Background(), batch); err != nil {
				t.Fatal(err)
			}
			if err := p.fold(context.Background(), batch); err != nil {
				t.Fatal(err)
			}
			if p.meta.Next == int64(first) {
				if p.folds.size < loadRows {
					t.Fatalf("the set has %d rows, which are not loaded", p.folds.size)
				}
				if err := p.flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := p.flush(); err != nil {
			t.Fatal(err)
		}
		if p.indexes.Valid() != complete {
			t.Errorf("complete %v: indexes are valid: %v", complete, p.indexes.Valid())
		}
		if got, want := dumpAll(t, p), dumpAll(t, want); got != want {
			t.Errorf("complete %v: %s", complete, firstDifference(got, want))
		}
		more := randomRecords(random, 500, 2*loadRows)
		for _, x := range []*partition{want, p} {
			x.outbox.remove(len(x.outbox.chunks))
			for i, r := range more {
				r.Offset = int64(len(records) + i)
			}
			if err := x.foldBatch(context.Background(), more); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := dumpAll(t, p), dumpAll(t, want); got != want {
			t.Errorf("complete %v, and then: %s", complete, firstDifference(got, want))
		}
	}
}

// Partitions that are far behind take turns, are loaded with their indexes, and are live after that.
func TestFarBehindTakesTurns(t *testing.T) {
	l := newLog(t)
	const facts, clients = 140_000, 24_000
	for batch := range slices.Chunk(benchRecords(facts, clients), 10_000) {
		l.produce(batch...)
	}
	cfg := l.config(vfs.NewMem())
	cfg.Publish = false
	m := l.start(cfg)
	m.ready()
	for id, p := range m.owned() {
		if cap(p.parts.turns) >= eventlogtest.Partitions || !p.indexed.Load() {
			t.Errorf("partition %d: %d turns, indexed %v", id, cap(p.parts.turns), p.indexed.Load())
		}
		view, err := p.parts.store.NewView()
		if err != nil {
			t.Fatal(err)
		}
		check, err := view.Check(context.Background(), id)
		if err = errors.Join(err, view.Close()); err != nil || len(check.Differences) > 0 || check.Clients < loadRows {
			t.Errorf("partition %d: %+v, error %v", id, check, err)
		}
	}
	last := l.facts(opened("VIN0000000000000000001", "n9", 1e9))
	if e := m.get("VIN0000000000000000001", last); e.GetNode() != "n9" || e.GetStatus() != "online" {
		t.Errorf("a fact that came later: %v", e)
	}
}

// What a set counts is what it takes, so that the bound is one. A process of its own measures it: here the heap is also that of the
// tests before, whose goroutines may end at any time.
func TestMemoryOfTheWorkingSet(t *testing.T) {
	const alone = "PRESENCE_TEST_ALONE"
	if os.Getenv(alone) == "" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMemoryOfTheWorkingSet$", "-test.v")
		cmd.Env = append(os.Environ(), alone+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if t.Logf("%s", out); !bytes.Contains(out, []byte("rows take")) {
			t.Error("nothing was measured")
		}
		return
	}
	p := catchingUp(t, 1<<40)
	p.parts.cfg.Publish = false
	records := benchRecords(100_000, 20_000)
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for batch := range slices.Chunk(records, catchUpBatch) {
		if err := p.fold(context.Background(), batch); err != nil {
			t.Fatal(err)
		}
	}
	took, counted := heap()-before, int64(p.folds.memory())
	t.Logf("%d rows take %d bytes, %d are counted", p.folds.size, took, counted)
	if took > counted*3/2 || counted > took*2 {
		t.Errorf("%d rows take %d bytes, %d are counted", p.folds.size, took, counted)
	}
	if p.due() {
		t.Errorf("a set of %d bytes is due", counted)
	}
	p.folds.bytes += workingBytes
	if !p.due() {
		t.Error("a set that has grown to its bound is not due")
	}
	runtime.KeepAlive(records)
}

// Who waits for an offset that was folded has it committed.
func TestAwaitedOffsetIsDue(t *testing.T) {
	p := catchingUp(t, 1<<40)
	if err := p.fold(context.Background(), benchRecords(10, 10)); err != nil {
		t.Fatal(err)
	}
	p.folds.began = time.Now().Add(-minOpen)
	if p.due() {
		t.Fatal("the set is due though nobody waits")
	}
	reached := make(chan bool)
	go func() { reached <- p.progress.wait(t.Context(), 9) }()
	eventually(t, "the set is due", p.due)
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	if !<-reached {
		t.Error("the offset was not reached")
	}
	go func() { reached <- p.progress.wait(t.Context(), 10) }()
	eventually(t, "somebody waits", func() bool { return p.progress.awaited(11) })
	if err := p.fold(context.Background(), nil); err != nil || p.due() {
		t.Errorf("due for an offset that is not folded, error %v", err)
	}
	p.progress.advance(11, 0)
	<-reached
}

// A dead letter that Kafka does not take keeps the offset from passing the record.
func TestNothingPassesADeadLetterThatIsNotDurable(t *testing.T) {
	p := catchingUp(t, 1<<40)
	cl, err := kgo.NewClient(kgo.SeedBrokers("127.0.0.1:1"))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	p.parts.dead.client = cl
	records := benchRecords(20, 10)
	if err := p.fold(context.Background(), records[:5]); err != nil {
		t.Fatal(err)
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	records[10].Value = []byte("{")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := p.fold(ctx, records[5:]); err == nil {
		t.Fatal("the dead letter was taken for durable")
	}
	if p.meta.Next > 10 {
		t.Errorf("the offset has come to %d", p.meta.Next)
	}
	meta, _, err := p.parts.store.Meta(0)
	if err != nil || meta.Next != 5 {
		t.Errorf("the store is at %d, error %v", meta.Next, err)
	}
}

// eventually waits until a condition is true.
func eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// What an open set has spilled is not lost when the partition is given up, and the publisher reads all of it.
func TestGivenUpWithASpill(t *testing.T) {
	p := catchingUp(t, 1<<40)
	p.spillFrom = 1
	const facts = 5000
	if err := p.fold(context.Background(), benchRecords(facts, facts)); err != nil {
		t.Fatal(err)
	}
	if p.folds.spill == nil || p.folds.onDisk == 0 {
		t.Fatal("nothing was spilled")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := p.work(ended); err != nil {
		t.Fatal(err)
	}
	if err := p.flush(); err != nil {
		t.Fatal(err)
	}
	u := &publisher{p: p}
	if err := u.load(p.outbox.chunks); err != nil || len(u.records) != facts {
		t.Errorf("%d of %d records, error %v", len(u.records), facts, err)
	}
	if n := p.parts.spilled.Load(); n == 0 || n != int64(p.outbox.stored) {
		t.Errorf("%d bytes are spilled, %d stored", n, p.outbox.stored)
	}
	if p.outbox.end(); p.parts.spilled.Load() != 0 {
		t.Errorf("%d bytes are spilled after the end", p.parts.spilled.Load())
	}
}
