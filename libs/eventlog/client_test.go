package eventlog

import (
	"bytes"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// TestBulkProducerOpts has large record batches compressed with snappy, small ones as configured, and none if so configured.
func TestBulkProducerOpts(t *testing.T) {
	for _, c := range []struct {
		compression  string
		small, large kgo.CompressionCodecType
	}{
		{"zstd", kgo.CodecZstd, kgo.CodecSnappy}, {"lz4", kgo.CodecLz4, kgo.CodecSnappy}, {"snappy", kgo.CodecSnappy, kgo.CodecSnappy},
	} {
		cfg := DefaultConfig()
		cfg.Compression, cfg.Brokers = c.compression, []string{"127.0.0.1:1"}
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		opts, err := cfg.BulkProducerOpts()
		if err != nil {
			t.Fatal(err)
		}
		cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(cfg.Brokers...))...)
		if err != nil {
			t.Fatal(err)
		}
		compressor, ok := cl.OptValue(kgo.WithCompressor).(kgo.Compressor)
		cl.Close()
		if !ok {
			t.Fatalf("%s: no compressor", c.compression)
		}
		for size, want := range map[int]kgo.CompressionCodecType{bulkBytes - 1: c.small, bulkBytes: c.large} {
			if _, codec := compressor.Compress(new(bytes.Buffer), []byte(strings.Repeat("x", size))); codec != want {
				t.Errorf("%s: %d bytes are compressed with codec %d, want %d", c.compression, size, codec, want)
			}
		}
	}
	cfg := DefaultConfig()
	cfg.Compression = "none"
	if opts, err := cfg.BulkProducerOpts(); err != nil || len(opts) != len(cfg.ProducerOpts()) {
		t.Errorf("%d options, %v, want those of every producer", len(opts), err)
	}
	cfg.Compression = "gzip"
	if _, err := cfg.BulkProducerOpts(); err == nil {
		t.Error("gzip is taken")
	}
}
