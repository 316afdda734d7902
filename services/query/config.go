package query

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

// Config says where the service listens, who may ask, and how fresh an answer must be.
type Config struct {
	HTTPAddr       string            `conf:"http-addr" usage:"listen address of the REST calls"`
	GRPCAddr       string            `conf:"grpc-addr" usage:"listen address of the gRPC calls"`
	AccountsFile   string            `conf:"accounts-file" usage:"file of the accounts that may ask, a line each: user:hash:permissions; not needed with jwt-jwks-file"`
	Cluster        string            `conf:"cluster" usage:"MQTT broker cluster of requests that name none"`
	StaleAfter     time.Duration     `conf:"stale-after" usage:"answers that may lag further behind than this are marked stale"`
	Replicas       []string          `conf:"replicas" usage:"replicas of the materializer to ask, the preferred one first"`
	RequestTimeout time.Duration     `conf:"request-timeout" usage:"how long an answer may take before the service gives up"`
	TLS            service.ServerTLS `prefix:"tls-"`
	StateTLS       service.ClientTLS `prefix:"state-tls-"`

	AccessConfig
	LimitsConfig

	// PageTokenKeyFile must be the same for all query services behind one address.
	PageTokenKeyFile string `conf:"page-token-key-file" usage:"file with the key of page tokens, at least 32 random bytes; empty: made at start, for this process only"`

	WatchBuffer      int   `conf:"watch-buffer" usage:"transitions kept for watches, so that a watcher may be slow or come back; further back, Kafka is read"`
	WatchBufferBytes int64 `conf:"watch-buffer-bytes" usage:"memory in bytes that those transitions may take"`

	eventlog.Config
}

// DefaultConfig listens on loopback, asks replica "a" and has no rate limit: what a caller may cost is the deployment's choice.
// AccountsFile and Brokers are empty.
func DefaultConfig() Config {
	return Config{
		HTTPAddr:       "127.0.0.1:8080",
		GRPCAddr:       "127.0.0.1:8081",
		Cluster:        "default",
		StaleAfter:     10 * time.Second,
		Replicas:       []string{"a"},
		RequestTimeout: 5 * time.Second,
		AccessConfig:   DefaultAccess(),
		LimitsConfig:   DefaultLimits(),
		Config:         eventlog.DefaultConfig(),

		WatchBuffer: 100_000, WatchBufferBytes: 64 << 20,
	}
}

// Validate reports every option that is wrong, by name. Brokers are checked by NewRouter, since not every reader needs them.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, a := range []struct{ option, addr string }{{"http-addr", c.HTTPAddr}, {"grpc-addr", c.GRPCAddr}} {
		if _, _, err := net.SplitHostPort(a.addr); err != nil {
			bad("%s: give host:port: %w", a.option, err)
		}
	}
	if err := eventlog.ValidCluster(c.Cluster); err != nil {
		bad("cluster: %w", err)
	}
	if c.StaleAfter < time.Millisecond {
		bad("stale-after: %v is too short; give at least 1ms", c.StaleAfter)
	}
	if c.RequestTimeout < 10*time.Millisecond {
		bad("request-timeout: %v is too short; give at least 10ms", c.RequestTimeout)
	}
	if c.WatchBuffer < 1 {
		bad("watch-buffer: %d is less than 1; give a number of transitions", c.WatchBuffer)
	}
	if c.WatchBufferBytes < 1<<20 {
		bad("watch-buffer-bytes: %d is less than 1 MiB (1048576)", c.WatchBufferBytes)
	}
	if len(c.Replicas) == 0 {
		bad("replicas: is empty; name at least one, such as a")
	}
	for i, r := range c.Replicas {
		if r == "" || strings.ContainsAny(r, " /:") {
			bad("replicas: %q is not the name of a replica", r)
		}
		if slices.Contains(c.Replicas[:i], r) {
			bad("replicas: %q is named twice; remove one", r)
		}
	}
	if _, err := c.TLS.Config(); err != nil {
		bad("tls: %w", err)
	}
	if _, err := c.StateTLS.Config(); err != nil {
		bad("state-tls: %w", err)
	}
	return errors.Join(append(errs, c.validateAccess(), c.Config.Validate())...)
}

var errNoAccountsFile = errors.New("accounts-file: is not set, nor is jwt-jwks-file; nobody could ask. " +
	"Create one with 'query account --user NAME --permissions connect,read < PASSWORD-FILE >> ACCOUNTS-FILE' and name it with --accounts-file")
