// Command mutants shows that the laws of the fold can fail: it breaks the fold on purpose, one way at a time, and runs the tests of the fold and of
// the simulator on each broken copy. The sources stay as they are; the copies are laid over them for one build. It is run in the folder of the
// module libs and exits with 1 if a mutant survives.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// source is the folder of the fold.
const source = "presence"

func main() {
	only := flag.String("run", "", "regular expression of the names of the mutants to run")
	packages := flag.String("packages", "./simulator,./presence", "packages whose tests must catch what is broken, comma-separated, tried in this order")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *only, strings.Split(*packages, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, packages []string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-run: %w", err)
	}
	dir, err := os.MkdirTemp("", "mutants")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// A suite that fails as it is would catch everything.
	if out, err := test(ctx, "", packages); err != nil {
		return fmt.Errorf("the tests fail without a mutant: %w\n%s", err, out)
	}
	caught, ran := 0, 0
	for _, m := range mutants {
		if !match.MatchString(m.law + " " + m.name) {
			continue
		}
		ran++
		overlay, err := m.write(dir)
		if err != nil {
			return err
		}
		by, err := catch(ctx, overlay, packages)
		if err != nil {
			return fmt.Errorf("%s, %s: %w", m.law, m.name, err)
		}
		if by == "" {
			fmt.Printf("%-8s %-60s SURVIVED\n", m.law, m.name)
			continue
		}
		caught++
		fmt.Printf("%-8s %-60s caught by %s\n", m.law, m.name, by)
	}
	fmt.Printf("mutants: %d of %d caught\n", caught, ran)
	if caught != ran || ran == 0 {
		return fmt.Errorf("%d of %d mutants survived", ran-caught, ran)
	}
	return nil
}

// write lays the mutant over the source and returns the file that tells the go command so.
func (m *mutant) write(dir string) (string, error) {
	path, err := filepath.Abs(filepath.Join(source, m.file))
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if n := bytes.Count(text, []byte(m.old)); n != 1 {
		return "", fmt.Errorf("%s, %s: %q is %d times in %s, want once: mend the mutant", m.law, m.name, m.old, n, m.file)
	}
	broken := filepath.Join(dir, m.file)
	if err := os.WriteFile(broken, bytes.Replace(text, []byte(m.old), []byte(m.new), 1), 0o600); err != nil {
		return "", err
	}
	b, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
	if err != nil {
		return "", err
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o600)
}

// catch returns the first test that fails, empty if none does.
func catch(ctx context.Context, overlay string, packages []string) (string, error) {
	for _, pkg := range packages {
		out, err := test(ctx, overlay, []string{pkg})
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		if strings.Contains(out, "[build failed]") || strings.Contains(out, "[setup failed]") {
			return "", fmt.Errorf("the mutant does not build:\n%s", out)
		}
		if name := failed.FindStringSubmatch(out); name != nil {
			return strings.TrimPrefix(pkg, "./") + " " + name[1], nil
		}
		if strings.Contains(out, "panic:") {
			return strings.TrimPrefix(pkg, "./") + ", by a panic", nil
		}
		return "", fmt.Errorf("%w:\n%s", err, out)
	}
	return "", nil
}

var failed = regexp.MustCompile(`--- FAIL: (\S+)`)

// test runs the tests of packages, in their short form. It ends at the first failure: shrinking is of no use here.
func test(ctx context.Context, overlay string, packages []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	args := []string{"test", "-short", "-failfast", "-count=1"}
	if overlay != "" {
		args = append(args, "-overlay", overlay)
	}
	out, err := exec.CommandContext(ctx, "go", append(args, packages...)...).CombinedOutput()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = errors.New("timed out")
	}
	return string(out), err
}
