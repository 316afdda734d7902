package service

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// startAdmin runs an Admin on a free port until the test ends.
func startAdmin(t *testing.T, reg *prometheus.Registry) *Admin {
	t.Helper()
	a := NewAdmin("127.0.0.1:0", reg, slog.New(slog.DiscardHandler))
	if a.Addr() != nil {
		t.Error("Addr is set before Listen")
	}
	if err := a.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		if c, err := net.Dial("tcp", a.Addr().String()); err == nil {
			t.Errorf("still listening after Run: %v", c.Close())
		}
	})
	return a
}

// get returns status, content type and body.
func get(t *testing.T, a *Admin, path string) (status int, contentType, body string) {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.Addr().String()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, response.Header.Get("Content-Type"), string(data)
}

func TestAdmin(t *testing.T) {
	reg := prometheus.NewRegistry()
	own := prometheus.NewCounter(prometheus.CounterOpts{Name: "presence_own_total", Help: "own"})
	reg.MustRegister(own)
	a := startAdmin(t, reg)
	for _, test := range []struct {
		path   string
		status int
		want   []string
	}{
		{"/healthz", 200, []string{`{"alive":true}`}},
		{"/readyz", 200, []string{`{"ready":true,"not_ready":[]}`}},
		{"/metrics", 200, []string{"presence_own_total 0", "go_goroutines ", "process_resident_memory_bytes "}},
		{"/debug/pprof/", 200, []string{"goroutine"}},
		{"/debug/pprof/goroutine?debug=1", 200, []string{"goroutine profile: total"}},
		{"/debug/pprof/cmdline", 200, []string{".test"}},
		{"/", 404, nil},
	} {
		t.Run(test.path, func(t *testing.T) {
			status, _, body := get(t, a, test.path)
			if status != test.status {
				t.Errorf("got status %d, want %d", status, test.status)
			}
			for _, want := range test.want {
				if !strings.Contains(body, want) {
					t.Errorf("answer lacks %q:\n%s", want, body)
				}
			}
		})
	}
}

func TestReadyz(t *testing.T) {
	a := startAdmin(t, prometheus.NewRegistry())
	kafka := make(chan error, 1)
	a.AddCheck("kafka", func(context.Context) error { return <-kafka })
	a.AddCheck("store", func(context.Context) error { return nil })

	kafka <- errors.New("12 records behind")
	status, contentType, body := get(t, a, "/readyz")
	if want := `{"ready":false,"not_ready":[{"name":"kafka","reason":"12 records behind"}]}` + "\n"; status != 503 || body != want {
		t.Errorf("got %d %s, want 503 %s", status, body, want)
	}
	if contentType != "application/json" {
		t.Errorf("got content type %q", contentType)
	}
	if status, _, _ := get(t, a, "/healthz"); status != 200 {
		t.Errorf("got health status %d while not ready, want 200", status)
	}

	kafka <- nil
	if status, _, body := get(t, a, "/readyz"); status != 200 {
		t.Errorf("got %d %s, want 200", status, body)
	}
}

func TestReadyzBoundsSlowChecks(t *testing.T) {
	a := startAdmin(t, prometheus.NewRegistry())
	a.AddCheck("slow", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	if status, _, body := get(t, a, "/readyz"); status != 503 || !strings.Contains(body, `"name":"slow"`) {
		t.Errorf("got %d %s, want 503 with the check's name", status, body)
	}
}

func TestAdminBusyPort(t *testing.T) {
	a := startAdmin(t, prometheus.NewRegistry())
	b := NewAdmin(a.Addr().String(), prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	err := b.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "--admin-addr") || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v, want that the address of --admin-addr is in use", err)
	}
}

func TestAdminKeepsRegisteredCollectors(t *testing.T) {
	reg := prometheus.NewRegistry()
	log := slog.New(slog.DiscardHandler)
	for range 2 {
		if err := NewAdmin("127.0.0.1:0", reg, log).initErr; err != nil {
			t.Error(err)
		}
	}
}

func TestAdminRefusesPagesOfOtherSites(t *testing.T) {
	a := startAdmin(t, prometheus.NewRegistry())
	_, port, err := net.SplitHostPort(a.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host, site, path string
		want             int
	}{
		{"127.0.0.1:" + port, "", "/metrics", http.StatusOK},
		{"127.0.0.1", "none", "/debug/pprof/cmdline", http.StatusOK},
		{"[::1]:" + port, "same-origin", "/debug/pprof/cmdline", http.StatusOK},
		{"LocalHost:" + port, "", "/healthz", http.StatusOK},
		{"127.0.0.1:" + port, "cross-site", "/metrics", http.StatusOK},
		{"127.0.0.1:" + port, "cross-site", "/debug/pprof/cmdline", http.StatusForbidden},
		{"rebound.example:" + port, "same-origin", "/metrics", http.StatusForbidden},
		{"rebound.example", "", "/debug/pprof/cmdline", http.StatusForbidden},
		{"127.0.0.1.rebound.example:" + port, "", "/healthz", http.StatusForbidden},
	} {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+a.Addr().String()+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Host = c.host
		if c.site != "" {
			request.Header.Set("Sec-Fetch-Site", c.site)
		}
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := response.Body.Close(); err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != c.want {
			t.Errorf("%s of host %q, site %q: status %d, want %d", c.path, c.host, c.site, response.StatusCode, c.want)
		}
	}
}
