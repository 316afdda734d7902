//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	schemathesisTimeout = 10 * time.Minute

	watchesTried = 150
	// watchRead is how long a stream is read.
	watchRead = 100 * time.Millisecond
)

// TestSchemathesis sends what /openapi.json allows, and what it does not, with an account that may do all and one that may do little.
func TestSchemathesis(t *testing.T) {
	t.Parallel()
	// Each refusal is a line of the audit log, at the level warn.
	a := newAllInOne(t, "--accounts-file", writeAccounts(t), "--log-level", "error")
	a.start(t)
	tgt := Target{MQTT: a.flag("mqtt-addr"), REST: a.flag("http-addr"), User: "admin", Password: accountsPassword}
	// The clients of the dictionary in schemathesis.toml.
	for _, id := range []string{"dev1", "a/b", "+", "%2F", "..", "ü", "<img src=x onerror=alert(1)>"} {
		connect(t, tgt, id)
	}
	t.Run("watch", func(t *testing.T) { watchesMatchDocument(t, tgt) })
	for _, account := range []string{"connect", "admin"} {
		t.Run(account, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), schemathesisTimeout)
			defer cancel()
			cmd := exec.CommandContext(ctx, "./schemathesis/run.sh", "http://"+tgt.REST, account, accountsPassword)
			cmd.WaitDelay = callTimeout
			// The same requests every time, unless others are asked for.
			cmd.Env = append([]string{"SCHEMATHESIS_SEED=1"}, os.Environ()...)
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("schemathesis: %v\n%s", err, out)
			}
			if !strings.Contains(string(out), "Operations:       12 selected / 13 total") {
				t.Errorf("not every call but the watch was tested:\n%s", out)
			}
			lines := strings.Split(strings.TrimSpace(string(out)), "\n")
			t.Log(lines[len(lines)-1])
		})
	}
	if log := a.log.String(); log != "" {
		t.Errorf("presence logged errors:\n%s", log)
	}
}

// watchesMatchDocument opens watches with values right and wrong. Schemathesis would wait for the end of each.
func watchesMatchDocument(t *testing.T, tgt Target) {
	documented := documentedStatuses(t, tgt)
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 1))
	seen := map[int]int{}
	for range watchesTried {
		query := watchQuery(r)
		code, err := watchOnce(t.Context(), tgt, query, documented)
		if err != nil {
			t.Errorf("seed %d: GET /v1/clients:watch?%s: %v", seed, query, err)
		}
		seen[code]++
	}
	if seen[http.StatusOK] == 0 || seen[http.StatusBadRequest] == 0 {
		t.Errorf("seed %d: the answers were %v; some streams and some refusals were expected", seed, seen)
	}
	t.Logf("answers by status: %v", seen)
}

// documentedStatuses returns those of the watch in /openapi.json.
func documentedStatuses(t *testing.T, tgt Target) []int {
	t.Helper()
	answer, err := http.Get("http://" + tgt.REST + "/openapi.json")
	must(t, err)
	var document struct {
		Paths map[string]json.RawMessage
	}
	must(t, errors.Join(json.NewDecoder(answer.Body).Decode(&document), answer.Body.Close()))
	var watch struct {
		Get struct{ Responses map[string]any }
	}
	must(t, json.Unmarshal(document.Paths["/v1/clients:watch"], &watch))
	var statuses []int
	for word := range watch.Get.Responses {
		status, err := strconv.Atoi(word)
		must(t, err)
		statuses = append(statuses, status)
	}
	return statuses
}

// watchQuery returns a query of which each value is right, wrong or absent.
func watchQuery(r *rand.Rand) string {
	texts := []string{"", "online", "dev1", "a/b", "\x00", "\xff", "ü", "%", strings.Repeat("x", 70_000), "-1", "0", "true", "5s", "1h", "1e999s", "null", "{}"}
	query := url.Values{}
	for name, right := range map[string][]string{
		"cluster": {"default", ""}, "status": {"online", "offline", "unknown", ""}, "node": {"n", ""}, "username": {"u", ""}, "client_id_prefix": {"dev", "a/", ""},
		"client_ids": {"dev1", "ü"}, "resume_token": {""}, "snapshot": {"true", "false"}, "debounce": {"1s", "0.5s", "600s"}, "heartbeat": {"1s", "300s"},
	} {
		switch n := r.IntN(20); {
		case n == 0:
			query.Add(name, texts[r.IntN(len(texts))])
		case n < 7:
			query.Add(name, right[r.IntN(len(right))])
		}
	}
	if r.IntN(20) == 0 {
		query.Add("other", "x")
	}
	return query.Encode()
}

// watchOnce opens a watch, reads it for a while and checks what comes.
func watchOnce(ctx context.Context, tgt Target, query string, documented []int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+tgt.REST+"/v1/clients:watch?"+query, nil)
	if err != nil {
		return 0, err
	}
	req.SetBasicAuth(tgt.User, tgt.Password)
	answer, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = answer.Body.Close() }() // it is left in the middle
	contentType := answer.Header.Get("Content-Type")
	switch {
	case !slices.Contains(documented, answer.StatusCode):
		return answer.StatusCode, fmt.Errorf("status %d is not in the document", answer.StatusCode)
	case answer.StatusCode != http.StatusOK:
		body, err := io.ReadAll(answer.Body)
		var e struct {
			Code    *int
			Message string
		}
		if err := errors.Join(err, json.Unmarshal(body, &e)); err != nil || e.Code == nil || e.Message == "" || contentType != "application/json" {
			return answer.StatusCode, fmt.Errorf("answer of %s: %.200s: %w", contentType, body, err)
		}
		return answer.StatusCode, nil
	case !strings.HasPrefix(contentType, "text/event-stream"):
		return answer.StatusCode, fmt.Errorf("the stream is of %s", contentType)
	}
	stop := time.AfterFunc(watchRead, cancel)
	defer stop.Stop()
	return answer.StatusCode, checkEvents(answer.Body)
}

// checkEvents reads server-sent events until the stream ends.
func checkEvents(body io.Reader) error {
	types := []string{"transition", "removed", "client", "snapshot_end", "skipped", "heartbeat"}
	lines := bufio.NewScanner(body)
	event := ""
	for lines.Scan() {
		field, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimPrefix(value, " ")
		switch field {
		case "event":
			if event = value; !slices.Contains(types, event) {
				return fmt.Errorf("event %q is not in the contract", event)
			}
		case "data":
			var message struct {
				Type string `json:"type"`
			}
			if err := json.Unmarshal([]byte(value), &message); err != nil || message.Type != event {
				return fmt.Errorf("event %s has data %.200s: %w", event, value, err)
			}
		case "id", "retry", "":
		default:
			return fmt.Errorf("line %.200q is none of a stream of events", lines.Text())
		}
	}
	return nil
}
