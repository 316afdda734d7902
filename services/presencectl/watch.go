package presencectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	defaultHeartbeat = 15 * time.Second
	// deadAfter is the number of heartbeats after which a watch that is silent is taken for dead.
	deadAfter     = 3
	minWatchRetry = 200 * time.Millisecond
	maxWatchRetry = 10 * time.Second
)

// Types of the messages of a watch.
const (
	watchTransition  = "transition"
	watchRemoved     = "removed"
	watchClient      = "client"
	watchSnapshotEnd = "snapshot_end"
	watchSkipped     = "skipped"
	watchHeartbeat   = "heartbeat"
)

func (a *app) watchCommand() *cobra.Command {
	var filter clientFilter
	var token string
	var snapshot, heartbeats bool
	var debounce, heartbeat time.Duration
	cmd := &cobra.Command{
		Use:     "watch [CLIENT-ID...]",
		GroupID: groupClients,
		Short:   "Show transitions as they happen",
		Long: `Shows changes of status and of the current connection as they happen, for each client in their order, until it is interrupted. After a lost
connection it goes on by itself where it was. When it ends it says how to go on from there: --resume-token.

If it reads too slowly, the service skips records for it; that is said on standard error, with a token that gets them once more.
With -o json each line is one message of the service, those that only say that the watch is alive left out.`,
		Example: `  presencectl watch
  presencectl watch --client-id-prefix VIN --status offline --debounce 10s
  presencectl watch dev1 dev2 --snapshot -o json | jq -c '.transition // .client'
  presencectl watch --resume-token "$TOKEN"`,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error {
			if err := filter.validate(); err != nil {
				return err
			}
			for _, id := range args {
				if err := validClientID(id); err != nil {
					return &usageError{err, name + " watch"}
				}
			}
			if snapshot && token != "" {
				return &usageError{errors.New("--snapshot and --resume-token: give one of them; a resumed watch needs no snapshot"), name + " watch"}
			}
			if heartbeat <= 0 {
				return &usageError{fmt.Errorf("--heartbeat: %v is not 1s to 5m", heartbeat), name + " watch"}
			}
			w := &watch{app: a, client: client, heartbeats: heartbeats, silence: deadAfter * heartbeat, req: &presencev1.WatchClientsRequest{
				Cluster: a.settings.Cluster, Status: filter.status, Node: filter.node, Username: filter.username, ClientIdPrefix: filter.prefix,
				ClientIds: args, ResumeToken: token, Snapshot: snapshot, Heartbeat: durationpb.New(heartbeat),
			}}
			if debounce != 0 {
				w.req.Debounce = durationpb.New(debounce)
			}
			return w.run(ctx)
		}),
	}
	a.filterFlags(cmd, &filter, "transitions to or from this status: online, offline or unknown")
	cmd.Flags().StringVar(&token, "resume-token", "", "go on after this token, with the same filters as before")
	cmd.Flags().BoolVar(&snapshot, "snapshot", false, "begin with all clients that the filters select now")
	cmd.Flags().BoolVar(&heartbeats, "heartbeats", false, "with -o json, print the service's heartbeats too: each has a resume token and the freshness")
	cmd.Flags().DurationVar(&debounce, "debounce", 0, "show a client's transition once none has followed for this long, at most 10m")
	cmd.Flags().DurationVar(&heartbeat, "heartbeat", defaultHeartbeat, "time between two signs of life of the service, 1s to 5m; after three without one the watch connects again")
	return cmd
}

// watch is a watch over several connections.
type watch struct {
	app        *app
	client     presencev1.PresenceServiceClient
	req        *presencev1.WatchClientsRequest
	heartbeats bool
	silence    time.Duration // after which a connection is taken for dead

	table    *table
	began    bool // a message came
	attempts int  // since the last message
	stale    bool // said that the feed is stale
}

var errSilent = errors.New("the service is silent")

// run watches until ctx ends or going on makes no sense.
func (w *watch) run(ctx context.Context) error {
	for {
		err := w.stream(ctx)
		if ctx.Err() != nil {
			w.farewell()
			return nil
		}
		if !again(err) || !w.began && w.attempts >= 3 {
			w.farewell()
			return fmt.Errorf("watch: %w", err)
		}
		w.attempts++
		delay := w.delay(err)
		w.app.note("the watch was interrupted: %s; connecting again in %s", describe(err), span(delay))
		if w.began && w.req.GetResumeToken() == "" {
			if w.req.GetSnapshot() {
				w.app.note("the snapshot begins anew")
			} else {
				w.app.note("NO RESUME TOKEN has come yet: what happens until the watch stands again is not shown")
			}
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			w.farewell()
			return nil
		case <-timer.C:
		}
	}
}

// again reports whether a watch that ended with err can go on.
func again(err error) bool {
	if errors.Is(err, io.EOF) || errors.Is(err, errSilent) {
		return true
	}
	var out *printError
	if errors.As(err, &out) {
		return false
	}
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted, codes.Internal, codes.DeadlineExceeded, codes.Canceled:
		return true
	}
	return false
}

// printError is a failure of our own output.
type printError struct{ err error }

func (e *printError) Error() string { return e.err.Error() }

func (e *printError) Unwrap() error { return e.err }

// delay is how long to wait before connecting again: as the service asks, else longer with each attempt.
func (w *watch) delay(err error) time.Duration {
	if after := retryAfter(err); after > 0 {
		return after
	}
	d := min(minWatchRetry<<min(w.attempts-1, 10), maxWatchRetry)
	return d/2 + rand.N(d/2)
}

// farewell says how to go on, if the watch has come anywhere.
func (w *watch) farewell() {
	if token := w.req.GetResumeToken(); token != "" && w.began {
		w.app.note("go on from here with --resume-token %s", cell(token))
	}
}

// stream watches over one connection.
func (w *watch) stream(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	alive := time.AfterFunc(w.silence, func() { cancel(errSilent) })
	defer alive.Stop()
	stream, err := w.client.WatchClients(ctx, w.req)
	if err != nil {
		return cause(ctx, err)
	}
	for {
		// Only the service's silence counts, not the time that our output takes.
		alive.Reset(w.silence)
		m, err := stream.Recv()
		alive.Stop()
		if err != nil {
			return cause(ctx, err)
		}
		w.began, w.attempts = true, 0
		if err := w.show(m); err != nil {
			return &printError{err}
		}
		if w.req.GetSnapshot() && m.GetType() != watchSnapshotEnd {
			continue // A snapshot that breaks begins again.
		}
		if token := m.GetResumeToken(); token != "" {
			w.req.ResumeToken, w.req.Snapshot = token, false
		}
	}
}

// cause tells a watch that was silent from one that the service ended.
func cause(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errSilent) {
		return errSilent
	}
	return err
}

func (w *watch) show(m *presencev1.WatchClientsResponse) error {
	a := w.app
	switch m.GetType() {
	case watchHeartbeat, watchSnapshotEnd:
		if stale := m.GetFreshness().GetStale(); stale != w.stale {
			w.stale = stale
			if stale {
				a.noteStale(m.GetFreshness())
			} else {
				a.note("up to date again")
			}
		}
	case watchSkipped:
		s := m.GetSkipped()
		a.note("SKIPPED %d records: this watch reads too slowly. A watch with --resume-token %s gets them, if the log still has them", s.GetRecords(), cell(s.GetResumeToken()))
	}
	if a.json() {
		if m.GetType() == watchHeartbeat && !w.heartbeats {
			return nil
		}
		return a.printMessage(m)
	}
	switch m.GetType() {
	case watchTransition, watchRemoved:
		t := m.GetTransition()
		status := t.GetStatus()
		if m.GetType() == watchRemoved {
			status = watchRemoved
		}
		return w.row(stamp(t.GetTime()), status, t.GetPreviousStatus(), t.GetClientId(), t.GetStatusReason(), t.GetNode(), t.GetUsername(), t.GetPeer())
	case watchClient:
		c := m.GetClient()
		n := c.GetConnection()
		return w.row(stamp(c.GetSince()), c.GetStatus(), "", c.GetClientId(), c.GetStatusReason(), n.GetNode(), n.GetUsername(), n.GetPeer())
	case watchSnapshotEnd:
		a.note("this was the snapshot; transitions follow")
	}
	return nil
}

// row prints a line at once: a watch has no end to wait for.
func (w *watch) row(at, status, previous, clientID, reason, node, username, peer string) error {
	if w.table == nil {
		w.table = &table{header: []string{"TIME", "STATUS", "PREVIOUS", "CLIENT ID", "REASON", "NODE"}, widths: []int{24, 7, 8, 22, 14, 12}}
		if w.app.wide() {
			w.table.header, w.table.widths = append(w.table.header, "USERNAME", "PEER"), append(w.table.widths, 12, 12)
		}
	}
	cells := []string{at, cell(status), cell(previous), cell(clientID), cell(reason), cell(node)}
	if w.app.wide() {
		cells = append(cells, cell(username), cell(peer))
	}
	w.table.rows = [][]string{cells}
	err := w.app.printTable(w.table)
	w.table.headless = true
	return err
}
