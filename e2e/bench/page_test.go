package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/services/materializer/store"
)

// TestPage sees that results, goals that were missed, parts that were skipped and profiles are on the page, and the chart beside it.
func TestPage(t *testing.T) {
	tab := &table{out: io.Discard, part: "peers"}
	fast, slow := cost{events: 1_000_000, seconds: 1, usage: usage{cpu: 2 * time.Second, peak: 100 * mib}, disk: 5_000}, cost{events: 1_000_000, seconds: 5}
	tab.cost("rebuild, json", fast, 100)
	tab.times("Kafka Streams", fast, slow, 8)
	tab.times("Goka", fast, slow, 4)
	tab.profile("rebuild", "10ms of | main.fold\n  5ms x\n")
	tab.profile("rebuild", "20ms of main.fold\n")
	tab.skip("bridge", fmt.Errorf("%w: mosquitto", errMissing))
	tab.took = []row{{part: "peers", measured: "3m0s"}, {part: "bridge", measured: "0s"}}
	tab.chart = growthChart([]growth{
		{clients: 1_000, rebuilt: fast, passed: slow, restored: fast, compacted: store.Usage{Clients: 80_000}, lookup99: 20 * time.Microsecond},
		{clients: 100_000, rebuilt: fast, passed: slow, restored: fast, compacted: store.Usage{Clients: 8_000_000}, lookup99: 30 * time.Microsecond},
	})
	path := filepath.Join(t.TempDir(), "pages", "2026-11-23.md")
	if err := (page{date: time.Unix(1_795_392_000, 0).UTC(), command: "bench", facts: [][2]string{{"Go", "go1"}}}).write(path, tab); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		"# Benchmarks of 2026-11-23\n", "| Go | go1 |\n", "## peers\n", "| rebuild, json | 1000000 events/s, 1000000 in 1.00 s |  |  |\n",
		"CPU 2.0 s (2.00 us/event), Kafka 0.0 s; peak 100 MiB; disk 50 B/client", "5.0 times | at least 8 times | **miss** |\n", "5.0 times | at least 4 times | pass |\n",
		"This part took 3m0s.\n", "- peers, rebuild, json, of Kafka Streams: 5.0 times; the goal is at least 8 times.\n", "- Not measured: bridge: missing: mosquitto.\n",
		"### rebuild\n\n    20ms of main.fold\n", "## bridge\n\nNot measured: ",
	} {
		if !strings.Contains(string(text), part) {
			t.Errorf("%q is missing in\n%s", part, text)
		}
	}
	if strings.Contains(string(text), "of Goka: ") || strings.Contains(string(text), "10ms") {
		t.Errorf("what was met is listed as missed, or an old profile is there:\n%s", text)
	}
	drawing, err := os.ReadFile(strings.TrimSuffix(path, "md") + "svg")
	if err != nil {
		t.Fatal(err)
	}
	elements := 0
	for d := xml.NewDecoder(strings.NewReader(string(drawing))); ; elements++ {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("the chart is no XML: %v\n%s", err, drawing)
		}
	}
	if elements < 100 || !strings.Contains(string(drawing), ">100k<") || strings.Contains(string(drawing), "NaN") {
		t.Errorf("the chart is\n%s", drawing)
	}
}

func TestChartScale(t *testing.T) {
	for v, want := range map[float64]float64{0: 1, 1: 1, 3: 4, 41: 50, 801: 1000, 0.07: 0.08} {
		if got := roundUp(v); got < want*0.999 || got > want*1.001 {
			t.Errorf("%v: %v", v, got)
		}
	}
	c := &chart{x: []float64{1e5, 1e6, 1e7}}
	if a, b := c.place(1e6)-c.place(1e5), c.place(1e7)-c.place(1e6); a < b-0.01 || a > b+0.01 || a < 1 {
		t.Errorf("%v and %v", a, b)
	}
	if got := (&chart{x: []float64{7}}).place(7); got != marginLeft+plotWidth/2 {
		t.Errorf("a single number is at %v", got)
	}
	for v, want := range map[float64]string{1e7: "10M", 123_456: "123k", 5000: "5000", 0.25: "0.25"} {
		if got := short(v); got != want {
			t.Errorf("%v: %q", v, got)
		}
	}
}

func TestMedianCost(t *testing.T) {
	if got := medianCost([]cost{{events: 9, seconds: 1}, {events: 1, seconds: 1}, {events: 5, seconds: 1}}); got.events != 5 {
		t.Errorf("%+v", got)
	}
}

func TestNumbers(t *testing.T) {
	if got, err := numbers("sizes", []string{"5", "70"}); err != nil || len(got) != 2 || got[1] != 70 {
		t.Errorf("%v, error %v", got, err)
	}
	for _, bad := range []string{"0", "-1", "x", ""} {
		if _, err := numbers("sizes", []string{bad}); err == nil || !strings.Contains(err.Error(), "sizes") {
			t.Errorf("%q: error %v", bad, err)
		}
	}
}
