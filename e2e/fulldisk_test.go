package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMaterializerFullDisk fills the volume of a materializer. It ends with one line that says what is missing, at work and at a start, and with
// room again it knows everybody.
func TestMaterializerFullDisk(t *testing.T) {
	volume := smallVolume(t)
	s := startProcesses(t, buildServices(t))
	dir := filepath.Join(volume, "data")
	m := s.materializer("a", "--data-dir", dir).start()
	query := s.query("--replicas", "a").start()
	s.shared("a", m)
	query.ready()
	f := newFleet(s, 40)
	f.first(t)
	q := newQuestions(t, query, f.ids)
	everybodyIsKnown(t, q)

	ballast := filepath.Join(volume, "ballast")
	fill(t, ballast)
	ended := func() bool { return len(m.exited) > 0 }
	for i := 0; !ended(); i++ {
		must(t, f.next(t.Context(), f.ids[i%len(f.ids)]))
		if i == 20_000 {
			t.Fatal("the materializer takes facts without end, with no room to keep them")
		}
	}
	want := "the store in " + dir + " cannot be written: no space left on device; make room"
	check := func(when string, times int) {
		t.Helper()
		select {
		case err := <-m.exited:
			m.cmd = nil
			if err == nil {
				t.Errorf("%s the materializer ends as if all were well", when)
			}
		case <-time.After(patience):
			t.Fatalf("%s the materializer does not end", when)
		}
		if said := m.log.String(); strings.Count(said, want) != times || strings.Count(said, "ERROR") != times || strings.Contains(said, "goroutine ") {
			t.Errorf("%s the materializer does not end with one error %q:\n%s", when, want, said)
		}
	}
	check("at work", 1)
	m.start()
	check("at a start", 2)

	must(t, os.Remove(ballast))
	m.start()
	s.shared("a", m)
	everybodyIsKnown(t, q)
	s.settled(t)
	m.end(syscall.SIGKILL)
}
