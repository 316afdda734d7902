package service

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// Exit codes of Main.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

const (
	defaultAdminAddr   = "127.0.0.1:8082"
	healthcheckCommand = "healthcheck"
	healthcheckTimeout = 3 * time.Second
)

// Main is the body of every main function:
//
//	os.Exit(service.Main("bridge", os.Args[1:], run))
//
// It calls run with a context that ends at the first SIGINT or SIGTERM; a second
// signal kills the process at once. An error is printed once, to standard error, as
// "name: error". It returns 0 on nil and ErrHelp, 2 on a ConfigError, else 1. If the
// first argument is "healthcheck", [Healthcheck] runs in place of run.
func Main(name string, args []string, run func(ctx context.Context, args []string) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// From the first signal on, the default action of a second one is back: it kills.
	context.AfterFunc(ctx, stop)
	if len(args) > 0 && args[0] == healthcheckCommand {
		return report(os.Stderr, name+" "+healthcheckCommand, Healthcheck(ctx, args[1:], os.Environ()))
	}
	return report(os.Stderr, name, run(ctx, args))
}

// report prints err, if it is one, and returns the exit code.
func report(w io.Writer, name string, err error) int {
	if err == nil || errors.Is(err, ErrHelp) {
		return exitOK
	}
	text := fmt.Sprintf("%s: %v\n", name, err)
	code := exitError
	var usage *ConfigError
	if errors.As(err, &usage) {
		code = exitUsage
		text += fmt.Sprintf("Run '%s --help' for all options.\n", name)
	}
	// There is nowhere left to report that standard error is closed.
	_, _ = io.WriteString(w, text)
	return code
}

// Healthcheck asks the admin listener of this machine whether the service is ready
// and returns nil if it is, for images that hold nothing but the binary. The
// address comes from --admin-addr, PRESENCE_ADMIN_ADDR or the file of --config, as for the service
// itself; other options are not looked at, since they are not its own.
func Healthcheck(ctx context.Context, args, environ []string) error {
	var flag AdminConfig
	options, err := optionsOf(&flag)
	if err != nil {
		return err
	}
	flags, err := parseFlags(options, args)
	if err != nil {
		return err
	}
	if flags.help || flags.version {
		return cmp.Or(printUsage(os.Stdout, healthcheckCommand, options), ErrHelp)
	}
	o := options[0]
	values, err := readYAML(cmp.Or(flags.config, lookupEnv(environ, configEnv)))
	if err != nil {
		return err
	}
	inFile, _ := values[o.name].(string)
	inFlag := ""
	if v, ok := flags.set.Lookup(o.name).Value.(*flagValue); ok {
		inFlag, _ = v.raw.(string)
	}
	target, err := localAddr(cmp.Or(inFlag, lookupEnv(environ, o.env()), inFile, defaultAdminAddr))
	if err != nil {
		return &ConfigError{Source: o.name, Err: err}
	}
	return askReady(ctx, target)
}

// localAddr turns a listen address into one to dial: a listener on all interfaces is
// reached through loopback.
func localAddr(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%q is not host:port: %w", addr, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return net.JoinHostPort(host, port), nil
}

func askReady(ctx context.Context, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/readyz", nil)
	if err != nil {
		return fmt.Errorf("ask %s for readiness: %w", addr, err)
	}
	// A transport of its own: a proxy of the environment has no way to loopback.
	transport := &http.Transport{DisableKeepAlives: true}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return fmt.Errorf("ask %s for readiness; is --admin-addr the service's own? %w", addr, err)
	}
	body, readErr := io.ReadAll(io.LimitReader(response.Body, 64<<10))
	if err := errors.Join(readErr, response.Body.Close()); err != nil {
		return fmt.Errorf("read the readiness of %s: %w", addr, err)
	}
	if response.StatusCode == http.StatusOK {
		return nil
	}
	var answer readiness
	if err := json.Unmarshal(body, &answer); err != nil {
		return fmt.Errorf("ask %s for readiness: unexpected answer %s", addr, response.Status)
	}
	reasons := make([]string, len(answer.NotReady))
	for i, n := range answer.NotReady {
		reasons[i] = n.Name + ": " + n.Reason
	}
	return fmt.Errorf("not ready: %s", strings.Join(reasons, "; "))
}
