package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// GracePeriod is how long the parts may take to stop, all together. It is below the
// 10 s after which container runtimes kill.
const GracePeriod = 8 * time.Second

// ErrStopped is the error of a part that returned nil before it was cancelled.
var ErrStopped = errors.New("stopped unexpectedly")

// Part is one long-running piece of a process.
type Part struct {
	// Name appears in errors and log lines.
	Name string
	// Run blocks until ctx ends and then returns nil; any other return is a failure.
	Run func(ctx context.Context) error
}

// Run starts the parts in order, outlet first, and blocks until ctx ends or a part
// returns. It then stops them in reverse order, inlet first, each cancelled and
// awaited before the next. It returns the first failure, wrapped with the part's name,
// or nil. If the parts need longer than [GracePeriod], all that are left are cancelled and
// Run returns an error without waiting for them.
//
// Starting does not wait: what a later part needs from an earlier one, such as a bound
// listener, is made before Run. A part's context carries ctx's values but not its
// cancellation.
func Run(ctx context.Context, log *slog.Logger, parts ...Part) error {
	if ctx.Err() != nil {
		return nil
	}
	base, cancelAll := context.WithCancel(context.WithoutCancel(ctx))
	defer cancelAll()
	running := make([]*runningPart, len(parts))
	// One slot per part, so that none blocks in returning once Run has given up on it.
	failures := make(chan error, len(parts))
	for i, p := range parts {
		running[i] = startPart(base, p, failures)
		log.Debug("started", KeyComponent, p.Name)
	}

	var first error
	select {
	case <-ctx.Done():
		log.Info("stopping", KeyReason, "cancelled")
	case first = <-failures:
		// The error itself is printed once, by who called Run.
		log.Info("stopping", KeyReason, "a part failed")
	}
	grace := time.NewTimer(GracePeriod)
	defer grace.Stop()
	for i := len(running) - 1; i >= 0; i-- {
		p := running[i]
		p.cancel()
		select {
		case <-p.done:
			log.Debug("stopped", KeyComponent, p.name)
		case <-grace.C:
			return errors.Join(first, firstOf(failures), fmt.Errorf("%s: did not stop within %v", p.name, GracePeriod))
		}
	}
	if first == nil {
		first = firstOf(failures)
	}
	return first
}

// firstOf returns the next failure that is already there, or nil.
func firstOf(failures <-chan error) error {
	select {
	case err := <-failures:
		return err
	default:
		return nil
	}
}

type runningPart struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{} // closed once the part has returned and its failure is sent
}

func startPart(base context.Context, p Part, failures chan<- error) *runningPart {
	ctx, cancel := context.WithCancel(base)
	r := &runningPart{name: p.Name, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		defer cancel()
		err := p.Run(ctx)
		switch {
		case ctx.Err() != nil && (err == nil || errors.Is(err, context.Canceled)):
			return
		case err == nil:
			err = ErrStopped
		}
		failures <- fmt.Errorf("%s: %w", p.Name, err)
	}()
	return r
}
