package query_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/crypto/bcrypt"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

func TestWhoMayAskWhat(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	fake.Apply(readertest.Connected("dev1"))
	s := serve(t, testConfig(t), fake)
	const (
		ok        = 200
		forbidden = 403
	)
	for _, c := range []struct {
		user              string
		seed, get, batch  int
		status, rpcClient codes.Code
	}{
		{"connect", ok, forbidden, forbidden, codes.OK, codes.PermissionDenied},
		{"read", forbidden, ok, ok, codes.PermissionDenied, codes.OK},
		{"both", ok, ok, ok, codes.OK, codes.OK},
		{"admin", ok, ok, ok, codes.OK, codes.OK},
		{"", 401, 401, 401, codes.Unauthenticated, codes.Unauthenticated},
		{"nobody", 401, 401, 401, codes.Unauthenticated, codes.Unauthenticated},
	} {
		t.Run(c.user, func(t *testing.T) {
			for _, call := range []struct {
				method, path, body string
				want               int
			}{
				{"GET", "/client-id/dev1/status", "", c.seed},
				{"POST", "/client-id/dev1/status", "", c.seed},
				{"GET", "/v1/clients/dev1", "", c.get},
				{"POST", "/v1/clients:batchGet", `{"client_ids":["dev1"]}`, c.batch},
			} {
				a := s.do(call.method, call.path, c.user, call.body)
				if a.status != call.want {
					t.Errorf("%s %s: %d %s, want %d", call.method, call.path, a.status, a.body, call.want)
				}
				if a.status == 401 && !strings.HasPrefix(a.header.Get("WWW-Authenticate"), `Basic realm="presence"`) {
					t.Errorf("401 with WWW-Authenticate %q", a.header.Get("WWW-Authenticate"))
				}
				if a.status != 200 {
					if m := a.fields(t); m["message"] == "" || m["code"] == nil || m["details"] == nil {
						t.Errorf("error %s", a.body)
					}
				}
			}
			if _, err := s.rpc.GetStatus(as(t, c.user), &presencev1.GetStatusRequest{ClientId: "dev1"}); status.Code(err) != c.status {
				t.Errorf("GetStatus: %v", err)
			}
			_, getErr := s.rpc.GetClient(as(t, c.user), &presencev1.GetClientRequest{ClientId: "dev1"})
			_, batchErr := s.rpc.BatchGetClients(as(t, c.user), &presencev1.BatchGetClientsRequest{ClientIds: []string{"dev1"}})
			if status.Code(getErr) != c.rpcClient || status.Code(batchErr) != c.rpcClient {
				t.Errorf("GetClient: %v, BatchGetClients: %v", getErr, batchErr)
			}
		})
	}
}

func TestCredentialsThatAreWrong(t *testing.T) {
	fake := readertest.NewFake(1)
	s := serve(t, testConfig(t), fake)
	encode := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, header := range []string{
		"Basic", "Basic ", "Basic ***", "Basic " + encode("connect"), "Bearer " + encode("connect:"+password), encode("connect:" + password),
		basic("connect", ""), basic("connect", password+" "), basic("connect", strings.ToUpper(password)), basic("Connect", password), basic("", password),
		basic("", ""), basic("nobody", password), basic("read:", password), basic("nobody", strings.Repeat("x", 10_000)),
	} {
		a := s.send("GET", "/client-id/x/status", header, "")
		if a.status != 401 || a.fields(t)["code"] != 16.0 {
			t.Errorf("%.60q: %d %s", header, a.status, a.body)
		}
		ctx := metadata.AppendToOutgoingContext(as(t, ""), "authorization", header)
		if _, err := s.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: "x"}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%.60q over gRPC: %v", header, err)
		}
	}
	for _, header := range []string{basic("connect", password), strings.Replace(basic("connect", password), "Basic", "bAsIc", 1)} {
		if a := s.send("GET", "/client-id/x/status", header, ""); a.status != 200 {
			t.Errorf("%q: %d %s", header, a.status, a.body)
		}
	}
	wrongUser := s.send("GET", "/client-id/x/status", basic("nobody", password), "")
	wrongPassword := s.send("GET", "/client-id/x/status", basic("connect", "x"), "")
	if wrongUser.body != wrongPassword.body {
		// protojson varies its spaces per process, not per call.
		t.Errorf("the answer tells whether the account exists: %s %s", wrongUser.body, wrongPassword.body)
	}
}

// An unknown user must cost what a wrong password costs, and a known credential next to nothing.
func TestCostOfCredentials(t *testing.T) {
	cfg := testConfig(t)
	hash, err := bcrypt.GenerateFromPassword([]byte(password), 9)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.AccountsFile, []byte("connect:"+string(hash)+":connect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, cfg, readertest.NewFake(1))
	best := func(user, password string) time.Duration {
		least := time.Hour
		for range 5 {
			began := time.Now()
			s.send("GET", "/client-id/x/status", basic(user, password), "")
			least = min(least, time.Since(began))
		}
		return least
	}
	known, wrong, unknown := best("connect", password), best("connect", "wrong"), best("nobody", password)
	if wrong < 5*known {
		t.Errorf("a known credential costs %v, a wrong one %v", known, wrong)
	}
	if unknown < wrong/3 || wrong < unknown/3 {
		t.Errorf("a wrong password costs %v, an unknown user %v", wrong, unknown)
	}
}

// A flood of wrong passwords costs the flooder answers, and others nothing once their credential is known.
func TestFloodOfWrongPasswords(t *testing.T) {
	cfg := testConfig(t)
	slow, err := bcrypt.GenerateFromPassword([]byte("slow"), 10)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cfg.AccountsFile, []byte(accountsText()+"slow:"+string(slow)+":connect\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := serve(t, cfg, readertest.NewFake(1))
	if a := s.do("GET", "/client-id/x/status", "connect", ""); a.status != 200 {
		t.Fatalf("%d %s", a.status, a.body)
	}
	var wg sync.WaitGroup
	answers := make(chan answer, 200)
	for i := range cap(answers) {
		wg.Go(func() { answers <- s.send("GET", "/client-id/x/status", basic("slow", fmt.Sprint("wrong", i)), "") })
	}
	for range 20 {
		if a := s.do("GET", "/client-id/x/status", "connect", ""); a.status != 200 {
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	wg.Wait()
	close(answers)
	busy := 0
	for a := range answers {
		switch a.status {
		case 401:
		case 429:
			busy++
			if a.header.Get("Retry-After") != "1" {
				t.Errorf("429 with Retry-After %q", a.header.Get("Retry-After"))
			}
		default:
			t.Errorf("%d %s", a.status, a.body)
		}
	}
	if busy == 0 {
		t.Error("200 wrong passwords at once were all hashed")
	}
}

func TestRateLimit(t *testing.T) {
	cfg := testConfig(t)
	cfg.RateLimit, cfg.RateBurst = 0.25, 3
	s := serve(t, cfg, readertest.NewFake(1))
	for i := range 3 {
		if a := s.do("GET", "/client-id/x/status", "both", ""); a.status != 200 {
			t.Fatalf("request %d: %d %s", i, a.status, a.body)
		}
	}
	for _, path := range []string{"/client-id/x/status", "/v1/clients/x"} {
		a := s.do("GET", path, "both", "")
		if a.status != 429 || a.header.Get("Retry-After") != "4" || a.fields(t)["code"] != 8.0 {
			t.Errorf("%s: %d %v %s", path, a.status, a.header, a.body)
		}
	}
	_, err := s.rpc.GetStatus(as(t, "both"), &presencev1.GetStatusRequest{ClientId: "x"})
	if status.Code(err) != codes.ResourceExhausted || len(status.Convert(err).Details()) == 0 {
		t.Fatalf("over gRPC: %v", err)
	}
	if info, ok := status.Convert(err).Details()[0].(*errdetails.RetryInfo); !ok || info.GetRetryDelay().AsDuration() <= 0 {
		t.Errorf("details %v", status.Convert(err).Details())
	}
	// Another account has a rate of its own.
	if a := s.do("GET", "/client-id/x/status", "connect", ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestAccountsFileIsReloaded(t *testing.T) {
	cfg := testConfig(t)
	s := serve(t, cfg, readertest.NewFake(1))
	write := func(text string) {
		if err := os.WriteFile(s.file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	until := func(user string, want int) {
		t.Helper()
		servicetest.Eventually(t, testTimeout, func() error {
			if a := s.do("GET", "/client-id/x/status", user, ""); a.status != want {
				return fmt.Errorf("%s: %d %s", user, a.status, a.body)
			}
			return nil
		})
	}
	until("connect", 200)
	until("new", 401)
	write(accountsText() + "new:" + bcryptLine + ":connect\n")
	until("new", 200)
	write(accountsText() + "neu:" + bcryptLine + ":connect\n")
	until("new", 401)
	write(accountsText() + "new:" + bcryptLine + ":connect\n")
	until("new", 200)
	// A file that is wrong changes nothing, and shows.
	write("new:" + bcryptLine + ":connect\nconnect:nonsense:connect\n")
	servicetest.Eventually(t, testTimeout, func() error {
		if n := gauge(t, s, "presence_query_accounts_file_valid"); n != 0 {
			return errors.New("the file still counts as valid")
		}
		return nil
	})
	until("connect", 200)
	// Mended: permissions and removals take effect, also for credentials that were known.
	write("connect:" + bcryptLine + ":read\n")
	until("connect", 403)
	until("new", 401)
	if n := gauge(t, s, "presence_query_accounts_file_valid"); n != 1 {
		t.Errorf("valid is %v", n)
	}
	// Another password for the same user.
	hash, err := bcrypt.GenerateFromPassword([]byte("other"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	write("connect:" + string(hash) + ":connect\n")
	until("connect", 401)
	if err := os.Remove(s.file); err != nil {
		t.Fatal(err)
	}
	servicetest.Eventually(t, testTimeout, func() error {
		if n := gauge(t, s, "presence_query_accounts_file_valid"); n != 0 {
			return errors.New("a removed file counts as valid")
		}
		return nil
	})
	if a := s.send("GET", "/client-id/x/status", basic("connect", "other"), ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func gauge(t *testing.T, s *server, name string) float64 {
	t.Helper()
	families, err := s.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

func TestMetricsNameNoClients(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	s.do("GET", "/client-id/secret1/status", "connect", "")
	s.do("GET", "/client-id/secret1/status", "", "")
	s.do("GET", "/v1/clients/secret1", "read", "")
	s.do("GET", "/v1/secret1", "read", "")
	s.do("SECRET1", "/client-id/secret1/status", "read", "")
	if _, err := s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "secret1"}); err != nil {
		t.Fatal(err)
	}
	want := `
# HELP presence_query_requests_total Requests answered, by transport, call and gRPC code.
# TYPE presence_query_requests_total counter
presence_query_requests_total{call="GetClient",code="NotFound",transport="rest"} 1
presence_query_requests_total{call="GetStatus",code="OK",transport="grpc"} 1
presence_query_requests_total{call="none",code="NotFound",transport="rest"} 1
presence_query_requests_total{call="seed",code="OK",transport="rest"} 1
presence_query_requests_total{call="seed",code="Unauthenticated",transport="rest"} 1
presence_query_requests_total{call="seed",code="Unimplemented",transport="rest"} 1
`
	if err := testutil.GatherAndCompare(s.reg, strings.NewReader(want), "presence_query_requests_total"); err != nil {
		t.Error(err)
	}
}

func TestNewRefusesToStart(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*query.Config)
		says   string
	}{
		{"no accounts file", func(c *query.Config) { c.AccountsFile = "" }, "--accounts-file"},
		{"an accounts file that is not there", func(c *query.Config) { c.AccountsFile += "x" }, "accounts-file"},
		{"a stale-after of 0", func(c *query.Config) { c.StaleAfter = 0 }, "stale-after"},
		{"a negative rate", func(c *query.Config) { c.RateLimit = -1 }, "rate-limit"},
		{"no replica", func(c *query.Config) { c.Replicas = nil }, "replicas"},
		{"a replica twice", func(c *query.Config) { c.Replicas = []string{"a", "a"} }, "twice"},
		{"a cluster that is none", func(c *query.Config) { c.Cluster = "A/B" }, "cluster"},
		{"half of a certificate", func(c *query.Config) { c.TLS.CertFile = "x" }, "tls"},
		{"an address without port", func(c *query.Config) { c.HTTPAddr = "localhost" }, "http-addr"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := testConfig(t)
			c.change(&cfg)
			if _, err := query.New(cfg, readertest.NewFake(1), discardLog(), newRegistry()); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("want an error with %q, got %v", c.says, err)
			}
		})
	}
}
