package store

import (
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"
)

// Query selects clients of a cluster, by what indexes have of them. What it leaves out stands for any.
type Query struct {
	Cluster   string
	Standings []Standing
	Node      string
	Username  string
	Prefix    string // of the client ID
	// Since orders clients by since and then by client ID, instead of by client ID, and bounds since.
	Since *Span
	// After leaves out the clients up to a place.
	After *Position
}

// Span is a span of time: from the one, before the other; nil: without a bound.
type Span struct{ FromMS, BeforeMS *int64 }

// Position is a place in a list. SinceMS is of no account where that is by client ID.
type Position struct {
	SinceMS  int64
	ClientID string
}

// Candidate is a client that a query may select: a place narrows a list down as far as an index goes, the row tells the rest.
type Candidate struct {
	Partition int32
	SinceMS   int64  // by the index, in a list by since
	ClientID  []byte // valid until the next call
	Row       []byte // the same
}

// Candidates are the clients of some partitions that a query may select, in its order.
type Candidates struct {
	view    *View
	cluster string
	streams streams
	rows    map[int32]*pebble.Iterator
	key     []byte
	begun   bool
}

// Candidates returns the clients that a query may select. It must be closed. Of partitions for which scan is true it has all that the
// query's prefix leaves, whatever the indexes say; a list by since cannot do without them.
func (v *View) Candidates(partitions []int32, q *Query, scan func(partition int32) bool) (*Candidates, error) {
	c := &Candidates{view: v, cluster: q.Cluster, rows: map[int32]*pebble.Iterator{}}
	for _, p := range partitions {
		var err error
		switch {
		case q.Since != nil:
			c.bySince(p, q)
		case scan(p), q.Username == "" && q.Node == "" && q.Standings == nil:
			c.byID(p, q, kindBegin(p, kindClient, q.Cluster), true)
		case q.Username != "":
			c.byID(p, q, appendUsername(nil, kindUsername, p, []byte(q.Cluster+"/"), q.Username), false)
		case q.Node != "":
			for _, s := range q.standings() {
				c.byID(p, q, appendPlace(nil, kindPlace, p, []byte(q.Cluster+"/"), s, q.Node), false)
			}
		default:
			var begins [][]byte
			if begins, err = v.placesOf(p, q); len(begins) > maxPlaces {
				c.byID(p, q, kindBegin(p, kindClient, q.Cluster), true)
				break
			}
			for _, begin := range begins {
				c.byID(p, q, begin, false)
			}
		}
		if err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// maxPlaces is how many places of a partition a list merges. Of a cluster that has had more nodes, by which clients still count, the rows
// are looked through.
const maxPlaces = 256

// placesOf returns how the index's keys begin at the places of a partition that a query by status selects.
func (v *View) placesOf(partition int32, q *Query) (begins [][]byte, err error) {
	err = v.Places(partition, q.Cluster, func(n PlaceCount) error {
		if slices.Contains(q.Standings, n.Standing) {
			begins = append(begins, appendPlace(nil, kindPlace, partition, []byte(q.Cluster+"/"), n.Standing, n.Node))
		}
		return nil
	})
	return begins, err
}

// standings returns those that the query selects.
func (q *Query) standings() []Standing {
	if q.Standings != nil {
		return q.Standings
	}
	all := make([]Standing, NumStandings)
	for i := range all {
		all[i] = Standing(i)
	}
	return all
}

// byID adds the keys that begin with the given one, after which the client ID follows.
func (c *Candidates) byID(partition int32, q *Query, begin []byte, rows bool) {
	s := &stream{partition: partition, header: len(begin), values: rows}
	s.lower = append(bytes.Clone(begin), q.Prefix...)
	s.upper = successor(s.lower)
	if q.After != nil {
		s.startAfter(append(bytes.Clone(begin), q.After.ClientID...))
	}
	c.streams.add(c.view, s)
}

func (c *Candidates) bySince(partition int32, q *Query) {
	cluster := []byte(q.Cluster + "/")
	for _, standing := range q.standings() {
		begin := append(appendClient(nil, kindSince, partition, cluster), byte(standing))
		s := &stream{partition: partition, header: len(begin), since: true, lower: begin, upper: successor(begin)}
		if q.Since.FromMS != nil {
			s.lower = appendSince(nil, partition, cluster, standing, *q.Since.FromMS)
		}
		if q.Since.BeforeMS != nil {
			s.upper = appendSince(nil, partition, cluster, standing, *q.Since.BeforeMS)
		}
		if q.After != nil {
			s.startAfter(append(appendSince(nil, partition, cluster, standing, q.After.SinceMS), q.After.ClientID...))
		}
		c.streams.add(c.view, s)
	}
}

// Next returns the next client, nil if there is none.
func (c *Candidates) Next() (*Candidate, error) {
	var err error
	if c.begun {
		err = c.streams.next()
	} else {
		c.begun, err = true, c.streams.start()
	}
	if err != nil || len(c.streams.heap) == 0 {
		return nil, err
	}
	s := c.streams.heap[0]
	n := &Candidate{Partition: s.partition, ClientID: s.id(), Row: s.value()}
	if s.since {
		if len(n.ClientID) < 8 {
			return nil, fmt.Errorf("%w: entry %x of an index", ErrCorrupt, s.head())
		}
		n.SinceMS, n.ClientID = int64(binary.BigEndian.Uint64(n.ClientID)^1<<63), n.ClientID[8:]
	}
	if !s.values {
		n.Row, err = c.row(n.Partition, n.ClientID)
	}
	return n, err
}

// row returns the row of a client, nil if there is none.
func (c *Candidates) row(partition int32, id []byte) ([]byte, error) {
	it := c.rows[partition]
	if it == nil {
		var err error
		if it, err = c.view.iter(kindBounds(partition, kindClient, c.cluster)); err != nil {
			return nil, err
		}
		c.rows[partition] = it
	}
	c.key = append(append(appendClient(c.key[:0], kindClient, partition, []byte(c.cluster)), '/'), id...)
	if !it.SeekGE(c.key) || !bytes.Equal(it.Key(), c.key) {
		return nil, it.Error()
	}
	return it.ValueAndErr()
}

// Close ends the reading.
func (c *Candidates) Close() error {
	err := c.streams.close()
	for _, it := range c.rows {
		err = errors.Join(err, closeIter(it))
	}
	return err
}

// stream is a range of keys in a partition, read some at a time, so that one iterator serves all streams of its kind.
type stream struct {
	it           *pebble.Iterator
	partition    int32
	lower, upper []byte // what is left to be read
	header       int    // length of what comes before the place in the order
	since        bool
	values       bool // values are read too

	keys []keyValue
	mem  []byte
	size int // keys to be read at the next time
}

// keyValue are the places of a key and its value in a stream's memory.
type keyValue struct{ begin, mid, end int }

// Keys that a stream reads at a time: few at first, as a page over many streams needs few of each, and fewer of very long ones.
const (
	firstKeys = 8
	mostKeys  = 256
	mostBytes = 128 << 10
)

func (s *stream) head() []byte { return s.mem[s.keys[0].begin:s.keys[0].mid] }

// id is the place of the head in the order of the streams.
func (s *stream) id() []byte { return s.head()[s.header:] }

func (s *stream) value() []byte {
	if !s.values {
		return nil
	}
	return s.mem[s.keys[0].mid:s.keys[0].end]
}

// startAfter leaves out what comes up to a key.
func (s *stream) startAfter(key []byte) {
	if key = append(key, 0); bytes.Compare(key, s.lower) > 0 {
		s.lower = key
	}
}

// read makes the next key the head; there is none if keys is empty after it.
func (s *stream) read() error {
	if len(s.keys) > 1 {
		s.keys = s.keys[1:]
		return nil
	}
	s.keys, s.mem = s.keys[:0], s.mem[:0]
	if s.lower == nil || bytes.Compare(s.lower, s.upper) >= 0 {
		return nil
	}
	s.size = min(max(2*s.size, firstKeys), mostKeys)
	full := func() bool { return len(s.keys) == s.size || len(s.mem) >= mostBytes }
	for ok := s.it.SeekGE(s.lower); ok && !full() && bytes.Compare(s.it.Key(), s.upper) < 0; ok = s.it.Next() {
		k := keyValue{begin: len(s.mem)}
		s.mem = append(s.mem, s.it.Key()...)
		k.mid = len(s.mem)
		if s.values {
			value, err := s.it.ValueAndErr()
			if err != nil {
				return fmt.Errorf("scan the store: %w", err)
			}
			s.mem = append(s.mem, value...)
		}
		k.end = len(s.mem)
		s.keys = append(s.keys, k)
	}
	if err := s.it.Error(); err != nil {
		return fmt.Errorf("scan the store: %w", err)
	}
	if !full() {
		s.lower = nil
		return nil
	}
	last := s.keys[len(s.keys)-1]
	s.lower = append(append(s.lower[:0], s.mem[last.begin:last.mid]...), 0)
	return nil
}

// streams merges streams: heap holds those that have a head, the one with the first in front.
type streams struct {
	all   []*stream
	heap  streamHeap
	iters map[iterOf]*pebble.Iterator
	err   error
}

// iterOf says what an iterator can be shared by.
type iterOf struct {
	partition int32
	kind      byte
}

func (h *streams) add(v *View, s *stream) {
	of := iterOf{s.partition, s.lower[0]}
	if h.iters == nil {
		h.iters = map[iterOf]*pebble.Iterator{}
	}
	if h.iters[of] == nil {
		it, err := v.iter(kindBounds(of.partition, of.kind, ""))
		if err != nil {
			h.err = cmp.Or(h.err, err)
			return
		}
		h.iters[of] = it
	}
	s.it = h.iters[of]
	h.all = append(h.all, s)
}

// start reads the heads.
func (h *streams) start() error {
	for _, s := range h.all {
		if err := s.read(); err != nil {
			return err
		}
		if len(s.keys) > 0 {
			h.heap = append(h.heap, s)
		}
	}
	heap.Init(&h.heap)
	return h.err
}

// next goes on behind the first head.
func (h *streams) next() error {
	s := h.heap[0]
	if err := s.read(); err != nil {
		return err
	}
	if len(s.keys) == 0 {
		heap.Pop(&h.heap)
		return nil
	}
	heap.Fix(&h.heap, 0)
	return nil
}

func (h *streams) close() error {
	var err error
	for _, it := range h.iters {
		err = errors.Join(err, closeIter(it))
	}
	return err
}

// streamHeap implements heap.Interface.
type streamHeap []*stream

func (h streamHeap) Len() int           { return len(h) }
func (h streamHeap) Less(i, j int) bool { return bytes.Compare(h[i].id(), h[j].id()) < 0 }
func (h streamHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *streamHeap) Push(x any)        { *h = append(*h, x.(*stream)) }

// Pop implements heap.Interface.
func (h *streamHeap) Pop() any {
	old := *h
	s := old[len(old)-1]
	*h = old[:len(old)-1]
	return s
}
