package query

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
	"github.com/go-jose/go-jose/v4/jwt"
)

const (
	// maxToken bounds a bearer token, in bytes.
	maxToken = 8 << 10
	// maxSubject bounds the subject of a token, in bytes.
	maxSubject = 256
	// tokenLeeway is how far the issuer's clock may be off.
	tokenLeeway = 30 * time.Second
	// maxTokensKnown bounds the verified tokens that are remembered.
	maxTokensKnown = 10_000
	minRSABits     = 2048
	// scopePrefix begins the service's own words among others' in an OAuth scope.
	scopePrefix = "presence:"
)

// signatureAlgorithms are those of public keys: a verifier can never be a signer.
var signatureAlgorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// TokenConfig says whose bearer tokens (JWT) are believed. Embed it with a prefix:"jwt-" tag.
type TokenConfig struct {
	JWKSFile         string   `conf:"jwks-file" usage:"file of the public keys (JWKS) that sign bearer tokens; empty: no bearer tokens"`
	Issuer           string   `conf:"issuer" usage:"iss that a bearer token must have"`
	Audience         string   `conf:"audience" usage:"aud that a bearer token must have"`
	PermissionsClaim string   `conf:"permissions-claim" usage:"claim of a bearer token with its permissions, connect, read or admin; in scope and scp these begin with presence: as in presence:read"`
	Algorithms       []string `conf:"algorithms" usage:"signature algorithms that are believed: of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA"`
}

// DefaultTokens takes no tokens.
func DefaultTokens() TokenConfig {
	return TokenConfig{PermissionsClaim: "permissions", Algorithms: []string{"RS256", "ES256", "EdDSA"}}
}

// Validate reports every option that is wrong, by name.
func (c TokenConfig) Validate() error {
	var errs []error
	if c.JWKSFile == "" {
		if c.Issuer != "" || c.Audience != "" {
			errs = append(errs, errors.New("jwt-jwks-file: is not set, so jwt-issuer and jwt-audience are without effect; name the file of the keys or remove them"))
		}
		return errors.Join(errs...)
	}
	// A token for another service, or of another issuer with the same keys, must not pass.
	if c.Issuer == "" {
		errs = append(errs, errors.New("jwt-issuer: is empty; give the iss of your tokens"))
	}
	if c.Audience == "" {
		errs = append(errs, errors.New("jwt-audience: is empty; give the aud that tokens for this service have"))
	}
	if c.PermissionsClaim == "" {
		errs = append(errs, errors.New("jwt-permissions-claim: is empty; name the claim, such as permissions or scope"))
	}
	if len(c.Algorithms) == 0 {
		errs = append(errs, errors.New("jwt-algorithms: is empty; name at least one, such as RS256"))
	}
	for _, a := range c.Algorithms {
		if !slices.Contains(signatureAlgorithms, jose.SignatureAlgorithm(a)) {
			errs = append(errs, fmt.Errorf("jwt-algorithms: %q is not one of %v", a, signatureAlgorithms))
		}
	}
	return errors.Join(errs...)
}

// bearers verifies bearer tokens.
type bearers struct {
	cfg        TokenConfig
	algorithms []jose.SignatureAlgorithm
	now        func() time.Time

	mu    sync.Mutex
	keys  []jose.JSONWebKey
	known map[fingerprint]bearer // verified by keys
}

// bearer is what a verified token says.
type bearer struct {
	subject     string
	permissions permission
	from, until time.Time
}

func newBearers(cfg TokenConfig) *bearers {
	t := &bearers{cfg: cfg, now: time.Now, known: make(map[fingerprint]bearer)}
	for _, a := range cfg.Algorithms {
		t.algorithms = append(t.algorithms, jose.SignatureAlgorithm(a))
	}
	return t
}

// load takes the keys of a JWKS. What is no signing key is skipped; a secret or a private key is an error, since it has no place here.
func (t *bearers) load(content []byte) error {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(content, &set); err != nil {
		return fmt.Errorf("read %s as JWKS: %w", t.cfg.JWKSFile, err)
	}
	var keys []jose.JSONWebKey
	for i, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := json.Unmarshal(raw, &k); errors.Is(err, jose.ErrUnsupportedKeyType) {
			continue
		} else if err != nil {
			return fmt.Errorf("read key %d of %s: %w", i, t.cfg.JWKSFile, err)
		}
		if k.Use != "" && k.Use != "sig" {
			continue
		}
		if _, secret := k.Key.([]byte); secret || !k.IsPublic() {
			return fmt.Errorf("key %d, kid %q, of %s is secret; put the public keys alone into it", i, k.KeyID, t.cfg.JWKSFile)
		}
		if rsaKey, ok := k.Key.(*rsa.PublicKey); ok && rsaKey.N.BitLen() < minRSABits {
			return fmt.Errorf("key %d, kid %q, of %s has %d bits; use at least %d", i, k.KeyID, t.cfg.JWKSFile, rsaKey.N.BitLen(), minRSABits)
		}
		if slices.ContainsFunc(keys, func(other jose.JSONWebKey) bool { return other.KeyID == k.KeyID }) {
			return fmt.Errorf("kid %q stands twice in %s; give each key its own", k.KeyID, t.cfg.JWKSFile)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return fmt.Errorf("%s holds no key for signatures; write {\"keys\":[...]} with the issuer's public keys", t.cfg.JWKSFile)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = keys
	clear(t.known)
	return nil
}

// errToken is the error of every token that is not believed; callers need not know why.
var errToken = errors.New("the bearer token is not believed")

// verify returns what the token says, if it is believed now. A token that was verified before costs its fingerprint.
func (t *bearers) verify(text string, print fingerprint) (bearer, error) {
	now := t.now()
	t.mu.Lock()
	keys := t.keys
	found, ok := t.known[print]
	t.mu.Unlock()
	if !ok {
		var err error
		if found, err = t.parse(text, keys); err != nil {
			return bearer{}, fmt.Errorf("%w: %w", errToken, err)
		}
	}
	if now.Before(found.from) {
		return bearer{}, fmt.Errorf("%w: it is not valid yet", errToken)
	}
	if !now.Before(found.until) {
		t.mu.Lock()
		delete(t.known, print)
		t.mu.Unlock()
		return bearer{}, fmt.Errorf("%w: it has expired", errToken)
	}
	if !ok {
		t.remember(print, found, keys)
	}
	return found, nil
}

func (t *bearers) remember(print fingerprint, verified bearer, by []jose.JSONWebKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(by) == 0 || len(t.keys) == 0 || &by[0] != &t.keys[0] {
		return // the keys were replaced meanwhile
	}
	if len(t.known) >= maxTokensKnown {
		for other := range t.known { // any one
			delete(t.known, other)
			break
		}
	}
	t.known[print] = verified
}

// parse checks everything of a token but the time.
func (t *bearers) parse(text string, keys []jose.JSONWebKey) (bearer, error) {
	signed, err := jose.ParseSignedCompact(text, t.algorithms)
	if err != nil {
		return bearer{}, fmt.Errorf("it is no signed token of %v: %w", t.cfg.Algorithms, err)
	}
	if len(signed.Signatures) != 1 {
		return bearer{}, errors.New("it has not one signature")
	}
	header := signed.Signatures[0].Protected
	if header.JSONWebKey != nil {
		return bearer{}, errors.New("it brings its own key")
	}
	key, err := keyFor(keys, header)
	if err != nil {
		return bearer{}, err
	}
	payload, err := signed.Verify(key)
	if err != nil {
		return bearer{}, fmt.Errorf("the signature is wrong: %w", err)
	}
	// This decoder refuses a claim that comes twice, and tells names by case.
	var c jwt.Claims
	all := make(map[string]any)
	if !utf8.Valid(payload) {
		return bearer{}, errors.New("the claims are not UTF-8")
	}
	if err := errors.Join(json.Unmarshal(payload, &c), json.Unmarshal(payload, &all)); err != nil {
		return bearer{}, fmt.Errorf("read the claims: %w", err)
	}
	switch {
	case c.Issuer != t.cfg.Issuer:
		return bearer{}, errors.New("the issuer is another")
	case !slices.Contains(c.Audience, t.cfg.Audience):
		return bearer{}, errors.New("it is for another audience")
	case c.Subject == "" || len(c.Subject) > maxSubject:
		return bearer{}, fmt.Errorf("the subject is empty or has more than %d bytes", maxSubject)
	case c.Expiry == nil:
		return bearer{}, errors.New("it has no exp")
	}
	found := bearer{
		subject: c.Subject, permissions: permissionsOf(t.cfg.PermissionsClaim, all[t.cfg.PermissionsClaim]),
		until: c.Expiry.Time().Add(tokenLeeway),
	}
	for _, from := range []*jwt.NumericDate{c.NotBefore, c.IssuedAt} {
		if from != nil && from.Time().Add(-tokenLeeway).After(found.from) {
			found.from = from.Time().Add(-tokenLeeway)
		}
	}
	return found, nil
}

// keyFor returns the key that the header names. A header without kid means the only key.
func keyFor(keys []jose.JSONWebKey, header jose.Header) (any, error) {
	for _, k := range keys {
		if header.KeyID != k.KeyID && (header.KeyID != "" || len(keys) > 1) {
			continue
		}
		if k.Algorithm != "" && k.Algorithm != header.Algorithm || !fits(k.Key, header.Algorithm) {
			return nil, fmt.Errorf("key %q is not for %s", k.KeyID, header.Algorithm)
		}
		return k.Key, nil
	}
	return nil, fmt.Errorf("there is no key %q", header.KeyID)
}

// fits reports whether signatures of the algorithm are made with keys of that kind.
func fits(key any, algorithm string) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return strings.HasPrefix(algorithm, "RS") || strings.HasPrefix(algorithm, "PS")
	case *ecdsa.PublicKey:
		switch algorithm {
		case "ES256":
			return k.Curve == elliptic.P256()
		case "ES384":
			return k.Curve == elliptic.P384()
		case "ES512":
			return k.Curve == elliptic.P521()
		}
	case ed25519.PublicKey:
		return algorithm == "EdDSA"
	}
	return false
}

// permissionsOf reads a claim: a list of words, or words separated by spaces or commas. Words of others are skipped.
func permissionsOf(name string, claim any) permission {
	var words []string
	switch c := claim.(type) {
	case string:
		words = strings.FieldsFunc(c, func(r rune) bool { return r == ' ' || r == ',' })
	case []any:
		for _, each := range c {
			if word, ok := each.(string); ok {
				words = append(words, word)
			}
		}
	}
	shared := name == "scope" || name == "scp"
	var set permission
	for _, word := range words {
		own, prefixed := strings.CutPrefix(word, scopePrefix)
		if shared && !prefixed {
			continue
		}
		// An unknown word has no permission, which is what the error returns.
		p, _ := parsePermissions(own)
		set |= p
	}
	return set
}
