package query

import (
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
)

// Calls, as metrics name them.
const (
	callSeed    = "seed"
	callWatch   = "WatchClients"
	callOpenAPI = "openapi"
	callNone    = "none" // a path or method that does not exist
)

// Transports, as metrics name them.
const (
	overREST = "rest"
	overGRPC = "grpc"
)

// metrics of the service. Labels are calls, codes and reasons, never clients.
type metrics struct {
	requests     *prometheus.CounterVec
	seconds      *prometheus.HistogramVec
	refused      *prometheus.CounterVec
	hashes       prometheus.Counter
	accounts     prometheus.Gauge
	accountsFile fileMetrics
	jwksFile     fileMetrics

	seed, getStatus answered // of the two calls that are asked most
}

// fileMetrics are those of a file that is read again when it changes.
type fileMetrics struct {
	valid  prometheus.Gauge
	errors prometheus.Counter
}

func newFileMetrics(name, words, content string) fileMetrics {
	return fileMetrics{
		valid: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_query_" + name + "_valid",
			Help: "1 if the " + words + " was read when it last changed, 0 if older " + content + " are in use, or none are.",
		}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_query_" + name + "_errors_total",
			Help: "Changes of the " + words + " that could not be read.",
		}),
	}
}

func (m fileMetrics) outcome(err error) {
	if err != nil {
		m.valid.Set(0)
		m.errors.Inc()
		return
	}
	m.valid.Set(1)
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_requests_total",
			Help: "Requests answered, by transport, call and gRPC code.",
		}, []string{"transport", "call", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "presence_query_request_seconds",
			Help:    "Time to answer a request.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"transport", "call"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_query_refused_total",
			Help: "Requests refused before they were read: no or wrong credentials, lacking permission, limits.",
		}, []string{"reason"}),
		accounts: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "presence_query_accounts",
			Help: "Accounts that are valid.",
		}),
		hashes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "presence_query_password_hashes_total",
			Help: "Password hashes computed; one of each kind for a credential that was not verified before.",
		}),
		accountsFile: newFileMetrics("accounts_file", "accounts file", "accounts"),
		jwksFile:     newFileMetrics("jwks_file", "JWKS file", "keys"),
	}
	m.seed, m.getStatus = m.answered(overREST, callSeed), m.answered(overGRPC, "GetStatus")
	return m, register(reg, m.requests, m.seconds, m.refused, m.hashes, m.accounts,
		m.accountsFile.valid, m.accountsFile.errors, m.jwksFile.valid, m.jwksFile.errors)
}

func register(reg prometheus.Registerer, collectors ...prometheus.Collector) error {
	var errs []error
	for _, c := range collectors {
		if err := reg.Register(c); err != nil {
			errs = append(errs, fmt.Errorf("register metrics: %w", err))
		}
	}
	return errors.Join(errs...)
}

// answered are the metrics of a call's answers without an error, looked up once.
type answered struct {
	call    string
	count   prometheus.Counter
	seconds prometheus.Observer
}

func (m *metrics) answered(transport, call string) answered {
	return answered{call, m.requests.WithLabelValues(transport, call, codes.OK.String()), m.seconds.WithLabelValues(transport, call)}
}

func (a answered) observe(began time.Time) {
	a.count.Inc()
	a.seconds.Observe(time.Since(began).Seconds())
}

func (m *metrics) observe(transport, call string, code codes.Code, began time.Time) {
	m.requests.WithLabelValues(transport, call, code.String()).Inc()
	m.seconds.WithLabelValues(transport, call).Observe(time.Since(began).Seconds())
}
