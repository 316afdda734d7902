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
	if len(got) != 4 || !strings.Contains(got[3], "times that of the quiet run") {
		t.Errorf("printed %q", got)
	}
}
