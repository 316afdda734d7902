package query

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"unicode/utf8"

	"golang.org/x/time/rate"
)

// permission is a set of what an account may ask for.
type permission uint8

const (
	permConnect permission = 1 << iota // the seed call and GetStatus
	permRead                           // /v1 and the other gRPC calls
	permAdmin                          // everything
)

func (p permission) allows(need permission) bool { return p&(need|permAdmin) != 0 }

func (p permission) String() string {
	switch p {
	case permConnect:
		return "connect"
	case permRead:
		return "read"
	case permAdmin:
		return "admin"
	}
	return fmt.Sprintf("permission(%d)", uint8(p))
}

func parsePermissions(text string) (permission, error) {
	var set permission
	for word := range strings.SplitSeq(text, ",") {
		switch strings.TrimSpace(word) {
		case "connect":
			set |= permConnect
		case "read":
			set |= permRead
		case "admin":
			set |= permAdmin
		default:
			return 0, fmt.Errorf("unknown permission %q; use connect, read or admin, separated by commas", word)
		}
	}
	return set, nil
}

func validUser(user string) error {
	if user == "" || strings.ContainsAny(user, ":#\r\n") || strings.TrimSpace(user) != user || !utf8.ValidString(user) {
		return fmt.Errorf("user name %q is empty or holds a colon, a number sign or outer spaces", user)
	}
	return nil
}

// account is one line of the accounts file.
type account struct {
	name        string
	hash        passwordHash
	hashText    string
	permissions permission
	limiter     *rate.Limiter // nil: no limit

	// verified is the fingerprint of the credential that matched hash: one password fits, so one is enough.
	verified atomic.Pointer[fingerprint]
}

// accounts is one content of the accounts file.
type accounts struct {
	byName map[string]*account
	list   []*account // in the order of the file
}

// parseAccounts reads lines of user:hash:permissions. Blank lines and those that begin with # are skipped. Errors name the line.
func parseAccounts(content []byte) (*accounts, error) {
	set := &accounts{byName: make(map[string]*account)}
	var errs []error
	number := 0
	for raw := range bytes.Lines(content) {
		number++
		line := strings.TrimSpace(string(raw))
		if line == "" || line[0] == '#' {
			continue
		}
		a, err := parseAccount(line)
		if err == nil && set.byName[a.name] != nil {
			err = fmt.Errorf("user %q has a line already; remove one", a.name)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("line %d: %w", number, err))
			continue
		}
		set.byName[a.name] = a
		set.list = append(set.list, a)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(set.list) == 0 {
		return nil, errors.New("the file holds no account; add the line that 'query account' prints")
	}
	return set, nil
}

func parseAccount(line string) (*account, error) {
	parts := strings.Split(line, ":")
	if len(parts) != 3 {
		return nil, fmt.Errorf("%d colons in place of 2; write user:hash:permissions", len(parts)-1)
	}
	if err := validUser(parts[0]); err != nil {
		return nil, err
	}
	hash, err := parseHash(parts[1])
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", parts[0], err)
	}
	permissions, err := parsePermissions(parts[2])
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", parts[0], err)
	}
	return &account{name: parts[0], hash: hash, hashText: parts[1], permissions: permissions}, nil
}

// accountsFile reads a file again when it has changed.
type accountsFile struct {
	path    string
	last    fs.FileInfo // nil before the first read
	failure string      // text of the last error, empty after a success
}

// failed notes an error and reports whether it is a new one.
func (f *accountsFile) failed(err error) bool {
	before := f.failure
	f.failure = err.Error()
	return before != f.failure
}

// load returns the accounts if the file changed since the last call, else nil.
func (f *accountsFile) load() (*accounts, error) {
	info, err := os.Stat(f.path)
	if err != nil {
		f.last = nil
		return nil, fmt.Errorf("accounts-file: %w", err)
	}
	if f.last != nil && os.SameFile(f.last, info) && f.last.ModTime().Equal(info.ModTime()) && f.last.Size() == info.Size() {
		return nil, nil
	}
	content, err := os.ReadFile(f.path)
	if err != nil {
		f.last = nil
		return nil, fmt.Errorf("accounts-file: %w", err)
	}
	f.last = info
	set, err := parseAccounts(content)
	if err != nil {
		return nil, fmt.Errorf("accounts-file %s: %w", f.path, err)
	}
	return set, nil
}
