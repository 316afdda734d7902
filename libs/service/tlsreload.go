package service

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// TLSReloader holds the TLS of a listener or of a client, and follows its files: connections that begin after a change use the new ones,
// open ones are left alone. Files that do not load change nothing.
type TLSReloader struct {
	current atomic.Pointer[tls.Config] // without protocols
	reload  *Reload                    // nil: TLS is off, or has no files
}

// Reloader returns what follows the listener's files, or nil if TLS is off. The name says in metrics and log lines whose TLS it is.
func (c ServerTLS) Reloader(name string, log *slog.Logger, reg prometheus.Registerer) (*TLSReloader, error) {
	if c == (ServerTLS{}) {
		return nil, nil
	}
	return newTLSReloader(name, c.Config, present(c.CertFile, c.KeyFile, c.ClientCAFile), log, reg)
}

// Reloader returns what follows the client's files, or nil if TLS is off. The name says in metrics and log lines whose TLS it is.
func (c ClientTLS) Reloader(name string, log *slog.Logger, reg prometheus.Registerer) (*TLSReloader, error) {
	if _, err := c.Config(); err != nil || !c.Enabled {
		return nil, err
	}
	return newTLSReloader(name, c.Config, present(c.CAFile, c.CertFile, c.KeyFile), log, reg)
}

func present(files ...string) []string {
	var named []string
	for _, f := range files {
		if f != "" {
			named = append(named, f)
		}
	}
	return named
}

func newTLSReloader(name string, load func() (*tls.Config, error), files []string, log *slog.Logger, reg prometheus.Registerer) (*TLSReloader, error) {
	r := &TLSReloader{}
	labels := prometheus.Labels{"tls": name}
	valid := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "presence_tls_files_valid", ConstLabels: labels,
		Help: "1 if certificate, key and authorities were read when they last changed, 0 if older ones are in use.",
	})
	failures := prometheus.NewCounter(prometheus.CounterOpts{
		Name: "presence_tls_reload_errors_total", ConstLabels: labels,
		Help: "Changes of certificate, key or authorities that could not be read.",
	})
	expires := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "presence_tls_certificate_expires_seconds", ConstLabels: labels,
		Help: "When the certificate in use ends, in seconds since 1970; 0: there is none.",
	})
	for _, c := range []prometheus.Collector{valid, failures, expires} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("register the metrics of %s-tls: %w", name, err)
		}
	}
	apply := func([][]byte) error {
		config, err := load()
		if err != nil {
			return err
		}
		r.current.Store(config)
		valid.Set(1)
		if len(config.Certificates) > 0 && config.Certificates[0].Leaf != nil {
			expires.Set(float64(config.Certificates[0].Leaf.NotAfter.Unix()))
		}
		return nil
	}
	r.reload = &Reload{
		Name: name + " certificate", Paths: files, Log: log, Apply: apply,
		Outcome: func(err error) {
			if err != nil {
				valid.Set(0)
				failures.Inc()
			}
		},
	}
	if err := r.reload.First(); err != nil {
		return nil, err
	}
	return r, nil
}

// Run follows the files until ctx ends. A nil reloader has nothing to do and returns at once.
func (r *TLSReloader) Run(ctx context.Context) {
	if r != nil {
		r.reload.Run(ctx)
	}
}

// Current returns the configuration of a connection that begins now. It must not be changed.
func (r *TLSReloader) Current() *tls.Config { return r.current.Load() }

// Server returns the configuration of a listener that speaks the given protocols (ALPN); nil for a nil reloader. With client certificates
// no session is resumed, so that each connection is checked against the authorities of the moment.
func (r *TLSReloader) Server(protocols ...string) *tls.Config {
	if r == nil {
		return nil
	}
	var last atomic.Pointer[served]
	config := func() *tls.Config {
		current := r.current.Load()
		if s := last.Load(); s != nil && s.from == current {
			return s.config
		}
		config := current.Clone()
		config.NextProtos = protocols
		config.SessionTicketsDisabled = config.ClientCAs != nil
		last.Store(&served{from: current, config: config})
		return config
	}
	outer := config().Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return config(), nil }
	return outer
}

// served is a configuration with protocols, and the one that it was made from.
type served struct{ from, config *tls.Config }
