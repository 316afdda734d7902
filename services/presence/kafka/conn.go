package kafka

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kbin"
	"github.com/twmb/franz-go/pkg/kmsg"
)

const (
	// maxUnsent is how many responses of a connection may wait: beyond that its next request is not taken.
	maxUnsent = 16
	// maxAsked is more requests than the broker takes of a connection at a time: the older ones wanted no response.
	maxAsked = 16
	// headBytes is how much of a request is looked at; a fetch whose client has a longer name waits for more than it needs.
	headBytes = 512
	// readUncommitted is the isolation level of a fetch that sees records before their transaction has ended.
	readUncommitted = 0
)

// durable is a connection whose responses are sent once what they tell of is on disk, in the order in which they were written. The broker, which
// would not take the next request of a connection while it writes a response, need not wait for that, except for a look at the folder of partitions, and
// where maxUnsent wait.
type durable struct {
	net.Conn
	syncer *syncer
	topics *topics
	heads  heads // used by Read alone

	mu    sync.Mutex
	asked []request // and not answered, in order

	responses chan response
	unsent    atomic.Int64
	start     sync.Once // of send
	end       sync.Once
	ended     chan struct{}
}

// response is one that waits.
type response struct {
	frame []byte
	waits waits
}

func newDurable(c net.Conn, s *syncer, t *topics) *durable {
	return &durable{Conn: c, syncer: s, topics: t, responses: make(chan response, maxUnsent), ended: make(chan struct{})}
}

// Read reads, and notes the requests.
func (d *durable) Read(b []byte) (int, error) {
	n, err := d.Conn.Read(b)
	d.heads.read(b[:n], func(head []byte) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if len(d.asked) == maxAsked {
			d.asked = append(d.asked[:0], d.asked[1:]...)
		}
		d.asked = append(d.asked, parseRequest(head))
	})
	return n, err
}

// Write takes one response. Only one goroutine may call it at a time. That it was not sent is said by a later call.
func (d *durable) Write(b []byte) (int, error) {
	w := d.waits(b)
	if len(w) == 0 && d.unsent.Load() == 0 {
		if err := d.syncer.failure(); err != nil {
			return 0, err
		}
		return d.Conn.Write(b)
	}
	d.start.Do(func() { go d.send() })
	d.unsent.Add(1)
	select {
	case d.responses <- response{append([]byte(nil), b...), w}:
		return len(b), nil
	case <-d.ended:
		return 0, net.ErrClosed
	}
}

// send sends responses until the connection is closed.
func (d *durable) send() {
	for {
		select {
		case r := <-d.responses:
			err := d.syncer.await(r.waits)
			if err == nil {
				_, err = d.Conn.Write(r.frame)
			}
			if err != nil {
				_ = d.Close() // whoever writes next is told that it is closed
				return
			}
			d.unsent.Add(-1)
		case <-d.ended:
			return
		}
	}
}

// Close closes the connection. Responses that still wait are not sent.
func (d *durable) Close() error {
	d.end.Do(func() { close(d.ended) })
	return d.Conn.Close()
}

// waits begins to sync what a response tells of.
func (d *durable) waits(frame []byte) waits {
	if r := d.answered(frame); r.narrow {
		if names, ok := d.topics.partitions(r, frame); ok {
			if w, ok := d.syncer.partitions(names); ok {
				return w
			}
		}
	}
	return d.syncer.all()
}

// answered returns the request that a response belongs to.
func (d *durable) answered(frame []byte) request {
	if len(frame) < 8 {
		return request{}
	}
	correlation := int32(binary.BigEndian.Uint32(frame[4:]))
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, r := range d.asked {
		if r.correlation == correlation {
			// Those before it have no response.
			d.asked = append(d.asked[:0], d.asked[i+1:]...)
			return r
		}
	}
	return request{}
}

// request is what is known of one.
type request struct {
	key, version int16
	correlation  int32
	narrow       bool // its response tells of nothing but the partitions that it names
}

// parseRequest reads the beginning of a request. What ends a transaction is in several files, of which those who see committed records alone must see
// all or none after a loss of power, so their responses are not narrow.
func parseRequest(head []byte) request {
	b := kbin.Reader{Src: head}
	r := request{key: b.Int16(), version: b.Int16(), correlation: b.Int32()}
	switch kmsg.Key(r.key) {
	case kmsg.Produce:
		r.narrow = b.Ok()
	case kmsg.Fetch:
		b.NullableString()
		if r.response().IsFlexible() {
			kmsg.SkipTags(&b)
		}
		fields := 4 // replica, wait, least and most bytes
		if r.version >= 15 {
			fields--
		}
		b.Span(4 * fields)
		r.narrow = b.Int8() == readUncommitted && b.Ok()
	}
	return r
}

func (r request) response() kmsg.Response {
	response := kmsg.ResponseForKey(r.key)
	response.SetVersion(r.version)
	return response
}

// heads finds the beginning of each request in what is read.
type heads struct {
	size [4]byte
	have int // bytes of size
	rest int // bytes of the request that are still to come
	head []byte
	want int // bytes of head
}

// read takes bytes, and calls found with the head of each request that is complete with them.
func (h *heads) read(b []byte, found func(head []byte)) {
	for len(b) > 0 {
		if h.have < len(h.size) {
			n := copy(h.size[h.have:], b)
			h.have += n
			if b = b[n:]; h.have < len(h.size) {
				return
			}
			h.rest = int(binary.BigEndian.Uint32(h.size[:]))
			h.want, h.head = min(h.rest, headBytes), h.head[:0]
		}
		if missing := h.want - len(h.head); missing > 0 {
			n := min(missing, len(b))
			if h.head = append(h.head, b[:n]...); n == missing {
				found(h.head)
			}
		}
		n := min(h.rest, len(b))
		b = b[n:]
		if h.rest -= n; h.rest == 0 {
			h.have = 0
		}
	}
}

// topics knows the names of topics, which the broker keeps in a file.
type topics struct {
	path string

	mu    sync.Mutex
	names map[[16]byte]string
}

func newTopics(dir string) *topics { return &topics{path: filepath.Join(dir, "topics.json")} }

// partitions returns the names of the folders of the partitions that a response names; false if that cannot be told.
func (t *topics) partitions(r request, frame []byte) (names []string, ok bool) {
	response := r.response()
	body := frame[8:]
	if response.IsFlexible() && len(body) > 0 {
		body = body[1:] // tags of the header, of which the broker writes none
	}
	if err := response.ReadFrom(body); err != nil {
		return nil, false
	}
	add := func(topic string, id [16]byte, partition int32) bool {
		if topic == "" {
			if topic, ok = t.name(id); !ok {
				return false
			}
		}
		names = append(names, fmt.Sprintf("%s-%d", url.PathEscape(topic), partition))
		return true
	}
	switch response := response.(type) {
	case *kmsg.ProduceResponse:
		for _, topic := range response.Topics {
			for _, p := range topic.Partitions {
				if !add(topic.Topic, topic.TopicID, p.Partition) {
					return nil, false
				}
			}
		}
	case *kmsg.FetchResponse:
		for _, topic := range response.Topics {
			for _, p := range topic.Partitions {
				if !add(topic.Topic, topic.TopicID, p.Partition) {
					return nil, false
				}
			}
		}
	default:
		return nil, false
	}
	return names, true
}

// name returns the name of a topic; false if it is not known.
func (t *topics) name(id [16]byte) (string, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	name, ok := t.names[id]
	if !ok {
		if names, err := t.read(); err == nil {
			// An error makes those wait longer who ask for a topic that is not known.
			t.names = names
		}
		name, ok = t.names[id]
	}
	return name, ok
}

func (t *topics) read() (map[[16]byte]string, error) {
	b, err := os.ReadFile(t.path)
	if err != nil {
		return nil, err
	}
	var file struct {
		Topics []struct {
			Name string `json:"name"`
			ID   []byte `json:"id"`
		} `json:"topics"`
	}
	if err := json.Unmarshal(b, &file); err != nil {
		return nil, fmt.Errorf("read %s: %w", t.path, err)
	}
	names := make(map[[16]byte]string, len(file.Topics))
	for _, topic := range file.Topics {
		if len(topic.ID) == 16 {
			names[[16]byte(topic.ID)] = topic.Name
		}
	}
	return names, nil
}
