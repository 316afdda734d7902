package materializer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// sound waits until indexes are complete and nothing differs; it returns what was checked.
func (i *instance) sound() (clients, entries int64) {
	i.t.Helper()
	servicetest.Eventually(i.t, patience, func() error {
		resp, err := i.CheckStore(context.Background(), &presencev1.CheckStoreRequest{})
		if err != nil {
			return err
		}
		clients, entries = 0, 0
		for _, c := range resp.GetChecks() {
			if len(c.GetDifferences()) > 0 || c.GetRepairing() {
				return fmt.Errorf("partition %d: %q", c.GetPartition(), c.GetDifferences())
			}
			clients, entries = clients+c.GetClients(), entries+c.GetIndexEntries()
		}
		if len(resp.GetChecks()) != int(resp.GetPartitionCount()) {
			return errors.New("not all partitions are owned")
		}
		return nil
	})
	return clients, entries
}

// A store that is filled from the log, or from client-state, has indexes once it has caught up; they are there after a restart; and what is
// found to differ is built anew.
func TestIndexesAreBuiltKeptAndRepaired(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	l.facts(opened("a", "n1", 1000), opened("b", "n2", 2000), opened("c", "n1", 3000))
	last := l.facts(closedAt("c", "n1", 3000, 4000))
	m := l.start(l.config(fs)).ready()
	m.get("c", last)
	if clients, entries := m.sound(); clients != 3 || entries != 9 {
		t.Errorf("%d clients with %d entries", clients, entries)
	}
	resp, err := m.ListStates(context.Background(), &presencev1.ListStatesRequest{Cluster: "default", Status: "online", Limit: 10, Count: true})
	if err != nil || !resp.GetExact() || resp.GetTotal() != 2 || len(resp.GetEntries()) != 2 || resp.GetEntries()[1].GetClientId() != "b" {
		t.Errorf("online: %v, %v", resp, err)
	}
	m.published(l)
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}

	m = l.start(l.config(fs)).ready()
	id := eventlog.Partition(eventlog.ClientKey("default", "a"), l.cfg.Partitions)
	if check, err := m.CheckStore(context.Background(), &presencev1.CheckStoreRequest{Partitions: []int32{id}}); err != nil || check.GetChecks()[0].GetRepairing() {
		t.Errorf("after a restart: %v, %v", check, err)
	}
	plant(t, m.owned()[id].parts.store, id, eventlog.ClientKey("default", "a"))
	check, err := m.CheckStore(context.Background(), &presencev1.CheckStoreRequest{Partitions: []int32{id}, Repair: true})
	if err != nil || len(check.GetChecks()) != 1 || len(check.GetChecks()[0].GetDifferences()) == 0 || !check.GetChecks()[0].GetRepairing() {
		t.Fatalf("after a difference was planted: %v, %v", check, err)
	}
	if clients, entries := m.sound(); clients != 3 || entries != 9 {
		t.Errorf("after the repair: %d clients with %d entries", clients, entries)
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}

	m = l.start(l.config(vfs.NewMem())).ready() // from client-state
	if clients, entries := m.sound(); clients != 3 || entries != 9 {
		t.Errorf("restored: %d clients with %d entries", clients, entries)
	}
}

// plant writes a row as if there had been none, so that it is counted twice.
func plant(t *testing.T, db *store.Store, partition int32, client []byte) {
	t.Helper()
	value, found, err := db.AppendRow(nil, partition, client)
	if err != nil || !found {
		t.Fatal(found, err)
	}
	var r store.Row
	state, err := r.Decode(value)
	if err != nil {
		t.Fatal(err)
	}
	x, err := db.Indexes(partition)
	if err != nil {
		t.Fatal(err)
	}
	b := x.NewBatch()
	b.PutRow(client, store.Indexed{}, &r, state)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
}

func TestListRefusesBadRequests(t *testing.T) {
	p := benchPartition(t, false, store.DefaultEvidence)
	m := &Materializer{cfg: p.parts.cfg, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	ctx := context.Background()
	list := func(q *presencev1.ListStatesRequest) error {
		_, err := m.ListStates(ctx, q)
		return err
	}
	usernames := func(q *presencev1.ListUsernamesRequest) error {
		_, err := m.ListUsernames(ctx, q)
		return err
	}
	_, counts := m.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: "No"})
	for field, err := range map[string]error{
		"cluster":   list(&presencev1.ListStatesRequest{Cluster: "a/b", Limit: 1}),
		"status":    list(&presencev1.ListStatesRequest{Cluster: "default", Status: "gone", Limit: 1}),
		"limit":     list(&presencev1.ListStatesRequest{Cluster: "default"}),
		"limit:":    list(&presencev1.ListStatesRequest{Cluster: "default", Limit: maxListed + 1}),
		"limit: -1": usernames(&presencev1.ListUsernamesRequest{Cluster: "default", Limit: -1}),
		"cluster:":  usernames(&presencev1.ListUsernamesRequest{Limit: 1}),
		"cluster: ": counts,
	} {
		if status.Code(err) != codes.InvalidArgument || !strings.HasPrefix(status.Convert(err).Message(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	resp, err := m.ListStates(ctx, &presencev1.ListStatesRequest{Cluster: "default", Limit: 1, Partitions: []int32{5, 0, 0, 7}})
	if err != nil || !slices.Equal(resp.GetNotOwned(), []int32{5, 7}) || len(resp.GetPartitions()) != 1 || resp.GetPartitionCount() != 1 {
		t.Errorf("partitions of others: %v, %v", resp, err)
	}
	if err := p.parts.store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := list(&presencev1.ListStatesRequest{Cluster: "default", Limit: 1}); status.Code(err) != codes.Unavailable {
		t.Errorf("after the store was closed: %v", err)
	}
}

func TestListsBeforeTheStart(t *testing.T) {
	l := newLog(t)
	m, err := New(l.config(vfs.NewMem()), testLog(t), newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	resp, err := m.ListStates(ctx, &presencev1.ListStatesRequest{Cluster: "default", Limit: 1, Partitions: []int32{2}})
	if err != nil || !slices.Equal(resp.GetNotOwned(), []int32{2}) || len(resp.GetPartitions()) != 0 {
		t.Errorf("list: %v, %v", resp, err)
	}
	if counts, err := m.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: "default"}); err != nil || len(counts.GetPartitions()) != 0 {
		t.Errorf("counts: %v, %v", counts, err)
	}
	if names, err := m.ListUsernames(ctx, &presencev1.ListUsernamesRequest{Cluster: "default", Limit: 1}); err != nil || len(names.GetPartitions()) != 0 {
		t.Errorf("usernames: %v, %v", names, err)
	}
	if checks, err := m.CheckStore(ctx, &presencev1.CheckStoreRequest{Partitions: []int32{1}}); err != nil || len(checks.GetNotOwned()) != 1 {
		t.Errorf("checks: %v, %v", checks, err)
	}
}

// A filter that selects few of many rows makes short pages, not long calls.
func TestListLooksAtABoundedNumberOfRows(t *testing.T) {
	p := benchPartition(t, false, 0)
	m := &Materializer{cfg: p.parts.cfg, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	const clients = 2*maxLooked + 100
	records := benchRecords(clients, clients)
	for chunk := range slices.Chunk(records, catchUpBatch) {
		if err := p.foldBatch(context.Background(), chunk); err != nil {
			t.Fatal(err)
		}
	}
	last := opened("z", "n2", 1000)
	r := eventlog.FactRecord(&last, eventlog.JSON)
	r.Offset = clients
	if err := p.foldBatch(context.Background(), []*kgo.Record{r}); err != nil {
		t.Fatal(err)
	}
	// There are no indexes: all rows have to be looked at.
	q := &presencev1.ListStatesRequest{Cluster: "default", Node: "n2", Limit: 10}
	for page := 1; ; page++ {
		resp, err := m.ListStates(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		if q.After = resp.GetReadTo(); page < 3 {
			if len(resp.GetEntries()) != 0 || q.GetAfter() == nil || resp.GetExact() {
				t.Fatalf("page %d: %d entries, read to %v", page, len(resp.GetEntries()), q.GetAfter())
			}
			continue
		}
		if len(resp.GetEntries()) != 1 || q.GetAfter() != nil {
			t.Fatalf("page %d: %v, read to %v", page, resp.GetEntries(), q.GetAfter())
		}
		break
	}
	if n := testutil.CollectAndCount(p.parts.metrics.listRows); n != 1 {
		t.Errorf("%d metrics", n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	q.After = nil
	if _, err := m.ListStates(ctx, q); status.Code(err) != codes.Canceled {
		t.Errorf("a list that nobody waits for ends with %v", err)
	}
}

// Another allowance makes other statuses of the same rows: they are swept, and lists look through them until they are.
func TestAnotherAllowanceIsSwept(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	cfg := l.config(fs)
	l.node(started("n1", -dayMS))
	m := l.start(cfg).ready()
	older := func(f *presence.Fact) { f.Dialect = presence.DialectEMQX50 }
	last := l.facts(of(opened("a", "n1", 1000), older), of(opened("a", "n2", 6000), older), of(closedAt("a", "n2", 6000, 7000), older))
	if got := m.get("a", last).GetStatus(); got != "offline" {
		t.Fatalf("with a small allowance it is %s", got)
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	l.node(presence.NodeFact{ID: "x", Kind: presence.NodeAlive, Cluster: "default", Node: "n1", Dialect: presence.DialectEMQX, TimeMS: t0, ReceivedMS: t0})
	cfg.Allowance = time.Minute
	m = l.start(cfg).ready()
	servicetest.Eventually(t, patience, func() error {
		resp, err := m.ListStates(t.Context(), &presencev1.ListStatesRequest{Cluster: "default", Status: "unknown", Limit: 10, Count: true})
		if err != nil || !resp.GetExact() {
			return fmt.Errorf("exact: %v, %w", resp.GetExact(), err)
		}
		if len(resp.GetEntries()) != 1 || resp.GetTotal() != 1 {
			t.Fatalf("with a large allowance the list is %v", resp)
		}
		return nil
	})
	if got := m.get("a", nil); got.GetStatusReason() != "order_undecided" {
		t.Errorf("%v", got)
	}
}

// A row that was written before there were indexes may not have the latest since: the building brings row and index to it.
func TestBuildingBringsRowsUpToDate(t *testing.T) {
	p := benchPartition(t, false, 0)
	foldFacts(t, p, 0, opened("a", "n1", 1000))
	key := eventlog.ClientKey("default", "a")
	row := func() (r store.Row) {
		value, found, err := p.parts.store.AppendRow(nil, 0, key)
		if err == nil && found {
			_, err = r.Decode(value)
		}
		if err != nil || !found {
			t.Fatalf("found %v, %v", found, err)
		}
		return r
	}
	r := row()
	r.Last.SinceMS--
	b := p.indexes.NewBatch()
	b.PutRow(key, store.Indexed{}, &r, r.State.Append(nil))
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	buildIndexes(t, p)
	c, err := p.checkStore(t.Context(), false)
	if got := row().Last.SinceMS; err != nil || len(c.GetDifferences()) != 0 || got != t0+1000 {
		t.Errorf("since %d, differences %q, error %v", got-t0, c.GetDifferences(), err)
	}
}

// Texts that are very long make short pages, not large answers.
func TestListAnswersWithABoundedNumberOfBytes(t *testing.T) {
	p := benchPartition(t, false, 0)
	m := &Materializer{cfg: p.parts.cfg, metrics: p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: p})
	m.shared.Store(p.parts)
	const clients = 2*maxListedBytes/60_000 + 3
	var facts []presence.Fact
	for i := range clients {
		facts = append(facts, opened(fmt.Sprintf("%04d%s", i, strings.Repeat("x", 60_000)), "n1", 1000))
	}
	foldFacts(t, p, 0, facts...)
	q := &presencev1.ListStatesRequest{Cluster: "default", Limit: maxListed}
	var pages, entries int
	for more := true; more; more = q.GetAfter() != nil {
		resp, err := m.ListStates(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range resp.GetEntries() {
			if e.GetClientId()[:4] != fmt.Sprintf("%04d", entries) {
				t.Fatalf("client %.4s is entry %d", e.GetClientId(), entries)
			}
			entries++
		}
		pages++
		q.After = resp.GetReadTo()
	}
	if pages != 3 || entries != clients {
		t.Errorf("%d of %d clients in %d pages", entries, clients, pages)
	}
}

// Whatever is folded, swept and indexed meanwhile, a list is at least as new as the freshness that goes with it.
func TestListsAreAsNewAsTheySay(t *testing.T) {
	w := newRowWorld(t, 77)
	w.ps.cfg.ExpireAfter = 0
	for range 100 {
		w.fact()
	}
	const facts = 400
	at := map[int32]int64{} // by partition: what was folded before
	for _, p := range w.parts {
		at[p.id] = p.meta.Next
	}
	clients := map[int32]string{}
	for i := 0; len(clients) < worldPartitions; i++ {
		id := fmt.Sprint("watched-", i)
		clients[eventlog.Partition(eventlog.ClientKey("default", id), worldPartitions)] = id
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for ctx.Err() == nil {
				resp, err := w.m.ListStates(context.Background(), &presencev1.ListStatesRequest{Cluster: "default", ClientIdPrefix: "watched-", Limit: 10})
				if err != nil {
					t.Error(err)
					return
				}
				seen := map[int32]int64{}
				for _, e := range resp.GetEntries() {
					seen[e.GetPartition()] = e.GetConnection().GetConnectedAtMs() - t0
				}
				for _, p := range resp.GetPartitions() {
					// The n-th fact of a watched client opens a connection at n.
					if n := p.GetAppliedOffset() - at[p.GetPartition()]; seen[p.GetPartition()] < n {
						t.Errorf("partition %d has applied %d facts, the row shows %d", p.GetPartition(), n, seen[p.GetPartition()])
						return
					}
				}
			}
		})
	}
	for n := range int64(facts) {
		for _, p := range w.parts {
			f := opened(clients[p.id], "n9", n+1)
			r := eventlog.FactRecord(&f, eventlog.JSON)
			r.Partition, r.Offset = p.id, int64(len(w.logs[p.id]))
			w.logs[p.id] = append(w.logs[p.id], r)
			w.replay(p)
			if !p.indexes.Valid() {
				w.must(p.indexChunk(10))
			}
		}
	}
	cancel()
	wg.Wait()
}
