// Command bench compares what the goals of Presence compare, side by side in one run, and prints a table with each goal and whether it is met. With
// --page it also writes that as a document, with the profiles of our processes and a chart beside it.
//
// These parts start processes: a real Kafka on loopback, for which they need a JDK and Maven, our own binaries, and what is compared with them.
// Without a program that they need they are skipped, and say so.
//
//	peers   rebuild and first pass of the materializer beside Kafka Streams, Goka, a bare fetch, and a fetch that produces a record for each event
//	restore rebuild, first pass, restore from client-state, size on disk and lookups of a fleet of --clients clients; left out where scale does the same
//	scale   the same for each of --sizes, and the chart
//	loaded  lookups in process, over REST and gRPC, while facts are folded
//	visible from CONNECT to the answer that says online, beside the bare path, with an embedded Kafka and a real one
//	bridge  MQTT to Kafka, beside a plain subscriber that counts (needs Mosquitto)
//
// These run Kafka, materializer and query service in this process, and ask them over loopback:
//
//	seed    the short REST call beside a bare net/http handler, with the same load
//	grpc    GetStatus beside a bare gRPC server, with the same load
//	list    pages of 100 clients for each kind of filter, from a store that was filled with --clients clients
//	flood   the wait of well-behaved accounts, quiet and while --idle connections idle, a fifth as many dawdle over a header, and
//	        one account asks over 2 x --floods connections without pause, far beyond its limit
//	watch   --watchers watches that each must get every transition they asked for, in order, across a restart of the query service
//
// Numbers mean something only on a machine with nothing else to do. A part that fails, or takes longer than --part-timeout, is told of on the page
// beside what was measured of it, and the others go on. It ends with 1 if a part failed or an answer was wrong, whatever the numbers.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

// config is the command line.
type config struct {
	Parts    []string      `conf:"parts" usage:"what to measure: peers, restore, scale, loaded, visible, bridge, seed, grpc, list, flood, watch"`
	Clients  int           `conf:"clients" usage:"clients of peers, restore, loaded and list"`
	Callers  int           `conf:"callers" usage:"callers of seed, grpc and each lookup of loaded that ask at once, each on its own"`
	Rounds   int           `conf:"rounds" usage:"how often seed and grpc take turns with what they are compared to"`
	Round    time.Duration `conf:"round" usage:"how long one turn takes"`
	Pages    int           `conf:"pages" usage:"pages that are read for each kind of filter"`
	Idle     int           `conf:"idle" usage:"connections that idle in flood"`
	Floods   int           `conf:"floods" usage:"connections of each transport over which one account floods"`
	Watchers int           `conf:"watchers" usage:"watches at once"`
	Changes  int           `conf:"changes" usage:"transitions that happen while they watch, about as many before the restart, during it and after"`
	Rate     int           `conf:"rate" usage:"transitions per second while they watch, and connections per second of visible"`

	Events     int           `conf:"events" usage:"client events of peers"`
	Partitions int           `conf:"partitions" usage:"partitions of client-events where Kafka is a process"`
	Repeat     int           `conf:"repeat" usage:"how often peers and bridge measure each of ours over JSON and each ceiling; the median counts"`
	Sizes      []string      `conf:"sizes" usage:"numbers of clients of scale, ascending"`
	WriteRates []string      `conf:"write-rates" usage:"facts per second that are written in loaded"`
	Connects   int           `conf:"connects" usage:"clients that connect to each side of visible"`
	Messages   int           `conf:"messages" usage:"events that the bridge and the plain subscriber read"`
	Profile    time.Duration `conf:"profile" usage:"how long each kind of run is profiled: the materializer from its start, others once they are measured; 0: not"`
	Page       string        `conf:"page" usage:"file of the document that is written, such as docs/benchmarks/2026-11-23.md; the chart goes beside it; empty: none"`
	Sizing     string        `conf:"sizing" usage:"file of the sizing page, docs/sizing.md, of which the measured part is written anew; it needs --page and the parts peers, scale and bridge, and says of what failed that it was not measured; empty: none"`

	Dir         string        `conf:"dir" usage:"folder for the data, kept afterwards; empty: one that is removed"`
	Timeout     time.Duration `conf:"timeout" usage:"time after which the run ends, with what was measured until then"`
	PartTimeout time.Duration `conf:"part-timeout" usage:"the same for each part; the next one follows"`

	// SiegeInProcess is for tests, whose program cannot be started again for the siege.
	SiegeInProcess bool `conf:"-"`
}

func defaultConfig() config {
	return config{
		Parts: allParts(), Clients: 1_000_000, Callers: 16, Rounds: 10, Round: time.Second, Pages: 2_000, Idle: 10_000, Floods: 64,
		Watchers: 10_000, Changes: 30_000, Rate: 1_000, Timeout: 2 * time.Hour, PartTimeout: 25 * time.Minute,
		Events: 5_000_000, Partitions: 8, Repeat: 3, Sizes: []string{"100000", "1000000", "10000000"}, WriteRates: []string{"10000", "50000"},
		Connects: 10_000, Messages: 300_000, Profile: 8 * time.Second,
	}
}

// Validate reports every mistake, by option.
func (c *config) Validate() error {
	var errs []error
	for _, p := range c.Parts {
		if !slices.Contains(allParts(), p) {
			errs = append(errs, fmt.Errorf("parts: %q is none of %s", p, strings.Join(allParts(), ", ")))
		}
	}
	for name, n := range map[string]int{
		"clients": c.Clients, "callers": c.Callers, "rounds": c.Rounds, "pages": c.Pages, "idle": c.Idle, "floods": c.Floods, "watchers": c.Watchers, "changes": c.Changes, "rate": c.Rate,
		"events": c.Events, "partitions": c.Partitions, "repeat": c.Repeat, "connects": c.Connects, "messages": c.Messages,
	} {
		if n < 1 {
			errs = append(errs, fmt.Errorf("%s: %d is less than 1", name, n))
		}
	}
	if c.Round <= 0 {
		errs = append(errs, fmt.Errorf("round: %v is not positive", c.Round))
	}
	if c.Profile < 0 {
		errs = append(errs, fmt.Errorf("profile: %v is negative", c.Profile))
	}
	if c.PartTimeout <= 0 {
		errs = append(errs, fmt.Errorf("part-timeout: %v is not positive", c.PartTimeout))
	}
	if c.Sizing != "" && c.Page == "" {
		errs = append(errs, errors.New("sizing: needs page, which it points to"))
	}
	for _, needed := range []string{"peers", "scale", "bridge"} {
		if c.Sizing != "" && !slices.Contains(c.Parts, needed) {
			errs = append(errs, fmt.Errorf("sizing: needs part %s", needed))
		}
	}
	_, err := c.sizes()
	errs = append(errs, err)
	_, err = numbers("write-rates", c.WriteRates)
	return errors.Join(append(errs, err)...)
}

func (c *config) sizes() ([]int, error) {
	sizes, err := numbers("sizes", c.Sizes)
	if err == nil && !slices.IsSorted(sizes) {
		err = fmt.Errorf("sizes: %v do not ascend", sizes)
	}
	return sizes, err
}

func main() { os.Exit(service.Main("bench", os.Args[1:], command)) }

func command(ctx context.Context, args []string) error {
	if len(args) > 0 {
		if child, ok := children[args[0]]; ok {
			return child(ctx, args[1:])
		}
	}
	cfg := defaultConfig()
	// Variables of the environment belong to the services.
	if err := service.Load("bench", args, nil, &cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	t := &table{out: os.Stdout, log: os.Stderr}
	p := newPage(ctx, args)
	return errors.Join(run(ctx, cfg, t), document(cfg, p, t))
}

// document writes what was measured.
func document(cfg config, p page, t *table) error {
	if cfg.Page == "" || len(t.rows) == 0 {
		return nil
	}
	if err := p.write(cfg.Page, t); err != nil || cfg.Sizing == "" {
		return err
	}
	return writeSizing(cfg.Sizing, sizingText(t.inputs, filepath.Base(cfg.Page)))
}

// part is one comparison. It has either a stack in this process, or programs to start and a folder.
type part struct {
	name      string
	measure   func(context.Context, config, *stack, *table) error
	processes func(ctx context.Context, cfg config, t *tools, dir string, report *table) error
}

func parts() []part {
	return []part{
		{name: "peers", processes: measurePeers}, {name: "restore", processes: measureRestore}, {name: "scale", processes: measureScale},
		{name: "loaded", processes: measureLoaded}, {name: "visible", processes: measureVisible}, {name: "bridge", processes: measureBridge},
		{name: "seed", measure: measureSeed}, {name: "grpc", measure: measureGRPC}, {name: "list", measure: measureList}, {name: "flood", measure: measureFlood},
		{name: "watch", measure: measureWatch},
	}
}

func allParts() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// run measures the parts that are asked for, each from a new beginning, and prints the table. A part that fails does not keep the others from being
// measured; the error tells of all that have failed.
func run(ctx context.Context, cfg config, t *table) error {
	t.head()
	var errs []error
	for _, p := range parts() {
		if !cfg.measures(p.name) {
			continue
		}
		t.part = p.name
		began := time.Now()
		if err := within(ctx, cfg, p, t); errors.Is(err, errMissing) {
			t.skip(p.name, err)
		} else if err != nil {
			t.fail(p.name, err)
			errs = append(errs, fmt.Errorf("%s: %w", p.name, err))
		}
		t.took = append(t.took, row{part: p.name, measured: time.Since(began).Round(time.Second).String()})
		t.progress("took %v", time.Since(began).Round(time.Second))
	}
	for _, i := range t.inputs {
		if cfg.Page == "" {
			break
		}
		t.print("sizing: "+i.part, fmt.Sprintf("%s: %s", i.name, short(i.value)), "", "")
	}
	return errors.Join(append(errs, t.err)...)
}

// measures reports whether a part is to be measured.
func (c *config) measures(part string) bool {
	if part == "restore" && slices.Contains(c.Parts, "scale") && slices.Contains(c.Sizes, strconv.Itoa(c.Clients)) {
		return false
	}
	return slices.Contains(c.Parts, part)
}

// within measures a part as long as it may take.
func within(ctx context.Context, cfg config, p part, t *table) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("the run has ended before: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, cfg.PartTimeout)
	defer cancel()
	err := measure(bounded, cfg, p, t)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		err = errors.Join(fmt.Errorf("it has taken longer than part-timeout, %v", cfg.PartTimeout), err)
	}
	return err
}

func measure(ctx context.Context, cfg config, p part, t *table) (err error) {
	dir := cfg.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "presence-bench-"); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	if p.processes != nil {
		programs, err := newTools(ctx, dir)
		if err != nil {
			return err
		}
		return p.processes(ctx, cfg, programs, filepath.Join(dir, p.name), t)
	}
	s, err := startStack(ctx, dir, "")
	if err != nil {
		return err
	}
	return errors.Join(p.measure(ctx, cfg, s, t), s.stop())
}
