package query

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"hash"
	"net/netip"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// maxBasic bounds the base64 of user and password, in bytes.
	maxBasic = 8 << 10
	// maxPassword bounds a password, in bytes: what it costs to hash must not depend on it.
	maxPassword = 1 << 10
)

// fingerprint stands for a credential in memory; without the process's key it says nothing about it.
type fingerprint [sha256.Size]byte

// basic returns the account of a user and a password. A credential that was verified before costs a fingerprint; any other costs
// a hash of each kind in the accounts file, also for a user that does not exist, and waits for its turn.
func (g *gate) basic(ctx context.Context, address netip.Addr, encoded string) (principal, string, error) {
	c, ok := g.pool.Get().(*credential)
	if !ok {
		return principal{}, refusedMalformed, errUnanswered()
	}
	defer g.pool.Put(c)
	if !c.decode(encoded) {
		return principal{}, refusedMalformed, g.malformed()
	}
	set := g.set.Load()
	a := set.byName[string(c.user)]
	if a.hasVerified(&c.print) {
		return a.principal, "", nil
	}
	// The verification may outlive this call.
	user, password, print := string(c.user), string(c.password), c.print
	result := g.flight.DoChan(string(print[:]), func() (any, error) { return g.login(set, address, user, password, &print) })
	select {
	case <-ctx.Done():
		return principal{}, refusedBusy, status.FromContextError(ctx.Err()).Err()
	case r := <-result:
		if verified, ok := r.Val.(*account); ok && verified != nil {
			return verified.principal, "", nil
		}
		var claimed principal
		if a != nil {
			claimed.name = a.name
		}
		if errors.Is(r.Err, errVerifyBusy) {
			return claimed, refusedBusy, retryLater(codes.ResourceExhausted, "too many new credentials are being verified; ask again", retryDelay)
		}
		return claimed, refusedWrong, status.Error(codes.Unauthenticated, "wrong user or password; use an account of the service's accounts file")
	}
}

// login checks a password against its account's hash, in turn; nil if it is wrong.
func (g *gate) login(set *accounts, address netip.Addr, user, password string, print *fingerprint) (*account, error) {
	// The flight outlives the caller that began it: others may have joined.
	ctx, cancel := context.WithTimeout(context.Background(), verifyWait)
	defer cancel()
	done, err := g.turns.take(ctx, service.AddressKey(address), user)
	if err != nil {
		return nil, err
	}
	defer done()
	a := set.byName[user]
	if a.hasVerified(print) {
		return a, nil
	}
	if !set.verify(a, password, g.metrics.hashes.Inc) {
		return nil, nil
	}
	a.verified.Store(print)
	return a, nil
}

// verify reports whether the password is the account's, which may be nil. It computes one hash of each kind that the accounts have, told to
// hashed, so that the time says neither whether the account exists nor which kind of hash it has.
func (s *accounts) verify(a *account, password string, hashed func()) bool {
	right := false
	for _, example := range s.kinds {
		h := example
		own := a != nil && a.hash != nil && a.hash.kind() == example.kind()
		if own {
			h = a.hash
		}
		match := h.matches(password)
		hashed()
		right = right || own && match
	}
	return right
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

// decode reads the value of a Basic authorization and computes its fingerprint, a keyed hash of user:password. A user name holds no
// colon, so two credentials never read the same.
func (c *credential) decode(encoded string) bool {
	if len(encoded) > maxBasic {
		return false
	}
	c.encoded = append(c.encoded[:0], encoded...)
	var err error
	if c.decoded, err = base64.StdEncoding.AppendDecode(c.decoded[:0], c.encoded); err != nil {
		return false
	}
	var ok bool
	if c.user, c.password, ok = bytes.Cut(c.decoded, []byte{':'}); !ok || len(c.password) > maxPassword {
		return false
	}
	c.sum(c.decoded)
	return true
}

// fingerprint computes that of a text without a colon, such as a bearer token.
func (c *credential) fingerprint(text string) {
	c.encoded = append(c.encoded[:0], text...)
	c.sum(c.encoded)
}

func (c *credential) sum(content []byte) {
	c.mac.Reset()
	// A hash never returns an error.
	_, _ = c.mac.Write(content)
	c.mac.Sum(c.print[:0])
}
