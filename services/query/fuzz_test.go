package query_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// listening remembers which client was asked for.
type listening struct {
	presencev1.UnimplementedStateServiceServer
	asked *[]string
}

func (l listening) GetStates(_ context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	r := &presencev1.GetStatesResponse{}
	for i, k := range req.GetKeys() {
		*l.asked = append(*l.asked, k.GetClientId())
		r.Entries = append(r.Entries, &presencev1.StateEntry{Index: uint32(i), Found: true, Status: "online", Belief: "online"})
	}
	return r, nil
}

// FuzzPath sends any path, and checks that a client ID is asked for exactly as it was encoded, the same by all calls, and that
// everything else is a JSON error.
func FuzzPath(f *testing.F) {
	for _, id := range readertest.IDs() {
		if len(id) < 100 {
			f.Add(escape(id))
			f.Add(id)
		}
	}
	for _, s := range []string{"", "%FF", "%00", "..%2f..", "%2e%2E", "a//b", "x%2", ";", "\u202e", "a:batchGet", "%zz", "a\"b%2Fc"} {
		f.Add(s)
	}
	var asked []string
	handler, err := query.Handler(testConfig(f), listening{asked: &asked}, discardLog(), newRegistry())
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, segment string) {
		for _, path := range []string{"/client-id/" + segment + "/status", "/v1/clients/" + segment, "/v1/clients/" + segment + "/explanation", "/v1/clients/" + segment + "/sessions"} {
			u, err := url.ParseRequestURI(path)
			if err != nil || u.RawQuery != "" || u.ForceQuery {
				continue // net/http refuses it, or it is another path.
			}
			if path == "/v1/clients/"+segment && (strings.HasSuffix(path, "/explanation") || strings.HasSuffix(path, "/sessions")) {
				continue // that is the other call
			}
			asked = asked[:0]
			r := &http.Request{Method: http.MethodGet, URL: u, Header: http.Header{"Authorization": {basic("admin", password)}}, Body: http.NoBody}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r.WithContext(t.Context()))
			id, err := url.PathUnescape(segment)
			valid := err == nil && id != "" && len(id) <= 65_535 && utf8.ValidString(id)
			switch {
			case strings.Contains(segment, "/"):
				if w.Code != 404 || len(asked) != 0 {
					t.Errorf("%q: %d %s, asked for %q", path, w.Code, w.Body, asked)
				}
			case valid:
				if w.Code != 200 || len(asked) != 1 || asked[0] != id {
					t.Errorf("%q: %d %s, asked for %q, want %q", path, w.Code, w.Body, asked, id)
				}
			default:
				if w.Code != 400 || len(asked) != 0 {
					t.Errorf("%q: %d %s, asked for %q", path, w.Code, w.Body, asked)
				}
			}
			if !json.Valid(w.Body.Bytes()) {
				t.Errorf("%q: %d %q is no JSON", path, w.Code, w.Body)
			}
		}
	})
}

// FuzzQuery sends any query to the calls that take one, and checks that the answer is one of theirs, or an error that names a field.
func FuzzQuery(f *testing.F) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	for _, id := range readertest.IDs() {
		fake.Apply(readertest.Connected(id))
	}
	handler, err := query.Handler(testConfig(f), fake, discardLog(), newRegistry())
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{
		"", "cluster=default", "cluster=", "status=online&node=n1&username=fleet", "client_id_prefix=%E6%97", "page_size=1&page_token=AQ", "page_size=-0", "page_size=+1",
		"since_from=2026-01-31T12:00:00Z", "since_from=2026-01-31T12:00:00.0000000001Z&since_before=9999-12-31T23:59:59.999999999Z",
		"since_before=9999-12-31T23:59:59-23:59", "at=2026-01-31T12:00:00%2B01:00", "at=0001-01-01T00:00:00Z", "at=9999-12-31T24:00:00Z", "min_offset=0", "skip_usernames=true", "skip_usernames=T",
		"a;b", "%zz", "&&&=", "page_token=" + strings.Repeat("A", 90_000), "page_size=1_0", "since_from=null", "status=unknown&status=unknown",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, path := range []string{"/v1/clients", "/v1/stats", "/v1/nodes", "/v1/clients/dev1/sessions", "/v1/clients/dev1"} {
			u, err := url.ParseRequestURI(path + "?" + raw)
			if err != nil {
				continue // net/http refuses it.
			}
			if strings.Contains(raw, "min_offset") {
				continue // that would wait
			}
			r := &http.Request{Method: http.MethodGet, URL: u, Header: http.Header{"Authorization": {basic("admin", password)}}, Body: http.NoBody}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r.WithContext(t.Context()))
			var body map[string]any
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatalf("%s?%s: %d %q is no JSON object", path, raw, w.Code, w.Body)
			}
			switch w.Code {
			case 200:
				if body["freshness"] == nil {
					t.Errorf("%s?%s: no freshness in %.300s", path, raw, w.Body)
				}
			case 400:
				if !strings.Contains(w.Body.String(), "field_violations") {
					t.Errorf("%s?%s: no field is named: %s", path, raw, w.Body)
				}
			default:
				t.Errorf("%s?%s: %d %.300s", path, raw, w.Code, w.Body)
			}
		}
	})
}
