package query

import (
	"context"
	"crypto/hmac"
	cryptorand "crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service"
)

// Reasons of a refusal, as metrics and the audit log show them.
const (
	refusedAbsent     = "no_credentials"
	refusedMalformed  = "malformed"
	refusedWrong      = "wrong" // user or password: which of them is nobody's business
	refusedToken      = "token"
	refusedCert       = "certificate"
	refusedBusy       = "busy"
	refusedPermission = "permission"
	refusedRate       = "rate_limit"
	refusedAddress    = "address_rate_limit"
	refusedStreams    = "streams"
	refusedOrigin     = "origin"
)

// gate admits requests: it knows who may ask, for what, and how much.
type gate struct {
	account   *rateLimit // of each account and each token's subject; nil: none
	address   *rateLimit // of each address; nil: none
	certNames string     // which name of a certificate is an account; empty: none
	streams   streamBounds
	anonymous streamBounds  // of health and reflection, which need no account
	streamFor time.Duration // 0: no bound

	log     *slog.Logger
	metrics *metrics
	audit   *audit

	set       atomic.Pointer[accounts]
	bearers   *bearers // nil: none are taken
	reloads   []*service.Reload
	addresses *usages[netip.Addr]
	subjects  *usages[string]
	held      atomic.Int64 // answers that are held back
	pool      sync.Pool    // of *credential

	flight singleflight.Group // one verification per credential at a time
	turns  *turns             // half of the cores: wrong passwords cannot take them all
}

// newGate reads the files of accounts and keys for the first time. Parent is the logger that the audit log goes to if it has no file.
func newGate(cfg Config, log, parent *slog.Logger, m *metrics, reg prometheus.Registerer) (*gate, error) {
	key := make([]byte, sha256.Size)
	if _, err := cryptorand.Read(key); err != nil {
		return nil, fmt.Errorf("make the key of credential fingerprints: %w", err)
	}
	g := &gate{
		account:   newRateLimit("account", cfg.RateLimit, cfg.RateBurst),
		address:   newRateLimit("address", cfg.AddressRateLimit, cfg.AddressRateBurst),
		certNames: cfg.ClientCertAccount,
		streamFor: cfg.MaxStreamTime,
		log:       log,
		metrics:   m,
		addresses: newUsages[netip.Addr](maxTracked),
		subjects:  newUsages[string](maxTracked),
		pool:      sync.Pool{New: func() any { return &credential{mac: hmac.New(sha256.New, key)} }},
		turns:     newTurns(max(1, runtime.GOMAXPROCS(0)/2), maxVerifyWaiting),
	}
	g.streams.all, g.streams.perAccount = int64(cfg.MaxStreams), int64(cfg.MaxStreamsPerAccount)
	if g.streams.perAccount == 0 {
		g.streams.perAccount = (g.streams.all + 1) / 2
	}
	g.anonymous.all, g.anonymous.perAccount = maxAnonymousStreams, maxAnonymousPerAddress
	g.set.Store(&accounts{})
	if cfg.AccountsFile != "" {
		g.follow("accounts-file", cfg.AccountsFile, g.loadAccounts, m.accountsFile)
	}
	if cfg.Tokens.JWKSFile != "" {
		g.bearers = newBearers(cfg.Tokens)
		g.follow("jwt-jwks-file", cfg.Tokens.JWKSFile, g.bearers.load, m.jwksFile)
	}
	for _, r := range g.reloads {
		if err := r.First(); err != nil {
			return nil, err
		}
		r.Outcome(nil)
	}
	// Last, as it opens a file.
	var err error
	g.audit, err = newAudit(cfg.AuditLog, parent, reg)
	return g, err
}

func (g *gate) follow(name, path string, load func([]byte) error, m fileMetrics) {
	g.reloads = append(g.reloads, &service.Reload{
		Name: name, Paths: []string{path}, Log: g.log,
		Apply:   func(contents [][]byte) error { return load(contents[0]) },
		Outcome: m.outcome,
	})
}

// loadAccounts makes a new content of the accounts file valid. What an account has used of its rate, and a credential that still fits its
// hash, are carried over.
func (g *gate) loadAccounts(content []byte) error {
	set, err := parseAccounts(content)
	if err != nil {
		return err
	}
	old := g.set.Load()
	for _, a := range set.list {
		a.usage = &usage{}
		if before := old.byName[a.name]; before != nil {
			a.usage = before.usage
			if before.hashText == a.hashText {
				a.verified.Store(before.verified.Load())
			}
		}
	}
	g.set.Store(set)
	g.metrics.accounts.Set(float64(len(set.list)))
	return nil
}

// run follows the files until ctx ends.
func (g *gate) run(ctx context.Context) {
	var wg sync.WaitGroup
	for _, r := range g.reloads {
		wg.Go(func() { r.Run(ctx) })
	}
	wg.Go(func() { g.audit.run(ctx) })
	wg.Wait()
}

// principal is who was recognised.
type principal struct {
	name        string
	permissions permission
	usage       *usage
}

// pass is what the gate gives a caller for one request.
type pass struct {
	principal

	gate   *gate // nil: no limits
	quota  quota // of the account, if it has a limit
	reason string
	// announced is told when the quota has changed; nil: nobody.
	announced func(p *pass)
}

// knock counts a request of an address, before anything of it is looked at. Loopback counts as any other address: a proxy on this machine
// makes all callers one, and a limit that does not hold there would be none.
func (g *gate) knock(ctx context.Context, address netip.Addr) (limited, error) {
	if g.address == nil {
		return limited{}, nil
	}
	now := time.Now()
	u := g.addresses.of(service.AddressKey(address), now)
	q := g.address.take(&u.requests, now, 1)
	l := limited{g.address, q}
	if q.wait == 0 {
		return l, nil
	}
	g.metrics.refused.WithLabelValues(refusedAddress).Inc()
	g.hold(ctx, u)
	return l, retryLater(codes.ResourceExhausted, "your address has used up its rate of requests; slow down and ask again", q.wait)
}

// admit checks who calls, the permission and the rate. Every request costs 1 of the account's rate.
func (g *gate) admit(ctx context.Context, c caller, call *call) (pass, error) {
	p := pass{gate: g}
	who, reason, err := principal{}, "", error(nil)
	if t, ok := ctx.Value(tappedKey{}).(*tapped); ok {
		who, reason, err = t.who, t.reason, t.err
	} else {
		who, reason, err = g.recognise(ctx, c)
	}
	if err != nil {
		p.name = who.name
		return p, p.refuse(reason, err)
	}
	p.principal = who
	if !p.permissions.allows(call.need) {
		return p, p.refuse(refusedPermission, status.Error(codes.PermissionDenied,
			fmt.Sprintf("the account lacks the permission %s; add it to the account's line in the accounts file, or to the token", call.need)))
	}
	return p, p.charge(ctx, 1)
}

// charge takes n requests from the account's rate: for a call that turns out to cost more than 1.
func (p *pass) charge(ctx context.Context, n int) error {
	if p.gate == nil || p.gate.account == nil || n <= 0 {
		return nil
	}
	p.quota = p.gate.account.take(&p.usage.requests, time.Now(), float64(n))
	if p.announced != nil {
		p.announced(p)
	}
	if p.quota.wait == 0 {
		return nil
	}
	wait := p.quota.wait
	p.gate.hold(ctx, p.usage)
	return p.refuse(refusedRate, retryLater(codes.ResourceExhausted, "the account has used up its rate of requests; slow down and ask again", wait))
}

// limits are those of the pass, for headers.
func (p *pass) limits() limited {
	if p.gate == nil || p.usage == nil {
		return limited{}
	}
	return limited{p.gate.account, p.quota}
}

// hold waits before an answer that the rate is used up, if there have been many of them.
func (g *gate) hold(ctx context.Context, u *usage) {
	if prompt.take(&u.refusals, time.Now(), 1).wait == 0 {
		return
	}
	defer g.held.Add(-1)
	if g.held.Add(1) > maxHoldings {
		return
	}
	pause := time.NewTimer(holdRefused/2 + rand.N(holdRefused/2))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-ctx.Done():
	}
}

// anonymousStream counts a stream that needs no account until end is called.
func (g *gate) anonymousStream(address netip.Addr) (end func(), err error) {
	left, why := g.anonymous.enter(g.addresses.of(service.AddressKey(address), time.Now()))
	if why != "" {
		g.metrics.refused.WithLabelValues(refusedStreams).Inc()
		return nil, retryLater(codes.ResourceExhausted, "too many streams of health or reflection are open; end one and ask again", retryDelay)
	}
	return left, nil
}

// errStreamTime is why a stream ends that has lasted as long as one may.
var errStreamTime = errors.New("the stream has lasted as long as one may")

// stream counts a stream until end is called, which must be. What the stream does belongs to the context returned, which ends when
// the stream has lasted as long as one may; its cause then is errStreamTime.
func (p *pass) stream(ctx context.Context) (_ context.Context, end func(), err error) {
	if p.gate == nil {
		return ctx, func() {}, nil
	}
	left, why := p.gate.streams.enter(p.usage)
	if why != "" {
		return nil, nil, p.refuse(refusedStreams, retryLater(codes.ResourceExhausted, why+"; end one and ask again", retryDelay))
	}
	if p.gate.streamFor == 0 {
		return ctx, left, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.gate.streamFor, errStreamTime)
	return ctx, func() {
		cancel()
		left()
	}, nil
}

// streamEnd returns the error of a stream that ended for its time: the caller opens another.
func streamEnd(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errStreamTime) {
		return unavailable(errStreamTime.Error() + "; open another with the last resume_token")
	}
	return err
}

func (p *pass) refuse(reason string, err error) error {
	p.reason = reason
	p.gate.metrics.refused.WithLabelValues(reason).Inc()
	return err
}

type passKey struct{}

// withPass returns a context that carries the pass of its request.
func withPass(ctx context.Context, p *pass) context.Context {
	return context.WithValue(ctx, passKey{}, p)
}

// passOf returns the pass of the request that ctx belongs to. One that no gate admitted, in process, has an empty one without limits.
func passOf(ctx context.Context) *pass {
	if p, ok := ctx.Value(passKey{}).(*pass); ok {
		return p
	}
	return &pass{}
}

// recognise finds out who calls. With an error it says why, and whom the caller gave himself out for, if there is such an account.
func (g *gate) recognise(ctx context.Context, c caller) (principal, string, error) {
	scheme, rest, _ := strings.Cut(c.authorization, " ")
	switch {
	case c.authorization == "" && c.certificate != nil && g.certNames != "":
		return g.certified(c.certificate)
	case c.authorization == "":
		return principal{}, refusedAbsent, status.Error(codes.Unauthenticated, "no credentials; "+g.howTo())
	case strings.EqualFold(scheme, "Bearer") && g.bearers != nil:
		return g.bearer(rest)
	case strings.EqualFold(scheme, "Basic") && len(g.set.Load().kinds) > 0:
		return g.basic(ctx, c.address, rest)
	}
	return principal{}, refusedMalformed, g.malformed()
}

// howTo says which credentials are taken.
func (g *gate) howTo() string {
	basic := "send those of an account as HTTP Basic authorization"
	switch {
	case g.bearers == nil:
		return basic
	case len(g.set.Load().kinds) == 0:
		return "send a bearer token"
	}
	return basic + ", or a bearer token"
}

func (g *gate) malformed() error {
	return status.Error(codes.Unauthenticated, "the authorization is not of a kind that is taken here, or does not decode; "+g.howTo())
}

// challenge adds what is taken to the headers of a 401.
func (g *gate) challenge(header http.Header) {
	if len(g.set.Load().kinds) > 0 || g.bearers == nil {
		header.Add("WWW-Authenticate", `Basic realm="presence", charset="UTF-8"`)
	}
	if g.bearers != nil {
		header.Add("WWW-Authenticate", `Bearer realm="presence"`)
	}
}

// certified returns the account that a client certificate stands for. TLS has verified it.
func (g *gate) certified(leaf *x509.Certificate) (principal, string, error) {
	if time.Now().After(leaf.NotAfter) {
		return principal{}, refusedCert, status.Error(codes.Unauthenticated,
			"the client certificate has ended while the connection was open; connect with a new one")
	}
	names := []string{leaf.Subject.CommonName}
	if g.certNames == certURI {
		names = names[:0]
		for _, u := range leaf.URIs {
			names = append(names, u.String())
		}
	}
	set := g.set.Load()
	for _, name := range names {
		if a := set.byName[name]; a != nil && a.hash == nil {
			return a.principal, "", nil
		}
	}
	return principal{}, refusedCert, status.Error(codes.Unauthenticated,
		"the client certificate stands for no account; add the line NAME:cert:PERMISSIONS to the accounts file, or "+g.howTo())
}

// bearer returns the subject of a bearer token.
func (g *gate) bearer(text string) (principal, string, error) {
	known, err := g.verifyToken(text)
	if err != nil {
		g.log.Debug("bearer token refused", service.KeyError, err)
		return principal{}, refusedToken, status.Error(codes.Unauthenticated,
			"the bearer token is not believed: it must be signed by a key of the service's JWKS file and not have expired, for its issuer and audience")
	}
	return principal{name: known.subject, permissions: known.permissions, usage: g.subjects.of(known.subject, time.Now())}, "", nil
}

func (g *gate) verifyToken(text string) (bearer, error) {
	if len(text) > maxToken {
		return bearer{}, fmt.Errorf("%w: it has %d bytes, more than %d", errToken, len(text), maxToken)
	}
	c, ok := g.pool.Get().(*credential)
	if !ok {
		return bearer{}, errToken
	}
	defer g.pool.Put(c)
	c.fingerprint(text)
	return g.bearers.verify(text, c.print)
}

func errUnanswered() error { return status.Error(codes.Internal, "the request could not be answered") }
