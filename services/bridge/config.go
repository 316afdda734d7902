package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
	_ "time/tzdata" // the images hold no time zones of their own
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	defaultCluster       = "default"
	defaultName          = "bridge-1"
	defaultSpoolMaxBytes = 1 << 30
	minSpoolMaxBytes     = 1 << 20
)

// MQTTConfig says how to reach the MQTT broker of one cluster.
type MQTTConfig struct {
	URLs         []string `conf:"mqtt-url" usage:"MQTT broker, mqtt://host:1883 or mqtts://host:8883; several are endpoints of one cluster, tried in order"`
	Dialect      string   `conf:"mqtt-dialect" usage:"the broker's event format: auto, or the name of a dialect in the README"`
	Username     string   `conf:"mqtt-username" usage:"MQTT user"`
	PasswordFile string   `conf:"mqtt-password-file" usage:"file with the MQTT password"`
	ClientID     string   `conf:"mqtt-client-id" usage:"client ID of the bridge; empty: presence-bridge-<cluster>-<bridge name>"`
	Timezone     string   `conf:"mqtt-timezone" usage:"IANA time zone of the broker, for dialects that write local time; empty: UTC"`
	// StatusTopics are <convention> or <convention>=<base topic>, see statusTopicDialect.
	StatusTopics []string          `conf:"mqtt-status-topics" usage:"for dialect status-topic, which conventions to read: zigbee2mqtt, tasmota, homie, sparkplug, each with =<base topic> behind it where that is not the usual one"`
	TLS          service.ClientTLS `prefix:"mqtt-tls-"`

	CustomKey string         `conf:"mqtt-custom-key" usage:"for dialect custom, what its connection keys are worth: none (there are none), reusable (such as an address and port) or unique"`
	Custom    []CustomEvents `conf:"mqtt-custom" yamlonly:"true" usage:"for dialect custom, the topics of the events and where their payloads hold what, see adding-a-broker.md"`
}

func defaultMQTT() MQTTConfig {
	return MQTTConfig{Dialect: dialectAuto, StatusTopics: slices.Clone(conventions), CustomKey: keyNone}
}

// ClusterConfig is one of several clusters that a bridge serves.
type ClusterConfig struct {
	Name string `conf:"name" usage:"name of the MQTT broker cluster, 1 to 63 of a-z, 0-9 and -"`
	MQTTConfig
}

// SetDefaults fills in what a file's list item leaves out.
func (c *ClusterConfig) SetDefaults() { c.MQTTConfig = defaultMQTT() }

// Config is everything that a bridge needs to know.
type Config struct {
	eventlog.Config
	MQTT MQTTConfig
	// Password is the MQTT password, an alternative to MQTT.PasswordFile.
	Password service.Secret `conf:"mqtt-password" secret:"true" usage:"MQTT password"`

	Cluster string `conf:"cluster" usage:"name of the MQTT broker cluster, 1 to 63 of a-z, 0-9 and -"`
	Name    string `conf:"bridge-name" usage:"name of this bridge: the same after a restart, different from that of every other bridge of the cluster"`
	DataDir string `conf:"data-dir" usage:"directory of the spool, which holds what Kafka has not taken yet"`
	// SpoolMaxBytes bounds the spool. At the bound facts are dropped, counted and asserted.
	SpoolMaxBytes int64 `conf:"spool-max-bytes" usage:"largest size of the spool in bytes; at the bound facts are dropped, counted and asserted"`
	// HeartbeatInterval is the time between two assertions of the feed's state; after LeaseDuration without one it counts as down.
	HeartbeatInterval time.Duration `conf:"feed-heartbeat-interval" usage:"time between two assertions that the subscription is alive"`
	LeaseDuration     time.Duration `conf:"feed-lease" usage:"time after which the subscription counts as down if no assertion follows"`
	// Clusters replaces Cluster and MQTT when a bridge serves several clusters.
	Clusters []ClusterConfig `conf:"clusters" yamlonly:"true" usage:"several MQTT broker clusters, each with a name and its own mqtt- options"`

	// WaitForHeartbeat makes Ready wait until Kafka has a heartbeat of a node that was received since the subscription.
	WaitForHeartbeat bool `conf:"-"`
	// Dial opens the connection to the broker in place of MQTT.URLs, for a broker in the same process.
	Dial func(ctx context.Context) (net.Conn, error) `conf:"-"`
}

// DefaultConfig returns the defaults; the brokers of both sides and DataDir are empty.
func DefaultConfig() Config {
	return Config{
		Config:            eventlog.DefaultConfig(),
		MQTT:              defaultMQTT(),
		Cluster:           defaultCluster,
		Name:              defaultName,
		SpoolMaxBytes:     defaultSpoolMaxBytes,
		HeartbeatInterval: 2 * time.Second,
		LeaseDuration:     10 * time.Second,
	}
}

// Validate reports every mistake, by option.
func (c Config) Validate() error {
	errs := []error{c.Config.Validate()}
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("kafka-brokers: must name at least one broker, as host:port"))
	}
	if c.Name == "" || len(c.Name) > 63 || !utf8.ValidString(c.Name) {
		errs = append(errs, fmt.Errorf("bridge-name: %q must have 1 to 63 bytes of UTF-8", c.Name))
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("data-dir: must name a directory for the spool, on a disk that survives a restart"))
	}
	if c.SpoolMaxBytes < minSpoolMaxBytes {
		errs = append(errs, fmt.Errorf("spool-max-bytes: %d is less than %d", c.SpoolMaxBytes, minSpoolMaxBytes))
	}
	if c.HeartbeatInterval <= 0 {
		errs = append(errs, fmt.Errorf("feed-heartbeat-interval: %v must be positive", c.HeartbeatInterval))
	}
	if c.LeaseDuration < 2*c.HeartbeatInterval {
		errs = append(errs, fmt.Errorf("feed-lease: %v must be at least twice feed-heartbeat-interval, %v", c.LeaseDuration, c.HeartbeatInterval))
	}
	return errors.Join(append(errs, c.validateClusters()...)...)
}

func (c Config) validateClusters() []error {
	var errs []error
	if len(c.Clusters) == 0 {
		if err := eventlog.ValidCluster(c.Cluster); err != nil {
			errs = append(errs, fmt.Errorf("cluster: %w", err))
		}
		return append(errs, c.MQTT.validate(c.Dial != nil)...)
	}
	if len(c.MQTT.URLs) != 0 {
		errs = append(errs, errors.New("mqtt-url: give it inside each item of clusters, or leave clusters out"))
	}
	if c.Dial != nil {
		errs = append(errs, errors.New("clusters: cannot be used with an embedded broker"))
	}
	seen := map[string]bool{}
	for i := range c.Clusters {
		cl := &c.Clusters[i]
		if err := eventlog.ValidCluster(cl.Name); err != nil {
			errs = append(errs, fmt.Errorf("clusters: item %d: name: %w", i+1, err))
		}
		if seen[cl.Name] {
			errs = append(errs, fmt.Errorf("clusters: item %d: the name %q is used twice", i+1, cl.Name))
		}
		seen[cl.Name] = true
		for _, err := range cl.validate(false) {
			errs = append(errs, fmt.Errorf("clusters: item %d: %w", i+1, err))
		}
	}
	return errs
}

var (
	plainSchemes = []string{"mqtt", "tcp"}
	tlsSchemes   = []string{"mqtts", "tls", "ssl"}
)

func (c *MQTTConfig) validate(embedded bool) []error {
	var errs []error
	if len(c.URLs) == 0 && !embedded {
		errs = append(errs, errors.New("mqtt-url: must name at least one broker, such as mqtt://127.0.0.1:1883"))
	}
	for _, raw := range c.URLs {
		u, err := url.Parse(raw)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("mqtt-url: %w", err))
		case !slices.Contains(plainSchemes, u.Scheme) && !usesTLS(u) || u.Hostname() == "":
			errs = append(errs, fmt.Errorf("mqtt-url: %q is not mqtt://host:port or mqtts://host:port", u.Redacted()))
		case u.User != nil:
			errs = append(errs, errors.New("mqtt-url: holds a user or password; use mqtt-username and mqtt-password-file"))
		}
	}
	if c.Dialect != dialectAuto && dialectByName(c.Dialect) == nil {
		errs = append(errs, fmt.Errorf("mqtt-dialect: %q is none of %s", c.Dialect, strings.Join(dialectNames(), ", ")))
	}
	errs = append(errs, c.validateStatusTopics()...)
	errs = append(errs, c.validateCustom()...)
	if _, err := time.LoadLocation(c.Timezone); err != nil {
		errs = append(errs, fmt.Errorf("mqtt-timezone: give an IANA name such as Europe/Berlin: %w", err))
	}
	if len(c.ClientID) > eventlog.MaxClientIDBytes || !utf8.ValidString(c.ClientID) {
		errs = append(errs, errors.New("mqtt-client-id: must be at most 65535 bytes of UTF-8"))
	}
	if _, err := c.tlsConfig(); err != nil {
		errs = append(errs, fmt.Errorf("mqtt-tls: %w", err))
	}
	return errs
}

// tlsConfig returns the TLS of the endpoints, nil if none of them uses it.
func (c *MQTTConfig) tlsConfig() (*tls.Config, error) {
	options := c.TLS
	for _, raw := range c.URLs {
		u, err := url.Parse(raw)
		options.Enabled = options.Enabled || err == nil && usesTLS(u)
	}
	return options.Config()
}

func usesTLS(u *url.URL) bool { return slices.Contains(tlsSchemes, u.Scheme) }

// clusters returns the clusters to serve, with all defaults filled in.
func (c *Config) clusters() []ClusterConfig {
	list := slices.Clone(c.Clusters)
	if len(list) == 0 {
		list = []ClusterConfig{{Name: c.Cluster, MQTTConfig: c.MQTT}}
	}
	for i := range list {
		if list[i].ClientID == "" {
			list[i].ClientID = "presence-bridge-" + list[i].Name + "-" + c.Name
		}
	}
	return list
}

// endpoints returns the brokers to dial, each with a port.
func (c *MQTTConfig) endpoints() ([]*url.URL, error) {
	var list []*url.URL
	for _, raw := range c.URLs {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, fmt.Errorf("mqtt-url: %w", err)
		}
		if u.Port() == "" {
			port := "1883"
			if c.TLS.Enabled || usesTLS(u) {
				port = "8883"
			}
			u.Host = net.JoinHostPort(u.Hostname(), port)
		}
		list = append(list, u)
	}
	return list, nil
}
