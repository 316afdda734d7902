package eventlog

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/mqtt-presence/presence/libs/service"
)

// Config says which Kafka cluster to use, and how.
type Config struct {
	Brokers           []string          `conf:"kafka-brokers" usage:"Kafka seed brokers, host:port"`
	Partitions        int32             `conf:"kafka-partitions" usage:"partitions of client-events and client-state, when created; must match when present"`
	ReplicationFactor int16             `conf:"kafka-replication-factor" usage:"replication factor of topics that are created"`
	RecordFormat      string            `conf:"kafka-record-format" usage:"format of record values written: json or protobuf; both are read"`
	Compression       string            `conf:"kafka-compression" usage:"compression of record batches: zstd, lz4, snappy or none; where much is published at once snappy takes the place of zstd and lz4"`
	SASLMechanism     string            `conf:"kafka-sasl-mechanism" usage:"PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty: no SASL"`
	SASLUsername      string            `conf:"kafka-sasl-username" usage:"SASL user"`
	SASLPasswordFile  string            `conf:"kafka-sasl-password-file" usage:"file with the SASL password"`
	SASLPassword      service.Secret    `conf:"kafka-sasl-password" secret:"true" usage:"SASL password"`
	TLS               service.ClientTLS `prefix:"kafka-tls-"`
}

// DefaultConfig returns the defaults; Brokers is empty.
func DefaultConfig() Config {
	return Config{Partitions: 16, ReplicationFactor: 3, RecordFormat: JSON.String(), Compression: "zstd"}
}

// Validate checks everything but Brokers, which some services may leave empty. Errors name the option.
func (c Config) Validate() error {
	var errs []error
	if c.Partitions < 1 {
		errs = append(errs, fmt.Errorf("kafka-partitions: %d is less than 1", c.Partitions))
	}
	if c.ReplicationFactor < 1 {
		errs = append(errs, fmt.Errorf("kafka-replication-factor: %d is less than 1", c.ReplicationFactor))
	}
	if _, err := ParseFormat(c.RecordFormat); err != nil {
		errs = append(errs, fmt.Errorf("kafka-record-format: %w", err))
	}
	if _, err := c.codecs(); err != nil {
		errs = append(errs, err)
	}
	switch c.SASLMechanism {
	case "":
	case "PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512":
		if c.SASLUsername == "" {
			errs = append(errs, errors.New("kafka-sasl-username: must be set with kafka-sasl-mechanism"))
		}
		if c.SASLPasswordFile == "" && c.SASLPassword == "" {
			errs = append(errs, errors.New("kafka-sasl-password-file: must be set with kafka-sasl-mechanism"))
		}
	default:
		errs = append(errs, fmt.Errorf("kafka-sasl-mechanism: %q is none of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512", c.SASLMechanism))
	}
	return errors.Join(errs...)
}

// Format returns the format to write; JSON if RecordFormat is not valid.
func (c Config) Format() Format {
	f, _ := ParseFormat(c.RecordFormat)
	return f
}

func (c Config) codecs() (kgo.CompressionCodec, error) {
	switch c.Compression {
	case "zstd", "":
		return kgo.ZstdCompression(), nil
	case "lz4":
		return kgo.Lz4Compression(), nil
	case "snappy":
		return kgo.SnappyCompression(), nil
	case "none":
		return kgo.NoCompression(), nil
	}
	return kgo.NoCompression(), fmt.Errorf("kafka-compression: %q is none of zstd, lz4, snappy, none", c.Compression)
}

// Opts returns the options that every Kafka client needs: brokers, TLS, SASL, logging.
func (c Config) Opts(log *slog.Logger) ([]kgo.Opt, error) { return c.SharedOpts(NewClientLog(log)) }

// SharedOpts is Opts for one of several clients that share a log.
func (c Config) SharedOpts(log *ClientLog) ([]kgo.Opt, error) {
	if len(c.Brokers) == 0 {
		return nil, errors.New("kafka-brokers: must name at least one broker, as host:port")
	}
	opts := append(log.opts(), kgo.SeedBrokers(c.Brokers...), kgo.ClientID("presence"))
	tlsConfig, err := c.TLS.Config()
	if err != nil {
		return nil, fmt.Errorf("configure tls for kafka: %w", err)
	}
	if tlsConfig != nil {
		opts = append(opts, kgo.DialTLSConfig(tlsConfig))
	}
	mechanism, err := c.sasl()
	if err != nil {
		return nil, err
	}
	if mechanism != nil {
		opts = append(opts, kgo.SASL(mechanism))
	}
	return opts, nil
}

func (c Config) sasl() (sasl.Mechanism, error) {
	if c.SASLMechanism == "" {
		return nil, nil
	}
	secret, err := service.ReadSecret(c.SASLPasswordFile, c.SASLPassword)
	if err != nil {
		return nil, fmt.Errorf("kafka-sasl-password-file: %w", err)
	}
	password := secret.Reveal()
	switch c.SASLMechanism {
	case "PLAIN":
		return plain.Auth{User: c.SASLUsername, Pass: password}.AsMechanism(), nil
	case "SCRAM-SHA-256":
		return scram.Auth{User: c.SASLUsername, Pass: password}.AsSha256Mechanism(), nil
	}
	return scram.Auth{User: c.SASLUsername, Pass: password}.AsSha512Mechanism(), nil
}

// ProducerOpts returns the options of every producer: idempotent, acknowledged by all in-sync replicas, partitioned by key as Kafka's
// own clients do, by the configured count or, if that is 0, by the topic's; sent at once when idle.
func (c Config) ProducerOpts() []kgo.Opt {
	codec, _ := c.codecs()
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerBatchCompression(codec, kgo.NoCompression()),
		kgo.RecordPartitioner(partitioner(c.Partitions)),
		kgo.ProducerLinger(0),
	}
}

// bulkBytes is the size from which a record batch is compressed with snappy by a bulk producer.
const bulkBytes = 64 << 10

// BulkProducerOpts is ProducerOpts for one that at times has far more to say than Kafka takes at once, such as the publisher of a replay.
// Its large record batches are compressed with snappy, unless there is to be no compression: that takes a quarter of zstd's CPU, which then
// is what limits it, for less than twice the bytes.
func (c Config) BulkProducerOpts() ([]kgo.Opt, error) {
	opts := c.ProducerOpts()
	codec, err := c.codecs()
	if err != nil || codec == kgo.NoCompression() {
		return opts, err
	}
	small, err := kgo.DefaultCompressor(codec, kgo.NoCompression())
	if err != nil {
		return nil, fmt.Errorf("create the compressor: %w", err)
	}
	large, err := kgo.DefaultCompressor(kgo.SnappyCompression())
	if err != nil {
		return nil, fmt.Errorf("create the compressor: %w", err)
	}
	return append(opts, kgo.WithCompressor(bulkCompressor{small: small, large: large})), nil
}

// bulkCompressor chooses a compressor by size.
type bulkCompressor struct{ small, large kgo.Compressor }

// Compress compresses src.
func (c bulkCompressor) Compress(dst *bytes.Buffer, src []byte, flags ...kgo.CompressFlag) ([]byte, kgo.CompressionCodecType) {
	if len(src) < bulkBytes {
		return c.small.Compress(dst, src, flags...)
	}
	return c.large.Compress(dst, src, flags...)
}
