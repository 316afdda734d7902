package query

import (
	"log/slog"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Handler returns what serves the REST calls, to be asked without a socket.
func Handler(cfg Config, reader StateReader, log *slog.Logger, reg prometheus.Registerer) (http.Handler, error) {
	s, err := New(cfg, reader, log, reg)
	if err != nil {
		return nil, err
	}
	return s.http.Handler, nil
}

// ShortenTimeouts sets HTTP's limits of a request that is answered at once.
func ShortenTimeouts(s *Service, to time.Duration) { s.http.ReadTimeout, s.http.WriteTimeout = to, to }
