package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// watches serves WatchClients over both transports.
type watches struct {
	cfg     Config
	answers *answers
	hub     *watchHub
	source  *watchSource
	fresh   *watchFreshness
	metrics *watchMetrics
}

// newWatches starts nothing.
func newWatches(cfg Config, a *answers, log *slog.Logger, reg prometheus.Registerer) (*watches, error) {
	m, err := newWatchMetrics(reg)
	if err != nil {
		return nil, err
	}
	hub := newWatchHub(cfg.WatchBuffer, cfg.WatchBufferBytes, m)
	return &watches{
		cfg: cfg, answers: a, hub: hub, metrics: m, fresh: newWatchFreshness(a),
		source: &watchSource{
			cfg: cfg, hub: hub, log: log.With(service.KeyTopic, eventlog.TopicClientState), kafkaLog: eventlog.NewClientLog(log), metrics: m,
			catchUp: make(chan struct{}, maxCatchUps),
		},
	}, nil
}

// run reads client-state until ctx ends, and then ends all watches. Without brokers there is nothing to read.
func (w *watches) run(ctx context.Context) {
	var running sync.WaitGroup
	if len(w.cfg.Brokers) > 0 {
		running.Go(func() { w.source.run(ctx) })
	}
	running.Go(func() { w.hub.wake(ctx) })
	<-ctx.Done()
	w.hub.close()
	running.Wait()
}

// watchSink takes the messages of one watch.
type watchSink interface {
	// entry sends a transition, or a removal.
	entry(e *watchEntry, token string) error
	message(m *presencev1.WatchClientsResponse) error
	// flush makes what was sent go out.
	flush() error
}

// watcher is one watch.
type watcher struct {
	*watches
	filter *watchFilter
	epoch  *watchEpoch
	cursor *watchCursor                   // nil until the watch reads the hub's sequence
	from   *watchPosition                 // where it begins; nil: at the end
	page   *presencev1.ListStatesResponse // the first of the snapshot; nil: there is none, or it was told
	needs  watchNeeds                     // of the snapshot
	sink   watchSink
	held   *debouncer // nil: nothing is held back

	at     string    // token of the position before which all was told or is held; empty in a snapshot
	told   time.Time // when the last message went out
	unsent bool      // something waits for a flush
	items  []watchItem
}

// begin checks a request, and finds its place; what is wrong is an error before the stream begins. The caller must end the watcher.
func (w *watches) begin(ctx context.Context, req *presencev1.WatchClientsRequest) (*watcher, error) {
	if len(w.cfg.Brokers) == 0 {
		return nil, status.Error(codes.Unimplemented, "this service does not watch: it is not told of a Kafka. Set --kafka-brokers")
	}
	filter, err := newWatchFilter(req, w.answers.clusterOf(req.GetCluster()))
	if err != nil {
		return nil, err
	}
	var from *watchPosition
	if req.GetResumeToken() != "" {
		if from, err = parseWatchToken(req.GetResumeToken(), time.Now()); err != nil {
			return nil, invalid("resume_token", "resume_token: "+err.Error()+"; give the one of the last message received, or none")
		}
	}
	epoch, err := w.hub.await(ctx, w.cfg.RequestTimeout)
	if err != nil {
		return nil, w.broken(ctx, err)
	}
	v := &watcher{watches: w, filter: filter, epoch: epoch, told: time.Now(), items: make([]watchItem, 0, maxWatchRead)}
	if filter.debounce > 0 {
		v.held = newDebouncer(filter.debounce)
	}
	switch {
	case req.GetSnapshot():
		// The position comes first: what changes while the clients are listed is told after them.
		if v.from, v.needs, err = w.hub.position(epoch); err == nil {
			err = v.firstPage(ctx)
		}
	case from == nil:
		v.cursor, err = w.hub.follow(filter, epoch)
	default:
		v.from = from
		err = v.resume(ctx)
	}
	if err != nil {
		return nil, w.broken(ctx, err)
	}
	return v, nil
}

// end gives the watcher's place up.
func (v *watcher) end() {
	if v.cursor != nil {
		v.cursor.leave()
	}
}

// resume checks the position and takes a cursor there, if the ring has it.
func (v *watcher) resume(ctx context.Context) error {
	head, _, err := v.hub.position(v.epoch)
	if err != nil {
		return err
	}
	if v.from.topic != head.topic || len(v.from.next) != len(head.next) {
		return tooOld("it is of another log: " + errTopicChanged.Error())
	}
	if age := time.Since(time.UnixMilli(v.from.timeMS)); age > v.epoch.compactionLag {
		return tooOld(fmt.Sprintf("it is %v old, and Kafka keeps every transition for %v only", age.Round(time.Second), v.epoch.compactionLag))
	}
	if v.cursor, err = v.hub.join(v.filter, v.epoch, v.from); err != nil {
		return err
	}
	ahead := false
	for p, offset := range v.from.next {
		ahead = ahead || offset > head.next[p]
	}
	if v.cursor != nil && !ahead {
		return nil
	}
	log, err := v.source.bounds(ctx)
	if err == nil {
		err = v.within(log)
	}
	if err != nil {
		v.end()
		v.cursor = nil
		return err
	}
	return nil
}

// within checks that the log has the position.
func (v *watcher) within(log *watchLog) error {
	if log.topic != v.from.topic || len(log.starts) != len(v.from.next) {
		return tooOld("it is of another log: " + errTopicChanged.Error())
	}
	for p, offset := range v.from.next {
		switch {
		case offset < log.starts[p]:
			return tooOld(fmt.Sprintf("partition %d of the log begins after it", p))
		case offset > log.ends[p]:
			// Ends are those of what is committed. Another process can only have told what is.
			return tooOld(fmt.Sprintf("partition %d of the log ends before it", p))
		}
	}
	return nil
}

// tooOld is the answer to a position that is no more.
func tooOld(why string) error {
	return status.Error(codes.OutOfRange, "resume_token: "+why+". Transitions may be missing: begin anew with snapshot=true")
}

// broken maps what ended a watch to what its caller may see.
func (w *watches) broken(ctx context.Context, err error) error {
	if s, ok := status.FromError(err); ok {
		return s.Err()
	}
	switch {
	case errors.Is(err, errHubClosed):
		return unavailable("the service is stopping; watch again with the last resume_token")
	case errors.Is(err, errHubReset), errors.Is(err, errTopicChanged), errors.Is(err, errLogCut):
		return tooOld(errHubReset.Error())
	case errors.Is(err, errSink) && ctx.Err() == nil:
		return status.Error(codes.DeadlineExceeded, errSink.Error())
	case ctx.Err() != nil:
		if s, ok := status.FromError(context.Cause(ctx)); ok {
			return s.Err()
		}
		return status.FromContextError(ctx.Err()).Err()
	}
	w.source.log.DebugContext(ctx, "no transitions for a watch", service.KeyError, err)
	return unavailable("transitions cannot be read from Kafka right now; watch again")
}

// run tells the sink until the watch ends, and why it did.
func (v *watcher) run(ctx context.Context, sink watchSink) error {
	v.sink = sink
	err := v.tell(ctx)
	if errors.Is(err, errHubClosed) || ctx.Err() != nil && !errors.Is(err, errSink) {
		// The last word is where to go on.
		err = errors.Join(err, v.heartbeat(ctx), v.flush())
	}
	return v.broken(ctx, err)
}

// errSink marks that the watcher has gone.
var errSink = errors.New("the watcher does not take messages any more")

func (v *watcher) tell(ctx context.Context) error {
	if v.page != nil {
		if err := v.snapshot(ctx); err != nil {
			return err
		}
	}
	if v.cursor == nil {
		v.at = v.from.token()
		if err := v.catchUp(ctx); err != nil {
			return err
		}
	} else if v.at = v.cursor.position(); v.from == nil {
		// A watcher that is cut off before the first transition knows where it was.
		if err := v.heartbeat(ctx); err != nil {
			return err
		}
	}
	for {
		r, err := v.cursor.read(v.items)
		if err == nil {
			err = v.stopped(ctx)
		}
		if err != nil {
			return err
		}
		if r.skipped > 0 {
			if err := v.skip(r); err != nil {
				return err
			}
		}
		if err := v.deliver(r.items); err != nil {
			return err
		}
		v.at = v.cursor.at
		if len(r.items) == 0 && (r.more != nil || v.cursor.noting) {
			if err := v.wait(ctx, r.more, v.cursor.wake); err != nil {
				return err
			}
		}
		if err := v.pulse(ctx); err != nil {
			return err
		}
	}
}

// stopped is why the watch must end, if it must.
func (v *watcher) stopped(ctx context.Context) error {
	select {
	case <-v.hub.closed:
		return errHubClosed
	case <-v.epoch.ended:
		return errHubReset
	case <-ctx.Done():
		return context.Cause(ctx)
	default:
		return nil
	}
}

// wait returns when there may be something to do.
func (v *watcher) wait(ctx context.Context, more, noted <-chan struct{}) error {
	if err := v.flush(); err != nil {
		return err
	}
	timer := time.NewTimer(time.Until(v.due()))
	defer timer.Stop()
	select {
	case <-more:
	case <-noted:
	case <-timer.C:
	case <-v.hub.closed:
		return errHubClosed
	case <-v.epoch.ended:
		return errHubReset
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

// due is when a heartbeat or a client that is held must be told.
func (v *watcher) due() time.Time {
	due := v.told.Add(v.filter.heartbeat)
	if v.held != nil {
		if at, ok := v.held.due(); ok && at.Before(due) {
			return at
		}
	}
	return due
}

// pulse tells what time alone makes due.
func (v *watcher) pulse(ctx context.Context) error {
	if err := v.release(); err != nil {
		return err
	}
	if time.Since(v.told) < v.filter.heartbeat {
		return nil
	}
	if v.cursor != nil {
		v.at = v.cursor.position()
	}
	if err := v.heartbeat(ctx); err != nil {
		return err
	}
	return v.flush()
}

// deliver tells entries in order, or holds them.
func (v *watcher) deliver(items []watchItem) error {
	if v.held == nil {
		for _, item := range items {
			v.at = item.token
			if err := v.entry(item.watchEntry); err != nil {
				return err
			}
		}
		return nil
	}
	now := time.Now()
	for _, item := range items {
		v.held.add(item.watchEntry, v.at, now)
		v.at = item.token
		if err := v.release(); err != nil {
			return err
		}
	}
	return nil
}

// release tells the clients that were held for long enough.
func (v *watcher) release() error {
	if v.held == nil {
		return nil
	}
	now := time.Now()
	for e := v.held.take(now); e != nil; e = v.held.take(now) {
		if err := v.entry(e); err != nil {
			return err
		}
	}
	return nil
}

// token is that of the position before which all was told: nothing that is held is lost.
func (v *watcher) token() string {
	if v.held != nil {
		if before, ok := v.held.before(); ok {
			return before
		}
	}
	return v.at
}

func (v *watcher) entry(e *watchEntry) error {
	return v.sent(e.kind(), v.sink.entry(e, v.token()))
}

func (v *watcher) heartbeat(ctx context.Context) error {
	return v.message(&presencev1.WatchClientsResponse{Type: watchHeartbeat, ResumeToken: v.token(), Freshness: v.fresh.of(ctx, v.filter.cluster)})
}

func (v *watcher) skip(r watchRead) error {
	v.metrics.skipped.Add(float64(r.skipped))
	v.at = v.cursor.at
	return v.message(&presencev1.WatchClientsResponse{
		Type: watchSkipped, ResumeToken: v.token(), Skipped: &presencev1.Skipped{Records: r.skipped, ResumeToken: r.from},
	})
}

func (v *watcher) message(m *presencev1.WatchClientsResponse) error {
	return v.sent(m.GetType(), v.sink.message(m))
}

func (v *watcher) sent(kind string, err error) error {
	if err != nil {
		return fmt.Errorf("%w: %w", errSink, err)
	}
	v.metrics.messages.WithLabelValues(kind).Inc()
	v.told, v.unsent = time.Now(), true
	return nil
}

func (v *watcher) flush() error {
	if !v.unsent {
		return nil
	}
	v.unsent = false
	if err := v.sink.flush(); err != nil {
		return fmt.Errorf("%w: %w", errSink, err)
	}
	return nil
}
