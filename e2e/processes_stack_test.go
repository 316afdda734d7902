package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/eventlog/eventlogtest"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/presence/kafka"
)

const (
	processPartitions = 8
	processPassword   = "correct horse battery"
	// processStale is the bound beyond which the query process calls answers stale.
	processStale = 5 * time.Second
)

// processes are materializers and a query service, each a process of its own, and a Kafka in this one.
type processes struct {
	t        *testing.T
	binaries string // directory
	kafka    eventlog.Config
	client   *kgo.Client
	admin    *kadm.Client
	accounts string
}

// process is one of them, with a data folder and addresses that outlive it.
type process struct {
	t      *testing.T
	name   string
	binary string
	args   []string
	admin  string // address
	state  string // address, of a materializer
	rest   string // addresses, of a query service
	rpc    string

	cmd    *exec.Cmd
	log    *output
	exited chan error
}

// buildServices builds the binaries of the split deployment.
func buildServices(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"materializer", "query"} {
		cmd := exec.Command("go", "build", "-o", filepath.Join(dir, name), "./cmd/"+name)
		cmd.Dir = filepath.Join("..", "services", name)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v\n%s", name, err, out)
		}
	}
	return dir
}

func startProcesses(t *testing.T, binaries string) *processes {
	t.Helper()
	k, err := kafka.Open(kafka.Config{Addr: freeAddr(t), Dir: t.TempDir()}, slog.New(slog.DiscardHandler))
	must(t, err)
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	cfg := eventlog.DefaultConfig()
	cfg.Brokers, cfg.Partitions, cfg.ReplicationFactor, cfg.Compression = []string{k.Addr()}, processPartitions, 1, "none"
	eventlogtest.Ensure(t, cfg)
	s := &processes{t: t, binaries: binaries, kafka: cfg, client: eventlogtest.NewClient(t, cfg), accounts: filepath.Join(t.TempDir(), "accounts")}
	s.admin = kadm.NewClient(s.client)
	cmd := exec.Command(filepath.Join(binaries, "query"), "account", "--user", "dev", "--permissions", "connect,read")
	cmd.Stdin = strings.NewReader(processPassword)
	line, err := cmd.Output()
	must(t, err)
	must(t, os.WriteFile(s.accounts, line, 0o600))
	now := time.Now().UnixMilli()
	for _, f := range []presence.NodeFact{
		{ID: "1", Kind: presence.NodeStarted, Node: "n1", TimeMS: now - 60_000, StartedMS: now - 60_000, StartedReceivedMS: now - 60_000},
		{ID: "2", Kind: presence.NodeAlive, Node: "n1", TimeMS: now, UptimeMS: presence.Some[int64](60_000)},
		{ID: "3", Kind: presence.Feed, Bridge: "b1", TimeMS: now, CompleteSinceMS: now - 120_000, LeaseMS: 600_000},
	} {
		f.Cluster, f.Dialect, f.ReceivedMS = cluster, presence.DialectEMQX, now
		must(t, s.client.ProduceSync(t.Context(), eventlog.NodeRecord(&f, eventlog.JSON)).FirstErr())
	}
	return s
}

// materializer prepares a member of a replica's group.
func (s *processes) materializer(replica string, flags ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, binary: filepath.Join(s.binaries, "materializer"), admin: freeAddr(s.t), state: freeAddr(s.t)}
	p.name = "materializer " + replica + " " + p.state
	p.args = append([]string{
		"--data-dir", s.t.TempDir(), "--state-addr", p.state, "--admin-addr", p.admin, "--kafka-brokers", s.kafka.Brokers[0], "--log-level", "info",
		"--kafka-partitions", fmt.Sprint(processPartitions), "--kafka-replication-factor", "1", "--replica", replica, fmt.Sprint("--publish=", replica == "a"),
		"--checkpoint-interval", "2s", "--cache-size", "8388608",
	}, flags...)
	return p
}

// query prepares a query service.
func (s *processes) query(flags ...string) *process {
	s.t.Helper()
	p := &process{t: s.t, name: "query", binary: filepath.Join(s.binaries, "query"), admin: freeAddr(s.t), rest: freeAddr(s.t), rpc: freeAddr(s.t)}
	p.args = append([]string{
		"--http-addr", p.rest, "--grpc-addr", p.rpc, "--admin-addr", p.admin, "--kafka-brokers", s.kafka.Brokers[0], "--log-level", "info",
		"--kafka-partitions", fmt.Sprint(processPartitions), "--kafka-replication-factor", "1", "--accounts-file", s.accounts, "--stale-after", processStale.String(),
	}, flags...)
	return p
}

// start starts the process; it ends with the test.
func (p *process) start() *process {
	p.t.Helper()
	first := p.log == nil
	if first {
		p.log = &output{}
	}
	p.exited = make(chan error, 1)
	p.cmd = exec.Command(p.binary, p.args...)
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	must(p.t, p.cmd.Start())
	go func(cmd *exec.Cmd, exited chan<- error) { exited <- cmd.Wait() }(p.cmd, p.exited)
	if first {
		p.t.Cleanup(func() {
			if p.cmd != nil {
				_ = p.cmd.Process.Kill()
				<-p.exited
			}
			if p.t.Failed() {
				p.t.Logf("%s wrote:\n%s", p.name, p.log)
			}
		})
	}
	return p
}

// ready waits until the process says that it is.
func (p *process) ready() *process {
	p.t.Helper()
	servicetest.Eventually(p.t, patience, func() error {
		select {
		case err := <-p.exited:
			p.cmd = nil
			p.t.Fatalf("%s ended: %v\n%s", p.name, err, p.log)
		default:
		}
		ctx, cancel := context.WithTimeout(p.t.Context(), callTimeout)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.admin+"/readyz", http.NoBody)
		if err != nil {
			return err
		}
		answer, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		why, err := io.ReadAll(answer.Body)
		if err = errors.Join(err, answer.Body.Close()); err == nil && answer.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s is not ready: %s", p.name, why)
		}
		return err
	})
	return p
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	must(p.t, p.cmd.Process.Signal(s))
}

// end sends a signal and waits until the process is gone.
func (p *process) end(s syscall.Signal) {
	p.t.Helper()
	p.signal(s)
	select {
	case err := <-p.exited:
		if s == syscall.SIGTERM && err != nil {
			p.t.Errorf("%s: %v", p.name, err)
		}
	case <-time.After(patience):
		p.t.Fatalf("%s does not end after %v", p.name, s)
	}
	p.cmd = nil
}

// shared waits until exactly these members own the partitions of a replica, each at least one.
func (s *processes) shared(replica string, members ...*process) {
	s.t.Helper()
	group := "presence-materializer-" + replica
	servicetest.Eventually(s.t, patience, func() error {
		described, err := s.admin.DescribeGroups(s.t.Context(), group)
		if err != nil {
			return err
		}
		g := described[group]
		if g.State != "Stable" || len(g.Members) != len(members) {
			return fmt.Errorf("%s is %s with %d members", group, g.State, len(g.Members))
		}
		owned := map[string]int{}
		all := 0
		for _, m := range g.Members {
			assigned, ok := m.Assigned.AsConsumer()
			if !ok || m.InstanceID == nil {
				return fmt.Errorf("%s is not assigned", m.MemberID)
			}
			for _, t := range assigned.Topics {
				owned[*m.InstanceID] += len(t.Partitions)
				all += len(t.Partitions)
			}
		}
		for _, m := range members {
			if owned[m.state] == 0 {
				return fmt.Errorf("%s owns nothing of %v", m.name, owned)
			}
		}
		if all != processPartitions {
			return fmt.Errorf("%d of %d partitions are assigned", all, processPartitions)
		}
		return nil
	})
	for _, m := range members {
		m.ready()
	}
}
