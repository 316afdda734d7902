package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"
)

// profileLines is how many functions a profile lists.
const profileLines = 20

// profiling is a CPU profile of another process that is being taken.
type profiling struct {
	name, file string
	done       chan error
}

// profileOf asks a process, by its admin address, for a CPU profile of the next time, which goes to a folder; nil for no time.
func profileOf(ctx context.Context, p *process, admin, dir string, d time.Duration) *profiling {
	if d == 0 {
		return nil
	}
	taken := &profiling{name: p.name, file: filepath.Join(dir, p.name+".pprof"), done: make(chan error, 1)}
	go func() {
		// The port is open a little after the start.
		var body string
		err := await(ctx, "the admin port", func(ctx context.Context) (err error) {
			if err := p.alive(); err != nil {
				return nil
			}
			body, err = get(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", admin, max(1, int(d.Seconds()))))
			return err
		})
		if err == nil {
			err = os.WriteFile(taken.file, []byte(body), 0o600)
		}
		taken.done <- err
	}()
	return taken
}

// top waits for the profile and returns where the time went; nothing if there is none.
func (p *profiling) top(ctx context.Context) (string, error) {
	if p == nil {
		return "", nil
	}
	if err := <-p.done; err != nil {
		return "", fmt.Errorf("profile %s: %w", p.name, err)
	}
	return profileTop(ctx, p.file)
}

// profileTop returns where the time of a profile went, by functions. By what they call, too, if the options say so.
func profileTop(ctx context.Context, file string, options ...string) (string, error) {
	args := append([]string{"tool", "pprof", "-top", "-nodecount", strconv.Itoa(profileLines)}, options...)
	out, err := exec.CommandContext(ctx, "go", append(args, file)...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("read the profile %s: %w\n%s", file, err, out)
	}
	return trimTop(string(out)), nil
}

// trimTop leaves out what pprof says of the file before the table.
func trimTop(text string) string {
	if i := strings.Index(text, "Duration:"); i >= 0 {
		text = text[i:]
	}
	return strings.TrimSpace(text)
}

// profileHere has something run for a time, and puts a CPU profile of this process on the page; it does nothing for no time.
func (t *table) profileHere(ctx context.Context, name string, d time.Duration, run func(d time.Duration) error) (err error) {
	if d == 0 {
		return nil
	}
	f, err := os.CreateTemp("", "presence-bench-*.pprof")
	if err != nil {
		return fmt.Errorf("make a file for the profile: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	if err := pprof.StartCPUProfile(f); err != nil {
		return errors.Join(fmt.Errorf("profile: %w", err), f.Close())
	}
	err = run(d)
	pprof.StopCPUProfile()
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	top, err := profileTop(ctx, f.Name())
	if err != nil {
		return err
	}
	calls, err := profileTop(ctx, f.Name(), "-cum", "-focus", "mqtt-presence", "-show", "mqtt-presence")
	if err != nil {
		return err
	}
	t.profile(name, top+"\n\nWhat our functions take with all that they call:\n\n"+calls)
	return nil
}
