package query

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"log/slog"
	"math"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// verifyWait is how long a new credential waits for its turn to be hashed.
	verifyWait = 2 * time.Second
	// maxVerifyWaiting bounds the distinct credentials that wait.
	maxVerifyWaiting = 64
	// accountsPoll is how often the accounts file is looked at.
	accountsPoll = time.Second
)

// Reasons of a refusal, as metrics show them.
const (
	refusedAbsent     = "no_credentials"
	refusedMalformed  = "malformed"
	refusedWrong      = "wrong" // user or password: which of them is nobody's business
	refusedBusy       = "busy"
	refusedPermission = "permission"
	refusedRate       = "rate_limit"
)

// fingerprint stands for a user and a password in memory; without the process's key it says nothing about them.
type fingerprint [sha256.Size]byte

// gate admits requests: it knows the accounts, their permissions and their rates.
type gate struct {
	limit   rate.Limit // of each account, requests per second; 0: none
	burst   int
	log     *slog.Logger
	metrics *metrics

	file accountsFile // used by New, then by reload alone
	set  atomic.Pointer[accounts]
	pool sync.Pool // of *credential

	seed    maphash.Seed        // picks the account that an unknown user costs
	flight  singleflight.Group  // one verification per credential at a time
	verify  *semaphore.Weighted // half of the cores: wrong passwords cannot take them all
	waiting atomic.Int64
}

// newGate reads the accounts file for the first time.
func newGate(cfg Config, log *slog.Logger, m *metrics) (*gate, error) {
	key := make([]byte, sha256.Size)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make the key of credential fingerprints: %w", err)
	}
	g := &gate{
		limit:   rate.Limit(cfg.RateLimit),
		burst:   cfg.RateBurst,
		log:     log,
		metrics: m,
		file:    accountsFile{path: cfg.AccountsFile},
		pool:    sync.Pool{New: func() any { return &credential{mac: hmac.New(sha256.New, key)} }},
		seed:    maphash.MakeSeed(),
		verify:  semaphore.NewWeighted(int64(max(1, runtime.GOMAXPROCS(0)/2))),
	}
	if g.burst == 0 {
		g.burst = int(min(max(1, math.Ceil(cfg.RateLimit)), math.MaxInt32))
	}
	set, err := g.file.load()
	if err != nil {
		return nil, err
	}
	g.install(set)
	return g, nil
}

// install makes a new content of the accounts file valid. What an account has used of its rate, and a credential that still fits its
// hash, are carried over.
func (g *gate) install(set *accounts) {
	old := g.set.Load()
	for _, a := range set.list {
		if g.limit > 0 {
			a.limiter = rate.NewLimiter(g.limit, g.burst)
		}
		if old == nil {
			continue
		}
		if before := old.byName[a.name]; before != nil {
			a.limiter = before.limiter
			if before.hashText == a.hashText {
				a.verified.Store(before.verified.Load())
			}
		}
	}
	g.set.Store(set)
	g.metrics.accounts.Set(float64(len(set.list)))
	g.metrics.accountsValid.Set(1)
}

// reload looks at the accounts file every second until ctx ends. A file that is wrong changes nothing: it is logged once, counted, and
// shown by a metric until it is mended.
func (g *gate) reload(ctx context.Context) {
	tick := time.NewTicker(accountsPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			g.reloadOnce()
		}
	}
}

func (g *gate) reloadOnce() {
	failing := g.file.failure != ""
	set, err := g.file.load()
	switch {
	case err != nil:
		g.metrics.accountsValid.Set(0)
		if g.file.failed(err) {
			g.metrics.accountsErrors.Inc()
			g.log.Error("accounts file not reloaded; the accounts read before stay valid", service.KeyPath, g.file.path, service.KeyError, err)
		}
	case set != nil:
		g.file.failure = ""
		g.install(set)
		g.log.Info("accounts file reloaded", service.KeyPath, g.file.path, service.KeyCount, len(set.list), "was_failing", failing)
	}
}

// pass is what the gate gives an admitted caller for one request.
type pass struct {
	gate    *gate
	call    *call
	account *account
}

// admit checks who calls, the permission and the rate. Every request costs 1 of the account's rate.
func (g *gate) admit(ctx context.Context, c caller, call *call) (pass, error) {
	p := pass{gate: g, call: call}
	if c.authorization == "" {
		return p, g.refuse(refusedAbsent, status.Error(codes.Unauthenticated,
			"no credentials; send those of an account as HTTP Basic authorization"))
	}
	a, err := g.authenticate(ctx, c.authorization)
	if err != nil {
		return p, err
	}
	p.account = a
	if !a.permissions.allows(call.need) {
		return p, g.refuse(refusedPermission, status.Error(codes.PermissionDenied,
			fmt.Sprintf("the account lacks the permission %s; add it to the account's line in the accounts file", call.need)))
	}
	return p, p.charge(1)
}

// charge takes n requests from the account's rate: for a call that turns out to cost more than 1.
func (p *pass) charge(n int) error {
	if p.account == nil || p.account.limiter == nil || n <= 0 {
		return nil
	}
	now := time.Now()
	r := p.account.limiter.ReserveN(now, min(n, p.gate.burst))
	if delay := r.DelayFrom(now); delay > 0 {
		r.CancelAt(now)
		return p.gate.refuse(refusedRate,
			retryLater(codes.ResourceExhausted, "the account has used up its rate of requests; slow down and ask again", delay))
	}
	return nil
}

// stream counts a stream until end is called, which must be once. What the stream does belongs to the context returned, which ends when
// the stream has lasted as long as one may.
func (p *pass) stream(ctx context.Context) (_ context.Context, end func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	return ctx, cancel, nil
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

func (g *gate) refuse(reason string, err error) error {
	g.metrics.refused.WithLabelValues(reason).Inc()
	return err
}

// authenticate returns the account of an authorization header. A credential that was verified before costs a fingerprint; any other
// costs a password hash, also for a user that does not exist, and waits for its turn.
func (g *gate) authenticate(ctx context.Context, authorization string) (*account, error) {
	c, ok := g.pool.Get().(*credential)
	if !ok {
		return nil, status.Error(codes.Internal, "the request could not be answered")
	}
	defer g.pool.Put(c)
	if !c.decode(authorization) {
		return nil, g.refuse(refusedMalformed, status.Error(codes.Unauthenticated,
			"the authorization is not HTTP Basic; send 'Basic ' and the base64 of user:password"))
	}
	set := g.set.Load()
	if a := set.byName[string(c.user)]; a.hasVerified(&c.print) {
		return a, nil
	}
	// The verification may outlive this call.
	user, password, print := string(c.user), string(c.password), c.print
	result := g.flight.DoChan(string(print[:]), func() (any, error) { return g.hash(set, user, password, &print) })
	select {
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	case r := <-result:
		if errors.Is(r.Err, errVerifyBusy) {
			return nil, g.refuse(refusedBusy, retryLater(codes.ResourceExhausted, "too many new credentials are being verified; ask again", retryDelay))
		}
		if a, ok := r.Val.(*account); ok && a != nil {
			return a, nil
		}
		return nil, g.refuse(refusedWrong, status.Error(codes.Unauthenticated,
			"wrong user or password; use an account of the service's accounts file"))
	}
}

var errVerifyBusy = errors.New("too many credentials wait to be verified")

// hash checks a password against its account's hash, in turn; nil if it is wrong.
func (g *gate) hash(set *accounts, user, password string, print *fingerprint) (*account, error) {
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) > maxVerifyWaiting {
		return nil, errVerifyBusy
	}
	// The flight outlives the caller that began it: others may have joined.
	ctx, cancel := context.WithTimeout(context.Background(), verifyWait)
	defer cancel()
	if err := g.verify.Acquire(ctx, 1); err != nil {
		return nil, errVerifyBusy
	}
	defer g.verify.Release(1)
	a := set.byName[user]
	if a.hasVerified(print) {
		return a, nil
	}
	against := a
	if a == nil {
		// An unknown user costs what one of the known ones costs, always the same one.
		against = set.list[maphash.String(g.seed, user)%uint64(len(set.list))]
	}
	if !against.hash.matches(password) || a == nil {
		return nil, nil
	}
	a.verified.Store(print)
	return a, nil
}

// hasVerified reports whether the credential is the one that matched the account's hash before.
func (a *account) hasVerified(print *fingerprint) bool {
	if a == nil {
		return false
	}
	known := a.verified.Load()
	return known != nil && hmac.Equal(known[:], print[:])
}

// credential is what an authorization header holds. It is reused: what it points to is valid until it is put back.
type credential struct {
	user, password []byte // parts of decoded
	print          fingerprint

	mac              hash.Hash
	encoded, decoded []byte
}

// decode reads the value of an Authorization header and computes its fingerprint, a keyed hash of user:password. A user name holds no
// colon, so two credentials never read the same.
func (c *credential) decode(authorization string) bool {
	const scheme = "Basic "
	if len(authorization) < len(scheme) || !strings.EqualFold(authorization[:len(scheme)], scheme) {
		return false
	}
	c.encoded = append(c.encoded[:0], authorization[len(scheme):]...)
	var err error
	if c.decoded, err = base64.StdEncoding.AppendDecode(c.decoded[:0], c.encoded); err != nil {
		return false
	}
	var ok bool
	if c.user, c.password, ok = bytes.Cut(c.decoded, []byte{':'}); !ok {
		return false
	}
	c.mac.Reset()
	// A hash never returns an error.
	_, _ = c.mac.Write(c.decoded)
	c.mac.Sum(c.print[:0])
	return true
}
