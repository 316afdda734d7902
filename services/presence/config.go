package presence

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/bridge"
	"github.com/mqtt-presence/presence/services/materializer"
	"github.com/mqtt-presence/presence/services/presence/broker"
	"github.com/mqtt-presence/presence/services/presence/kafka"
	"github.com/mqtt-presence/presence/services/query"
)

// Config is the configuration of all parts, each option once.
type Config struct {
	DataDir string `conf:"data-dir" usage:"folder for everything that is kept; made if absent"`
	Cluster string `conf:"cluster" usage:"name of the MQTT broker cluster, 1 to 63 of a-z, 0-9 and -"`

	MQTTAddr      string        `conf:"mqtt-addr" usage:"listen address of the embedded MQTT broker"`
	MQTTWSAddr    string        `conf:"mqtt-ws-addr" usage:"listen address of the embedded MQTT broker for MQTT over WebSocket, such as 127.0.0.1:8084; empty: none"`
	MQTTHeartbeat time.Duration `conf:"mqtt-heartbeat" usage:"time between two heartbeats of the embedded MQTT broker"`
	// LateDisconnects is for tests, see [broker.Config].
	LateDisconnects bool `conf:"-"`
	// MQTT.URLs is empty for the embedded broker.
	MQTT         bridge.MQTTConfig
	MQTTPassword service.Secret `conf:"mqtt-password" secret:"true" usage:"MQTT password"`

	KafkaAddr string `conf:"kafka-addr" usage:"listen address of the embedded Kafka"`
	// Kafka.Brokers is empty for the embedded Kafka.
	Kafka eventlog.Config

	HTTPAddr     string            `conf:"http-addr" usage:"listen address of the REST calls"`
	GRPCAddr     string            `conf:"grpc-addr" usage:"listen address of the gRPC calls"`
	StateAddr    string            `conf:"state-addr" usage:"listen address of the StateService, for query services elsewhere; empty: not served"`
	AccountsFile string            `conf:"accounts-file" usage:"file of the accounts that may ask; empty: account dev, made in data-dir"`
	TLS          service.ServerTLS `prefix:"tls-"`
	StateTLS     service.ServerTLS `prefix:"state-tls-"`
	StaleAfter   time.Duration     `conf:"stale-after" usage:"answers that may lag further behind than this are marked stale"`

	query.AccessConfig
	query.LimitsConfig

	BridgeName    string        `conf:"bridge-name" usage:"name of the bridge: the same after a restart, different from that of every other bridge of the cluster"`
	SpoolMaxBytes int64         `conf:"spool-max-bytes" usage:"largest size of the bridge's spool in bytes; at the bound facts are dropped, counted and asserted"`
	Allowance     time.Duration `conf:"allowance" usage:"skew between two MQTT broker nodes' clocks that is thought possible"`
	Evidence      int           `conf:"evidence-per-client" usage:"facts kept per client to explain its status with, the latest by arrival; 0: none"`
	Sessions      int           `conf:"sessions-per-client" usage:"ended connections kept per client, the latest; 0: none"`
	ExpireAfter   time.Duration `conf:"expire-after" usage:"forget an offline client of which nothing was heard for so long, by the facts' own times; 0: never"`
	CacheSize     int64         `conf:"cache-size" usage:"bytes of memory for the store's block cache"`

	Admin service.AdminConfig
	Log   service.LogConfig
}

// DefaultConfig embeds everything and listens on loopback only.
func DefaultConfig() Config {
	br, q, b, m := broker.DefaultConfig(), query.DefaultConfig(), bridge.DefaultConfig(), materializer.DefaultConfig()
	return Config{
		DataDir: "./presence-data", Cluster: q.Cluster,
		MQTTAddr: br.Addr, MQTTHeartbeat: br.HeartbeatInterval, MQTT: b.MQTT,
		KafkaAddr: "127.0.0.1:9092", Kafka: eventlog.DefaultConfig(),
		HTTPAddr: q.HTTPAddr, GRPCAddr: q.GRPCAddr, StateAddr: m.StateAddr, StaleAfter: q.StaleAfter, AccessConfig: q.AccessConfig, LimitsConfig: q.LimitsConfig,
		BridgeName: b.Name, SpoolMaxBytes: b.SpoolMaxBytes, Allowance: m.Allowance, Evidence: m.EvidencePerClient, Sessions: m.SessionsPerClient,
		ExpireAfter: m.ExpireAfter, CacheSize: m.CacheSize,
		Admin: service.DefaultAdmin(), Log: service.DefaultLog(),
	}
}

// Validate reports every mistake, by option.
func (c Config) Validate() error {
	var errs []error
	if c.DataDir == "" {
		errs = append(errs, errors.New("data-dir: is empty; name a folder"))
	}
	if c.embedsBroker() {
		errs = append(errs, checkAddr("mqtt-addr", c.MQTTAddr))
		if c.MQTTWSAddr != "" {
			errs = append(errs, checkAddr("mqtt-ws-addr", c.MQTTWSAddr))
		}
		if c.MQTTHeartbeat <= 0 {
			errs = append(errs, fmt.Errorf("mqtt-heartbeat: %v is not positive; use for example 5s", c.MQTTHeartbeat))
		}
	}
	if c.embedsKafka() {
		errs = append(errs, checkAddr("kafka-addr", c.KafkaAddr), c.embeddedKafkaOnly())
	}
	_, err := service.CheckExposed(c.AllowInsecure, c.embedded()...)
	errs = append(errs, err)
	if c.DataDir != "" {
		// What is known only once the embedded parts run does not matter here.
		kafkaConfig := c.kafka(c.KafkaAddr)
		errs = append(errs, c.bridge(kafkaConfig, noBroker).Validate(), c.materializer(kafkaConfig).Validate(), c.query(kafkaConfig, c.accountsPath()).Validate())
	}
	return distinct(append(errs, c.Log.Validate()))
}

// embedded are the listeners of the embedded broker and of the embedded Kafka, which know neither TLS nor accounts.
func (c Config) embedded() []service.Listener {
	missing := []string{"TLS", "accounts"}
	var all []service.Listener
	if c.embedsBroker() {
		all = append(all, service.Listener{Option: "mqtt-addr", Addr: c.MQTTAddr, Missing: missing},
			service.Listener{Option: "mqtt-ws-addr", Addr: c.MQTTWSAddr, Missing: missing})
	}
	if c.embedsKafka() {
		all = append(all, service.Listener{Option: "kafka-addr", Addr: c.KafkaAddr, Missing: missing})
	}
	return all
}

func noBroker(context.Context) (net.Conn, error) { return nil, broker.ErrClosed }

// embeddedKafkaOnly reports options that would silently have no effect.
func (c Config) embeddedKafkaOnly() error {
	if c.Kafka.SASLMechanism != "" || c.Kafka.TLS.Enabled {
		return errors.New("kafka-brokers: must be given with kafka-sasl-mechanism or kafka-tls-enabled; the embedded Kafka has neither")
	}
	return nil
}

func checkAddr(option, addr string) error {
	if _, _, err := net.SplitHostPort(addr); err != nil {
		return fmt.Errorf("%s: %q is not host:port: %w", option, addr, err)
	}
	return nil
}

// distinct joins errors, each text once: the services share options.
func distinct(errs []error) error {
	var flat []error
	var texts []string
	var add func(err error)
	add = func(err error) {
		if err == nil {
			return
		}
		if joined, ok := err.(interface{ Unwrap() []error }); ok {
			for _, e := range joined.Unwrap() {
				add(e)
			}
			return
		}
		if !slices.Contains(texts, err.Error()) {
			texts = append(texts, err.Error())
			flat = append(flat, err)
		}
	}
	for _, err := range errs {
		add(err)
	}
	return errors.Join(flat...)
}

func (c Config) embedsBroker() bool { return len(c.MQTT.URLs) == 0 }
func (c Config) embedsKafka() bool  { return len(c.Kafka.Brokers) == 0 }

func (c Config) accountsPath() string {
	if c.AccountsFile != "" {
		return c.AccountsFile
	}
	return filepath.Join(c.DataDir, "accounts")
}

func (c Config) pageTokenKeyPath() string { return filepath.Join(c.DataDir, "page-token-key") }

// kafka returns the configuration of all Kafka clients; addr is the embedded broker's address.
func (c Config) kafka(addr string) eventlog.Config {
	k := c.Kafka
	if c.embedsKafka() {
		k.Brokers, k.ReplicationFactor = []string{addr}, 1
	}
	return k
}

func (c Config) embeddedKafka() kafka.Config {
	return kafka.Config{Addr: c.KafkaAddr, Dir: filepath.Join(c.DataDir, "kafka")}
}

func (c Config) broker(open <-chan struct{}, onDrop func(broker.Drop)) broker.Config {
	b := broker.DefaultConfig()
	b.Addr, b.WSAddr, b.HeartbeatInterval, b.Open, b.OnDrop = c.MQTTAddr, c.MQTTWSAddr, c.MQTTHeartbeat, open, onDrop
	b.LateDisconnects = c.LateDisconnects
	return b
}

// bridge returns the configuration of the bridge; dial connects to the embedded broker.
func (c Config) bridge(k eventlog.Config, dial func(context.Context) (net.Conn, error)) bridge.Config {
	b := bridge.DefaultConfig()
	b.Config, b.MQTT, b.Password, b.Cluster = k, c.MQTT, c.MQTTPassword, c.Cluster
	b.Name, b.SpoolMaxBytes, b.DataDir = c.BridgeName, c.SpoolMaxBytes, filepath.Join(c.DataDir, "bridge")
	if c.embedsBroker() {
		b.Dial = dial
	}
	return b
}

func (c Config) materializer(k eventlog.Config) materializer.Config {
	m := materializer.DefaultConfig()
	m.Kafka, m.DataDir, m.Allowance, m.CacheSize = k, filepath.Join(c.DataDir, "state"), c.Allowance, c.CacheSize
	m.EvidencePerClient, m.SessionsPerClient, m.ExpireAfter = c.Evidence, c.Sessions, c.ExpireAfter
	// The consumer group's member keeps its name without a server, too.
	if m.NoServer = c.StateAddr == ""; !m.NoServer {
		m.StateAddr, m.StateTLS, m.AllowInsecure = c.StateAddr, c.StateTLS, c.AllowInsecure
	}
	return m
}

func (c Config) query(k eventlog.Config, accounts string) query.Config {
	q := query.DefaultConfig()
	q.Config, q.Cluster, q.AccountsFile, q.PageTokenKeyFile = k, c.Cluster, accounts, c.pageTokenKeyPath()
	q.HTTPAddr, q.GRPCAddr, q.TLS = c.HTTPAddr, c.GRPCAddr, c.TLS
	q.AccessConfig, q.LimitsConfig, q.StaleAfter = c.AccessConfig, c.LimitsConfig, c.StaleAfter
	return q
}
