package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// small is a run that takes seconds and whose numbers mean nothing.
func small(t *testing.T, parts ...string) config {
	t.Helper()
	cfg := defaultConfig()
	cfg.Parts, cfg.Dir = parts, t.TempDir()
	cfg.Clients, cfg.Callers, cfg.Rounds, cfg.Round, cfg.Pages = 2_000, 4, 2, 50*time.Millisecond, 20
	cfg.Watchers, cfg.Changes, cfg.Rate = 60, 1_500, 500
	cfg.Profile = 0 // a process has one at a time
	return cfg
}

// lines runs parts and returns what was printed.
func lines(t *testing.T, cfg config) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	var out bytes.Buffer
	if err := run(ctx, cfg, &table{out: &out}); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	t.Logf("\n%s", &out)
	return strings.Split(strings.TrimSpace(out.String()), "\n")
}

// TestFailedParts sees that the parts behind one that fails are tried, that all errors are told, and that what was measured is on the page.
func TestFailedParts(t *testing.T) {
	t.Parallel()
	cfg := small(t, "seed", "grpc")
	cfg.PartTimeout = time.Nanosecond
	tab := &table{out: io.Discard}
	err := run(t.Context(), cfg, tab)
	for _, want := range []string{"seed: ", "grpc: ", "part-timeout"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not tell of %q: %v", want, err)
		}
	}
	cfg.Page = filepath.Join(t.TempDir(), "page.md")
	tab.line("seed call", "5/s", "", "")
	tab.rows[0].part = "seed"
	if err := document(cfg, page{}, tab); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(cfg.Page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| seed call | 5/s |", "**This part failed after 0s.**", "part-timeout", "- Not measured, or not all of it: grpc, "} {
		if !strings.Contains(string(text), want) {
			t.Errorf("%q is not on the page:\n%s", want, text)
		}
	}
}

func TestRatios(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"seed", "grpc"} {
		got := lines(t, small(t, part))
		if len(got) != 4 || !strings.Contains(got[3], "%") {
			t.Errorf("%s prints %d lines", part, len(got))
		}
	}
}

// TestCheck sees that a list with a client that does not belong, or in another order, is an error.
func TestCheck(t *testing.T) {
	at := time.Unix(1_760_000_000, 0)
	client := func(id, status, node string, since time.Time) *presencev1.Client {
		return &presencev1.Client{
			ClientId: id, Status: status, Since: timestamppb.New(since), Connection: &presencev1.ClientConnection{Node: node, Username: "u"},
		}
	}
	for name, c := range map[string]struct {
		filter  presenceclient.Filter
		clients []*presencev1.Client
		ok      bool
	}{
		"right":          {presenceclient.Filter{Status: "online", Node: "n", Username: "u", Prefix: "a"}, []*presencev1.Client{client("a1", "online", "n", at), client("a2", "online", "n", at)}, true},
		"order":          {presenceclient.Filter{}, []*presencev1.Client{client("b", "online", "n", at), client("a", "online", "n", at)}, false},
		"twice":          {presenceclient.Filter{}, []*presencev1.Client{client("a", "online", "n", at), client("a", "online", "n", at)}, false},
		"status":         {presenceclient.Filter{Status: "offline"}, []*presencev1.Client{client("a", "online", "n", at)}, false},
		"node":           {presenceclient.Filter{Node: "m"}, []*presencev1.Client{client("a", "online", "n", at)}, false},
		"username":       {presenceclient.Filter{Username: "v"}, []*presencev1.Client{client("a", "online", "n", at)}, false},
		"prefix":         {presenceclient.Filter{Prefix: "ab"}, []*presencev1.Client{client("a", "online", "n", at)}, false},
		"too early":      {presenceclient.Filter{SinceFrom: at}, []*presencev1.Client{client("a", "online", "n", at.Add(-1))}, false},
		"too late":       {presenceclient.Filter{SinceBefore: at}, []*presencev1.Client{client("a", "online", "n", at)}, false},
		"order by since": {presenceclient.Filter{SinceFrom: at}, []*presencev1.Client{client("a", "online", "n", at.Add(9)), client("b", "online", "n", at)}, false},
		"right by since": {presenceclient.Filter{SinceFrom: at}, []*presencev1.Client{client("b", "online", "n", at), client("a", "online", "n", at.Add(9))}, true},
	} {
		if err := check(c.filter, &presencev1.ListClientsResponse{Clients: c.clients}); (err == nil) != c.ok {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// TestWatches sees that a transition that is missing, comes twice or in another order is an error.
func TestWatches(t *testing.T) {
	changes := []change{{id: "a", ms: 1}, {id: "b", ms: 2}, {id: "a", ms: 3}}
	for name, c := range map[string]struct {
		seen map[string][]int64
		ok   bool
	}{
		"right":   {map[string][]int64{"a": {1, 3}, "b": {2}}, true},
		"missing": {map[string][]int64{"a": {1, 3}}, false},
		"twice":   {map[string][]int64{"a": {1, 3, 3}, "b": {2}}, false},
		"order":   {map[string][]int64{"a": {3, 1}, "b": {2}}, false},
		"other":   {map[string][]int64{"a": {1, 3}, "b": {2}, "c": {4}}, false},
	} {
		w := &watcher{wants: func(*change) bool { return true }, seen: c.seen}
		for _, times := range c.seen {
			w.delivered += len(times)
		}
		var out bytes.Buffer
		tab := &table{out: &out}
		err := tab.watches([]*watcher{w}, changes, 0, 0)
		if pass := strings.Contains(out.String(), "pass"); (err == nil) != c.ok || pass != c.ok {
			t.Errorf("%s: error %v\n%s", name, err, &out)
		}
	}
}

func TestDelays(t *testing.T) {
	var d delays
	for i := 100; i > 0; i-- {
		d = append(d, time.Duration(i)*time.Millisecond)
	}
	if got := d.sorted().String(); got != "p50 50.00 ms, p99 99.00 ms" {
		t.Error(got)
	}
	if got := delays(nil).at(0.99); got != 0 {
		t.Error(got)
	}
	if m := median([]float64{3, 1, 2, 10}); m != 2.5 {
		t.Error(m)
	}
}

func TestConfig(t *testing.T) {
	cfg := defaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	if !cfg.measures("scale") || cfg.measures("restore") {
		t.Error("a fleet of one size is measured twice")
	}
	if cfg.Sizes = cfg.Sizes[:1]; !cfg.measures("restore") {
		t.Error("restore is left out though scale does not measure as many clients")
	}
	cfg.Parts, cfg.Watchers, cfg.Round, cfg.Sizes, cfg.Sizing = []string{"peers", "scale", "other"}, 0, 0, []string{"20", "10"}, "sizing.md"
	err := cfg.Validate()
	for _, option := range []string{"parts", "watchers", "round", "sizes", "sizing: needs part bridge"} {
		if err == nil || !strings.Contains(err.Error(), option) {
			t.Errorf("%s is not named: %v", option, err)
		}
	}
}
