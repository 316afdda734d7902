package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// asMain makes the test binary the command.
const asMain = "TEST_AS_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(asMain) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

type service struct {
	presencev1.UnimplementedPresenceServiceServer
}

func (service) GetStatus(_ context.Context, req *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	if req.GetClientId() == "denied" {
		return nil, status.Error(codes.PermissionDenied, "no")
	}
	return &presencev1.GetStatusResponse{Status: req.GetClientId()}, nil
}

func (service) WatchClients(_ *presencev1.WatchClientsRequest, s grpc.ServerStreamingServer[presencev1.WatchClientsResponse]) error {
	if err := s.Send(&presencev1.WatchClientsResponse{Type: "transition", ResumeToken: "t1", Transition: &presencev1.ClientTransition{ClientId: "dev1"}}); err != nil {
		return err
	}
	<-s.Context().Done()
	return nil
}

func start(t *testing.T) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	presencev1.RegisterPresenceServiceServer(server, service{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return l.Addr().String()
}

func command(t *testing.T, addr string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = []string{asMain + "=1", "HOME=" + t.TempDir(), "PRESENCECTL_SERVER=" + addr, "PATH=" + os.Getenv("PATH")}
	return cmd
}

// TestExitCodes: scripts can tell the statuses and errors apart by the exit code of the process.
func TestExitCodes(t *testing.T) {
	addr := start(t)
	for _, c := range []struct {
		args string
		want int
	}{
		{"status online", 0}, {"status offline", 1}, {"status unknown", 2}, {"status denied", 3}, {"status asleep", 3}, {"status", 3}, {"status online --nonsense", 3},
		{"status online --server 127.0.0.1:1", 3}, {"get offline", 3}, {"nonsense", 3}, {"", 0}, {"--help", 0}, {"status --help", 0}, {"version", 0}, {"help status", 0},
	} {
		cmd := command(t, addr, strings.Fields(c.args)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.want {
			t.Errorf("%q exits with %d, want %d: %s", c.args, got, c.want, out)
		}
	}
}

// TestInterrupt: a watch that is interrupted ends well, and says how to go on.
func TestInterrupt(t *testing.T) {
	cmd := command(t, start(t), "watch", "-o", "json")
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || !strings.Contains(line, `"client_id":"dev1"`) {
		t.Errorf("the watch shows %q: %v", line, err)
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || !strings.Contains(errOut.String(), "--resume-token t1") {
		t.Errorf("the watch ended with %v: %s", err, errOut.String())
	}
}

// TestCompletionScripts: the shells that are here can read their scripts.
func TestCompletionScripts(t *testing.T) {
	for shell, check := range map[string][]string{"bash": {"-n"}, "zsh": {"-n"}, "fish": {"--no-execute"}} {
		script, err := command(t, "127.0.0.1:1", "completion", shell).Output()
		if err != nil || !strings.Contains(string(script), "__complete") {
			t.Errorf("the script of %s: %v\n%.200s", shell, err, script)
			continue
		}
		file := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(file, script, 0o600); err != nil {
			t.Fatal(err)
		}
		path, err := exec.LookPath(shell)
		if err != nil {
			t.Logf("%s is not here; its script was not read", shell)
			continue
		}
		if out, err := exec.CommandContext(t.Context(), path, append(check, file)...).CombinedOutput(); err != nil {
			t.Errorf("%s cannot read its script: %v\n%s", shell, err, out)
		}
	}
}
