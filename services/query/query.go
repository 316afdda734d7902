package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	handshakeTimeout = 10 * time.Second
	headerTimeout    = 10 * time.Second
	readTimeout      = 30 * time.Second
	idleTimeout      = 5 * time.Minute
	// maxHeader bounds the request line and headers, in bytes.
	maxHeader = maxURL + 64<<10
	// stopTimeout is how long requests that have begun may take when the service stops.
	stopTimeout = 2 * time.Second
	// healthPoll is how often gRPC health follows readiness.
	healthPoll = time.Second
)

// Service answers over REST and gRPC.
type Service struct {
	cfg     Config
	reader  StateReader
	log     *slog.Logger
	gate    *gate
	answers *answers
	http    *http.Server
	grpc    *grpc.Server
	health  *health.Server

	tls         *service.TLSReloader // nil: none
	connections *service.Connections

	mu       sync.Mutex
	httpAddr net.Listener
	grpcAddr net.Listener
}

// New checks the configuration and reads the accounts file. It starts nothing. Reader is asked from many goroutines.
func New(cfg Config, reader StateReader, log *slog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	parent := log
	log = log.With(service.KeyComponent, "query")
	m, err := newMetrics(reg)
	if err != nil {
		return nil, err
	}
	g, err := newGate(cfg, log, parent, m, reg)
	if err != nil {
		return nil, err
	}
	if warning := cfg.insecure(); warning != "" {
		log.Warn("listening beyond loopback: " + warning)
	}
	a, err := newAnswers(cfg, reader, log)
	if err != nil {
		return nil, err
	}
	if a.watches, err = newWatches(cfg, a, log, reg); err != nil {
		return nil, err
	}
	handler, err := newREST(a, g, m)
	if err != nil {
		return nil, err
	}
	secure, err := cfg.TLS.Reloader("query", log, reg)
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	connections, err := service.NewConnections(cfg.MaxConnections, cfg.connectionsPerAddress(), reg)
	if err != nil {
		return nil, err
	}
	s := &Service{tls: secure, connections: connections, cfg: cfg, reader: reader, log: log, gate: g, answers: a}
	s.grpc, s.health = newGRPC(a, g, m, secure.Server("h2"), readTimeout+cfg.RequestTimeout)
	s.http = &http.Server{
		Handler:           handler,
		TLSConfig:         secure.Server("h2", "http/1.1"),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      readTimeout + cfg.RequestTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ConnState:         idle,
		ConnContext:       connContext,
		// A caller's broken handshake is no event of ours.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Listen binds both addresses, so that a busy port is an error before anything else has started. Run calls it if the caller did not.
func (s *Service) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.httpAddr != nil {
		return nil
	}
	h, err := net.Listen("tcp", s.cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("listen for REST on %q; free it or set another with --http-addr: %w", s.cfg.HTTPAddr, err)
	}
	g, err := net.Listen("tcp", s.cfg.GRPCAddr)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for gRPC on %q; free it or set another with --grpc-addr: %w", s.cfg.GRPCAddr, err), h.Close())
	}
	s.httpAddr, s.grpcAddr = s.connections.Limit(h), s.connections.Limit(g)
	return nil
}

// HTTPAddr is the address of the REST calls that Listen bound, nil before.
func (s *Service) HTTPAddr() net.Addr { return s.addr(func() net.Listener { return s.httpAddr }) }

// GRPCAddr is the address of the gRPC calls that Listen bound, nil before.
func (s *Service) GRPCAddr() net.Addr { return s.addr(func() net.Listener { return s.grpcAddr }) }

func (s *Service) addr(listener func() net.Listener) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := listener(); l != nil {
		return l.Addr()
	}
	return nil
}

// Ready returns nil once requests can be answered, else why they cannot.
func (s *Service) Ready(ctx context.Context) error {
	if s.HTTPAddr() == nil {
		return errors.New("the listeners are not open yet")
	}
	if r, ok := s.reader.(interface {
		Ready(ctx context.Context) error
	}); ok {
		return r.Ready(ctx)
	}
	return nil
}

// Run serves until ctx ends, lets requests that have begun finish for 2 seconds, and returns nil. A Service runs once.
func (s *Service) Run(ctx context.Context) error {
	if err := s.Listen(); err != nil {
		return err
	}
	s.log.Info("serving REST", service.KeyAddr, s.HTTPAddr().String())
	s.log.Info("serving gRPC", service.KeyAddr, s.GRPCAddr().String())
	if s.cfg.PageTokenKeyFile == "" {
		s.log.Info("page tokens are valid until this process ends, and at no other; --page-token-key-file makes them last")
	}
	work, stop := context.WithCancel(ctx)
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { s.gate.run(work) })
	background.Go(func() { s.tls.Run(work) })
	background.Go(func() { s.followReadiness(work) })
	background.Go(func() { s.answers.watches.run(work) })

	failed := make(chan error, 2)
	var serving sync.WaitGroup
	serving.Go(func() {
		var l net.Listener = jsonListener{s.httpAddr}
		if s.http.TLSConfig != nil {
			l = newTLSListener(s.httpAddr, s.http.TLSConfig, s.log)
		}
		if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			failed <- fmt.Errorf("serve REST: %w", err)
		}
	})
	serving.Go(func() {
		if err := s.grpc.Serve(s.grpcAddr); err != nil {
			failed <- fmt.Errorf("serve gRPC: %w", err)
		}
	})
	var first error
	select {
	case <-ctx.Done():
	case first = <-failed:
	}
	stop()
	err := errors.Join(first, s.stop(ctx))
	s.answers.forgetter.close()
	serving.Wait()
	background.Wait()
	return errors.Join(err, s.gate.audit.close())
}

// stop closes both servers, at once for what does not finish in time.
func (s *Service) stop(ctx context.Context) error {
	s.health.Shutdown()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	var stopping sync.WaitGroup
	stopping.Go(func() {
		defer context.AfterFunc(within, s.grpc.Stop)()
		s.grpc.GracefulStop()
	})
	err := s.http.Shutdown(within)
	if errors.Is(err, context.DeadlineExceeded) {
		err = s.http.Close()
	}
	stopping.Wait()
	if err != nil {
		return fmt.Errorf("close the REST listener: %w", err)
	}
	return nil
}

// followReadiness sets gRPC health to what Ready says, until ctx ends.
func (s *Service) followReadiness(ctx context.Context) {
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	for {
		state := healthv1.HealthCheckResponse_SERVING
		if err := s.Ready(ctx); err != nil {
			state = healthv1.HealthCheckResponse_NOT_SERVING
		}
		if ctx.Err() != nil {
			return
		}
		s.health.SetServingStatus("", state)
		s.health.SetServingStatus(presencev1.PresenceService_ServiceDesc.ServiceName, state)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
