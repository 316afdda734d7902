//go:build e2e

package e2e

import (
	"net"
	"strconv"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
)

// TestContainerPresence runs the scenarios on the all-in-one image, then kills it: what was known is known again, and who was connected to the
// broker that died with it is offline.
func TestContainerPresence(t *testing.T) {
	d := newDocker(t)
	// The embedded Kafka sends its clients to the port that it listens on, so it has the same one inside and outside.
	fixed := map[string]int{mqttPort: freePort(t), restPort: freePort(t), grpcPort: freePort(t)}
	port := freePort(t)
	kafkaPort := strconv.Itoa(port) + "/tcp"
	fixed[kafkaPort] = port
	c := d.start(spec{
		name: "presence", image: serviceImage("presence"),
		env: map[string]string{
			"PRESENCE_DATA_DIR":      "/data",
			"PRESENCE_MQTT_ADDR":     "0.0.0.0:1883",
			"PRESENCE_KAFKA_ADDR":    "0.0.0.0:" + strconv.Itoa(port),
			"PRESENCE_HTTP_ADDR":     "0.0.0.0:8080",
			"PRESENCE_GRPC_ADDR":     "0.0.0.0:8081",
			"PRESENCE_ADMIN_ADDR":    "0.0.0.0:8082",
			"PRESENCE_ACCOUNTS_FILE": "/etc/presence/accounts",
		},
		files: []testcontainers.ContainerFile{{HostFilePath: "images/compose/accounts", ContainerFilePath: "/etc/presence/accounts", FileMode: 0o644}},
		ports: []string{mqttPort, restPort, grpcPort, adminPort, kafkaPort}, fixed: fixed,
		ready: wait.ForHTTP("/readyz").WithPort(adminPort),
	})
	kafka := eventlog.DefaultConfig()
	kafka.Brokers = []string{net.JoinHostPort(loopback, strconv.Itoa(port))}
	tgt := Target{
		MQTT: c.addr(t, mqttPort), REST: c.addr(t, restPort), GRPC: c.addr(t, grpcPort), User: "dev", Password: "dev-only-change-me", Kafka: kafka,
	}.open(t)
	runScenarios(t, tgt)

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
