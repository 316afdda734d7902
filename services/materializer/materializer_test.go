package materializer

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestFoldsFactsIntoRows(t *testing.T) {
	l := newLog(t)
	l.node(started("n1", 0))
	l.facts(opened("a", "n1", 1000), opened("b", "n1", 2000))
	m := l.start(l.config(vfs.NewMem())).ready()
	if e := m.get("a", nil); e.GetStatus() != "online" || !e.GetFound() || e.GetConnection().GetUsername() != "fleet" {
		t.Errorf("a is %v", e)
	}
	last := l.facts(closedAt("a", "n1", 1000, 5000))
	if e := m.get("a", last); e.GetStatus() != "offline" || e.GetStatusReason() != "closed" || e.GetPreviousStatus() != "online" || e.GetReason() != "normal" {
		t.Errorf("a is %v", e)
	}
	if e := m.get("b", nil); e.GetStatus() != "online" {
		t.Errorf("b is %v", e)
	}
	if e := m.get("nobody", nil); e.GetFound() || e.GetStatusReason() != "never_seen" {
		t.Errorf("nobody is %v", e)
	}
	m.published()
	if got := l.transitions("a"); len(got) != 2 || got[0] != "online connected" || got[1] != "offline closed" {
		t.Errorf("transitions of a: %v", got)
	}
}
