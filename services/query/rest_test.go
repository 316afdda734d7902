package query_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// escape encodes every byte that some layer could touch; dots too, as callers must write "." and "..".
func escape(id string) string {
	if strings.Trim(id, ".") == "" {
		return strings.ReplaceAll(id, ".", "%2E")
	}
	return url.PathEscape(id)
}

// encodeAll encodes every byte, the other legal spelling.
func encodeAll(id string) string {
	var b strings.Builder
	for i := range len(id) {
		fmt.Fprintf(&b, "%%%02x", id[i])
	}
	return b.String()
}

func TestEveryClientIDAnswersTheSameEverywhere(t *testing.T) {
	fake := readertest.NewFake(16)
	fake.ApplyNodes(readertest.Healthy()...)
	s := serve(t, testConfig(t), fake)
	type client struct {
		id   string
		want string // online, offline, never: never seen, invalid: no client ID
	}
	var all []client
	for i, id := range readertest.IDs() {
		c := readertest.Connected(id)
		fake.Apply(c)
		want := "online"
		if i%3 == 1 {
			fake.Apply(readertest.Disconnected(c))
			want = "offline"
		}
		all = append(all, client{id, want})
	}
	all = append(all,
		client{strings.Repeat("n", 65_535), "never"}, client{"never/seen", "never"}, client{"a%2fb", "never"}, client{"DEV1", "never"}, client{"\x00", "never"},
		client{strings.Repeat("n", 65_536), "invalid"}, client{"", "invalid"}, client{"\xff", "invalid"}, client{"a\xed\xa0\x80", "invalid"})
	for _, c := range all {
		t.Run(fmt.Sprintf("%.12q of %d bytes", c.id, len(c.id)), func(t *testing.T) {
			for _, path := range []string{escape(c.id), encodeAll(c.id)} {
				checkSeed(t, s, c.want, path)
				checkV1(t, s, c.want, c.id, path)
			}
			checkRPC(t, s, c.want, c.id)
		})
	}
	// All at once, over both transports.
	var ids []string
	for _, c := range all {
		if c.want != "invalid" && len(c.id) < 1000 {
			ids = append(ids, c.id)
		}
	}
	body, err := json.Marshal(map[string]any{"client_ids": ids})
	if err != nil {
		t.Fatal(err)
	}
	a := s.do("POST", "/v1/clients:batchGet", "read", string(body))
	overREST := &presencev1.BatchGetClientsResponse{}
	if err := protojson.Unmarshal([]byte(a.body), overREST); err != nil {
		t.Fatalf("%d %.300s: %v", a.status, a.body, err)
	}
	overGRPC, err := s.rpc.BatchGetClients(as(t, "read"), &presencev1.BatchGetClientsRequest{ClientIds: ids})
	if err != nil {
		t.Fatal(err)
	}
	if overREST.GetFreshness().GetStale() || overGRPC.GetFreshness().GetStale() {
		t.Errorf("a quiet system looks stale: %v", overGRPC.GetFreshness())
	}
	for i, id := range ids {
		if !proto.Equal(overREST.GetClients()[i], overGRPC.GetClients()[i]) || overREST.GetClients()[i].GetClientId() != id {
			t.Errorf("client %q: REST %v, gRPC %v", id, overREST.GetClients()[i], overGRPC.GetClients()[i])
		}
	}
}

func checkSeed(t *testing.T, s *server, want, path string) {
	t.Helper()
	for _, method := range []string{"GET", "POST"} {
		a := s.do(method, "/client-id/"+path+"/status", "connect", "")
		switch want {
		case "invalid":
			checkInvalidID(t, a)
		case "online":
			if a.status != 200 || a.body != `{"online":true}` {
				t.Errorf("%s seed: %d %q", method, a.status, a.body)
			}
		default:
			if a.status != 200 || a.body != `{"online":false}` {
				t.Errorf("%s seed: %d %q", method, a.status, a.body)
			}
		}
	}
}

func checkV1(t *testing.T, s *server, want, id, path string) {
	t.Helper()
	a := s.do("GET", "/v1/clients/"+path, "read", "")
	switch want {
	case "invalid":
		checkInvalidID(t, a)
	case "never":
		if m := a.fields(t); a.status != 404 || m["code"] != 5.0 || !strings.Contains(fmt.Sprint(m["message"]), "never seen") {
			t.Errorf("v1: %d %q", a.status, a.body)
		}
	default:
		if m := a.fields(t); a.status != 200 || m["client_id"] != id || m["status"] != want {
			t.Errorf("v1: %d %.300q", a.status, a.body)
		}
	}
}

func checkInvalidID(t *testing.T, a answer) {
	t.Helper()
	m := a.fields(t)
	details, err := json.Marshal(m["details"])
	if err != nil {
		t.Fatal(err)
	}
	if a.status != 400 || m["code"] != 3.0 || !strings.Contains(fmt.Sprint(m["message"]), "client_id") || !strings.Contains(string(details), `"field":"client_id"`) {
		t.Errorf("want 400 and client_id named, got %d %.300q", a.status, a.body)
	}
}

func checkRPC(t *testing.T, s *server, want, id string) {
	t.Helper()
	short, shortErr := s.status(as(t, "connect"), id)
	long, longErr := s.client(as(t, "read"), id)
	switch want {
	case "invalid":
		for _, err := range []error{shortErr, longErr} {
			if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "client_id") {
				t.Errorf("want InvalidArgument and client_id named, got %v", err)
			}
		}
	case "never":
		if shortErr != nil || short.GetOnline() || short.GetStatus() != "offline" || short.GetStatusReason() != "never_seen" {
			t.Errorf("GetStatus: %v, %v", short, shortErr)
		}
		if status.Code(longErr) != codes.NotFound {
			t.Errorf("GetClient: %v", longErr)
		}
	default:
		if shortErr != nil || short.GetStatus() != want || short.GetOnline() != (want == "online") || short.GetFreshness().GetStale() {
			t.Errorf("GetStatus: %v, %v", short, shortErr)
		}
		if longErr != nil || long.GetStatus() != want || long.GetClientId() != id {
			t.Errorf("GetClient: %v", longErr)
		}
	}
}

func TestUnknownAnswersTheBelief(t *testing.T) {
	fake := readertest.NewFake(4)
	nodes := readertest.Healthy()
	fake.ApplyNodes(nodes...)
	fake.Apply(readertest.Connected("dev1"))
	silent := nodes[1]
	silent.Kind, silent.ReceivedMS = presence.NodeSilent, silent.ReceivedMS+1
	fake.ApplyNodes(silent)
	s := serve(t, testConfig(t), fake)
	a := s.do("GET", "/client-id/dev1/status", "connect", "")
	if a.status != 200 || a.body != `{"online":true}` || a.header.Get("Presence-Status") != "unknown" || a.header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %q %v", a.status, a.body, a.header)
	}
	long := s.do("GET", "/v1/clients/dev1", "read", "").fields(t)
	fresh, _ := long["freshness"].(map[string]any)
	if long["status"] != "unknown" || long["belief"] != "online" || long["status_reason"] != "node_silent" || fresh["node"] != "silent" {
		t.Errorf("%v", long)
	}
	gone := silent
	gone.Kind, gone.ReceivedMS = presence.NodeGone, silent.ReceivedMS+1
	fake.ApplyNodes(gone)
	a = s.do("GET", "/client-id/dev1/status", "connect", "")
	if a.body != `{"online":false}` || a.header.Get("Presence-Status") != "unknown" {
		t.Errorf("%d %q %v", a.status, a.body, a.header)
	}
}

func TestClientTellsAllThatIsKnown(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	opened := readertest.Connected("dev1")
	fake.Apply(opened)
	s := serve(t, testConfig(t), fake)
	m := s.do("GET", "/v1/clients/dev1", "read", "").fields(t)
	conn, _ := m["connection"].(map[string]any)
	fresh, _ := m["freshness"].(map[string]any)
	last, _ := m["last_transition"].(map[string]any)
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"cluster", m["cluster"], "default"},
		{"status_reason", m["status_reason"], "connected"},
		{"belief", m["belief"], "online"},
		{"detection_delay_s", m["detection_delay_s"], 92.0},
		{"previous_status", last["previous_status"], "offline"},
		{"username", conn["username"], "fleet"},
		{"keep_alive_s", conn["keep_alive_s"], 61.0},
		{"clean_start", conn["clean_start"], false},
		{"session_expiry_s", conn["session_expiry_s"], nil},
		{"stale", fresh["stale"], false},
		{"lag_records", fresh["lag_records"], "0"},
		{"lag_ms", fresh["lag_ms"], "0"},
		{"feed", fresh["feed"], "ok"},
		{"node", fresh["node"], "ok"},
		{"applied_offset", fresh["applied_offset"], "1"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %v, want %v", c.what, c.got, c.want)
		}
	}
	if since, _ := m["since"].(string); !strings.HasSuffix(since, "Z") {
		t.Errorf("since %q is not RFC 3339", since)
	}
}

func TestRequestsThatAreWrong(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	fake.Apply(readertest.Connected("dev1"))
	s := serve(t, testConfig(t), fake)
	many, err := json.Marshal(map[string]any{"client_ids": make([]string, 1001)})
	if err != nil {
		t.Fatal(err)
	}
	const batch = "/v1/clients:batchGet"
	for _, c := range []struct {
		method, path, body string
		status             int
		says               string
	}{
		{"GET", "/web/nothing.js", "", 404, "/openapi.json"},
		{"GET", "/v2/clients/x", "", 404, "/openapi.json"},
		{"GET", "/v1/nothing", "", 404, "/openapi.json"},
		{"GET", "/v1/nothing", "", 404, "/openapi.json"},
		{"GET", "/v1/clients/a/b", "", 404, "%2F"},
		{"GET", "/client-id/a/b/status", "", 404, "%2F"},
		{"GET", "/client-id/dev1", "", 404, "/openapi.json"},
		{"GET", "/client-id/dev1/status/", "", 404, "/openapi.json"},
		{"GET", "//client-id/dev1/status", "", 404, "/openapi.json"},
		{"DELETE", "/client-id/dev1/status", "", 405, "DELETE"},
		{"POST", "/v1/clients/dev1", "", 405, "POST"},
		{"GET", batch, "", 405, "GET"},
		{"POST", "/openapi.json", "", 405, "POST"},
		{"GET", "/v1/clients/", "", 400, "client_id"},
		{"GET", "/client-id//status", "", 400, "client_id"},
		{"GET", "/v1/clients/dev1?min_offset=x", "", 400, "min_offset"},
		{"GET", "/v1/clients/dev1?min_offset=-1", "", 400, "min_offset"},
		{"GET", "/v1/clients/dev1?min_ofset=1", "", 400, "min_ofset"},
		{"GET", "/v1/clients/dev1?min_offset=1&min_offset=2", "", 400, "min_offset"},
		{"GET", "/v1/clients/dev1?cluster=a/b", "", 400, "cluster"},
		{"GET", "/client-id/dev1/status?cluster=A", "", 400, "cluster"},
		{"GET", "/v1/clients/dev1?cluster=%zz", "", 400, "query"},
		{"POST", batch, "", 400, "empty"},
		{"POST", batch, "{}", 400, "client_ids"},
		{"POST", batch, `{"client_ids":[]}`, 400, "client_ids"},
		{"POST", batch, `{"client_ids":["a",""]}`, 400, "client_ids[1]"},
		{"POST", batch, `{"client_ids":["a"],"min_offset":3}`, 400, "min_offset"},
		{"POST", batch, `{"client_ids":["a"]} {}`, 400, "body"},
		{"POST", batch, `{"client_ids":"a"}`, 400, "body"},
		{"POST", batch, `["a"]`, 400, "body"},
		{"POST", batch, `{"client_ids":["a"]`, 400, "body"},
		{"POST", batch, "{\"client_ids\":[\"\xff\"]}", 400, "UTF-8"},
		{"POST", batch + "?cluster=x", `{"client_ids":["a"]}`, 400, "cluster"},
		{"POST", batch, string(many), 400, "1,000"},
		{"POST", batch, strings.Repeat(" ", 8<<20+1), 413, "bytes"},
	} {
		t.Run(fmt.Sprintf("%s %s %.30s", c.method, c.path, c.body), func(t *testing.T) {
			a := s.do(c.method, c.path, "admin", c.body)
			m := a.fields(t)
			if a.status != c.status || !strings.Contains(fmt.Sprint(m["message"]), c.says) {
				t.Errorf("want %d and %q, got %d %.400s", c.status, c.says, a.status, a.body)
			}
			if code, _ := m["code"].(float64); code == 0 || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("no JSON error: %v %s", a.header, a.body)
			}
			if _, ok := m["details"].([]any); !ok {
				t.Errorf("no details: %s", a.body)
			}
			if a.status == http.StatusMethodNotAllowed && a.header.Get("Allow") == "" {
				t.Error("405 without Allow")
			}
		})
	}
}

// A browser that keeps credentials, or has a certificate, sends them along with what another site's page makes it ask.
func TestOtherSitesCannotAsk(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	post := func(header ...string) int {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/v1/indexes:check", strings.NewReader(`{"repair":true}`))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", basic("admin", password))
		for i := 0; i < len(header); i += 2 {
			r.Header.Set(header[i], header[i+1])
		}
		response, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Fatal(err)
		}
		return response.StatusCode
	}
	for _, c := range []struct {
		header []string
		want   int
	}{
		{nil, 200},
		{[]string{"Sec-Fetch-Site", "same-origin", "Origin", s.url}, 200},
		{[]string{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"}, 403},
		{[]string{"Sec-Fetch-Site", "same-site", "Origin", "https://evil.example"}, 403},
		{[]string{"Origin", "https://evil.example"}, 403},
		{[]string{"Origin", s.url}, 200},
	} {
		if got := post(c.header...); got != c.want {
			t.Errorf("%v: %d, want %d", c.header, got, c.want)
		}
	}
	if n := counterOf(t, s.reg, "presence_query_refused_total"); n != 3 {
		t.Errorf("%v requests were refused, want 3", n)
	}
	if n := counterOf(t, s.reg, "presence_query_audit_lines_total"); n != 6 {
		t.Errorf("%v lines were written to the audit log, want one for each", n)
	}
}

func TestMaxBatch(t *testing.T) {
	fake := readertest.NewFake(4)
	s := serve(t, testConfig(t), fake)
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprint("dev", i)
	}
	body, err := json.Marshal(map[string]any{"client_ids": ids, "cluster": "default"})
	if err != nil {
		t.Fatal(err)
	}
	m := s.do("POST", "/v1/clients:batchGet", "read", string(body)).fields(t)
	clients, _ := m["clients"].([]any)
	if len(clients) != len(ids) {
		t.Fatalf("%d clients", len(clients))
	}
	for i, c := range clients {
		if c, _ := c.(map[string]any); c["client_id"] != ids[i] || c["status"] != "unknown" || c["status_reason"] != "never_seen" {
			t.Fatalf("client %d is %v", i, c)
		}
	}
	fresh, _ := m["freshness"].(map[string]any)
	if fresh["stale"] != true || fmt.Sprint(fresh["stale_reasons"]) != "[feed_down]" || fresh["feed"] != "down" {
		t.Errorf("freshness of a cluster without a feed: %v", fresh)
	}
}

func TestOpenAPI(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	a := s.do("GET", "/openapi.json", "", "")
	m := a.fields(t)
	paths, _ := m["paths"].(map[string]any)
	if a.status != 200 || a.header.Get("Content-Type") != "application/json" || a.body != string(presencev1.OpenAPI()) {
		t.Errorf("%d %v", a.status, a.header)
	}
	for _, p := range []string{"/client-id/{client_id}/status", "/v1/clients/{client_id}", "/v1/clients:batchGet"} {
		if paths[p] == nil {
			t.Errorf("path %s is not listed", p)
		}
	}
}

func TestReadYourEvent(t *testing.T) {
	fake := readertest.NewFake(1)
	fake.Apply(readertest.Connected("dev1"))
	cfg := testConfig(t)
	cfg.RequestTimeout = 100 * 1e6
	s := serve(t, cfg, fake)
	if a := s.do("GET", "/v1/clients/dev1?min_offset=0", "read", ""); a.status != 200 {
		t.Errorf("offset 0 is applied: %d %s", a.status, a.body)
	}
	a := s.do("GET", "/v1/clients/dev1?min_offset=1", "read", "")
	if a.status != 503 || a.header.Get("Retry-After") != "1" || !strings.Contains(a.body, "MIN_OFFSET_NOT_REACHED") {
		t.Errorf("offset 1 is not applied: %d %v %s", a.status, a.header, a.body)
	}
	offset := int64(1)
	_, err := s.rpc.GetClient(as(t, "read"), &presencev1.GetClientRequest{ClientId: "dev1", MinOffset: &offset})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("offset 1 is not applied: %v", err)
	}
}

func TestReaderErrors(t *testing.T) {
	fake := readertest.NewFake(1)
	cfg := testConfig(t)
	s := serve(t, cfg, fake)
	for _, c := range []struct {
		err    error
		status int
		code   codes.Code
		says   string
	}{
		{status.Error(codes.Unavailable, "partition 3 has no owner"), 503, codes.Unavailable, "partition 3"},
		{fmt.Errorf("pebble: /data/000001.sst is corrupt"), 500, codes.Internal, "could not be read"},
		{status.Error(codes.Internal, "secret"), 500, codes.Internal, "could not be read"},
	} {
		fake.Edit(func(*presencev1.GetStatesResponse) error { return c.err })
		for _, path := range []string{"/client-id/x/status", "/v1/clients/x"} {
			a := s.do("GET", path, "admin", "")
			if a.status != c.status || !strings.Contains(a.body, c.says) || strings.Contains(a.body, "secret") || strings.Contains(a.body, "sst") {
				t.Errorf("%v on %s: %d %s", c.err, path, a.status, a.body)
			}
			if a.status == 503 && a.header.Get("Retry-After") != "1" {
				t.Errorf("503 with Retry-After %q", a.header.Get("Retry-After"))
			}
		}
		if _, err := s.rpc.GetStatus(as(t, "admin"), &presencev1.GetStatusRequest{ClientId: "x"}); status.Code(err) != c.code || strings.Contains(err.Error(), "secret") {
			t.Errorf("%v over gRPC: %v", c.err, err)
		}
	}
	// A reader that owns nothing.
	fake.Edit(nil)
	fake.Own()
	if a := s.do("GET", "/client-id/x/status", "admin", ""); a.status != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
	if a := s.do("POST", "/v1/clients:batchGet", "admin", `{"client_ids":["x"]}`); a.status != 503 {
		t.Errorf("%d %s", a.status, a.body)
	}
}
