package query

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"unicode/utf8"
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
	if strings.Contains(user, ":") {
		return fmt.Errorf("user name %q holds a colon", user)
	}
	return validName(user)
}

func validName(name string) error {
	if name == "" || strings.ContainsAny(name, "#\r\n") || strings.TrimSpace(name) != name || !utf8.ValidString(name) {
		return fmt.Errorf("user name %q is empty or holds a number sign or outer spaces", name)
	}
	return nil
}

// certHash stands in place of a hash for an account that has no password: client certificates stand for it.
const certHash = "cert"

// account is one line of the accounts file.
type account struct {
	principal
	hash     passwordHash // nil: certHash
	hashText string

	// verified is the fingerprint of the credential that matched hash: one password fits, so one is enough.
	verified atomic.Pointer[fingerprint]
}

// accounts is one content of the accounts file.
type accounts struct {
	byName map[string]*account
	list   []*account // in the order of the file
	// kinds holds a hash of each kind that the accounts have.
	kinds []passwordHash
}

// parseAccounts reads lines of user:hash:permissions, or name:cert:permissions, where the name may hold colons. Blank lines and those that begin with # are skipped. Errors name the line.
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
		if a.hash != nil && !slices.ContainsFunc(set.kinds, func(h passwordHash) bool { return h.kind() == a.hash.kind() }) {
			set.kinds = append(set.kinds, a.hash)
		}
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
	if n := len(parts); n > 3 && parts[n-2] == certHash {
		parts = []string{strings.Join(parts[:n-2], ":"), certHash, parts[n-1]}
	}
	if len(parts) != 3 {
		return nil, fmt.Errorf("%d colons in place of 2; write user:hash:permissions", len(parts)-1)
	}
	var hash passwordHash
	var err error
	if parts[1] == certHash {
		err = validName(parts[0])
	} else if err = validUser(parts[0]); err == nil {
		if hash, err = parseHash(parts[1]); err != nil {
			err = fmt.Errorf("user %q: %w", parts[0], err)
		}
	}
	if err != nil {
		return nil, err
	}
	permissions, err := parsePermissions(parts[2])
	if err != nil {
		return nil, fmt.Errorf("user %q: %w", parts[0], err)
	}
	return &account{principal: principal{name: parts[0], permissions: permissions}, hash: hash, hashText: parts[1]}, nil
}
