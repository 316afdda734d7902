package query

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

const (
	// maxCatchUps is how many watchers may read the past from Kafka at once. The others wait in line.
	maxCatchUps = 16
	// catchUpPatience is how long a watcher may take for a page of the past before its place goes to another.
	catchUpPatience = 10 * time.Second
	maxCatchUpFetch = 1 << 20
	maxCatchUpPage  = 1 << 10
)

// pastReader reads client-state from before the ring. It has one of few places.
type pastReader struct {
	source *watchSource
	client *kgo.Client
	once   sync.Once
	freed  chan struct{}
}

// give gives the place to another.
func (r *pastReader) give() {
	r.once.Do(func() {
		r.client.Close()
		close(r.freed)
		<-r.source.catchUp
	})
}

// readPast waits for a place.
func (v *watcher) readPast(ctx context.Context, at *watchPosition) (*pastReader, error) {
	for {
		if err := v.flush(); err != nil {
			return nil, err
		}
		timer := time.NewTimer(time.Until(v.due()))
		select {
		case v.source.catchUp <- struct{}{}:
			timer.Stop()
			client, err := v.source.consume(at.next, maxCatchUpFetch)
			if err != nil {
				<-v.source.catchUp
				return nil, err
			}
			return &pastReader{source: v.source, client: client, freed: make(chan struct{})}, nil
		case <-timer.C:
			if err := v.pulse(ctx); err != nil {
				return nil, err
			}
		case <-v.hub.closed:
			timer.Stop()
			return nil, errHubClosed
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// catchUp tells what the ring no longer has, until the watcher has a cursor in it.
func (v *watcher) catchUp(ctx context.Context) error {
	v.metrics.catchUps.Inc()
	v.metrics.catchingUp.Inc()
	defer v.metrics.catchingUp.Dec()
	at := &watchPosition{topic: v.from.topic, timeMS: v.from.timeMS, next: slices.Clone(v.from.next)}
	known := make([]versions, len(at.next))
	for v.cursor == nil {
		past, err := v.readPast(ctx, at)
		if err != nil {
			return err
		}
		err = v.tellPast(ctx, past, at, known)
		past.give()
		if err != nil {
			return err
		}
	}
	return nil
}

// tellPast tells pages of the past until the ring has the rest, or the place was lost since the watcher is slow.
func (v *watcher) tellPast(ctx context.Context, past *pastReader, at *watchPosition, known []versions) (err error) {
	var state eventlog.ClientState
	for {
		if v.cursor, err = v.hub.join(v.filter, v.epoch, at); err != nil || v.cursor != nil {
			return err
		}
		if err := v.stopped(ctx); err != nil {
			return err
		}
		within, cancel := context.WithDeadline(ctx, v.due())
		stop := make(chan struct{})
		go func() {
			defer close(stop)
			select {
			case <-v.hub.closed:
				cancel()
			case <-v.epoch.ended:
				cancel()
			case <-within.Done():
			}
		}()
		fetches := past.client.PollRecords(within, maxCatchUpPage)
		cancel()
		<-stop
		if err := watchFetchError(fetches); err != nil {
			return fmt.Errorf("read what the watch missed: %w", err)
		}
		var items []watchItem
		fetches.EachRecord(func(r *kgo.Record) {
			at.next[r.Partition] = r.Offset + 1
			if e := v.source.decode(r, &state, &known[r.Partition]); e != nil && v.filter.selects(e) {
				items = append(items, watchItem{e, at.token()})
			}
		})
		slow := time.AfterFunc(catchUpPatience, past.give)
		err := v.deliver(items)
		v.at = at.token()
		if err == nil {
			err = v.pulse(ctx)
		}
		if err == nil {
			err = v.flush()
		}
		if !slow.Stop() {
			// The place is being given up, or was.
			<-past.freed
			return err
		}
		if err != nil {
			return err
		}
	}
}
