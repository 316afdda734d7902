package query

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"unicode/utf8"
)

// A page token names the last place of a page. It is opaque to callers, who can neither make nor change one:
//
//	base64url( version 1 | filter 16 | number 8, big endian | text ... | mac 16 )
//
// filter is the hash of the call, its cluster and its filter; mac is the HMAC-SHA256 of all before it, cut to 16 bytes. A list by
// client ID has the number 0.
const (
	tokenVersion    = 1
	tokenFilterSize = 16
	tokenMACSize    = 16
	tokenHeadSize   = 1 + tokenFilterSize + 8
	// minTokenKey is the least size of the key, in bytes.
	minTokenKey = 32
	// maxTokenText is the longest encoded token: that of the longest client ID.
	maxTokenText = (tokenHeadSize + maxText + tokenMACSize + 2) / 3 * 4
)

// maxText is the longest text of a filter, in bytes: MQTT's own bound of a string.
const maxText = 65_535

// place is where a page ends. What number and text are is up to the call.
type place struct {
	number int64
	text   string
}

// tokens makes and reads page tokens.
type tokens struct{ key []byte }

// newTokens reads the key from a file, or makes one that lives as long as the process if there is none.
func newTokens(file string) (*tokens, error) {
	if file == "" {
		key := make([]byte, minTokenKey)
		if _, err := rand.Read(key); err != nil {
			return nil, fmt.Errorf("make the key of page tokens: %w", err)
		}
		return &tokens{key}, nil
	}
	key, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("page-token-key-file: %w", err)
	}
	if len(key) < minTokenKey {
		return nil, fmt.Errorf("page-token-key-file: %s has %d bytes; put at least %d random bytes into it, for example of /dev/urandom", file, len(key), minTokenKey)
	}
	return &tokens{key}, nil
}

// filterOf hashes what a token is bound to: the call, the cluster and the filter, each at its own place.
func filterOf(call, cluster string, filter ...string) [tokenFilterSize]byte {
	h := sha256.New()
	var size [8]byte
	for _, s := range append([]string{call, cluster}, filter...) {
		binary.BigEndian.PutUint64(size[:], uint64(len(s)))
		// A hash never returns an error.
		_, _ = h.Write(size[:])
		_, _ = h.Write([]byte(s))
	}
	var sum [sha256.Size]byte
	return [tokenFilterSize]byte(h.Sum(sum[:0]))
}

func (t *tokens) mac(content []byte) []byte {
	m := hmac.New(sha256.New, t.key)
	_, _ = m.Write(content)
	return m.Sum(nil)[:tokenMACSize]
}

// make returns the token of a place.
func (t *tokens) make(filter [tokenFilterSize]byte, at place) string {
	b := make([]byte, 0, tokenHeadSize+len(at.text)+tokenMACSize)
	b = append(b, tokenVersion)
	b = append(b, filter[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(at.number))
	b = append(b, at.text...)
	return base64.RawURLEncoding.EncodeToString(append(b, t.mac(b)...))
}

var (
	errTokenForged = errors.New("was not made by this service, or was changed; begin with the first page. " +
		"Several query services need the same --page-token-key-file")
	errTokenFilter = errors.New("belongs to another call, cluster or filter; ask for the next page as for the first one")
)

// read returns the place of a token; ok is false for the empty token. The error is for the caller, and names the field.
func (t *tokens) read(text string, filter [tokenFilterSize]byte) (at place, ok bool, err error) {
	if text == "" {
		return place{}, false, nil
	}
	if at, err = t.decode(text, filter); err != nil {
		return place{}, false, invalid("page_token", "page_token "+err.Error())
	}
	return at, true, nil
}

func (t *tokens) decode(text string, filter [tokenFilterSize]byte) (place, error) {
	if len(text) > maxTokenText {
		return place{}, errTokenForged
	}
	// Strict: one token has one spelling.
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < tokenHeadSize+tokenMACSize {
		return place{}, errTokenForged
	}
	content, mac := b[:len(b)-tokenMACSize], b[len(b)-tokenMACSize:]
	if !hmac.Equal(mac, t.mac(content)) {
		return place{}, errTokenForged
	}
	if content[0] != tokenVersion {
		return place{}, errTokenForged
	}
	if [tokenFilterSize]byte(content[1:]) != filter {
		return place{}, errTokenFilter
	}
	at := place{number: int64(binary.BigEndian.Uint64(content[1+tokenFilterSize:])), text: string(content[tokenHeadSize:])}
	if at.number == math.MinInt64 || !utf8.ValidString(at.text) {
		return place{}, errTokenForged
	}
	return at, nil
}
