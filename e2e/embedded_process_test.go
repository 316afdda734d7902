package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// allInOne is the presence binary as a child process, all parts embedded, with a data folder and addresses that outlive it.
type allInOne struct {
	binary string
	flags  []string
	dir    string

	cmd    *exec.Cmd
	out    *output // standard output
	log    *output // standard error
	exited chan error
}

// output collects what a process writes.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// binaries is the folder of what is built for all tests; TestMain removes it.
var binaries = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "presence-e2e-") })

var build = sync.OnceValues(func() (string, error) { return buildService("presence") })

// buildService builds the binary of a service.
func buildService(name string) (string, error) {
	dir, err := binaries()
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, name)
	cmd := exec.Command("go", "build", "-o", binary, "./cmd/"+name)
	cmd.Dir = filepath.Join("..", "services", name)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", name, err, out)
	}
	return binary, nil
}

// TestMain removes what was built.
func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := binaries(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

// newAllInOne prepares a process in a folder of its own.
func newAllInOne(t *testing.T, flags ...string) *allInOne {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	a := &allInOne{binary: binary, dir: filepath.Join(t.TempDir(), "it's data")}
	a.flags = []string{"--data-dir", a.dir, "--log-level", "warn", "--mqtt-heartbeat", "1s"}
	for _, name := range []string{"mqtt", "kafka", "http", "grpc", "admin", "state"} {
		a.flags = append(a.flags, "--"+name+"-addr", freeAddr(t))
	}
	a.flags = append(a.flags, flags...)
	t.Cleanup(func() {
		if a.cmd != nil {
			_ = a.cmd.Process.Kill()
			<-a.exited
		}
		if t.Failed() {
			t.Logf("presence wrote:\n%s%s", a.out, a.log)
		}
	})
	return a
}

// start starts the process; it returns once it says that it is ready.
func (a *allInOne) start(t *testing.T) {
	t.Helper()
	a.out, a.log, a.exited = &output{}, &output{}, make(chan error, 1)
	a.cmd = exec.Command(a.binary, a.flags...)
	a.cmd.Stdout, a.cmd.Stderr = a.out, a.log
	must(t, a.cmd.Start())
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(a.cmd, a.exited)
	servicetest.Eventually(t, patience, func() error {
		select {
		case err := <-a.exited:
			a.cmd = nil
			t.Fatalf("presence ended: %v\n%s", err, a.log)
		default:
		}
		if !strings.Contains(a.out.String(), "curl") {
			return errors.New("presence is not ready")
		}
		return nil
	})
}

// end sends a signal and waits until the process is gone.
func (a *allInOne) end(t *testing.T, signal syscall.Signal) error {
	t.Helper()
	must(t, a.cmd.Process.Signal(signal))
	a.cmd = nil
	select {
	case err := <-a.exited:
		return err
	case <-time.After(patience):
		t.Fatalf("presence does not end after %v", signal)
	}
	return nil
}

func (a *allInOne) flag(name string) string {
	for i, f := range a.flags {
		if f == "--"+name {
			return a.flags[i+1]
		}
	}
	return ""
}

var printedAccount = regexp.MustCompile(`(?m)^ +account +(\w+), password (\w+) `)

// target is the process as its users meet it, by what it printed.
func (a *allInOne) target(t *testing.T) Target {
	t.Helper()
	account := printedAccount.FindStringSubmatch(a.out.String())
	if account == nil {
		t.Fatalf("no account was printed:\n%s", a.out)
	}
	kafka := eventlog.DefaultConfig()
	kafka.Brokers = []string{a.flag("kafka-addr")}
	return Target{
		MQTT: a.flag("mqtt-addr"), REST: a.flag("http-addr"), GRPC: a.flag("grpc-addr"), User: account[1], Password: account[2], Kafka: kafka,
	}
}

// paste runs the printed line that begins with a word, as a shell does in any folder.
func (a *allInOne) paste(t *testing.T, word string) string {
	t.Helper()
	for line := range strings.Lines(a.out.String()) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, word+" ") {
			continue
		}
		if _, err := exec.LookPath(word); err != nil {
			t.Skipf("%s is not installed", word)
		}
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		cmd := exec.CommandContext(ctx, "sh", "-c", line)
		cmd.Dir = "/"
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		return string(out)
	}
	t.Fatalf("no line with %s was printed:\n%s", word, a.out)
	return ""
}
