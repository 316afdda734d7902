package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	refreshInterval = time.Second
	// startInterval is in force until every partition has had an owner.
	startInterval  = 250 * time.Millisecond
	refreshTimeout = 5 * time.Second
	// minRefresh keeps failing requests from asking Kafka without pause.
	minRefresh = 100 * time.Millisecond
	// maxAnswer bounds the answer of a materializer, in bytes: a page of 1,000 clients with the longest IDs and usernames is no larger.
	maxAnswer = 256 << 20
)

// Router is the StateReader over the network. It finds the owner of each partition by asking Kafka for the members of the
// materializers' consumer groups: a member's instance ID is the address of its StateService.
type Router struct {
	presencev1.UnimplementedStateServiceServer

	cfg     Config
	log     *slog.Logger
	kafka   *kgo.Client
	admin   *kadm.Client
	tls     *service.TLSReloader // nil: none
	creds   credentials.TransportCredentials
	metrics routerMetrics

	trigger chan struct{} // asks the refresh loop for an early refresh

	mu        sync.Mutex
	current   *routing
	refreshed chan struct{} // closed by the next refresh, whatever its outcome
	lastErr   error
	complete  bool // every partition had an owner once
	conns     map[string]*connection

	standings standings
}

// connection to one materializer.
type connection struct {
	conn    *grpc.ClientConn
	client  presencev1.StateServiceClient
	retired time.Time // when the routing ceased to name it; zero while it does
}

type routerMetrics struct {
	refreshes *prometheus.CounterVec
	calls     *prometheus.CounterVec
	hedges    *prometheus.CounterVec
	unowned   prometheus.Gauge
	age       prometheus.GaugeFunc
}

// NewRouter checks the configuration and connects to nothing yet.
func NewRouter(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Router, error) {
	log = log.With(service.KeyComponent, "router")
	opts, err := cfg.Opts(log)
	if err != nil {
		return nil, err
	}
	stateTLS, err := cfg.StateTLS.Reloader("state", log, reg)
	if err != nil {
		return nil, fmt.Errorf("state-tls: %w", err)
	}
	r := &Router{
		cfg: cfg, log: log, tls: stateTLS, creds: newStateCredentials(stateTLS),
		trigger:   make(chan struct{}, 1),
		refreshed: make(chan struct{}),
		conns:     make(map[string]*connection),
	}
	r.metrics = routerMetrics{
		refreshes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_routing_refreshes_total",
			Help: "Questions to Kafka who owns which partition, by outcome.",
		}, []string{"outcome"}),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_owner_calls_total",
			Help: "Calls to materializers, by gRPC code.",
		}, []string{"code"}),
		hedges: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_hedged_calls_total",
			Help: "Calls to materializers that took so long that another replica was asked as well, by who answered first: own, other or none.",
		}, []string{"first"}),
		unowned: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_query_unowned_partitions",
			Help: "Partitions that no replica owns.",
		}),
		age: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "presence_query_routing_age_seconds",
			Help: "Time since Kafka last confirmed the routing; 0 before the first time.",
		}, func() float64 {
			if at := r.RoutedAt(); !at.IsZero() {
				return time.Since(at).Seconds()
			}
			return 0
		}),
	}
	for _, first := range []string{"own", "other", "none"} {
		r.metrics.hedges.WithLabelValues(first)
	}
	if err := register(reg, r.metrics.refreshes, r.metrics.calls, r.metrics.hedges, r.metrics.unowned, r.metrics.age); err != nil {
		return nil, err
	}
	if r.kafka, err = kgo.NewClient(opts...); err != nil {
		return nil, fmt.Errorf("create the kafka client: %w", err)
	}
	r.admin = kadm.NewClient(r.kafka)
	return r, nil
}

// Run keeps the routing fresh until ctx ends, then closes all connections and returns nil. A Router runs once.
func (r *Router) Run(ctx context.Context) error {
	var beside sync.WaitGroup
	defer beside.Wait()
	beside.Go(func() { r.tls.Run(ctx) })
	beside.Go(func() { r.probing(ctx) })
	for ctx.Err() == nil {
		r.refresh(ctx)
		pause := time.NewTimer(minRefresh)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		interval := refreshInterval
		if r.Ready(ctx) != nil {
			interval = startInterval
		}
		next := time.NewTimer(interval - minRefresh)
		select {
		case <-ctx.Done():
		case <-next.C:
		case <-r.trigger:
		}
		pause.Stop()
		next.Stop()
	}
	r.kafka.Close()
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, c := range r.conns {
		errs = append(errs, c.conn.Close())
	}
	clear(r.conns)
	return errors.Join(errs...)
}

// WatchTopics returns nil when ctx ends, and an error once a topic is not any more what it was, see [eventlog.Watch]: watches read the former one.
func (r *Router) WatchTopics(ctx context.Context) error { return eventlog.Watch(ctx, r.kafka) }

// refresh asks Kafka once and makes the answer the current routing.
func (r *Router) refresh(ctx context.Context) {
	within, cancel := context.WithTimeout(ctx, refreshTimeout)
	defer cancel()
	r.mu.Lock()
	old := r.current
	r.mu.Unlock()
	next, err := discover(within, r.admin, r.cfg.Replicas, old)
	if ctx.Err() != nil {
		return
	}
	outcome := "ok"
	if err != nil {
		outcome = "error"
	}
	r.metrics.refreshes.WithLabelValues(outcome).Inc()

	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && (r.lastErr == nil || r.lastErr.Error() != err.Error()) {
		r.log.Warn("routing not refreshed; the last one stays in use", service.KeyError, err)
	}
	r.lastErr = err
	if next != nil {
		unowned := next.unowned()
		r.metrics.unowned.Set(float64(unowned))
		r.complete = r.complete || unowned == 0
		r.current = next
		r.retire(next.addrs())
	}
	close(r.refreshed)
	r.refreshed = make(chan struct{})
}

// retire closes connections that the routing has not named for longer than a request can take.
func (r *Router) retire(named map[string]bool) {
	now := time.Now()
	for addr, c := range r.conns {
		switch {
		case named[addr]:
			c.retired = time.Time{}
		case c.retired.IsZero():
			c.retired = now
		case now.Sub(c.retired) > 2*r.cfg.RequestTimeout:
			delete(r.conns, addr)
			if err := c.conn.Close(); err != nil {
				r.log.Warn("connection to a former owner not closed", service.KeyAddr, addr, service.KeyError, err)
			}
		}
	}
}

// RoutedAt is when Kafka last confirmed the owners; zero before the first time.
func (r *Router) RoutedAt() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == nil {
		return time.Time{}
	}
	return r.current.confirmed
}

// Ready returns nil once every partition has had an owner; from then on it does not take back what single partitions lack, which
// answers say.
func (r *Router) Ready(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.complete:
		return nil
	case r.current == nil && r.lastErr != nil:
		return fmt.Errorf("no routing yet: %w", r.lastErr)
	case r.current == nil:
		return errors.New("no routing yet: kafka was not asked")
	}
	return fmt.Errorf("%d of %d partitions have no owner yet; is a materializer running for replica %v?",
		r.current.unowned(), r.current.partitions, r.cfg.Replicas)
}

// soon has Kafka asked without delay.
func (r *Router) soon() {
	select {
	case r.trigger <- struct{}{}:
	default:
	}
}

// routing returns the current routing, nil if there is none, and a channel that the next refresh closes.
func (r *Router) routing() (*routing, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.current, r.refreshed
}

func (r *Router) connect(addr string) (presencev1.StateServiceClient, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.conns[addr]; c != nil {
		return c.client, nil
	}
	// The address is one that the materializer advertised, not a name for a resolver of ours to look for services behind.
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(r.creds),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxAnswer)),
		grpc.WithConnectParams(grpc.ConnectParams{
			// A restarted materializer is to be found again at once.
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 2 * time.Second,
		}),
		// A materializer that hangs, or whose machine is gone, closes no connection. gRPC pings no more often than every 10 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}))
	if err != nil {
		return nil, fmt.Errorf("connect to the materializer at %s: %w", addr, err)
	}
	c := &connection{conn: conn, client: presencev1.NewStateServiceClient(conn)}
	r.conns[addr] = c
	return c.client, nil
}
