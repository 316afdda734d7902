package presenceclient_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/libs/presenceclient/presencetest"
)

func coalescing(c *presenceclient.Config) { c.Coalesce.Window = time.Millisecond }

// busy makes a first lookup that stays under way for an hour, so that others gather.
func busy(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
	t.Helper()
	fake.Delay("GetStatus", time.Hour)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	done := make(chan error, 1)
	go func() { done <- second(client.Status(ctx, "busy")) }()
	synctest.Wait()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	fake.Delay("GetStatus", 0)
}

type result struct {
	status presenceclient.Status
	err    error
	took   time.Duration
}

// lookups asks for the status of clients at once.
func lookups(ctx context.Context, client *presenceclient.Client, ids ...string) []result {
	results := make([]result, len(ids))
	var wg sync.WaitGroup
	for i, id := range ids {
		wg.Go(func() {
			began := time.Now()
			s, err := client.Status(ctx, id)
			results[i] = result{s, err, time.Since(began)}
		})
	}
	wg.Wait()
	return results
}

func names(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("c%04d", i)
	}
	return all
}

func TestCoalesce(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		ids := names(600)
		fake.SetOnline(ids[:300]...)
		busy(t, fake, client)
		for i, r := range lookups(t.Context(), client, ids...) {
			if r.err != nil || r.status.Online() != (i < 300) || r.status.Freshness == nil {
				t.Fatalf("%s: %+v", ids[i], r)
			}
			if r.took > time.Millisecond {
				t.Errorf("%s waited %v", ids[i], r.took)
			}
		}
		if batches, alone := fake.Calls("BatchGetClients"), fake.Calls("GetStatus"); batches != 3 || alone != 1 {
			t.Errorf("600 lookups took %d batches, and %d calls alone", batches, alone)
		}
	})
}

// TestCoalesceAlone makes one lookup after the other: none waits.
func TestCoalesceAlone(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		began := time.Now()
		for range 100 {
			if _, err := client.Status(t.Context(), "a"); err != nil {
				t.Fatal(err)
			}
		}
		if fake.Calls("GetStatus") != 100 || time.Since(began) != 0 {
			t.Errorf("100 lookups in %v: %d alone", time.Since(began), fake.Calls("GetStatus"))
		}
	})
}

// TestCoalesceFollowsReturn sends what has gathered as soon as nothing is under way.
func TestCoalesceFollowsReturn(t *testing.T) {
	slow := func(c *presenceclient.Config) { c.Coalesce.Window = time.Second }
	bubble(t, slow, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.Delay("GetStatus", 5*time.Millisecond)
		for _, r := range lookups(t.Context(), client, names(10)...) {
			if r.err != nil || r.took > 5*time.Millisecond {
				t.Errorf("%+v", r)
			}
		}
		if fake.Calls("GetStatus") != 1 || fake.Calls("BatchGetClients") != 1 {
			t.Errorf("10 lookups took %d calls alone and %d batches", fake.Calls("GetStatus"), fake.Calls("BatchGetClients"))
		}
	})
}

func TestCoalesceGet(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("a")
		busy(t, fake, client)
		if c, err := client.Get(t.Context(), "a"); err != nil || c.GetConnection().GetNode() == "" || c.GetFreshness() == nil {
			t.Errorf("%v, error %v", c, err)
		}
		if _, err := client.Get(t.Context(), "b"); !presenceclient.IsNeverSeen(err) {
			t.Errorf("never seen: error %v", err)
		}
		if _, err := client.Get(t.Context(), ""); presenceclient.WrongField(err) != "client_id" {
			t.Errorf("no ID: error %v", err)
		}
		if fake.Calls("GetClient") != 0 || fake.Calls("BatchGetClients") != 2 {
			t.Errorf("%d calls alone, %d batches", fake.Calls("GetClient"), fake.Calls("BatchGetClients"))
		}
		// Its own event, and metadata that may be meant for it only, make a lookup go alone.
		if _, err := client.GetAfter(t.Context(), "a", 0); err != nil {
			t.Error(err)
		}
		if _, err := client.Get(metadata.AppendToOutgoingContext(t.Context(), "x-request-id", "1"), "a"); err != nil {
			t.Error(err)
		}
		if fake.Calls("GetClient") != 2 || fake.Calls("BatchGetClients") != 2 {
			t.Errorf("%d calls alone, %d batches", fake.Calls("GetClient"), fake.Calls("BatchGetClients"))
		}
	})
}

// TestCoalesceOwnDeadline ends one lookup of a batch, and then the others.
func TestCoalesceOwnDeadline(t *testing.T) {
	change := func(c *presenceclient.Config) {
		c.Coalesce.Window, c.Coalesce.Patience = time.Millisecond, time.Hour
	}
	bubble(t, change, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline("short", "long")
		busy(t, fake, client)
		fake.Delay("BatchGetClients", 100*time.Millisecond)
		short, cancelShort := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancelShort()
		gone, cancelGone := context.WithCancel(t.Context())
		time.AfterFunc(20*time.Millisecond, cancelGone)
		var wg sync.WaitGroup
		for _, c := range []struct {
			ctx  context.Context
			code codes.Code
			took time.Duration
		}{
			{short, codes.DeadlineExceeded, 10 * time.Millisecond},
			{gone, codes.Canceled, 20 * time.Millisecond},
			{t.Context(), codes.OK, 101 * time.Millisecond},
		} {
			wg.Go(func() {
				r := lookups(c.ctx, client, "long")[0]
				if status.Code(r.err) != c.code || r.took != c.took {
					t.Errorf("%v: error %v after %v", c.code, r.err, r.took)
				}
			})
			synctest.Wait() // The one that waits for the shortest time joins first.
		}
		wg.Wait()
		if n := fake.Calls("BatchGetClients"); n != 1 {
			t.Errorf("%d batches", n)
		}
	})
}

// TestCoalesceStuck leaves a batch that does not return; those that come later do not wait for it.
func TestCoalesceStuck(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline(names(20)...)
		busy(t, fake, client)
		fake.Delay("BatchGetClients", time.Hour)
		stuck := make(chan []result, 1)
		go func() { stuck <- lookups(t.Context(), client, names(10)...) }()
		tick(2 * time.Millisecond)
		fake.Delay("BatchGetClients", 0)
		for _, r := range lookups(t.Context(), client, names(20)[10:]...) {
			if r.err != nil || !r.status.Online() || r.took > time.Millisecond {
				t.Errorf("beside a stuck batch: %+v", r)
			}
		}
		for _, r := range <-stuck {
			if r.err != nil || !r.status.Online() || r.took != 251*time.Millisecond {
				t.Errorf("in a stuck batch: %+v", r)
			}
		}
	})
}

// TestCoalesceOneFails asks alone what a batch was not answered for, such as where one partition has no owner.
func TestCoalesceOneFails(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline(names(10)...)
		busy(t, fake, client)
		fake.Fail("BatchGetClients", presencetest.Unavailable())
		for _, r := range lookups(t.Context(), client, names(10)...) {
			if r.err != nil || !r.status.Online() {
				t.Errorf("%+v", r)
			}
		}
		// Not more calls, and nothing else of it.
		fake.Fail("BatchGetClients", status.Error(codes.Unauthenticated, "who?"))
		alone := fake.Calls("GetStatus")
		for _, r := range lookups(t.Context(), client, names(10)...) {
			if !presenceclient.IsDenied(r.err) {
				t.Errorf("%+v", r)
			}
		}
		if n := fake.Calls("GetStatus") - alone; n != 0 {
			t.Errorf("%d of 10 lookups asked again", n)
		}
	})
}

// TestCoalesceDenied has an account that may ask for the status only.
func TestCoalesceDenied(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline(names(10)...)
		busy(t, fake, client)
		fake.Fail("BatchGetClients", presencetest.Denied())
		for range 10 {
			for _, r := range lookups(t.Context(), client, names(10)...) {
				if r.err != nil || !r.status.Online() {
					t.Errorf("%+v", r)
				}
			}
		}
		if n := fake.Calls("BatchGetClients"); n != 1 {
			t.Errorf("%d batches were refused", n)
		}
		tick(time.Minute)
		lookups(t.Context(), client, "a")
		if n := fake.Calls("BatchGetClients"); n != 2 {
			t.Errorf("%d batches after a minute", n)
		}
	})
}

// TestCoalesceLimited waits for the limit as one batch, not as many lookups.
func TestCoalesceLimited(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline(names(10)...)
		busy(t, fake, client)
		fake.FailOnce("BatchGetClients", presencetest.RateLimited(2*time.Second))
		for _, r := range lookups(t.Context(), client, names(10)...) {
			if r.err != nil || !r.status.Online() || r.took < 2*time.Second {
				t.Errorf("%+v", r)
			}
		}
		if fake.Calls("BatchGetClients") != 2 || fake.Calls("GetStatus") != 1 {
			t.Errorf("%d batches, %d calls alone", fake.Calls("BatchGetClients"), fake.Calls("GetStatus"))
		}
	})
}

// TestCoalesceAllGone ends the call that nobody waits for, and does not begin one.
func TestCoalesceAllGone(t *testing.T) {
	change := func(c *presenceclient.Config) { c.Coalesce.Window = 500 * time.Millisecond }
	bubble(t, change, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		busy(t, fake, client)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		for _, r := range lookups(ctx, client, names(5)...) {
			if status.Code(r.err) != codes.DeadlineExceeded {
				t.Errorf("%+v", r)
			}
		}
		tick(time.Second)
		if n := fake.Calls("BatchGetClients"); n != 0 {
			t.Errorf("%d batches for nobody", n)
		}
	})
}

// TestCoalesceClusters keeps clients of the same ID in two clusters apart.
func TestCoalesceClusters(t *testing.T) {
	bubble(t, coalescing, func(t *testing.T, fake *presencetest.Fake, client *presenceclient.Client) {
		fake.SetOnline(names(50)...)
		busy(t, fake, client)
		eu := client.In("eu")
		var wg sync.WaitGroup
		wg.Go(func() {
			for _, r := range lookups(t.Context(), client, names(50)...) {
				if r.err != nil || !r.status.Online() {
					t.Errorf("default: %+v", r)
				}
			}
		})
		wg.Go(func() {
			for _, r := range lookups(t.Context(), eu, names(50)...) {
				if r.err != nil || !r.status.Offline() {
					t.Errorf("eu: %+v", r)
				}
			}
		})
		wg.Wait()
		if n := fake.Calls("BatchGetClients"); n != 2 {
			t.Errorf("%d batches", n)
		}
	})
}

// TestCoalesceRace has lookups come, give up and fail at random: each is answered for its own client, or ends by its own deadline.
func TestCoalesceRace(t *testing.T) {
	fake := presencetest.New(t)
	cfg := fake.Config()
	cfg.Coalesce = presenceclient.Coalesce{Window: 200 * time.Microsecond, MaxBatch: 8, Patience: 2 * time.Millisecond}
	client := newClient(t, cfg)
	ids := names(64)
	for i, id := range ids {
		if i%2 == 0 {
			fake.SetOnline(id)
		}
	}
	fake.Delay("BatchGetClients", time.Millisecond)
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 200 {
				i := rand.IntN(len(ids))
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(20_000))*time.Microsecond)
				s, err := client.Status(ctx, ids[i])
				if err == nil && s.Online() != (i%2 == 0) {
					t.Errorf("%s is %v", ids[i], s)
				}
				if err != nil && ctx.Err() == nil && status.Code(err) != codes.DeadlineExceeded {
					t.Errorf("%s: %v", ids[i], err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
}
