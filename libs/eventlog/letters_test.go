package eventlog_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
)

func TestReadDeadLetters(t *testing.T) {
	_, cfg := eventlogtest.NewCluster(t)
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	read := func(since time.Time) []string {
		t.Helper()
		var got []string
		err := eventlog.ReadDeadLetters(ctx, cfg, since, log, func(l eventlog.Letter) error {
			got = append(got, fmt.Sprint(l.Reason, " ", l.LetterPartition, " ", l.LetterOffset, " ", errors.Is(l.Err, eventlog.ErrBadRecord)))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(got)
		return got
	}
	if err := eventlog.ReadDeadLetters(ctx, cfg, time.Time{}, log, nil); err == nil {
		t.Error("a cluster without the topic has letters")
	}
	eventlogtest.Ensure(t, cfg)
	if got := read(time.Time{}); got != nil {
		t.Errorf("letters of an empty topic: %v", got)
	}

	client := eventlogtest.NewClient(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	put := func(partition int32, l eventlog.DeadLetter, more ...kgo.RecordHeader) {
		t.Helper()
		r := eventlog.DeadLetterRecord(&l)
		r.Partition, r.Headers = partition, append(r.Headers, more...)
		if err := client.ProduceSync(ctx, r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	put(0, eventlog.DeadLetter{Reason: "a", ReceivedMS: 1_000})
	put(2, eventlog.DeadLetter{Reason: "b", ReceivedMS: 2_000})
	put(2, eventlog.DeadLetter{Reason: "c", ReceivedMS: 3_000}, kgo.RecordHeader{Key: "offset", Value: []byte("x")})
	put(2, eventlog.DeadLetter{Reason: "late", ReceivedMS: 2_000})
	if got, want := read(time.Time{}), []string{"a 0 0 false", "b 2 0 false", "c 2 1 true", "late 2 2 false"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got, want := read(time.UnixMilli(2_500)), []string{"c 2 1 true"}; !slices.Equal(got, want) {
		t.Errorf("since 2.5 s: got %v, want %v", got, want)
	}
	if got := read(time.UnixMilli(10_000)); got != nil {
		t.Errorf("since after the last: %v", got)
	}
	stop := errors.New("stop")
	if err := eventlog.ReadDeadLetters(ctx, cfg, time.Time{}, log, func(eventlog.Letter) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("an error of the caller became %v", err)
	}
}
