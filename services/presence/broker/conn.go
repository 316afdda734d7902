package broker

import (
	"errors"
	"net"
	"os"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
)

const (
	// connectTimeout is how long a new connection may take to send CONNECT.
	connectTimeout = 10 * time.Second
	// writeTimeout is how long a client may leave bytes unread before it is cut off, so that a dead one cannot hold up whoever takes its
	// session over.
	writeTimeout = 10 * time.Second
)

// conn is a client's network connection together with what its events need. All fields but the embedded connection and the
// atomic ones belong to the goroutine that serves it; info, and sent once left is set, are also read by the one that holds the turn, which
// also writes late.
type conn struct {
	net.Conn
	listener string       // mochi's name of the listener
	client   *mqtt.Client // nil until the session is established
	entry    *entry       // nil until the session is established
	// turn says that this connection holds entry.turn.
	turn      bool
	info      clientInfo
	keepAlive uint16 // seconds, 0: off
	sent      byte   // reason code of the client's DISCONNECT
	late      string // why the connection was taken over, which it has to report itself; empty: nothing to report

	left    atomic.Bool // the client's DISCONNECT was read
	stalled atomic.Bool // the client took no bytes
}

// newConn wraps a connection that a listener accepted.
func newConn(c net.Conn, listener string) *conn {
	ip, _, err := net.SplitHostPort(c.RemoteAddr().String())
	if err != nil {
		ip = c.RemoteAddr().String()
	}
	port := 0
	if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
		port = a.Port
	}
	return &conn{Conn: c, listener: listener, info: clientInfo{IPAddress: ip, SockPort: port, Protocol: "mqtt"}}
}

// SetDeadline is called by mochi before each packet that it reads. The time that mochi computes overflows for a keep alive above
// 43,690 s and also bounds writes, so only the occasion is used (MQTT 5, 3.1.2.10: one and a half times the keep alive).
func (c *conn) SetDeadline(time.Time) error {
	var deadline time.Time
	if c.keepAlive > 0 {
		deadline = time.Now().Add(time.Duration(c.keepAlive) * time.Second * 3 / 2)
	}
	return c.SetReadDeadline(deadline)
}

// Write closes the connection if the client does not take the bytes in time: mochi would go on.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.stalled.Store(true)
		return n, errors.Join(err, c.Close())
	}
	return n, err
}
