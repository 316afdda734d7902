package main

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestParseProcess(t *testing.T) {
	// The program is called "a) b".
	stat := "4711 (a) b) S 1 4711 4711 0 -1 4194560 1000 0 0 0 250 75 0 0 20 0 8 0 123 1 2"
	if cpu, err := parseCPU(stat); err != nil || cpu != 3250*time.Millisecond {
		t.Errorf("%v, error %v", cpu, err)
	}
	if _, err := parseCPU("4711 (x) S 1"); err == nil {
		t.Error("a short line is read")
	}
	if peak, err := parsePeak("Name:\tx\nVmPeak:\t  99 kB\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\n"); err != nil || peak != 2*mib {
		t.Errorf("%d, error %v", peak, err)
	}
	if _, err := parsePeak("Name:\tx\n"); err == nil {
		t.Error("no VmHWM is read")
	}
	if u, err := usageOf("self"); err != nil || u.peak < mib {
		t.Errorf("of this process: %+v, error %v", u, err)
	}
}

func TestParsePeer(t *testing.T) {
	p := &peer{process: &process{name: "p"}}
	for line, want := range map[string]bool{"done 300 1.5 a b": true, "done": false, "something else": false} {
		if done, err := p.parse(line); err != nil || done != want {
			t.Errorf("%q: %t, error %v", line, done, err)
		}
	}
	if p.events != 300 || p.seconds != 1.5 || strings.Join(p.extra, " ") != "a b" {
		t.Errorf("%d events, %v s, %q", p.events, p.seconds, p.extra)
	}
	if _, err := p.parse("done many 1.5"); err == nil {
		t.Error("a word is read as a number")
	}
}

// TestPeer sees a child that is done, one that ends before, and what that one has said.
func TestPeer(t *testing.T) {
	t.Parallel()
	p, err := startPeer(t.Context(), "good", t.TempDir(), exec.Command("sh", "-c", "echo hello; echo done 7 0.5; read x"))
	if err != nil || p.events != 7 {
		t.Fatalf("%+v, error %v", p, err)
	}
	if _, err := p.usage(); err != nil {
		t.Error(err)
	}
	if err := p.stop(); err == nil {
		t.Error("sh ends with 1 when there is nothing to read, and nobody says so")
	}
	_, err = startPeer(t.Context(), "bad", t.TempDir(), exec.Command("sh", "-c", "echo out of luck >&2; exit 3"))
	if err == nil || !strings.Contains(err.Error(), "out of luck") {
		t.Errorf("error %v", err)
	}
}

func TestParseJava(t *testing.T) {
	for text, want := range map[string]int{`openjdk version "17.0.15" 2025-04-15`: 17, `openjdk version "21" 2023`: 21, "": 0} {
		if got := parseJava(text); got != want {
			t.Errorf("%q: %d", text, got)
		}
	}
}

func TestSamples(t *testing.T) {
	s, err := parseSamples("# HELP x y\npresence_materializer_partition_ready{partition=\"0\"} 1\npresence_materializer_partition_ready{partition=\"1\"} 1\n" +
		"presence_materializer_partition_ready_more 5\npresence_materializer_published_total 1.2e+06\n")
	if err != nil {
		t.Fatal(err)
	}
	if got := s.sum("partition_ready"); got != 2 {
		t.Errorf("ready: %v", got)
	}
	if got := s.sum("published_total"); got != 1.2e6 {
		t.Errorf("published: %v", got)
	}
	if _, err := parseSamples("nothing"); err == nil {
		t.Error("a line without a value is read")
	}
}

func TestTrimTop(t *testing.T) {
	got := trimTop("File: materializer\nType: cpu\nDuration: 5s, Total samples = 6s\n   1s 20% runtime.x\n\n")
	if got != "Duration: 5s, Total samples = 6s\n   1s 20% runtime.x" {
		t.Errorf("%q", got)
	}
}

func TestAnswer(t *testing.T) {
	r := newLineReader(strings.NewReader("HTTP/1.1 200 OK\r\nContent-Length: 15\r\nX: y\r\n\r\n{\"online\":true}HTTP/1.1 429 Too Many Requests\r\n\r\n"))
	if body, err := r.answer(); err != nil || body != seedAnswer {
		t.Errorf("%q, error %v", body, err)
	}
	if _, err := r.answer(); err == nil {
		t.Error("429 is an answer")
	}
}

// TestWhileAlive sees that what needs a child ends with it.
func TestWhileAlive(t *testing.T) {
	t.Parallel()
	p, err := startProcess("short", t.TempDir(), exec.Command("sh", "-c", "echo gone >&2; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := p.whileAlive(t.Context())
	defer cancel()
	select {
	case <-ctx.Done():
	case <-time.After(time.Minute):
		t.Fatal("the child has ended, and its context has not")
	}
	if cause := context.Cause(ctx); !strings.Contains(cause.Error(), "gone") {
		t.Errorf("the cause is %v", cause)
	}
	if err := p.kill(); err == nil {
		t.Error("nobody says that the child had ended before")
	}
}
