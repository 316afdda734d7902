package query_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

var assetPattern = regexp.MustCompile(`(?:href|src)="(web/[^"]+)"`)

// pageServer serves the page and returns it with the paths of the assets that it names.
func pageServer(t *testing.T) (s *server, page answer, assets []string) {
	t.Helper()
	s = serve(t, testConfig(t), readertest.NewFake(1))
	page = s.do("GET", "/", "", "")
	for _, m := range assetPattern.FindAllStringSubmatch(page.body, -1) {
		assets = append(assets, "/"+m[1])
	}
	if page.status != http.StatusOK || len(assets) < 3 {
		t.Fatalf("the page answers %d and names %v", page.status, assets)
	}
	return s, page, assets
}

func TestWebPageHeaders(t *testing.T) {
	s, page, assets := pageServer(t)
	types := map[string]string{"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml", "/": "text/html; charset=utf-8"}
	for _, path := range append(assets, "/") {
		a := s.do("GET", path, "", "")
		for name, want := range map[string]string{
			"Content-Type": types[path[strings.LastIndexAny(path, "./")+1:]], "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
			"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Www-Authenticate": "",
		} {
			if path == "/" && name == "Content-Type" {
				want = types["/"]
			}
			if got := a.header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", path, name, got, want)
			}
		}
		if a.status != http.StatusOK || len(a.body) == 0 {
			t.Errorf("%s: %d with %d bytes", path, a.status, len(a.body))
		}
		policy := a.header.Get("Content-Security-Policy")
		for _, want := range []string{
			"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'",
			"frame-ancestors 'none'", "require-trusted-types-for 'script'",
		} {
			if !strings.Contains(policy+";", want+";") {
				t.Errorf("%s: the content security policy %q lacks %q", path, policy, want)
			}
		}
		if strings.Contains(policy, "unsafe") || strings.Contains(policy, "*") {
			t.Errorf("%s: the content security policy is %q", path, policy)
		}
		immutable := strings.Contains(a.header.Get("Cache-Control"), "immutable")
		if immutable != (path != "/") {
			t.Errorf("%s: Cache-Control is %q", path, a.header.Get("Cache-Control"))
		}
	}
	// What the policy forbids must not be in the page either.
	for _, forbidden := range []string{"<style", " style=", "javascript:", "onclick=", "http://", "https://"} {
		if strings.Contains(page.body, forbidden) {
			t.Errorf("the page has %q", forbidden)
		}
	}
}

// TestWebPageAsks lets a browser ask again: with the ETag nothing is sent twice.
func TestWebPageAsks(t *testing.T) {
	h := pageHandler(t)
	ask := func(method, path, etag string) *http.Response {
		r := httptest.NewRequest(method, path, nil)
		if etag != "" {
			r.Header.Set("If-None-Match", etag)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		return w.Result()
	}
	first := ask("GET", "/", "")
	etag := first.Header.Get("Etag")
	if etag == "" {
		t.Fatal("the page has no ETag")
	}
	if again := ask("GET", "/", etag); again.StatusCode != http.StatusNotModified || again.ContentLength > 0 {
		t.Errorf("with its ETag the page answers %d", again.StatusCode)
	}
	if other := ask("GET", "/", `"other"`); other.StatusCode != http.StatusOK {
		t.Errorf("with another ETag the page answers %d", other.StatusCode)
	}
	head := ask("HEAD", "/", "")
	if head.StatusCode != http.StatusOK || head.Header.Get("Content-Length") != first.Header.Get("Content-Length") || head.ContentLength == 0 {
		t.Errorf("HEAD answers %d, %v", head.StatusCode, head.Header)
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if a := ask(method, "/", ""); a.StatusCode != http.StatusMethodNotAllowed || a.Header.Get("Allow") != "GET, HEAD" {
			t.Errorf("%s / answers %d, Allow %q", method, a.StatusCode, a.Header.Get("Allow"))
		}
	}
}

func pageHandler(t *testing.T) http.Handler {
	t.Helper()
	h, err := query.Handler(testConfig(t), readertest.NewFake(1), discardLog(), newRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// TestWebPageShadowsNothing: the page is at / and below /web/, and what is not one of its files is as absent as before.
func TestWebPageShadowsNothing(t *testing.T) {
	s, _, assets := pageServer(t)
	script := assets[len(assets)-1]
	for _, path := range []string{
		"/index.html", "/web", "/web/", "/web/index.html", "/web/app.js", "/web/assets/app.js", "/web/../app.js", "//", "/%2f", "/web%2f", "/?", "/web/0000000000000000/app.js",
		script + "/", strings.Replace(script, "/web/", "/web//", 1), strings.Replace(script, ".", "%2e", 1) + "%00", script[:strings.LastIndex(script, "/")+1],
	} {
		want := http.StatusNotFound
		if path == "/?" {
			want = http.StatusOK
		}
		if a := s.do("GET", path, "", ""); a.status != want {
			t.Errorf("GET %s answers %d, want %d", path, a.status, want)
		}
	}
	for path, want := range map[string]int{"/v1/clients/x": 401, "/client-id/x/status": 401, "/openapi.json": 200} {
		if a := s.do("GET", path, "", ""); a.status != want || !strings.HasPrefix(a.header.Get("Content-Type"), "application/json") {
			t.Errorf("GET %s answers %d with %s", path, a.status, a.header.Get("Content-Type"))
		}
	}
}

// TestWebPageAsksForCredentialsItself: the page's own requests get a challenge that opens no dialog, all others the one of the contract.
func TestWebPageAsksForCredentialsItself(t *testing.T) {
	h := pageHandler(t)
	for mark, want := range map[string]string{"presence-page": "X-Basic ", "": "Basic ", "XMLHttpRequest": "Basic "} {
		for _, path := range []string{"/v1/clients/x", "/v1/stats", "/client-id/x/status"} {
			r := httptest.NewRequest("GET", path, nil)
			r.Header.Set("X-Requested-With", mark)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if got := w.Header().Get("WWW-Authenticate"); w.Code != http.StatusUnauthorized || !strings.HasPrefix(got, want) {
				t.Errorf("%s for X-Requested-With %q answers %d with the challenge %q, want %s", path, mark, w.Code, got, want)
			}
		}
	}
}

// TestWebPageBuildsNoHTML keeps what would read a text as HTML or as code out of the scripts.
func TestWebPageBuildsNoHTML(t *testing.T) {
	forbidden := regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|srcdoc|\beval\b|new Function|https?://[^w]`)
	files, err := os.ReadDir("web")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files: %v", len(files), err)
	}
	for _, f := range files {
		content, err := os.ReadFile("web/" + f.Name())
		if err != nil {
			t.Fatal(err)
		}
		if found := forbidden.FindAllString(string(content), -1); found != nil {
			t.Errorf("%s has %q", f.Name(), found)
		}
	}
}
