package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// ours is a run of the materializer's own binary.
type ours struct {
	*process
	dir       string // of the state
	admin     string
	state     string
	replica   string
	profiled  *profiling
	published bool
}

// materializerArgs are the same for every run but for what makes it one of its own.
func (t *tools) startMaterializer(k *realKafka, binary string, partitions int, dir, replica string, publish bool) (*ours, error) {
	o := &ours{dir: filepath.Join(dir, "state"), replica: replica, published: publish}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a folder: %w", err)
	}
	var err error
	if o.admin, err = freeAddr(); err != nil {
		return nil, err
	}
	if o.state, err = freeAddr(); err != nil {
		return nil, err
	}
	cmd := exec.Command(binary, "--kafka-brokers", k.addr, "--kafka-partitions", strconv.Itoa(partitions), "--kafka-replication-factor", "1", "--data-dir", o.dir,
		"--state-addr", o.state, "--admin-addr", o.admin, "--replica", replica, fmt.Sprintf("--publish=%t", publish), "--kafka-compression", "lz4", "--log-level", "warn")
	o.process, err = startProcess("materializer-"+replica, dir, cmd)
	return o, err
}

// finished returns nil once all facts are folded and the indexes are complete, and, if it publishes, all transitions are published.
func (o *ours) finished(events int64, partitions int) func(context.Context) error {
	return func(ctx context.Context) error {
		m, err := o.metrics(ctx)
		if err != nil {
			return err
		}
		ready, indexed, facts, outbox := m.sum("partition_ready"), m.sum("partition_indexed"), m.sum("facts_total"), m.sum("outbox_records")
		switch {
		case facts < float64(events) || ready < float64(partitions) || indexed < float64(partitions) || outbox > 0:
		case o.published && m.sum("published_total") < m.sum("transitions_total"):
		default:
			return nil
		}
		return fmt.Errorf("%.0f of %d facts are folded, %.0f partitions of %d ready, %.0f indexed, %.0f records not published", facts, events, ready, partitions, indexed, outbox)
	}
}

// samples are those of one scrape, with their labels.
type samples map[string]float64

// sum adds up all samples of a metric of the materializer.
func (s samples) sum(name string) (sum float64) {
	name = "presence_materializer_" + name
	for sample, v := range s {
		if sample == name || strings.HasPrefix(sample, name+"{") {
			sum += v
		}
	}
	return sum
}

func (o *ours) metrics(ctx context.Context) (samples, error) {
	body, err := get(ctx, "http://"+o.admin+"/metrics")
	if err != nil {
		return nil, err
	}
	return parseSamples(body)
}

// parseSamples reads the text format of Prometheus, without timestamps.
func parseSamples(text string) (samples, error) {
	s := samples{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		i := strings.LastIndexByte(line, ' ')
		if i < 0 {
			return nil, fmt.Errorf("read metrics: %q has no value", line)
		}
		v, err := strconv.ParseFloat(line[i+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("read metrics: %q: %w", line, err)
		}
		s[line[:i]] = v
	}
	return s, nil
}

func get(ctx context.Context, url string) (string, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	// Nobody compresses on loopback.
	r.Header.Set("Accept-Encoding", "identity")
	response, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(response.Body)
	if err := errors.Join(err, response.Body.Close()); err != nil {
		return "", fmt.Errorf("read %s: %w", url, err)
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s answers %s", url, response.Status)
	}
	return string(body), nil
}

// askCounts asks the StateService for the clients by status.
func (o *ours) askCounts(ctx context.Context) (c counts, err error) {
	conn, err := grpc.NewClient(o.state, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return c, fmt.Errorf("connect: %w", err)
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	rpc := presencev1.NewStateServiceClient(conn)
	var answer *presencev1.GetCountsResponse
	err = await(ctx, "exact counts", func(ctx context.Context) error {
		if answer, err = rpc.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: cluster}); err != nil {
			return fmt.Errorf("ask for the counts: %w", err)
		}
		if !answer.GetExact() {
			return errors.New("the counts are not exact yet")
		}
		return nil
	})
	if err != nil {
		return c, err
	}
	for _, n := range answer.GetCounts() {
		switch n.GetStatus() {
		case "online":
			c.online += n.GetClients()
		case "offline":
			c.offline += n.GetClients()
		default:
			c.unknown += n.GetClients()
		}
	}
	return c, nil
}

// rightCounts returns an error if the materializer counts other clients than the history has.
func (o *ours) rightCounts(ctx context.Context, want counts) error {
	have, err := o.askCounts(ctx)
	if err == nil && have != want {
		err = fmt.Errorf("%s counts %+v, and the history has %+v", o.name, have, want)
	}
	return err
}
