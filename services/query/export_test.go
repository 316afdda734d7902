package query

import (
	"log/slog"
	"maps"
	"net/http"
	"testing"
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

// Signer returns a JWKS and what signs tokens with it: with the claims of one that is believed now, changed as given, nil taking one away.
func Signer(t testing.TB) (jwks []byte, sign func(changes map[string]any) string) {
	t.Helper()
	i := newIssuer(t)
	return i.jwks(t), func(changes map[string]any) string {
		all := map[string]any{"exp": time.Now().Unix() + 600}
		maps.Copy(all, changes)
		return signed(t, i, all)
	}
}

func signed(t testing.TB, i *issuer, changes map[string]any) string {
	t.Helper()
	return sign(t, "ES256", i.ec, `{"alg":"ES256","kid":"ec"}`, claimsWith(t, changes))
}
