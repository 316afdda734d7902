package presenceclient_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/libs/presenceclient/presencetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// bubble runs a test against a fake in virtual time.
func bubble(t *testing.T, change func(*presenceclient.Config), test func(*testing.T, *presencetest.Fake, *presenceclient.Client)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		fake := presencetest.New(t)
		cfg := fake.Config()
		if change != nil {
			change(&cfg)
		}
		test(t, fake, newClient(t, cfg))
	})
}

func newClient(t testing.TB, cfg presenceclient.Config) *presenceclient.Client {
	t.Helper()
	client, err := presenceclient.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return client
}

func TestStatus(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	fake.SetOnline("on", "gone")
	fake.SetOffline("gone")
	fake.SetUnknown("guess", "node_gone", false)
	for _, c := range []struct {
		id, text                                      string
		online, offline, unknown, probably, confident bool
	}{
		{"on", "online", true, false, false, true, true},
		{"gone", "offline", false, true, false, false, true},
		{"guess", "unknown, probably offline", false, false, true, false, false},
		{"never", "offline", false, true, false, false, true},
	} {
		s, err := client.Status(t.Context(), c.id)
		if err != nil {
			t.Fatal(err)
		}
		if s.String() != c.text || s.Online() != c.online || s.Offline() != c.offline || s.Unknown() != c.unknown ||
			s.ProbablyOnline() != c.probably || s.Confident() != c.confident {
			t.Errorf("%s: %+v reads %q", c.id, s, s)
		}
	}
	fake.SetStale("lagging")
	if s, err := client.Status(t.Context(), "on"); err != nil || s.Confident() || !s.Stale() || !s.Online() {
		t.Errorf("stale: %+v, error %v", s, err)
	}
	if s := (presenceclient.Status{}); !s.Unknown() || !s.Stale() || s.Confident() || s.String() != "unknown" {
		t.Errorf("the zero status reads %q", s)
	}
}

func TestReads(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	fake.SetOnline("a")
	fake.Set(
		&presencev1.Client{ClientId: "b", Cluster: "eu", Status: "online", Connection: &presencev1.ClientConnection{Node: "n2", Username: "fleet"}},
		&presencev1.Client{ClientId: "c", Cluster: "eu", Status: "offline", Connection: &presencev1.ClientConnection{Node: "n3", Username: "fleet"}},
	)
	eu := client.In("eu")
	if c, err := eu.Get(t.Context(), "b"); err != nil || c.GetConnection().GetUsername() != "fleet" {
		t.Errorf("b in eu: %v, error %v", c, err)
	}
	if _, err := client.Get(t.Context(), "b"); !presenceclient.IsNeverSeen(err) {
		t.Errorf("b in the default cluster: error %v", err)
	}
	if s, err := eu.Stats(t.Context(), 10); err != nil || s.GetClients().GetTotal() != 2 || len(s.GetUsernames()) != 1 || s.GetUsernames()[0].GetClients() != 2 {
		t.Errorf("stats: %v, error %v", s, err)
	}
	if s, err := eu.Stats(t.Context(), 0); err != nil || len(s.GetUsernames()) != 0 || len(s.GetNodes()) != 2 {
		t.Errorf("stats without usernames: %v, error %v", s, err)
	}
	if n, err := eu.Nodes(t.Context()); err != nil || len(n.GetNodes()) != 2 || n.GetNodes()[0].GetNode() != "n2" {
		t.Errorf("nodes: %v, error %v", n, err)
	}
	if e, err := client.Explain(t.Context(), "a"); err != nil || e.GetStatus() != "online" {
		t.Errorf("explanation: %v, error %v", e, err)
	}
	if clients, err := client.Batch(t.Context(), nil); err != nil || len(clients) != 0 {
		t.Errorf("no clients: %v, error %v", clients, err)
	}
	clients, err := client.Batch(t.Context(), []string{"x", "a", "x"})
	if err != nil || len(clients) != 3 || clients[0].GetClientId() != "x" || clients[0].GetStatusReason() != "never_seen" || clients[1].GetStatus() != "online" {
		t.Fatalf("batch: %v, error %v", clients, err)
	}
	if clients[2].GetFreshness().GetAppliedOffset() != 3 {
		t.Errorf("a client of a batch has freshness %v", clients[2].GetFreshness())
	}
}

func TestBatchSplitsByBytes(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	ids := make([]string, 200)
	for i := range ids {
		ids[i] = fmt.Sprintf("%d%s", i, strings.Repeat("x", 65_000))
	}
	clients, err := client.Batch(t.Context(), ids)
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range clients {
		if c.GetClientId() != ids[i] {
			t.Fatalf("place %d has another client", i)
		}
	}
	if n := fake.Calls("BatchGetClients"); n != 4 {
		t.Errorf("13 MB of client IDs took %d calls", n)
	}
}

// TestBatchFails sees the error of the part that failed, not the cancellation of the others.
func TestBatchFails(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	fake.FailOnce("BatchGetClients", presencetest.Denied())
	ids := make([]string, 10_000)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	if _, err := client.Batch(t.Context(), ids); !presenceclient.IsDenied(err) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client.Batch(ctx, ids); status.Code(err) != codes.Canceled {
		t.Errorf("cancelled: error %v", err)
	}
}

func TestList(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	var want []string
	for i := range 25 {
		id := fmt.Sprintf("c%02d", i)
		want = append(want, id)
		fake.SetOnline(id)
	}
	fake.SetOnline("other")
	var got []string
	for c, err := range client.List(t.Context(), presenceclient.Filter{Prefix: "c", PageSize: 10}) {
		if err != nil {
			t.Fatal(err)
		}
		if c.GetFreshness() == nil {
			t.Fatalf("%s has no freshness", c.GetClientId())
		}
		got = append(got, c.GetClientId())
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("listed %v", got)
	}
	if n := fake.Calls("ListClients"); n != 3 {
		t.Errorf("25 clients by tens took %d calls", n)
	}
	for page, err := range client.Pages(t.Context(), presenceclient.Filter{PageSize: 5}) {
		if err != nil || page.GetTotal() != 26 || len(page.GetClients()) != 5 {
			t.Errorf("page %v, error %v", page, err)
		}
		break
	}
	if n := fake.Calls("ListClients"); n != 4 {
		t.Errorf("a list that was left went on: %d calls", n)
	}
	// By since, and an error in the middle.
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	fake.Set(
		&presencev1.Client{ClientId: "z", Status: "offline", Since: timestamppb.New(at)},
		&presencev1.Client{ClientId: "y", Status: "offline", Since: timestamppb.New(at.Add(time.Second))},
	)
	filter := presenceclient.Filter{SinceBefore: at.Add(time.Minute), PageSize: 1}
	got = nil
	for c, err := range client.List(t.Context(), filter) {
		if err != nil {
			got = append(got, "error "+status.Code(err).String())
			continue
		}
		got = append(got, c.GetClientId())
		fake.Fail("ListClients", presencetest.Denied())
	}
	if fmt.Sprint(got) != "[z error PermissionDenied]" {
		t.Errorf("listed by since: %v", got)
	}
}

func TestSessions(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		began := time.Now()
		tick(time.Minute)
		fake.SetOnline("a")
		tick(time.Minute)
		fake.SetOffline("a")
		tick(time.Minute)
		fake.SetOnline("a")
		tick(time.Minute)
		fake.SetOnline("a") // takeover
		for _, c := range []struct {
			minutes float64
			status  string
		}{{0.5, "offline"}, {1.5, "online"}, {2.5, "offline"}, {3.5, "online"}, {4.5, "online"}} {
			r, err := client.SessionsAt(t.Context(), "a", began.Add(time.Duration(c.minutes*float64(time.Minute))))
			if err != nil || len(r.GetSessions()) != 3 || r.GetAt().GetStatus() != c.status {
				t.Errorf("after %v minutes: %v, error %v", c.minutes, r.GetAt(), err)
			}
		}
		r, err := client.Sessions(t.Context(), "a")
		if err != nil || r.GetAt() != nil || r.GetSessions()[0].GetState() != "open" ||
			r.GetSessions()[1].GetReason() != "superseded" || r.GetSessions()[2].GetReason() != "normal" {
			t.Errorf("sessions: %v, error %v", r, err)
		}
	})
}

// tick lets virtual time pass.
func tick(d time.Duration) { <-time.After(d) }

func TestDeadlineDefault(t *testing.T) {
	for _, coalesce := range []time.Duration{0, time.Millisecond} {
		change := func(c *presenceclient.Config) { c.Timeout, c.Coalesce.Window = 3*time.Second, coalesce }
		bubble(t, change, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
			fake.Delay("GetStatus", time.Hour)
			began := time.Now()
			_, err := client.Status(context.Background(), "a")
			if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took != 3*time.Second {
				t.Errorf("no deadline: error %v after %v", err, took)
			}
			began = time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err = client.Status(ctx, "a")
			if took := time.Since(began); status.Code(err) != codes.DeadlineExceeded || took != time.Minute {
				t.Errorf("own deadline: error %v after %v", err, took)
			}
		})
	}
}

func TestRetries(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("a")
		fake.FailOnce("GetStatus", presencetest.Unavailable())
		if s, err := client.Status(t.Context(), "a"); err != nil || !s.Online() || fake.Calls("GetStatus") != 2 {
			t.Errorf("%v, error %v after %d calls", s, err, fake.Calls("GetStatus"))
		}
		fake.Fail("GetClient", presencetest.Unavailable())
		if _, err := client.Get(t.Context(), "a"); !presenceclient.IsUnavailable(err) || fake.Calls("GetClient") != 4 {
			t.Errorf("error %v after %d calls", err, fake.Calls("GetClient"))
		}
		// A second deletion would forget what came after the first.
		fake.Fail("DeleteClient", presencetest.Unavailable())
		if _, err := client.Delete(t.Context(), "a"); !presenceclient.IsUnavailable(err) || fake.Calls("DeleteClient") != 1 {
			t.Errorf("error %v after %d deletions", err, fake.Calls("DeleteClient"))
		}
		fake.Fail("ListNodes", status.Error(codes.Internal, "broken"))
		if _, err := client.Nodes(t.Context()); status.Code(err) != codes.Internal || fake.Calls("ListNodes") != 1 {
			t.Errorf("error %v after %d calls", err, fake.Calls("ListNodes"))
		}
	})
	once := func(c *presenceclient.Config) { c.MaxAttempts = 1 }
	bubble(t, once, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.Fail("GetStatus", presencetest.Unavailable())
		if _, err := client.Status(t.Context(), "a"); !presenceclient.IsUnavailable(err) || fake.Calls("GetStatus") != 1 {
			t.Errorf("error %v after %d calls of one", err, fake.Calls("GetStatus"))
		}
	})
}

func TestRetriesAreThrottled(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.Fail("GetStatus", presencetest.Unavailable())
		for range 200 {
			if _, err := client.Status(t.Context(), "a"); !presenceclient.IsUnavailable(err) {
				t.Fatal(err)
			}
		}
		if n := fake.Calls("GetStatus"); n > 300 {
			t.Errorf("200 lookups of a service that is down made %d calls", n)
		}
	})
}

func TestRateLimit(t *testing.T) {
	bubble(t, nil, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.FailOnce("GetStatus", presencetest.RateLimited(2*time.Second))
		began := time.Now()
		if _, err := client.Status(t.Context(), "a"); err != nil || fake.Calls("GetStatus") != 2 {
			t.Errorf("error %v after %d calls", err, fake.Calls("GetStatus"))
		}
		if took := time.Since(began); took < 2*time.Second || took > 2200*time.Millisecond {
			t.Errorf("waited %v in place of 2 to 2.2 s", took)
		}
		// What does not fit before the deadline is not awaited.
		fake.FailOnce("GetStatus", presencetest.RateLimited(time.Minute))
		began = time.Now()
		_, err := client.Status(t.Context(), "a")
		if after, ok := presenceclient.RetryAfter(err); !presenceclient.IsRateLimited(err) || !ok || after != time.Minute || time.Since(began) != 0 {
			t.Errorf("error %v with %v after %v", err, after, time.Since(began))
		}
		fake.FailOnce("GetStatus", status.Error(codes.ResourceExhausted, "message too large"))
		if _, err := client.Status(t.Context(), "a"); !presenceclient.IsRateLimited(err) || fake.Calls("GetStatus") != 4 {
			t.Errorf("without a time to wait: error %v after %d calls", err, fake.Calls("GetStatus"))
		}
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		fake.FailOnce("GetStatus", presencetest.RateLimited(5*time.Second))
		if _, err := client.Status(ctx, "a"); status.Code(err) != codes.Canceled {
			t.Errorf("cancelled while it waits: error %v", err)
		}
	})
}

func TestNoWaitForReady(t *testing.T) {
	fake := presencetest.Start()
	client := newClient(t, fake.Config())
	if err := fake.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Status(t.Context(), "a"); !presenceclient.IsUnavailable(err) {
		t.Errorf("a service that is down: error %v", err)
	}
}

func TestBadIDs(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	for _, id := range []string{"", strings.Repeat("x", 65_536), "a\xff"} {
		for name, err := range map[string]error{
			"status":   second(client.Status(t.Context(), id)),
			"get":      second(client.Get(t.Context(), id)),
			"after":    second(client.GetAfter(t.Context(), id, 1)),
			"sessions": second(client.Sessions(t.Context(), id)),
			"explain":  second(client.Explain(t.Context(), id)),
			"delete":   second(client.Delete(t.Context(), id)),
		} {
			if status.Code(err) != codes.InvalidArgument || presenceclient.WrongField(err) != "client_id" {
				t.Errorf("%s of an ID of %d bytes: error %v", name, len(id), err)
			}
		}
		if _, err := client.Batch(t.Context(), []string{"a", id}); presenceclient.WrongField(err) != "client_ids[1]" {
			t.Errorf("batch: error %v", err)
		}
	}
	if presenceclient.WrongField(errors.New("other")) != "" {
		t.Error("an error of nobody names a field")
	}
}

func second[T any](_ T, err error) error { return err }

func TestGetAfter(t *testing.T) {
	fake := presencetest.New(t)
	client := fake.NewClient(t)
	fake.SetOnline("a")
	if _, err := client.GetAfter(t.Context(), "a", 0); err != nil {
		t.Error(err)
	}
	_, err := client.GetAfter(t.Context(), "a", 7)
	if after, ok := presenceclient.RetryAfter(err); !presenceclient.IsNotApplied(err) || !ok || after != time.Second {
		t.Errorf("an event that has not come: error %v", err)
	}
	// The raw client has what no method has.
	ctx := metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "1")
	if r, err := client.RPC().CheckIndexes(ctx, &presencev1.CheckIndexesRequest{}); err != nil || !r.GetOk() {
		t.Errorf("check of the indexes: %v, error %v", r, err)
	}
}
