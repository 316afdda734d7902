//go:build e2e

package e2e

import (
	"maps"
	"net"
	"strconv"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

const webSocketPort = "8084/tcp"

// startPresence starts the all-in-one image, with more of the environment than it needs to be reached.
func startPresence(d *docker, env map[string]string) (*dockerContainer, Target) {
	d.t.Helper()
	fixed := map[string]int{}
	for _, port := range []string{mqttPort, webSocketPort, restPort, grpcPort} {
		fixed[port] = freePort(d.t)
	}
	// The embedded Kafka sends its clients to the port that it listens on, so it has the same one inside and outside.
	port := freePort(d.t)
	kafkaPort := strconv.Itoa(port) + "/tcp"
	fixed[kafkaPort] = port
	all := map[string]string{
		"PRESENCE_ALLOW_INSECURE": "true",
		"PRESENCE_DATA_DIR":       "/data",
		"PRESENCE_MQTT_ADDR":      "0.0.0.0:1883",
		"PRESENCE_MQTT_WS_ADDR":   "0.0.0.0:8084",
		"PRESENCE_KAFKA_ADDR":     "0.0.0.0:" + strconv.Itoa(port),
		"PRESENCE_HTTP_ADDR":      "0.0.0.0:8080",
		"PRESENCE_GRPC_ADDR":      "0.0.0.0:8081",
		"PRESENCE_ADMIN_ADDR":     "0.0.0.0:8082",
		"PRESENCE_ACCOUNTS_FILE":  "/etc/presence/accounts",
	}
	maps.Copy(all, env)
	c := d.start(spec{
		name: "presence", image: serviceImage("presence"), env: all,
		files: []testcontainers.ContainerFile{{HostFilePath: "images/compose/accounts", ContainerFilePath: "/etc/presence/accounts", FileMode: 0o644}},
		ports: []string{mqttPort, webSocketPort, restPort, grpcPort, adminPort, kafkaPort}, fixed: fixed,
		ready: wait.ForHTTP("/readyz").WithPort(adminPort),
	})
	kafka := eventlog.DefaultConfig()
	kafka.Brokers = []string{net.JoinHostPort(loopback, strconv.Itoa(port))}
	return c, Target{
		MQTT: c.addr(d.t, mqttPort), WebSocket: "ws://" + c.addr(d.t, webSocketPort), REST: c.addr(d.t, restPort), GRPC: c.addr(d.t, grpcPort),
		User: "dev", Password: "dev-only-change-me", Kafka: kafka,
	}
}

// TestContainerPresence runs the scenarios on the all-in-one image, then kills it: what was known is known again, and who was connected to the
// broker that died with it is offline.
func TestContainerPresence(t *testing.T) {
	c, tgt := startPresence(newDocker(t), nil)
	tgt = tgt.open(t)
	runScenarios(t, tgt)
	t.Run("stranger over WebSocket H4", func(t *testing.T) { scenarioStranger(t, tgt.overWebSocket()) })
	t.Run("storm over TCP H8", func(t *testing.T) { scenarioStorm(t, tgt, nil) })
	t.Run("storm over WebSocket H8", func(t *testing.T) { scenarioStorm(t, tgt.overWebSocket(), nil) })

	t.Run("killed", func(t *testing.T) {
		const stayed, came, left = "presence-killed-stayed", "presence-killed-came", "presence-killed-left"
		connect(t, tgt, stayed)
		connect(t, tgt, came)
		must(t, connect(t, tgt, left).disconnect())
		tgt.expectOnline(t, stayed)
		tgt.expectOnline(t, came)
		tgt.expectOffline(t, left)
		c.kill(t)
		c.restart(t)
		tgt.expect(t, stayed, "offline", presence.NodeRestarted.String())
		connect(t, tgt, came)
		tgt.expectOnline(t, came)
		tgt.expectOffline(t, left)
	})
}
