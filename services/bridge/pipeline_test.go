package bridge

import (
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestSlowKafkaIsToldOnce has Kafka come and go, as it does at its limit, and then stay.
func TestSlowKafkaIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &written{}
		p := &pipeline{log: slog.New(slog.NewTextHandler(out, nil)), onDirect: func() {}}
		turn := func(direct bool) {
			p.setDirect(direct, time.Now())
			p.tell(time.Now())
		}
		turn(false) // the topics are not there yet
		turn(true)
		if got := out.lines(""); len(got) != 1 || !strings.Contains(got[0], "takes facts directly") {
			t.Errorf("at the start: %q", got)
		}
		for range 100 {
			turn(false)
			<-time.After(600 * time.Millisecond)
			turn(true)
			<-time.After(time.Second)
		}
		if got := out.lines(""); len(got) != 2 || !strings.Contains(got[1], "level=WARN") {
			t.Errorf("while it comes and goes: %q", got)
		}
		// It is looked at again when it is to be told, though nothing happens.
		if due := p.nextCheck(); due > steadyAfter-time.Second {
			t.Errorf("looked at again after %v", due)
		}
		<-time.After(p.nextCheck())
		turn(true)
		if got := out.lines("takes facts directly again"); len(got) != 1 || !strings.Contains(got[0], "count=100") || !strings.Contains(got[0], "duration=2m39") {
			t.Errorf("when it stays: %q", out.lines(""))
		}
		turn(false)
		if got := out.lines("slow or down"); len(got) != 2 {
			t.Errorf("the second time: %q", got)
		}
	})
}
