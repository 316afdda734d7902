package query

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/mqtt-presence/presence/libs/service"
)

// plainText answers a caller that speaks HTTP where TLS is spoken.
const plainText = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nThis address speaks TLS: ask it with https.\n"

// tlsListener shakes hands before net/http has a connection, so that it sees those of HTTP/1 as jsonConns, as it does without TLS. It would look
// for a *tls.Conn and read that itself.
type tlsListener struct {
	net.Listener

	config *tls.Config
	log    *slog.Logger
	ready  chan net.Conn
	failed chan error
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

func newTLSListener(l net.Listener, config *tls.Config, log *slog.Logger) *tlsListener {
	ctx, cancel := context.WithCancel(context.Background())
	t := &tlsListener{Listener: l, config: config, log: log, ready: make(chan net.Conn), failed: make(chan error), ctx: ctx, cancel: cancel}
	t.tasks.Go(t.accept)
	return t
}

// accept has hands shaken with every caller, each beside the others, until the listener is closed.
func (t *tlsListener) accept() {
	for {
		c, err := t.Listener.Accept()
		if err != nil {
			select {
			case t.failed <- err: // who accepts decides whether to go on
				continue
			case <-t.ctx.Done():
				return
			}
		}
		t.tasks.Go(func() { t.shake(c) })
	}
}

func (t *tlsListener) shake(plain net.Conn) {
	ctx, cancel := context.WithTimeout(t.ctx, handshakeTimeout)
	defer cancel()
	secure := tls.Server(plain, t.config)
	if err := secure.HandshakeContext(ctx); err != nil {
		var other tls.RecordHeaderError
		if errors.As(err, &other) && other.Conn != nil {
			// The caller may have gone.
			_, _ = io.WriteString(other.Conn, plainText)
		}
		// A caller's broken handshake is no event of ours.
		t.log.Debug("no TLS connection", service.KeyError, errors.Join(err, plain.Close()))
		return
	}
	var c net.Conn = secure
	if state := secure.ConnectionState(); state.NegotiatedProtocol != "h2" {
		c = &jsonConn{Conn: secure, tls: &state}
	}
	select {
	case t.ready <- c:
	case <-t.ctx.Done():
		if err := c.Close(); err != nil {
			t.log.Debug("connection not closed in order", service.KeyError, err)
		}
	}
}

// Accept returns the next connection whose handshake is done.
func (t *tlsListener) Accept() (net.Conn, error) {
	select {
	case c := <-t.ready:
		return c, nil
	case err := <-t.failed:
		return nil, err
	case <-t.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close ends the handshakes under way, too.
func (t *tlsListener) Close() error {
	t.cancel()
	err := t.Listener.Close()
	t.tasks.Wait()
	return err
}

type tlsStateKey struct{}

// connContext remembers the TLS state of a connection of HTTP/1, which net/http does not see. It is the server's ConnContext.
func connContext(ctx context.Context, c net.Conn) context.Context {
	if c, ok := c.(*jsonConn); ok && c.tls != nil {
		return context.WithValue(ctx, tlsStateKey{}, c.tls)
	}
	return ctx
}

// withTLS tells the request the TLS state of its connection.
func withTLS(r *http.Request) {
	if r.TLS == nil {
		r.TLS, _ = r.Context().Value(tlsStateKey{}).(*tls.ConnectionState)
	}
}
