// Command load connects many MQTT clients to Presence and checks that every one of them becomes online, and offline again.
//
// Without --mqtt-url and --http-url it builds the all-in-one and runs it in a folder of its own. It ends with 1 if a client is missing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

// config is the command line.
type config struct {
	Clients  int           `conf:"clients" usage:"clients to connect"`
	Rate     int           `conf:"rate" usage:"connections per second; 0: as fast as possible"`
	Workers  int           `conf:"workers" usage:"connections that may be opening at once"`
	Samples  int           `conf:"samples" usage:"clients of --clients whose delay from CONNECT to a visible answer is measured; they come first"`
	SampleHz int           `conf:"sample-rate" usage:"connections per second of the samples"`
	MQTTURL  string        `conf:"mqtt-url" usage:"MQTT broker, such as mqtt://127.0.0.1:1883; empty: the all-in-one is built and run"`
	HTTPURL  string        `conf:"http-url" usage:"REST calls, such as http://127.0.0.1:8080"`
	User     string        `conf:"user" usage:"account with the permissions connect and read"`
	Password string        `conf:"password" usage:"its password"`
	Timeout  time.Duration `conf:"timeout" usage:"time after which the run fails"`
}

// Validate reports every mistake, by option.
func (c *config) Validate() error {
	var errs []error
	if c.Clients < 1 || c.Workers < 1 || c.SampleHz < 1 {
		errs = append(errs, errors.New("clients, workers and sample-rate must be at least 1"))
	}
	if c.Samples < 0 || c.Samples > c.Clients {
		errs = append(errs, fmt.Errorf("samples: %d must be from 0 to the number of clients", c.Samples))
	}
	if c.Rate < 0 {
		errs = append(errs, fmt.Errorf("rate: %d is negative", c.Rate))
	}
	if (c.MQTTURL == "") != (c.HTTPURL == "") {
		errs = append(errs, errors.New("mqtt-url and http-url: give both, or neither to run the all-in-one"))
	}
	return errors.Join(errs...)
}

func main() { os.Exit(service.Main("load", os.Args[1:], command)) }

func command(ctx context.Context, args []string) error {
	cfg := config{Clients: 10_000, Workers: 64, Samples: 1_000, SampleHz: 1_000, Timeout: 3 * time.Minute}
	// Variables of the environment belong to the services.
	if err := service.Load("load", args, nil, &cfg); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	if cfg.MQTTURL != "" {
		u, err := url.Parse(cfg.MQTTURL)
		if err != nil || u.Port() == "" {
			return &service.ConfigError{Err: fmt.Errorf("mqtt-url: %q is not mqtt://host:port", cfg.MQTTURL)}
		}
		return run(ctx, cfg, target{mqtt: u.Host, rest: cfg.HTTPURL, user: cfg.User, password: cfg.Password}, os.Stdout)
	}
	p, err := startPresence(ctx, os.Stderr)
	if err != nil {
		return err
	}
	return errors.Join(run(ctx, cfg, p.target, os.Stdout), p.stop())
}

// target is the Presence that is put under load.
type target struct {
	mqtt           string // host:port
	rest           string // URL
	user, password string
	pid            int // of the process, if it is a child
}

// run puts the target under load and prints what it sees. It returns an error if a client is missing.
func run(ctx context.Context, cfg config, t target, out io.Writer) error {
	if err := checkFiles(cfg.Clients); err != nil {
		return err
	}
	w := &writer{out: out}
	asker := newAsker(t)
	if err := asker.check(ctx); err != nil {
		return err
	}
	fleet := newFleet(t.mqtt, cfg.Clients)
	defer fleet.close()
	w.printf("%d clients to %s, %d connecting at once\n\n", cfg.Clients, t.mqtt, cfg.Workers)

	if cfg.Samples > 0 {
		delays, err := measure(ctx, fleet, asker, cfg.Samples, cfg.SampleHz)
		if err != nil {
			return err
		}
		w.printf("connect to visible  %d clients at %d/s: %v\n", cfg.Samples, cfg.SampleHz, delays)
	}
	rest := cfg.Clients - cfg.Samples
	began := time.Now()
	if err := fleet.connect(ctx, cfg.Samples, cfg.Clients, cfg.Workers, cfg.Rate); err != nil {
		return err
	}
	w.printf("connected           %d clients in %v (%s)\n", rest, rounded(time.Since(began)), perSecond(rest, time.Since(began)))
	if err := asker.await(ctx, fleet.ids[cfg.Samples:], "online"); err != nil {
		return err
	}
	w.printf("visible             %d clients %v after the first of them (%s)\n", rest, rounded(time.Since(began)), perSecond(rest, time.Since(began)))
	missing, err := asker.count(ctx, fleet.ids, "online")
	if err != nil {
		return err
	}
	w.printf("online              %d of %d, %d missing\n", cfg.Clients-missing, cfg.Clients, missing)
	if missing != 0 {
		return errors.Join(fmt.Errorf("%d clients are connected and not online", missing), w.err)
	}
	w.printf("memory              %s\n", memory(t.pid))

	began = time.Now()
	if err := fleet.disconnect(ctx, cfg.Workers); err != nil {
		return err
	}
	if err := asker.await(ctx, fleet.ids, "offline"); err != nil {
		return err
	}
	w.printf("offline             %d clients %v after the first DISCONNECT (%s)\n", cfg.Clients, rounded(time.Since(began)), perSecond(cfg.Clients, time.Since(began)))
	return w.err
}

// writer keeps the first error.
type writer struct {
	out io.Writer
	err error
}

func (w *writer) printf(format string, args ...any) {
	if _, err := fmt.Fprintf(w.out, format, args...); err != nil && w.err == nil {
		w.err = fmt.Errorf("print the result: %w", err)
	}
}

func rounded(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func perSecond(n int, d time.Duration) string {
	return fmt.Sprintf("%.0f events/s", float64(n)/d.Seconds())
}
