//go:build e2e

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/e2e/chaos"
	"github.com/mqtt-presence/presence/libs/eventlog"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// askEvery is the time between two questions of one asker.
	askEvery = 50 * time.Millisecond
	// askBatch is how many clients are asked for at once, every fourth time.
	askBatch = 5
)

// inquiry asks query services about clients all the time, and keeps what they answer.
type inquiry struct {
	stop context.CancelFunc
	done sync.WaitGroup

	mu       sync.Mutex
	answers  []chaos.Answer
	failures []failure
	asked    int
	slowest  time.Duration
	slow     string
}

// failure is a question without an answer.
type failure struct {
	from        string // the query service
	by          string // the transport
	sent, ended time.Time
	err         error
}

func startInquiry(t *testing.T, askers map[string]*asker, clients []string, seed uint64) *inquiry {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	q := &inquiry{stop: cancel}
	t.Cleanup(q.finish)
	n := uint64(0)
	for name, a := range askers {
		for _, by := range []string{"gRPC", "REST"} {
			n++
			rng := rand.New(rand.NewPCG(seed, 1_000+n))
			q.done.Go(func() { q.run(ctx, a, name, by, byPartition(clients), rng) })
		}
	}
	return q
}

func (q *inquiry) finish() {
	q.stop()
	q.done.Wait()
}

func (q *inquiry) run(ctx context.Context, a *asker, name, by string, parts [][]string, rng *rand.Rand) {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		ids := make([]string, 1)
		if i%4 == 0 {
			ids = make([]string, askBatch)
		}
		part := parts[rng.IntN(len(parts))]
		for j := range ids {
			ids[j] = part[rng.IntN(len(part))]
		}
		sent := time.Now()
		answers, err := a.askOnce(ctx, by, ids)
		if ctx.Err() != nil {
			return
		}
		q.keep(name, by, sent, answers, err)
	}
}

func (q *inquiry) keep(name, by string, sent time.Time, answers []*presencev1.Client, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asked++
	if err != nil {
		q.failures = append(q.failures, failure{name, by, sent, time.Now(), err})
		return
	}
	if took := time.Since(sent); took > q.slowest {
		q.slowest, q.slow = took, fmt.Sprintf("%s by %s at %s", name, by, sent.UTC().Format(time.TimeOnly))
	}
	for _, c := range answers {
		a := chaos.StatedBy(c, name+" by "+by, sent)
		a.Batch = len(answers) > 1
		q.answers = append(q.answers, a)
	}
}

// askOnce asks by one transport, for clients of one partition, so that the freshness of a batch is that of each. For one client it asks with
// GetClient, which has no answer for a client never seen.
func (a *asker) askOnce(ctx context.Context, by string, ids []string) ([]*presencev1.Client, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	switch {
	case len(ids) > 1:
		return a.batchOf(ctx, by, ids)
	case by == "gRPC":
		c, err := a.rpc.GetClient(a.authorized(ctx), &presencev1.GetClientRequest{ClientId: ids[0]})
		if status.Code(err) == codes.NotFound {
			return nil, nil
		}
		return []*presencev1.Client{c}, err
	}
	c := &presencev1.Client{}
	code, err := a.rest(ctx, http.MethodGet, "/v1/clients/"+segment(ids[0]), nil, c)
	switch {
	case err == nil && code == http.StatusNotFound:
		return nil, nil
	case err == nil && code != http.StatusOK:
		err = fmt.Errorf("GET /v1/clients/%s answers %d", ids[0], code)
	}
	return []*presencev1.Client{c}, err
}

// batchOf asks for clients of one partition, and gives each the freshness of the batch.
func (a *asker) batchOf(ctx context.Context, by string, ids []string) ([]*presencev1.Client, error) {
	r := &presencev1.BatchGetClientsResponse{}
	var err error
	if by == "gRPC" {
		r, err = a.rpc.BatchGetClients(a.authorized(ctx), &presencev1.BatchGetClientsRequest{ClientIds: ids})
	} else {
		var body []byte
		if body, err = json.Marshal(map[string][]string{"client_ids": ids}); err != nil {
			return nil, err
		}
		var code int
		if code, err = a.rest(ctx, http.MethodPost, "/v1/clients:batchGet", body, r); err == nil && code != http.StatusOK {
			err = fmt.Errorf("POST /v1/clients:batchGet answers %d", code)
		}
	}
	if err != nil {
		return nil, err
	}
	for _, c := range r.GetClients() {
		c.Freshness = r.GetFreshness()
	}
	return inOrder(ids, r.GetClients())
}

// newChaosAsker is an asker that connects again at once where its service was away.
func newChaosAsker(t *testing.T, rest, rpc string) *asker {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+rpc, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: backoff.Config{BaseDelay: askEvery, Multiplier: 1, MaxDelay: askEvery}, MinConnectTimeout: time.Second,
	}))
	must(t, err)
	transport := &http.Transport{}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		_ = conn.Close()
	})
	return &asker{
		base: "http://" + rest, authorization: "Basic " + base64.StdEncoding.EncodeToString([]byte("dev:dev-only-change-me")),
		http: &http.Client{Transport: transport, Timeout: callTimeout}, rpc: presencev1.NewPresenceServiceClient(conn),
	}
}

// errLagging is returned while answers have not caught up.
var errLagging = errors.New("answers lag")

// settled returns the answers for all clients once they have everything that Kafka had.
func (a *asker) settled(ctx context.Context, ids []string, from string) ([]chaos.Answer, error) {
	const most = 1_000
	var answers []chaos.Answer
	for _, part := range byPartition(ids) {
		for chunk := range slices.Chunk(part, most) {
			sent := time.Now()
			clients, err := a.batchOf(ctx, "gRPC", chunk)
			if err != nil {
				return nil, err
			}
			if f := clients[0].GetFreshness(); f == nil || f.LagRecords == nil || f.GetLagRecords() > 0 {
				return nil, fmt.Errorf("%w: %v", errLagging, clients[0])
			}
			for _, c := range clients {
				answers = append(answers, chaos.StatedBy(c, from, sent))
			}
		}
	}
	return answers, nil
}

// byPartition groups client IDs.
func byPartition(ids []string) [][]string {
	parts := make([][]string, chaosPartitions)
	for _, id := range ids {
		p := eventlog.Partition(eventlog.ClientKey(cluster, id), chaosPartitions)
		parts[p] = append(parts[p], id)
	}
	return parts
}

// sameReplicas wants equal states in all replicas, partition by partition.
func (a *asker) sameReplicas(ctx context.Context) error {
	r, err := a.rpc.CompareReplicas(a.authorized(ctx), &presencev1.CompareReplicasRequest{})
	if err == nil && (!r.GetOk() || len(r.GetComparisons()) != chaosPartitions) {
		err = fmt.Errorf("the replicas differ: %v", r)
	}
	return err
}
