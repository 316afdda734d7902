package service

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// Keys of log attributes. Lines of all services use these, so that one query finds
// them all.
const (
	KeyAddr      = "addr"      // host:port that a listener is bound to
	KeyClientID  = "client_id" // debug lines only
	KeyCluster   = "cluster"
	KeyComponent = "component" // part of the process that writes the line
	KeyCount     = "count"
	KeyDialect   = "dialect"
	KeyDuration  = "duration"
	KeyError     = "error"
	KeyGroup     = "group" // Kafka consumer group
	KeyLag       = "lag"   // records
	KeyMQTTTopic = "mqtt_topic"
	KeyNode      = "node"   // MQTT broker node
	KeyOffset    = "offset" // Kafka offset
	KeyPartition = "partition"
	KeyPath      = "path"
	KeyReason    = "reason"
	KeyTopic     = "topic" // Kafka topic
	KeyURL       = "url"   // without user and password
	KeyVersion   = "version"
)

// LogConfig says what is logged and how. Embed it in a service's config.
type LogConfig struct {
	Level  string `conf:"log-level" usage:"least level that is logged: debug, info, warn or error"`
	Format string `conf:"log-format" usage:"format of log lines: text or json"`
}

// DefaultLog logs from level info on as text.
func DefaultLog() LogConfig { return LogConfig{Level: "info", Format: "text"} }

// Validate reports an unknown level or format, by flag. A config that embeds
// LogConfig and has a Validate of its own calls this one in it.
func (c LogConfig) Validate() error {
	var errs []error
	if _, err := c.level(); err != nil {
		errs = append(errs, err)
	}
	if c.Format != "text" && c.Format != "json" {
		errs = append(errs, fmt.Errorf("log-format: %q is unknown; give text or json", c.Format))
	}
	return errors.Join(errs...)
}

func (c LogConfig) level() (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		return 0, fmt.Errorf("log-level: %q is unknown; give debug, info, warn or error", c.Level)
	}
	return level, nil
}

// Logger returns a logger that writes to w, or the error of Validate.
func (c LogConfig) Logger(w io.Writer) (*slog.Logger, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	level, err := c.level()
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return slog.New(slog.NewTextHandler(w, opts)), nil
}
