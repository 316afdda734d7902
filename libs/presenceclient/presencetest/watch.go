package presencetest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	defaultHeartbeat = 15 * time.Second
	tokenPrefix      = "fake-"
)

// WatchClients implements the call. A resume token is a place in the log.
func (f *Fake) WatchClients(req *presencev1.WatchClientsRequest, stream grpc.ServerStreamingServer[presencev1.WatchClientsResponse]) error {
	w := &running{broken: make(chan error, 1), skip: make(chan int64, 1)}
	at, snapshot, err := f.begin(req, w)
	if err != nil {
		return err
	}
	defer f.end(w)
	for _, message := range snapshot {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	heartbeat := defaultHeartbeat
	if req.GetHeartbeat() != nil {
		heartbeat = req.GetHeartbeat().AsDuration()
	}
	silence := time.NewTimer(heartbeat)
	defer silence.Stop()
	send := func(message *presencev1.WatchClientsResponse) error {
		silence.Reset(heartbeat)
		return stream.Send(message)
	}
	held := &debounce{rest: req.GetDebounce().AsDuration()}
	for {
		f.mu.Lock()
		log, changed := f.log[at:], f.changed
		f.mu.Unlock()
		for _, event := range log {
			at++
			switch {
			case !watches(req, event):
			case held.rest > 0:
				held.add(event, at-1)
			default:
				if err := send(with(event, at)); err != nil {
					return err
				}
			}
		}
		for _, event := range held.rested() {
			// What is still held comes again after a resume.
			if err := send(with(event, held.sentUpTo(at))); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-held.due():
		case records := <-w.skip:
			message := &presencev1.WatchClientsResponse{
				Type: presenceclient.EventSkipped, Skipped: &presencev1.Skipped{Records: records, ResumeToken: tokenOf(at)},
			}
			if err := send(with(message, held.sentUpTo(at))); err != nil {
				return err
			}
		case <-silence.C:
			f.mu.Lock()
			message := &presencev1.WatchClientsResponse{Type: presenceclient.EventHeartbeat, Freshness: f.freshness()}
			f.mu.Unlock()
			if err := send(with(message, held.sentUpTo(at))); err != nil {
				return err
			}
		case err := <-w.broken:
			return err
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// begin registers a watch, and returns where in the log it begins and what its snapshot holds.
func (f *Fake) begin(req *presencev1.WatchClientsRequest, w *running) (int, []*presencev1.WatchClientsResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := len(f.log)
	if t := req.GetResumeToken(); t != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(t, tokenPrefix))
		switch {
		case req.GetSnapshot():
			return 0, nil, invalid("snapshot", "and resume_token exclude each other")
		case err != nil || tokenOf(n) != t || n < 0 || n > at:
			return 0, nil, invalid("resume_token", "is none of this service")
		case n < f.lost:
			return 0, nil, status.Error(codes.OutOfRange, "resume_token: the log no longer has everything since; take a snapshot")
		}
		at = n
	}
	for _, d := range []struct {
		field    string
		value    time.Duration
		min, max time.Duration
		set      bool
	}{
		{"debounce", req.GetDebounce().AsDuration(), 0, 10 * time.Minute, req.GetDebounce() != nil},
		{"heartbeat", req.GetHeartbeat().AsDuration(), time.Second, 5 * time.Minute, req.GetHeartbeat() != nil},
	} {
		if d.set && (d.value < d.min || d.value > d.max) {
			return 0, nil, invalid(d.field, fmt.Sprintf("is %v; give %v to %v", d.value, d.min, d.max))
		}
	}
	var snapshot []*presencev1.WatchClientsResponse
	if req.GetSnapshot() {
		for _, k := range f.sorted(clusterOf(req.GetCluster())) {
			c := f.clients[k].now
			if watches(req, &presencev1.WatchClientsResponse{Transition: transition(c, c.Status)}) {
				snapshot = append(snapshot, &presencev1.WatchClientsResponse{Type: presenceclient.EventClient, Client: proto.CloneOf(c)})
			}
		}
		snapshot = append(snapshot, with(&presencev1.WatchClientsResponse{Type: presenceclient.EventSnapshotEnd, Freshness: f.freshness()}, at))
	}
	f.watches[w] = struct{}{}
	return at, snapshot, nil
}

func (f *Fake) end(w *running) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.watches, w)
}

func tokenOf(at int) string { return tokenPrefix + strconv.Itoa(at) }

// with returns a copy of a message with the token of what comes next.
func with(event *presencev1.WatchClientsResponse, next int) *presencev1.WatchClientsResponse {
	message := proto.CloneOf(event)
	message.ResumeToken = tokenOf(next)
	return message
}

// watches reports whether a watch wants an event. That a client was removed says nothing but its ID, and is told to whoever may have it.
func watches(req *presencev1.WatchClientsRequest, event *presencev1.WatchClientsResponse) bool {
	t := event.GetTransition()
	if t.Cluster != clusterOf(req.GetCluster()) || !strings.HasPrefix(t.ClientId, req.GetClientIdPrefix()) ||
		len(req.GetClientIds()) != 0 && !slices.Contains(req.GetClientIds(), t.ClientId) {
		return false
	}
	return event.GetType() == presenceclient.EventRemoved ||
		(req.GetStatus() == "" || t.Status == req.GetStatus() || t.PreviousStatus == req.GetStatus()) &&
			(req.GetNode() == "" || t.Node == req.GetNode()) && (req.GetUsername() == "" || t.Username == req.GetUsername())
}

// debounce holds the transitions of clients that may not have come to rest, the one that rests for longest first.
type debounce struct {
	rest time.Duration // 0: nothing is held
	held []heldEvent
}

type heldEvent struct {
	event    *presencev1.WatchClientsResponse
	first    int    // place in the log of the first of those that it stands for
	previous string // status before that
	until    time.Time
}

// add holds an event in place of the client's one before.
func (d *debounce) add(event *presencev1.WatchClientsResponse, at int) {
	next := heldEvent{event, at, event.GetTransition().PreviousStatus, time.Now().Add(d.rest)}
	d.held = slices.DeleteFunc(d.held, func(h heldEvent) bool {
		same := h.event.GetTransition().ClientId == event.GetTransition().ClientId
		if same {
			next.first, next.previous = h.first, h.previous
		}
		return same
	})
	d.held = append(d.held, next)
}

// due fires when the first one has rested; never if nothing is held.
func (d *debounce) due() <-chan time.Time {
	if len(d.held) == 0 {
		return nil
	}
	return time.After(time.Until(d.held[0].until))
}

// rested takes out what has rested. A client that is back where it was is left out.
func (d *debounce) rested() []*presencev1.WatchClientsResponse {
	var rested []*presencev1.WatchClientsResponse
	for len(d.held) > 0 && time.Until(d.held[0].until) <= 0 {
		h := d.held[0]
		d.held = d.held[1:]
		if t := h.event.GetTransition(); h.event.Type == presenceclient.EventRemoved || t.Status != h.previous {
			event := proto.CloneOf(h.event)
			event.Transition.PreviousStatus = h.previous
			rested = append(rested, event)
		}
	}
	return rested
}

// sentUpTo returns the place in the log before which everything was sent.
func (d *debounce) sentUpTo(at int) int {
	for _, h := range d.held {
		at = min(at, h.first)
	}
	return at
}
