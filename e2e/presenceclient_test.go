package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// accountsPassword is that of all accounts that writeAccounts writes, with a hash of it of the least cost.
const (
	accountsPassword = "correct horse"
	accountsHash     = "$2a$04$GRWdR9u4M8eLKhMi0PZpoeOG6ff.0cuyK2j0H32eOd1cJOZ4YvvbO"
)

// writeAccounts writes a file with the accounts admin, which may do all, and connect, which may do little.
func writeAccounts(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "accounts")
	text := "admin:" + accountsHash + ":connect,read,admin\nconnect:" + accountsHash + ":connect\n"
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// TestPresenceClient uses the Go client package on the all-in-one, so that its fake and the service cannot drift apart.
func TestPresenceClient(t *testing.T) {
	t.Parallel()
	a := newAllInOne(t, "--accounts-file", writeAccounts(t), "--log-level", "error")
	a.start(t)
	tgt := Target{MQTT: a.flag("mqtt-addr")}
	secret := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(secret, []byte(accountsPassword+"\n"), 0o600))
	open := func(user string, coalesce time.Duration) *presenceclient.Client {
		t.Helper()
		c, err := presenceclient.New(presenceclient.Config{
			Target: a.flag("grpc-addr"), Credentials: presenceclient.Basic{User: user, Password: presenceclient.File(secret)},
			Coalesce: presenceclient.Coalesce{Window: coalesce},
		})
		must(t, err)
		t.Cleanup(func() { must(t, c.Close()) })
		return c
	}
	client := open("admin", 0)

	events := make(chan string, 100)
	go func() {
		defer close(events)
		for m, err := range client.Watch(t.Context(), presenceclient.Watch{Prefix: "pc-", Snapshot: true}) {
			if err != nil {
				return // the test has ended
			}
			events <- m.GetType() + " " + m.GetTransition().GetClientId() + " " + m.GetTransition().GetStatus()
		}
	}()
	expectEvent := func(want string) {
		t.Helper()
		select {
		case got := <-events:
			if got != want {
				t.Errorf("the watch was told %q, want %q", got, want)
			}
		case <-time.After(patience):
			t.Fatalf("the watch was not told %q", want)
		}
	}
	expectEvent("snapshot_begin  ")
	expectEvent("snapshot_end  ")

	var ids []string
	for i := range 20 {
		ids = append(ids, fmt.Sprintf("pc-%02d", i))
		connect(t, tgt, ids[i])
		expectEvent("transition " + ids[i] + " online")
	}
	never, err := client.Status(t.Context(), "pc-never")
	if err != nil || !never.Offline() || never.Reason != "never_seen" {
		t.Errorf("never seen: %v, error %v", never, err)
	}
	if _, err := client.Get(t.Context(), "pc-never"); !presenceclient.IsNeverSeen(err) {
		t.Errorf("never seen: error %v", err)
	}
	if c, err := client.GetAfter(t.Context(), ids[0], 0); err != nil || c.GetStatus() != presenceclient.StatusOnline {
		t.Errorf("after its own event: %v, error %v", c, err)
	}
	if _, err := client.GetAfter(t.Context(), ids[0], -1); presenceclient.WrongField(err) != "min_offset" {
		t.Errorf("offset -1: error %v", err)
	}
	clients, err := client.Batch(t.Context(), append([]string{"pc-never"}, ids...))
	if err != nil || len(clients) != 21 || clients[0].GetStatusReason() != "never_seen" || !presenceclient.StatusOf(clients[20]).Confident() {
		t.Errorf("batch: %v, error %v", clients, err)
	}
	var listed []string
	for c, err := range client.List(t.Context(), presenceclient.Filter{Status: presenceclient.StatusOnline, Prefix: "pc-", PageSize: 7}) {
		must(t, err)
		listed = append(listed, c.GetClientId())
	}
	if !slices.Equal(listed, ids) {
		t.Errorf("listed %v", listed)
	}
	if s, err := client.Stats(t.Context(), 10); err != nil || s.GetClients().GetOnline() < 20 {
		t.Errorf("stats: %v, error %v", s, err)
	}
	if n, err := client.Nodes(t.Context()); err != nil || len(n.GetNodes()) != 1 {
		t.Errorf("nodes: %v, error %v", n, err)
	}
	if r, err := client.SessionsAt(t.Context(), ids[0], time.Now()); err != nil || len(r.GetSessions()) != 1 || r.GetAt() == nil {
		t.Errorf("sessions: %v, error %v", r, err)
	}
	t.Run("coalesced", func(t *testing.T) { coalescedLookups(t, open("admin", time.Millisecond), ids) })
	// This account may not ask for a batch, and is answered all the same.
	t.Run("coalesced without read", func(t *testing.T) { coalescedLookups(t, open("connect", time.Millisecond), ids) })

	limited := open("connect", 0)
	if _, err := limited.Get(t.Context(), ids[0]); !presenceclient.IsDenied(err) {
		t.Errorf("without the permission read: error %v", err)
	}
	if _, err := limited.Delete(t.Context(), ids[0]); !presenceclient.IsDenied(err) {
		t.Errorf("without the permission admin: error %v", err)
	}
	deleted, err := client.Delete(t.Context(), ids[0])
	must(t, err)
	expectEvent("transition " + ids[0] + " offline")
	expectEvent("removed " + ids[0] + " ")
	servicetest.Eventually(t, patience, func() error {
		_, err := client.GetAfter(t.Context(), ids[0], deleted.GetOffset())
		if !presenceclient.IsNeverSeen(err) {
			return fmt.Errorf("a deleted client: error %w", err)
		}
		return nil
	})
}

// coalescedLookups asks for all clients at once, many times.
func coalescedLookups(t *testing.T, client *presenceclient.Client, ids []string) {
	var wg sync.WaitGroup
	for _, id := range ids {
		wg.Go(func() {
			for range 50 {
				if s, err := client.Status(t.Context(), id); err != nil || !s.Online() {
					t.Errorf("%s: %v, error %v", id, s, err)
				}
			}
		})
	}
	wg.Wait()
}
