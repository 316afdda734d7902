package presencectl

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

type watchStream = grpc.ServerStreamingServer[presencev1.WatchClientsResponse]

// watched runs a watch against a service that plays one part for each connection. When the parts are over, the watch is interrupted.
func watched(t *testing.T, args []string, parts ...func(*presencev1.WatchClientsRequest, watchStream) error) (out, errOut string, code int) {
	t.Helper()
	r := newRunner(t)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var mu sync.Mutex
	next := 0
	r.fake.watch = func(req *presencev1.WatchClientsRequest, s watchStream) error {
		mu.Lock()
		n := next
		next++
		mu.Unlock()
		if n >= len(parts) {
			cancel()
			<-s.Context().Done()
			return nil
		}
		return parts[n](req, s)
	}
	var stdout, stderr bytes.Buffer
	a := newApp(Process{Environ: r.env, In: strings.NewReader(""), Out: &slowOnce{Writer: &stdout}, Err: &stderr})
	a.now = func() time.Time { return testNow }
	code = a.run(ctx, append([]string{"watch"}, args...))
	checkInert(t, stdout.String()+stderr.String())
	return stdout.String(), stderr.String(), code
}

// slowOnce takes longer for the first write than a watch with a heartbeat of 100 ms waits for a sign of life.
type slowOnce struct {
	io.Writer
	written bool
}

func (w *slowOnce) Write(b []byte) (int, error) {
	if !w.written {
		w.written = true
		<-time.After(2 * deadAfter * 100 * time.Millisecond)
	}
	return w.Writer.Write(b)
}

func transition(id, to, token string) *presencev1.WatchClientsResponse {
	return &presencev1.WatchClientsResponse{Type: watchTransition, ResumeToken: token, Transition: &presencev1.ClientTransition{
		ClientId: id, Cluster: "default", Status: to, PreviousStatus: offline, StatusReason: "connected", Node: "n1", Time: ago(time.Second)}}
}

func send(s watchStream, messages ...*presencev1.WatchClientsResponse) error {
	for _, m := range messages {
		if err := s.Send(m); err != nil {
			return err
		}
	}
	return nil
}

var unavailable = status.Error(codes.Unavailable, "the service is restarting")

func TestWatchResumes(t *testing.T) {
	out, errOut, code := watched(t, []string{"dev1", hostile, "--client-id-prefix", "x", "--debounce", "5s"},
		func(req *presencev1.WatchClientsRequest, s watchStream) error {
			if req.GetResumeToken() != "" || len(req.GetClientIds()) != 2 || req.GetClientIdPrefix() != "x" || req.GetDebounce().AsDuration() != 5*time.Second || req.GetHeartbeat().AsDuration() != 15*time.Second {
				t.Errorf("the first request is %v", req)
			}
			if err := send(s, transition("dev1", online, "t1"), transition(hostile, offline, "t2")); err != nil {
				return err
			}
			return unavailable
		},
		func(req *presencev1.WatchClientsRequest, s watchStream) error {
			if req.GetResumeToken() != "t2" {
				t.Errorf("the second request resumes at %q", req.GetResumeToken())
			}
			return send(s,
				&presencev1.WatchClientsResponse{Type: watchHeartbeat, ResumeToken: "t3", Freshness: &presencev1.Freshness{Stale: true, StaleReasons: []string{"feed_gap"}}},
				&presencev1.WatchClientsResponse{Type: watchSkipped, ResumeToken: "t9", Skipped: &presencev1.Skipped{Records: 42, ResumeToken: "t4"}},
				&presencev1.WatchClientsResponse{Type: watchRemoved, ResumeToken: "t10", Transition: &presencev1.ClientTransition{ClientId: "dev1", StatusReason: "forgotten", PreviousStatus: online}})
		},
		func(req *presencev1.WatchClientsRequest, _ watchStream) error {
			if req.GetResumeToken() != "t10" {
				t.Errorf("the third request resumes at %q", req.GetResumeToken())
			}
			return unavailable
		})
	if code != exitOK {
		t.Errorf("exit %d: %s", code, errOut)
	}
	want := `TIME                      STATUS   PREVIOUS  CLIENT ID               REASON          NODE
2026-01-31T11:59:59.000Z  online   offline   dev1                    connected       n1
2026-01-31T11:59:59.000Z  offline  offline   "x\x1b[2J\u009b1A\r\n\u202eevil"  connected       n1
-                         removed  online    dev1                              forgotten       -
`
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	for _, part := range []string{
		"interrupted: the service is restarting (UNAVAILABLE); connecting again", "SKIPPED 42 records", "--resume-token t4", "out of date: feed_gap",
		"go on from here with --resume-token t10",
	} {
		if !strings.Contains(errOut, part) {
			t.Errorf("standard error has no %q:\n%s", part, errOut)
		}
	}
}

func TestWatchSnapshotAndJSON(t *testing.T) {
	out, errOut, code := watched(t, []string{"--snapshot", "-o", "json"},
		func(req *presencev1.WatchClientsRequest, s watchStream) error {
			if !req.GetSnapshot() {
				t.Error("no snapshot is asked for")
			}
			// Were it to go on from a token within the snapshot, it would lack the other clients.
			if err := send(s, &presencev1.WatchClientsResponse{Type: watchClient, Client: &presencev1.Client{ClientId: "dev1", Status: online}, ResumeToken: "within"}); err != nil {
				return err
			}
			return unavailable
		},
		func(req *presencev1.WatchClientsRequest, s watchStream) error {
			if !req.GetSnapshot() {
				t.Error("the snapshot that was interrupted is not asked for again")
			}
			if err := send(s, &presencev1.WatchClientsResponse{Type: watchClient, Client: &presencev1.Client{ClientId: "dev1", Status: online}},
				&presencev1.WatchClientsResponse{Type: watchSnapshotEnd, ResumeToken: "t1"}, &presencev1.WatchClientsResponse{Type: watchHeartbeat, ResumeToken: "t2"}); err != nil {
				return err
			}
			return unavailable
		},
		func(req *presencev1.WatchClientsRequest, _ watchStream) error {
			if req.GetSnapshot() || req.GetResumeToken() != "t2" {
				t.Errorf("after the snapshot the request is %v", req)
			}
			return unavailable
		})
	if code != exitOK || strings.Count(out, "\n") != 3 || strings.Contains(out, watchHeartbeat) || !strings.Contains(errOut, "the snapshot begins anew") {
		t.Errorf("exit %d:\n%s%s", code, out, errOut)
	}
}

// TestWatchEnds: errors that trying again does not mend end the watch, with the last token if it has come anywhere.
func TestWatchEnds(t *testing.T) {
	for _, c := range []struct {
		code codes.Code
		want string
	}{
		{codes.OutOfRange, "presencectl watch --snapshot"},
		{codes.PermissionDenied, "lacks the permission"},
		{codes.InvalidArgument, "INVALID_ARGUMENT"},
		{codes.Unimplemented, "older"},
	} {
		_, errOut, code := watched(t, []string{"--resume-token", "t1"}, func(*presencev1.WatchClientsRequest, watchStream) error { return status.Error(c.code, "no") })
		if code != exitError || !strings.Contains(errOut, c.want) || strings.Contains(errOut, "--resume-token t1") {
			t.Errorf("%v: exit %d: %s", c.code, code, errOut)
		}
	}
	_, errOut, code := watched(t, nil, func(_ *presencev1.WatchClientsRequest, s watchStream) error {
		return errors.Join(send(s, transition("dev1", online, "t2")), status.Error(codes.OutOfRange, "gone"))
	}, func(*presencev1.WatchClientsRequest, watchStream) error {
		return status.Error(codes.OutOfRange, "gone")
	})
	if code != exitError || !strings.Contains(errOut, "--resume-token t2") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	// A service that was never there is not waited for without end.
	r := newRunner(t)
	if _, errOut, code := r.run("watch", "--server", "127.0.0.1:1"); code != exitError || !strings.Contains(errOut, "connection refused") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if _, errOut, code := r.run("watch", "--heartbeat", "0"); code != exitError || !strings.Contains(errOut, "--heartbeat") {
		t.Errorf("exit %d: %s", code, errOut)
	}
	if _, errOut, code := r.run("watch", "--snapshot", "--resume-token", "x"); code != exitError || !strings.Contains(errOut, "give one of them") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}

// TestWatchSlowOutput: only the service's silence counts, not the time that the output takes.
func TestWatchSlowOutput(t *testing.T) {
	out, errOut, code := watched(t, []string{"--heartbeat", "100ms"}, func(_ *presencev1.WatchClientsRequest, s watchStream) error {
		return errors.Join(send(s, transition("dev1", online, "t1"), transition("dev2", online, "t2")), unavailable)
	})
	if code != exitOK || strings.Contains(errOut, "the service is silent") || !strings.Contains(out, "dev2") {
		t.Errorf("exit %d: %s%s", code, out, errOut)
	}
}

// TestWatchSilent: a connection without signs of life is given up, and the watch goes on.
func TestWatchSilent(t *testing.T) {
	_, errOut, code := watched(t, []string{"--heartbeat", "100ms"}, func(_ *presencev1.WatchClientsRequest, s watchStream) error {
		if err := send(s, transition("dev1", online, "")); err != nil {
			return err
		}
		<-s.Context().Done()
		return nil
	})
	if code != exitOK || !strings.Contains(errOut, "the service is silent") || !strings.Contains(errOut, "NO RESUME TOKEN") {
		t.Errorf("exit %d: %s", code, errOut)
	}
}
