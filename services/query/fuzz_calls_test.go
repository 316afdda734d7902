package query_test

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// FuzzBody sends any body to the calls that have one: each answer is theirs, or an error that names a field.
func FuzzBody(f *testing.F) {
	fake := readertest.NewFake(4)
	fake.Apply(readertest.Connected("dev1"))
	handler, err := query.Handler(testConfig(f), fake, discardLog(), newRegistry())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		"", "{}", "null", "[]", `{"client_ids":["dev1"]}`, `{"client_ids":["dev1"],"cluster":"default"}`, `{"clientIds":["dev1"]}`, `{"client_ids":[null]}`, `{"client_ids":"dev1"}`,
		`{"client_ids":["a"]}{}`, `{"client_ids":["a"],"client_ids":["b"]}`, `{"client_ids":[""]}`, "{\"client_ids\":[\"\xff\"]}", `{"client_ids":["\ud800"]}`, `{"client_ids":["\u0000"]}`,
		`{"repair":false}`, `{"repair":1}`, `{"partitions":[0,1]}`, `{"x":{}}`, strings.Repeat("[", 20_000), `{"client_ids":` + strings.Repeat("[", 20_000), "\ufeff{}", `{"client_ids":[` + strings.Repeat(`"a",`, 1_000) + `"a"]}`,
	} {
		f.Add([]byte(s), "application/json")
	}
	f.Add([]byte("client_ids=a"), "application/x-www-form-urlencoded")
	f.Add([]byte("\x0a\x01a"), "application/x-protobuf")
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		for _, path := range []string{"/v1/clients:batchGet", "/v1/indexes:check", "/v1/replicas:compare", "/client-id/dev1/status"} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, path, bytes.NewReader(body))
			r.Header = http.Header{"Authorization": {basic("admin", password)}, "Content-Type": {contentType}}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			var answer map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatalf("%s: %d %q is no JSON object", path, w.Code, w.Body)
			}
			switch {
			case w.Code == 200:
				if strings.HasPrefix(path, "/v1/") && answer["freshness"] == nil {
					t.Errorf("%s with %q: no freshness in %.300s", path, body, w.Body)
				}
			case w.Code == 400 && path == "/v1/replicas:compare" && strings.Contains(w.Body.String(), "one replica only"):
			case w.Code == 400 && (strings.Contains(w.Body.String(), "field_violations") || strings.Contains(w.Body.String(), "the body")):
			default:
				t.Errorf("%s with %q: %d %.300s", path, body, w.Code, w.Body)
			}
		}
	})
}

// FuzzHeaders sends any value of the headers that the service reads: nothing but the right authorization lets anybody in, and no value
// makes an answer of 500 or more.
func FuzzHeaders(f *testing.F) {
	fake := readertest.NewFake(4)
	fake.Apply(readertest.Connected("dev1"))
	handler, err := query.Handler(testConfig(f), fake, discardLog(), newRegistry())
	if err != nil {
		f.Fatal(err)
	}
	right := basic("admin", password)
	for _, s := range []string{
		"", right, strings.ToLower(right), " " + right, right + " ", "Basic", "Basic ", "basic\t" + right[6:], "Bearer", "Bearer a.b.c", "Bearer " + strings.Repeat("A", 20_000), "Basic ====",
		"Basic " + strings.Repeat("QQ==", 3_000), "Basic Og==", "Basic YWRtaW46", "Negotiate x", "Basic YWRtaW4AOmE=", "\xff", "null",
	} {
		f.Add("Authorization", s)
	}
	for _, name := range []string{"Last-Event-ID", "Accept", "Content-Type", "Origin", "X-Requested-With", "X-Forwarded-For", "X-HTTP-Method-Override", "Grpc-Timeout", "Grpc-Metadata-Authorization",
		"If-None-Match", "Range", "Expect", "Sec-Fetch-Site", "Content-Encoding", "Accept-Encoding", "Host"} {
		f.Add(name, "1S")
		f.Add(name, "*")
		f.Add(name, right)
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		name = http.CanonicalHeaderKey(name)
		for _, path := range []string{"/client-id/dev1/status", "/v1/clients/dev1", "/v1/clients", "/v1/stats", "/v1/nodes", "/v1/clients:watch", "/openapi.json", "/"} {
			for _, let := range []bool{false, true} {
				r := &http.Request{Method: http.MethodGet, URL: &url.URL{Path: path}, Header: http.Header{name: {value}}, Body: http.NoBody}
				if let {
					r.Header["Authorization"] = []string{right}
				}
				w := httptest.NewRecorder()
				handler.ServeHTTP(w, r.WithContext(t.Context()))
				free := path == "/" || path == "/openapi.json"
				allowed := free || let || name == "Authorization" && basicIs(value, right)
				switch {
				case w.Code == 501 && path == "/v1/clients:watch" && allowed: // there is no Kafka here
				case w.Code >= 500:
					t.Errorf("%s with %s %q: %d %.300s", path, name, value, w.Code, w.Body)
				case !allowed && w.Code != 401:
					t.Errorf("%s with %s %q and nothing else: %d %.300s", path, name, value, w.Code, w.Body)
				}
			}
		}
	})
}

// basicIs reports whether an authorization is the given one: the scheme is not case-sensitive.
func basicIs(value, right string) bool {
	return len(value) == len(right) && strings.EqualFold(value[:6], right[:6]) && value[6:] == right[6:]
}

// FuzzMessage sends any bytes as the request of every gRPC call: the answer is the call's, or an error that the caller can mend.
func FuzzMessage(f *testing.F) {
	fake := readertest.NewFake(4)
	fake.Apply(readertest.Connected("dev1"))
	cfg := testConfig(f)
	cfg.RequestTimeout = 20 * time.Millisecond // of a min_offset that does not come
	s := serve(f, cfg, fake)
	for _, m := range []proto.Message{
		&presencev1.GetStatusRequest{ClientId: "dev1", Cluster: "default"}, &presencev1.GetClientRequest{ClientId: "dev1", MinOffset: proto.Int64(1 << 62)},
		&presencev1.BatchGetClientsRequest{ClientIds: []string{"dev1", "a/b"}}, &presencev1.ListClientsRequest{Status: "online", PageSize: 3, PageToken: "AQ"},
		&presencev1.GetStatsRequest{SkipUsernames: true}, &presencev1.CheckIndexesRequest{}, &presencev1.CompareReplicasRequest{Partitions: []int32{1}}, &presencev1.WatchClientsRequest{ClientIds: []string{"dev1"}, ResumeToken: "AQ"},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add(protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "\xff"))
	f.Add([]byte{0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, message []byte) {
		check := func(method string, err error) {
			switch status.Code(err) {
			case codes.OK, codes.InvalidArgument, codes.NotFound, codes.FailedPrecondition:
			case codes.Unimplemented, codes.Unavailable:
				if method != "DeleteClient" && method != "WatchClients" { // there is no Kafka here
					t.Errorf("%s with %x: %v", method, message, err)
				}
			default:
				t.Errorf("%s with %x: %v", method, message, err)
			}
		}
		for _, m := range presencev1.PresenceService_ServiceDesc.Methods {
			answer := &emptypb.Empty{} // what it holds is kept as unknown
			check(m.MethodName, s.conn.Invoke(as(t, "admin"), "/presence.v1.PresenceService/"+m.MethodName, &message, answer, grpc.ForceCodec(rawCodec{})))
		}
		stream, err := s.conn.NewStream(as(t, "admin"), &presencev1.PresenceService_ServiceDesc.Streams[0], presencev1.PresenceService_WatchClients_FullMethodName, grpc.ForceCodec(rawCodec{}))
		if err != nil {
			t.Fatal(err)
		}
		if err = stream.SendMsg(&message); err == nil {
			err = stream.CloseSend()
		}
		if err == nil {
			err = stream.RecvMsg(&emptypb.Empty{})
		}
		check("WatchClients", err)
	})
}
