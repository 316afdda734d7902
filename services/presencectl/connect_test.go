package presencectl

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// TestTLS: the service must show a certificate of the authority that was named, and gets ours.
func TestTLS(t *testing.T) {
	authority := servicetest.NewAuthority(t)
	cert, key := authority.Issue("127.0.0.1", time.Hour)
	own, ownKey := authority.Issue("ops", time.Hour)
	serverTLS, err := service.ServerTLS{CertFile: cert, KeyFile: key, ClientCAFile: authority.File}.Config()
	if err != nil {
		t.Fatal(err)
	}
	f := newFake()
	r := &runner{t: t, dir: t.TempDir(), fake: f}
	r.env = []string{"HOME=" + r.dir, "PRESENCECTL_SERVER=" + f.start(t, grpc.Creds(credentials.NewTLS(serverTLS)))}

	trust := []string{"status", "dev1", "--tls", "--tls-ca-file", authority.File}
	show := append(trust, "--tls-cert-file", own, "--tls-key-file", ownKey)
	if out := r.ok(show...); out != "online\n" {
		t.Errorf("status: %q", out)
	}
	r.fails("UNAVAILABLE", trust...)
	r.fails("certificate", append(show, "--tls-server-name", "other.example.com")...)
	r.fails("certificate", "status", "dev1", "--tls", "--tls-cert-file", own, "--tls-key-file", ownKey)
	r.fails("set both", append(trust, "--tls-cert-file", own)...)
	r.fails("TLS is off", "status", "dev1", "--tls-ca-file", authority.File)
	r.fails("with TLS as said?", "status", "dev1")
}

// TestCredentialsStay: without TLS a credential goes to this machine only, unless that is allowed.
func TestCredentialsStay(t *testing.T) {
	for server, stays := range map[string]bool{
		"127.0.0.1:1": false, "localhost:1": false, "[::1]:1": false, "192.0.2.1:1": true, "localhost.example.com:1": true, "127.0.0.1.example.com:1": true, ":1": true,
	} {
		for _, allowed := range []bool{false, true} {
			a := newApp(Process{})
			a.settings.Server, a.settings.token, a.settings.AllowPlaintext = server, "t", allowed
			conn, err := a.connect()
			if (err != nil) != (stays && !allowed) {
				t.Errorf("%s, allowed %v: %v", server, allowed, err)
			}
			if conn != nil {
				_ = conn.Close()
			}
		}
	}
	r := newRunner(t)
	r.env = append(r.env, "PRESENCECTL_USER=dev", "PRESENCECTL_PASSWORD_FILE="+filepath.Join(r.dir, "nowhere"))
	r.fails("password-file: read the secret", "status", "dev1")
}

// TestRetries: a service that is away for a moment is asked again; a deletion is not sent twice.
func TestRetries(t *testing.T) {
	r := newRunner(t)
	r.fake.fails = 2
	r.fake.fail = status.Error(codes.Unavailable, "no owner")
	if out := r.ok("status", "dev1"); out != "online\n" {
		t.Errorf("status: %q", out)
	}
	r.fake.fail, r.fake.fails = status.Error(codes.Unavailable, "no owner"), 1
	_, errOut, code := r.run("delete", "dev1", "--yes")
	if code != exitError || r.fake.deletions != 1 || !strings.Contains(errOut, "no owner (UNAVAILABLE)") {
		t.Errorf("%d deletions, exit %d: %s", r.fake.deletions, code, errOut)
	}
}
