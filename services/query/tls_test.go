package query_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// certificate writes a certificate for loopback that signs itself, and returns its files and a pool that trusts it.
func certificate(t *testing.T) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AddCert(cert)
	write := func(name, kind string, content []byte) string {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	return write("cert.pem", "CERTIFICATE", der), write("key.pem", "PRIVATE KEY", keyDER), pool
}

func TestTLS(t *testing.T) {
	cfg := testConfig(t)
	var pool *x509.CertPool
	cfg.TLS.CertFile, cfg.TLS.KeyFile, pool = certificate(t)
	s := serve(t, cfg, readertest.NewFake(1))
	config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}

	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.service.HTTPAddr().String()+"/client-id/a%2Fb/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth("connect", password)
	response, err := transport.RoundTrip(r)
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(response.Body)
	if err != nil || string(body) != `{"online":false}` || response.ProtoMajor != 2 {
		t.Errorf("%s %q: %v", response.Proto, body, err)
	}
	if err := response.Body.Close(); err != nil {
		t.Error(err)
	}

	conn, err := grpc.NewClient(s.service.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := presencev1.NewPresenceServiceClient(conn).GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "x"}); err != nil {
		t.Errorf("gRPC with TLS: %v", err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "x"}); err == nil {
		t.Error("gRPC without TLS was answered")
	}
}

// Both versions of HTTP are spoken over TLS, and who comes without it is told so.
func TestProtocolsOverTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	cfg := testConfig(t)
	cfg.TLS.CertFile, cfg.TLS.KeyFile = cert, key
	fake := readertest.NewFake(1)
	fake.Apply(readertest.Connected("dev1"))
	s := serve(t, cfg, fake)
	addr := s.service.HTTPAddr().String()
	for _, c := range []struct {
		http2 bool
		major int
	}{{true, 2}, {false, 1}} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: c.http2}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+addr+"/client-id/dev1/status", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.SetBasicAuth("connect", password)
		answer, err := transport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := answer.Body.Close(); err != nil {
			t.Error(err)
		}
		transport.CloseIdleConnections()
		if answer.ProtoMajor != c.major || answer.StatusCode != 200 {
			t.Errorf("HTTP/%d: status %d, want HTTP/%d and 200", answer.ProtoMajor, answer.StatusCode, c.major)
		}
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+addr+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = answer.Body.Close() }()
	if body, err := io.ReadAll(answer.Body); err != nil || answer.StatusCode != 400 || !strings.Contains(string(body), "https") {
		t.Errorf("without TLS: %d %s, %v", answer.StatusCode, body, err)
	}
}
