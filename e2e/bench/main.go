// Command bench compares what the goals of Presence compare, side by side in one run, and prints a table with each goal and whether it is met.
//
// It runs Kafka, materializer and query service in this process, and asks them over loopback:
//
//	seed    the short REST call beside a bare net/http handler, with the same load
//	grpc    GetStatus beside a bare gRPC server, with the same load
//	list    pages of 100 clients for each kind of filter, from a store that was filled with --clients clients
//	flood   the wait of well-behaved accounts, quiet and while --idle connections idle, a fifth as many dawdle over a header, and
//	        one account asks over 2 x --floods connections without pause, far beyond its limit
//	watch   --watchers watches that each must get every transition they asked for, in order, across a restart of the query service
//
// Numbers mean something only on a machine with nothing else to do. It ends with 1 if an answer was wrong, whatever the numbers.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

// config is the command line.
type config struct {
	Parts    []string      `conf:"parts" usage:"what to measure: seed, grpc, list, flood, watch"`
	Clients  int           `conf:"clients" usage:"clients in the store that lists are made from"`
	Callers  int           `conf:"callers" usage:"callers of seed and grpc that ask at once, each on its own"`
	Rounds   int           `conf:"rounds" usage:"how often seed and grpc take turns with what they are compared to"`
	Round    time.Duration `conf:"round" usage:"how long one turn takes"`
	Pages    int           `conf:"pages" usage:"pages that are read for each kind of filter"`
	Idle     int           `conf:"idle" usage:"connections that idle in flood"`
	Floods   int           `conf:"floods" usage:"connections of each transport over which one account floods"`
	Watchers int           `conf:"watchers" usage:"watches at once"`
	Changes  int           `conf:"changes" usage:"transitions that happen while they watch, about as many before the restart, during it and after"`
	Rate     int           `conf:"rate" usage:"transitions per second"`
	Dir      string        `conf:"dir" usage:"folder for the data, kept afterwards; empty: one that is removed"`
	Timeout  time.Duration `conf:"timeout" usage:"time after which the run fails"`

	// SiegeInProcess is for tests, whose program cannot be started again for the siege.
	SiegeInProcess bool `conf:"-"`
}

func defaultConfig() config {
	return config{
		Parts: allParts(), Clients: 1_000_000, Callers: 16, Rounds: 10, Round: time.Second, Pages: 2_000, Idle: 10_000, Floods: 64,
		Watchers: 10_000, Changes: 30_000, Rate: 1_000, Timeout: 30 * time.Minute,
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
	} {
		if n < 1 {
			errs = append(errs, fmt.Errorf("%s: %d is less than 1", name, n))
		}
	}
	if c.Round <= 0 {
		errs = append(errs, fmt.Errorf("round: %v is not positive", c.Round))
	}
	return errors.Join(errs...)
}

func main() { os.Exit(service.Main("bench", os.Args[1:], command)) }

func command(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == siegeCommand {
		return siegeMain(ctx, args[1:])
	}
	cfg := defaultConfig()
	// Variables of the environment belong to the services.
	if err := service.Load("bench", args, nil, &cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	return run(ctx, cfg, os.Stdout)
}

// part is one comparison.
type part struct {
	name    string
	measure func(context.Context, config, *stack, *table) error
}

func parts() []part {
	return []part{{"seed", measureSeed}, {"grpc", measureGRPC}, {"list", measureList}, {"flood", measureFlood}, {"watch", measureWatch}}
}

func allParts() []string {
	var names []string
	for _, p := range parts() {
		names = append(names, p.name)
	}
	return names
}

// run measures the parts that are asked for, each on a new stack, and prints the table.
func run(ctx context.Context, cfg config, out io.Writer) error {
	t := &table{out: out}
	t.head()
	for _, p := range parts() {
		if !slices.Contains(cfg.Parts, p.name) {
			continue
		}
		if err := measure(ctx, cfg, p, t); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return t.err
}

func measure(ctx context.Context, cfg config, p part, t *table) (err error) {
	dir := cfg.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "presence-bench-"); err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
		defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	}
	s, err := startStack(ctx, dir)
	if err != nil {
		return err
	}
	return errors.Join(p.measure(ctx, cfg, s, t), s.stop())
}
