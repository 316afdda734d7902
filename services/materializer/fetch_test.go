package materializer

import (
	"errors"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// A process that was stopped finds an answer of Kafka when it wakes up. What that says of the log's end is as old as the question.
func TestEndOffsetIsAsOldAsItsQuestion(t *testing.T) {
	l := newLog(t)
	last := l.facts(opened("a", "n1", 0))
	f, err := newFetcher(l.cfg, testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.client.Close()
	var p progress
	q := newQueue(&p, func() {})
	f.add(eventlog.Partition(last.Key, l.cfg.Partitions), last.Offset, q)
	_, cancel := f.runPending(t.Context())
	cancel()
	asked := time.Now().UnixMilli()
	servicetest.Eventually(t, patience, func() error {
		if f.client.BufferedFetchRecords() == 0 || time.Now().UnixMilli() < asked+50 {
			return errors.New("nothing is fetched yet, or it is not old")
		}
		return nil
	})
	if err := f.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := p.read(); got.end != last.Offset+1 || got.endMS == 0 || got.endMS > asked {
		t.Errorf("the end is %d as of %d, want %d as of %d at the latest", got.end, got.endMS, last.Offset+1, asked)
	}
}
