package query

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	somePassword = "correct horse"
	someBcrypt   = "$2a$04$GRWdR9u4M8eLKhMi0PZpoeOG6ff.0cuyK2j0H32eOd1cJOZ4YvvbO"
)

func TestParseAccounts(t *testing.T) {
	set, err := parseAccounts([]byte("# comment\n\n  \na:" + someBcrypt + ":connect\r\nb b:" + someBcrypt + ": read, admin \n"))
	if err != nil {
		t.Fatal(err)
	}
	a, b := set.byName["a"], set.byName["b b"]
	if len(set.list) != 2 || a.permissions != permConnect || b.permissions != permRead|permAdmin {
		t.Errorf("accounts %+v, %+v", a, b)
	}
	for _, c := range []struct{ content, says string }{
		{"", "no account"},
		{"# nobody\n", "no account"},
		{"a:" + someBcrypt, "line 1: 1 colons"},
		{"\n#\na:b:" + someBcrypt + ":read", "line 3: 3 colons"},
		{"a:" + someBcrypt + ":write", `line 1: user "a": unknown permission "write"`},
		{"a:" + someBcrypt + ":", "unknown permission"},
		{":" + someBcrypt + ":read", "line 1: user name"},
		{"a:" + someBcrypt + ":read\na:" + someBcrypt + ":connect", `line 2: user "a" has a line already`},
		{"a:plain:read", "line 1: user \"a\": the hash is neither"},
		{"a:$apr1$xyz$abc:read", "the hash is neither"},
		{"a:$2a$04$short:read", "bcrypt"},
		{"a:" + someBcrypt[:40] + ":read", "bcrypt"},
		{"a:$2a$31" + someBcrypt[6:] + ":read", "cost 31"},
		{"a:$2x$04" + someBcrypt[6:] + ":read", "neither"},
		{"a:$argon2id$v=16$m=64,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read", "version"},
		{"a:$argon2id$v=19$m=4,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read", "m=4"},
		{"a:$argon2id$v=19$m=999999999,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read", "m=999999999"},
		{"a:$argon2id$v=19$m=64,t=0,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read", "t=0"},
		{"a:$argon2id$v=19$m=64,t=1,p=0$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read", "p=0"},
		{"a:$argon2id$v=19$m=64,t=1,p=1,x=2$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read", "parameters"},
		{"a:$argon2id$v=19$m=64,t=1,p=1$!$aGFzaGhhc2hoYXNoaGFzaA:read", "salt"},
		{"a:$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$aGFzaA:read", "16 to 64"},
		{"a:$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ:read", "form"},
	} {
		if _, err := parseAccounts([]byte(c.content)); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%q: want an error with %q, got %v", c.content, c.says, err)
		}
	}
}

func TestHashes(t *testing.T) {
	for _, text := range []string{
		someBcrypt, "$2b" + someBcrypt[3:], "$2y" + someBcrypt[3:],
		// argon2 -id, from the reference implementation: echo -n "password" | argon2 somesalt -id -t 2 -m 16 -p 1 -l 24
		"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
	} {
		h, err := parseHash(text)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		right := somePassword
		if strings.HasPrefix(text, "$argon2id$") {
			right = "password"
		}
		if !h.matches(right) || h.matches(right+"x") || h.matches("") {
			t.Errorf("%s: matches(%q) is %v", text, right, h.matches(right))
		}
	}
}

func TestAccountLine(t *testing.T) {
	line, err := AccountLine("ops", "secret", "connect,read")
	if err != nil {
		t.Fatal(err)
	}
	set, err := parseAccounts([]byte(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	a := set.byName["ops"]
	if a == nil || a.permissions != permConnect|permRead || bcrypt.CompareHashAndPassword([]byte(a.hashText), []byte("secret")) != nil {
		t.Errorf("account %+v of %s", a, line)
	}
	for _, c := range []struct{ user, password, permissions, says string }{
		{"", "secret", "read", "user name"},
		{"a:b", "secret", "read", "user name"},
		{"ops", "", "read", "empty"},
		{"ops", strings.Repeat("x", 73), "read", "72"},
		{"ops", "secret", "write", "permission"},
	} {
		if _, err := AccountLine(c.user, c.password, c.permissions); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestPrintAccount(t *testing.T) {
	var out strings.Builder
	if err := printAccount([]string{"--user", "ops", "--permissions", "admin"}, strings.NewReader("secret\r\n"), &out); err != nil {
		t.Fatal(err)
	}
	set, err := parseAccounts([]byte(out.String()))
	if err != nil || !set.byName["ops"].hash.matches("secret") || set.byName["ops"].permissions != permAdmin {
		t.Errorf("%q: %v", out.String(), err)
	}
	if err := printAccount(nil, strings.NewReader("secret"), &out); err == nil {
		t.Error("no user is no error")
	}
}

func TestPermissions(t *testing.T) {
	for _, c := range []struct {
		has, need permission
		want      bool
	}{
		{permConnect, permConnect, true}, {permConnect, permRead, false}, {permConnect, permAdmin, false},
		{permRead, permConnect, false}, {permRead, permRead, true}, {permAdmin, permConnect, true}, {permAdmin, permRead, true},
		{permConnect | permRead, permRead, true}, {permConnect | permRead, permAdmin, false},
	} {
		if got := c.has.allows(c.need); got != c.want {
			t.Errorf("%d allows %v: %v", c.has, c.need, got)
		}
	}
}

func FuzzParseAccounts(f *testing.F) {
	f.Add([]byte("# x\na:" + someBcrypt + ":connect,read\n"))
	f.Add([]byte("a:$argon2id$v=19$m=64,t=1,p=1$c29tZXNhbHQ$aGFzaGhhc2hoYXNoaGFzaA:read"))
	f.Fuzz(func(t *testing.T, content []byte) {
		set, err := parseAccounts(content)
		if (set == nil) == (err == nil) {
			t.Fatalf("%v, %v", set, err)
		}
		if err != nil {
			return
		}
		for _, a := range set.list {
			if a.permissions == 0 || a.hash == nil || set.byName[a.name] != a {
				t.Errorf("account %+v", a)
			}
		}
	})
}

// The help names no variable that is not looked at.
func TestHelpOfAccount(t *testing.T) {
	var out strings.Builder
	if err := printAccount([]string{"--help"}, strings.NewReader(""), &out); !errors.Is(err, service.ErrHelp) {
		t.Fatal(err)
	}
	for _, word := range []string{"PRESENCE_", "environment", "YAML", "--config"} {
		if strings.Contains(out.String(), word) {
			t.Errorf("the help says %s:\n%s", word, out.String())
		}
	}
	if !strings.Contains(out.String(), "--user") || !strings.Contains(out.String(), "--permissions") {
		t.Errorf("the help is\n%s", out.String())
	}
}
