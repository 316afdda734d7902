package materializer

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"

	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// handshakeTimeout is how long a caller may take to begin.
const handshakeTimeout = 10 * time.Second

// serverGrace is how long answers in progress may take at the end.
const serverGrace = time.Second

// Listen binds the StateService's address, so that a busy port is an error before anything else has started. Run calls it if the caller
// did not. It does nothing if Config.NoServer is set.
func (m *Materializer) Listen() error {
	if m.cfg.NoServer {
		return nil
	}
	m.listenMu.Lock()
	defer m.listenMu.Unlock()
	if m.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", m.cfg.StateAddr)
	if err != nil {
		return fmt.Errorf("listen on the state address %q; free it or set another with --state-addr: %w", m.cfg.StateAddr, err)
	}
	m.listener = l
	return nil
}

// StateAddr is the address that Listen bound, nil before, and without a server.
func (m *Materializer) StateAddr() net.Addr {
	m.listenMu.Lock()
	defer m.listenMu.Unlock()
	if m.listener == nil {
		return nil
	}
	return m.listener.Addr()
}

// maxRequestBytes is beyond the largest batch that query takes, of which one materializer may own all.
const maxRequestBytes = 16 << 20

// serveGRPC serves StateService, health and reflection until ctx ends.
func (m *Materializer) serveGRPC(ctx context.Context) error {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequestBytes), grpc.ConnectionTimeout(handshakeTimeout),
		// Query pings an owner that has not answered for 10 s, to find out whether it hangs.
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
	}
	if m.tls != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(m.tls.Server("h2"))))
	}
	server := grpc.NewServer(opts...)
	presencev1.RegisterStateServiceServer(server, m)
	checks := health.NewServer()
	checks.SetServingStatus(presencev1.StateService_ServiceDesc.ServiceName, healthv1.HealthCheckResponse_SERVING)
	healthv1.RegisterHealthServer(server, checks)
	reflection.Register(server)
	m.log.Info("serving", service.KeyAddr, m.StateAddr().String())
	served := make(chan error, 1)
	go func() { served <- server.Serve(m.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on the state address %s: %w", m.StateAddr(), err)
	case <-ctx.Done():
	}
	checks.Shutdown()
	stop := time.AfterFunc(serverGrace, server.Stop)
	server.GracefulStop()
	stop.Stop()
	<-served
	return nil
}
