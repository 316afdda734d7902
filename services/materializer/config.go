package materializer

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// Config is the configuration of a materializer.
type Config struct {
	DataDir   string `conf:"data-dir" usage:"directory of the state; made if absent, filled from Kafka if empty"`
	StateAddr string `conf:"state-addr" usage:"listen address of the StateService, which query asks"`
	// StateAdvertise is also the static member ID of the consumer group, from which query learns who owns a partition.
	StateAdvertise string `conf:"state-advertise" usage:"address at which query reaches the StateService, unique in the replica; empty: state-addr"`
	// StateTLS has no counterpart of accounts: who presents a certificate that its authorities have signed may ask everything.
	StateTLS      service.ServerTLS `prefix:"state-tls-"`
	AllowInsecure bool              `conf:"allow-insecure" usage:"listen beyond loopback also without TLS and client certificates; it is said at start what is missing"`
	Replica       string            `conf:"replica" usage:"name of the replica: each is a consumer group of its own that owns all partitions"`
	LeaveOnStop   bool              `conf:"leave-on-stop" usage:"leave the consumer group when stopped: others own the partitions at once, not after 10 s; for scaling in, since a restart moves them twice then"`
	Publish       bool              `conf:"publish" usage:"publish transitions and checkpoints to client-state; exactly one replica must"`
	Allowance     time.Duration     `conf:"allowance" usage:"skew between two MQTT broker nodes' clocks that is thought possible"`

	EvidencePerClient int `conf:"evidence-per-client" usage:"facts kept per client to explain its status with, the latest by arrival; 0: none"`

	SessionsPerClient int           `conf:"sessions-per-client" usage:"ended connections kept per client, the latest; 0: none"`
	ExpireAfter       time.Duration `conf:"expire-after" usage:"forget an offline client of which nothing was heard for so long, by the facts' own times; 0: never"`

	CheckpointInterval time.Duration `conf:"checkpoint-interval" usage:"time between two checkpoints of a partition that moved"`
	CacheSize          int64         `conf:"cache-size" usage:"bytes of memory for the store's block cache; its write buffers take up to 192 MiB besides"`

	Kafka eventlog.Config

	// NoServer leaves the network server out: the all-in-one reads in process.
	NoServer bool `conf:"-"`

	sessionTimeout time.Duration // of the consumer group; 0: defaultSessionTimeout
	backupPatience time.Duration // with the receiver of a backup; 0: the constant
	fs             vfs.FS        // of the store; nil: the operating system's
}

const (
	defaultStateAddr      = "127.0.0.1:8083"
	defaultSessionTimeout = 10 * time.Second
	maxReplicaBytes       = 63
	maxEvidence           = 256
	maxSessions           = 256
	minExpireAfter        = 24 * time.Hour
)

// DefaultConfig returns the defaults; Kafka.Brokers and DataDir are empty.
func DefaultConfig() Config {
	return Config{
		StateAddr: defaultStateAddr, Replica: "a", Publish: true, Allowance: 2 * time.Second, EvidencePerClient: store.DefaultEvidence,
		SessionsPerClient:  store.DefaultSessions,
		CheckpointInterval: 10 * time.Second, CacheSize: 256 << 20, Kafka: eventlog.DefaultConfig(),
	}
}

// Validate reports every mistake, each with the option's name.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data-dir: is empty; name a directory for the state"))
	}
	if len(c.Kafka.Brokers) == 0 {
		errs = append(errs, errors.New("kafka-brokers: is empty; name at least one broker as host:port"))
	}
	if !c.NoServer {
		errs = append(errs, checkAddr("state-addr", c.StateAddr))
		_, err := service.CheckExposed(c.AllowInsecure, c.listener())
		errs = append(errs, err)
		if _, err := c.StateTLS.Config(); err != nil {
			errs = append(errs, fmt.Errorf("state-tls: %w", err))
		}
	}
	if c.StateAdvertise != "" {
		errs = append(errs, checkAddr("state-advertise", c.StateAdvertise))
	}
	if c.Replica == "" || len(c.Replica) > maxReplicaBytes {
		errs = append(errs, fmt.Errorf("replica: %q has %d bytes; use 1 to %d", c.Replica, len(c.Replica), maxReplicaBytes))
	}
	if c.Allowance < 0 {
		errs = append(errs, fmt.Errorf("allowance: %v is negative; use 0 or more", c.Allowance))
	}
	if c.EvidencePerClient < 0 || c.EvidencePerClient > maxEvidence {
		errs = append(errs, fmt.Errorf("evidence-per-client: %d; use 0 to %d", c.EvidencePerClient, maxEvidence))
	}
	if c.SessionsPerClient < 0 || c.SessionsPerClient > maxSessions {
		errs = append(errs, fmt.Errorf("sessions-per-client: %d; use 0 to %d", c.SessionsPerClient, maxSessions))
	}
	if c.ExpireAfter != 0 && c.ExpireAfter < minExpireAfter {
		errs = append(errs, fmt.Errorf("expire-after: %v; use 0 for never, or %v and more", c.ExpireAfter, minExpireAfter))
	}
	if c.CheckpointInterval <= 0 {
		errs = append(errs, fmt.Errorf("checkpoint-interval: %v is not positive; use for example 10s", c.CheckpointInterval))
	}
	if c.CacheSize < 0 {
		errs = append(errs, fmt.Errorf("cache-size: %d is negative; use 0 or more bytes", c.CacheSize))
	}
	return errors.Join(append(errs, c.Kafka.Validate())...)
}

// listener is the StateService's. It gives away all that is known, and knows no accounts.
func (c Config) listener() service.Listener {
	l := service.Listener{Option: "state-addr", Addr: c.StateAddr}
	if c.StateTLS.CertFile == "" {
		l.Missing = append(l.Missing, "TLS (state-tls-cert-file)")
	}
	if c.StateTLS.ClientCAFile == "" {
		l.Missing = append(l.Missing, "client certificates (state-tls-client-ca-file)")
	}
	return l
}

func checkAddr(option, addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("%s: %q is not host:port: %w", option, addr, err)
	}
	return nil
}

// group is the consumer group of the replica.
func (c Config) group() string { return "presence-materializer-" + c.Replica }

// instance is the static member ID.
func (c Config) instance() string {
	if c.StateAdvertise != "" {
		return c.StateAdvertise
	}
	return c.StateAddr
}

func (c Config) session() time.Duration {
	if c.sessionTimeout != 0 {
		return c.sessionTimeout
	}
	return defaultSessionTimeout
}
