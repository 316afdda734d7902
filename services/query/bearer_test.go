package query

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// issuer signs tokens of the tests.
type issuer struct {
	rsa *rsa.PrivateKey
	ec  *ecdsa.PrivateKey
	ed  ed25519.PrivateKey
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	i := &issuer{}
	var err error
	if i.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		t.Fatal(err)
	}
	if i.ec, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	if _, i.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	return i
}

// jwks are the public keys.
func (i *issuer) jwks(t testing.TB) []byte {
	t.Helper()
	return keySet(t, jose.JSONWebKey{Key: i.rsa.Public(), KeyID: "rsa", Use: "sig"}, jose.JSONWebKey{Key: i.ec.Public(), KeyID: "ec", Algorithm: "ES256"},
		jose.JSONWebKey{Key: i.ed.Public(), KeyID: "ed"}, jose.JSONWebKey{Key: i.rsa.Public(), KeyID: "enc", Use: "enc"})
}

func keySet(t testing.TB, keys ...jose.JSONWebKey) []byte {
	t.Helper()
	content, err := json.Marshal(jose.JSONWebKeySet{Keys: keys})
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// sign returns a token with the header and payload as they are.
func sign(t testing.TB, algorithm string, key any, header, payload string) string {
	t.Helper()
	encode := base64.RawURLEncoding.EncodeToString
	content := encode([]byte(header)) + "." + encode([]byte(payload))
	digest := sha256.Sum256([]byte(content))
	var signature []byte
	var err error
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if strings.HasPrefix(algorithm, "PS") {
			signature, err = rsa.SignPSS(rand.Reader, k, crypto.SHA256, digest[:], nil)
		} else {
			signature, err = rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, digest[:])
		}
	case *ecdsa.PrivateKey:
		r, s, signErr := ecdsa.Sign(rand.Reader, k, digest[:])
		err = signErr
		if err == nil {
			signature = append(r.FillBytes(make([]byte, 32)), s.FillBytes(make([]byte, 32))...)
		}
	case ed25519.PrivateKey:
		signature = ed25519.Sign(k, []byte(content))
	case []byte:
		mac := hmac.New(sha256.New, k)
		_, _ = mac.Write([]byte(content))
		signature = mac.Sum(nil)
	case nil:
	default:
		t.Fatalf("key %T", key)
	}
	if err != nil {
		t.Fatal(err)
	}
	return content + "." + encode(signature)
}

var tokenNow = time.Unix(1_800_000_000, 0)

// claimsWith are claims that are believed, with changes; nil takes one away.
func claimsWith(t testing.TB, changes map[string]any) string {
	t.Helper()
	all := map[string]any{"iss": "issuer", "aud": "presence", "sub": "service-1", "exp": tokenNow.Unix() + 600, "permissions": []string{"read", "connect"}}
	maps.Copy(all, changes)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	content, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func testBearers(t testing.TB, keys []byte, change func(*TokenConfig)) *bearers {
	t.Helper()
	cfg := DefaultTokens()
	cfg.JWKSFile, cfg.Issuer, cfg.Audience = "keys.json", "issuer", "presence"
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	b := newBearers(cfg)
	b.now = func() time.Time { return tokenNow }
	if err := b.load(keys); err != nil {
		t.Fatal(err)
	}
	return b
}

func (t *bearers) check(text string) (bearer, error) {
	return t.verify(text, fingerprint(sha256.Sum256([]byte(text))))
}

func TestTokensThatAreBelieved(t *testing.T) {
	i := newIssuer(t)
	b := testBearers(t, i.jwks(t), nil)
	for _, c := range []struct {
		algorithm, kid string
		key            any
	}{{"RS256", "rsa", i.rsa}, {"ES256", "ec", i.ec}, {"EdDSA", "ed", i.ed}} {
		header := fmt.Sprintf(`{"alg":%q,"kid":%q,"typ":"JWT"}`, c.algorithm, c.kid)
		for _, changes := range []map[string]any{
			nil, {"aud": []string{"other", "presence"}}, {"nbf": tokenNow.Unix() + 29}, {"exp": tokenNow.Unix() - 29}, {"iat": tokenNow.Unix() - 5}, {"exp": 1_800_000_100.5},
		} {
			for range 2 { // the second time from memory
				got, err := b.check(sign(t, c.algorithm, c.key, header, claimsWith(t, changes)))
				if err != nil || got.subject != "service-1" || got.permissions != permRead|permConnect {
					t.Errorf("%s with %v: %+v, %v", c.algorithm, changes, got, err)
				}
			}
		}
	}
}

func TestTokensThatAreForged(t *testing.T) {
	i, stranger := newIssuer(t), newIssuer(t)
	b := testBearers(t, i.jwks(t), nil)
	good := claimsWith(t, nil)
	der, err := x509.MarshalPKIXPublicKey(i.rsa.Public())
	if err != nil {
		t.Fatal(err)
	}
	public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	own, err := json.Marshal(jose.JSONWebKey{Key: stranger.rsa.Public(), KeyID: "rsa"})
	if err != nil {
		t.Fatal(err)
	}
	rs256 := `{"alg":"RS256","kid":"rsa"}`
	valid := sign(t, "RS256", i.rsa, rs256, good)
	parts := strings.Split(valid, ".")
	encode := base64.RawURLEncoding.EncodeToString
	for name, token := range map[string]string{
		"none":                            sign(t, "none", nil, `{"alg":"none","kid":"rsa"}`, good),
		"None":                            sign(t, "none", nil, `{"alg":"None"}`, good),
		"no alg":                          sign(t, "RS256", i.rsa, `{"kid":"rsa"}`, good),
		"the public key as secret (PEM)":  sign(t, "HS256", public, `{"alg":"HS256","kid":"rsa"}`, good),
		"the public key as secret (DER)":  sign(t, "HS256", der, `{"alg":"HS256","kid":"rsa"}`, good),
		"the modulus as secret":           sign(t, "HS256", i.rsa.N.Bytes(), `{"alg":"HS256","kid":"rsa"}`, good),
		"a stranger's key":                sign(t, "RS256", stranger.rsa, rs256, good),
		"a key that it brings":            sign(t, "RS256", stranger.rsa, `{"alg":"RS256","kid":"rsa","jwk":`+string(own)+`}`, good),
		"its own right key, too":          sign(t, "RS256", i.rsa, `{"alg":"RS256","kid":"rsa","jwk":`+string(own)+`}`, good),
		"a place to fetch keys from":      sign(t, "RS256", stranger.rsa, `{"alg":"RS256","kid":"x","jku":"http://127.0.0.1:1/keys"}`, good),
		"kid of another key":              sign(t, "RS256", i.rsa, `{"alg":"RS256","kid":"ec"}`, good),
		"kid of no key":                   sign(t, "RS256", i.rsa, `{"alg":"RS256","kid":"../../dev/null"}`, good),
		"no kid where there are several":  sign(t, "RS256", i.rsa, `{"alg":"RS256"}`, good),
		"a key that is for encryption":    sign(t, "RS256", i.rsa, `{"alg":"RS256","kid":"enc"}`, good),
		"an algorithm that is not listed": sign(t, "PS256", i.rsa, `{"alg":"PS256","kid":"rsa"}`, good),
		"two algorithms":                  sign(t, "RS256", i.rsa, `{"alg":"none","alg":"RS256","kid":"rsa"}`, good),
		"something critical":              sign(t, "RS256", i.rsa, `{"alg":"RS256","kid":"rsa","crit":["x"],"x":1}`, good),
		"other claims":                    parts[0] + "." + encode([]byte(claimsWith(t, map[string]any{"permissions": "admin"}))) + "." + parts[2],
		"no signature":                    parts[0] + "." + parts[1] + ".",
		"two parts":                       parts[0] + "." + parts[1],
		"four parts":                      valid + ".x",
		"JSON":                            `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
		"spaces":                          " " + valid,
		"padding":                         valid + "==",
		"nothing":                         "",
		"text":                            "opaque-token",
		"encrypted":                       strings.Repeat("e30.", 4) + "e30",
		"no claims":                       sign(t, "RS256", i.rsa, rs256, ``),
		"claims that are a list":          sign(t, "RS256", i.rsa, rs256, `[]`),
		"claims and more":                 sign(t, "RS256", i.rsa, rs256, good+`{}`),
		"a claim twice":                   sign(t, "RS256", i.rsa, rs256, strings.TrimSuffix(good, "}")+`,"permissions":"admin"}`),
		"a subject twice":                 sign(t, "RS256", i.rsa, rs256, `{"sub":"root",`+strings.TrimPrefix(good, "{")),
		"claims of another case":          sign(t, "RS256", i.rsa, rs256, strings.Replace(good, `"aud"`, `"AUD"`, 1)),
		"claims that are not UTF-8":       sign(t, "RS256", i.rsa, rs256, strings.Replace(good, "service-1", "\xff", 1)),
	} {
		if got, err := b.check(token); err == nil {
			t.Errorf("%s: believed as %+v", name, got)
		}
	}
	if _, err := b.check(valid); err != nil {
		t.Errorf("the token that they were made of: %v", err)
	}
	if len(b.known) != 1 {
		t.Errorf("%d tokens are remembered", len(b.known))
	}
}

func TestClaimsThatAreWrong(t *testing.T) {
	i := newIssuer(t)
	b := testBearers(t, i.jwks(t), nil)
	for _, c := range []struct {
		changes map[string]any
		says    string
	}{
		{map[string]any{"exp": nil}, "no exp"},
		{map[string]any{"exp": tokenNow.Unix() - 31}, "expired"},
		{map[string]any{"exp": "soon"}, "claims"},
		{map[string]any{"exp": 1e300}, "claims"},
		{map[string]any{"exp": 0}, "expired"},
		{map[string]any{"exp": -1}, "expired"},
		{map[string]any{"nbf": tokenNow.Unix() + 31}, "not valid yet"},
		{map[string]any{"iat": tokenNow.Unix() + 31}, "not valid yet"},
		{map[string]any{"nbf": 1e300}, "claims"},
		{map[string]any{"aud": nil}, "audience"},
		{map[string]any{"aud": "presence2"}, "audience"},
		{map[string]any{"aud": []string{}}, "audience"},
		{map[string]any{"aud": 7}, "claims"},
		{map[string]any{"iss": nil}, "issuer"},
		{map[string]any{"iss": "issuer/"}, "issuer"},
		{map[string]any{"sub": nil}, "subject"},
		{map[string]any{"sub": strings.Repeat("x", 257)}, "subject"},
		{map[string]any{"sub": 7}, "claims"},
	} {
		if _, err := b.check(sign(t, "ES256", i.ec, `{"alg":"ES256","kid":"ec"}`, claimsWith(t, c.changes))); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: want an error with %q, got %v", c.changes, c.says, err)
		}
	}
}

// What was verified is believed from memory, but not longer than it is valid, and not after its key is gone.
func TestTokensAreForgotten(t *testing.T) {
	i := newIssuer(t)
	b := testBearers(t, i.jwks(t), nil)
	text := sign(t, "EdDSA", i.ed, `{"alg":"EdDSA","kid":"ed"}`, claimsWith(t, nil))
	if _, err := b.check(text); err != nil || len(b.known) != 1 {
		t.Fatalf("%v, %d known", err, len(b.known))
	}
	b.now = func() time.Time { return tokenNow.Add(629 * time.Second) }
	if _, err := b.check(text); err != nil {
		t.Errorf("in its last second: %v", err)
	}
	b.now = func() time.Time { return tokenNow.Add(630 * time.Second) }
	if _, err := b.check(text); err == nil || len(b.known) != 0 {
		t.Errorf("after its end: %v, %d known", err, len(b.known))
	}
	b.now = func() time.Time { return tokenNow }
	if _, err := b.check(text); err != nil {
		t.Fatal(err)
	}
	if err := b.load(newIssuer(t).jwks(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.check(text); err == nil {
		t.Error("believed after its key was taken away")
	}
	if err := b.load(i.jwks(t)); err != nil {
		t.Fatal(err)
	}
	for n := range maxTokensKnown + 10 {
		b.remember(fingerprint{byte(n), byte(n >> 8), byte(n >> 16)}, bearer{}, b.keys)
	}
	if len(b.known) != maxTokensKnown {
		t.Errorf("%d tokens are remembered", len(b.known))
	}
	// A token that was verified by keys that are gone is not remembered.
	old := b.keys
	if err := b.load(i.jwks(t)); err != nil {
		t.Fatal(err)
	}
	if b.remember(fingerprint{1}, bearer{}, old); len(b.known) != 0 {
		t.Error("remembered by old keys")
	}
}

func TestPermissionsOfTokens(t *testing.T) {
	for _, c := range []struct {
		name  string
		claim any
		want  permission
	}{
		{"permissions", []any{"connect", "presence:read", "write", 7.0}, permConnect | permRead},
		{"permissions", "connect,read admin", permConnect | permRead | permAdmin},
		{"permissions", nil, 0}, {"permissions", true, 0}, {"permissions", map[string]any{"admin": true}, 0}, {"permissions", []any{[]any{"admin"}}, 0},
		{"scope", "openid admin presence:connect presence:read presence:everything", permConnect | permRead},
		{"scp", []any{"admin", "presence:admin"}, permAdmin},
		{"permissions", "Admin ADMIN presence:presence:admin", 0},
	} {
		if got := permissionsOf(c.name, c.claim); got != c.want {
			t.Errorf("%s %v: %b, want %b", c.name, c.claim, got, c.want)
		}
	}
}

func TestKeysThatAreWrong(t *testing.T) {
	i := newIssuer(t)
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content []byte
		says    string
	}{
		"no JSON":         {[]byte("-----BEGIN"), "JWKS"},
		"empty":           {nil, "JWKS"},
		"no keys":         {[]byte(`{"keys":[]}`), "no key"},
		"a lone key":      {[]byte(`{"kty":"RSA","n":"AQAB","e":"AQAB"}`), "no key"},
		"a broken key":    {[]byte(`{"keys":[{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}]}`), "read key 0"},
		"a private key":   {keySet(t, jose.JSONWebKey{Key: i.ec, KeyID: "a"}), "secret"},
		"a secret":        {keySet(t, jose.JSONWebKey{Key: []byte("secret"), KeyID: "a"}), "secret"},
		"a weak key":      {keySet(t, jose.JSONWebKey{Key: small.Public(), KeyID: "a"}), "1024 bits"},
		"a kid twice":     {keySet(t, jose.JSONWebKey{Key: i.ec.Public(), KeyID: "a"}, jose.JSONWebKey{Key: i.ed.Public(), KeyID: "a"}), "twice"},
		"only encryption": {keySet(t, jose.JSONWebKey{Key: i.rsa.Public(), KeyID: "a", Use: "enc"}), "no key"},
		"only unknown":    {[]byte(`{"keys":[{"kty":"XYZ"}]}`), "no key"},
		"keys that twice": {[]byte(`{"keys":[],"keys":[]}`), "duplicate"},
	} {
		b := testBearers(t, i.jwks(t), nil)
		if err := b.load(c.content); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: want an error with %q, got %v", name, c.says, err)
		}
		// What was there stays.
		if _, err := b.check(sign(t, "EdDSA", i.ed, `{"alg":"EdDSA","kid":"ed"}`, claimsWith(t, nil))); err != nil {
			t.Errorf("%s: after it, %v", name, err)
		}
	}
	// Keys of kinds not known are others' business, and one key needs no kid.
	one := testBearers(t, []byte(`{"keys":[{"kty":"XYZ"},`+strings.TrimPrefix(string(keySet(t, jose.JSONWebKey{Key: i.ed.Public()})), `{"keys":[`)), nil)
	if _, err := one.check(sign(t, "EdDSA", i.ed, `{"alg":"EdDSA"}`, claimsWith(t, nil))); err != nil {
		t.Error(err)
	}
}

func TestTokenConfig(t *testing.T) {
	for says, change := range map[string]func(*TokenConfig){
		"jwt-issuer":               func(c *TokenConfig) { c.Issuer = "" },
		"jwt-audience":             func(c *TokenConfig) { c.Audience = "" },
		"jwt-permissions-claim":    func(c *TokenConfig) { c.PermissionsClaim = "" },
		`jwt-algorithms: "none"`:   func(c *TokenConfig) { c.Algorithms = []string{"RS256", "none"} },
		`jwt-algorithms: "HS256"`:  func(c *TokenConfig) { c.Algorithms = []string{"HS256"} },
		"jwt-algorithms: is empty": func(c *TokenConfig) { c.Algorithms = nil },
		"jwt-jwks-file":            func(c *TokenConfig) { c.JWKSFile = "" },
	} {
		c := DefaultTokens()
		c.JWKSFile, c.Issuer, c.Audience = "keys", "i", "a"
		if err := c.Validate(); err != nil {
			t.Fatal(err)
		}
		if change(&c); c.Validate() == nil || !strings.Contains(c.Validate().Error(), says) {
			t.Errorf("%s: %v", says, c.Validate())
		}
	}
}

// FuzzBearerToken looks for tokens that are believed without the key, and for panics.
func FuzzBearerToken(f *testing.F) {
	i := newIssuer(f)
	b := testBearers(f, i.jwks(f), nil)
	valid := sign(f, "EdDSA", i.ed, `{"alg":"EdDSA","kid":"ed"}`, claimsWith(f, nil))
	f.Add(strings.Split(valid, ".")[2], `{"alg":"none"}`, claimsWith(f, nil))
	f.Add("", `{"alg":"EdDSA","kid":"ed"}`, `{}`)
	f.Fuzz(func(t *testing.T, signature, header, payload string) {
		encode := base64.RawURLEncoding.EncodeToString
		text := encode([]byte(header)) + "." + encode([]byte(payload)) + "." + signature
		if got, err := b.check(text); err == nil && text != valid {
			t.Errorf("%q is believed as %+v", text, got)
		}
	})
}
