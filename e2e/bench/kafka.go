package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
)

const (
	javaVersion = 17
	copyJars    = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
)

// errMissing is of a part that needs a program that is not there. It is skipped, and says so.
var errMissing = errors.New("missing")

// tools are what the parts with processes start.
type tools struct {
	source string // folder of module e2e
	dir    string // for binaries
	self   string // this program
	jars   string // folder
}

// newTools finds or builds what is needed; an error that wraps errMissing names what is not there.
func newTools(ctx context.Context, dir string) (*tools, error) {
	t := &tools{dir: filepath.Join(dir, "bin")}
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder of binaries: %w", err)
	}
	var err error
	if t.self, err = os.Executable(); err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/mqtt-presence/presence/e2e").Output()
	if err != nil {
		return nil, fmt.Errorf("find the sources; run this inside the repository: %w", err)
	}
	t.source = strings.TrimSpace(string(out))
	if err := t.needJava(ctx); err != nil {
		return nil, err
	}
	t.jars, err = t.fetchJars(ctx)
	return t, err
}

// needJava wants the programs that Kafka and its jars need.
func (t *tools) needJava(ctx context.Context) error {
	var missing []string
	for _, program := range []string{"java", "javac", "mvn"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%w: %s; install a JDK of version %d or later and Maven", errMissing, strings.Join(missing, ", "), javaVersion)
	}
	out, err := exec.CommandContext(ctx, "java", "-version").CombinedOutput()
	if err != nil {
		return fmt.Errorf("ask java for its version: %w", err)
	}
	if v := parseJava(string(out)); v < javaVersion {
		return fmt.Errorf("%w: java %d, which is what this one is, is not enough; install a JDK of version %d or later", errMissing, v, javaVersion)
	}
	return nil
}

var javaLine = regexp.MustCompile(`version "(\d+)`)

// parseJava returns the major version, 0 if it is not there.
func parseJava(text string) int {
	m := javaLine.FindStringSubmatch(text)
	if m == nil {
		return 0
	}
	v, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return v
}

// fetchJars returns a folder with the jars, which the user's cache keeps from run to run.
func (t *tools) fetchJars(ctx context.Context) (string, error) {
	pom := filepath.Join(t.source, "peers", "streams", "pom.xml")
	recipe, err := os.ReadFile(pom)
	if err != nil {
		return "", fmt.Errorf("read which jars are needed: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the folder for jars: %w", err)
	}
	dir := filepath.Join(cache, "presence-bench", fmt.Sprintf("jars-%x", sha256.Sum256(recipe))[:21])
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", fmt.Errorf("make the folder for jars: %w", err)
	}
	// Under another name until it is complete.
	part, err := os.MkdirTemp(filepath.Dir(dir), "part-")
	if err != nil {
		return "", fmt.Errorf("make the folder for jars: %w", err)
	}
	cmd := exec.CommandContext(ctx, "mvn", "-q", "-B", "-f", pom, copyJars, "-DincludeScope=runtime", "-DoutputDirectory="+part)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("get Kafka's jars with Maven: %w\n%s", err, out), os.RemoveAll(part))
	}
	if err := os.Rename(part, dir); err != nil {
		return "", fmt.Errorf("keep the jars: %w", err)
	}
	return dir, nil
}

// build compiles commands of the workspace into the folder of binaries, and returns the path of each.
func (t *tools) build(ctx context.Context, services ...string) ([]string, error) {
	var paths []string
	for _, s := range services {
		path := filepath.Join(t.dir, s)
		cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/mqtt-presence/presence/services/"+s+"/cmd/"+s)
		cmd.Dir = t.source
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w\n%s", s, err, out)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// java is a command with all jars.
func (t *tools) java(heap, class string, args ...string) *exec.Cmd {
	all := []string{"-Xmx" + heap, "-XX:+UseG1GC", "-XX:+ExitOnOutOfMemoryError", "-Djava.awt.headless=true",
		"-Dlog4j2.configurationFile=" + filepath.Join(t.source, "images", "kafka", "defaults", "tools-log4j2.yaml"),
		"-cp", t.dir + string(os.PathListSeparator) + filepath.Join(t.jars, "*"), class}
	return exec.Command("java", append(all, args...)...)
}

// realKafka is one node of Apache Kafka that is broker and controller.
type realKafka struct {
	*process
	addr   string
	client *kgo.Client
}

// serverProperties are Kafka's defaults but for what a single node needs, and the folder.
const serverProperties = `process.roles=broker,controller
node.id=1
controller.quorum.voters=1@%[2]s
listeners=PLAINTEXT://%[1]s,CONTROLLER://%[2]s
advertised.listeners=PLAINTEXT://%[1]s
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs=%[3]s
auto.create.topics.enable=false
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
`

// startKafka formats a folder and starts a node in it, at free ports of loopback.
func (t *tools) startKafka(ctx context.Context, dir string) (*realKafka, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make kafka's folder: %w", err)
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	controller, err := freeAddr()
	if err != nil {
		return nil, err
	}
	properties := filepath.Join(dir, "server.properties")
	if err := os.WriteFile(properties, fmt.Appendf(nil, serverProperties, addr, controller, filepath.Join(dir, "log")), 0o600); err != nil {
		return nil, fmt.Errorf("write kafka's configuration: %w", err)
	}
	const id = "cHJlc2VuY2UtYmVuY2gtMQ" // any 16 bytes in base64
	if out, err := t.java("256m", "kafka.tools.StorageTool", "format", "-t", id, "-c", properties).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("format kafka's folder: %w\n%s", err, out)
	}
	k := &realKafka{addr: addr}
	if k.process, err = startProcess("kafka", dir, t.java("1g", "kafka.Kafka", properties)); err != nil {
		return nil, err
	}
	if k.client, err = kgo.NewClient(kgo.SeedBrokers(addr)); err != nil {
		return nil, errors.Join(fmt.Errorf("create the kafka client: %w", err), k.process.stop())
	}
	if err := k.await(ctx, "kafka", k.client.Ping); err != nil {
		return nil, errors.Join(err, k.stop())
	}
	return k, nil
}

// stop ends it at once: what it has is removed with its folder, and to sync gigabytes before takes minutes.
func (k *realKafka) stop() error {
	k.client.Close()
	return k.kill()
}

// config is what our services use it with.
func (k *realKafka) config(partitions int) eventlog.Config {
	c := eventlog.DefaultConfig()
	c.Brokers, c.Partitions, c.ReplicationFactor, c.Compression = []string{k.addr}, int32(partitions), 1, "lz4"
	return c
}

// remove deletes a topic, and waits until Kafka no longer knows it.
func (k *realKafka) remove(ctx context.Context, topics ...string) error {
	adm := kadm.NewClient(k.client)
	if _, err := adm.DeleteTopics(ctx, topics...); err != nil {
		return fmt.Errorf("delete topics: %w", err)
	}
	return await(ctx, "topics to be gone", func(ctx context.Context) error {
		details, err := adm.ListTopics(ctx)
		for _, topic := range topics {
			if err == nil && details.Has(topic) {
				err = fmt.Errorf("topic %s is there", topic)
			}
		}
		return err
	})
}

// removeOthers deletes what peers have left: all topics but ours and Kafka's.
func (k *realKafka) removeOthers(ctx context.Context) error {
	details, err := kadm.NewClient(k.client).ListTopics(ctx)
	if err != nil {
		return fmt.Errorf("list topics: %w", err)
	}
	var others []string
	for _, name := range details.Names() {
		if !strings.HasPrefix(name, "presence.") {
			others = append(others, name)
		}
	}
	if len(others) == 0 {
		return nil
	}
	return k.remove(ctx, others...)
}

// ends returns the number of records that a topic has had.
func (k *realKafka) ends(ctx context.Context, topic string) (int64, error) {
	offsets, err := kadm.NewClient(k.client).ListEndOffsets(ctx, topic)
	if err == nil {
		err = offsets.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the end of %s: %w", topic, err)
	}
	var total int64
	offsets.Each(func(o kadm.ListedOffset) { total += o.Offset })
	return total, nil
}
