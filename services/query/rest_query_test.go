package query_test

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// fieldOf returns the field that an error answer names in its details.
func fieldOf(t *testing.T, a answer) string {
	t.Helper()
	details, _ := a.fields(t)["details"].([]any)
	for _, d := range details {
		d, _ := d.(map[string]any)
		violations, _ := d["field_violations"].([]any)
		for _, v := range violations {
			v, _ := v.(map[string]any)
			return fmt.Sprint(v["field"])
		}
	}
	return ""
}

func TestParametersThatAreWrongAreNamed(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.Apply(readertest.Connected("dev1"))
	s := serve(t, testConfig(t), fake)
	long := strings.Repeat("x", 65_536)
	for _, c := range []struct{ method, path, body, field, says string }{
		{"GET", "/v1/clients/dev1?min_offset=x", "", "min_offset", "whole number"},
		{"GET", "/v1/clients/dev1?min_offset=9223372036854775808", "", "min_offset", "whole number"},
		{"GET", "/v1/clients/dev1?min_offset=", "", "min_offset", "whole number"},
		{"GET", "/v1/clients/dev1?min_offset=-1", "", "min_offset", "negative"},
		{"GET", "/v1/clients/dev1?min_offset=1&min_offset=1", "", "min_offset", "once"},
		{"GET", "/v1/clients/dev1?node=n", "", "node", "unknown"},
		{"GET", "/v1/clients/dev1?%FF=n", "", "\ufffd", "unknown"},
		{"GET", "/v1/clients/dev1/sessions?at=yesterday", "", "at", "RFC 3339"},
		{"GET", "/v1/clients/dev1/sessions?at=0000-01-01T00:00:00Z", "", "at", "RFC 3339"},
		{"GET", "/v1/clients/dev1/sessions?at=2026-01-31T12:00:00+01:00", "", "at", "%2B"},
		{"GET", "/v1/clients?page_size=x", "", "page_size", "whole number"},
		{"GET", "/v1/clients?page_size=3000000000", "", "page_size", "whole number"},
		{"GET", "/v1/clients?page_size=-1", "", "page_size", "1,000"},
		{"GET", "/v1/clients?page_size=1001", "", "page_size", "1,000"},
		{"GET", "/v1/clients?since_from=1", "", "since_from", "RFC 3339"},
		{"GET", "/v1/clients?since_from=", "", "since_from", "RFC 3339"},
		{"GET", "/v1/clients?since_from=1969-12-31T23:59:59Z", "", "since_from", "1970"},
		{"GET", "/v1/clients?since_before=1969-12-31T23:59:59Z", "", "since_before", "1970"},
		{"GET", "/v1/clients?since_from=2026-01-01T00:00:00Z&since_before=2026-01-01T00:00:00Z", "", "since_before", "not after"},
		{"GET", "/v1/clients?since_from=2026-01-02T00:00:00Z&since_before=2026-01-01T00:00:00Z", "", "since_before", "not after"},
		{"GET", "/v1/clients?status=Online", "", "status", "online"},
		{"GET", "/v1/clients?status=%FF", "", "status", "UTF-8"},
		{"GET", "/v1/clients?node=%FF", "", "node", "UTF-8"},
		{"GET", "/v1/clients?username=%C3", "", "username", "UTF-8"},
		{"GET", "/v1/clients?client_id_prefix=a%FF", "", "client_id_prefix", "UTF-8"},
		{"GET", "/v1/clients?client_id_prefix=" + long, "", "client_id_prefix", "65,535"},
		{"GET", "/v1/clients?node=" + long, "", "node", "65,535"},
		{"GET", "/v1/clients?cluster=A", "", "cluster", "a-z"},
		{"GET", "/v1/clients?page_token=x", "", "page_token", "page_token"},
		{"GET", "/v1/clients?node=%zz", "", "query", "percent-encoded"},
		{"GET", "/v1/stats?skip_usernames=1", "", "skip_usernames", "true or false"},
		{"GET", "/v1/stats?page_token=x", "", "page_token", "page_token"},
		{"GET", "/v1/stats?page_size=1001", "", "page_size", "1,000"},
		{"GET", "/v1/nodes?cluster=a/b", "", "cluster", "a-z"},
		{"DELETE", "/v1/clients/dev1?cluster=A", "", "cluster", "a-z"},
		{"DELETE", "/v1/clients/%FF", "", "client_id", "UTF-8"},
		{"DELETE", "/v1/clients/", "", "client_id", "empty"},
		{"GET", "/v1/clients/%FF/sessions", "", "client_id", "UTF-8"},
		{"POST", "/v1/indexes:check", `{"repair":"yes"}`, "body", "body"},
		{"POST", "/v1/indexes:check", "", "body", "empty"},
		{"POST", "/v1/replicas:compare", `{"partitions":[0,-1]}`, "partitions", "negative"},
		{"POST", "/v1/replicas:compare", `{"partitions":[4294967296]}`, "body", "body"},
		{"POST", "/v1/replicas:compare", "", "body", "empty"},
		{"POST", "/v1/clients:batchGet", `{"client_ids":["\ud800"]}`, "body", "body"},
	} {
		t.Run(fmt.Sprintf("%s %.60s", c.method, c.path), func(t *testing.T) {
			a := s.do(c.method, c.path, "admin", c.body)
			if field := fieldOf(t, a); a.status != 400 || field != c.field || !strings.Contains(fmt.Sprint(a.fields(t)["message"]), c.says) {
				t.Errorf("want 400, field %q and %q, got %d %q %.400s", c.field, c.says, a.status, field, a.body)
			}
		})
	}
	if fake.Calls() != 0 {
		t.Errorf("the reader was asked %d times", fake.Calls())
	}
	// What the call that it stands in for lets pass.
	if a := s.do("GET", "/client-id/dev1/status?anything=1&anything=2", "connect", ""); a.status != 200 {
		t.Errorf("%d %s", a.status, a.body)
	}
}

// net/http itself refuses these.
func TestMalformedPathIsAJSONError(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	for _, path := range []string{"/v1/clients/a%2", "/v1/clients/%zz", "/client-id/%/status", "/client-id/a%2/status"} {
		conn, err := net.Dial("tcp", s.service.HTTPAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\n\r\n", path, basic("admin", password)); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		body := make([]byte, 4096)
		n, _ := response.Body.Read(body)
		a := answer{response.StatusCode, response.Header, string(body[:n])}
		if a.status != 400 || fieldOf(t, a) != "client_id" || a.header.Get("Content-Type") != "application/json" || a.header.Get("X-Content-Type-Options") != "nosniff" ||
			a.fields(t)["code"] != 3.0 {
			t.Errorf("%s: %d %v %s", path, a.status, a.header, a.body)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	}
}

// A string that is not UTF-8 is named over gRPC too.
func TestGRPCNamesTheFieldThatIsNotUTF8(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	for _, c := range []struct {
		method string
		number protowire.Number
		field  string
	}{
		{presencev1.PresenceService_ListClients_FullMethodName, 1, "cluster"},
		{presencev1.PresenceService_ListClients_FullMethodName, 3, "node"},
		{presencev1.PresenceService_ListClients_FullMethodName, 5, "client_id_prefix"},
		{presencev1.PresenceService_BatchGetClients_FullMethodName, 1, "client_ids"},
		{presencev1.PresenceService_DeleteClient_FullMethodName, 1, "client_id"},
	} {
		body := protowire.AppendVarint(protowire.AppendTag(nil, 100, protowire.VarintType), 1)
		body = protowire.AppendString(protowire.AppendTag(body, c.number, protowire.BytesType), "a\xff")
		err := s.conn.Invoke(as(t, "admin"), c.method, &body, &presencev1.Client{}, grpc.ForceCodec(rawCodec{}))
		field := ""
		for _, d := range status.Convert(err).Details() {
			if bad, ok := d.(*errdetails.BadRequest); ok {
				field = bad.GetFieldViolations()[0].GetField()
			}
		}
		if status.Code(err) != codes.InvalidArgument || field != c.field {
			t.Errorf("%s: field %q, want %q: %v", c.method, field, c.field, err)
		}
	}
}
