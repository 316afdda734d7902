//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// compose runs the repository's compose file as a project of its own.
type compose struct {
	t       *testing.T
	command []string
}

// newCompose returns the compose that is here: the plugin, else the older binary.
func newCompose(t *testing.T) *compose {
	t.Helper()
	requireDocker(t)
	files := []string{"-p", "presence-e2e-" + strconv.Itoa(os.Getpid()), "-f", "../docker-compose.yml"}
	for _, command := range [][]string{{"docker", "compose"}, {"docker-compose"}} {
		c := &compose{t: t, command: append(command, files...)}
		if _, err := c.run(t.Context(), "version"); err == nil {
			return c
		}
	}
	skipOrFail(t, "neither docker compose nor docker-compose is here, so the compose file was not tried")
	return nil
}

// run returns what the command prints.
func (c *compose) run(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.command[0], append(c.command[1:len(c.command):len(c.command)], args...)...)
	cmd.Env = append(os.Environ(),
		"PRESENCE_KAFKA_IMAGE="+cmp.Or(os.Getenv("PRESENCE_E2E_KAFKA_IMAGE"), kafkaImage),
		"PRESENCE_MOSQUITTO_IMAGE="+cmp.Or(os.Getenv("PRESENCE_E2E_MOSQUITTO_IMAGE"), mosquittoImage),
		"PRESENCE_VERSION="+imageTag())
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// up starts everything and waits until it is healthy, as far as compose waits. All of it goes with the test.
func (c *compose) up() {
	c.t.Helper()
	c.t.Cleanup(func() {
		if c.t.Failed() {
			out, err := c.run(context.Background(), "logs", "--no-color", "--tail", strconv.Itoa(logLines))
			c.t.Logf("the last lines of all logs (%v):\n%s", err, out)
		}
		if out, err := c.run(context.Background(), "down", "--volumes", "--remove-orphans", "--timeout", "2"); err != nil {
			c.t.Errorf("compose down: %v\n%s", err, out)
		}
	})
	began := time.Now()
	if out, err := c.run(c.t.Context(), "up", "-d"); err != nil {
		if strings.Contains(out, "address already in use") {
			skipOrFail(c.t, "the compose file was not tried, since another process took one of its ports: "+out)
		}
		c.t.Fatalf("compose up: %v\n%s", err, out)
	}
	c.t.Logf("compose is up after %.1f s", time.Since(began).Seconds())
}

// TestCompose starts what `make up` starts, on the ports that the README names, and asks as the README says.
func TestCompose(t *testing.T) {
	c := newCompose(t)
	kafka := eventlog.DefaultConfig()
	kafka.Brokers = []string{"127.0.0.1:9092"}
	tgt := Target{
		MQTT: "127.0.0.1:1883", REST: "127.0.0.1:8080", GRPC: "127.0.0.1:8081", User: "dev", Password: "dev-only-change-me", Kafka: kafka, Unkeyed: true,
	}
	for _, addr := range []string{tgt.MQTT, tgt.REST, tgt.GRPC, kafka.Brokers[0]} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			skipOrFail(t, "the compose file was not tried, since one of its ports is in use: "+err.Error())
		}
		must(t, l.Close())
	}
	c.up()
	tgt = tgt.open(t)
	tgt.warmUp(t)
	scenarioDisconnect(t, tgt)
	scenarioKilledClient(t, tgt)
}
