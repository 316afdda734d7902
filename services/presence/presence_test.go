package presence

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// testConfig listens on ports of the system's choice.
func testConfig(t *testing.T) Config {
	t.Helper()
	cfg := DefaultConfig()
	cfg.DataDir = filepath.Join(t.TempDir(), "data")
	for _, addr := range []*string{&cfg.MQTTAddr, &cfg.MQTTWSAddr, &cfg.KafkaAddr, &cfg.HTTPAddr, &cfg.GRPCAddr, &cfg.Admin.Addr} {
		*addr = "127.0.0.1:0"
	}
	cfg.StateAddr = ""
	return cfg
}

// TestRun starts everything, waits until it says that it is ready, and stops it.
func TestRun(t *testing.T) {
	cfg := testConfig(t)
	for range 2 {
		var out syncBuffer
		p, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler), &out)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- p.Run(ctx) }()
		servicetest.Eventually(t, 20*time.Second, func() error {
			if !strings.Contains(out.String(), "curl") {
				return errors.New("nothing is printed")
			}
			return p.ready(ctx)
		})
		for _, want := range []string{"mqtt://" + p.MQTTAddr(), "ws://" + p.MQTTWSAddr(), "http://" + p.HTTPAddr().String(), p.GRPCAddr().String(), p.KafkaAddr(), p.account.password} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s is not printed:\n%s", want, &out)
			}
		}
		began := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the stop took %v", took)
		}
	}
}

// TestAnswersWait answers nobody before the broker's new generation is known: clients of the one before would still be online.
func TestAnswersWait(t *testing.T) {
	p, err := Open(t.Context(), testConfig(t), slog.New(slog.DiscardHandler), &syncBuffer{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.answer(ctx) }() // alone: the broker does not open
	ask := http.Client{Timeout: 300 * time.Millisecond}
	if r, err := ask.Get("http://" + p.HTTPAddr().String() + "/client-id/x/status"); err == nil {
		t.Errorf("an answer came: %s", r.Status)
		_ = r.Body.Close()
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := p.Run(ctx); err != nil {
		t.Error(err)
	}
}

// TestOpenGivesBack frees the folder after a start that failed.
func TestOpenGivesBack(t *testing.T) {
	cfg := testConfig(t)
	broken := cfg
	broken.Admin.Addr = "127.0.0.1:1" // needs root
	if os.Geteuid() == 0 {
		broken.Admin.Addr = "192.0.2.1:0" // not of this machine
	}
	if _, err := Open(t.Context(), broken, slog.New(slog.DiscardHandler), &syncBuffer{}); err == nil || !strings.Contains(err.Error(), "--admin-addr") {
		t.Fatalf("Open with an address that cannot be bound: %v", err)
	}
	p, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler), &syncBuffer{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), cfg, slog.New(slog.DiscardHandler), &syncBuffer{}); err == nil || !strings.Contains(err.Error(), "--data-dir") {
		t.Errorf("Open of a folder in use: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Run(ctx); err != nil {
		t.Error(err)
	}
}

func TestDevAccount(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "accounts")
	first, err := devAccount(dir, path)
	if err != nil {
		t.Fatal(err)
	}
	line, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(strings.TrimSpace(string(line)), ":")
	if len(parts) != 3 || parts[0] != "dev" || parts[2] != "connect,read,admin" || bcrypt.CompareHashAndPassword([]byte(parts[1]), []byte(first.password)) != nil {
		t.Errorf("accounts line %q does not fit password %q", line, first.password)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != fs.FileMode(0o600) {
			t.Errorf("%s has mode %v", f, info.Mode())
		}
	}
	if len(files) != 2 {
		t.Errorf("files %v, want two", files)
	}

	again, err := devAccount(dir, path)
	if err != nil || again != first {
		t.Errorf("the next start has %v, %v, want %v", again, err, first)
	}
	// A start that was interrupted between the two files goes on with the same password.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if again, err = devAccount(dir, path); err != nil || again != first {
		t.Errorf("without the accounts file the start has %v, %v, want %v", again, err, first)
	}
	// Accounts that somebody has changed stay as they are.
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := devAccount(dir, path); err != nil {
		t.Fatal(err)
	}
	if content, err := os.ReadFile(path); err != nil || string(content) != "mine" {
		t.Errorf("the accounts file became %q, %v", content, err)
	}
}

func TestConfig(t *testing.T) {
	for _, tc := range []struct {
		args, wantErr string
	}{
		{"", ""},
		{"--mqtt-url mqtt://a:1883 --mqtt-url mqtt://b:1883 --mqtt-dialect mosquitto-2.0 --kafka-brokers a:9092,b:9092", ""},
		{"--state-addr=", ""},
		{"--mqtt-addr nowhere", "mqtt-addr: "},
		{"--kafka-addr nowhere", "kafka-addr: "},
		{"--http-addr nowhere", "http-addr: "},
		{"--state-addr nowhere", "state-addr: "},
		{"--cluster A/B", "cluster: "},
		{"--kafka-partitions 0", "kafka-partitions: "},
		{"--mqtt-dialect emqx-1", "mqtt-dialect: "},
		{"--mqtt-heartbeat 0s", "mqtt-heartbeat: "},
		{"--data-dir=", "data-dir: "},
		{"--kafka-tls-enabled", "kafka-brokers: "},
		{"--log-level loud", "log-level: "},
		{"--bogus 1", "--bogus"},
	} {
		cfg := DefaultConfig()
		err := service.Load("presence", strings.Fields(tc.args), nil, &cfg)
		switch {
		case tc.wantErr == "" && err != nil:
			t.Errorf("%q: %v", tc.args, err)
		case tc.wantErr != "" && (err == nil || strings.Count(err.Error(), tc.wantErr) != 1):
			t.Errorf("%q: %v, want %q once", tc.args, err, tc.wantErr)
		}
	}
}

func TestReachable(t *testing.T) {
	for addr, want := range map[string]string{"0.0.0.0:80": "127.0.0.1:80", "[::]:80": "127.0.0.1:80", ":80": "127.0.0.1:80", "10.0.0.1:80": "10.0.0.1:80", "[::1]:80": "[::1]:80"} {
		if got := reachable(addr); got != want {
			t.Errorf("reachable(%s) = %s, want %s", addr, got, want)
		}
	}
}

// syncBuffer is a buffer for several goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestListensBeyondLoopbackOnlyIfAllowed(t *testing.T) {
	for _, test := range []struct {
		option string
		change func(*Config)
	}{
		{"mqtt-addr", func(c *Config) { c.MQTTAddr = "0.0.0.0:0" }},
		{"mqtt-ws-addr", func(c *Config) { c.MQTTWSAddr = ":0" }},
		{"kafka-addr", func(c *Config) { c.KafkaAddr = "0.0.0.0:0" }},
		{"http-addr", func(c *Config) { c.HTTPAddr = "[::]:0" }},
		{"grpc-addr", func(c *Config) { c.GRPCAddr = "10.0.0.1:0" }},
		{"state-addr", func(c *Config) { c.StateAddr = "example.org:0" }},
	} {
		cfg := testConfig(t)
		test.change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), test.option+":") || strings.Count(err.Error(), "--allow-insecure") != 1 {
			t.Errorf("%s: %v", test.option, err)
		}
		cfg.AllowInsecure = true
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s allowed: %v", test.option, err)
		}
	}
	cfg := testConfig(t)
	cfg.KafkaAddr, cfg.Kafka.Brokers = "0.0.0.0:0", []string{"127.0.0.1:1"}
	if err := cfg.Validate(); err != nil {
		t.Errorf("an address that is not listened on: %v", err)
	}
}
