package main

import (
	"strings"
	"testing"
)

func TestFlood(t *testing.T) {
	t.Parallel()
	cfg := small(t, "flood")
	cfg.Idle, cfg.Floods, cfg.SiegeInProcess = 50, 4, true
	got := lines(t, cfg)
	if len(got) != 5 || !strings.Contains(got[3], "the flood asks") || !strings.Contains(got[4], "times that of the quiet run") {
		t.Errorf("printed %q", got)
	}
}
