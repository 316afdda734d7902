package query

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// call is what both transports know of a call of the contract.
type call struct {
	name  string // of the RPC, in metrics and logs
	need  permission
	path  string        // of REST below /v1, as the gateway names it, with its method
	query []string      // parameters that REST takes from the query
	lasts time.Duration // how long it may take, where that is more than the request timeout
}

// contract lists all calls. A call without a line here is for nobody but admins.
func contract() []call {
	return []call{
		{name: "GetStatus", need: permConnect},
		{name: "GetClient", need: permRead, path: "GET /v1/clients/{client_id=*}", query: []string{"cluster", "min_offset"}},
		{name: "BatchGetClients", need: permRead, path: "POST /v1/clients:batchGet"},
		{name: "ExplainClient", need: permRead, path: "GET /v1/clients/{client_id=*}/explanation", query: []string{"cluster", "min_offset"}},
		{name: "ListClients", need: permRead, path: "GET /v1/clients", query: []string{
			"cluster", "status", "node", "username", "client_id_prefix", "since_from", "since_before", "page_size", "page_token"}},
		{name: "ListSessions", need: permRead, path: "GET /v1/clients/{client_id=*}/sessions", query: []string{"cluster", "min_offset", "at"}},
		{name: "DeleteClient", need: permAdmin, path: "DELETE /v1/clients/{client_id=*}", query: []string{"cluster"}},
		{name: "GetStats", need: permRead, path: "GET /v1/stats", query: []string{"cluster", "page_size", "page_token", "skip_usernames"}},
		{name: "ListNodes", need: permRead, path: "GET /v1/nodes", query: []string{"cluster"}},
		// Over REST it is a plain handler.
		{name: callWatch, need: permRead, query: []string{
			"cluster", "status", "node", "username", "client_id_prefix", "client_ids", "resume_token", "snapshot", "debounce", "heartbeat"}},
		{name: "CheckIndexes", need: permAdmin, path: "POST /v1/indexes:check", lasts: checkTimeout},
		{name: "CompareReplicas", need: permAdmin, path: "POST /v1/replicas:compare", lasts: compareTimeout},
	}
}

// calls finds a call of the contract by what a transport knows of it.
type calls struct {
	byMethod map[string]*call // gRPC's full method
	byPath   map[string]*call
	seed     *call
	watch    *call
}

func newCalls() *calls {
	c := &calls{byMethod: map[string]*call{}, byPath: map[string]*call{}, seed: &call{name: callSeed, need: permConnect}}
	for _, each := range contract() {
		c.byMethod["/"+presencev1.PresenceService_ServiceDesc.ServiceName+"/"+each.name] = &each
		if each.name == callWatch {
			c.watch = &each
		}
		if each.path != "" {
			c.byPath[each.path] = &each
		}
	}
	return c
}

func (c *calls) method(fullMethod string) *call {
	if found := c.byMethod[fullMethod]; found != nil {
		return found
	}
	return &call{name: "other", need: permAdmin}
}

func (c *calls) path(method, pattern string) *call {
	if found := c.byPath[method+" "+pattern]; found != nil {
		return found
	}
	return &call{name: "other", need: permAdmin}
}

// caller is who makes a request, as far as the transport tells.
type caller struct {
	authorization string            // value of the header; empty: none
	address       netip.Addr        // zero: unknown
	certificate   *x509.Certificate // that TLS has verified; nil: none
}

func callerOfHTTP(r *http.Request) caller {
	c := caller{authorization: r.Header.Get("Authorization")}
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.address = at.Addr().Unmap()
	}
	if r.TLS != nil {
		c.certificate = verified(r.TLS)
	}
	return c
}

// verified returns the certificate of a client whose chain leads to the authorities of the listener, nil if there is none.
func verified(s *tls.ConnectionState) *x509.Certificate {
	if len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) == 0 {
		return nil
	}
	return s.VerifiedChains[0][0]
}

func callerOfGRPC(ctx context.Context) caller {
	var c caller
	if values := metadata.ValueFromIncomingContext(ctx, "authorization"); len(values) > 0 {
		c.authorization = values[0]
	}
	if p, ok := peer.FromContext(ctx); ok {
		if at, ok := p.Addr.(*net.TCPAddr); ok {
			c.address = at.AddrPort().Addr().Unmap()
		}
		if secure, ok := p.AuthInfo.(credentials.TLSInfo); ok {
			c.certificate = verified(&secure.State)
		}
	}
	return c
}

// methodOf returns the name of an RPC of the PresenceService; false for those of other services.
func methodOf(fullMethod string) (string, bool) {
	return strings.CutPrefix(fullMethod, "/"+presencev1.PresenceService_ServiceDesc.ServiceName+"/")
}
