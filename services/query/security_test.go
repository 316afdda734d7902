package query_test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// Every request of an address counts, also those that are refused, of pages, and that need no account.
func TestAddressRateLimit(t *testing.T) {
	cfg := testConfig(t)
	cfg.AddressRateLimit, cfg.AddressRateBurst = 0.01, 7
	s := serve(t, cfg, readertest.NewFake(1))
	ctx := as(t, "connect")
	if a := s.do("GET", "/client-id/x/status", "connect", ""); a.status != 200 || a.header.Get("RateLimit-Policy") != `"address";q=7;w=700` || a.header.Get("RateLimit") != `"address";r=6;t=100` {
		t.Errorf("%d %v", a.status, a.header)
	}
	if a := s.do("GET", "/client-id/x/status", "", ""); a.status != 401 || a.header.Get("RateLimit") == "" {
		t.Errorf("%d %v", a.status, a.header)
	}
	for path, want := range map[string]int{"/openapi.json": 200, "/nowhere": 404} {
		if a := s.do("GET", path, "", ""); a.status != want {
			t.Errorf("%s: %d", path, a.status)
		}
	}
	if _, err := s.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: "x"}); err != nil {
		t.Error(err)
	}
	if _, err := s.rpc.GetStatus(as(t, ""), &presencev1.GetStatusRequest{ClientId: "x"}); status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
	if _, err := healthv1.NewHealthClient(s.conn).Check(ctx, &healthv1.HealthCheckRequest{}); err != nil {
		t.Error(err)
	}
	for _, path := range []string{"/client-id/x/status", "/v1/clients/x", "/openapi.json", "/nowhere"} {
		if a := s.do("GET", path, "admin", ""); a.status != 429 || a.fields(t)["code"] != 8.0 || a.header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
	}
	if _, err := s.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: "x"}); status.Code(err) != codes.ResourceExhausted || !hasRetryInfo(err) {
		t.Error(err)
	}
	if _, err := healthv1.NewHealthClient(s.conn).Check(ctx, &healthv1.HealthCheckRequest{}); status.Code(err) != codes.ResourceExhausted {
		t.Error(err)
	}
}

func hasRetryInfo(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().AsDuration() > 0 {
			return true
		}
	}
	return false
}

func TestWhatIsLeftOfTheRate(t *testing.T) {
	cfg := testConfig(t)
	cfg.RateLimit, cfg.RateBurst = 0.01, 20
	cfg.AddressRateLimit = 1e6
	s := serve(t, cfg, readertest.NewFake(1))
	ids := make([]string, 1_000)
	for i := range ids {
		ids[i] = fmt.Sprint("c", i)
	}
	for _, c := range []struct {
		body string
		left int
	}{{batchBody(t, ids[:99]), 19}, {batchBody(t, ids[:100]), 17}, {batchBody(t, ids), 6}} {
		a := s.do("POST", "/v1/clients:batchGet", "both", c.body)
		if want := fmt.Sprintf(`"account";r=%d;`, c.left); a.status != 200 || !strings.Contains(a.header.Get("RateLimit"), want) || !strings.HasPrefix(a.header.Get("RateLimit"), `"address";`) {
			t.Errorf("%d %q, want %s", a.status, a.header.Get("RateLimit"), want)
		}
		if p := a.header.Get("RateLimit-Policy"); p != `"address";q=1000000;w=1, "account";q=20;w=2000` {
			t.Errorf("policy %s", p)
		}
	}
	var header metadata.MD
	if _, err := s.rpc.GetClient(as(t, "both"), &presencev1.GetClientRequest{ClientId: "x"}, grpc.Header(&header)); status.Code(err) != codes.NotFound && err != nil {
		t.Error(err)
	}
	if got := header.Get("ratelimit"); len(got) != 1 || !strings.Contains(got[0], `"account";r=5;`) || len(header.Get("ratelimit-policy")) != 1 {
		t.Errorf("metadata %v", header)
	}
	// Not enough for the batch, but the request itself was counted.
	if a := s.do("POST", "/v1/clients:batchGet", "both", batchBody(t, ids)); a.status != 429 || a.header.Get("Retry-After") == "" || !strings.Contains(a.header.Get("RateLimit"), `"account";r=4;`) {
		t.Errorf("%d %v", a.status, a.header)
	}
}

func bearer(token string) string { return "Bearer " + token }

func withTokens(t *testing.T, cfg query.Config) (query.Config, func(map[string]any) string) {
	t.Helper()
	jwks, sign := query.Signer(t)
	cfg.Tokens.JWKSFile, cfg.Tokens.Issuer, cfg.Tokens.Audience = filepath.Join(t.TempDir(), "keys"), "issuer", "presence"
	if err := os.WriteFile(cfg.Tokens.JWKSFile, jwks, 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg, sign
}

func TestBearerTokens(t *testing.T) {
	cfg, sign := withTokens(t, testConfig(t))
	cfg.RateLimit, cfg.RateBurst = 0.01, 6
	s := serve(t, cfg, readertest.NewFake(1))
	get := func(authorization string) answer { return s.send("GET", "/client-id/x/status", authorization, "") }
	good := sign(nil)
	for name, c := range map[string]struct {
		token string
		want  int
	}{
		"good": {good, 200}, "without permissions": {sign(map[string]any{"permissions": nil, "sub": "b"}), 403}, "expired": {sign(map[string]any{"exp": 1}), 401}, "none": {"", 401},
	} {
		a := get(bearer(c.token))
		if a.status != c.want {
			t.Errorf("%s: %d %s", name, a.status, a.body)
		}
		if challenges := strings.Join(a.header.Values("WWW-Authenticate"), "|"); c.want == 401 && challenges != `Basic realm="presence", charset="UTF-8"|Bearer realm="presence"` {
			t.Errorf("%s: challenges %s", name, challenges)
		}
		ctx := metadata.AppendToOutgoingContext(as(t, ""), "authorization", "bearer "+c.token)
		_, err := s.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: "x"})
		if want := map[int]codes.Code{200: codes.OK, 403: codes.PermissionDenied, 401: codes.Unauthenticated}[c.want]; status.Code(err) != want {
			t.Errorf("%s over gRPC: %v", name, err)
		}
	}
	if a := s.do("GET", "/client-id/x/status", "connect", ""); a.status != 200 {
		t.Errorf("an account beside tokens: %d", a.status)
	}
	// The rate is the subject's, whatever its token.
	for range 4 {
		if a := get(bearer(sign(map[string]any{"jti": time.Now().String()}))); a.status != 200 {
			t.Errorf("within the rate: %d %s", a.status, a.body)
		}
	}
	if a := get(bearer(sign(nil))); a.status != 429 {
		t.Errorf("beyond the rate: %d", a.status)
	}
	if a := get(bearer(sign(map[string]any{"sub": "c"}))); a.status != 200 {
		t.Errorf("another subject: %d", a.status)
	}
	// New keys: the old token is worth nothing, and a file that is wrong changes nothing.
	jwks, other := query.Signer(t)
	for _, content := range [][]byte{[]byte(`{"keys":[]}`), jwks} {
		if err := os.WriteFile(cfg.Tokens.JWKSFile, content, 0o600); err != nil {
			t.Fatal(err)
		}
		servicetest.Eventually(t, testTimeout, func() error {
			if valid := gauge(t, s, "presence_query_jwks_file_valid"); (valid == 1) != (len(content) > 20) {
				return fmt.Errorf("valid is %v", valid)
			}
			return nil
		})
	}
	servicetest.Eventually(t, testTimeout, func() error {
		if a := get(bearer(other(map[string]any{"sub": "d"}))); a.status != 200 {
			return fmt.Errorf("a token of the new keys: %d", a.status)
		}
		return nil
	})
	if a := get(bearer(good)); a.status != 401 {
		t.Errorf("a token of the old keys: %d", a.status)
	}
}

func TestTokensWithoutAccounts(t *testing.T) {
	cfg := testConfig(t)
	cfg.AccountsFile = ""
	cfg, sign := withTokens(t, cfg)
	s := serve(t, cfg, readertest.NewFake(1))
	if a := s.send("GET", "/client-id/x/status", bearer(sign(nil)), ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
	for _, authorization := range []string{"", basic("connect", password), basic("", "")} {
		if a := s.send("GET", "/client-id/x/status", authorization, ""); a.status != 401 || a.header.Get("WWW-Authenticate") != `Bearer realm="presence"` {
			t.Errorf("%d %v", a.status, a.header)
		}
	}
}

// secured serves over TLS with client certificates of the authority.
func secured(t *testing.T, authority *servicetest.Authority, certName string) (query.Config, *server) {
	t.Helper()
	cfg := testConfig(t)
	cert, key := authority.Issue("query", time.Hour)
	dir := t.TempDir()
	cfg.TLS.CertFile, cfg.TLS.KeyFile, cfg.TLS.ClientCAFile = filepath.Join(dir, "cert"), filepath.Join(dir, "key"), authority.File
	copyFile(t, cfg.TLS.CertFile, cert)
	copyFile(t, cfg.TLS.KeyFile, key)
	cfg.ClientCertAccount = certName
	text := accountsText() + "service-1:cert:connect\nspiffe://fleet/service-2:cert:read\n"
	if err := os.WriteFile(cfg.AccountsFile, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return cfg, serve(t, cfg, readertest.NewFake(1))
}

func copyFile(t *testing.T, to, from string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	// Written in place: the half of it may be read.
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func clientConfig(t *testing.T, authority *servicetest.Authority, cert, key string) *tls.Config {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	content, err := os.ReadFile(authority.File)
	if err != nil || !pool.AppendCertsFromPEM(content) {
		t.Fatal(err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
}

// getTLS asks the seed call and returns the HTTP status, 0 for a connection that fails.
func getTLS(t *testing.T, client *http.Client, s *server, authorization string) int {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+s.service.HTTPAddr().String()+"/client-id/x/status", nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	response, err := client.Do(r)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	return response.StatusCode
}

func TestCertificatesAreAccounts(t *testing.T) {
	authority := servicetest.NewAuthority(t)
	_, byName := secured(t, authority, "cn")
	_, byURI := secured(t, authority, "uri")
	_, none := secured(t, authority, "")
	for _, c := range []struct {
		s             *server
		cn, uri       string
		authorization string
		want          int
		rpc           codes.Code // of GetClient, which needs read
	}{
		{byName, "service-1", "", "", 200, codes.PermissionDenied},
		{byName, "service-2", "", "", 401, codes.Unauthenticated},
		{byName, "connect", "", "", 401, codes.Unauthenticated}, // that account has a password
		{byName, "connect", "", basic("both", password), 200, codes.OK},
		{byName, "service-1", "", basic("both", "wrong"), 401, codes.Unauthenticated}, // what is sent counts
		{byName, "service-1", "", basic("service-1", "cert"), 401, codes.Unauthenticated},
		{byName, "service-1", "", basic("service-1", ""), 401, codes.Unauthenticated},
		{byName, "", "spiffe://fleet/service-2", "", 401, codes.Unauthenticated},
		{byURI, "service-1", "spiffe://fleet/service-2", "", 403, codes.OK},
		{byURI, "service-1", "", "", 401, codes.Unauthenticated},
		{none, "service-1", "spiffe://fleet/service-2", "", 401, codes.Unauthenticated},
	} {
		t.Run(c.cn+c.uri, func(t *testing.T) {
			var uris []string
			if c.uri != "" {
				uris = append(uris, c.uri)
			}
			cert, key := authority.Issue(c.cn, time.Hour, uris...)
			config := clientConfig(t, authority, cert, key)
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			if got := getTLS(t, &http.Client{Transport: transport}, c.s, c.authorization); got != c.want {
				t.Errorf("REST: %d, want %d", got, c.want)
			}
			conn, err := grpc.NewClient(c.s.service.GRPCAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(config)))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = conn.Close() }()
			ctx := as(t, "")
			if c.authorization != "" {
				ctx = metadata.AppendToOutgoingContext(ctx, "authorization", c.authorization)
			}
			_, err = presencev1.NewPresenceServiceClient(conn).BatchGetClients(ctx, &presencev1.BatchGetClientsRequest{ClientIds: []string{"x"}})
			if status.Code(err) != c.rpc {
				t.Errorf("gRPC: %v, want %v", err, c.rpc)
			}
		})
	}
	// A certificate that ends while its connection is open stands for nobody any more.
	cert, key := authority.Issue("service-1", 3*time.Second)
	transport := &http.Transport{TLSClientConfig: clientConfig(t, authority, cert, key)}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	if got := getTLS(t, client, byName, ""); got != 200 {
		t.Fatalf("before its end: %d", got)
	}
	servicetest.Eventually(t, testTimeout, func() error {
		if got := getTLS(t, client, byName, ""); got != 401 {
			return fmt.Errorf("after its end: %d", got)
		}
		return nil
	})
}

// asking asks without pause from several goroutines until stop is called, which returns how many answers were not 200 and how many were.
func asking(t *testing.T, get func() int) (stop func() (failed, ok int64)) {
	t.Helper()
	var failed, ok atomic.Int64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if get() == 200 {
					ok.Add(1)
				} else {
					failed.Add(1)
				}
			}
		})
	}
	return sync.OnceValues(func() (int64, int64) {
		close(done)
		wg.Wait()
		return failed.Load(), ok.Load()
	})
}

func TestAccountsAreReloadedUnderLoad(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	stop := asking(t, func() int { return s.do("GET", "/client-id/x/status", "connect", "").status })
	for i := range 3 {
		name := fmt.Sprint("new", i)
		// In place, so that a look may see the half of it.
		if err := os.WriteFile(s.file, []byte(accountsText()+name+":"+bcryptLine+":connect\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		servicetest.Eventually(t, testTimeout, func() error {
			if a := s.do("GET", "/client-id/x/status", name, ""); a.status != 200 {
				return fmt.Errorf("%s: %d", name, a.status)
			}
			return nil
		})
	}
	if failed, ok := stop(); failed != 0 || ok == 0 {
		t.Errorf("%d of %d requests failed", failed, failed+ok)
	}
}

// Certificates change while callers ask, over connections that stay open and over new ones.
func TestCertificatesAreReloadedUnderLoad(t *testing.T) {
	authority := servicetest.NewAuthority(t)
	cfg, s := secured(t, authority, "cn")
	cert, key := authority.Issue("service-1", time.Hour)
	open := &http.Transport{TLSClientConfig: clientConfig(t, authority, cert, key), MaxIdleConnsPerHost: 8}
	defer open.CloseIdleConnections()
	anew := &http.Transport{TLSClientConfig: clientConfig(t, authority, cert, key), DisableKeepAlives: true}
	stopOpen := asking(t, func() int { return getTLS(t, &http.Client{Transport: open}, s, "") })
	stopNew := asking(t, func() int { return getTLS(t, &http.Client{Transport: anew}, s, "") })
	for i := range 3 {
		name := fmt.Sprint("query", i)
		newCert, newKey := authority.Issue(name, time.Hour)
		copyFile(t, cfg.TLS.CertFile, newCert)
		copyFile(t, cfg.TLS.KeyFile, newKey)
		servicetest.Eventually(t, testTimeout, func() error {
			conn, err := tls.Dial("tcp", s.service.HTTPAddr().String(), clientConfig(t, authority, cert, key))
			if err != nil {
				return err
			}
			defer func() { _ = conn.Close() }()
			if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != name {
				return fmt.Errorf("the certificate is that of %s", got)
			}
			return nil
		})
	}
	for what, stop := range map[string]func() (int64, int64){"open": stopOpen, "new": stopNew} {
		if failed, ok := stop(); failed != 0 || ok == 0 {
			t.Errorf("over %s connections %d of %d requests failed", what, failed, failed+ok)
		}
	}
}

func TestURLTooLong(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	for _, path := range []string{"/client-id/" + strings.Repeat("x", 300<<10) + "/status", "/v1/clients?username=" + strings.Repeat("x", 300<<10)} {
		if a := s.do("GET", path, "admin", ""); a.status != 414 || a.fields(t)["code"] != 3.0 {
			t.Errorf("%d %.200s", a.status, a.body)
		}
	}
}

func TestListensBeyondLoopbackOnlyIfAllowed(t *testing.T) {
	authority := servicetest.NewAuthority(t)
	for _, option := range []string{"http-addr", "grpc-addr"} {
		cfg := testConfig(t)
		if option == "http-addr" {
			cfg.HTTPAddr = "0.0.0.0:0"
		} else {
			cfg.GRPCAddr = ":0"
		}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), option+": ") || !strings.Contains(err.Error(), "--allow-insecure") {
			t.Errorf("%s: %v", option, err)
		}
		allowed := cfg
		allowed.AllowInsecure = true
		if err := allowed.Validate(); err != nil {
			t.Errorf("%s allowed: %v", option, err)
		}
		cfg.TLS.CertFile, cfg.TLS.KeyFile = authority.Issue("query", time.Hour)
		if err := cfg.Validate(); err != nil {
			t.Errorf("%s with TLS: %v", option, err)
		}
	}
}

// Connections that say nothing, or little, or too slowly, keep nobody else out.
func TestIdleAndSlowConnections(t *testing.T) {
	cfg := testConfig(t)
	cfg.MaxConnections, cfg.MaxConnectionsPerAddress = 1_000, 900
	s := serve(t, cfg, readertest.NewFake(1))
	open := func(addr net.Addr, from string) (net.Conn, error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
		conn, err := d.DialContext(t.Context(), "tcp", addr.String())
		if err == nil {
			t.Cleanup(func() { _ = conn.Close() })
		}
		return conn, err
	}
	for i := range 2_000 {
		addr := s.service.HTTPAddr()
		if i%4 == 3 {
			addr = s.service.GRPCAddr()
		}
		conn, err := open(addr, fmt.Sprintf("127.0.0.%d", 2+i%2))
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			// It may have been closed already.
			_, _ = io.WriteString(conn, "GET /client-id/x/status HTTP/1.1\r\nHost: x\r\nX-Slow: ")
		}
	}
	for range 50 {
		conn, err := open(s.service.HTTPAddr(), "127.0.0.1")
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(testTimeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "GET /client-id/x/status HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n\r\n", basic("connect", password)); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != 200 {
			t.Fatalf("%v, %v", response, err)
		}
		_ = response.Body.Close()
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "x"}); err != nil {
		t.Errorf("over gRPC: %v", err)
	}
	if n := gauge(t, s, "presence_connections_open"); n > 1_000 || n < 900 {
		t.Errorf("%v connections are open", n)
	}
}

// A request whose headers do not come to their end is ended.
func TestRequestsThatNeverEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes as long as a header may")
	}
	s := serve(t, testConfig(t), readertest.NewFake(1))
	conn, err := net.Dial("tcp", s.service.HTTPAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\n"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(testTimeout)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, conn); err != nil {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// Audited calls name who did what to whom.
func TestAuditOverBothTransports(t *testing.T) {
	cfg := testConfig(t)
	cfg.AuditLog = filepath.Join(t.TempDir(), "audit")
	s := serve(t, cfg, readertest.NewFake(1))
	s.do("GET", "/v1/clients/a%0Ab?cluster=c1", "connect", "")
	s.send("GET", "/client-id/x/status", basic("admin", "hunter2"), "")
	s.send("GET", "/client-id/x/status", basic("hunter2", "hunter2"), "")
	s.do("DELETE", "/v1/clients/gone", "admin", "")
	if _, err := s.rpc.GetClient(as(t, "connect"), &presencev1.GetClientRequest{ClientId: "x", Cluster: "c2"}); status.Code(err) != codes.PermissionDenied {
		t.Error(err)
	}
	content, err := os.ReadFile(cfg.AuditLog)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"account":"connect","address":"127.0.0.1","transport":"rest","call":"GetClient","cluster":"c1","client_id":"\"a\\nb\"","outcome":"denied","code":"PermissionDenied","reason":"permission"`,
		`"account":"admin","address":"127.0.0.1","transport":"rest","call":"seed","client_id":"x","outcome":"denied","code":"Unauthenticated","reason":"wrong"`,
		`"account":"","address":"127.0.0.1","transport":"rest","call":"seed"`,
		`"account":"admin","address":"127.0.0.1","transport":"rest","call":"DeleteClient","client_id":"gone","outcome":`,
		`"transport":"grpc","call":"GetClient","cluster":"c2","client_id":"x","outcome":"denied"`,
	} {
		if !strings.Contains(string(content), want) {
			t.Errorf("no line has %s:\n%s", want, content)
		}
	}
	if strings.Contains(string(content), "hunter2") || strings.Count(string(content), "\n") != 5 {
		t.Errorf("the log is\n%s", content)
	}
}
