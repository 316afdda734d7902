package service

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// copyTo replaces the content of a file.
func copyTo(t *testing.T, to, from string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// echo serves each connection what it sends, until the test ends.
func echo(t *testing.T, config *tls.Config) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				secure := tls.Server(conn, config)
				_, _ = io.Copy(secure, secure)
			}()
		}
	}()
	return l.Addr().String()
}

// ask sends a byte and waits for it to come back.
func ask(conn *tls.Conn) error {
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte("x")); err != nil {
		return err
	}
	_, err := io.ReadFull(conn, make([]byte, 1))
	return err
}

func connect(t *testing.T, addr string, config *tls.Config) (*tls.Conn, error) {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, config)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, ask(conn)
}

func gaugeOf(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestTLSRotation(t *testing.T) {
	oldCert, oldKey := writeCert(t)
	newCert, newKey := writeCert(t)
	dir := t.TempDir()
	cert, key, clients := filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "clients")
	copyTo(t, cert, oldCert)
	copyTo(t, key, oldKey)
	copyTo(t, clients, oldCert)
	var lines bytes.Buffer
	reg := prometheus.NewRegistry()
	r, err := ServerTLS{cert, key, clients}.Reloader("http", slog.New(slog.NewTextHandler(&lines, nil)), reg)
	if err != nil {
		t.Fatal(err)
	}
	addr := echo(t, r.Server("test"))
	as := func(server, cert, key string) *tls.Config {
		config, err := ClientTLS{Enabled: true, CAFile: server, CertFile: cert, KeyFile: key, ServerName: "broker"}.Config()
		if err != nil {
			t.Fatal(err)
		}
		config.NextProtos = []string{"test"}
		config.ClientSessionCache = tls.NewLRUClientSessionCache(8)
		return config
	}
	withOld := as(oldCert, oldCert, oldKey)
	open, err := connect(t, addr, withOld)
	if err != nil {
		t.Fatal(err)
	}
	if open.ConnectionState().NegotiatedProtocol != "test" {
		t.Errorf("protocol %q", open.ConnectionState().NegotiatedProtocol)
	}
	looks := func() { // two: a change must settle
		r.reload.look()
		r.reload.look()
	}

	// The certificate without its key: nothing changes, once said.
	copyTo(t, cert, newCert)
	looks()
	looks()
	if _, err := connect(t, addr, withOld); err != nil {
		t.Errorf("after a failed reload: %v", err)
	}
	if gaugeOf(t, reg, "presence_tls_files_valid") != 0 || gaugeOf(t, reg, "presence_tls_reload_errors_total") != 1 {
		t.Error("the failure is not counted once")
	}
	if n := strings.Count(lines.String(), "http certificate not reloaded"); n != 1 {
		t.Errorf("said %d times: %s", n, &lines)
	}

	// The key, and other clients.
	copyTo(t, key, newKey)
	copyTo(t, clients, newCert)
	r.reload.look()
	if _, err := connect(t, addr, withOld); err != nil {
		t.Errorf("before the files have settled: %v", err)
	}
	r.reload.look()
	if _, err := connect(t, addr, as(newCert, newCert, newKey)); err != nil {
		t.Errorf("with the new certificates: %v", err)
	}
	for name, config := range map[string]*tls.Config{
		"the old client, with a session to resume": withOld, "the old authority": as(oldCert, newCert, newKey), "the old client": as(newCert, oldCert, oldKey),
	} {
		if _, err := connect(t, addr, config); err == nil {
			t.Errorf("%s is let in", name)
		}
	}
	if err := ask(open); err != nil {
		t.Errorf("the connection that was open: %v", err)
	}
	if gaugeOf(t, reg, "presence_tls_files_valid") != 1 {
		t.Error("valid again, but not said")
	}
	pair, err := tls.LoadX509KeyPair(newCert, newKey)
	if err != nil {
		t.Fatal(err)
	}
	if n := gaugeOf(t, reg, "presence_tls_certificate_expires_seconds"); n != float64(pair.Leaf.NotAfter.Unix()) {
		t.Errorf("ends at %v", n)
	}

	// A file that is away for a while.
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	looks()
	if _, err := connect(t, addr, as(newCert, newCert, newKey)); err != nil || gaugeOf(t, reg, "presence_tls_files_valid") != 0 {
		t.Errorf("without a key file: %v", err)
	}
	copyTo(t, key, newKey)
	looks()
	if gaugeOf(t, reg, "presence_tls_files_valid") != 1 {
		t.Error("the file came back, but is not read")
	}
}

func TestTLSReloaderOff(t *testing.T) {
	server, serverErr := ServerTLS{}.Reloader("a", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	client, clientErr := ClientTLS{}.Reloader("b", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err := errors.Join(serverErr, clientErr); err != nil || server != nil || client != nil || server.Server("h2") != nil {
		t.Errorf("%v, %v, %v", server, client, err)
	}
	server.Run(t.Context())
	cert, _ := writeCert(t)
	if _, err := (ServerTLS{CertFile: cert}).Reloader("c", slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err == nil {
		t.Error("half a certificate")
	}
	r, err := ClientTLS{Enabled: true, CAFile: cert}.Reloader("d", slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil || r.Current().RootCAs.Equal(x509.NewCertPool()) {
		t.Errorf("%v", err)
	}
}
