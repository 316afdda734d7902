package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// webSocket carries a stream of MQTT packets in binary messages. Its Close is that of the network connection, without a word to the other side.
type webSocket struct {
	*websocket.Conn
	message io.Reader // nil between two messages
}

func dialWebSocket(ctx context.Context, url string) (net.Conn, error) {
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}}
	conn, answer, err := d.DialContext(ctx, url, nil)
	if err != nil {
		return nil, err
	}
	if got := conn.Subprotocol(); got != "mqtt" {
		return nil, errors.Join(fmt.Errorf("%s is answered with %s and the subprotocol %q, want mqtt", url, answer.Status, got), conn.Close())
	}
	return &webSocket{Conn: conn}, nil
}

// Read reads on, across messages.
func (w *webSocket) Read(p []byte) (int, error) {
	for {
		if w.message == nil {
			_, r, err := w.NextReader()
			if err != nil {
				return 0, err
			}
			w.message = r
		}
		n, err := w.message.Read(p)
		if errors.Is(err, io.EOF) {
			w.message, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write writes p as one message.
func (w *webSocket) Write(p []byte) (int, error) {
	if err := w.WriteMessage(websocket.BinaryMessage, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// SetDeadline sets both deadlines.
func (w *webSocket) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}
