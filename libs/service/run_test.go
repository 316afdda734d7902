package service

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal notes what parts do, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, line)
}

// part runs until it is cancelled, then needs the given time to stop.
func (j *journal) part(name string, stopping time.Duration, result error) Part {
	return Part{Name: name, Run: func(ctx context.Context) error {
		<-ctx.Done()
		j.add(name + " cancelled")
		<-time.After(stopping)
		j.add(name + " stopped")
		return result
	}}
}

func TestRunStopsInletFirst(t *testing.T) {
	errBroken := errors.New("broken")
	for _, test := range []struct {
		name string
		last func(ctx context.Context) error // the inlet
		want error
		text string
	}{
		{"cancelled", func(ctx context.Context) error { <-ctx.Done(); return nil }, nil, ""},
		{"cancelled, returns ctx's error", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, nil, ""},
		{"fails", func(context.Context) error { return errBroken }, errBroken, "inlet: broken"},
		{"fails in stopping", func(ctx context.Context) error { <-ctx.Done(); return errBroken }, errBroken, "inlet: broken"},
		{"returns early", func(context.Context) error { return nil }, ErrStopped, "inlet: stopped unexpectedly"},
		{
			"is cancelled by itself", func(context.Context) error { return context.Canceled },
			context.Canceled, "inlet: context canceled",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				var j journal
				err := Run(ctx, slog.New(slog.DiscardHandler),
					j.part("outlet", time.Second, nil), j.part("middle", time.Second, nil), Part{"inlet", func(ctx context.Context) error {
						err := test.last(ctx)
						j.add("inlet stopped")
						return err
					}})
				if !errors.Is(err, test.want) || err != nil && err.Error() != test.text {
					t.Errorf("got error %v, want %q", err, test.text)
				}
				want := []string{"inlet stopped", "middle cancelled", "middle stopped", "outlet cancelled", "outlet stopped"}
				if !slices.Equal(j.lines, want) {
					t.Errorf("got %q, want %q", j.lines, want)
				}
			})
		})
	}
}

func TestRunReturnsTheFirstFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := errors.New("first")
		var j journal
		err := Run(t.Context(), slog.New(slog.DiscardHandler),
			Part{"outlet", func(context.Context) error { <-time.After(time.Second); return first }},
			j.part("inlet", time.Second, errors.New("second")))
		if !errors.Is(err, first) || err.Error() != "outlet: first" {
			t.Errorf("got %v, want the outlet's", err)
		}
		if want := []string{"inlet cancelled", "inlet stopped"}; !slices.Equal(j.lines, want) {
			t.Errorf("got %q, want %q", j.lines, want)
		}
	})
}

func TestRunGivesUpAfterTheGracePeriod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancelled := make(chan struct{})
		release := make(chan struct{})
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		err := Run(ctx, slog.New(slog.DiscardHandler),
			Part{"outlet", func(ctx context.Context) error { <-ctx.Done(); close(cancelled); return nil }},
			Part{"stuck", func(context.Context) error { <-release; return nil }},
			// Takes its share of the period, which is one for all parts.
			Part{"slow", func(ctx context.Context) error { <-ctx.Done(); <-time.After(GracePeriod / 2); return nil }})
		if err == nil || !strings.Contains(err.Error(), "stuck: did not stop within 8s") {
			t.Errorf("got %v, want that the part is stuck", err)
		}
		if took, want := time.Since(start), time.Second+GracePeriod; took != want {
			t.Errorf("took %v, want %v", took, want)
		}
		<-cancelled // what is left is cancelled, not abandoned
		close(release)
	})
}

func TestRunCancelledBefore(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := Run(ctx, slog.New(slog.DiscardHandler), Part{"p", func(context.Context) error { return errors.New("was started") }})
	if err != nil {
		t.Error(err)
	}
}

func TestRunPassesValues(t *testing.T) {
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "v")
	seen := errors.New("seen")
	err := Run(ctx, slog.New(slog.DiscardHandler), Part{"p", func(ctx context.Context) error {
		if ctx.Value(key{}) == "v" {
			return seen
		}
		return nil
	}})
	if !errors.Is(err, seen) {
		t.Errorf("got %v, want the value to be seen", err)
	}
}
