package query

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
)

// net/http answers a request that it cannot parse itself, as text: of the requests that callers make by mistake, one with a path that is
// not percent-encoded. These are its words.
const malformedText = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"

const malformedBody = `{"code":3,"message":"the request is malformed; client_id in a path must be percent-encoded: a % is written %25","details":` +
	`[{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[{"field":"client_id","description":"must be percent-encoded","reason":"","localized_message":null}]}]}`

// maxHeaderLines bounds the fields of a request's header. net/http bounds their bytes only, and keeps a field of five bytes in a hundred.
const maxHeaderLines = 1_000

const headerTooLarge = "HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: 75\r\n\r\n" +
	`{"code":3,"message":"the request has more than 1,000 headers","details":[]}`

// jsonListener makes that answer one of ours: JSON, with the field named; and it refuses headers of too many lines. So does tlsListener for HTTP/1;
// HTTP/2 counts each field as 32 bytes more than it has.
type jsonListener struct{ net.Listener }

// Accept returns the next connection.
func (l jsonListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &jsonConn{Conn: c}, nil
}

type jsonConn struct {
	net.Conn

	tls    *tls.ConnectionState // nil: none
	header headerLines
}

// Read returns what the caller sends, and the end where a header has too many lines.
func (c *jsonConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.header.read(b[:n]) {
		return n, err
	}
	// The caller may have gone.
	_, _ = c.Conn.Write([]byte(headerTooLarge))
	return 0, io.EOF
}

// idle has the next request's header counted. It is the server's ConnState.
func idle(c net.Conn, state http.ConnState) {
	if c, ok := c.(*jsonConn); ok && state == http.StateIdle {
		c.header.ended.Store(false)
	}
}

// headerLines counts the lines of a header. What has been read of the next request by the time that one is answered is not counted.
type headerLines struct {
	ended atomic.Bool // the blank line was read: what follows is the body
	lines int
	text  bool // the line that is being read is not blank
}

// read reports whether the header may go on after b.
func (h *headerLines) read(b []byte) bool {
	for !h.ended.Load() {
		end := bytes.IndexByte(b, '\n')
		line := b
		if end >= 0 {
			line = b[:end]
		}
		h.text = h.text || len(bytes.Trim(line, "\r")) > 0
		if end < 0 {
			return true
		}
		b = b[end+1:]
		switch {
		case h.text:
			h.lines++
		case h.lines > 0:
			h.lines = 0
			h.ended.Store(true)
		}
		if h.text = false; h.lines > maxHeaderLines {
			return false
		}
	}
	return true
}

// Write sends b, or what stands in its place.
func (c *jsonConn) Write(b []byte) (int, error) {
	if len(b) != len(malformedText) || !bytes.Equal(b, []byte(malformedText)) {
		return c.Conn.Write(b)
	}
	if _, err := fmt.Fprintf(c.Conn, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s",
		len(malformedBody), malformedBody); err != nil {
		return 0, err
	}
	return len(b), nil
}

// CloseWrite ends the writing side, so that the caller can read an answer before the connection is gone.
func (c *jsonConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
