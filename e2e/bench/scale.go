package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const (
	goalRowBytes = 100
	goalResident = 1 << 30
	goalLookup   = time.Millisecond
	// keptConnections is how many a client has had when all that is kept of it has reached its bounds.
	keptConnections = 24
	// lookupCount is how many clients are asked for, one after the other.
	lookupCount = 200_000
)

// growth is what a number of clients costs.
type growth struct {
	clients                    int64
	rebuilt, passed, restored  cost
	compacted                  store.Usage
	compacting                 time.Duration
	lookup50, lookup99, slower time.Duration // p50, p99 and p99.9
	serving                    usage
}

// measureScale measures fleets of several sizes, and draws the chart of those that could be measured.
func measureScale(ctx context.Context, cfg config, t *tools, dir string, report *table) error {
	sizes, err := cfg.sizes()
	if err != nil {
		return err
	}
	var all []growth
	var errs []error
	for _, n := range sizes {
		g, err := measureSize(ctx, cfg, t, filepath.Join(dir, strconv.Itoa(n)), n, report)
		if err != nil {
			errs = append(errs, fmt.Errorf("%d clients: %w", n, err))
			continue
		}
		all = append(all, g)
	}
	if len(all) > 0 {
		report.chart = growthChart(all)
	}
	return errors.Join(append(errs, measureKept(ctx, cfg, t, filepath.Join(dir, "kept"), sizes[0], report))...)
}

// measureKept measures what is left on disk of clients that have come and gone for days: evidence and sessions have reached their bounds.
func measureKept(ctx context.Context, cfg config, t *tools, dir string, clients int, report *table) (err error) {
	a, err := openArena(ctx, cfg, t, dir, history{clients: clients, atRest: true, connections: keptConnections}, report)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.kafka.stop(), os.RemoveAll(dir)) }()
	ctx, cancel := a.kafka.whileAlive(ctx)
	defer cancel()
	passed, state, err := a.firstPass(ctx, fmt.Sprintf("first-pass-%d-connections", keptConnections))
	if err != nil {
		return err
	}
	report.cost(fmt.Sprintf("%d clients of %d connections", clients, keptConnections), passed, a.past.total())
	u, err := compactedUsage(ctx, filepath.Join(state, "state"))
	if err != nil {
		return err
	}
	n := uint64(max(a.past.total(), 1))
	report.line("  on disk, compacted", fmt.Sprintf("rows %d, indexes %d, evidence %d, sessions %d B/client", u.Clients/n, u.Indexes/n, u.Evidence/n, u.Sessions/n), "", "")
	report.input(inRow, float64(u.Clients/n))
	report.input(inIndexes, float64(u.Indexes/n))
	report.input(inEvidence, float64(u.Evidence/n))
	report.input(inSessions, float64(u.Sessions/n))
	return nil
}

// measureRestore measures one fleet.
func measureRestore(ctx context.Context, cfg config, t *tools, dir string, report *table) error {
	_, err := measureSize(ctx, cfg, t, dir, cfg.Clients, report)
	return err
}

// measureSize measures rebuild, first pass, restore, what is left on disk, and lookups.
func measureSize(ctx context.Context, cfg config, t *tools, dir string, clients int, report *table) (g growth, err error) {
	a, err := openArena(ctx, cfg, t, dir, history{clients: clients, atRest: true}, report)
	if err != nil {
		return g, err
	}
	defer func() { err = errors.Join(err, a.kafka.stop(), os.RemoveAll(dir)) }()
	ctx, cancel := a.kafka.whileAlive(ctx)
	defer cancel()
	g.clients = a.past.total()
	if g.rebuilt, err = a.rebuild(ctx, fmt.Sprintf("rebuild-%d-clients", clients)); err != nil {
		return g, err
	}
	report.cost(fmt.Sprintf("%d clients: rebuild", clients), g.rebuilt, g.clients)
	var state string
	if g.passed, state, err = a.firstPass(ctx, fmt.Sprintf("first-pass-%d-clients", clients)); err != nil {
		return g, err
	}
	report.cost("  first pass", g.passed, g.clients)
	report.input(inLargeFold, microseconds(g.passed.perEvent()))
	report.input(inLargeRate, g.passed.rate())
	// Each of these needs the first pass only. The disk has to hold one store that is not compacted at a time.
	if err = errors.Join(a.journal(), a.measureState(ctx, state, &g), os.RemoveAll(state), a.measureRestored(ctx, &g)); err != nil {
		return g, err
	}
	peak := max(g.rebuilt.peak, g.passed.peak, g.restored.peak, g.serving.peak)
	report.input(inResident, float64(peak/mib))
	report.line("  peak resident of all", fmt.Sprintf("%d MiB", peak/mib), "", "")
	return g, nil
}

// journal reports what a transition takes in Kafka.
func (a *arena) journal() error {
	size, err := a.logSize(eventlog.TopicClientState)
	if err != nil {
		return err
	}
	a.report.line("  client-state in Kafka", fmt.Sprintf("%d B for each transition", size/a.past.records), "", "")
	a.report.input(inStateBytes, float64(size/a.past.records))
	return nil
}

func (a *arena) measureRestored(ctx context.Context, g *growth) (err error) {
	if g.restored, err = a.restore(ctx, fmt.Sprintf("restore-%d-clients", a.past.clients)); err != nil {
		return err
	}
	a.report.line("  restore from client-state", fmt.Sprintf("%.1f s, %.0f clients/s", g.restored.seconds, g.restored.rate()), "", "")
	a.report.line("  used", g.restored.spent(g.clients), "", "")
	a.report.input(inRestoreRate, g.restored.rate())
	return nil
}

// measureState measures what a first pass has left in a folder: what it takes on disk, and how fast it answers.
func (a *arena) measureState(ctx context.Context, dir string, g *growth) (err error) {
	a.report.input(inDisk, float64(g.passed.disk/g.clients))
	a.report.progress("compaction")
	began := time.Now()
	if g.compacted, err = compactedUsage(ctx, filepath.Join(dir, "state")); err != nil {
		return err
	}
	g.compacting = time.Since(began)
	a.report.grown(g)
	if err := a.lookups(ctx, dir, g); err != nil {
		return err
	}
	a.report.result("  lookups in process", fmt.Sprintf("p50 %v, p99 %v, p99.9 %v", g.lookup50, g.lookup99, g.slower), fmt.Sprintf("p99 under %v", goalLookup), g.lookup99 < goalLookup)
	a.report.result("  resident meanwhile", fmt.Sprintf("%d MiB", g.serving.peak/mib), fmt.Sprintf("under %d MiB", goalResident/mib), g.serving.peak < goalResident)
	a.report.input(inLookup, microseconds(g.lookup99))
	return nil
}

// grown prints what the compacted store takes.
func (t *table) grown(g *growth) {
	u, n := g.compacted, uint64(max(g.clients, 1))
	t.result("  rows on disk, compacted", fmt.Sprintf("%d B/client (in %.0f s)", u.Clients/n, g.compacting.Seconds()), fmt.Sprintf("under %d B/client", goalRowBytes), u.Clients/n < goalRowBytes)
	t.line("  beside them", fmt.Sprintf("indexes %d, evidence %d, sessions %d B/client", u.Indexes/n, u.Evidence/n, u.Sessions/n), "", "")
}

// logSize is what Kafka has on disk of a topic.
func (a *arena) logSize(topic string) (int64, error) {
	folders, err := filepath.Glob(filepath.Join(a.dir, "kafka", "log", topic+"-*"))
	if err != nil {
		return 0, fmt.Errorf("find the log of %s: %w", topic, err)
	}
	var size int64
	for _, folder := range folders {
		n, err := sizeOf(folder)
		if err != nil {
			return 0, err
		}
		size += n
	}
	return size, nil
}

// restore fills an empty store from what a first pass has published, until it answers and its indexes are complete. Its rate is that of clients.
func (a *arena) restore(ctx context.Context, name string) (c cost, err error) {
	a.report.progress("%s", name)
	dir, run, err := a.folder(name)
	if err != nil {
		return c, err
	}
	before, err := a.kafka.usage()
	if err != nil {
		return c, err
	}
	began := time.Now()
	o, err := a.startMaterializer(a.kafka, a.binary, a.cfg.Partitions, dir, run, false)
	if err != nil {
		return c, err
	}
	defer func() {
		if err = errors.Join(err, o.stop()); err == nil {
			c.disk, err = sizeOf(o.dir)
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	if err := o.await(ctx, name, o.finished(0, a.cfg.Partitions)); err != nil {
		return c, err
	}
	c.seconds, c.events = time.Since(began).Seconds(), a.past.total()
	after, err := a.kafka.usage()
	if err != nil {
		return c, err
	}
	c.kafka = after.cpu - before.cpu
	if c.usage, err = o.usage(); err != nil {
		return c, err
	}
	return c, o.rightCounts(ctx, a.past.counts)
}

// compactedUsage compacts a store that nobody has open.
func compactedUsage(ctx context.Context, dir string) (u store.Usage, err error) {
	s, err := store.Open(dir, store.Options{CacheBytes: 64 << 20})
	if err != nil {
		return u, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := s.Compact(ctx); err != nil {
		return u, err
	}
	return s.DiskUsage()
}

// lookups asks for clients in a process that has the materializer in it.
func (a *arena) lookups(ctx context.Context, dir string, g *growth) (err error) {
	a.report.progress("lookups")
	p, err := startPeer(ctx, "lookups", a.dir, a.child(lookupsCommand, "--brokers", a.kafka.addr, "--partitions", strconv.Itoa(a.cfg.Partitions),
		"--dir", filepath.Join(dir, "state"), "--clients", strconv.Itoa(a.past.clients)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if len(p.extra) != 3 {
		return fmt.Errorf("the lookups say %q", p.extra)
	}
	for i, d := range []*time.Duration{&g.lookup50, &g.lookup99, &g.slower} {
		if *d, err = time.ParseDuration(p.extra[i]); err != nil {
			return fmt.Errorf("the lookups say %q: %w", p.extra, err)
		}
	}
	g.serving, err = p.usage()
	return err
}

const lookupsCommand = "lookups"

// lookups asks for clients of a fleet at rest, of which every one was seen.
type lookups struct {
	Brokers    []string `conf:"brokers" usage:"Kafka brokers"`
	Partitions int32    `conf:"partitions" usage:"partitions of client-events"`
	Dir        string   `conf:"dir" usage:"folder of the state"`
	Clients    int      `conf:"clients" usage:"clients in it"`
}

func lookupsMain(ctx context.Context, args []string) (err error) {
	var l lookups
	if err := service.Load("bench "+lookupsCommand, args, nil, &l); err != nil {
		return err
	}
	m := materializer.DefaultConfig()
	m.Kafka = eventlog.DefaultConfig()
	m.Kafka.Brokers, m.Kafka.Partitions, m.Kafka.ReplicationFactor = l.Brokers, l.Partitions, 1
	m.DataDir, m.NoServer, m.Publish, m.Replica = l.Dir, true, false, "lookups"
	reader, err := materializer.New(m, slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})), prometheus.NewRegistry())
	if err != nil {
		return err
	}
	running := start(reader.Run)
	defer func() { err = errors.Join(err, running.stop()) }()
	if err := await(ctx, "the materializer", reader.Ready); err != nil {
		return err
	}
	r := rand.New(rand.NewPCG(3, 31))
	fleet := history{clients: l.Clients, atRest: true}
	var took delays
	var sum time.Duration
	for range lookupCount {
		id := fleet.id(r.IntN(l.Clients))
		began := time.Now()
		answer, err := reader.GetStates(ctx, &presencev1.GetStatesRequest{Cluster: cluster, Keys: []*presencev1.StateKey{{ClientId: id}}})
		d := time.Since(began)
		if err != nil || len(answer.GetEntries()) != 1 || !answer.GetEntries()[0].GetFound() {
			return fmt.Errorf("client %s is not found: %v: %w", id, answer, errors.Join(err))
		}
		took = append(took, d)
		sum += d
	}
	took.sorted()
	return done(int64(len(took)), sum, took.at(0.5), took.at(0.99), took.at(0.999))
}
