package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const stopTimeout = 10 * time.Second

// presenceProcess is the all-in-one, as a child in a folder of its own.
type presenceProcess struct {
	target target
	dir    string
	cmd    *exec.Cmd
	exited chan error
}

var (
	printedMQTT    = regexp.MustCompile(`^ +MQTT +mqtt://(\S+)`)
	printedREST    = regexp.MustCompile(`^ +REST +(\S+)`)
	printedAccount = regexp.MustCompile(`^ +account +(\S+), password (\S+)`)
)

// startPresence builds the all-in-one and runs it; its log goes to log. It returns once all is ready.
func startPresence(ctx context.Context, log io.Writer) (*presenceProcess, error) {
	dir, err := os.MkdirTemp("", "presence-load-")
	if err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	p := &presenceProcess{dir: dir, exited: make(chan error, 1)}
	if err := p.start(ctx, log); err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *presenceProcess) start(ctx context.Context, log io.Writer) error {
	binary := filepath.Join(p.dir, "presence")
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/mqtt-presence/presence/services/presence/cmd/presence").CombinedOutput(); err != nil {
		return fmt.Errorf("build the all-in-one; run this inside the repository, or give --mqtt-url and --http-url: %w\n%s", err, bytes.TrimSpace(out))
	}
	args := []string{"--data-dir", filepath.Join(p.dir, "data"), "--log-level", "warn", "--state-addr="}
	for _, name := range []string{"mqtt", "kafka", "http", "grpc", "admin"} {
		args = append(args, "--"+name+"-addr", "127.0.0.1:0")
	}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Stderr = log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		p.cmd = nil
		return fmt.Errorf("start the all-in-one: %w", err)
	}
	p.target.pid = p.cmd.Process.Pid
	ready := make(chan error, 1)
	go func() {
		ready <- p.read(out)
		// Wait closes the pipe, so it comes after the last read.
		p.exited <- p.cmd.Wait()
	}()
	select {
	case err := <-ready:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the all-in-one: %w", context.Cause(ctx))
	}
}

// read takes the addresses from what the process prints.
func (p *presenceProcess) read(out io.Reader) error {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		if m := printedMQTT.FindStringSubmatch(line); m != nil {
			p.target.mqtt = m[1]
		}
		if m := printedREST.FindStringSubmatch(line); m != nil {
			p.target.rest = m[1]
		}
		if m := printedAccount.FindStringSubmatch(line); m != nil {
			p.target.user, p.target.password = m[1], m[2]
		}
		if strings.Contains(line, "curl") {
			return nil
		}
	}
	return errors.Join(errors.New("the all-in-one ended before it was ready"), lines.Err())
}

// stop ends the process and removes its folder.
func (p *presenceProcess) stop() error {
	var errs []error
	if p.cmd != nil {
		errs = append(errs, p.cmd.Process.Signal(syscall.SIGTERM))
		timeout := time.NewTimer(stopTimeout)
		defer timeout.Stop()
		select {
		case err := <-p.exited:
			errs = append(errs, err)
		case <-timeout.C:
			errs = append(errs, fmt.Errorf("the all-in-one does not stop within %v", stopTimeout), p.cmd.Process.Kill(), <-p.exited)
		}
	}
	if err := errors.Join(append(errs, os.RemoveAll(p.dir))...); err != nil {
		return fmt.Errorf("stop the all-in-one: %w", err)
	}
	return nil
}

// memory tells the resident memory of this process and of the child, if there is one.
func memory(pid int) string {
	text := "load tool " + resident("self")
	if pid != 0 {
		text = "presence " + resident(strconv.Itoa(pid)) + ", " + text
	}
	return text
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$[\s\S]*`)

func resident(process string) string {
	status, err := os.ReadFile("/proc/" + process + "/status")
	if err != nil {
		return "unknown"
	}
	m := residentLine.FindSubmatch(status)
	if m == nil {
		return "unknown"
	}
	kib, err := strconv.Atoi(string(m[1]))
	if err != nil {
		return "unknown"
	}
	return fmt.Sprintf("%d MiB", kib>>10)
}
