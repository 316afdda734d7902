package main

import (
	"strings"
	"testing"
)

func TestList(t *testing.T) {
	t.Parallel()
	if got := lines(t, small(t, "list")); len(got) != 3+len(filters) {
		t.Errorf("%d lines", len(got))
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	got := lines(t, small(t, "watch"))
	if last := got[len(got)-1]; !strings.Contains(last, "60 watches") || !strings.HasSuffix(last, "pass") {
		t.Errorf("the last line is %q", last)
	}
}
