package query

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"
)

const (
	// maxWatchRead bounds the entries that a watcher takes at once: it holds them while it sends.
	maxWatchRead = 64
	// maxWatchScan bounds the entries that it looks at at once, with the hub locked for reading.
	maxWatchScan = 1 << 10
	// maxWatchHits bounds the entries noted for a watcher of single clients. One that is further behind reads like any other.
	maxWatchHits = 1 << 10
	// wakeCost bounds what waking costs: a wake-up of one watcher takes a few microseconds, so that this share of time goes into it at most
	// half of a core.
	wakeCost = 5 * time.Microsecond
)

// errHubReset ends all watches: the log that they read is no more.
var errHubReset = errors.New("the log of transitions is not the one that the watch began with")

// errHubClosed ends all watches: the service stops.
var errHubClosed = errors.New("the service is stopping")

// watchHub keeps the latest transitions of all partitions, in one sequence, for all watchers. Each of them is a cursor into the sequence;
// nothing is copied for it. Watchers of single clients do not read the sequence: the hub notes what concerns them.
//
// The sequence keeps the order of each partition, and of time by and large.
type watchHub struct {
	maxRecords int
	maxBytes   int64
	metrics    *watchMetrics
	dirty      chan struct{} // there is something that watchers have not been woken for

	mu       sync.RWMutex
	epoch    *watchEpoch   // nil: nothing has been read yet
	began    chan struct{} // closed when there is an epoch
	absent   error         // why there is no epoch
	ring     []*watchEntry
	base     uint64 // number of the first entry of ring
	bytes    int64
	before   string        // token of the position before the ring
	start    []int64       // the ring has all from here on, by partition
	head     watchPosition // after the ring
	token    string        // of head; empty: not computed
	needs    watchNeeds
	changed  chan struct{} // closed when watchers are woken
	scanning int           // watchers that read the sequence
	byClient map[clientName]map[*watchCursor]struct{}
	closed   chan struct{}
}

// watchEpoch is the time in which the hub reads one log without a gap.
type watchEpoch struct {
	compactionLag time.Duration
	ended         chan struct{}
}

func newWatchHub(maxRecords int, maxBytes int64, m *watchMetrics) *watchHub {
	return &watchHub{
		maxRecords: maxRecords, maxBytes: maxBytes, metrics: m, dirty: make(chan struct{}, 1), absent: errors.New("kafka has not answered yet"),
		began: make(chan struct{}), changed: make(chan struct{}), byClient: make(map[clientName]map[*watchCursor]struct{}), closed: make(chan struct{}),
	}
}

// begin starts an epoch. Entries are those of the log from start on up to head, in a sequence that keeps the order of each partition.
func (h *watchHub) begin(start, head watchPosition, compactionLag time.Duration, entries []*watchEntry) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
	h.epoch = &watchEpoch{compactionLag: compactionLag, ended: make(chan struct{})}
	h.absent = nil
	close(h.began)
	if len(entries) > 0 {
		start.timeMS = entries[0].timeMS
	}
	h.before, h.start = start.token(), slices.Clone(start.next)
	h.needs = watchNeeds{events: make([]int64, len(start.next))}
	h.head = watchPosition{topic: start.topic, timeMS: start.timeMS, next: slices.Clone(start.next)}
	h.extend(entries, head)
}

// end ends the epoch: there will be a gap.
func (h *watchHub) end(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
	h.absent = why
}

func (h *watchHub) drop() {
	if h.epoch != nil {
		close(h.epoch.ended)
		h.epoch, h.began = nil, make(chan struct{})
	}
	h.base += uint64(len(h.ring))
	h.ring, h.bytes = nil, 0
	h.observe()
}

// close ends all watches.
func (h *watchHub) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.closed)
}

// missing says why there is no epoch.
func (h *watchHub) missing(why error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch == nil {
		h.absent = why
	}
}

// append adds entries, and moves the end to head, which may be past them: not every record is an entry.
func (h *watchHub) append(entries []*watchEntry, head watchPosition) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.extend(entries, head)
}

// extend does the work of append, with mu held.
func (h *watchHub) extend(entries []*watchEntry, head watchPosition) {
	for _, e := range entries {
		h.head.next[e.partition] = e.offset + 1
		h.head.timeMS = max(h.head.timeMS, e.timeMS)
		e.timeMS = h.head.timeMS
		e.token = h.head.token()
		h.bytes += e.size()
		h.needs.add(e)
		number := h.base + uint64(len(h.ring))
		h.ring = append(h.ring, e)
		for c := range h.byClient[e.client] {
			c.note(number)
		}
	}
	h.head.timeMS = max(h.head.timeMS, head.timeMS)
	copy(h.head.next, head.next)
	h.token = ""
	evicted := 0
	for evicted < len(h.ring) && (len(h.ring)-evicted > h.maxRecords || h.bytes > h.maxBytes) {
		e := h.ring[evicted]
		h.bytes -= e.size()
		h.before, h.start[e.partition] = e.token, e.offset+1
		h.ring[evicted] = nil
		evicted++
	}
	h.ring, h.base = h.ring[evicted:], h.base+uint64(evicted)
	h.observe()
	if len(entries) > 0 {
		select {
		case h.dirty <- struct{}{}:
		default:
		}
	}
}

func (h *watchHub) observe() {
	h.metrics.bufferRecords.Set(float64(len(h.ring)))
	h.metrics.bufferBytes.Set(float64(h.bytes))
}

// wake wakes the watchers that read the sequence, not more often than their number allows, until ctx ends.
func (h *watchHub) wake(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.dirty:
		}
		h.mu.Lock()
		close(h.changed)
		h.changed = make(chan struct{})
		pause := time.Duration(h.scanning) * wakeCost
		h.mu.Unlock()
		if pause < time.Millisecond {
			continue
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// headToken is the token of head. The caller holds mu for writing.
func (h *watchHub) headToken() string {
	if h.token == "" {
		h.token = h.head.token()
	}
	return h.token
}

// watchItem is an entry as one watcher is told it.
type watchItem struct {
	*watchEntry
	token string // of the position after it, for this watcher
}

// watchCursor is one watcher's place in the sequence. Only the watcher uses it, except what mu of the hub guards.
type watchCursor struct {
	hub    *watchHub
	epoch  *watchEpoch
	filter *watchFilter
	next   uint64 // number of the next entry to be looked at
	at     string // token of the position before it
	// own is the position of a watcher that came with one: what is before it is passed over. It is nil once the sequence has reached it.
	own *watchPosition

	wake    chan struct{} // the hub has noted something
	noting  bool          // guarded by mu: the hub notes what concerns the watcher
	noted   []uint64      // guarded by mu
	flooded bool          // guarded by mu: more than it could note
}

// watchRead is what a read found.
type watchRead struct {
	items   []watchItem
	skipped int64           // entries that the ring no longer had
	from    string          // token of the first of them
	more    <-chan struct{} // set at the end of the sequence: closed when there is more, if nothing is noted
}

// await returns the epoch, once there is one.
func (h *watchHub) await(ctx context.Context, patience time.Duration) (*watchEpoch, error) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		h.mu.RLock()
		epoch, began, absent := h.epoch, h.began, h.absent
		h.mu.RUnlock()
		if epoch != nil {
			return epoch, nil
		}
		select {
		case <-began:
		case <-timer.C:
			return nil, absent
		case <-h.closed:
			return nil, errHubClosed
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// confirm says that at a time these were the ends of the partitions: if the sequence has come so far, what follows it was written later.
func (h *watchHub) confirm(ends []int64, at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch == nil {
		return
	}
	for p, end := range ends {
		if h.head.next[p] < end {
			return
		}
	}
	h.head.timeMS, h.token = max(h.head.timeMS, at.UnixMilli()), ""
}

// position is the end of the sequence, and what must have been applied for all that is before it to be known.
func (h *watchHub) position(epoch *watchEpoch) (*watchPosition, watchNeeds, error) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	if h.epoch != epoch || epoch == nil {
		return nil, watchNeeds{}, errHubReset
	}
	at := &watchPosition{topic: h.head.topic, timeMS: h.head.timeMS, next: slices.Clone(h.head.next)}
	return at, watchNeeds{slices.Clone(h.needs.events), h.needs.nodes}, nil
}

// follow returns a cursor at the end of the sequence.
func (h *watchHub) follow(f *watchFilter, epoch *watchEpoch) (*watchCursor, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch != epoch || epoch == nil {
		return nil, errHubReset
	}
	c := h.cursor(f)
	c.next, c.at = h.base+uint64(len(h.ring)), h.headToken()
	return c, nil
}

func (h *watchHub) cursor(f *watchFilter) *watchCursor {
	h.scanning++
	return &watchCursor{hub: h, epoch: h.epoch, filter: f, wake: make(chan struct{}, 1)}
}

// join returns a cursor that goes on from a position of the epoch. It is nil if the ring does not reach back as far.
func (h *watchHub) join(f *watchFilter, epoch *watchEpoch, p *watchPosition) (*watchCursor, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch != epoch || epoch == nil {
		return nil, errHubReset
	}
	for partition, offset := range p.next {
		if offset < h.start[partition] {
			return nil, nil
		}
	}
	c := h.cursor(f)
	c.next = h.base
	c.own = &watchPosition{topic: p.topic, timeMS: p.timeMS, next: slices.Clone(p.next)}
	c.at = c.own.token()
	return c, nil
}

// leave gives the cursor up.
func (c *watchCursor) leave() {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	if c.noting {
		c.unnote()
	}
	c.hub.scanning--
}

// position is the token of the place up to which all was looked at.
func (c *watchCursor) position() string {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	end := h.base + uint64(len(h.ring))
	if h.epoch == c.epoch && c.own == nil && (c.next == end || c.noting && len(c.noted) == 0 && !c.flooded) {
		c.next, c.at = end, h.headToken()
	}
	return c.at
}

// note has the watcher look at an entry. The caller holds mu.
func (c *watchCursor) note(number uint64) {
	// Once an entry was passed over, so are all after it.
	if c.flooded = c.flooded || len(c.noted) == maxWatchHits; !c.flooded {
		c.noted = append(c.noted, number)
	}
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// unnote makes the watcher read the sequence again. The caller holds mu.
func (c *watchCursor) unnote() {
	for id := range c.filter.ids {
		name := clientName{c.filter.cluster, id}
		delete(c.hub.byClient[name], c)
		if len(c.hub.byClient[name]) == 0 {
			delete(c.hub.byClient, name)
		}
	}
	c.noting, c.noted, c.flooded = false, nil, false
	c.hub.scanning++
}

// read returns the next entries for the watcher. The items are valid until the next read.
func (c *watchCursor) read(into []watchItem) (watchRead, error) {
	if c.noting {
		return c.readNoted(into)
	}
	h := c.hub
	h.mu.RLock()
	if h.epoch != c.epoch {
		h.mu.RUnlock()
		return watchRead{}, errHubReset
	}
	if r, overrun := c.overrun(h); overrun {
		h.mu.RUnlock()
		return r, nil
	}
	r := watchRead{items: into[:0]}
	i, last := int(c.next-h.base), 0
	for ; i < len(h.ring) && last < maxWatchScan && len(r.items) < maxWatchRead; i, last = i+1, last+1 {
		c.look(h.ring[i], &r)
	}
	c.next = h.base + uint64(i)
	if i < len(h.ring) {
		if c.own != nil {
			c.at = c.own.token()
		}
		h.mu.RUnlock()
		return r, nil
	}
	r.more = h.changed
	h.mu.RUnlock()
	c.settle(&r)
	return r, nil
}

// look takes an entry if the watcher is to be told. The caller holds mu.
func (c *watchCursor) look(e *watchEntry, r *watchRead) {
	if c.own == nil {
		c.at = e.token
		if c.filter.selects(e) {
			r.items = append(r.items, watchItem{e, e.token})
		}
		return
	}
	if e.offset < c.own.next[e.partition] {
		return
	}
	c.own.next[e.partition], c.own.timeMS = e.offset+1, max(c.own.timeMS, e.timeMS)
	if c.filter.selects(e) {
		r.items = append(r.items, watchItem{e, c.own.token()})
	}
}

// overrun moves a watcher that the ring has left behind to the oldest entry. The caller holds mu.
func (c *watchCursor) overrun(h *watchHub) (watchRead, bool) {
	if c.next >= h.base {
		return watchRead{}, false
	}
	r := watchRead{skipped: int64(h.base - c.next), from: c.at}
	c.next, c.at = h.base, h.before
	if c.own != nil {
		for p, offset := range h.start {
			c.own.next[p] = max(c.own.next[p], offset)
		}
		c.at = c.own.token()
	}
	return r, true
}

// settle does what is due at the end of the sequence: it brings the place there, past what is no entry, and has the hub note from now on
// what concerns a watcher of single clients.
func (c *watchCursor) settle(r *watchRead) {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch != c.epoch || c.next != h.base+uint64(len(h.ring)) {
		if c.own != nil {
			c.at = c.own.token()
		}
		return
	}
	if c.own != nil {
		ahead := false
		for p, offset := range h.head.next {
			c.own.next[p] = max(c.own.next[p], offset)
			ahead = ahead || c.own.next[p] > offset
		}
		if ahead {
			// Another process has told the watcher what this one has not read yet.
			c.at = c.own.token()
			return
		}
		c.own = nil
	}
	c.at = h.headToken()
	if c.filter.ids == nil || len(r.items) > 0 {
		return
	}
	for id := range c.filter.ids {
		name := clientName{c.filter.cluster, id}
		if h.byClient[name] == nil {
			h.byClient[name] = make(map[*watchCursor]struct{})
		}
		h.byClient[name][c] = struct{}{}
	}
	c.noting = true
	h.scanning--
	r.more = nil
}

// readNoted returns what the hub has noted.
func (c *watchCursor) readNoted(into []watchItem) (watchRead, error) {
	h := c.hub
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.epoch != c.epoch {
		return watchRead{}, errHubReset
	}
	r := watchRead{items: into[:0]}
	taken := 0
	for _, number := range c.noted {
		if len(r.items) == maxWatchRead {
			break
		}
		if number < h.base {
			// The watcher is told what it would be told if it read the sequence.
			c.unnote()
			c.next = number
			r, _ := c.overrun(h)
			return r, nil
		}
		e := h.ring[number-h.base]
		c.next, c.at = number+1, e.token
		if c.filter.selects(e) {
			r.items = append(r.items, watchItem{e, e.token})
		}
		taken++
	}
	c.noted = append(c.noted[:0], c.noted[taken:]...)
	switch {
	case len(c.noted) > 0:
	case c.flooded:
		c.unnote()
	default:
		c.next, c.at = h.base+uint64(len(h.ring)), h.headToken()
	}
	return r, nil
}
