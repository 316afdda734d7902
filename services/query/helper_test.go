package query_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
)

const (
	testTimeout = 20 * time.Second
	password    = "correct horse"
	// Hashes of password, of the least cost.
	bcryptLine = "$2a$04$GRWdR9u4M8eLKhMi0PZpoeOG6ff.0cuyK2j0H32eOd1cJOZ4YvvbO"
)

// server is a running service and how to ask it.
type server struct {
	t       testing.TB
	url     string
	service *query.Service
	rpc     presencev1.PresenceServiceClient
	conn    *grpc.ClientConn
	reg     *prometheus.Registry
	file    string // accounts
	stop    context.CancelFunc
	stopped chan error
}

// accountsText has an account for each permission, named like it.
func accountsText() string {
	return "# accounts of the tests\n\nconnect:" + bcryptLine + ":connect\nread:" + bcryptLine + ":read\nadmin:" + bcryptLine + ":admin\nboth:" + bcryptLine + ":connect,read\n"
}

func testConfig(t testing.TB) query.Config {
	t.Helper()
	cfg := query.DefaultConfig()
	cfg.HTTPAddr, cfg.GRPCAddr = "127.0.0.1:0", "127.0.0.1:0"
	cfg.AccountsFile = filepath.Join(t.TempDir(), "accounts")
	if err := os.WriteFile(cfg.AccountsFile, []byte(accountsText()), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func discardLog() *slog.Logger { return slog.New(slog.DiscardHandler) }

func serve(t testing.TB, cfg query.Config, reader query.StateReader, prepare ...func(*query.Service)) *server {
	t.Helper()
	s := &server{t: t, reg: prometheus.NewRegistry(), file: cfg.AccountsFile, stopped: make(chan error, 1)}
	var err error
	if s.service, err = query.New(cfg, reader, discardLog(), s.reg); err != nil {
		t.Fatalf("new service: %v", err)
	}
	for _, p := range prepare {
		p(s.service)
	}
	if err := s.service.Listen(); err != nil {
		t.Fatalf("listen: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.stopped <- s.service.Run(ctx)
	}()
	s.url = "http://" + s.service.HTTPAddr().String()
	if s.conn, err = grpc.NewClient(s.service.GRPCAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		t.Fatalf("connect: %v", err)
	}
	s.rpc = presencev1.NewPresenceServiceClient(s.conn)
	t.Cleanup(func() {
		if err := s.conn.Close(); err != nil {
			t.Errorf("close the client: %v", err)
		}
		cancel()
		<-done
	})
	return s
}

// answer of a REST call.
type answer struct {
	status int
	header http.Header
	body   string
}

// as returns a context with the credentials of an account.
func as(t testing.TB, user string) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	if user == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", basic(user, password))
}

func basic(user, password string) string {
	r := http.Request{Header: http.Header{}}
	r.SetBasicAuth(user, password)
	return r.Header.Get("Authorization")
}

// do sends a request whose path is used as it is.
func (s *server) do(method, path, user, body string) answer {
	s.t.Helper()
	header := ""
	if user != "" {
		header = basic(user, password)
	}
	return s.send(method, path, header, body)
}

func (s *server) send(method, path, authorization, body string) answer {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.url+path, bytes.NewReader([]byte(body)))
	if err != nil {
		s.t.Fatalf("request %s %.60s: %v", method, path, err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		s.t.Fatalf("%s %.60s: %v", method, path, err)
	}
	if got := response.Header.Values("X-Content-Type-Options"); len(got) != 1 || got[0] != "nosniff" {
		s.t.Errorf("%s %.60s: X-Content-Type-Options %q", method, path, got)
	}
	content, err := io.ReadAll(response.Body)
	if err != nil {
		s.t.Fatalf("read the answer of %s %.60s: %v", method, path, err)
	}
	if err := response.Body.Close(); err != nil {
		s.t.Fatal(err)
	}
	return answer{response.StatusCode, response.Header, string(content)}
}

// fields parses the answer's JSON.
func (a answer) fields(t testing.TB) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(a.body), &m); err != nil {
		t.Fatalf("answer %d %.200q is no JSON object: %v", a.status, a.body, err)
	}
	return m
}

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func newService(t testing.TB, cfg query.Config, reader query.StateReader) *query.Service {
	t.Helper()
	s, err := query.New(cfg, reader, discardLog(), newRegistry())
	if err != nil {
		t.Fatalf("new service: %v", err)
	}
	return s
}

func batchBody(t testing.TB, ids []string) string {
	t.Helper()
	body, err := json.Marshal(map[string]any{"client_ids": ids})
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
