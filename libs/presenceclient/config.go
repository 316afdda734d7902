package presenceclient

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
)

const (
	defaultTimeout   = 10 * time.Second
	defaultAttempts  = 4
	defaultKeepAlive = 20 * time.Second
	defaultUserAgent = "presenceclient"
	defaultMaxBatch  = 256
	defaultPatience  = 250 * time.Millisecond

	// keepAliveTimeout is how long the answer to a ping may take.
	keepAliveTimeout = 10 * time.Second
	// minKeepAlive is the least that the service, and gRPC itself, take.
	minKeepAlive = 10 * time.Second
	// maxAttempts is gRPC's own bound.
	maxAttempts = 5
	// maxAnswer bounds an answer, in bytes: a batch of 1,000 clients of which each ID and username is as long as MQTT allows.
	maxAnswer = 160 << 20
)

// Config says where the service is and how to ask it. Only Target is needed; a field that is zero has the default that it names.
type Config struct {
	// Target is the service's gRPC address, host:port, or any other target that gRPC resolves, such as dns:///presence:8081.
	Target string
	// Cluster is the MQTT broker cluster asked about. Empty: the service's default.
	Cluster string

	// TLS is used for the connection; with certificates in it the client authenticates by mTLS. Nil: no TLS.
	TLS *tls.Config
	// Credentials go with every call: a Basic, a Bearer, or gRPC's own. Nil: none.
	Credentials credentials.PerRPCCredentials
	// AllowPlaintext lets Credentials go out without TLS to an address that is not loopback.
	AllowPlaintext bool

	// Timeout is the deadline of a call whose context has none. Default 10 s, which leaves the service its own 5 s and one more attempt.
	Timeout time.Duration
	// MaxAttempts bounds how often a call is tried in all, 1 to 5; 1: once. Default 4.
	MaxAttempts int
	// KeepAlive is how long the connection may be silent before it is probed, at least 10 s. Default 20 s.
	KeepAlive time.Duration
	// UserAgent begins the user agent of each call. Default presenceclient.
	UserAgent string
	// Coalesce lets concurrent single lookups share calls. Off by default.
	Coalesce Coalesce

	// DialOptions are added to the client's own, for example for tracing or another dialler.
	DialOptions []grpc.DialOption
}

// Coalesce gathers concurrent Status and Get lookups into BatchGetClients calls, which need the permission read.
//
// A lookup goes out at once while no other is under way. Otherwise it joins those that wait, and they go out together when the last
// call under way has returned, when Window has passed since the first of them, or when they are MaxBatch, whichever comes first: one
// caller after the other loses nothing, and many at once cost a fraction of the calls. Calls go out beside each other: a slow one holds up none. A
// lookup whose call has not returned after Patience, or was refused as a batch, leaves it and asks alone.
//
// A lookup whose context carries gRPC metadata goes alone, since the metadata may be meant for it only. The freshness of a shared answer is the worst
// of the clients asked for together.
type Coalesce struct {
	// Window is the longest time that a lookup waits for others, at most 1 s; 1 ms is a good value. 0: no coalescing.
	Window time.Duration
	// MaxBatch bounds the lookups of one call, 2 to 1,000. Default 256.
	MaxBatch int
	// Patience is how long a lookup waits for a shared call. Default 250 ms.
	Patience time.Duration
}

// Validate reports every field that is wrong, by name.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Target == "" {
		bad("Target: is empty; give the service's gRPC address, such as 127.0.0.1:8081")
	}
	if c.TLS == nil && c.Credentials != nil && !c.AllowPlaintext && !loopback(c.Target) {
		bad("Credentials: would go to %q in plain text; set TLS, or AllowPlaintext if the network is trusted", c.Target)
	}
	if checked, ok := c.Credentials.(interface{ validate() error }); ok {
		if err := checked.validate(); err != nil {
			bad("Credentials: %w", err)
		}
	}
	if c.Timeout < 0 {
		bad("Timeout: %v is negative; give a duration, or 0 for %v", c.Timeout, defaultTimeout)
	}
	if c.MaxAttempts < 0 || c.MaxAttempts > maxAttempts {
		bad("MaxAttempts: %d is not from 1 to %d", c.MaxAttempts, maxAttempts)
	}
	if c.KeepAlive != 0 && c.KeepAlive < minKeepAlive {
		bad("KeepAlive: %v is too short; give at least %v, or 0 for %v", c.KeepAlive, minKeepAlive, defaultKeepAlive)
	}
	if w := c.Coalesce.Window; w < 0 || w > time.Second {
		bad("Coalesce.Window: %v is not from 0, which means off, to 1s", w)
	}
	if n := c.Coalesce.MaxBatch; n != 0 && (n < 2 || n > maxBatch) {
		bad("Coalesce.MaxBatch: %d is not from 2 to %d", n, maxBatch)
	}
	if p := c.Coalesce.Patience; p < 0 {
		bad("Coalesce.Patience: %v is negative; give a duration, or 0 for %v", p, defaultPatience)
	}
	return errors.Join(errs...)
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	c.Timeout = cmp.Or(c.Timeout, defaultTimeout)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, defaultAttempts)
	c.KeepAlive = cmp.Or(c.KeepAlive, defaultKeepAlive)
	c.UserAgent = cmp.Or(c.UserAgent, defaultUserAgent)
	c.Coalesce.MaxBatch = cmp.Or(c.Coalesce.MaxBatch, defaultMaxBatch)
	c.Coalesce.Patience = cmp.Or(c.Coalesce.Patience, defaultPatience)
	return c
}

// dialOptions are those of the connection.
func (c Config) dialOptions() []grpc.DialOption {
	transport := insecure.NewCredentials()
	if c.TLS != nil {
		transport = credentials.NewTLS(c.TLS)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUserAgent(c.UserAgent),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: c.KeepAlive, Timeout: keepAliveTimeout, PermitWithoutStream: true}),
		grpc.WithDefaultServiceConfig(serviceConfig(c.MaxAttempts)),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithChainUnaryInterceptor(bounded(c.Timeout), patient(c.MaxAttempts)),
	}
	if c.Credentials != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(overTransport{c.Credentials, c.TLS != nil}))
	}
	return append(opts, c.DialOptions...)
}

// loopback reports whether a target can only be this machine.
func loopback(target string) bool {
	for _, scheme := range []string{"unix:", "unix-abstract:"} {
		if strings.HasPrefix(target, scheme) {
			return true
		}
	}
	for _, scheme := range []string{"dns:///", "passthrough:///"} {
		target = strings.TrimPrefix(target, scheme)
	}
	host, _, err := net.SplitHostPort(target)
	if err != nil {
		host = target
	}
	if host == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.IsLoopback()
}
