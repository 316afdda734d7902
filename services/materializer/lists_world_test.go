package materializer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const worldPartitions = 3

// rowWorld is partitions without Kafka, to which random things happen. Logs of facts are kept, so that a crash can be followed by what a
// restart would fold.
type rowWorld struct {
	t      *testing.T
	random *rand.Rand
	fs     *vfs.MemFS
	db     *store.Store
	m      *Materializer
	ps     *parts
	parts  [worldPartitions]*partition
	logs   [worldPartitions][]*kgo.Record
	nodes  *nodes
	nodeMS int64
	nodeAt int64
	nowMS  int64
}

var (
	worldClusters = []string{"default", "default-a", "b"}
	worldNodes    = []string{"n", "n\x00", "n1", "\x00\x01", "node-é"}
	worldUsers    = []string{"", "fleet", "fleet\x00", "fleet2", "\x00\xff"[:1]}
	worldClients  = func() []string {
		var ids []string
		for _, id := range []string{"a", "a\x00", "a\x00\x01", "a/b", "ab", "b\u00ff", "\U0010ffff", "\U0010ffff\U0010ffff"} {
			for i := range 6 {
				ids = append(ids, id+strings.Repeat("x", i))
			}
		}
		return ids
	}()
)

func newRowWorld(t *testing.T, seed uint64) *rowWorld {
	w := &rowWorld{t: t, random: rand.New(rand.NewPCG(seed, 1)), fs: vfs.NewCrashableMem()}
	w.open()
	t.Cleanup(func() {
		if err := w.db.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *rowWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// open opens the store as it is in the file system, as a start does.
func (w *rowWorld) open() {
	w.t.Helper()
	var err error
	w.db, err = store.Open("data", store.Options{CacheBytes: 1 << 20, FS: w.fs})
	w.must(err)
	cfg := DefaultConfig()
	cfg.ExpireAfter = 24 * time.Hour
	cfg.DataDir, cfg.NoServer, cfg.Kafka.Brokers, cfg.Kafka.Partitions = "data", true, []string{"127.0.0.1:1"}, worldPartitions
	log := slog.New(slog.DiscardHandler)
	w.m, err = New(cfg, log, newRegistry())
	w.must(err)
	w.ps = &parts{cfg: cfg, store: w.db, fetcher: &fetcher{wake: make(chan struct{}, 1)}, metrics: w.m.metrics, log: log, dead: &deadLetters{metrics: w.m.metrics}}
	if w.nodes == nil {
		w.nodes = newNodes(w.ps.dead, w.m.metrics, log)
		close(w.nodes.loaded)
	}
	w.ps.nodes = w.nodes
	w.m.shared.Store(w.ps)
	for id := range int32(worldPartitions) {
		p := newPartition(id, w.ps)
		p.meta, _, err = w.db.Meta(id)
		w.must(err)
		p.indexes, err = w.db.Indexes(id)
		w.must(err)
		w.must(p.loadOutbox())
		p.progress.start(p.meta.Next, p.meta.AppliedMS, 0, 0)
		w.parts[id] = p
		w.m.setServed(id, p)
		w.replay(p)
	}
}

// replay folds what the log has and the store has not.
func (w *rowWorld) replay(p *partition) {
	w.t.Helper()
	records := w.logs[p.id]
	for len(records) > 0 && p.meta.Next < int64(len(w.logs[p.id])) {
		at := p.meta.Next
		n := min(at+1+w.random.Int64N(5), int64(len(records)))
		w.must(p.foldBatch(context.Background(), records[at:n]))
		if p.outbox.full() {
			p.outbox.remove(len(p.outbox.chunks))
		}
	}
}

// crash loses what was not synced, or some of it.
func (w *rowWorld) crash() {
	w.t.Helper()
	if w.random.IntN(2) == 0 {
		w.must(w.db.Sync())
	}
	after := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: w.random.IntN(101), RNG: w.random})
	w.must(w.db.Close())
	w.fs = after
	w.open()
}

func pick[T any](w *rowWorld, of []T) T { return of[w.random.IntN(len(of))] }

// fact makes a random fact and folds it.
func (w *rowWorld) fact() string {
	w.t.Helper()
	if w.nowMS += 1 + w.random.Int64N(3000); w.random.IntN(30) == 0 {
		w.nowMS += 20 * hourMS
	}
	cluster, id, node := pick(w, worldClusters), pick(w, worldClients), pick(w, worldNodes)
	f := opened(id, node, w.nowMS)
	switch w.random.IntN(16) {
	case 15:
		f = presence.Fact{Kind: presence.Forgotten, ClientID: id, TimeMS: t0 + w.nowMS, ReceivedMS: t0 + w.nowMS, AsOfMS: t0 + w.nowMS - w.random.Int64N(5000), Source: "test"}
	case 14:
		f = closedAt(id, node, 0, w.nowMS) // a stranger's
		f.Dialect, f.Node, f.Connection, f.ConnectedAtMS, f.Reason = presence.DialectMosquitto21, "m", fmt.Sprint("127.0.0.1:", w.nowMS), 0, presence.ReasonNotAuthorized
	case 0, 1, 2, 3:
		f = closedAt(id, node, w.nowMS-w.random.Int64N(10_000), w.nowMS)
	case 4, 5:
		f = presence.Fact{Kind: presence.Observed, Cluster: cluster, ClientID: id, Dialect: presence.DialectEMQX, ReceivedMS: t0 + w.nowMS,
			TimeMS: t0 + w.nowMS, Online: presence.Some(w.random.IntN(2) == 0), QueryStartMS: t0 + w.nowMS - 10, QueryEndMS: t0 + w.nowMS - 5}
	}
	f.Cluster, f.Username = cluster, pick(w, worldUsers)
	return w.fold(f)
}

// fold appends a fact to the log, folds it, and returns its key.
func (w *rowWorld) fold(f presence.Fact) string {
	w.t.Helper()
	f.SetID()
	r := eventlog.FactRecord(&f, eventlog.JSON)
	p := w.parts[eventlog.Partition(r.Key, worldPartitions)]
	r.Partition, r.Offset = p.id, int64(len(w.logs[p.id]))
	w.logs[p.id] = append(w.logs[p.id], r)
	w.replay(p)
	return string(r.Key)
}

// nodeFact makes a random change of nodes.
func (w *rowWorld) nodeFact() {
	w.t.Helper()
	w.nodeMS = w.nowMS - w.random.Int64N(4000)
	f := started(pick(w, worldNodes), w.nodeMS)
	f.Cluster = pick(w, worldClusters)
	switch w.random.IntN(7) {
	case 4, 5:
		// Whether a client that was never seen is offline follows the feed.
		f = presence.NodeFact{ID: fmt.Sprint(w.nodeAt), Kind: presence.Feed, Cluster: f.Cluster, Bridge: "bridge", ReceivedMS: t0 + w.nowMS, LeaseMS: 1000}
		if w.random.IntN(2) == 0 {
			f.CompleteSinceMS, f.ResyncedMS = t0+w.nowMS, t0+w.nowMS
		}
	case 6:
		f.Node, f.Kind, f.StartedMS, f.StartedReceivedMS = fmt.Sprint("joins-", w.nodeAt), presence.NodeAlive, 0, 0
		if w.random.IntN(2) == 0 {
			f.Kind = presence.NodeGone // so that the others count again
		}
	case 0:
		f.Kind, f.StartedMS, f.StartedReceivedMS = presence.NodeGone, 0, 0
	case 1:
		f.Kind, f.StartedMS, f.StartedReceivedMS = presence.NodeSilent, 0, 0
	case 2:
		f.Kind, f.StartedMS, f.StartedReceivedMS = presence.NodeAlive, 0, 0
	}
	r := eventlog.NodeRecord(&f, eventlog.JSON)
	r.Offset = w.nodeAt
	w.nodeAt++
	w.must(w.nodes.apply(context.Background(), []*kgo.Record{r}))
}

// remove deletes a row, as expiry does.
func (w *rowWorld) remove() {
	w.t.Helper()
	key := eventlog.ClientKey(pick(w, worldClusters), pick(w, worldClients))
	p := w.parts[eventlog.Partition(key, worldPartitions)]
	value, found, err := w.db.AppendRow(nil, p.id, key)
	w.must(err)
	if !found {
		return
	}
	var r store.Row
	_, err = r.Decode(value)
	w.must(err)
	b := p.indexes.NewBatch()
	b.DeleteRow(key, r.Indexed())
	w.must(b.Commit())
}

// step does one random thing.
func (w *rowWorld) step() {
	w.t.Helper()
	p := pick(w, w.parts[:])
	switch n := w.random.IntN(100); {
	case n < 55:
		w.fact()
	case n < 58:
		w.expire(p)
	case n < 60:
		w.merge(p)
	case n < 68:
		w.nodeFact()
	case n < 80:
		if p.sweep.aim(w.nodes.table(), p.meta.SweptNode); p.sweep.active() {
			w.must(p.sweepChunk(context.Background()))
		}
	case n < 92:
		if !p.indexes.Valid() {
			w.must(p.indexChunk(1 + w.random.IntN(20)))
		}
	case n < 95:
		w.remove()
	case n < 97:
		_, err := p.cleanChunk(w.nodes.table())
		w.must(err)
	case n < 98:
		w.must(p.indexes.Invalidate())
	default:
		w.crash()
	}
}

// settle finishes sweeps and indexes.
func (w *rowWorld) settle() {
	w.t.Helper()
	for _, p := range w.parts {
		for p.sweep.aim(w.nodes.table(), p.meta.SweptNode); p.sweep.active(); {
			w.must(p.sweepChunk(context.Background()))
		}
		for !p.indexes.Valid() {
			w.must(p.indexChunk(indexRows))
		}
	}
}

// truth is a client as its row and the node table say.
type truth struct {
	id, status, node, username string
	since                      int64
}

func (w *rowWorld) truths(cluster string) []truth {
	w.t.Helper()
	var all []truth
	for _, p := range w.parts {
		_, err := w.db.Clients(p.id, cluster, nil, 1<<30, func(client, value []byte) error {
			var r store.Row
			if _, err := r.Decode(value); err != nil {
				return err
			}
			if r.State.Empty() {
				return nil
			}
			v := presence.Status(&r.State, w.nodes.table().cluster(cluster), p.allowanceMS())
			all = append(all, truth{clientOf(cluster, client), v.Status.String(), v.Node, r.Username(v.Node, connectionKey(&v)), v.SinceMS})
			return nil
		})
		w.must(err)
	}
	slices.SortFunc(all, func(a, b truth) int { return strings.Compare(a.id, b.id) })
	return all
}

// exact reports what exact is to be.
func (w *rowWorld) exact(cluster string) bool {
	for _, p := range w.parts {
		if touch, ok := w.nodes.table().touched[cluster]; !p.indexes.Valid() || ok && touch.offset > p.meta.SweptNode {
			return false
		}
	}
	return true
}

func (w *rowWorld) indexed() bool {
	return !slices.ContainsFunc(w.parts[:], func(p *partition) bool { return !p.indexes.Valid() })
}

// filter makes a random list request.
func (w *rowWorld) filter() *presencev1.ListStatesRequest {
	q := &presencev1.ListStatesRequest{Cluster: pick(w, worldClusters), Limit: 1 + w.random.Int32N(20), Count: w.random.IntN(2) == 0}
	if w.random.IntN(2) == 0 {
		q.Status = pick(w, []string{"online", "offline", "unknown"})
	}
	if w.random.IntN(3) == 0 {
		q.Node = pick(w, worldNodes)
	}
	if w.random.IntN(3) == 0 {
		q.Username = pick(w, worldUsers)
	}
	if w.random.IntN(3) == 0 {
		q.ClientIdPrefix = pick(w, []string{"a", "a\x00", "\U0010ffff", "b\u00ff", "nobody"})
	}
	if w.random.IntN(3) == 0 {
		from := w.bound(q.GetCluster())
		q.SinceFromMs = &from
	}
	if w.random.IntN(4) == 0 {
		before := w.bound(q.GetCluster())
		q.SinceBeforeMs = &before
	}
	return q
}

// bound makes a bound of since, which is often that of a client.
func (w *rowWorld) bound(cluster string) int64 {
	if all := w.truths(cluster); len(all) > 0 && w.random.IntN(2) == 0 {
		return pick(w, all).since
	}
	return t0 + w.random.Int64N(w.nowMS+1)
}

func bySince(q *presencev1.ListStatesRequest) bool {
	return q.SinceFromMs != nil || q.SinceBeforeMs != nil
}

func selects(q *presencev1.ListStatesRequest, c truth) bool {
	return (q.GetStatus() == "" || c.status == q.GetStatus()) && (q.GetNode() == "" || c.node == q.GetNode()) &&
		(q.GetUsername() == "" || c.username == q.GetUsername()) && strings.HasPrefix(c.id, q.GetClientIdPrefix()) &&
		(q.SinceFromMs == nil || c.since >= q.GetSinceFromMs()) && (q.SinceBeforeMs == nil || c.since < q.GetSinceBeforeMs())
}

// list reads all pages, and calls between between two of them.
func (w *rowWorld) list(q *presencev1.ListStatesRequest, between func()) (all []truth, first *presencev1.ListStatesResponse) {
	w.t.Helper()
	for pages := 0; ; pages++ {
		if pages > 1000 {
			w.t.Fatalf("%v: no end", q)
		}
		resp, err := w.m.ListStates(context.Background(), q)
		w.must(err)
		if first == nil {
			first = resp
		}
		if len(resp.GetEntries()) > int(q.GetLimit()) || len(resp.GetPartitions()) != worldPartitions {
			w.t.Fatalf("%v: %d entries, of partitions %v", q, len(resp.GetEntries()), resp.GetPartitions())
		}
		for _, e := range resp.GetEntries() {
			all = append(all, truth{id: e.GetClientId(), status: e.GetStatus(), node: e.GetNode(), since: e.GetSinceMs()})
		}
		if q.After = resp.GetReadTo(); q.GetAfter() == nil {
			return all, first
		}
		if between != nil {
			between()
		}
	}
}

// saysHowFar reports whether an error says that indexes are being built, how far they are, and when to ask again.
func saysHowFar(err error) bool {
	s := status.Convert(err)
	return len(s.Details()) == 2 && (strings.Contains(s.Message(), "clients so far") || strings.Contains(s.Message(), "records behind"))
}

// checkList compares a list with what the rows say.
func (w *rowWorld) checkList(q *presencev1.ListStatesRequest) {
	w.t.Helper()
	exact := w.exact(q.GetCluster())
	if bySince(q) && !w.indexed() {
		if _, err := w.m.ListStates(context.Background(), q); status.Code(err) != codes.Unavailable || !saysHowFar(err) {
			w.t.Fatalf("%v: a list by since without an index: %v", q, err)
		}
		return
	}
	var want []truth
	for _, c := range w.truths(q.GetCluster()) {
		if selects(q, c) {
			c.username = "" // a list does not always tell it
			want = append(want, c)
		}
	}
	if bySince(q) {
		slices.SortStableFunc(want, func(a, b truth) int { return cmp.Compare(a.since, b.since) })
	}
	got, first := w.list(q, nil)
	if first.GetExact() != exact {
		w.t.Fatalf("%v: exact is %v, want %v", q, first.GetExact(), exact)
	}
	if bySince(q) && !exact {
		// Some may be missing; those that are there are what the rows say, in the order of that.
		want = slices.DeleteFunc(want, func(c truth) bool { return !slices.Contains(got, c) })
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("%v (exact: %v)\n is    %+v,\n want  %+v", q, exact, got, want)
	}
	counted := q.GetCount() && w.indexed() && !bySince(q) && q.GetClientIdPrefix() == "" && (q.GetUsername() == "" || q.GetStatus() == "" && q.GetNode() == "")
	if counted != (first.Total != nil) || counted && exact && int(first.GetTotal()) != len(want) {
		w.t.Fatalf("%v: total is %v, want %d (counted: %v, exact: %v)", q, first.Total, len(want), counted, exact)
	}
}

// checkCounts compares counters with what the rows say.
func (w *rowWorld) checkCounts(cluster string) {
	w.t.Helper()
	resp, err := w.m.GetCounts(context.Background(), &presencev1.GetCountsRequest{Cluster: cluster})
	w.must(err)
	allExact := true
	got, want := map[string]int64{}, map[string]int64{}
	for _, c := range worldClusters {
		allExact = allExact && w.exact(c)
		for _, x := range w.truths(c) {
			want[fmt.Sprintf("%q %s", c, x.status)]++
			if c == cluster {
				want[fmt.Sprintf("%s %q", x.status, x.node)]++
			}
		}
	}
	for _, c := range resp.GetCounts() {
		got[fmt.Sprintf("%s %q", c.GetStatus(), c.GetNode())] = c.GetClients()
	}
	for _, c := range resp.GetClusters() {
		got[fmt.Sprintf("%q %s", c.GetCluster(), c.GetStatus())] = c.GetClients()
	}
	if allExact != resp.GetExact() || allExact && fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Fatalf("counts (exact: %v, want %v) are\n%v, want\n%v", resp.GetExact(), allExact, got, want)
	}
	users := map[string]int64{}
	for _, x := range w.truths(cluster) {
		if x.username != "" {
			users[x.username]++
		}
	}
	gotUsers := map[string]int64{}
	var after *string
	for {
		resp, err := w.m.ListUsernames(context.Background(), &presencev1.ListUsernamesRequest{Cluster: cluster, After: after, Limit: 2})
		w.must(err)
		for _, u := range resp.GetUsernames() {
			if after != nil && u.GetUsername() <= *after {
				w.t.Fatalf("username %q after %q", u.GetUsername(), *after)
			}
			after = &u.Username
			gotUsers[u.GetUsername()] = u.GetClients()
		}
		if resp.GetEnd() {
			break
		}
	}
	if w.exact(cluster) && fmt.Sprint(gotUsers) != fmt.Sprint(users) {
		w.t.Fatalf("usernames are %v, want %v", gotUsers, users)
	}
}

// checkStore compares indexes that are said to be valid with the rows.
func (w *rowWorld) checkStore() {
	w.t.Helper()
	resp, err := w.m.CheckStore(context.Background(), &presencev1.CheckStoreRequest{})
	w.must(err)
	for _, c := range resp.GetChecks() {
		if valid := w.parts[c.GetPartition()].indexes.Valid(); valid == c.GetRepairing() || valid && len(c.GetDifferences()) > 0 {
			w.t.Fatalf("partition %d (valid: %v): %v", c.GetPartition(), valid, c)
		}
	}
	if len(resp.GetChecks()) != worldPartitions {
		w.t.Fatal(errors.New("a partition was not checked"))
	}
}
