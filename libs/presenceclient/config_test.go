package presenceclient_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func TestValidate(t *testing.T) {
	basic := presenceclient.Basic{User: "u", Password: presenceclient.Fixed("p")}
	for _, c := range []struct {
		name string
		cfg  presenceclient.Config
		want string // beginning of the error; empty: none
	}{
		{"least", presenceclient.Config{Target: "presence:8081"}, ""},
		{"no target", presenceclient.Config{}, "Target: "},
		{"loopback", presenceclient.Config{Target: "127.0.0.1:8081", Credentials: basic}, ""},
		{"loopback by name", presenceclient.Config{Target: "dns:///localhost:8081", Credentials: basic}, ""},
		{"loopback of IPv6", presenceclient.Config{Target: "[::1]:8081", Credentials: basic}, ""},
		{"unix", presenceclient.Config{Target: "unix:///run/presence", Credentials: basic}, ""},
		{"plain text", presenceclient.Config{Target: "presence:8081", Credentials: basic}, "Credentials: "},
		{"name like loopback", presenceclient.Config{Target: "localhost.example:8081", Credentials: basic}, "Credentials: "},
		{"address of all", presenceclient.Config{Target: "0.0.0.0:8081", Credentials: basic}, "Credentials: "},
		{"plain text allowed", presenceclient.Config{Target: "presence:8081", Credentials: basic, AllowPlaintext: true}, ""},
		{"tls", presenceclient.Config{Target: "presence:8081", Credentials: basic, TLS: &tls.Config{}}, ""},
		{"no user", presenceclient.Config{Target: "localhost:1", Credentials: presenceclient.Basic{Password: presenceclient.Fixed("p")}}, "Credentials: the field User"},
		{"colon", presenceclient.Config{Target: "localhost:1", Credentials: presenceclient.Basic{User: "a:b", Password: presenceclient.Fixed("p")}}, "Credentials: the field User"},
		{"no password", presenceclient.Config{Target: "localhost:1", Credentials: presenceclient.Basic{User: "a"}}, "Credentials: the field Password"},
		{"no token", presenceclient.Config{Target: "localhost:1", Credentials: presenceclient.Bearer{}}, "Credentials: the field Token"},
		{"timeout", presenceclient.Config{Target: "a:1", Timeout: -1}, "Timeout: "},
		{"attempts", presenceclient.Config{Target: "a:1", MaxAttempts: 6}, "MaxAttempts: "},
		{"keep alive", presenceclient.Config{Target: "a:1", KeepAlive: time.Second}, "KeepAlive: "},
		{"window", presenceclient.Config{Target: "a:1", Coalesce: presenceclient.Coalesce{Window: time.Minute}}, "Coalesce.Window: "},
		{"max batch", presenceclient.Config{Target: "a:1", Coalesce: presenceclient.Coalesce{MaxBatch: 1001}}, "Coalesce.MaxBatch: "},
		{"patience", presenceclient.Config{Target: "a:1", Coalesce: presenceclient.Coalesce{Patience: -1}}, "Coalesce.Patience: "},
	} {
		err := c.cfg.Validate()
		if (err != nil) != (c.want != "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
	}
}

// seen is a service that keeps what it was told about the caller.
type seen struct {
	presencev1.UnimplementedPresenceServiceServer

	calls chan metadata.MD
	peers chan *peer.Peer
}

func (s *seen) GetStatus(ctx context.Context, _ *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	s.calls <- md
	p, _ := peer.FromContext(ctx)
	s.peers <- p
	return &presencev1.GetStatusResponse{Status: "online", Online: true}, nil
}

func newSeen() *seen {
	return &seen{calls: make(chan metadata.MD, 16), peers: make(chan *peer.Peer, 16)}
}

// serve listens on loopback.
func serve(t testing.TB, service presencev1.PresenceServiceServer, opts ...grpc.ServerOption) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	presencev1.RegisterPresenceServiceServer(server, service)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestCredentials(t *testing.T) {
	service := newSeen()
	addr := serve(t, service)
	token := "first"
	for _, c := range []struct {
		name        string
		credentials credentials.PerRPCCredentials
		want        string
	}{
		{"basic", presenceclient.Basic{User: "u", Password: presenceclient.Fixed("p:q")}, "Basic " + base64.StdEncoding.EncodeToString([]byte("u:p:q"))},
		{"bearer", presenceclient.Bearer{Token: func(context.Context) (string, error) { return token, nil }}, "Bearer first"},
		{"none", nil, ""},
	} {
		client := newClient(t, presenceclient.Config{Target: addr, Credentials: c.credentials, UserAgent: "orders/1"})
		if _, err := client.Status(t.Context(), "a"); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		md := <-service.calls
		if got := strings.Join(md.Get("authorization"), ","); got != c.want {
			t.Errorf("%s: sent %q", c.name, got)
		}
		if got := strings.Join(md.Get("user-agent"), ","); !strings.HasPrefix(got, "orders/1 grpc-go/") {
			t.Errorf("%s: user agent %q", c.name, got)
		}
	}
	broken := newClient(t, presenceclient.Config{Target: addr, Credentials: presenceclient.Bearer{Token: presenceclient.File(filepath.Join(t.TempDir(), "none"))}})
	if _, err := broken.Status(t.Context(), "a"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("a token that cannot be read: error %v", err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	write := func(text string) {
		t.Helper()
		// As secrets are replaced: by another file.
		if err := errors.Join(os.WriteFile(path+".new", []byte(text), 0o600), os.Rename(path+".new", path)); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		secret := presenceclient.File(path)
		check := func(want string) {
			t.Helper()
			if got, err := secret(t.Context()); got != want || (err != nil) != (want == "") {
				t.Errorf("secret %q, error %v, want %q", got, err, want)
			}
		}
		check("")
		write("one\n")
		check("one")
		write("two\r\n")
		check("one")
		tick(2 * time.Second)
		check("two")
		write("")
		tick(2 * time.Second)
		check("")
		write("three")
		check("three")
	})
}

func TestMutualTLS(t *testing.T) {
	authority, pool := newAuthority(t)
	serverPair := authority.issue(t, "presence")
	service := newSeen()
	addr := serve(t, service, grpc.Creds(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{serverPair}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert,
	})))
	cfg := presenceclient.Config{
		Target: addr, Credentials: presenceclient.Bearer{Token: presenceclient.Fixed("t")}, MaxAttempts: 1,
		TLS: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: "presence", Certificates: []tls.Certificate{authority.issue(t, "orders")}},
	}
	if _, err := newClient(t, cfg).Status(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	info, ok := (<-service.peers).AuthInfo.(credentials.TLSInfo)
	if !ok || info.State.PeerCertificates[0].Subject.CommonName != "orders" {
		t.Errorf("the service knows its caller by %v", info)
	}
	for name, change := range map[string]func(*tls.Config){
		"no certificate":    func(c *tls.Config) { c.Certificates = nil },
		"another name":      func(c *tls.Config) { c.ServerName = "elsewhere" },
		"unknown authority": func(c *tls.Config) { c.RootCAs = x509.NewCertPool() },
	} {
		wrong := cfg
		wrong.TLS = cfg.TLS.Clone()
		change(wrong.TLS)
		if _, err := newClient(t, wrong).Status(t.Context(), "a"); !presenceclient.IsUnavailable(err) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) (*authority, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{key: key, cert: template("authority")}
	a.cert.IsCA, a.cert.BasicConstraintsValid, a.cert.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return a, pool
}

func template(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
}

func (a *authority) issue(t *testing.T, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template(name), a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
