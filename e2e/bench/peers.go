package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// The goals of a rebuild and of a first pass, in multiples of the peers' rates.
const (
	goalRebuildStreams   = 8
	goalRebuildGoka      = 10
	goalFirstPassStreams = 4
	goalFirstPassGoka    = 5
)

// cost is what one run over a history took.
type cost struct {
	events  int64
	seconds float64
	usage
	kafka time.Duration // CPU of Kafka meanwhile
	disk  int64         // bytes of the local state, 0 if there is none
}

func (c cost) rate() float64 { return float64(c.events) / c.seconds }

// perEvent is the CPU time of the process for each event.
func (c cost) perEvent() time.Duration { return c.cpu / time.Duration(max(c.events, 1)) }

func microseconds(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }

func (c cost) measured() string {
	return fmt.Sprintf("%.0f events/s, %d in %.2f s", c.rate(), c.events, c.seconds)
}

// spent tells what it used; clients is for the bytes on disk of each.
func (c cost) spent(clients int64) string {
	text := fmt.Sprintf("CPU %.1f s (%.2f us/event), Kafka %.1f s; peak %d MiB", c.cpu.Seconds(), microseconds(c.perEvent()), c.kafka.Seconds(), c.peak/mib)
	if c.disk > 0 {
		text += fmt.Sprintf("; disk %d B/client", c.disk/max(clients, 1))
	}
	return text
}

// arena is a Kafka with a history in it, and what is started beside it.
type arena struct {
	*tools
	cfg    config
	kafka  *realKafka
	dir    string
	binary string // of the materializer
	past   produced
	runs   int
	report *table
}

// folder makes a new folder, and a name that no run before had.
func (a *arena) folder(name string) (dir, run string, err error) {
	a.runs++
	run = fmt.Sprintf("%s-%d", name, a.runs)
	dir = filepath.Join(a.dir, run)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("make a folder: %w", err)
	}
	return dir, run, nil
}

// peer runs one of the others in a new folder, and removes what it has left.
func (a *arena) peer(ctx context.Context, name string, command func(dir string) *exec.Cmd) (c cost, err error) {
	a.report.progress("%s", name)
	dir, run, err := a.folder(name)
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, a.kafka.removeOthers(ctx), os.RemoveAll(dir)) }()
	before, err := a.kafka.usage()
	if err != nil {
		return c, err
	}
	p, err := startPeer(ctx, run, a.dir, command(dir))
	if err != nil {
		return c, err
	}
	c.events, c.seconds = p.events, p.seconds
	after, err := a.kafka.usage()
	if err == nil {
		c.usage, err = p.usage()
	}
	c.kafka = after.cpu - before.cpu
	// What was only in memory is on disk once it has stopped.
	if err = errors.Join(err, p.stop()); err == nil {
		c.disk, err = sizeOf(dir)
	}
	return c, err
}

// fetch measures one of the ceilings.
func (a *arena) fetch(ctx context.Context, produce bool) (cost, error) {
	if produce {
		if _, err := kadm.NewClient(a.kafka.client).CreateTopic(ctx, int32(a.cfg.Partitions), 1, nil, smallTopic); err != nil {
			return cost{}, fmt.Errorf("create topic %s: %w", smallTopic, err)
		}
	}
	return a.peer(ctx, "fetch", func(string) *exec.Cmd {
		return a.child(fetchCommand, "--brokers", a.kafka.addr, fmt.Sprintf("--produce=%t", produce))
	})
}

// ours measures a run of our materializer over the history, from the start of the process, and leaves its folder.
func (a *arena) ours(ctx context.Context, name string, publish bool) (c cost, dir string, err error) {
	a.report.progress("%s", name)
	dir, run, err := a.folder(name)
	if err != nil {
		return c, "", err
	}
	before, err := a.kafka.usage()
	if err != nil {
		return c, "", err
	}
	began := time.Now()
	o, err := a.startMaterializer(a.kafka, a.binary, a.cfg.Partitions, dir, run, publish)
	if err != nil {
		return c, "", err
	}
	defer func() {
		if err = errors.Join(err, o.stop()); err == nil {
			c.disk, err = sizeOf(o.dir)
		}
	}()
	o.profiled = profileOf(ctx, o.process, o.admin, dir, a.cfg.Profile)
	if err := o.await(ctx, name, o.finished(a.past.records, a.cfg.Partitions)); err != nil {
		return c, "", err
	}
	c.seconds, c.events = time.Since(began).Seconds(), a.past.records
	after, err := a.kafka.usage()
	if err != nil {
		return c, "", err
	}
	c.kafka = after.cpu - before.cpu
	if c.usage, err = o.usage(); err != nil {
		return c, "", err
	}
	top, err := o.profiled.top(ctx)
	if err != nil {
		return c, "", err
	}
	a.report.profile(name, top)
	return c, dir, o.rightCounts(ctx, a.past.counts)
}

// rebuild replays into an empty store and publishes nothing. It needs a client-state that nobody has written.
func (a *arena) rebuild(ctx context.Context, name string) (cost, error) {
	c, dir, err := a.ours(ctx, name, false)
	return c, errors.Join(err, os.RemoveAll(dir))
}

// firstPass folds and publishes. It leaves a client-state with all states in it, and the folder.
func (a *arena) firstPass(ctx context.Context, name string) (cost, string, error) {
	return a.ours(ctx, name, true)
}

// forgetStates deletes what a first pass has published.
func (a *arena) forgetStates(ctx context.Context) error {
	return a.kafka.remove(ctx, eventlog.TopicClientState)
}

// repeated measures some times and reports the run whose rate is the median. After an error it is one of the runs before, and none if the error is of
// the first.
func (a *arena) repeated(what string, measure func() (cost, error)) (cost, error) {
	var all []cost
	var err error
	for range a.cfg.Repeat {
		var c cost
		if c, err = measure(); err != nil {
			err = fmt.Errorf("%s: %w", what, err)
			break
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return cost{}, err
	}
	c := medianCost(all)
	a.report.cost(what, c, a.past.total())
	return c, err
}

// openArena starts a Kafka with a history in it.
func openArena(ctx context.Context, cfg config, t *tools, dir string, past history, report *table) (*arena, error) {
	binaries, err := t.build(ctx, "materializer")
	if err != nil {
		return nil, err
	}
	a := &arena{tools: t, cfg: cfg, dir: dir, binary: binaries[0], report: report}
	if a.kafka, err = t.startKafka(ctx, filepath.Join(dir, "kafka")); err != nil {
		return nil, err
	}
	report.progress("producing %d clients' events as %v", past.clients, past.format)
	ctx, cancel := a.kafka.whileAlive(ctx)
	defer cancel()
	if a.past, err = past.produce(ctx, a.kafka.config(cfg.Partitions)); err != nil {
		return nil, errors.Join(err, a.kafka.stop())
	}
	return a, nil
}

// measurePeers compares the materializer with what else there is, over one history in one Kafka, each alone. What fails is missing in the comparison.
func measurePeers(ctx context.Context, cfg config, t *tools, dir string, report *table) error {
	past := history{clients: cfg.Clients, events: cfg.Events}
	streams, goka, err := peersOverJSON(ctx, cfg, t, filepath.Join(dir, "json"), past, report)
	past.format = eventlog.Protobuf
	cfg.Repeat = 1 // it is there to be seen beside JSON, and half of the time of this part would be its repetitions
	return errors.Join(err, oursOverProtobuf(ctx, cfg, t, filepath.Join(dir, "protobuf"), past, report, streams, goka))
}

func peersOverJSON(ctx context.Context, cfg config, t *tools, dir string, past history, report *table) (streams, goka cost, err error) {
	a, err := openArena(ctx, cfg, t, dir, past, report)
	if err != nil {
		return streams, goka, err
	}
	defer func() { err = errors.Join(err, a.kafka.stop(), os.RemoveAll(dir)) }()
	ctx, cancel := a.kafka.whileAlive(ctx)
	defer cancel()
	size, err := a.eventBytes()
	if err != nil {
		return streams, goka, err
	}
	report.input(inEventBytes, size)
	_, fetchErr := a.repeated("fetch only, franz-go", func() (cost, error) { return a.fetch(ctx, false) })
	_, relayErr := a.repeated("fetch + one small record produced", func() (cost, error) { return a.fetch(ctx, true) })
	streams, streamsErr := a.streams(ctx)
	goka, gokaErr := a.goka(ctx)
	return streams, goka, errors.Join(fetchErr, relayErr, streamsErr, gokaErr, a.measureOurs(ctx, streams, goka))
}

// eventBytes reports what an event takes in Kafka.
func (a *arena) eventBytes() (float64, error) {
	size, err := a.logSize(eventlog.TopicClientEvents)
	if err != nil {
		return 0, err
	}
	each := size / a.past.records
	a.report.line("client events, "+a.past.format.String(), fmt.Sprintf("%d of %d clients; %d B each in Kafka, lz4", a.past.records, a.past.total(), each), "", "")
	return float64(each), nil
}

func (a *arena) streams(ctx context.Context) (cost, error) {
	class, err := a.compileStreams(ctx)
	if err != nil {
		return cost{}, err
	}
	c, err := a.peer(ctx, "streams", func(dir string) *exec.Cmd {
		return a.java("2g", class, a.kafka.addr, eventlog.TopicClientEvents, dir)
	})
	if err != nil {
		return cost{}, fmt.Errorf("measure Kafka Streams: %w", err)
	}
	a.report.cost("Kafka Streams", c, a.past.total())
	return c, nil
}

func (a *arena) goka(ctx context.Context) (cost, error) {
	binary, err := a.buildGoka(ctx)
	if err != nil {
		return cost{}, err
	}
	c, err := a.peer(ctx, "goka", func(dir string) *exec.Cmd {
		return exec.Command(binary, "-brokers", a.kafka.addr, "-topic", eventlog.TopicClientEvents, "-dir", dir)
	})
	if err != nil {
		return cost{}, fmt.Errorf("measure Goka: %w", err)
	}
	a.report.cost("Goka", c, a.past.total())
	return c, nil
}

func oursOverProtobuf(ctx context.Context, cfg config, t *tools, dir string, past history, report *table, streams, goka cost) (err error) {
	a, err := openArena(ctx, cfg, t, dir, past, report)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.kafka.stop(), os.RemoveAll(dir)) }()
	ctx, cancel := a.kafka.whileAlive(ctx)
	defer cancel()
	if _, err := a.eventBytes(); err != nil {
		return err
	}
	return a.measureOurs(ctx, streams, goka)
}

// measureOurs measures rebuilds and first passes over the history and sets them beside the peers.
func (a *arena) measureOurs(ctx context.Context, streams, goka cost) error {
	format := a.past.format.String()
	rebuilt, rebuildErr := a.repeated("rebuild, "+format, func() (cost, error) { return a.rebuild(ctx, "rebuild-"+format) })
	a.report.times("Kafka Streams", rebuilt, streams, goalRebuildStreams)
	a.report.times("Goka", rebuilt, goka, goalRebuildGoka)
	passed, passErr := a.repeated("first pass, "+format, func() (cost, error) {
		c, dir, err := a.firstPass(ctx, "first-pass-"+format)
		return c, errors.Join(err, os.RemoveAll(dir), a.forgetStates(ctx))
	})
	a.report.times("Kafka Streams", passed, streams, goalFirstPassStreams)
	a.report.times("Goka", passed, goka, goalFirstPassGoka)
	if a.past.format == eventlog.JSON && passed.events > 0 {
		a.report.input(inFold, microseconds(passed.perEvent()))
		a.report.input(inFoldKafka, microseconds(passed.kafka/time.Duration(passed.events)))
		a.report.input(inFoldRate, passed.rate())
	}
	if a.past.format == eventlog.JSON && rebuilt.events > 0 {
		a.report.input(inRebuildRate, rebuilt.rate())
	}
	return errors.Join(rebuildErr, passErr)
}

// compileStreams compiles the Kafka Streams baseline into the folder of binaries, and returns its class.
func (t *tools) compileStreams(ctx context.Context) (string, error) {
	const class = "StreamsBaseline"
	source := filepath.Join(t.source, "peers", "streams", class+".java")
	cmd := exec.CommandContext(ctx, "javac", "-proc:none", "-cp", filepath.Join(t.jars, "*"), "-d", t.dir, source)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile %s: %w\n%s", class, err, out)
	}
	return class, nil
}

// buildGoka compiles the Goka baseline, which is a module of its own.
func (t *tools) buildGoka(ctx context.Context) (string, error) {
	path := filepath.Join(t.dir, "goka")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "./goka")
	cmd.Dir = filepath.Join(t.source, "peers")
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the Goka baseline: %w\n%s", err, out)
	}
	return path, nil
}
