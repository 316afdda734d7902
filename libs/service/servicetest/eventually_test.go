package servicetest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// recorder is a testing.TB that notes a fatal failure in place of failing.
type recorder struct {
	testing.TB
	fatal string
}

func (r *recorder) Helper() {}

func (r *recorder) Fatalf(format string, args ...any) { r.fatal = fmt.Sprintf(format, args...) }

func TestEventually(t *testing.T) {
	for _, test := range []struct {
		name  string
		after int // calls that fail
		calls int // calls in all
		fatal string
	}{
		{"at once", 0, 1, ""},
		{"later", 3, 4, ""},
		{"never", 1000, 0, "not within 1s: call "},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &recorder{TB: t}
				calls := 0
				Eventually(r, time.Second, func() error {
					calls++
					if calls > test.after {
						return nil
					}
					return fmt.Errorf("call %d: %w", calls, errors.ErrUnsupported)
				})
				if test.calls > 0 && calls != test.calls {
					t.Errorf("got %d calls, want %d", calls, test.calls)
				}
				if !strings.HasPrefix(r.fatal, test.fatal) || test.fatal == "" && r.fatal != "" {
					t.Errorf("got failure %q, want %q", r.fatal, test.fatal)
				}
			})
		})
	}
}
