package query

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// verifyWait is how long a new credential waits for its turn to be hashed.
	verifyWait = 2 * time.Second
	// maxVerifyWaiting bounds the distinct credentials that wait.
	maxVerifyWaiting = 256
)

var errVerifyBusy = errors.New("too many credentials wait to be verified")

// turns shares the few cores that hash passwords among those who log in. Each login is put in the order of a virtual time that counts
// on with each login of the same address, and with each address for the same user: whoever sends many, as one address or for one user,
// queues behind himself, and a login of another address for another user is next. A full queue drops who would come last.
type turns struct {
	maximum int

	mu      sync.Mutex
	free    int
	virtual uint64               // place of the latest login whose turn came
	queue   []*login             // ascending by place
	keys    map[turnKey]*turnAge // of logins that wait or have their turn
}

// turnKey is an address or a user.
type turnKey struct {
	address netip.Addr
	user    string
}

type turnAge struct {
	logins int
	place  uint64 // of the last one
}

type login struct {
	place uint64
	keys  [2]turnKey // of the address, of the user
	turn  chan error
}

func newTurns(parallel, maximum int) *turns {
	return &turns{maximum: maximum, free: parallel, keys: make(map[turnKey]*turnAge)}
}

// take waits for a turn, which lasts until done is called.
func (t *turns) take(ctx context.Context, address netip.Addr, user string) (done func(), err error) {
	l := &login{keys: [2]turnKey{{address: address}, {user: user}}, turn: make(chan error, 1)}
	t.mu.Lock()
	t.enter(l)
	switch {
	case t.free > 0:
		t.free--
		t.virtual = max(t.virtual, l.place)
		t.mu.Unlock()
		return func() { t.done(l) }, nil
	case len(t.queue) >= t.maximum:
		last := t.queue[len(t.queue)-1]
		if last.place <= l.place {
			t.leave(l)
			t.mu.Unlock()
			return nil, errVerifyBusy
		}
		t.queue = t.queue[:len(t.queue)-1]
		t.leave(last)
		last.turn <- errVerifyBusy
	}
	at, _ := slices.BinarySearchFunc(t.queue, l.place+1, func(other *login, place uint64) int { return cmp.Compare(other.place, place) })
	t.queue = slices.Insert(t.queue, at, l)
	t.mu.Unlock()

	select {
	case err = <-l.turn:
	case <-ctx.Done():
		t.mu.Lock()
		if at := slices.Index(t.queue, l); at >= 0 {
			t.queue = slices.Delete(t.queue, at, at+1)
			t.leave(l)
			t.mu.Unlock()
			return nil, errVerifyBusy
		}
		t.mu.Unlock()
		err = <-l.turn // decided meanwhile
	}
	if err != nil {
		return nil, err
	}
	return func() { t.done(l) }, nil
}

// enter gives the login its place. Of each address, one login at a time counts for the user: who tries many passwords from one address
// does not keep the user out, who has another.
func (t *turns) enter(l *login) {
	keys := l.keys[:]
	if t.keys[keys[0]] != nil {
		keys = keys[:1]
	}
	l.place = t.virtual
	for _, k := range keys {
		if age := t.keys[k]; age != nil {
			l.place = max(l.place, age.place)
		}
	}
	l.place++
	for _, k := range l.keys {
		if t.keys[k] == nil {
			t.keys[k] = &turnAge{}
		}
		t.keys[k].logins++
	}
	for _, k := range keys {
		t.keys[k].place = l.place
	}
}

func (t *turns) leave(l *login) {
	for _, k := range l.keys {
		age := t.keys[k]
		if age.logins--; age.logins == 0 {
			delete(t.keys, k)
		}
	}
}

// done gives the turn to the next one.
func (t *turns) done(l *login) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leave(l)
	if len(t.queue) == 0 {
		t.free++
		return
	}
	next := t.queue[0]
	t.queue = slices.Delete(t.queue, 0, 1)
	t.virtual = max(t.virtual, next.place)
	next.turn <- nil
}
