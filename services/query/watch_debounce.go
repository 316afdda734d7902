package query

import (
	"container/list"
	"math"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

const (
	// maxHeld bounds the clients that a watcher holds back; beyond, the one that was silent for longest is told early.
	maxHeld = 10_000
	// maxTold bounds the clients of which a watcher knows where it last saw them; one that it does not know is told.
	maxTold = 10_000
)

// sight is where a watcher last saw a client.
type sight struct {
	status presence.Presence
	connectionName
}

// nowhere is where a client is that was removed: no transition is back to it.
var nowhere = sight{status: presence.Presence(math.MaxUint8)}

// debouncer holds a client's transition back until none has followed for a while.
type debouncer struct {
	quiet  time.Duration
	held   map[clientName]*heldClient
	latest *list.List // of *heldClient, by the last transition of each

	told      map[clientName]sight
	toldOrder []clientName // a ring
	toldNext  int
}

// heldClient is a client that is held back.
type heldClient struct {
	last   *watchEntry
	before string // token of the position before it
	due    time.Time
	place  *list.Element
}

func newDebouncer(quiet time.Duration) *debouncer {
	return &debouncer{quiet: quiet, held: make(map[clientName]*heldClient), latest: list.New(), told: make(map[clientName]sight)}
}

// add holds an entry back, whose position follows that of the token.
func (d *debouncer) add(e *watchEntry, before string, now time.Time) {
	c := d.held[e.client]
	if c == nil {
		c = &heldClient{}
		c.place = d.latest.PushBack(c)
		d.held[e.client] = c
	}
	c.last, c.before, c.due = e, before, now.Add(d.quiet)
	d.latest.MoveToBack(c.place)
}

// due is when the next client is to be told; false if none is held.
func (d *debouncer) due() (time.Time, bool) {
	if c := d.oldest(); c != nil {
		return c.due, true
	}
	return time.Time{}, false
}

// oldest is the client whose last transition is the oldest, nil if none is held.
func (d *debouncer) oldest() *heldClient {
	if front := d.latest.Front(); front != nil {
		if c, ok := front.Value.(*heldClient); ok {
			return c
		}
	}
	return nil
}

// take returns the next entry to be told, nil if there is none now. What is back where the watcher last saw it is dropped.
func (d *debouncer) take(now time.Time) *watchEntry {
	for {
		c := d.oldest()
		if c == nil || len(d.held) <= maxHeld && now.Before(c.due) {
			return nil
		}
		d.latest.Remove(c.place)
		delete(d.held, c.last.client)
		if c.last.removed {
			if _, known := d.told[c.last.client]; known {
				d.told[c.last.client] = nowhere
			}
			return c.last
		}
		is := sight{c.last.status, c.last.connectionName}
		if was, seen := d.told[c.last.client]; seen && was == is {
			continue
		}
		d.saw(c.last.client, is)
		return c.last
	}
}

// saw notes what the watcher was told.
func (d *debouncer) saw(client clientName, s sight) {
	if _, known := d.told[client]; !known {
		if len(d.toldOrder) < maxTold {
			d.toldOrder = append(d.toldOrder, client)
		} else {
			delete(d.told, d.toldOrder[d.toldNext])
			d.toldOrder[d.toldNext] = client
			d.toldNext = (d.toldNext + 1) % maxTold
		}
	}
	d.told[client] = s
}

// before is the token of the position before the last transitions of all that are held: nothing else of them is to be told. It is false if
// nothing is held.
func (d *debouncer) before() (string, bool) {
	if c := d.oldest(); c != nil {
		return c.before, true
	}
	return "", false
}
