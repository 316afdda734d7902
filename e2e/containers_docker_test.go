//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	dockernetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

const (
	// startTimeout bounds the start of a container up to its being ready; a JVM on a busy machine takes its time.
	startTimeout = 2 * time.Minute
	// logLines is how much of a container's log a failed test shows.
	logLines = 60
	loopback = "127.0.0.1"
)

// docker starts containers in one network and removes them with the test.
type docker struct {
	t   *testing.T
	api *testcontainers.DockerClient
	net *testcontainers.DockerNetwork
}

// newDocker returns the machine's Docker engine, and a network as opts say. Without one the test is skipped, or fails where it must not be.
func newDocker(t *testing.T, opts ...network.NetworkCustomizer) *docker {
	t.Helper()
	requireDocker(t)
	api, err := testcontainers.NewDockerClientWithOpts(t.Context())
	if err != nil {
		t.Fatalf("connect to the Docker engine: %v", err)
	}
	t.Cleanup(func() { _ = api.Close() })
	n, err := network.New(t.Context(), opts...)
	if err != nil {
		t.Fatalf("create a Docker network: %v", err)
	}
	testcontainers.CleanupNetwork(t, n)
	return &docker{t: t, api: api, net: n}
}

// requireDocker skips the test where no Docker engine answers, and fails it if PRESENCE_E2E_REQUIRE_DOCKER is 1.
func requireDocker(t *testing.T) {
	t.Helper()
	cl, err := client.New(client.FromEnv)
	if err == nil {
		_, err = cl.Ping(t.Context(), client.PingOptions{})
		_ = cl.Close()
	}
	if err != nil {
		skipOrFail(t, "no Docker engine answers, so nothing was tested (e2e/images/ensure-docker.sh starts one): "+err.Error())
	}
}

func skipOrFail(t *testing.T, reason string) {
	t.Helper()
	if os.Getenv("PRESENCE_E2E_REQUIRE_DOCKER") == "1" {
		t.Fatal("PRESENCE_E2E_REQUIRE_DOCKER=1: " + reason)
	}
	t.Skip("SKIPPED: " + reason)
}

// spec is a container to start.
type spec struct {
	name  string // in the network, and in messages
	image string
	env   map[string]string
	cmd   []string
	files []testcontainers.ContainerFile
	ports []string       // to be published on loopback, as "8080/tcp"
	fixed map[string]int // host ports of those that must keep theirs over a restart
	ip    netip.Addr     // in the network, where it must be known before; the zero value: any
	ready wait.Strategy
}

// dockerContainer is a started container.
type dockerContainer struct {
	*testcontainers.DockerContainer
	d    *docker
	name string
}

// start starts a container and waits until it is ready.
func (d *docker) start(s spec) *dockerContainer {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), startTimeout)
	defer cancel()
	bindings := dockernetwork.PortMap{}
	for _, port := range s.ports {
		bindings[dockernetwork.MustParsePort(port)] = []dockernetwork.PortBinding{{
			HostIP: netip.MustParseAddr(loopback), HostPort: strconv.Itoa(s.fixed[port]),
		}}
	}
	options := []testcontainers.ContainerCustomizer{
		network.WithNetwork([]string{s.name}, d.net),
		testcontainers.WithEnv(s.env),
		testcontainers.WithExposedPorts(s.ports...),
		testcontainers.WithFiles(s.files...),
		testcontainers.WithHostConfigModifier(func(hc *container.HostConfig) { hc.PortBindings = bindings }),
		testcontainers.WithWaitStrategyAndDeadline(startTimeout, s.ready),
		testcontainers.WithLogger(tclog.NewNoopLogger()),
	}
	if s.ip.IsValid() {
		options = append(options, testcontainers.WithEndpointSettingsModifier(func(settings map[string]*dockernetwork.EndpointSettings) {
			settings[d.net.Name].IPAMConfig = &dockernetwork.EndpointIPAMConfig{IPv4Address: s.ip}
		}))
	}
	if s.cmd != nil {
		options = append(options, testcontainers.WithCmd(s.cmd...))
	}
	began := time.Now()
	started, err := testcontainers.Run(ctx, s.image, options...)
	if started != nil {
		c := &dockerContainer{DockerContainer: started, d: d, name: s.name}
		d.t.Cleanup(c.remove)
		if err == nil {
			d.t.Logf("%s (%s) is ready after %.1f s", s.name, s.image, time.Since(began).Seconds())
			return c
		}
	}
	d.t.Fatalf("start %s from %s: %v", s.name, s.image, err)
	return nil
}

// remove ends the container and its volumes. A failed test shows the end of its log.
func (c *dockerContainer) remove() {
	// The test's own context has ended by now.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if c.d.t.Failed() {
		c.showLog(ctx)
	}
	if err := c.Terminate(ctx, testcontainers.StopTimeout(0)); err != nil {
		c.d.t.Errorf("remove container %s: %v", c.name, err)
	}
}

func (c *dockerContainer) showLog(ctx context.Context) {
	logs, err := c.Logs(ctx)
	if err != nil {
		c.d.t.Logf("read the log of %s: %v", c.name, err)
		return
	}
	c.d.t.Logf("the last lines of %s:", c.name)
	for _, line := range lastLines(logs, logLines) {
		c.d.t.Logf("%s | %s", c.name, line)
	}
	_ = logs.Close()
}

func lastLines(r io.Reader, n int) []string {
	var lines []string
	scanner := bufio.NewScanner(r)
	scanner.Buffer(nil, 1<<20)
	for scanner.Scan() {
		if strings.HasPrefix(scanner.Text(), "\t") {
			continue // Kafka prints its whole configuration, a setting a line
		}
		lines = append(lines, scanner.Text())
		if len(lines) > n {
			lines = lines[1:]
		}
	}
	return lines
}

// kill ends the container's process at once, with SIGKILL; its disk stays.
func (c *dockerContainer) kill(t *testing.T) {
	t.Helper()
	if _, err := c.d.api.ContainerKill(t.Context(), c.ID, client.ContainerKillOptions{Signal: "KILL"}); err != nil {
		t.Fatalf("kill %s: %v", c.name, err)
	}
}

// stop ends the container's process as an operator would: SIGTERM, and time to finish.
func (c *dockerContainer) stop(t *testing.T) {
	t.Helper()
	grace := 30 * time.Second
	if err := c.Stop(t.Context(), &grace); err != nil {
		t.Fatalf("stop %s: %v", c.name, err)
	}
}

// restart starts a container that was killed or stopped and waits until it is ready.
func (c *dockerContainer) restart(t *testing.T) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := c.Start(ctx); err != nil {
		t.Fatalf("start %s again: %v", c.name, err)
	}
	t.Logf("%s is ready again after %.1f s", c.name, time.Since(began).Seconds())
}

// startOnly starts a container that was killed and does not wait; awaitReady does.
func (c *dockerContainer) startOnly(t *testing.T) {
	t.Helper()
	if _, err := c.d.api.ContainerStart(t.Context(), c.ID, client.ContainerStartOptions{}); err != nil {
		t.Fatalf("start %s again: %v", c.name, err)
	}
}

func (c *dockerContainer) awaitReady(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	if err := c.WaitingFor.WaitUntilReady(ctx, c); err != nil {
		t.Fatalf("wait for %s: %v", c.name, err)
	}
}

// addr returns the address on this machine of a published port.
func (c *dockerContainer) addr(t *testing.T, port string) string {
	t.Helper()
	p, err := c.MappedPort(t.Context(), port)
	if err != nil {
		t.Fatalf("find port %s of %s: %v", port, c.name, err)
	}
	return net.JoinHostPort(loopback, strconv.Itoa(int(p.Num())))
}
