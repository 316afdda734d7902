package service

import (
	"errors"
	"fmt"
	"net"
	"strings"
)

// Listener is an address that a service is about to listen on, for [CheckExposed].
type Listener struct {
	Option string // names the address
	Addr   string // host:port; empty: not listened on
	// Missing is what the listener would need to face other machines, such as "TLS"; empty: nothing.
	Missing []string
}

// Exposed reports whether other machines may reach the listener. A name other than localhost counts as reachable: what it resolves to can
// change.
func (l Listener) Exposed() bool {
	if l.Addr == "" {
		return false
	}
	host, _, err := net.SplitHostPort(l.Addr)
	if err != nil || host == "localhost" {
		return false // what is no address is reported by who listens
	}
	ip := net.ParseIP(host)
	return ip == nil || !ip.IsLoopback()
}

// CheckExposed returns an error for each listener that other machines may reach while it lacks what it needs. With allowed there is no
// error, but a warning to be logged at the start, empty if there is nothing to warn of.
func CheckExposed(allowed bool, listeners ...Listener) (warning string, err error) {
	var said []string
	var errs []error
	for _, l := range listeners {
		if !l.Exposed() || len(l.Missing) == 0 {
			continue
		}
		missing := strings.Join(l.Missing, " and ")
		said = append(said, fmt.Sprintf("%s %s without %s", l.Option, l.Addr, missing))
		errs = append(errs, fmt.Errorf("%s: %s can be reached from other machines, but has no %s; add it, listen on 127.0.0.1, or accept it with --allow-insecure",
			l.Option, l.Addr, missing))
	}
	if allowed {
		return strings.Join(said, ", "), nil
	}
	return "", errors.Join(errs...)
}
