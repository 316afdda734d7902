package query

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
)

const (
	// newHashCost is the bcrypt cost of new accounts: about 60 ms, paid once per credential and process.
	newHashCost = 10
	// Bounds beyond which a single login would hold a core for seconds or take the memory of others.
	maxBcryptCost   = 15
	maxArgonMemory  = 256 << 10 // KiB
	maxArgonTime    = 32
	maxBcryptLength = 72 // bytes of a password that bcrypt looks at
)

// passwordHash is the part of an account that a password is checked against.
type passwordHash interface {
	// matches takes a time that depends on the hash's parameters only.
	matches(password string) bool
	// kind is the same for two hashes that cost the same.
	kind() string
}

// parseHash reads a bcrypt or argon2id hash in the form that htpasswd and argon2 print.
func parseHash(text string) (passwordHash, error) {
	switch {
	case strings.HasPrefix(text, "$2a$"), strings.HasPrefix(text, "$2b$"), strings.HasPrefix(text, "$2y$"):
		cost, err := bcrypt.Cost([]byte(text))
		if err != nil {
			return nil, fmt.Errorf("read the bcrypt hash: %w", err)
		}
		if cost > maxBcryptCost {
			return nil, fmt.Errorf("bcrypt cost %d takes too long for a login; use at most %d", cost, maxBcryptCost)
		}
		h := bcryptHash(text)
		// Cost looks at the head only; a comparison shows whether the rest is there.
		if err := bcrypt.CompareHashAndPassword([]byte("$2a$04$"+text[len("$2a$10$"):]), nil); err != nil && !errors.Is(err, bcrypt.ErrMismatchedHashAndPassword) {
			return nil, fmt.Errorf("read the bcrypt hash: %w", err)
		}
		return h, nil
	case strings.HasPrefix(text, "$argon2id$"):
		return parseArgon(text)
	}
	return nil, errors.New("the hash is neither bcrypt ($2a$, $2b$, $2y$) nor $argon2id$; make one with 'query account' or 'htpasswd -nB'")
}

type bcryptHash string

func (h bcryptHash) kind() string {
	cost, err := bcrypt.Cost([]byte(h))
	if err != nil {
		return "bcrypt" // parseHash has read it
	}
	return fmt.Sprintf("bcrypt %d", cost)
}

func (h bcryptHash) matches(password string) bool {
	return bcrypt.CompareHashAndPassword([]byte(h), []byte(password)) == nil
}

type argonHash struct {
	memory, time uint32
	threads      uint8
	salt, sum    []byte
}

func (h *argonHash) kind() string {
	return fmt.Sprintf("argon2id m=%d,t=%d,p=%d", h.memory, h.time, h.threads)
}

func (h *argonHash) matches(password string) bool {
	sum := argon2.IDKey([]byte(password), h.salt, h.time, h.memory, h.threads, uint32(len(h.sum)))
	return subtle.ConstantTimeCompare(sum, h.sum) == 1
}

// parseArgon reads $argon2id$v=19$m=65536,t=3,p=4$salt$hash.
func parseArgon(text string) (*argonHash, error) {
	parts := strings.Split(text, "$")
	if len(parts) != 6 {
		return nil, errors.New("the argon2id hash is not of the form $argon2id$v=19$m=..,t=..,p=..$salt$hash")
	}
	if parts[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return nil, fmt.Errorf("argon2id version %q is not v=%d", parts[2], argon2.Version)
	}
	h := &argonHash{}
	var rest string
	n, err := fmt.Sscanf(parts[3]+" end", "m=%d,t=%d,p=%d %s", &h.memory, &h.time, &h.threads, &rest)
	if n != 4 || err != nil || rest != "end" {
		return nil, fmt.Errorf("argon2id parameters %q are not of the form m=M,t=T,p=P with numbers", parts[3])
	}
	switch {
	case h.time < 1 || h.time > maxArgonTime:
		return nil, fmt.Errorf("argon2id t=%d is not between 1 and %d", h.time, maxArgonTime)
	case h.threads < 1:
		return nil, errors.New("argon2id p=0 is less than 1")
	case h.memory < 8*uint32(h.threads) || h.memory > maxArgonMemory:
		return nil, fmt.Errorf("argon2id m=%d is not between 8 KiB for each thread and %d KiB", h.memory, maxArgonMemory)
	}
	if h.salt, err = base64.RawStdEncoding.Strict().DecodeString(parts[4]); err != nil {
		return nil, fmt.Errorf("read the argon2id salt: %w", err)
	}
	if h.sum, err = base64.RawStdEncoding.Strict().DecodeString(parts[5]); err != nil {
		return nil, fmt.Errorf("read the argon2id hash: %w", err)
	}
	if len(h.salt) < 8 || len(h.sum) < 16 || len(h.sum) > 64 {
		return nil, fmt.Errorf("argon2id salt of %d and hash of %d bytes: want at least 8, and 16 to 64", len(h.salt), len(h.sum))
	}
	return h, nil
}

// AccountLine returns the line of an accounts file for a new account, its password hashed with bcrypt. Permissions are separated by
// commas: connect (the seed call and GetStatus), read (/v1), admin (all).
func AccountLine(user, password, permissions string) (string, error) {
	if err := validUser(user); err != nil {
		return "", err
	}
	if _, err := parsePermissions(permissions); err != nil {
		return "", err
	}
	switch {
	case password == "":
		return "", errors.New("the password is empty; write it to standard input")
	case len(password) > maxBcryptLength:
		return "", fmt.Errorf("the password has %d bytes; bcrypt looks at no more than %d", len(password), maxBcryptLength)
	}
	hash, err := bcrypt.GenerateFromPassword([]byte(password), newHashCost)
	if err != nil {
		return "", fmt.Errorf("hash the password: %w", err)
	}
	return user + ":" + string(hash) + ":" + permissions, nil
}
