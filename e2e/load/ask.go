package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// batch is the most client IDs of one call.
	batch = 1_000
	// pollInterval is the time between two questions about clients that are not as awaited yet.
	pollInterval = 10 * time.Millisecond
	// minPoll is the same for one sample, where it is a tenth of the delay so far, or this.
	minPoll = 500 * time.Microsecond
	// inFlight bounds the samples whose answers are awaited at once.
	inFlight = 256
)

// asker asks over REST.
type asker struct {
	t      target
	client *http.Client
}

func newAsker(t target) *asker {
	return &asker{t: t, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: inFlight}, Timeout: ioTimeout}}
}

// call makes a call and reads its answer.
func (a *asker) call(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, a.t.rest+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth(a.t.user, a.t.password)
	r, err := a.client.Do(req)
	if err != nil {
		return nil, err
	}
	answer, err := io.ReadAll(r.Body)
	if err := errors.Join(err, r.Body.Close()); err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if r.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s %s answers %s %.200s", method, path, r.Status, answer)
	}
	return answer, nil
}

// check makes one call, so that a wrong account fails at once.
func (a *asker) check(ctx context.Context) error {
	_, err := a.online(ctx, "load-check")
	return err
}

func (a *asker) online(ctx context.Context, id string) (bool, error) {
	answer, err := a.call(ctx, http.MethodGet, "/client-id/"+id+"/status", nil)
	return string(answer) == `{"online":true}`, err
}

// differing returns those of up to 1,000 clients whose status is another.
func (a *asker) differing(ctx context.Context, ids []string, status string) ([]string, error) {
	body, err := json.Marshal(map[string][]string{"client_ids": ids})
	if err != nil {
		return nil, err
	}
	answer, err := a.call(ctx, http.MethodPost, "/v1/clients:batchGet", body)
	if err != nil {
		return nil, err
	}
	var r struct {
		Clients []struct {
			ClientID string `json:"client_id"`
			Status   string `json:"status"`
		} `json:"clients"`
	}
	if err := json.Unmarshal(answer, &r); err != nil {
		return nil, fmt.Errorf("read the answer of batchGet: %w", err)
	}
	if len(r.Clients) != len(ids) {
		return nil, fmt.Errorf("batchGet answers for %d clients in place of %d", len(r.Clients), len(ids))
	}
	var differing []string
	for i, c := range r.Clients {
		if c.ClientID != ids[i] {
			return nil, fmt.Errorf("batchGet answers for client %q in place of %q", c.ClientID, ids[i])
		}
		if c.Status != status {
			differing = append(differing, c.ClientID)
		}
	}
	return differing, nil
}

// await asks until every client has the status.
func (a *asker) await(ctx context.Context, ids []string, status string) error {
	for group := range slices.Chunk(ids, batch) {
		for left := group; ; {
			var err error
			if left, err = a.differing(ctx, left, status); err != nil {
				if ctx.Err() != nil {
					err = fmt.Errorf("%d clients of %d, such as %s, are not %s: %w", len(left), len(group), group[0], status, err)
				}
				return err
			}
			if len(left) == 0 {
				break
			}
			if err := until(ctx, time.Now().Add(pollInterval)); err != nil {
				return fmt.Errorf("%d clients of %d, such as %s, are not %s: %w", len(left), len(group), left[0], status, err)
			}
		}
	}
	return nil
}

// count asks once and returns how many clients do not have the status.
func (a *asker) count(ctx context.Context, ids []string, status string) (int, error) {
	n := 0
	for group := range slices.Chunk(ids, batch) {
		differing, err := a.differing(ctx, group, status)
		if err != nil {
			return 0, err
		}
		n += len(differing)
	}
	return n, nil
}

// delays are durations, sorted.
type delays []time.Duration

// at returns the q-quantile: the smallest delay that is not exceeded by that share.
func (d delays) at(q float64) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return d[max(int(math.Ceil(q*float64(len(d))))-1, 0)]
}

// String tells the quantiles.
func (d delays) String() string {
	tenths := func(t time.Duration) string { return fmt.Sprintf("%.1f ms", float64(t.Microseconds())/1000) }
	return fmt.Sprintf("p50 %s, p99 %s, max %s", tenths(d.at(0.5)), tenths(d.at(0.99)), tenths(d.at(1)))
}

// measure connects the first clients at a rate, and asks for each on its own until it is online. The delay counts from before the connection
// is opened to the answer that says online, and is up to a tenth too long.
func measure(ctx context.Context, f *fleet, a *asker, samples, rate int) (delays, error) {
	var mu sync.Mutex
	var all delays
	began := time.Now()
	err := each(ctx, 0, samples, inFlight, func(ctx context.Context, i int) error {
		if err := until(ctx, began.Add(time.Duration(i)*time.Second/time.Duration(rate))); err != nil {
			return err
		}
		start := time.Now()
		if err := f.open(ctx, i); err != nil {
			return err
		}
		for {
			online, err := a.online(ctx, f.ids[i])
			if err != nil {
				return err
			}
			if online {
				break
			}
			// Later answers are asked for less often, so that the questions do not become the load.
			if err := until(ctx, time.Now().Add(max(time.Since(start)/10, minPoll))); err != nil {
				return fmt.Errorf("client %s is not online: %w", f.ids[i], err)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		all = append(all, time.Since(start))
		return nil
	})
	slices.Sort(all)
	return all, err
}
