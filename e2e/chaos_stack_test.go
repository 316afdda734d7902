//go:build e2e

package e2e

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	dockernetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

const (
	chaosPartitions = 8
	chaosKafkaPort  = "9092"
)

// chaosNet is the network of the containers. Their addresses are known before they start and stay theirs, so that one address of a process is good for
// the others and for this machine, and a cut can name it.
var chaosNet = netip.MustParsePrefix("10.213.87.0/24")

// chaosStack is Presence with two of each process, over three brokers of Kafka.
type chaosStack struct {
	d          *docker
	ips        map[string]netip.Addr
	containers map[string]*dockerContainer
	kafka      eventlog.Config
	opts       []kgo.Opt // of clients of Kafka on this machine
}

func startChaosStack(t *testing.T) *chaosStack {
	t.Helper()
	requireCutter(t)
	ipam := &dockernetwork.IPAM{Driver: "default", Config: []dockernetwork.IPAMConfig{{Subnet: chaosNet}}}
	s := &chaosStack{d: newDocker(t, network.WithIPAM(ipam)), ips: map[string]netip.Addr{}, containers: map[string]*dockerContainer{}}
	ip := chaosNet.Addr().Next() // the gateway's
	all := chaos.Processes()
	for _, kind := range []chaos.Kind{chaos.Kafka, chaos.Broker, chaos.Bridge, chaos.ReplicaA, chaos.ReplicaB, chaos.Query} {
		for _, name := range all[kind] {
			ip = ip.Next()
			s.ips[name] = ip
		}
	}
	s.startKafka(t, all[chaos.Kafka])
	// A broker that was killed must still know the bridges' sessions: what it logs before they are back would be lost otherwise, and all answers stale.
	s.start(mosquittoSpec(t, stampForm{name: stampForms[0].name, conf: []string{"autosave_interval 2"}}))
	for _, name := range all[chaos.Bridge] {
		s.start(s.service(name, "bridge", map[string]string{
			"PRESENCE_MQTT_URL": "mqtt://" + s.addr("broker", "1883"), "PRESENCE_DATA_DIR": "/data", "PRESENCE_BRIDGE_NAME": name,
		}))
	}
	for _, replica := range []struct {
		kind    chaos.Kind
		name    string
		publish string
	}{{chaos.ReplicaA, "a", "true"}, {chaos.ReplicaB, "b", "false"}} {
		for _, name := range all[replica.kind] {
			s.start(s.service(name, "materializer", map[string]string{
				"PRESENCE_ALLOW_INSECURE":  "true",
				"PRESENCE_DATA_DIR":        "/data",
				"PRESENCE_CACHE_SIZE":      "33554432",
				"PRESENCE_REPLICA":         replica.name,
				"PRESENCE_PUBLISH":         replica.publish,
				"PRESENCE_STATE_ADDR":      "0.0.0.0:" + stateAddr,
				"PRESENCE_STATE_ADVERTISE": s.addr(name, stateAddr),
			}))
		}
	}
	accounts, err := os.ReadFile("images/compose/accounts")
	must(t, err)
	admins := strings.Replace(string(accounts), ":connect,read\n", ":connect,read,admin\n", 1)
	// Each prefers another replica, so that both are asked all the time.
	for i, name := range all[chaos.Query] {
		query := s.service(name, "query", map[string]string{
			"PRESENCE_ALLOW_INSECURE": "true",
			"PRESENCE_HTTP_ADDR":      "0.0.0.0:8080",
			"PRESENCE_GRPC_ADDR":      "0.0.0.0:8081",
			"PRESENCE_ACCOUNTS_FILE":  "/etc/presence/accounts",
			"PRESENCE_REPLICAS":       []string{"a,b", "b,a"}[i],
		})
		query.files = []testcontainers.ContainerFile{{Reader: strings.NewReader(admins), ContainerFilePath: "/etc/presence/accounts", FileMode: 0o644}}
		s.start(query)
	}
	return s
}

// requireCutter wants what takes packets away inside a container's network.
func requireCutter(t *testing.T) {
	t.Helper()
	for _, tool := range []string{"nsenter", "iptables"} {
		if _, err := exec.LookPath(tool); err != nil {
			skipOrFail(t, "no network can be cut: "+err.Error())
		}
	}
	if os.Getuid() != 0 {
		skipOrFail(t, "no network can be cut: this needs root")
	}
}

func (s *chaosStack) start(sp spec) {
	sp.ip = s.ips[sp.name]
	s.containers[sp.name] = s.d.start(sp)
}

func (s *chaosStack) addr(name, port string) string { return s.ips[name].String() + ":" + port }

func (s *chaosStack) service(name, binary string, env map[string]string) spec {
	sp := service(name, binary, env)
	env["PRESENCE_KAFKA_BROKERS"] = strings.Join(s.kafka.Brokers, ",")
	env["PRESENCE_KAFKA_PARTITIONS"] = fmt.Sprint(chaosPartitions)
	env["PRESENCE_KAFKA_REPLICATION_FACTOR"] = "3"
	return sp
}

// startKafka starts the brokers and waits until they are one cluster.
func (s *chaosStack) startKafka(t *testing.T, names []string) {
	t.Helper()
	var voters []string
	for i, name := range names {
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, s.addr(name, "9093")))
		s.kafka.Brokers = append(s.kafka.Brokers, s.addr(name, chaosKafkaPort))
	}
	for i, name := range names {
		s.start(spec{
			name: name, image: cmp.Or(os.Getenv("PRESENCE_E2E_KAFKA_IMAGE"), kafkaImage),
			env: map[string]string{
				"KAFKA_HEAP_OPTS":                      "-Xms384m -Xmx384m",
				"KAFKA_NODE_ID":                        fmt.Sprint(i + 1),
				"KAFKA_PROCESS_ROLES":                  "broker,controller",
				"KAFKA_CONTROLLER_QUORUM_VOTERS":       strings.Join(voters, ","),
				"KAFKA_LISTENERS":                      "PLAINTEXT://0.0.0.0:9092,CONTROLLER://0.0.0.0:9093",
				"KAFKA_ADVERTISED_LISTENERS":           "PLAINTEXT://" + s.kafka.Brokers[i],
				"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
				"KAFKA_INTER_BROKER_LISTENER_NAME":     "PLAINTEXT",
				"KAFKA_CONTROLLER_LISTENER_NAMES":      "CONTROLLER",
				"KAFKA_LOG_DIRS":                       "/var/lib/kafka/data",
				"KAFKA_DEFAULT_REPLICATION_FACTOR":     "3",
				"KAFKA_MIN_INSYNC_REPLICAS":            "2",
				// A follower that is cut off holds its leader's writes back for so long.
				"KAFKA_REPLICA_LAG_TIME_MAX_MS": "10000",
				// Few partitions: each costs three brokers their time.
				"KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS":                     "4",
				"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":                 "3",
				"KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS":             "4",
				"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR":         "3",
				"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":                    "2",
				"KAFKA_SHARE_COORDINATOR_STATE_TOPIC_REPLICATION_FACTOR": "3",
				"KAFKA_SHARE_COORDINATOR_STATE_TOPIC_MIN_ISR":            "2",
				"KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS":                 "0",
				"KAFKA_AUTO_CREATE_TOPICS_ENABLE":                        "false",
				"KAFKA_LOG_CLEANER_DEDUPE_BUFFER_SIZE":                   "16777216",
			},
			ready: wait.ForExec([]string{"true"}),
		})
	}
	s.kafka.Partitions, s.kafka.ReplicationFactor = chaosPartitions, 3
	cfg := eventlog.DefaultConfig()
	cfg.Brokers = s.kafka.Brokers
	opts, err := cfg.Opts(slog.New(slog.DiscardHandler))
	must(t, err)
	s.opts = opts
	cl, err := kgo.NewClient(opts...)
	must(t, err)
	defer cl.Close()
	servicetest.Eventually(t, startTimeout, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), callTimeout)
		defer cancel()
		// kadm would give the same answer again.
		m, err := kmsg.NewPtrMetadataRequest().RequestWith(ctx, cl)
		if err == nil && len(m.Brokers) != len(names) {
			err = fmt.Errorf("%d of %d brokers of Kafka are there", len(m.Brokers), len(names))
		}
		return err
	})
}

// ended returns how a process has ended that nobody has killed, and starts it again; empty if it runs.
func (s *chaosStack) ended(ctx context.Context, name string) (string, error) {
	inspected, err := s.d.api.ContainerInspect(ctx, s.containers[name].ID, client.ContainerInspectOptions{})
	if err != nil || inspected.Container.State.Running {
		return "", err
	}
	_, err = s.d.api.ContainerStart(ctx, s.containers[name].ID, client.ContainerStartOptions{})
	return fmt.Sprintf("%s has ended by itself at %s with code %d", name, inspected.Container.State.FinishedAt, inspected.Container.State.ExitCode), err
}

// inflict does what a step says. An error is one of the tool, not of the target.
func (s *chaosStack) inflict(ctx context.Context, step chaos.Step) error {
	for _, name := range step.Targets {
		var err error
		switch step.Action {
		case chaos.Kill:
			err = s.signal(ctx, name, "KILL")
		case chaos.Pause:
			err = s.signal(ctx, name, "STOP")
		case chaos.Isolate, chaos.Cut:
			err = s.filter(ctx, "-I", name, step.Peers)
		case chaos.Restart:
			grace := 30 * time.Second
			err = s.containers[name].Stop(ctx, &grace)
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", step.Action, name, err)
		}
	}
	return nil
}

// heal takes a step back.
func (s *chaosStack) heal(ctx context.Context, step chaos.Step) error {
	for _, name := range step.Targets {
		var err error
		switch step.Action {
		case chaos.Kill, chaos.Restart:
			_, err = s.d.api.ContainerStart(ctx, s.containers[name].ID, client.ContainerStartOptions{})
		case chaos.Pause:
			err = s.signal(ctx, name, "CONT")
		case chaos.Isolate, chaos.Cut:
			err = s.filter(ctx, "-D", name, step.Peers)
		}
		if err != nil {
			return fmt.Errorf("take %s of %s back: %w", step.Action, name, err)
		}
	}
	return nil
}

func (s *chaosStack) signal(ctx context.Context, name, signal string) error {
	_, err := s.d.api.ContainerKill(ctx, s.containers[name].ID, client.ContainerKillOptions{Signal: signal})
	return err
}

// filter takes or gives back all packets between a process and its peers, both ways; without peers, all but its own.
func (s *chaosStack) filter(ctx context.Context, command, name string, peers []string) error {
	inspected, err := s.d.api.ContainerInspect(ctx, s.containers[name].ID, client.ContainerInspectOptions{})
	if err != nil {
		return err
	}
	rules := [][]string{{"INPUT", "!", "-i", "lo"}, {"OUTPUT", "!", "-o", "lo"}}
	if len(peers) > 0 {
		rules = nil
	}
	for _, peer := range peers {
		rules = append(rules, []string{"INPUT", "-s", s.ips[peer].String()}, []string{"OUTPUT", "-d", s.ips[peer].String()})
	}
	for _, rule := range rules {
		args := append([]string{"-t", fmt.Sprint(inspected.Container.State.Pid), "-n", "iptables", "-w", command}, rule...)
		if out, err := exec.CommandContext(ctx, "nsenter", append(args, "-j", "DROP")...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	return nil
}
