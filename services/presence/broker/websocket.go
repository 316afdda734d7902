package broker

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqtt-presence/presence/libs/service"
)

// wsListener accepts MQTT over WebSocket (MQTT 5, 6), on every path.
type wsListener struct {
	net.Listener
	server   *http.Server
	upgrader websocket.Upgrader
	handle   func(*conn)
	log      *slog.Logger
}

// listenWS binds the address; each connection goes to handle once serve runs.
func listenWS(addr string, handle func(*conn), log *slog.Logger) (*wsListener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for mqtt over websocket on %s: %w", addr, err)
	}
	ws := &wsListener{
		Listener: l,
		handle:   handle,
		log:      log,
		upgrader: websocket.Upgrader{
			HandshakeTimeout: connectTimeout,
			Subprotocols:     []string{"mqtt", "mqttv3.1"},
			CheckOrigin:      sameHost,
		},
	}
	ws.server = &http.Server{
		Handler: http.HandlerFunc(ws.upgrade), ReadHeaderTimeout: connectTimeout, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return ws, nil
}

// sameHost keeps the pages of other sites out: a browser would let each of them connect to a broker on loopback. The port may differ.
func sameHost(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return true // no browser
	}
	from, err := url.Parse(origin)
	if err != nil {
		return false
	}
	to := url.URL{Host: r.Host}
	return strings.EqualFold(from.Hostname(), to.Hostname())
}

// serve accepts connections until the listener is closed.
func (l *wsListener) serve() error { return l.server.Serve(l.Listener) }

// Close ends the listener and the connections that are no WebSockets yet.
func (l *wsListener) Close() error {
	// The server knows the listener only if it has served it.
	return errors.Join(l.server.Close(), ignoreClosed(l.Listener.Close()))
}

func (l *wsListener) upgrade(w http.ResponseWriter, r *http.Request) {
	ws, err := l.upgrader.Upgrade(w, r, nil)
	if err != nil {
		l.log.Debug("websocket refused", service.KeyError, err)
		return
	}
	l.handle(newConn(&wsConn{Conn: ws}, "ws"))
}

// wsConn carries a stream of MQTT packets in binary messages, whose bounds mean nothing (MQTT 5, 6.0). Its errors are those of a TCP connection.
// One goroutine reads and one writes at a time, as mochi does.
type wsConn struct {
	*websocket.Conn
	message io.Reader // nil between two messages
}

// Read reads on, across messages.
func (c *wsConn) Read(p []byte) (int, error) {
	for {
		if c.message == nil {
			kind, r, err := c.NextReader()
			if err != nil {
				return 0, netError(err)
			}
			if kind != websocket.BinaryMessage {
				return 0, packets.ErrProtocolViolation // MQTT-6.0.0-1
			}
			c.message = r
		}
		n, err := c.message.Read(p)
		if errors.Is(err, io.EOF) {
			c.message, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, netError(err)
	}
}

// Write writes p as one message.
func (c *wsConn) Write(p []byte) (int, error) {
	if err := c.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, netError(err)
	}
	return len(p), nil
}

// SetDeadline sets both deadlines.
func (c *wsConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// netError returns the error that a TCP connection would have had. A client that closes the WebSocket without DISCONNECT has closed the connection.
func netError(err error) error {
	var closed *websocket.CloseError
	var timeout net.Error
	switch {
	case errors.As(err, &closed):
		return io.EOF
	case errors.As(err, &timeout) && timeout.Timeout():
		return os.ErrDeadlineExceeded
	}
	return err
}
