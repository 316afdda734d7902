package query

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mqtt-presence/presence/libs/service"
)

// stateCredentials are those of the connections to materializers. Each handshake uses the files as they are then.
type stateCredentials struct {
	credentials.TransportCredentials // of the files as they were first
	tls                              *service.TLSReloader
}

func newStateCredentials(t *service.TLSReloader) credentials.TransportCredentials {
	if t == nil {
		return insecure.NewCredentials()
	}
	return &stateCredentials{credentials.NewTLS(t.Current()), t}
}

// ClientHandshake uses the newest files.
func (c *stateCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.tls.Current()).ClientHandshake(ctx, authority, conn)
}

// Clone shares what follows the files.
func (c *stateCredentials) Clone() credentials.TransportCredentials {
	return &stateCredentials{c.TransportCredentials.Clone(), c.tls}
}
