package presenceclient_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/libs/presenceclient/presencetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// follower takes the messages of a watch in the background.
type follower struct {
	messages chan *presencev1.WatchClientsResponse
	ended    chan error
	stop     context.CancelFunc
}

func follow(t *testing.T, client *presenceclient.Client, watch presenceclient.Watch) *follower {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	f := &follower{messages: make(chan *presencev1.WatchClientsResponse, 10_000), ended: make(chan error, 1), stop: cancel}
	go func() {
		var last error
		for message, err := range client.Watch(ctx, watch) {
			if last = err; err == nil {
				f.messages <- message
			}
		}
		f.ended <- last
	}()
	synctest.Wait()
	t.Cleanup(cancel)
	return f
}

// got returns what has come so far, once all is at rest, in short words.
func (f *follower) got() string {
	synctest.Wait()
	var words []string
	for {
		select {
		case m := <-f.messages:
			switch m.GetType() {
			case presenceclient.EventTransition, presenceclient.EventRemoved:
				c := m.GetTransition()
				word := fmt.Sprintf("%s %s %s>%s", m.GetType(), c.GetClientId(), c.GetPreviousStatus(), c.GetStatus())
				words = append(words, strings.TrimPrefix(word, "transition "))
			case presenceclient.EventClient:
				words = append(words, m.GetClient().GetClientId()+" is "+m.GetClient().GetStatus())
			case presenceclient.EventSkipped:
				words = append(words, fmt.Sprintf("skipped %d", m.GetSkipped().GetRecords()))
			default:
				words = append(words, m.GetType())
			}
		default:
			return strings.Join(words, ", ")
		}
	}
}

func (f *follower) want(t *testing.T, want string) {
	t.Helper()
	if got := f.got(); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestWatch(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("a")
		f := follow(t, client, presenceclient.Watch{Prefix: "a"})
		fake.SetOffline("a")
		fake.SetOnline("b")
		fake.SetUnknown("a", "node_silent", true)
		fake.Forget("a")
		f.want(t, "a online>offline, a offline>unknown, a unknown>offline, removed a >")
		tick(16 * time.Second)
		f.want(t, "heartbeat")
		fake.Skip(7)
		f.want(t, "skipped 7")
		f.stop()
		synctest.Wait()
		if err := <-f.ended; status.Code(err) != codes.Canceled {
			t.Errorf("ended by %v", err)
		}
		if n := fake.Watches(); n != 0 {
			t.Errorf("%d watches are left", n)
		}
	})
}

// TestWatchResumes breaks streams in every way, and changes clients while none is there.
func TestWatchResumes(t *testing.T) {
	for _, broken := range []error{
		presencetest.Unavailable(),
		nil, // the stream ends
		presencetest.RateLimited(3 * time.Second),
		status.Error(codes.Internal, "stream reset"),
		status.Error(codes.Canceled, "the service stops"),
		status.Error(codes.DeadlineExceeded, "streams end after an hour"),
	} {
		bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
			interrupted := 0
			f := follow(t, client, presenceclient.Watch{Interrupted: func(err error) {
				interrupted++
				if code := status.Code(err); broken != nil && code != status.Code(broken) && code != codes.Unavailable {
					t.Errorf("interrupted by %v", err)
				}
			}})
			var want []string
			for i := range 10 {
				id := fmt.Sprint("c", i)
				fake.SetOnline(id)
				if i == 5 {
					synctest.Wait()
					fake.Fail("WatchClients", presencetest.Unavailable())
				}
				fake.BreakWatches(broken)
				fake.SetOffline(id)
				if i == 5 {
					tick(time.Minute)
					fake.Fail("WatchClients", nil)
				}
				tick(10 * time.Second)
				want = append(want, id+" >online", id+" online>offline")
			}
			f.want(t, strings.Join(want, ", "))
			if interrupted < 10 {
				t.Errorf("interrupted %d times", interrupted)
			}
		})
	}
}

// TestWatchBacksOff counts the attempts of ten minutes.
func TestWatchBacksOff(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.Fail("WatchClients", presencetest.Unavailable())
		follow(t, client, presenceclient.Watch{})
		tick(10 * time.Minute)
		if n := fake.Calls("WatchClients"); n < 80 || n > 260 {
			t.Errorf("%d attempts in ten minutes", n)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	for name, c := range map[string]struct {
		watch presenceclient.Watch
		err   error
		code  codes.Code
		calls int
	}{
		"denied":          {err: presencetest.Denied(), code: codes.PermissionDenied, calls: 1},
		"unauthenticated": {err: status.Error(codes.Unauthenticated, "who?"), code: codes.Unauthenticated, calls: 1},
		"unimplemented":   {err: status.Error(codes.Unimplemented, "older service"), code: codes.Unimplemented, calls: 1},
		"token":           {watch: presenceclient.Watch{ResumeToken: "other"}, code: codes.InvalidArgument, calls: 1},
		"both":            {watch: presenceclient.Watch{ResumeToken: "fake-0", Snapshot: true}, code: codes.InvalidArgument},
		"ids":             {watch: presenceclient.Watch{ClientIDs: names(1_001)}, code: codes.InvalidArgument},
		"id":              {watch: presenceclient.Watch{ClientIDs: []string{"a", ""}}, code: codes.InvalidArgument},
		"debounce":        {watch: presenceclient.Watch{Debounce: -1}, code: codes.InvalidArgument},
		"heartbeat":       {watch: presenceclient.Watch{Heartbeat: -1}, code: codes.InvalidArgument},
	} {
		bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
			fake.Fail("WatchClients", c.err)
			f := follow(t, client, c.watch)
			select {
			case err := <-f.ended:
				if status.Code(err) != c.code || fake.Calls("WatchClients") != c.calls {
					t.Errorf("%s: error %v after %d calls", name, err, fake.Calls("WatchClients"))
				}
			default:
				t.Errorf("%s: goes on", name)
			}
		})
	}
}

// TestWatchExpiredToken goes on after its credentials have expired.
func TestWatchExpiredToken(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		f := follow(t, client, presenceclient.Watch{})
		fake.SetOnline("a")
		synctest.Wait()
		fake.BreakWatches(status.Error(codes.Unauthenticated, "the token has expired"))
		tick(time.Second)
		fake.SetOnline("b")
		f.want(t, "a >online, b >online")
	})
}

func TestWatchToken(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("a", "b", "c")
		token := ""
		for message, err := range client.Watch(t.Context(), presenceclient.Watch{ResumeToken: "fake-0"}) {
			if err != nil {
				t.Fatal(err)
			}
			token = message.GetResumeToken()
			if message.GetTransition().GetClientId() == "b" {
				break
			}
		}
		follow(t, client, presenceclient.Watch{ResumeToken: token}).want(t, "c >online")
		fake.LoseLog()
		f := follow(t, client, presenceclient.Watch{ResumeToken: token})
		if err := <-f.ended; !presenceclient.IsTooOld(err) {
			t.Errorf("a token that is too old: error %v", err)
		}
		f = follow(t, client, presenceclient.Watch{ResumeToken: token, SnapshotIfTooOld: true})
		tick(time.Second)
		fake.SetOffline("a")
		f.want(t, "snapshot_begin, a is online, b is online, c is online, snapshot_end, a online>offline")
	})
}

func TestWatchSnapshot(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("a", "b")
		fake.SetOffline("b")
		f := follow(t, client, presenceclient.Watch{Snapshot: true, Status: presenceclient.StatusOnline})
		fake.SetOffline("a")
		f.want(t, "snapshot_begin, a is online, snapshot_end, a online>offline")
		// A snapshot that is complete is not taken again.
		fake.BreakWatches(presencetest.Unavailable())
		fake.SetOnline("b")
		tick(time.Second)
		f.want(t, "b offline>online")
	})
}

// script is a service whose watches send what is written, and then break.
type script struct {
	presencev1.UnimplementedPresenceServiceServer

	mu       sync.Mutex
	requests []*presencev1.WatchClientsRequest
	streams  [][]*presencev1.WatchClientsResponse
	broken   []error // of each stream; where there is none: Unavailable
}

func (s *script) WatchClients(req *presencev1.WatchClientsRequest, stream grpc.ServerStreamingServer[presencev1.WatchClientsResponse]) error {
	s.mu.Lock()
	n := len(s.requests)
	s.requests = append(s.requests, req)
	s.mu.Unlock()
	if n >= len(s.streams) {
		return status.Error(codes.PermissionDenied, "the script ends here")
	}
	for _, message := range s.streams[n] {
		if err := stream.Send(message); err != nil {
			return err
		}
	}
	if n < len(s.broken) {
		return s.broken[n]
	}
	return presencetest.Unavailable()
}

// TestWatchBrokenSnapshot begins again with a snapshot that broke, although its messages had tokens.
func TestWatchBrokenSnapshot(t *testing.T) {
	client := &presencev1.WatchClientsResponse{Type: presenceclient.EventClient, ResumeToken: "within"}
	s := &script{streams: [][]*presencev1.WatchClientsResponse{
		{client},
		{client, {Type: presenceclient.EventSnapshotEnd, ResumeToken: "end"}},
		{{Type: presenceclient.EventHeartbeat, ResumeToken: "later"}, {Type: presenceclient.EventSkipped}},
	}}
	var got []string
	for message, err := range newClient(t, presenceclient.Config{Target: serve(t, s)}).Watch(t.Context(), presenceclient.Watch{Snapshot: true}) {
		if err != nil {
			if status.Code(err) != codes.PermissionDenied {
				t.Error(err)
			}
			break
		}
		got = append(got, message.GetType())
	}
	if want := "snapshot_begin client snapshot_begin client snapshot_end heartbeat skipped"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
	var asked []string
	for _, req := range s.requests {
		asked = append(asked, fmt.Sprintf("%t %q", req.GetSnapshot(), req.GetResumeToken()))
	}
	if want := `true "", true "", false "end", false "later"`; strings.Join(asked, ", ") != want {
		t.Errorf("asked with snapshot and token %v, want %s", asked, want)
	}
}

// TestWatchSnapshotOfALogMadeAnew begins again with a snapshot in which the log was made anew: nothing is lost by that, and no token was asked for.
func TestWatchSnapshotOfALogMadeAnew(t *testing.T) {
	anew := status.Error(codes.OutOfRange, "another log")
	s := &script{
		streams: [][]*presencev1.WatchClientsResponse{{{Type: presenceclient.EventClient}}, {{Type: presenceclient.EventSnapshotEnd, ResumeToken: "end"}}},
		broken:  []error{anew, anew},
	}
	var got []string
	for message, err := range newClient(t, presenceclient.Config{Target: serve(t, s)}).Watch(t.Context(), presenceclient.Watch{Snapshot: true}) {
		if err != nil {
			// Once the snapshot is complete, the token is too old, and nobody has asked for another snapshot then.
			if !presenceclient.IsTooOld(err) {
				t.Error(err)
			}
			break
		}
		got = append(got, message.GetType())
	}
	if want := "snapshot_begin client snapshot_begin snapshot_end"; strings.Join(got, " ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

// TestWatchSilence makes a stream anew that gives no heartbeat.
func TestWatchSilence(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.Delay("WatchClients", time.Hour)
		reasons := make(chan error, 16)
		f := follow(t, client, presenceclient.Watch{Heartbeat: time.Second, Interrupted: func(err error) { reasons <- err }})
		tick(7 * time.Second)
		synctest.Wait()
		if len(reasons) != 0 {
			t.Errorf("interrupted early: %v", <-reasons)
		}
		fake.Delay("WatchClients", 0)
		tick(2 * time.Second)
		fake.SetOnline("a")
		f.want(t, "a >online")
		if err := <-reasons; !presenceclient.IsUnavailable(err) || len(reasons) != 0 {
			t.Errorf("interrupted by %v and %d more", err, len(reasons))
		}
	})
}

// TestWatchSlowLoop does not take a loop's own time for silence.
func TestWatchSlowLoop(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("a")
		for message, err := range client.Watch(t.Context(), presenceclient.Watch{ResumeToken: "fake-0", Heartbeat: time.Second}) {
			if err != nil {
				t.Fatal(err)
			}
			if id := message.GetTransition().GetClientId(); id == "a" {
				tick(time.Minute)
				fake.SetOnline("b")
			} else if id == "b" {
				break
			}
		}
		if n := fake.Calls("WatchClients"); n != 1 {
			t.Errorf("%d streams", n)
		}
	})
}

func TestWatchDebounce(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("flaps", "leaves")
		f := follow(t, client, presenceclient.Watch{Debounce: 5 * time.Second, Heartbeat: time.Minute})
		fake.SetOffline("flaps")
		fake.SetOffline("leaves")
		tick(2 * time.Second)
		fake.SetOnline("flaps")
		f.want(t, "")
		tick(3 * time.Second)
		f.want(t, "leaves online>offline")
		tick(10 * time.Second)
		f.want(t, "")
		// What is held is not lost with the stream; what was sent while it was held comes again.
		fake.SetOffline("flaps")
		synctest.Wait()
		fake.BreakWatches(presencetest.Unavailable())
		tick(10 * time.Second)
		f.want(t, "leaves online>offline, flaps online>offline")
	})
}
