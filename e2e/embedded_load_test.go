package e2e

import (
	"bytes"
	"context"
	"os/exec"
	"regexp"
	"testing"
	"time"
)

// TestLoadTool runs the load tool with few clients, as make bench does with many.
func TestLoadTool(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "run", "./load", "--clients", "300", "--samples", "100", "--sample-rate", "200")
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("the load tool ended with %v:\n%s", err, out)
	}
	for _, want := range []string{`p50 [\d.]+ ms, p99 [\d.]+ ms`, `(?m)^online +300 of 300, 0 missing$`, `(?m)^visible .* events/s\)$`, `(?m)^offline +300 clients`, `presence \d+ MiB`} {
		if !regexp.MustCompile(want).Match(out) {
			t.Errorf("no line matches %s:\n%s", want, out)
		}
	}

	// A target without anybody behind it is an error at once.
	cmd = exec.CommandContext(ctx, "go", "run", "./load", "--clients", "10", "--samples", "0", "--mqtt-url", "mqtt://127.0.0.1:9", "--http-url", "http://127.0.0.1:9")
	if out, err := cmd.CombinedOutput(); err == nil || !bytes.Contains(out, []byte("load: ")) {
		t.Errorf("against nothing the load tool ended with %v:\n%s", err, out)
	}
}
