//go:build e2e

package e2e

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"strconv"
	"testing"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

// Images of the real parts; the environment replaces them where they cannot be pulled.
const (
	kafkaImage     = "apache/kafka:4.3.1"
	mosquittoImage = "eclipse-mosquitto:2.0"
)

// serviceImage returns the image of one of our services, as `make images` builds it.
func serviceImage(name string) string { return "presence/" + name + ":" + imageTag() }

func imageTag() string { return cmp.Or(os.Getenv("PRESENCE_E2E_IMAGE_TAG"), "local") }

// Ports inside the containers.
const (
	mqttPort          = "1883/tcp"
	kafkaExternalPort = "9092/tcp"
	kafkaInternal     = "kafka:19092"
	restPort          = "8080/tcp"
	grpcPort          = "8081/tcp"
	adminPort         = "8082/tcp"
	stateAddr         = "8083"
)

// split is Presence over a real broker and a real Kafka, each service in a container of its own.
type split struct {
	kafka, broker, bridge, query *dockerContainer
	materializers                [2]*dockerContainer
	kafkaAddr                    string // for clients on this machine
}

// startSplit starts all of it; it takes some 15 s.
func startSplit(t *testing.T) *split {
	t.Helper()
	d := newDocker(t)
	s := &split{}
	s.startKafka(d)
	s.broker = d.start(mosquittoSpec(t, stampForms[0]))
	s.bridge = d.start(service("bridge", "bridge", map[string]string{
		"PRESENCE_MQTT_URL":                 "mqtt://broker:1883",
		"PRESENCE_DATA_DIR":                 "/data",
		"PRESENCE_KAFKA_REPLICATION_FACTOR": "1",
	}))
	for i := range s.materializers {
		name := fmt.Sprintf("materializer-%d", i+1)
		s.materializers[i] = d.start(service(name, "materializer", map[string]string{
			"PRESENCE_ALLOW_INSECURE":           "true",
			"PRESENCE_DATA_DIR":                 "/data",
			"PRESENCE_STATE_ADDR":               "0.0.0.0:" + stateAddr,
			"PRESENCE_STATE_ADVERTISE":          net.JoinHostPort(name, stateAddr),
			"PRESENCE_KAFKA_REPLICATION_FACTOR": "1",
		}))
	}
	query := service("query", "query", map[string]string{
		"PRESENCE_ALLOW_INSECURE": "true",
		"PRESENCE_HTTP_ADDR":      "0.0.0.0:8080",
		"PRESENCE_GRPC_ADDR":      "0.0.0.0:8081",
		"PRESENCE_ACCOUNTS_FILE":  "/etc/presence/accounts",
	})
	query.files = []testcontainers.ContainerFile{{HostFilePath: "images/compose/accounts", ContainerFilePath: "/etc/presence/accounts", FileMode: 0o644}}
	query.ports = append(query.ports, restPort, grpcPort)
	s.query = d.start(query)
	return s
}

// startKafka starts one node. What it advertises to this machine must be known before it starts, and must stay the same when it starts again.
func (s *split) startKafka(d *docker) {
	d.t.Helper()
	port := freePort(d.t)
	s.kafkaAddr = net.JoinHostPort(loopback, strconv.Itoa(port))
	s.kafka = d.start(spec{
		name: "kafka", image: cmp.Or(os.Getenv("PRESENCE_E2E_KAFKA_IMAGE"), kafkaImage),
		// One setting from the environment replaces the image's whole configuration, so all of it is here.
		env: map[string]string{
			"KAFKA_NODE_ID":                                          "1",
			"KAFKA_PROCESS_ROLES":                                    "broker,controller",
			"KAFKA_CONTROLLER_QUORUM_VOTERS":                         "1@localhost:9093",
			"KAFKA_LISTENERS":                                        "INTERNAL://0.0.0.0:19092,EXTERNAL://0.0.0.0:9092,CONTROLLER://localhost:9093",
			"KAFKA_ADVERTISED_LISTENERS":                             "INTERNAL://" + kafkaInternal + ",EXTERNAL://" + s.kafkaAddr,
			"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":                   "INTERNAL:PLAINTEXT,EXTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
			"KAFKA_INTER_BROKER_LISTENER_NAME":                       "INTERNAL",
			"KAFKA_CONTROLLER_LISTENER_NAMES":                        "CONTROLLER",
			"KAFKA_LOG_DIRS":                                         "/var/lib/kafka/data",
			"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":                 "1",
			"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR":         "1",
			"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":                    "1",
			"KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "1",
			"KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR":            "1",
			"KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS":                 "0",
			"KAFKA_AUTO_CREATE_TOPICS_ENABLE":                        "false",
		},
		ports: []string{kafkaExternalPort}, fixed: map[string]int{kafkaExternalPort: port},
		// The broker listens when it is ready. From outside Docker's proxy would answer in its place.
		ready: wait.ForExec([]string{"bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/19092"}),
	})
}

// service returns one of our services with what all of them need.
func service(name, binary string, env map[string]string) spec {
	env["PRESENCE_KAFKA_BROKERS"] = kafkaInternal
	env["PRESENCE_ADMIN_ADDR"] = "0.0.0.0:8082"
	return spec{name: name, image: serviceImage(binary), env: env, ports: []string{adminPort}, ready: wait.ForHTTP("/readyz").WithPort(adminPort)}
}

// target returns how its users reach it. The ports of restarted containers change, but query is not restarted, and the others' are fixed.
func (s *split) target(t *testing.T) Target {
	t.Helper()
	kafka := eventlog.DefaultConfig()
	kafka.Brokers = []string{s.kafkaAddr}
	return Target{
		REST: s.query.addr(t, restPort), GRPC: s.query.addr(t, grpcPort), User: "dev", Password: "dev-only-change-me", Kafka: kafka,
	}.onMosquitto(t, s.broker, stampForms[0])
}
