package query

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	seedPrefix = "/client-id/"
	seedSuffix = "/status"
	// maxURL bounds path and query, in bytes: the longest client ID, percent-encoded, has 192 KiB.
	maxURL = 256 << 10
	// maxBody bounds the body of a request, in bytes: 1,000 client IDs of 8 KiB each.
	maxBody = 8 << 20
)

// rest serves all HTTP calls. It looks at the path as it was sent: a mux would clean it, and "." and ".." are client IDs.
type rest struct {
	answers *answers
	gate    *gate
	metrics *metrics
	calls   *calls
	gateway http.Handler
	origins *http.CrossOriginProtection
	openAPI []byte
	web     *webPage

	bodyOnline, bodyOffline                      []byte
	contentType, noStore, noSniff, statusUnknown []string
}

func newREST(a *answers, g *gate, m *metrics) (*rest, error) {
	web, err := newWebPage()
	if err != nil {
		return nil, err
	}
	h := &rest{
		answers: a, gate: g, metrics: m, calls: newCalls(), origins: http.NewCrossOriginProtection(), openAPI: presencev1.OpenAPI(), web: web,
		bodyOnline: []byte(`{"online":true}`), bodyOffline: []byte(`{"online":false}`),
		contentType: []string{"application/json"}, noStore: []string{"no-store"}, noSniff: []string{"nosniff"}, statusUnknown: []string{"unknown"},
	}
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, &jsonCodec{runtime.JSONPb{
			// Fields without presence are always there (stale, lists); optional fields and messages only if they are known.
			MarshalOptions: protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true},
		}}),
		runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptReserved),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableHTTPMethodOverride(),
		runtime.WithWriteContentLength(),
		runtime.WithMiddlewares(h.v1),
		runtime.WithErrorHandler(h.v1Error),
		runtime.WithRoutingErrorHandler(h.v1RoutingError),
	)
	if err := presencev1.RegisterPresenceServiceHandlerServer(context.Background(), mux, a); err != nil {
		return nil, fmt.Errorf("register the REST calls: %w", err)
	}
	h.gateway = mux
	return h, nil
}

// ServeHTTP dispatches on the escaped path.
func (h *rest) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	withTLS(r)
	// RawPath is the path as sent, if that is not the default encoding of Path. EscapedPath would encode Path anew where RawPath holds a
	// byte that should have been escaped, and so lose which slashes were.
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.EscapedPath()
	}
	// Client IDs and usernames are in the answers: nothing of them is to be taken for a page or a script.
	w.Header()["X-Content-Type-Options"] = h.noSniff
	w = forPage(w, r)
	if err := h.knock(w, r, path); err != nil {
		return
	}
	switch {
	case strings.HasPrefix(path, seedPrefix):
		h.seed(w, r, path[len(seedPrefix):])
	case path == watchPath:
		h.watch(w, r)
	case strings.HasPrefix(path, "/v1/"):
		if h.foreign(w, r) {
			return
		}
		url := *r.URL
		// With RawPath set, the gateway splits before it unescapes.
		url.RawPath = path
		r = r.WithContext(r.Context())
		r.URL = &url
		h.gateway.ServeHTTP(w, r)
	case path == "/openapi.json":
		h.document(w, r)
	case path == pagePath, strings.HasPrefix(path, assetPath):
		h.page(w, r, path)
	default:
		h.fail(w, callNone, http.StatusNotFound, errNoSuchPath(""))
	}
}

// knock refuses a request before anything of it is looked at, and answers then.
func (h *rest) knock(w http.ResponseWriter, r *http.Request, path string) error {
	if len(path)+len(r.URL.RawQuery) > maxURL {
		err := invalid("url", fmt.Sprintf("path and query have more than %d bytes; ask with fewer or shorter values", maxURL))
		h.fail(w, callNone, http.StatusRequestURITooLong, err)
		return err
	}
	if h.gate.address == nil {
		return nil
	}
	c := callerOfHTTP(r)
	l, err := h.gate.knock(r.Context(), c.address)
	announce(w.Header(), []limited{l})
	if err != nil {
		h.fail(w, callNone, 0, err)
		h.gate.audit.record(r.Context(), permConnect, audited{
			transport: overREST, call: callNone, address: c.address, code: status.Code(err), reason: refusedAddress,
		})
	}
	return err
}

// foreign refuses what a page of another site makes a browser ask that would change something, and answers then: browsers add credentials that
// they keep, and certificates.
func (h *rest) foreign(w http.ResponseWriter, r *http.Request) bool {
	wrong := h.origins.Check(r)
	if wrong == nil {
		return false
	}
	err := status.Error(codes.PermissionDenied, "a page of another site made this request: "+wrong.Error())
	h.fail(w, callNone, 0, err)
	p := pass{gate: h.gate}
	_ = p.refuse(refusedOrigin, err)
	h.audit(r, &call{name: callNone}, &p, "", codes.PermissionDenied)
	return true
}

// admit asks the gate, and says in the answer's headers which credentials are taken and what is left of the rates.
func (h *rest) admit(w http.ResponseWriter, r *http.Request, c *call) (*pass, error) {
	p, err := h.gate.admit(r.Context(), callerOfHTTP(r), c)
	if status.Code(err) == codes.Unauthenticated {
		h.gate.challenge(w.Header())
	}
	if h.gate.account != nil {
		policy, left := w.Header().Get("RateLimit-Policy"), w.Header().Get("RateLimit")
		p.announced = func(p *pass) { announceAfter(w.Header(), policy, left, p.limits()) }
		p.announced(&p)
	}
	return &p, err
}

// seed answers /client-id/{client-id}/status; rest is the path after the prefix.
func (h *rest) seed(w http.ResponseWriter, r *http.Request, rest string) {
	began := time.Now()
	id, ok := strings.CutSuffix(rest, seedSuffix)
	if !ok || strings.IndexByte(id, '/') >= 0 {
		h.fail(w, callNone, http.StatusNotFound, errNoSuchPath("in /client-id/{client-id}/status a slash of the client ID is written %2F"))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		w.Header().Set("Allow", "GET, POST")
		h.fail(w, callSeed, http.StatusMethodNotAllowed, errNoSuchMethod(r.Method))
		return
	}
	p, err := h.admit(w, r, h.calls.seed)
	var answer short
	if err == nil {
		answer, err = h.seedAnswer(r, id)
	}
	if err != nil {
		code := writeError(w, 0, err)
		h.metrics.observe(overREST, callSeed, code, began)
		h.audit(r, h.calls.seed, p, id, code)
		return
	}
	header := w.Header()
	header["Content-Type"] = h.contentType
	header["Cache-Control"] = h.noStore
	if answer.unknown {
		header["Presence-Status"] = h.statusUnknown
	}
	body := h.bodyOffline
	if answer.online {
		body = h.bodyOnline
	}
	// A caller that has gone is none of our errors.
	_, _ = w.Write(body)
	h.metrics.seed.observe(began)
}

func (h *rest) seedAnswer(r *http.Request, segment string) (short, error) {
	id, err := url.PathUnescape(segment)
	if err != nil {
		return short{}, invalid("client_id", "client_id is not percent-encoded: "+err.Error())
	}
	cluster := ""
	if r.URL.RawQuery != "" {
		// Other parameters are let pass, as by the service that this call stands in for.
		query, err := url.ParseQuery(r.URL.RawQuery)
		if err != nil {
			return short{}, invalid("cluster", "the query is not percent-encoded: "+err.Error())
		}
		cluster = query.Get("cluster")
	}
	return h.answers.online(r.Context(), cluster, id)
}

func (h *rest) document(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		h.fail(w, callOpenAPI, http.StatusMethodNotAllowed, errNoSuchMethod(r.Method))
		return
	}
	w.Header()["Content-Type"] = h.contentType
	_, _ = w.Write(h.openAPI)
	h.metrics.observe(overREST, callOpenAPI, codes.OK, began)
}

// fail answers what was refused before it became a call.
func (h *rest) fail(w http.ResponseWriter, call string, httpStatus int, err error) {
	h.metrics.observe(overREST, call, writeError(w, httpStatus, err), time.Now())
}

func errNoSuchPath(hint string) error {
	message := "no such path; /openapi.json lists the calls"
	if hint != "" {
		message += "; " + hint
	}
	return status.Error(codes.NotFound, message)
}

func errNoSuchMethod(method string) error {
	return status.Error(codes.Unimplemented, fmt.Sprintf("the path has no method %q; /openapi.json lists the calls", method))
}

// v1Call is a call below /v1 that is being answered.
type v1Call struct {
	*call
	code codes.Code // set by v1Error
}

// allowed returns the methods of a path below /v1 that was called with another.
func allowed(path string) string {
	switch {
	case strings.HasSuffix(path, ":batchGet"), strings.HasSuffix(path, ":check"), strings.HasSuffix(path, ":compare"):
		return http.MethodPost
	case strings.HasPrefix(path, "/v1/clients/") && strings.Count(path, "/") == 3:
		return http.MethodGet + ", " + http.MethodDelete
	}
	return http.MethodGet
}

type v1CallKey struct{}

// v1 admits a request that the gateway has routed, before anything of it is read.
func (h *rest) v1(next runtime.HandlerFunc) runtime.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request, pathParams map[string]string) {
		began := time.Now()
		pattern, _ := runtime.HTTPPattern(r.Context())
		call := &v1Call{call: h.calls.path(r.Method, pattern.String())}
		p, err := h.admit(w, r, call.call)
		r = r.WithContext(context.WithValue(withPass(r.Context(), p), v1CallKey{}, call))
		if err == nil {
			err = h.check(w, r, call)
		}
		if err != nil {
			httpStatus := 0
			var tooLarge *http.MaxBytesError
			if errors.As(err, &tooLarge) {
				httpStatus = http.StatusRequestEntityTooLarge
				err = invalid("body", fmt.Sprintf("the body has more than %d bytes; ask for fewer clients at once", maxBody))
			}
			call.code = writeError(w, httpStatus, err)
		} else {
			w.Header()["Cache-Control"] = h.noStore
			if call.lasts > 0 {
				// A connection that cannot be given more time keeps what it has.
				_ = http.NewResponseController(w).SetWriteDeadline(began.Add(call.lasts + readTimeout))
			}
			next(w, r, pathParams)
		}
		h.metrics.observe(overREST, call.name, call.code, began)
		h.audit(r, call.call, p, pathParams["client_id"], call.code)
	}
}

// audit has the call written down, if it is one of those that are.
func (h *rest) audit(r *http.Request, c *call, p *pass, clientID string, code codes.Code) {
	if p.reason == "" && c.need != permAdmin {
		return
	}
	h.gate.audit.record(r.Context(), c.need, audited{
		transport: overREST, call: c.name, account: p.name, address: callerOfHTTP(r).address,
		cluster: r.URL.Query().Get("cluster"), clientID: clientID, code: code, reason: p.reason,
	})
}

// check refuses what the gateway would let pass, and reads the body.
func (h *rest) check(w http.ResponseWriter, r *http.Request, call *v1Call) error {
	if r.URL.RawQuery != "" {
		if err := checkQuery(call.call, r.URL.RawQuery); err != nil {
			return err
		}
	}
	if r.Method == http.MethodPost {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			var tooLarge *http.MaxBytesError
			if errors.As(err, &tooLarge) {
				return err
			}
			return invalid("body", "the body could not be read to its end: "+err.Error())
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return nil
}

func listOf(names []string) string {
	if len(names) == 0 {
		return "none; put the fields into the body"
	}
	return strings.Join(names, " and ")
}

// v1Error is the gateway's error handler.
func (h *rest) v1Error(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	var wrong *runtime.HTTPStatusError
	if errors.As(err, &wrong) {
		// A malformed escape sequence, the only one that the gateway makes.
		err = invalid("client_id", "client_id is not percent-encoded: "+wrong.Error())
	} else if said := status.Convert(err); said.Code() == codes.InvalidArgument && len(said.Details()) == 0 {
		// Path and query were checked before: the gateway did not like the body.
		err = invalid("body", said.Message())
	}
	code := writeError(w, 0, err)
	if call, ok := ctx.Value(v1CallKey{}).(*v1Call); ok {
		call.code = code
	}
}

// v1RoutingError answers paths below /v1 that no call has.
func (h *rest) v1RoutingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request, httpStatus int) {
	if httpStatus == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", allowed(r.URL.RawPath))
		h.fail(w, callNone, httpStatus, errNoSuchMethod(r.Method))
		return
	}
	h.fail(w, callNone, http.StatusNotFound, errNoSuchPath("in /v1/clients/{client_id} a slash of the client ID is written %2F"))
}

// writeError answers an error as JSON and returns its code. httpStatus 0 stands for the one that belongs to the code.
func writeError(w http.ResponseWriter, httpCode int, err error) codes.Code {
	s, ok := status.FromError(err)
	if !ok {
		s = status.New(codes.Internal, "the request could not be answered")
	}
	if httpCode == 0 {
		httpCode = httpStatus(s)
	}
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Cache-Control", "no-store")
	switch httpCode {
	case http.StatusUnauthorized:
		if header.Get("WWW-Authenticate") == "" {
			header.Set("WWW-Authenticate", `Basic realm="presence", charset="UTF-8"`)
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		header.Set("Retry-After", strconv.Itoa(wholeSeconds(retryAfter(s))))
	}
	body, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(s.Proto())
	if err != nil {
		// Details that JSON cannot carry are left out.
		body = fmt.Appendf(nil, `{"code":%d,"message":%q,"details":[]}`, s.Code(), strings.ToValidUTF8(s.Message(), "?"))
	}
	w.WriteHeader(httpCode)
	_, _ = w.Write(body)
	return s.Code()
}

// jsonCodec is the gateway's JSON, with bodies read as one whole document.
type jsonCodec struct{ runtime.JSONPb }

// NewDecoder reads one message. What stands after it, a field that is not known, and one that comes twice are errors.
func (c *jsonCodec) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		m, ok := v.(proto.Message)
		if !ok {
			return fmt.Errorf("decode a body into %T: not a message", v)
		}
		body, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("read the body: %w", err)
		}
		if len(bytes.TrimSpace(body)) == 0 {
			return errors.New("the body is empty; send a JSON object")
		}
		if err := c.UnmarshalOptions.Unmarshal(body, m); err != nil {
			// The library's errors begin with its name and, at random, a space that does not break.
			text := strings.TrimLeft(strings.TrimPrefix(err.Error(), "proto:"), " \u00a0")
			return fmt.Errorf("the body is not the JSON of a %s: %s", m.ProtoReflect().Descriptor().Name(), text)
		}
		return nil
	})
}
