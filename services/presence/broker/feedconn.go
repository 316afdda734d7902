package broker

import (
	"net"
	"sync"
	"time"
)

// feedConn is the broker's end of the bridge's in-process connection. What the bridge writes is read ahead: mochi reads nothing while it sends the
// unacknowledged messages of a resumed session, and the bridge may read on only after it has written an acknowledgement.
type feedConn struct {
	net.Conn
	// gate says that the connection holds feed.gate; subscribeID is the packet identifier of the latest SUBSCRIBE. Both belong to the
	// goroutine that serves it.
	gate        bool
	subscribeID uint16
	window      int // messages that may be unacknowledged; set before the session begins

	mu   sync.Mutex
	more sync.Cond
	buf  []byte // a few bytes for each message of the window
	err  error
}

func newFeedConn(c net.Conn) *feedConn {
	fc := &feedConn{Conn: c, window: feedWindow}
	fc.more.L = &fc.mu
	return fc
}

// readAhead reads until the connection is closed.
func (c *feedConn) readAhead() {
	chunk := make([]byte, 4096)
	for {
		n, err := c.Conn.Read(chunk)
		c.mu.Lock()
		c.buf = append(c.buf, chunk[:n]...)
		c.err = err
		c.mu.Unlock()
		c.more.Signal()
		if err != nil {
			return
		}
	}
}

// Read returns what was read ahead.
func (c *feedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.buf) == 0 && c.err == nil {
		c.more.Wait()
	}
	n := copy(p, c.buf)
	c.buf = c.buf[n:]
	if n == 0 {
		return 0, c.err
	}
	return n, nil
}

// SetDeadline does nothing: both ends live and die together.
func (*feedConn) SetDeadline(time.Time) error { return nil }
