package query

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func testTokens(t testing.TB, key string) *tokens {
	t.Helper()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	made, err := newTokens(file)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

var testKey = strings.Repeat("k", minTokenKey)

func TestTokenRoundTrip(t *testing.T) {
	made, reader := testTokens(t, testKey), testTokens(t, testKey)
	filter := filterOf("ListClients", "default", "online", "")
	for _, at := range []place{{}, {0, "dev1"}, {-1, "a\x00/%"}, {1 << 62, "日本"}, {0, strings.Repeat("k", maxText)}} {
		text := made.make(filter, at)
		if got, ok, err := reader.read(text, filter); err != nil || !ok || got != at {
			t.Errorf("%v became %v, %v, %v", at.number, got.number, ok, err)
		}
		if len(text) > maxTokenText {
			t.Errorf("a token of %d characters, at most %d are read", len(text), maxTokenText)
		}
	}
	if _, ok, err := made.read("", filter); ok || err != nil {
		t.Errorf("the empty token: %v, %v", ok, err)
	}
}

func TestTokenOfAnotherListIsRefused(t *testing.T) {
	made := testTokens(t, testKey)
	text := made.make(filterOf("ListClients", "default", "online", ""), place{0, "dev1"})
	for name, other := range map[string][tokenFilterSize]byte{
		"call":    filterOf("GetStats", "default", "online", ""),
		"cluster": filterOf("ListClients", "other", "online", ""),
		"filter":  filterOf("ListClients", "default", "", "online"),
		"fewer":   filterOf("ListClients", "default", "online"),
	} {
		if _, _, err := made.read(text, other); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "another") {
			t.Errorf("another %s: %v", name, err)
		}
	}
}

// Every bit of a token is covered, and so is its length.
func TestTokenTampering(t *testing.T) {
	made := testTokens(t, testKey)
	filter := filterOf("ListClients", "default")
	text := made.make(filter, place{7, "dev1"})
	refused := func(what, text string) {
		t.Helper()
		if _, _, err := made.read(text, filter); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "page_token") {
			t.Errorf("%s: %v", what, err)
		}
	}
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		for bit := range 8 {
			changed := append([]byte(nil), raw...)
			changed[i] ^= 1 << bit
			refused("a bit", base64.RawURLEncoding.EncodeToString(changed))
		}
	}
	for i := range len(text) {
		refused("cut", "x"+text[:i])
		if i > 0 {
			refused("cut", text[:i])
		}
	}
	for _, s := range []string{text + "A", text + "=", "A" + text, text + text, "\xff", strings.Repeat("A", 1<<20)} {
		refused("longer", s)
	}
	// The last character of this one has bits that stand for nothing.
	odd := made.make(filter, place{7, "dev12"})
	for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
		if other := odd[:len(odd)-1] + string(c); other != odd {
			refused("another spelling", other)
		}
	}
	other := testTokens(t, strings.Repeat("K", minTokenKey))
	if _, _, err := other.read(text, filter); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another key: %v", err)
	}
	next := append([]byte(nil), raw[:len(raw)-tokenMACSize]...)
	next[0] = tokenVersion + 1
	refused("version", base64.RawURLEncoding.EncodeToString(append(next, made.mac(next)...)))
}

func TestTokenKeys(t *testing.T) {
	one, err := newTokens("")
	if err != nil {
		t.Fatal(err)
	}
	two, err := newTokens("")
	if err != nil {
		t.Fatal(err)
	}
	filter := filterOf("ListClients", "default")
	if _, _, err := two.read(one.make(filter, place{0, "x"}), filter); err == nil {
		t.Error("two processes without a key file have the same key")
	}
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte(testKey[1:]), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{short, short + "-absent"} {
		if _, err := newTokens(file); err == nil || !strings.Contains(err.Error(), "page-token-key-file") {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func FuzzToken(f *testing.F) {
	made := testTokens(f, testKey)
	filter := filterOf("ListClients", "default")
	genuine := made.make(filter, place{1, "dev1"})
	f.Add(genuine)
	f.Add(made.make(filterOf("GetStats", "default"), place{}))
	f.Add("")
	f.Add("AQ")
	f.Add(genuine[:len(genuine)-1])
	f.Fuzz(func(t *testing.T, text string) {
		at, ok, err := made.read(text, filter)
		switch {
		case err != nil:
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%q: %v", text, err)
			}
		case !ok:
			if text != "" {
				t.Errorf("%q is taken for the first page", text)
			}
		case made.make(filter, at) != text:
			t.Errorf("%q was read as %v, which is %q", text, at, made.make(filter, at))
		}
	})
}
