package query

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	watchPath = "/v1/clients:watch"
	// sseRetry is how long a browser waits before it connects again.
	sseRetry = 2 * time.Second
	// sseWriteTimeout is how long a write may take: a peer that is dead, or does not read, is given up.
	sseWriteTimeout = 30 * time.Second
	// sseBuffer is what is gathered before it is written, in bytes.
	sseBuffer = 16 << 10
)

// watch answers GET /v1/clients:watch.
func (h *rest) watch(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	call := h.calls.watch
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		h.fail(w, call.name, http.StatusMethodNotAllowed, errNoSuchMethod(r.Method))
		return
	}
	p, err := h.admit(w, r, call)
	var ctx context.Context
	var end func()
	if err == nil {
		ctx, end, err = p.stream(withPass(r.Context(), p))
	}
	if err != nil {
		code := writeError(w, 0, err)
		h.metrics.observe(overREST, call.name, code, began)
		h.audit(r, call, p, "", code)
		return
	}
	defer end()
	h.metrics.observe(overREST, call.name, h.watchAs(ctx, w, r, call), began)
}

// watchAs serves an admitted watch, and returns the code that it ended with.
func (h *rest) watchAs(ctx context.Context, w http.ResponseWriter, r *http.Request, call *call) codes.Code {
	req, err := watchRequest(r, call)
	if err != nil {
		return writeError(w, 0, err)
	}
	v, err := h.answers.watches.begin(ctx, req)
	if err != nil {
		return writeError(w, 0, err)
	}
	defer v.end()
	running := v.metrics.watchers.WithLabelValues(overREST)
	running.Inc()
	defer running.Dec()
	sink, err := newSSESink(w)
	if err != nil {
		return writeError(w, 0, status.Error(codes.Internal, "this connection cannot carry a stream"))
	}
	err = sink.open()
	if err == nil {
		err = streamEnd(ctx, v.run(ctx, sink))
		sink.fail(err)
	}
	return status.Code(err)
}

// watchRequest reads the parameters of a watch. A browser that connects again names the last event that it has seen in a header, and cannot
// change the rest of its request: that event counts then, in place of resume_token and snapshot.
func watchRequest(r *http.Request, call *call) (*presencev1.WatchClientsRequest, error) {
	if err := checkQuery(call, r.URL.RawQuery); err != nil {
		return nil, err
	}
	query := r.URL.Query()
	req := &presencev1.WatchClientsRequest{
		Cluster: query.Get("cluster"), Status: query.Get("status"), Node: query.Get("node"), Username: query.Get("username"),
		ClientIdPrefix: query.Get("client_id_prefix"), ClientIds: query["client_ids"], ResumeToken: query.Get("resume_token"),
	}
	req.Snapshot = query.Get("snapshot") == "true"
	req.Debounce, req.Heartbeat = durationParameter(query, "debounce"), durationParameter(query, "heartbeat")
	if last := r.Header.Get("Last-Event-ID"); last != "" {
		req.ResumeToken, req.Snapshot = last, false
	}
	return req, nil
}

// durationParameter reads one that checkQuery has found to be a duration; nil if it is absent.
func durationParameter(query url.Values, name string) *durationpb.Duration {
	d, err := time.ParseDuration(query.Get(name))
	if err != nil {
		return nil
	}
	return durationpb.New(d)
}

// sseSink writes server-sent events.
type sseSink struct {
	writer  http.ResponseWriter
	control *http.ResponseController
	out     *bufio.Writer
}

// newSSESink frees the connection of the limits of a request that is answered at once.
func newSSESink(w http.ResponseWriter) (*sseSink, error) {
	s := &sseSink{writer: w, control: http.NewResponseController(w)}
	s.out = bufio.NewWriterSize(s, sseBuffer)
	if err := s.control.SetReadDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("lift the read deadline: %w", err)
	}
	if err := s.control.SetWriteDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("lift the write deadline: %w", err)
	}
	return s, nil
}

// Write writes what out has gathered.
func (s *sseSink) Write(b []byte) (int, error) {
	if err := s.control.SetWriteDeadline(time.Now().Add(sseWriteTimeout)); err != nil {
		return 0, fmt.Errorf("set the write deadline: %w", err)
	}
	n, err := s.writer.Write(b)
	if err != nil {
		return n, fmt.Errorf("write events: %w", err)
	}
	return n, nil
}

// open begins the stream.
func (s *sseSink) open() error {
	header := s.writer.Header()
	header.Set("Content-Type", "text/event-stream; charset=utf-8")
	header.Set("Cache-Control", "no-store")
	// A proxy must not gather events.
	header.Set("X-Accel-Buffering", "no")
	s.writer.WriteHeader(http.StatusOK)
	if _, err := fmt.Fprintf(s.out, "retry: %d\n\n", sseRetry.Milliseconds()); err != nil {
		return fmt.Errorf("write the retry time: %w", err)
	}
	return s.flush()
}

func (s *sseSink) entry(e *watchEntry, token string) error {
	transition, err := e.transitionJSON()
	if err != nil {
		return err
	}
	// A token is base64url: JSON needs no escaping of it. A writer that has failed says so at the end.
	kind := e.kind()
	for _, part := range []string{"event: ", kind, "\nid: ", token, "\ndata: {\"type\":\"", kind, "\",\"resume_token\":\"", token, "\",\"transition\":"} {
		_, _ = s.out.WriteString(part)
	}
	_, _ = s.out.Write(transition)
	_, err = s.out.WriteString("}\n\n")
	return err
}

func (s *sseSink) message(m *presencev1.WatchClientsResponse) error {
	body, err := watchJSON.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode a message: %w", err)
	}
	_, _ = s.out.WriteString("event: " + m.GetType())
	if m.GetResumeToken() != "" {
		_, _ = s.out.WriteString("\nid: " + m.GetResumeToken())
	}
	_, _ = s.out.WriteString("\ndata: ")
	_, _ = s.out.Write(body)
	_, err = s.out.WriteString("\n\n")
	return err
}

// fail says why the stream ends. The caller may have gone.
func (s *sseSink) fail(why error) {
	body, err := watchJSON.Marshal(status.Convert(why).Proto())
	if err != nil {
		return
	}
	_, _ = s.out.WriteString("event: error\ndata: ")
	_, _ = s.out.Write(body)
	_, _ = s.out.WriteString("\n\n")
	_ = s.flush()
}

func (s *sseSink) flush() error {
	if err := s.out.Flush(); err != nil {
		return err
	}
	if err := s.control.SetWriteDeadline(time.Now().Add(sseWriteTimeout)); err != nil {
		return fmt.Errorf("set the write deadline: %w", err)
	}
	if err := s.control.Flush(); err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	// Over HTTP/2 a deadline that passes ends the stream, also one that nothing is written to.
	if err := s.control.SetWriteDeadline(time.Time{}); err != nil {
		return fmt.Errorf("lift the write deadline: %w", err)
	}
	return nil
}
