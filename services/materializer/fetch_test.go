package materializer

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// A process that was stopped finds an answer of Kafka when it wakes up. What that says of the log's end is as old as the question.
func TestEndOffsetIsAsOldAsItsQuestion(t *testing.T) {
	l := newLog(t)
	last := l.facts(opened("a", "n1", 0))
	f, err := newFetcher(l.cfg, eventlog.NewClientLog(testLog(t)), testLog(t))
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

// The first record after a quiet time comes with an answer whose question is older than what was asked meanwhile: it makes nothing older.
func TestEndOffsetAfterAQuietTime(t *testing.T) {
	l := newLog(t)
	last := l.facts(opened("a", "n1", 0))
	f, err := newFetcher(l.cfg, eventlog.NewClientLog(testLog(t)), testLog(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.client.Close()
	partition := eventlog.Partition(last.Key, l.cfg.Partitions)
	var p progress
	asked := time.Now().UnixMilli()
	p.start(last.Offset, 0, last.Offset, asked)
	f.add(partition, last.Offset, newQueue(&p, func() {}))
	_, cancel := f.runPending(t.Context())
	cancel()
	f.polled[partition] = asked - time.Minute.Milliseconds()
	if err := f.poll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := p.read(); got.end != last.Offset+1 || got.endMS != asked || got.caughtUpMS != asked {
		t.Errorf("the end is %d as of %d, all was there at %d, want %d and %d for both", got.end, got.endMS, got.caughtUpMS, last.Offset+1, asked)
	}
}

// One partition that cannot be read says nothing of the others, and is no reason to end, unless a person must mend it.
func TestErrorsOfAPoll(t *testing.T) {
	poll := func(errs ...error) kgo.Fetches {
		f := kgo.Fetch{Topics: []kgo.FetchTopic{{Topic: eventlog.TopicClientEvents}}}
		for i, err := range errs {
			f.Topics[0].Partitions = append(f.Topics[0].Partitions, kgo.FetchPartition{Partition: int32(i), Err: err})
		}
		return kgo.Fetches{f}
	}
	for _, tc := range []struct {
		name  string
		polls kgo.Fetches
		want  error
		away  bool
	}{
		{"none", poll(nil, nil), nil, false},
		{"interrupted", poll(context.Canceled), nil, false},
		{"no leader", poll(nil, kerr.LeaderNotAvailable), kerr.LeaderNotAvailable, true},
		{"not allowed", poll(kerr.LeaderNotAvailable, kerr.TopicAuthorizationFailed), kerr.TopicAuthorizationFailed, false},
		{"lost", poll(kerr.LeaderNotAvailable, kerr.OffsetOutOfRange), errOutOfRange, false},
		{"cut", poll(&kgo.ErrDataLoss{Topic: "t"}), errOutOfRange, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if err := fetchError(t.Context(), tc.polls); !errors.Is(err, tc.want) || isAway(err) != tc.away {
				t.Errorf("%v, away: %t", err, isAway(err))
			}
		})
	}
}
