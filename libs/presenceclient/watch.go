package presenceclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Types of a watch's messages. All but EventSnapshotBegin come from the service.
const (
	// EventTransition is a change of a client's status or of its current connection.
	EventTransition = "transition"
	// EventRemoved is a client that was forgotten or has expired.
	EventRemoved = "removed"
	// EventSnapshotBegin says that clients follow, up to EventSnapshotEnd, and that what an earlier snapshot or transition said no longer counts.
	EventSnapshotBegin = "snapshot_begin"
	// EventClient is a client of the snapshot.
	EventClient = "client"
	// EventSnapshotEnd says that all clients that the filter selects have come; transitions since the snapshot began follow.
	EventSnapshotEnd = "snapshot_end"
	// EventSkipped says what this consumer did not get, since it was too slow.
	EventSkipped = "skipped"
	// EventHeartbeat says that nothing has happened, and how fresh that is.
	EventHeartbeat = "heartbeat"
)

const (
	minWatchPause = 100 * time.Millisecond
	maxWatchPause = 5 * time.Second
	// defaultHeartbeat is the service's.
	defaultHeartbeat = 15 * time.Second
	// heartbeatsMissed, and the grace on top, are how long a stream may be silent before it is taken for dead.
	heartbeatsMissed = 3
	heartbeatGrace   = 5 * time.Second
	// maxWatchIDs is the most client IDs of one watch.
	maxWatchIDs = 1_000
)

// Watch says what to watch; a field that is zero selects all.
type Watch struct {
	// Status selects transitions to or from it: online, offline or unknown.
	Status string
	// Node, Username and Prefix select by the connection that decided, and by the beginning of the client ID.
	Node, Username, Prefix string
	// ClientIDs are the only clients to watch, at most 1,000.
	ClientIDs []string

	// ResumeToken goes on after the message that it came with, of a watch with the same filter. Empty: from now on.
	ResumeToken string
	// Snapshot begins with all clients that the filter selects. Not together with ResumeToken.
	Snapshot bool
	// SnapshotIfTooOld takes a snapshot in place of an error that [IsTooOld] tells: EventSnapshotBegin says so.
	SnapshotIfTooOld bool

	// Debounce holds a client's transition back until none has followed for this long, at most 10 min; if the client is back where it was, it does
	// not come at all.
	Debounce time.Duration
	// Heartbeat is the longest time between two messages, 1 s to 5 min. A stream that is silent for three of them and 5 s is made anew. Default 15 s.
	Heartbeat time.Duration

	// Interrupted, if not nil, is called with the reason whenever the stream broke and is about to be made anew, in the goroutine of the loop.
	Interrupted func(error)
}

// Watch returns the messages of a watch as they come: for each client in version order, over any number of broken streams, none twice and none
// missing, except those that EventSkipped tells of; with Debounce some may come twice where a stream broke. It ends only with an error, the last
// pair, or when the loop is left: with the context's error, or one that a new attempt would not mend, such as a missing permission, a wrong
// filter, or a token that is too old.
//
// The resume_token of the last message handled is all that needs to be kept to go on later, also in another process. A message counts as handled
// once the loop asks for the next one.
func (c *Client) Watch(ctx context.Context, watch Watch) iter.Seq2[*presencev1.WatchClientsResponse, error] {
	return func(yield func(*presencev1.WatchClientsResponse, error) bool) {
		if err := watch.check(); err != nil {
			yield(nil, failed("watch the clients", err))
			return
		}
		w := &watcher{client: c, watch: watch, token: watch.ResumeToken, snapshot: watch.Snapshot, yield: yield}
		for pause := minWatchPause; ; {
			w.progress = false
			err := w.stream(ctx)
			switch {
			case errors.Is(err, errLoopLeft):
				return
			case ctx.Err() != nil:
				yield(nil, failed("watch the clients", status.FromContextError(ctx.Err()).Err()))
				return
			case IsTooOld(err) && (watch.SnapshotIfTooOld || w.snapshot):
				w.snapshot, w.token = true, ""
			case !w.mends(err):
				yield(nil, failed("watch the clients", err))
				return
			}
			if watch.Interrupted != nil {
				watch.Interrupted(err)
			}
			if w.progress {
				pause = minWatchPause
			}
			if !w.rest(ctx, pause, err) {
				yield(nil, failed("watch the clients", status.FromContextError(ctx.Err()).Err()))
				return
			}
			pause = min(2*pause, maxWatchPause)
		}
	}
}

func (w Watch) check() error {
	if len(w.ClientIDs) > maxWatchIDs {
		return invalid("client_ids", fmt.Sprintf("holds %d client IDs; give at most %d, or a filter", len(w.ClientIDs), maxWatchIDs))
	}
	for i, id := range w.ClientIDs {
		if err := checkID(fmt.Sprintf("client_ids[%d]", i), id); err != nil {
			return err
		}
	}
	switch {
	case w.Snapshot && w.ResumeToken != "":
		return invalid("snapshot", "and resume_token exclude each other: give one")
	case w.Debounce < 0:
		return invalid("debounce", fmt.Sprintf("is %v; give a positive duration, or 0 for none", w.Debounce))
	case w.Heartbeat < 0:
		return invalid("heartbeat", fmt.Sprintf("is %v; give a positive duration, or 0 for %v", w.Heartbeat, defaultHeartbeat))
	}
	return nil
}

// silence is how long a stream may be silent.
func (w Watch) silence() time.Duration {
	heartbeat := w.Heartbeat
	if heartbeat == 0 {
		heartbeat = defaultHeartbeat
	}
	return heartbeatsMissed*heartbeat + heartbeatGrace
}

var (
	// errLoopLeft ends a watch without an error: nobody wants one.
	errLoopLeft = errors.New("the loop was left")
	errSilent   = status.Error(codes.Unavailable, "no message and no heartbeat came in time")
)

// watcher is a watch that is under way.
type watcher struct {
	client *Client
	watch  Watch
	yield  func(*presencev1.WatchClientsResponse, error) bool

	token    string
	snapshot bool // asked for, and not at its end yet
	progress bool // the stream has sent something
}

// stream makes one stream and hands its messages on until it breaks.
func (w *watcher) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req := &presencev1.WatchClientsRequest{
		Cluster: w.client.cluster, Status: w.watch.Status, Node: w.watch.Node, Username: w.watch.Username,
		ClientIdPrefix: w.watch.Prefix, ClientIds: w.watch.ClientIDs, ResumeToken: w.token, Snapshot: w.snapshot,
	}
	if w.watch.Debounce > 0 {
		req.Debounce = durationpb.New(w.watch.Debounce)
	}
	if w.watch.Heartbeat > 0 {
		req.Heartbeat = durationpb.New(w.watch.Heartbeat)
	}
	silent := time.AfterFunc(w.watch.silence(), func() { cancel(errSilent) })
	defer silent.Stop()
	stream, err := w.client.rpc.WatchClients(ctx, req)
	if err != nil {
		return w.broken(ctx, err)
	}
	if w.snapshot && !w.yield(&presencev1.WatchClientsResponse{Type: EventSnapshotBegin}, nil) {
		return errLoopLeft
	}
	for {
		// Only the service's silence counts, not the time that the loop takes.
		silent.Reset(w.watch.silence())
		message, err := stream.Recv()
		silent.Stop()
		if err != nil {
			return w.broken(ctx, err)
		}
		w.progress = true
		if !w.yield(message, nil) {
			return errLoopLeft
		}
		switch {
		case message.GetType() == EventSnapshotEnd:
			w.snapshot = false
		case w.snapshot:
			// A snapshot that breaks begins again.
			continue
		}
		if token := message.GetResumeToken(); token != "" {
			w.token = token
		}
	}
}

// broken returns why a stream ended.
func (w *watcher) broken(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errSilent) {
		return cause
	}
	if errors.Is(err, io.EOF) {
		return status.Error(codes.Unavailable, "the service ended the stream")
	}
	return err
}

// mends reports whether a new stream may do better. The context of the watch has not ended, so that CANCELLED and DEADLINE_EXCEEDED are the
// service's: it stops, or bounds how long a stream may last. INTERNAL is how some proxies tell of a connection that broke.
func (w *watcher) mends(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.Canceled, codes.DeadlineExceeded, codes.Internal, codes.Unknown:
		return true
	case codes.Unauthenticated:
		// A token may expire while the watch runs; the next stream takes a new one from its source.
		return w.progress
	}
	return false
}

// rest waits before the next stream, at least as long as the service asks for if it does.
func (w *watcher) rest(ctx context.Context, d time.Duration, err error) bool {
	asked, _ := RetryAfter(err)
	return pause(ctx, asked+d/2+time.Duration(rand.Int64N(int64(d))))
}
