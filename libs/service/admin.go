package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

const (
	// checkTimeout bounds /readyz, below the timeout of Healthcheck.
	checkTimeout = 2 * time.Second
	// adminShutdown is how long a running scrape or profile may take to finish.
	adminShutdown = time.Second
)

// AdminConfig says where the admin listener is. Embed it in a service's config.
type AdminConfig struct {
	Addr string `conf:"admin-addr" usage:"listen address of health, readiness, metrics and profiles"`
}

// DefaultAdmin listens on the default port, on loopback.
func DefaultAdmin() AdminConfig { return AdminConfig{Addr: defaultAdminAddr} }

// Admin serves /healthz, /readyz, /metrics and /debug/pprof/ over HTTP. It is
// meant for operators: give it an address that callers of the service cannot reach.
// What a browser asks for a page of another site is refused on loopback.
type Admin struct {
	addr    string
	log     *slog.Logger
	handler http.Handler
	initErr error

	mu       sync.Mutex
	checks   []check
	listener net.Listener
}

type check struct {
	name  string
	ready func(ctx context.Context) error
}

// NewAdmin returns an Admin for the address. It adds the collectors of the Go runtime
// and of the process to reg, unless reg has them already.
func NewAdmin(addr string, reg *prometheus.Registry, log *slog.Logger) *Admin {
	a := &Admin{addr: addr, log: log.With(KeyComponent, "admin")}
	for _, c := range []prometheus.Collector{
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		var registered prometheus.AlreadyRegisteredError
		if err := reg.Register(c); err != nil && !errors.As(err, &registered) {
			a.initErr = errors.Join(a.initErr, fmt.Errorf("register the runtime's metrics: %w", err))
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		a.writeJSON(w, http.StatusOK, map[string]bool{"alive": true})
	})
	mux.HandleFunc("GET /readyz", a.readyz)
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{
		Registry: reg,
		ErrorLog: slog.NewLogLogger(a.log.Handler(), slog.LevelError),
	}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	a.handler = a.local(mux)
	return a
}

// local keeps pages of other sites out, which a browser on this machine may show: it would ask an admin port on loopback for them, under a
// name of theirs that resolves to it (DNS rebinding), or for a profile that they cannot read but that costs.
func (a *Admin) local(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if onLoopback(r) && !localName(r.Host) {
			a.log.Debug("request under another name refused", "host", fmt.Sprintf("%.80q", r.Host))
			http.Error(w, "the admin listener is asked on loopback under a name that is not its own; use 127.0.0.1 or localhost", http.StatusForbidden)
			return
		}
		if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" && strings.HasPrefix(r.URL.Path, "/debug/") {
			http.Error(w, "a page of another site made this request; open the address itself", http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func onLoopback(r *http.Request) bool {
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && at.IP.IsLoopback()
}

// localName reports whether a Host header is an address or localhost: names that nobody else can make point here.
func localName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.Trim(host, "[]")
	return strings.EqualFold(host, "localhost") || net.ParseIP(host) != nil
}

// AddCheck adds a condition of readiness. Ready returns nil once it holds, else why
// it does not; it is called from several goroutines and returns when ctx ends. Add the
// checks before Run: without any, /readyz answers 200.
func (a *Admin) AddCheck(name string, ready func(ctx context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.checks = append(a.checks, check{name, ready})
}

// Listen binds the address, so that a busy port is an error before anything else
// has started. Run calls it if the caller did not.
func (a *Admin) Listen() error {
	if a.initErr != nil {
		return a.initErr
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", a.addr)
	if err != nil {
		return fmt.Errorf("listen on the admin address %q; free it or set another with --admin-addr: %w", a.addr, err)
	}
	a.listener = l
	return nil
}

// Addr is the address that Listen bound, nil before.
func (a *Admin) Addr() net.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listener == nil {
		return nil
	}
	return a.listener.Addr()
}

// Run serves until ctx ends, then closes the listener and returns nil. An Admin
// runs once.
func (a *Admin) Run(ctx context.Context) error {
	if err := a.Listen(); err != nil {
		return err
	}
	server := &http.Server{
		Handler:           a.handler,
		ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(a.log.Handler(), slog.LevelWarn),
	}
	a.log.Info("serving", KeyAddr, a.Addr().String())
	served := make(chan error, 1)
	go func() { served <- server.Serve(a.listener) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve on the admin address %s: %w", a.Addr(), err)
	case <-ctx.Done():
	}
	shutdown, cancel := context.WithTimeout(context.WithoutCancel(ctx), adminShutdown)
	defer cancel()
	err := server.Shutdown(shutdown)
	if errors.Is(err, context.DeadlineExceeded) {
		// A profile can take minutes; nobody waits for it at shutdown.
		err = server.Close()
	}
	<-served
	if err != nil {
		return fmt.Errorf("close the admin listener: %w", err)
	}
	return nil
}

type readiness struct {
	Ready    bool       `json:"ready"`
	NotReady []notReady `json:"not_ready"`
}

type notReady struct {
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// readyz runs all checks at once, so that the slowest bounds the answer.
func (a *Admin) readyz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), checkTimeout)
	defer cancel()
	a.mu.Lock()
	checks := a.checks[:len(a.checks):len(a.checks)]
	a.mu.Unlock()
	errs := make([]error, len(checks))
	var wg sync.WaitGroup
	for i, c := range checks {
		wg.Go(func() { errs[i] = c.ready(ctx) })
	}
	wg.Wait()
	answer := readiness{Ready: true, NotReady: []notReady{}}
	status := http.StatusOK
	for i, err := range errs {
		if err != nil {
			answer.Ready, status = false, http.StatusServiceUnavailable
			answer.NotReady = append(answer.NotReady, notReady{checks[i].name, err.Error()})
		}
	}
	a.writeJSON(w, status, answer)
}

func (a *Admin) writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(body); err != nil {
		a.log.Debug("answer not written", KeyError, err)
	}
}
