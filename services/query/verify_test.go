package query

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// countedHash is a password in plain text of a made-up kind.
type countedHash struct {
	of, password string
	count        *map[string]int
}

func (h countedHash) kind() string { return h.of }

func (h countedHash) matches(password string) bool {
	(*h.count)[h.of]++
	return password == h.password
}

// Whoever logs in, with whatever kind of hash or none, the same hashes are computed: nothing to time.
func TestLoginsCostTheSame(t *testing.T) {
	count := map[string]int{}
	slow, fast := countedHash{"slow", "a", &count}, countedHash{"fast", "b", &count}
	set := &accounts{byName: map[string]*account{
		"slow": {hash: slow}, "fast": {hash: fast}, "other": {hash: countedHash{"fast", "c", &count}}, "certified": {},
	}, kinds: []passwordHash{slow, fast}}
	for _, c := range []struct {
		user, password string
		want           bool
	}{
		{"slow", "a", true}, {"slow", "b", false}, {"fast", "b", true}, {"fast", "a", false}, {"other", "c", true}, {"other", "b", false},
		// The examples of the kinds are other accounts' hashes: their passwords are not this one's.
		{"nobody", "a", false}, {"nobody", "b", false}, {"certified", "a", false}, {"certified", "", false}, {"slow", "", false},
	} {
		clear(count)
		hashed := 0
		if got := set.verify(set.byName[c.user], c.password, func() { hashed++ }); got != c.want {
			t.Errorf("%s with %q: %v", c.user, c.password, got)
		}
		if hashed != 2 || count["slow"] != 1 || count["fast"] != 1 {
			t.Errorf("%s with %q cost %v", c.user, c.password, count)
		}
	}
}

func TestKindsOfHashes(t *testing.T) {
	argon := func(parameters string) string {
		return "$argon2id$v=19$" + parameters + "$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
	}
	lines := []string{
		"a:" + someBcrypt + ":read", "b:$2b" + someBcrypt[3:] + ":read", "c:$2a$05" + someBcrypt[6:] + ":read", "d:cert:read", "spiffe://x/d:cert:connect",
		"e:" + argon("m=64,t=1,p=1") + ":read", "f:" + argon("m=64,t=1,p=1") + ":read", "g:" + argon("m=64,t=2,p=1") + ":read",
	}
	set, err := parseAccounts([]byte(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	for _, k := range set.kinds {
		kinds = append(kinds, k.kind())
	}
	if want := []string{"bcrypt 4", "bcrypt 5", "argon2id m=64,t=1,p=1", "argon2id m=64,t=2,p=1"}; !slices.Equal(kinds, want) {
		t.Errorf("kinds %q", kinds)
	}
	if a := set.byName["spiffe://x/d"]; a == nil || a.hash != nil || a.permissions != permConnect {
		t.Errorf("the account of a URI is %+v", a)
	}
}

// served lets logins come up for their turn and says in which order.
func served(t *testing.T, parallel, maximum int, logins []turnKey) (order []int, refused []int) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(parallel, maximum)
		var mu sync.Mutex
		var wg sync.WaitGroup
		release := make(chan struct{})
		for i, l := range logins {
			wg.Go(func() {
				done, err := turns.take(t.Context(), l.address, l.user)
				mu.Lock()
				if err != nil {
					refused = append(refused, i)
				} else {
					order = append(order, i)
				}
				mu.Unlock()
				if err == nil {
					<-release
					done()
				}
			})
			synctest.Wait()
		}
		close(release)
		wg.Wait()
		if turns.free != parallel || len(turns.keys) != 0 || len(turns.queue) != 0 {
			t.Errorf("left over: %d free, %d keys, %d in the queue", turns.free, len(turns.keys), len(turns.queue))
		}
	})
	return order, refused
}

func addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})
}

// One address that tries many users, and one user that many addresses try, queue behind themselves.
func TestFloodDoesNotKeepOthersOut(t *testing.T) {
	for name, flood := range map[string]func(i int) turnKey{
		"one address":           func(i int) turnKey { return turnKey{addr(0), fmt.Sprint("user", i)} },
		"one user":              func(i int) turnKey { return turnKey{addr(i), "victim"} },
		"one address, one user": func(int) turnKey { return turnKey{addr(0), "victim"} },
	} {
		t.Run(name, func(t *testing.T) {
			var logins []turnKey
			for i := range 50 {
				logins = append(logins, flood(i))
			}
			newcomer := len(logins)
			logins = append(logins, turnKey{addr(1_000_000), "newcomer"})
			order, refused := served(t, 1, 20, logins)
			at := slices.Index(order, newcomer)
			if at < 0 || at > 2 {
				t.Errorf("the newcomer's turn was %d of %v", at, order)
			}
			if len(refused) != 30 || slices.Contains(refused, newcomer) {
				t.Errorf("refused were %v", refused)
			}
		})
	}
}

// One address that tries passwords of a user queues behind itself, not before the user.
func TestOneAddressDoesNotKeepAUserOut(t *testing.T) {
	var logins []turnKey
	for range 50 {
		logins = append(logins, turnKey{addr(0), "victim"})
	}
	victim := len(logins)
	order, refused := served(t, 1, 20, append(logins, turnKey{addr(1), "victim"}))
	if at := slices.Index(order, victim); at < 0 || at > 2 {
		t.Errorf("the user's turn was %d of %v; refused were %v", at, order, refused)
	}
}

func TestTurnsInOrder(t *testing.T) {
	var logins []turnKey
	for i := range 10 {
		logins = append(logins, turnKey{addr(i), fmt.Sprint("user", i)})
	}
	order, refused := served(t, 2, 20, logins)
	if len(order) != 10 || len(refused) != 0 || !slices.IsSorted(order[:2]) {
		t.Errorf("order %v, refused %v", order, refused)
	}
}

func TestTurnsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		turns := newTurns(1, 10)
		done, err := turns.take(t.Context(), addr(1), "a")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), verifyWait)
		defer cancel()
		began := time.Now()
		if _, err := turns.take(ctx, addr(2), "b"); !errors.Is(err, errVerifyBusy) || time.Since(began) != verifyWait {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		done()
		if done, err = turns.take(t.Context(), addr(2), "b"); err != nil {
			t.Fatal(err)
		}
		done()
		if turns.free != 1 || len(turns.keys) != 0 {
			t.Error("something is left over")
		}
	})
}
