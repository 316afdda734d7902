package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func someInputs() []input {
	return []input{
		{inFold, 10, "peers"}, {inFoldKafka, 2, "peers"}, {inFoldRate, 150_000, "peers"}, {inLargeFold, 20, "scale"}, {inLargeRate, 60_000, "scale"}, {inBridge, 15, "bridge"}, {inBridgeKafka, 3, "bridge"}, {inBridgeRate, 50_000, "bridge"},
		{inEventBytes, 100, "peers"}, {inStateBytes, 120, "scale"}, {inRow, 80, "scale"}, {inIndexes, 90, "scale"}, {inEvidence, 50, "scale"}, {inSessions, 380, "scale"},
		{inDisk, 200, "scale"}, {inRestoreRate, 200_000, "scale"},
	}
}

func TestSizing(t *testing.T) {
	in := map[string]float64{}
	for _, i := range someInputs() {
		in[i.name] = i.value
	}
	n := sizing(in, 10e6, 60)
	// 20 M events within 60 s are 333,333 a second; at 20 us each, as of a large fleet, that is 6.7 cores, planned half busy.
	for what, c := range map[string]struct{ have, want float64 }{
		"storm": {n.storm, 333_333}, "cores": {n.foldCores, 13.33}, "materializers": {n.materializers, 7}, "partitions": {n.partitions, 64}, "bridges": {n.bridges, 14},
		"restore": {n.restore, 7.14}, "disk": {n.stateDisk, 11.2}, "lag": {n.stormLag, 0}, "steady": {n.steady, 2_778},
	} {
		if c.have < c.want*0.99 || c.have > c.want*1.01 {
			t.Errorf("%s: %v, want %v", what, c.have, c.want)
		}
	}
	if middle := sizing(in, 1e6, 60); middle.foldCores < 0.66 || middle.foldCores > 0.67 {
		t.Errorf("%+v", middle)
	}
	if quiet := sizing(in, 100e6, 1e6); quiet.materializers != 10 {
		t.Errorf("%+v", quiet)
	}
	if small := sizing(in, 1_000, 300); small.materializers != 1 || small.partitions != leastPartitions || small.bridges != 1 {
		t.Errorf("%+v", small)
	}
}

func TestSizingPage(t *testing.T) {
	text := sizingText(someInputs(), "2026-11-23.md")
	if !strings.Contains(text, "| materializers of 2 cores, for each replica | 1 |") || !strings.Contains(text, "(benchmarks/2026-11-23.md)") || strings.Contains(text, "not measured") {
		t.Errorf("the page is\n%s", text)
	}
	for _, line := range []string{"| " + inFold + " | not measured | |", "| materializers of 2 cores, for each replica | not measured | 2 | 14 |",
		"| partitions | not measured | 16 | 128 |", "| bridges, of as many broker clusters | 1 | 3 | 27 |"} {
		if text := sizingText(someInputs()[1:], "x.md"); !strings.Contains(text, line) || strings.Contains(text, "NaN") {
			t.Errorf("%q is not on a page without %s:\n%s", line, inFold, text)
		}
	}
	path := filepath.Join(t.TempDir(), "sizing.md")
	if err := os.WriteFile(path, []byte("before\n"+sizingBegin+"old\n"+sizingEnd+"after\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time changes nothing
		if err := writeSizing(path, "new"); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "before\n"+sizingBegin+"\nnew\n\n"+sizingEnd+"after\n" {
		t.Errorf("%q, error %v", got, err)
	}
	if err := os.WriteFile(path, []byte("no lines\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeSizing(path, "new"); err == nil {
		t.Error("a page without the lines is written")
	}
	// The page that is in the documents can be written.
	page, err := os.ReadFile("../../docs/sizing.md")
	if err != nil || !strings.Contains(string(page), sizingBegin) || !strings.Contains(string(page), sizingEnd) {
		t.Errorf("docs/sizing.md: %v", err)
	}
}
