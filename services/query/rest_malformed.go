package query

import (
	"bytes"
	"fmt"
	"net"
)

// net/http answers a request that it cannot parse itself, as text: of the requests that callers make by mistake, one with a path that is
// not percent-encoded. These are its words.
const malformedText = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n400 Bad Request"

const malformedBody = `{"code":3,"message":"the request is malformed; client_id in a path must be percent-encoded: a % is written %25","details":` +
	`[{"@type":"type.googleapis.com/google.rpc.BadRequest","field_violations":[{"field":"client_id","description":"must be percent-encoded","reason":"","localized_message":null}]}]}`

// jsonListener makes that answer one of ours: JSON, with the field named. Under TLS the words cannot be seen, and stay as they are.
type jsonListener struct{ net.Listener }

// Accept returns the next connection.
func (l jsonListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &jsonConn{c}, nil
}

type jsonConn struct{ net.Conn }

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
