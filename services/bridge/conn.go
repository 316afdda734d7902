package bridge

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	// writeTimeout bounds a write: a broker that does not take acknowledgements is as good as gone.
	writeTimeout = 5 * time.Second
	readBuffer   = 64 << 10
)

// dialer opens the network connection to one endpoint.
func dialer(tlsConfig *tls.Config, plain func(*url.URL) bool) func(ctx context.Context, u *url.URL) (net.Conn, error) {
	return func(ctx context.Context, u *url.URL) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		var d net.Dialer
		if plain(u) {
			return d.DialContext(ctx, "tcp", u.Host)
		}
		return (&tls.Dialer{NetDialer: &d, Config: tlsConfig}).DialContext(ctx, "tcp", u.Host)
	}
}

// brokerConn is the connection as the MQTT client sees it. The client reads single bytes and writes a packet in pieces: both are buffered, a
// packet ends where its lock is released.
type brokerConn struct {
	net.Conn
	reader     *bufio.Reader
	lastReadMS *atomic.Int64 // when the broker was last heard

	mu  sync.Mutex
	out bytes.Buffer
}

func newBrokerConn(c net.Conn, lastReadMS *atomic.Int64) *brokerConn {
	b := &brokerConn{Conn: c, lastReadMS: lastReadMS}
	b.reader = bufio.NewReaderSize(readerFunc(b.fill), readBuffer)
	return b
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func (b *brokerConn) fill(p []byte) (int, error) {
	n, err := b.Conn.Read(p)
	if n > 0 {
		b.lastReadMS.Store(time.Now().UnixMilli())
	}
	return n, err
}

// Read reads through the buffer.
func (b *brokerConn) Read(p []byte) (int, error) { return b.reader.Read(p) }

// Lock begins a packet.
func (b *brokerConn) Lock() { b.mu.Lock() }

// Write adds to the packet; Lock must be held.
func (b *brokerConn) Write(p []byte) (int, error) { return b.out.Write(p) }

// Unlock sends the packet. If that fails the connection is closed, which its reader reports.
func (b *brokerConn) Unlock() {
	defer b.mu.Unlock()
	err := b.Conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if err == nil {
		_, err = b.Conn.Write(b.out.Bytes())
	}
	b.out.Reset()
	if err != nil {
		// The reader's error ends the session; this one says no more.
		_ = b.Conn.Close()
	}
}

// describe names an endpoint without user and password.
func describe(u *url.URL) string { return fmt.Sprintf("%s://%s", u.Scheme, u.Host) }
