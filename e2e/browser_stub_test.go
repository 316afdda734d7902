//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

const (
	stubUser, stubPassword = "reader", "pass:wörd ✓"
	// hostile is what a client, a node or a user may call itself: markup, an attribute's end, and a mark that turns the direction of text.
	hostile = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>\u202e${alert(3)}\n"
)

// stub is a query service whose page is real and whose answers are the test's: what no broker says in a test, such as a stream that skips, or every
// text hostile.
type stub struct {
	url string

	mu      sync.Mutex
	fail    map[string]int // status by path
	answers map[string]proto.Message
	asked   []*http.Request
	streams []chan *presencev1.WatchClientsResponse
}

func startStub(t *testing.T) *stub {
	t.Helper()
	cfg := query.DefaultConfig()
	cfg.HTTPAddr, cfg.GRPCAddr, cfg.AccountsFile = "127.0.0.1:0", "127.0.0.1:0", filepath.Join(t.TempDir(), "accounts")
	must(t, os.WriteFile(cfg.AccountsFile, []byte("reader:$2a$04$GRWdR9u4M8eLKhMi0PZpoeOG6ff.0cuyK2j0H32eOd1cJOZ4YvvbO:read\n"), 0o600))
	inner, err := query.New(cfg, readertest.NewFake(1), slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	must(t, err)
	must(t, inner.Listen())
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- inner.Run(ctx) }()
	service := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: inner.HTTPAddr().String()})
	st := &stub{fail: map[string]int{}, answers: map[string]proto.Message{}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/") {
			if fail := st.call(w, r); fail != http.StatusUnauthorized {
				return
			}
		}
		service.ServeHTTP(w, r)
	}))
	st.url = server.URL
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		stop()
		if err := <-done; err != nil {
			t.Errorf("the query service ended with %v", err)
		}
	})
	return st
}

// put sets the answer of a path below /v1.
func (st *stub) put(path string, m proto.Message) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.answers["/v1/"+path] = m
}

// breaks makes a path answer an error; 0 mends it.
func (st *stub) breaks(path string, status int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.fail["/v1/"+path] = status
}

// send hands a message to all streams that are open.
func (st *stub) send(m *presencev1.WatchClientsResponse) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, s := range st.streams {
		s <- m
	}
}

// cut ends all streams.
func (st *stub) cut() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, s := range st.streams {
		close(s)
	}
	st.streams = nil
}

// watches returns the resume tokens that streams were asked with.
func (st *stub) watches() []string {
	st.mu.Lock()
	defer st.mu.Unlock()
	var tokens []string
	for _, r := range st.asked {
		if strings.HasSuffix(r.URL.Path, ":watch") {
			tokens = append(tokens, r.URL.Query().Get("resume_token"))
		}
	}
	return tokens
}

// call answers, but for credentials that are wrong: these are refused by the service itself.
func (st *stub) call(w http.ResponseWriter, r *http.Request) (status int) {
	st.mu.Lock()
	st.asked = append(st.asked, r)
	path := r.URL.Path
	fail, answer := st.fail[path], st.answers[path]
	st.mu.Unlock()
	user, password, ok := r.BasicAuth()
	switch {
	case !ok || user != stubUser || password != stubPassword:
		fail = http.StatusUnauthorized
	case answer == nil && fail == 0 && path != "/v1/clients:watch":
		fail = http.StatusNotFound
	}
	switch fail {
	case 0:
	case http.StatusUnauthorized:
		return fail
	default:
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Retry-After", "2")
		w.WriteHeader(fail)
		fmt.Fprintf(w, `{"code":%d,"message":"stubbed %d","details":[]}`, fail, fail)
		return fail
	}
	if answer == nil {
		st.stream(w, r)
		return http.StatusOK
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(restJSON(answer))
	return http.StatusOK
}

func (st *stub) stream(w http.ResponseWriter, r *http.Request) {
	messages := make(chan *presencev1.WatchClientsResponse, 1000)
	st.mu.Lock()
	st.streams = append(st.streams, messages)
	st.mu.Unlock()
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w).Flush
	_, _ = fmt.Fprint(w, ": hello\n\n")
	_ = flush()
	for {
		select {
		case <-r.Context().Done():
			st.mu.Lock()
			st.streams = slices.DeleteFunc(st.streams, func(c chan *presencev1.WatchClientsResponse) bool { return c == messages })
			st.mu.Unlock()
			return
		case m, more := <-messages:
			if !more {
				return
			}
			_, _ = fmt.Fprintf(w, "id: %s\nevent: %s\ndata: %s\n\n", m.GetResumeToken(), m.GetType(), restJSON(m))
			_ = flush()
		}
	}
}

func restJSON(m proto.Message) []byte {
	body, err := protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}.Marshal(m)
	if err != nil {
		return []byte(err.Error())
	}
	return body
}

// before is a time so long ago.
func before(d time.Duration) *timestamppb.Timestamp { return timestamppb.New(time.Now().Add(-d)) }

// fleetOf fills the stub with a cluster: nodes with clients, one client with a history, all texts through a function.
func fleetOf(st *stub, id string, text func(string) string) {
	fresh := &presencev1.Freshness{AppliedOffset: 41, AppliedTime: before(2 * time.Second), LagRecords: new(int64), LagMs: new(int64), Feed: "ok", Node: "ok"}
	counts := func(online, offline, unknown int64) *presencev1.StatusCounts {
		return &presencev1.StatusCounts{Online: online, Offline: offline, Unknown: unknown, Total: online + offline + unknown}
	}
	one, two, three := text("emqx@10.0.3.11"), text("emqx@10.0.3.12"), text("emqx@10.0.3.13")
	st.put("stats", &presencev1.Stats{
		Cluster: "default", Clients: counts(18_204, 3_911, 27), Exact: true, Freshness: fresh,
		Nodes:    []*presencev1.NodeCounts{{Node: "", Clients: counts(0, 12, 0)}, {Node: one, Clients: counts(9_120, 1_900, 0)}, {Node: two, Clients: counts(9_084, 1_999, 0)}, {Node: three, Clients: counts(0, 0, 27)}},
		Clusters: []*presencev1.ClusterCounts{{Cluster: "default", Clients: counts(18_204, 3_911, 27)}, {Cluster: "plant-b", Clients: counts(7, 1, 0)}},
	})
	st.put("nodes", &presencev1.ListNodesResponse{
		Cluster: "default", Complete: true, Freshness: fresh,
		Nodes: []*presencev1.Node{
			{Node: one, State: "ok", StartedAt: before(50 * time.Hour), AliveAt: before(3 * time.Second)}, {Node: two, State: "ok", StartedAt: before(3 * time.Hour), AliveAt: before(2 * time.Second)},
			{Node: three, State: "silent", StartedAt: before(90 * time.Hour), AliveAt: before(7 * time.Minute), SilentAt: before(6 * time.Minute)},
		},
		Feeds: []*presencev1.Feed{{Bridge: text("bridge-1"), State: "ok", AliveAt: before(time.Second), LeaseMs: 15_000}, {Bridge: text("bridge-2"), State: "disconnected", AliveAt: before(time.Minute), LeaseMs: 15_000, DroppedCount: 12}},
	})
	keepAlive, delay, expiry, clean := uint32(60), uint32(90), uint32(7200), false
	path := "clients/" + id
	st.put(path, &presencev1.Client{
		ClientId: id, Cluster: "default", Status: "online", StatusReason: "connected", Belief: "online", Since: before(25 * time.Minute), DetectionDelayS: &delay, Freshness: fresh,
		LastTransition: &presencev1.Transition{PreviousStatus: "offline", Time: before(25 * time.Minute), EventOffset: 40, NodeEventOffset: -1},
		Connection: &presencev1.ClientConnection{
			Key: text("AAYTH8aXw3v0RQAAEFQAAA"), Node: one, ConnectedAt: before(25 * time.Minute), Username: text("fleet"), Peer: text("203.0.113.7:51034"), Transport: "tcp", ProtocolVersion: 5,
			KeepAliveS: &keepAlive, CleanStart: &clean, SessionExpiryS: &expiry,
		},
	})
	st.put(path+"/sessions", &presencev1.ListSessionsResponse{ClientId: id, Cluster: "default", Freshness: fresh, CompleteSince: before(26 * time.Hour), Sessions: []*presencev1.Session{
		{State: "open", Node: one, Key: text("k5"), ConnectedAt: before(25 * time.Minute), Username: text("fleet"), Peer: text("203.0.113.7:51034"), Transport: "tcp", ProtocolVersion: 5},
		{State: "closed", Node: two, Key: text("k4"), ConnectedAt: before(3 * time.Hour), DisconnectedAt: before(55 * time.Minute), End: "stated", Reason: "keep_alive_timeout", RawReason: text("keepalive_timeout"), Username: text("fleet"), Peer: text("203.0.113.7:49152"), Transport: "tcp", ProtocolVersion: 5},
		{State: "unknown", Node: three, Key: text("k3"), ConnectedAt: before(5 * time.Hour), DisconnectedAt: before(4 * time.Hour), End: "inferred", Reason: "node_silent", Username: text("fleet"), Transport: "websocket", ProtocolVersion: 4},
		{State: "closed", Node: one, Key: text("k2"), ConnectedAt: before(9 * time.Hour), DisconnectedAt: before(5 * time.Hour), End: "inferred", Reason: "superseded", Username: text("fleet"), Transport: "tcp", ProtocolVersion: 5},
		{State: "closed", Node: one, Key: text("k1"), ConnectedAt: before(20 * time.Hour), DisconnectedAt: before(10 * time.Hour), End: "stated", Reason: "normal", RawReason: text("normal"), Username: text("fleet"), Transport: "tcp", ProtocolVersion: 5},
	}})
	key := text("k4")
	st.put(path+"/explanation", &presencev1.Explanation{
		ClientId: id, Cluster: "default", Status: "online", StatusReason: "connected", Belief: "online", Since: before(25 * time.Minute), Freshness: fresh,
		Rule:        "The newest connection has no end: nothing that the brokers sent ends it. The newest connection to node " + one + " opened 25 minutes ago; no disconnect is known to be its own.",
		Connections: []*presencev1.ExplainedConnection{{Node: one, Current: true, Summary: "The newest connection to node " + one + " opened 25 minutes ago; no disconnect is known to be its own."}},
		Facts: []*presencev1.ExplainedFact{
			{Offset: 40, Type: "connected", Outcome: "applied", Explanation: "It changed what is known of the client. It is the newest connection to its node.", Node: one, Time: before(25 * time.Minute), Received: before(25 * time.Minute)},
			{Offset: 39, Type: "disconnected", Outcome: "applied", Explanation: "It changed what is known of the client.", Node: two, Key: &key, Time: before(55 * time.Minute), Received: before(55 * time.Minute), Reason: proto.String("keep_alive_timeout"), RawReason: proto.String(text("keepalive_timeout"))},
		},
		Transitions: []*presencev1.ExplainedTransition{{Status: "online", PreviousStatus: "offline", Belief: "online", StatusReason: "connected", EventOffset: 40, NodeEventOffset: -1, Cause: "client_fact"}},
		Nodes:       []*presencev1.ExplainedNode{{Node: one, State: "ok", Summary: "It is heard of, and has not restarted since.", AliveAt: before(3 * time.Second)}},
		Feed:        &presencev1.ExplainedFeed{State: "ok", Summary: "The feed is up.", Complete: true}, FactsNote: text("Only the latest facts are kept."),
	})
	st.put("clients", &presencev1.ListClientsResponse{Exact: true, Freshness: fresh, NextPageToken: "more", Clients: []*presencev1.Client{
		{ClientId: id, Status: "online"}, {ClientId: id + text("-2"), Status: "offline"}, {ClientId: id + text("-3"), Status: "unknown"}}})
}

// transitionOf is a message of a stream.
func transitionOf(id, status, previous, token string, text func(string) string) *presencev1.WatchClientsResponse {
	return &presencev1.WatchClientsResponse{Type: "transition", ResumeToken: token, Transition: &presencev1.ClientTransition{
		ClientId: id, Cluster: "default", Status: status, PreviousStatus: previous, StatusReason: map[string]string{"online": "connected", "offline": "closed"}[status], Belief: status,
		Since: before(0), Time: before(0), Node: text("emqx@10.0.3.11"), Username: text("fleet"), Peer: text("203.0.113.7:51034"), CloseReason: "connection_lost", CloseRawReason: text("sock_closed"), EventOffset: 50, NodeEventOffset: -1,
	}}
}
