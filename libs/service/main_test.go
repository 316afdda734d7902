package service

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

func TestReport(t *testing.T) {
	for _, test := range []struct {
		name string
		err  error
		code int
		want string
	}{
		{"nil", nil, 0, ""},
		{"help", ErrHelp, 0, ""},
		{"error", errors.New("disk full"), 1, "bridge: disk full\n"},
		{
			"usage", fmt.Errorf("w: %w", errors.Join(&ConfigError{"flag --x", errors.New("unknown flag")})), 2,
			"bridge: w: flag --x: unknown flag\nRun 'bridge --help' for all options.\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if code := report(&out, "bridge", test.err); code != test.code || out.String() != test.want {
				t.Errorf("got %d %q, want %d %q", code, &out, test.code, test.want)
			}
		})
	}
}

// childVariable makes the test binary act as a main function; see TestMain.
const childVariable = "SERVICE_TEST_CHILD"

// TestMain lets the tests start this binary as a process that can be signalled.
func TestMain(m *testing.M) {
	switch os.Getenv(childVariable) {
	case "":
		os.Exit(m.Run())
	case "obedient":
		os.Exit(Main("child", os.Args[1:], func(ctx context.Context, args []string) error {
			fmt.Println("up", args)
			<-ctx.Done()
			return nil
		}))
	case "stuck":
		os.Exit(Main("child", os.Args[1:], func(ctx context.Context, _ []string) error {
			fmt.Println("up")
			<-ctx.Done()
			fmt.Println("stopping")
			_, err := os.Stdin.Read(make([]byte, 1)) // blocks until the parent dies
			return err
		}))
	}
	os.Exit(99)
}

// startChild starts this binary as the child of that kind; its lines come from the
// function that is returned.
func startChild(t *testing.T, kind string, args ...string) (*exec.Cmd, func() string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), childVariable+"="+kind)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close() }) // Wait may have closed it
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	return cmd, func() string {
		t.Helper()
		if !lines.Scan() {
			t.Fatalf("the child printed nothing more: %v", lines.Err())
		}
		return lines.Text()
	}
}

func TestMainStopsOnSignal(t *testing.T) {
	for _, signal := range []os.Signal{syscall.SIGINT, syscall.SIGTERM} {
		t.Run(signal.String(), func(t *testing.T) {
			cmd, line := startChild(t, "obedient", "--a", "b")
			if got := line(); got != "up [--a b]" {
				t.Errorf("got %q", got)
			}
			if err := cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Wait(); err != nil {
				t.Errorf("got %v, want exit code 0", err)
			}
		})
	}
}

func TestMainSecondSignalKills(t *testing.T) {
	cmd, line := startChild(t, "stuck")
	line()
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if got := line(); got != "stopping" {
		t.Fatalf("got %q", got)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	var result error
	servicetest.Eventually(t, 10*time.Second, func() error {
		select {
		case result = <-exited:
			return nil
		default:
			// One may come before the child is back to the default action.
			return errors.Join(errors.New("still running"), cmd.Process.Signal(syscall.SIGTERM))
		}
	})
	var exit *exec.ExitError
	if !errors.As(result, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("got %v, want death by SIGTERM", result)
	}
}

func TestHealthcheck(t *testing.T) {
	a := startAdmin(t, prometheus.NewRegistry())
	addr := a.Addr().String()
	port := addr[strings.LastIndexByte(addr, ':'):]
	file := writeFile(t, "p.yaml", "admin-addr: "+addr+"\nkafka-brokers: [x]\n")
	for _, test := range []struct {
		name    string
		args    []string
		environ []string
		want    string // "" for ready
	}{
		{name: "flag", args: []string{"--admin-addr", addr}},
		{name: "all interfaces", args: []string{"--admin-addr=0.0.0.0" + port}},
		{name: "all IPv6 interfaces", args: []string{"--admin-addr=[::]" + port}},
		{name: "no host", args: []string{"--admin-addr=" + port}},
		{name: "environment, others not looked at", environ: []string{"PRESENCE_ADMIN_ADDR=" + addr, "PRESENCE_KAFKA_BROKERS=x"}},
		{name: "file", environ: []string{"PRESENCE_CONFIG=" + file}},
		{name: "flag wins", args: []string{"--admin-addr=" + addr}, environ: []string{"PRESENCE_ADMIN_ADDR=127.0.0.1:1"}},
		{name: "environment over file", args: []string{"--config=" + file}, environ: []string{"PRESENCE_ADMIN_ADDR=127.0.0.1:1"}, want: "127.0.0.1:1"},
		{name: "nobody there", args: []string{"--admin-addr=127.0.0.1:1"}, want: "connection refused"},
		{name: "no port", args: []string{"--admin-addr=localhost"}, want: "admin-addr: \"localhost\" is not host:port"},
		{name: "unknown flag", args: []string{"--addr=x"}, want: "flag --addr: unknown flag"},
		{name: "absent file", args: []string{"--config=/nowhere"}, want: "file /nowhere:"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Healthcheck(t.Context(), test.args, test.environ)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
	a.AddCheck("kafka", func(context.Context) error { return errors.New("12 records behind") })
	if err := Healthcheck(t.Context(), []string{"--admin-addr", addr}, nil); err == nil || err.Error() != "not ready: kafka: 12 records behind" {
		t.Errorf("got %v, want what is not ready", err)
	}
}

func TestMainHealthcheck(t *testing.T) {
	notRun := func(context.Context, []string) error { return errors.New("the service was started") }
	a := startAdmin(t, prometheus.NewRegistry())
	if code := Main("bridge", []string{"healthcheck", "--admin-addr", a.Addr().String()}, notRun); code != 0 {
		t.Errorf("got exit code %d, want 0", code)
	}
	if code := Main("bridge", []string{"healthcheck", "--admin-addr", "127.0.0.1:1"}, notRun); code != 1 {
		t.Errorf("got exit code %d, want 1", code)
	}
}
