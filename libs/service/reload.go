package service

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"time"
)

// reloadInterval is how often files are looked at.
const reloadInterval = 500 * time.Millisecond

// Reload keeps something in step with files: certificates, accounts, keys. It compares contents, so it does not matter how a file is
// replaced, and it waits until two looks have seen the same, so that a file that is being written is not read half.
type Reload struct {
	// Name says in log lines what the files hold, such as "accounts file".
	Name string
	// Paths are read together.
	Paths []string
	// Apply is given the contents of the files in the order of Paths. If it returns an error, nothing has changed.
	Apply func(contents [][]byte) error
	// Outcome is told the result whenever it is another than before; nil: nobody wants to know.
	Outcome func(err error)
	// Log gets a line for each success, and for each failure that is not the one of the look before.
	Log *slog.Logger

	applied fingerprint // of the contents that were given to Apply last
	seen    fingerprint // of the look before
	failure string      // of the look before; empty: none
}

type fingerprint [sha256.Size]byte

// First reads the files for the first time, and returns the error.
func (r *Reload) First() error {
	contents, print, err := r.read()
	if err == nil {
		r.applied, r.seen = print, print
		err = r.Apply(contents)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r.Name, err)
	}
	return nil
}

// Run looks at the files twice a second until ctx ends. A failure changes nothing: it is logged once, told to Outcome, and tried again when a
// file has changed.
func (r *Reload) Run(ctx context.Context) {
	tick := time.NewTicker(reloadInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.look()
		}
	}
}

func (r *Reload) look() {
	contents, print, err := r.read()
	settled := print == r.seen
	r.seen = print
	switch {
	case err != nil:
		// What comes back counts as new, also if it is what was there.
		r.applied = fingerprint{}
	case !settled || print == r.applied:
		return
	default:
		r.applied = print
		err = r.Apply(contents)
	}
	if err != nil {
		if r.failure == err.Error() {
			return
		}
		r.failure = err.Error()
		r.Log.Error(r.Name+" not reloaded; what was read before stays valid", KeyPath, r.Paths, KeyError, err)
	} else {
		r.failure = ""
		r.Log.Info(r.Name+" reloaded", KeyPath, r.Paths)
	}
	if r.Outcome != nil {
		r.Outcome(err)
	}
}

func (r *Reload) read() ([][]byte, fingerprint, error) {
	contents := make([][]byte, len(r.Paths))
	sum := sha256.New()
	for i, path := range r.Paths {
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fingerprint{}, fmt.Errorf("read a file: %w", err)
		}
		contents[i] = content
		// A hash never returns an error.
		_, _ = sum.Write(binary.BigEndian.AppendUint64(nil, uint64(len(content))))
		_, _ = sum.Write(content)
	}
	return contents, fingerprint(sum.Sum(nil)), nil
}
