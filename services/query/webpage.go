package query

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
)

const (
	callPage  = "page" // the web page and what it loads
	pagePath  = "/"
	assetPath = "/web/"
	// pageMark is the value of X-Requested-With on the page's own requests.
	pageMark = "presence-page"

	// pagePolicy allows the page its own scripts, styles, icon and calls, and nothing else: what a client ID says is never code.
	pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; " +
		"form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

//go:embed web
var webFiles embed.FS

// asset is a file as it goes out.
type asset struct {
	content     []byte
	contentType []string
	etag        []string
}

// webPage serves the page at / and its assets below /web/<hash of them all>/. They hold no data, so that they need no account: the page
// asks the calls of the contract, with the credentials that its user gives.
type webPage struct {
	index  *asset
	assets map[string]*asset // by path
}

var assetTypes = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// newWebPage reads the embedded files. The index names its assets web/assets/NAME; that folder becomes one whose name changes with them, so that
// they may be cached for good.
func newWebPage() (*webPage, error) {
	files := map[string][]byte{}
	all := sha256.New()
	err := fs.WalkDir(webFiles, "web", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := webFiles.ReadFile(name)
		if err != nil {
			return err
		}
		if assetTypes[path.Ext(name)] == "" {
			return fmt.Errorf("%s has no content type", name)
		}
		files[strings.TrimPrefix(name, "web/")] = content
		fmt.Fprintf(all, "%s %d\n%s", name, len(content), content)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the web page's files: %w", err)
	}
	folder := strings.TrimPrefix(assetPath, "/") + hex.EncodeToString(all.Sum(nil)[:8]) + "/"
	p := &webPage{assets: map[string]*asset{}}
	for name, content := range files {
		if name == "index.html" {
			p.index = newAsset(name, bytes.ReplaceAll(content, []byte("web/assets/"), []byte(folder)))
			continue
		}
		p.assets["/"+folder+name] = newAsset(name, content)
	}
	return p, nil
}

func newAsset(name string, content []byte) *asset {
	sum := sha256.Sum256(content)
	return &asset{content, []string{assetTypes[path.Ext(name)]}, []string{`"` + hex.EncodeToString(sum[:16]) + `"`}}
}

// find returns what a path names, nil if nothing.
func (p *webPage) find(path string) *asset {
	if path == pagePath {
		return p.index
	}
	return p.assets[path]
}

// page answers / and /web/.
func (h *rest) page(w http.ResponseWriter, r *http.Request, path string) {
	began := time.Now()
	found := h.web.find(path)
	if found == nil {
		h.fail(w, callNone, http.StatusNotFound, errNoSuchPath(""))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		h.fail(w, callPage, http.StatusMethodNotAllowed, errNoSuchMethod(r.Method))
		return
	}
	header := w.Header()
	header["Content-Type"] = found.contentType
	header["Etag"] = found.etag
	header.Set("Referrer-Policy", "no-referrer")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Content-Security-Policy", pagePolicy)
	if path == pagePath {
		header.Set("Cache-Control", "no-cache") // asked for again each time, mostly answered 304
	} else {
		header.Set("Cache-Control", "public, max-age=31536000, immutable")
	}
	// It answers If-None-Match, ranges and HEAD.
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(found.content))
	h.metrics.observe(overREST, callPage, codes.OK, began)
}

// forPage returns a writer for a request of the page. To the challenge Basic a browser opens a dialog of its own, whose credentials it keeps
// until it ends; the page has a form. It is asked with a scheme that no browser knows, everybody else with Basic.
func forPage(w http.ResponseWriter, r *http.Request) http.ResponseWriter {
	if r.Header.Get("X-Requested-With") != pageMark {
		return w
	}
	return &pageWriter{ResponseWriter: w}
}

type pageWriter struct{ http.ResponseWriter }

func (w *pageWriter) WriteHeader(code int) {
	if code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `X-Basic realm="presence", charset="UTF-8"`)
	}
	w.ResponseWriter.WriteHeader(code)
}

// Unwrap lets http.ResponseController flush and set deadlines.
func (w *pageWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// Flush is for those who look for http.Flusher instead.
func (w *pageWriter) Flush() { _ = http.NewResponseController(w.ResponseWriter).Flush() }
