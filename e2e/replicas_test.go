package e2e

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer"
	"github.com/mqtt-presence/presence/services/materializer/store"
	"github.com/mqtt-presence/presence/services/presencectl"
	"github.com/mqtt-presence/presence/services/query"
)

const replicaPatience = 40 * time.Second

// oneReplica is a materializer that owns all partitions of its replica.
type oneReplica struct {
	t    *testing.T
	cfg  materializer.Config
	stop func()
}

func newReplica(t *testing.T, kafka eventlog.Config, name string, publish bool) *oneReplica {
	t.Helper()
	cfg := materializer.DefaultConfig()
	cfg.Kafka, cfg.Replica, cfg.Publish = kafka, name, publish
	cfg.DataDir, cfg.StateAddr, cfg.CacheSize = filepath.Join(t.TempDir(), name), freeAddr(t), 8<<20
	cfg.CheckpointInterval, cfg.ExpireAfter = 50*time.Millisecond, 3*24*time.Hour
	return &oneReplica{t: t, cfg: cfg}
}

func (r *oneReplica) start() {
	r.t.Helper()
	m, err := materializer.New(r.cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	must(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			r.t.Errorf("run replica %s: %v", r.cfg.Replica, err)
		}
	}
	r.t.Cleanup(r.stop)
	servicetest.Eventually(r.t, replicaPatience, func() error { return m.Ready(context.Background()) })
}

// Replicas that fold the same facts in batches of their own, one of which is restarted, filled from client-state and from a
// backup, are found equal, while facts flow and afterwards. A row that is damaged on one's disk is named.
func TestReplicasAreCompared(t *testing.T) {
	_, kafka := eventlogtest.NewCluster(t)
	eventlogtest.Ensure(t, kafka)
	client := eventlogtest.NewClient(t, kafka)
	const t0, day = int64(1_760_000_000_000), int64(24 * 60 * 60 * 1000)
	fact := func(kind presence.Kind, id string, openedMS, ms int64) {
		f := presence.Fact{Kind: kind, Cluster: "default", ClientID: id, Dialect: presence.DialectEMQX, Node: fmt.Sprint("n", openedMS%3), Connection: fmt.Sprint(t0 + openedMS),
			TimeMS: t0 + ms, ReceivedMS: t0 + ms + 5, ConnectedAtMS: t0 + openedMS}
		switch kind {
		case presence.Closed:
			f.DisconnectedAtMS, f.Reason, f.RawReason = t0+ms, presence.ReasonNormal, "normal"
		case presence.Forgotten:
			f = presence.Fact{Kind: kind, Cluster: "default", ClientID: id, TimeMS: t0 + ms, ReceivedMS: t0 + ms, AsOfMS: t0 + ms, Source: "ops"}
		}
		f.SetID()
		client.Produce(context.Background(), eventlog.FactRecord(&f, eventlog.JSON), func(_ *kgo.Record, err error) {
			if err != nil {
				t.Errorf("produce: %v", err)
			}
		})
	}
	// Clients that are online, offline, expired, forgotten, and back.
	for i := range int64(400) {
		id := fmt.Sprint("dev", i)
		fact(presence.Opened, id, i, i)
		if i%2 == 0 {
			fact(presence.Closed, id, i, 1000+i)
		}
		if i%7 == 0 {
			fact(presence.Forgotten, id, 0, 2000+i)
		}
	}
	for d := range int64(6) {
		for i := range int64(40) {
			fact(presence.Opened, fmt.Sprint("later", i), d*day+i, d*day+i)
		}
	}
	must(t, client.Flush(t.Context()))

	a, b := newReplica(t, kafka, "a", true), newReplica(t, kafka, "b", false)
	a.start()
	b.start()
	cfg := query.DefaultConfig()
	cfg.Config, cfg.Replicas = kafka, []string{"a", "b"}
	cfg.HTTPAddr, cfg.GRPCAddr, cfg.AccountsFile = "127.0.0.1:0", "127.0.0.1:0", filepath.Join(t.TempDir(), "accounts")
	must(t, os.WriteFile(cfg.AccountsFile, []byte("root:$2a$04$GRWdR9u4M8eLKhMi0PZpoeOG6ff.0cuyK2j0H32eOd1cJOZ4YvvbO:admin\n"), 0o600))
	router, err := query.NewRouter(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	must(t, err)
	service, err := query.New(cfg, router, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	must(t, err)
	must(t, service.Listen())
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() { ended <- router.Run(ctx) }()
	go func() { ended <- service.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range cap(ended) {
			must(t, <-ended)
		}
	})
	servicetest.Eventually(t, replicaPatience, func() error { return router.Ready(t.Context()) })
	ctl := func(args ...string) (string, int) {
		var out bytes.Buffer
		code := presencectl.Main(t.Context(), presencectl.Process{
			Args: append(args, "--user", "root"), Environ: []string{"PRESENCECTL_PASSWORD=correct horse", "HOME=" + t.TempDir()}, In: strings.NewReader(""), Out: &out, Err: &out,
		})
		return out.String(), code
	}
	compare := func(args ...string) (string, int) {
		return ctl(append([]string{"compare-replicas", "--server", service.GRPCAddr().String()}, args...)...)
	}
	equal := func(when string) {
		t.Helper()
		if out, code := compare(); code != 0 || strings.Count(out, "true") != int(kafka.Partitions) {
			t.Errorf("%s: exit code %d\n%s", when, code, out)
		}
	}
	equal("both from the log")

	load, stop := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for i := int64(0); load.Err() == nil; i++ {
			for n := range int64(20) {
				fact(presence.Opened, fmt.Sprint("dev", (i*20+n)%1000), 6*day+i*20+n, 6*day+i*20+n)
			}
			<-tick.C
		}
	}()
	equal("under load")
	b.stop()
	b.start()
	equal("under load, after a restart")
	stop()
	<-loaded
	must(t, client.Flush(t.Context()))
	equal("at rest")

	// An empty disk is filled from client-state.
	b.stop()
	must(t, os.RemoveAll(b.cfg.DataDir))
	b.start()
	equal("one restored")

	// So is one from a backup, which goes on from there.
	backup := filepath.Join(t.TempDir(), "b.tar")
	if out, code := ctl("backup", backup, "--materializer", b.cfg.StateAddr); code != 0 {
		t.Fatalf("backup: exit code %d\n%s", code, out)
	}
	b.stop()
	must(t, os.RemoveAll(b.cfg.DataDir))
	if out, code := ctl("restore", backup, "--data-dir", b.cfg.DataDir); code != 0 {
		t.Fatalf("restore: exit code %d\n%s", code, out)
	}
	fact(presence.Opened, "after the backup", 7*day, 7*day)
	must(t, client.Flush(t.Context()))
	b.start()
	equal("one from a backup")

	b.stop()
	damaged := damage(t, b.cfg.DataDir, "default/dev391")
	b.start()
	out, code := compare()
	if code != 3 || !strings.Contains(out, fmt.Sprintf("partition %d: client dev391 of cluster default: state ", damaged)) || strings.Count(out, "false") != 1 {
		t.Errorf("after the damage: exit code %d\n%s", code, out)
	}
	if out, code := compare("--partition", fmt.Sprint((damaged+1)%kafka.Partitions)); code != 0 {
		t.Errorf("another partition: exit code %d\n%s", code, out)
	}
}

// damage changes a client's row in a store that nobody has open, and returns its partition.
func damage(t *testing.T, dir, key string) int32 {
	t.Helper()
	db, err := store.Open(dir, store.Options{CacheBytes: 1 << 20})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	partition := eventlog.Partition([]byte(key), eventlogtest.Partitions)
	value, found, err := db.AppendRow(nil, partition, []byte(key))
	must(t, err)
	if !found {
		t.Fatalf("no row of %s", key)
	}
	var row store.Row
	_, err = row.Decode(value)
	must(t, err)
	indexed := row.Indexed()
	row.State.Nodes[0].Conn.OpenedMS++
	x, err := db.Indexes(partition)
	must(t, err)
	batch := x.NewBatch()
	batch.PutRow([]byte(key), indexed, &row, row.State.Append(nil))
	must(t, batch.Commit())
	must(t, db.Sync())
	return partition
}
