package broker

import "sync"

// entries holds one entry per client ID that has a connection opening, open or closing.
type entries struct {
	mu   sync.Mutex
	byID map[string]*entry
}

// entry is what the connections of one client ID share.
type entry struct {
	users int // connections that use the entry, guarded by entries.mu

	// turn is held while a connection takes the ID over, and while one leaves it. Mochi does both without a lock and would lose a connection
	// if they overlapped. It guards the fields below.
	turn sync.Mutex
	live *conn // announced as connected and not yet as disconnected
	last int64 // connected_at of the newest connection
}

// enter returns the ID's entry and waits for its turn.
func (e *entries) enter(id string) *entry {
	e.mu.Lock()
	if e.byID == nil {
		e.byID = make(map[string]*entry)
	}
	x := e.byID[id]
	if x == nil {
		x = new(entry)
		e.byID[id] = x
	}
	x.users++
	e.mu.Unlock()
	x.turn.Lock()
	return x
}

// leave gives the entry up.
func (e *entries) leave(id string, x *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.users--; x.users == 0 {
		delete(e.byID, id)
	}
}
