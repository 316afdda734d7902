package service

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// writeCert writes a self-signed certificate for the name "broker", which is its own
// authority, and returns the files of certificate and key.
func writeCert(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "broker"},
		DNSNames:              []string{"broker"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	err = errors.Join(
		os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o600),
		os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func TestTLSHandshake(t *testing.T) {
	cert, key := writeCert(t)
	otherCert, otherKey := writeCert(t)
	for _, test := range []struct {
		name   string
		server ServerTLS
		client ClientTLS
		ok     bool
	}{
		{"server only", ServerTLS{cert, key, ""}, ClientTLS{Enabled: true, CAFile: cert, ServerName: "broker"}, true},
		{"wrong name", ServerTLS{cert, key, ""}, ClientTLS{Enabled: true, CAFile: cert, ServerName: "other"}, false},
		{"wrong authority", ServerTLS{cert, key, ""}, ClientTLS{Enabled: true, CAFile: otherCert, ServerName: "broker"}, false},
		{"system's authorities", ServerTLS{cert, key, ""}, ClientTLS{Enabled: true, ServerName: "broker"}, false},
		{"mutual", ServerTLS{cert, key, cert}, ClientTLS{true, cert, cert, key, "broker"}, true},
		{"mutual, no client certificate", ServerTLS{cert, key, cert}, ClientTLS{Enabled: true, CAFile: cert, ServerName: "broker"}, false},
		{"mutual, stranger", ServerTLS{cert, key, cert}, ClientTLS{true, cert, otherCert, otherKey, "broker"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			serverConfig, serverErr := test.server.Config()
			clientConfig, clientErr := test.client.Config()
			if err := errors.Join(serverErr, clientErr); err != nil {
				t.Fatal(err)
			}
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			served := make(chan error, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					served <- err
					return
				}
				// In TLS 1.3 only the server's handshake tells that it refuses the client.
				served <- errors.Join(tls.Server(conn, serverConfig).Handshake(), conn.Close(), l.Close())
			}()
			conn, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			clientErr = tls.Client(conn, clientConfig).Handshake()
			if err := errors.Join(clientErr, <-served); (err == nil) != test.ok {
				t.Errorf("got %v, want success: %v", err, test.ok)
			}
		})
	}
}

func TestTLSErrors(t *testing.T) {
	cert, key := writeCert(t)
	for _, test := range []struct {
		name   string
		config func() (*tls.Config, error)
		want   string // "" for no config and no error
	}{
		{"client off", ClientTLS{}.Config, ""},
		{"server off", ServerTLS{}.Config, ""},
		{"client off but set", ClientTLS{CAFile: cert}.Config, "set enabled to true"},
		{"client without key", ClientTLS{Enabled: true, CertFile: cert}.Config, "cert-file and key-file belong together"},
		{"server without certificate", ServerTLS{KeyFile: key}.Config, "cert-file and key-file belong together"},
		{"server with authority alone", ServerTLS{ClientCAFile: cert}.Config, "cert-file and key-file belong together"},
		{"swapped", ServerTLS{CertFile: key, KeyFile: cert}.Config, "load cert-file"},
		{"no authority", ClientTLS{Enabled: true, CAFile: key}.Config, "holds no PEM certificate"},
		{"absent authority", ServerTLS{cert, key, "/nowhere"}.Config, "read client-ca-file: open /nowhere"},
	} {
		t.Run(test.name, func(t *testing.T) {
			config, err := test.config()
			if config != nil {
				t.Errorf("got a config")
			}
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
