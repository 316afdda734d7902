package readertest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
)

// Open returns a reader that has folded exactly these facts, and owns every partition. It closes the reader when the test ends.
type Open func(t *testing.T, facts []presence.Fact, nodes []presence.NodeFact) query.StateReader

const (
	timeout = 10 * time.Second
	// short is how long a read waits for an offset that does not come.
	short = 200 * time.Millisecond
)

// IDs are client IDs that some layer could mistake for something else.
func IDs() []string {
	return []string{
		"dev1", "a/b", "a%2Fb", "explanation", "a/explanation", "sessions", "a/sessions", "+/#", "x#y", "VIN 1", "日本", "a:b", ".", "..", "batchGet", "x:batchGet", "status", "a/b/status", "?q=1", "%",
		"%FF", `"'<>^`, " ", "Dev1", "\ufffd", strings.Repeat("k", 65_535),
	}
}

// Connected returns the fact that a client of cluster "default" connected to node n1 just now.
func Connected(id string) presence.Fact {
	now := time.Now().UnixMilli()
	f := presence.Fact{
		Kind: presence.Opened, Cluster: "default", ClientID: id, Dialect: "emqx", Node: "n1", Connection: fmt.Sprint(now),
		TimeMS: now, ReceivedMS: now, ConnectedAtMS: now, Username: "fleet", Peer: "203.0.113.7:4711", ProtocolVersion: 5,
		KeepAliveS: presence.Some[uint32](61), CleanStart: presence.Some(false),
	}
	f.SetID()
	return f
}

// Disconnected returns the fact that the connection ended a second later.
func Disconnected(opened presence.Fact) presence.Fact {
	f := presence.Fact{
		Kind: presence.Closed, Cluster: opened.Cluster, ClientID: opened.ClientID, Dialect: opened.Dialect, Node: opened.Node,
		Connection: opened.Connection, TimeMS: opened.TimeMS + 1000, ReceivedMS: opened.ReceivedMS + 1000, ConnectedAtMS: opened.ConnectedAtMS,
		DisconnectedAtMS: opened.TimeMS + 1000, Reason: presence.ReasonKeepAliveTimeout, RawReason: "keepalive_timeout",
	}
	f.SetID()
	return f
}

// Healthy returns the facts of a node that is alive and a feed that has received everything since the node began.
func Healthy() []presence.NodeFact {
	now := time.Now().UnixMilli()
	return []presence.NodeFact{
		{Kind: presence.NodeStarted, Cluster: "default", Node: "n1", Dialect: "emqx", TimeMS: now - 60_000, ReceivedMS: now - 60_000,
			StartedMS: now - 60_000, StartedReceivedMS: now - 60_000},
		{Kind: presence.NodeAlive, Cluster: "default", Node: "n1", Dialect: "emqx", TimeMS: now, ReceivedMS: now, UptimeMS: presence.Some[int64](60_000)},
		{Kind: presence.Feed, Cluster: "default", Bridge: "b1", Dialect: "emqx", TimeMS: now, ReceivedMS: now,
			CompleteSinceMS: now - 120_000, LeaseMS: 600_000},
	}
}

// Run checks what a StateReader promises.
func Run(t *testing.T, open Open) {
	t.Run("every client ID is told apart", func(t *testing.T) { testIDs(t, open) })
	t.Run("an entry tells all that is known", func(t *testing.T) { testEntry(t, open) })
	t.Run("an explained entry has the facts", func(t *testing.T) { testEvidence(t, open) })
	t.Run("a client never seen is offline if the feed is complete, else unknown", func(t *testing.T) { testNeverSeen(t, open) })
	t.Run("clusters are told apart", func(t *testing.T) { testClusters(t, open) })
	t.Run("entries come with the freshness of their partitions", func(t *testing.T) { testFreshness(t, open) })
	t.Run("a minimum offset is waited for", func(t *testing.T) { testMinOffset(t, open) })
	t.Run("a cancelled read returns", func(t *testing.T) { testCancel(t, open) })
	t.Run("many may read at once", func(t *testing.T) { testConcurrent(t, open) })
	runLists(t, open)
}

func ask(t *testing.T, r query.StateReader, cluster string, ids ...string) *presencev1.GetStatesResponse {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	req := &presencev1.GetStatesRequest{Cluster: cluster}
	for _, id := range ids {
		req.Keys = append(req.Keys, &presencev1.StateKey{ClientId: id})
	}
	answer, err := r.GetStates(ctx, req)
	if err != nil {
		t.Fatalf("read %d clients: %v", len(ids), err)
	}
	if len(answer.GetNotOwned()) > 0 {
		t.Fatalf("keys %v are not owned", answer.GetNotOwned())
	}
	if len(answer.GetEntries()) != len(ids) {
		t.Fatalf("got %d entries for %d clients", len(answer.GetEntries()), len(ids))
	}
	for i, e := range answer.GetEntries() {
		if int(e.GetIndex()) != i {
			t.Fatalf("entry %d is about key %d: entries stand in the order of the request", i, e.GetIndex())
		}
		// A reader in the same process has a shorter way, which must lead to the same.
		near, ok := r.(interface {
			ReadStatus(cluster, clientID string) (status, belief presence.Presence, owned bool, err error)
		})
		if !ok {
			continue
		}
		status, belief, owned, err := near.ReadStatus(cluster, ids[i])
		if err != nil || !owned || status.String() != e.GetStatus() || belief.String() != e.GetBelief() {
			t.Errorf("%.20q: %v, belief %v, owned %v, %v; the entry has %s, belief %s", ids[i], status, belief, owned, err, e.GetStatus(), e.GetBelief())
		}
	}
	return answer
}

func testIDs(t *testing.T, open Open) {
	ids := IDs()
	var facts []presence.Fact
	for i, id := range ids {
		opened := Connected(id)
		facts = append(facts, opened)
		if i%2 == 1 {
			facts = append(facts, Disconnected(opened))
		}
	}
	r := open(t, facts, Healthy())
	// Asked in one read, each twice, and one by one: the same answers.
	for i, e := range ask(t, r, "default", append(ids, ids...)...).GetEntries() {
		want := "online"
		if i%len(ids)%2 == 1 {
			want = "offline"
		}
		if !e.GetFound() || e.GetStatus() != want || e.GetBelief() != want {
			t.Errorf("client %.20q: found %v, status %q, belief %q; want %q", ids[i%len(ids)], e.GetFound(), e.GetStatus(), e.GetBelief(), want)
		}
	}
	for i, id := range ids {
		if e := ask(t, r, "default", id).GetEntries()[0]; (e.GetStatus() == "online") != (i%2 == 0) {
			t.Errorf("client %.20q alone: status %q", id, e.GetStatus())
		}
	}
}

func testEntry(t *testing.T, open Open) {
	opened := Connected("dev1")
	closed := Disconnected(opened)
	r := open(t, []presence.Fact{opened, closed}, Healthy())
	e := ask(t, r, "default", "dev1").GetEntries()[0]
	c := e.GetConnection()
	for _, check := range []struct {
		what      string
		got, want any
	}{
		{"status", e.GetStatus(), "offline"},
		{"status_reason", e.GetStatusReason(), "closed"},
		{"since_ms", e.GetSinceMs(), closed.DisconnectedAtMS},
		{"node", e.GetNode(), "n1"},
		{"dialect", e.GetDialect(), "emqx"},
		{"reason", e.GetReason(), "keep_alive_timeout"},
		{"raw_reason", e.GetRawReason(), "keepalive_timeout"},
		{"previous_status", e.GetPreviousStatus(), "online"},
		{"transition_time_ms", e.GetTransitionTimeMs(), closed.TimeMS},
		{"event_offset", e.GetEventOffset(), int64(1)},
		{"received_ms", e.GetReceivedMs(), closed.ReceivedMS},
		{"connection.key", c.GetKey(), opened.Connection},
		{"connection.connected_at_ms", c.GetConnectedAtMs(), opened.ConnectedAtMS},
		{"connection.username", c.GetUsername(), "fleet"},
		{"connection.peer", c.GetPeer(), "203.0.113.7:4711"},
		{"connection.protocol_version", c.GetProtocolVersion(), uint32(5)},
		{"connection.keep_alive_s", c.GetKeepAliveS(), uint32(61)},
		{"connection.clean_start is known", c != nil && c.CleanStart != nil, true},
		{"connection.session_expiry_s is known", c != nil && c.SessionExpiryS != nil, false},
	} {
		if check.got != check.want {
			t.Errorf("%s is %v, want %v", check.what, check.got, check.want)
		}
	}
}

func testEvidence(t *testing.T, open Open) {
	opened := Connected("dev1")
	closed := Disconnected(opened)
	r := open(t, []presence.Fact{opened, opened, closed}, Healthy())
	if e := ask(t, r, "default", "dev1").GetEntries()[0]; e.GetEvidence() != nil {
		t.Errorf("nobody asked for the evidence %v", e.GetEvidence())
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	answer, err := r.GetStates(ctx, &presencev1.GetStatesRequest{
		Cluster: "default", Explain: true, Keys: []*presencev1.StateKey{{ClientId: "dev1"}, {ClientId: "never"}},
	})
	if err != nil || len(answer.GetEntries()) != 2 {
		t.Fatalf("answer %v, error %v", answer, err)
	}
	if e := answer.GetEntries()[1]; e.GetFound() || e.GetEvidence() != nil {
		t.Errorf("a client never seen: %v", e)
	}
	e := answer.GetEntries()[0].GetEvidence()
	state, err := presence.DecodeState(e.GetState())
	if err != nil || len(state.Nodes) != 1 || state.Nodes[0].Conn.Key != opened.Connection || !state.Nodes[0].Ended {
		t.Errorf("state %+v, error %v", state, err)
	}
	if e.GetLoggedFrom() != 0 || e.GetCut() || e.GetAllowanceMs() != presence.DefaultAllowanceMS {
		t.Errorf("logged from %d, cut %v, allowance %d ms", e.GetLoggedFrom(), e.GetCut(), e.GetAllowanceMs())
	}
	var got []string
	for _, f := range e.GetFacts() {
		got = append(got, fmt.Sprintf("%d %s %s %s %s %d %d %d %d %s %s", f.GetOffset(), f.GetType(), f.GetOutcome(), f.GetNode(), f.GetConnection(),
			f.GetTimeMs(), f.GetReceivedMs(), f.GetConnectedAtMs(), f.GetDisconnectedAtMs(), f.GetReason(), f.GetRawReason()))
	}
	on, off := fmt.Sprintf("n1 %s %d %d %d 0  ", opened.Connection, opened.TimeMS, opened.ReceivedMS, opened.ConnectedAtMS),
		fmt.Sprintf("n1 %s %d %d %d %d keep_alive_timeout keepalive_timeout", opened.Connection, closed.TimeMS, closed.ReceivedMS, opened.ConnectedAtMS, closed.DisconnectedAtMS)
	if want := []string{"0 connected applied " + on, "1 connected duplicate " + on, "2 disconnected applied " + off}; !slices.Equal(got, want) {
		t.Errorf("facts\n%q\nwant\n%q", got, want)
	}
	var changes []string
	for _, c := range e.GetTransitions() {
		changes = append(changes, fmt.Sprintf("%d %s %s", c.GetEventOffset(), c.GetPreviousStatus(), c.GetStatusReason()))
	}
	if want := []string{"0 offline connected", "2 online closed"}; !slices.Equal(changes, want) {
		t.Errorf("transitions %q, want %q", changes, want)
	}
}

func testNeverSeen(t *testing.T, open Open) {
	for _, c := range []struct {
		name   string
		nodes  []presence.NodeFact
		status string
	}{{"complete", Healthy(), "offline"}, {"not complete", nil, "unknown"}} {
		t.Run(c.name, func(t *testing.T) {
			r := open(t, []presence.Fact{Connected("other")}, c.nodes)
			e := ask(t, r, "default", "dev1").GetEntries()[0]
			if e.GetFound() || e.GetStatus() != c.status || e.GetBelief() != "offline" || e.GetStatusReason() != "never_seen" {
				t.Errorf("found %v, status %q, belief %q, reason %q; want %q", e.GetFound(), e.GetStatus(), e.GetBelief(), e.GetStatusReason(), c.status)
			}
		})
	}
}

func testClusters(t *testing.T, open Open) {
	r := open(t, []presence.Fact{Connected("dev1")}, Healthy())
	if e := ask(t, r, "elsewhere", "dev1").GetEntries()[0]; e.GetFound() {
		t.Errorf("a client of cluster default was found in cluster elsewhere, %s", e.GetStatus())
	}
}

func testFreshness(t *testing.T, open Open) {
	var facts []presence.Fact
	for i := range 50 {
		facts = append(facts, Connected(fmt.Sprint("dev", i)))
	}
	r := open(t, facts, Healthy())
	ids := make([]string, len(facts))
	for i := range facts {
		ids[i] = facts[i].ClientID
	}
	answer := ask(t, r, "default", ids...)
	applied := make(map[int32]int64)
	for _, p := range answer.GetPartitions() {
		if !p.GetReady() || p.GetEndOffset() != p.GetAppliedOffset() {
			t.Errorf("partition %d: ready %v, applied %d of %d", p.GetPartition(), p.GetReady(), p.GetAppliedOffset(), p.GetEndOffset())
		}
		if age := time.Since(time.UnixMilli(p.GetEndOffsetTimeMs())); age > time.Minute {
			t.Errorf("partition %d: the end offset is %v old; it is refreshed while idle too", p.GetPartition(), age)
		}
		applied[p.GetPartition()] = p.GetAppliedOffset()
	}
	for _, e := range answer.GetEntries() {
		if _, ok := applied[e.GetPartition()]; !ok {
			t.Errorf("client %s: no freshness of its partition %d", ids[e.GetIndex()], e.GetPartition())
		}
	}
	h := answer.GetHealth()
	if !h.GetComplete() || h.GetGap() != nil || len(h.GetNodes()) != 1 || len(h.GetFeeds()) != 1 || !h.GetFeeds()[0].GetConnected() {
		t.Errorf("health is %v", h)
	}
}

func testMinOffset(t *testing.T, open Open) {
	r := open(t, []presence.Fact{Connected("dev1")}, Healthy())
	read := func(within time.Duration, offset int64) error {
		ctx, cancel := context.WithTimeout(t.Context(), within)
		defer cancel()
		_, err := r.GetStates(ctx, &presencev1.GetStatesRequest{
			Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "dev1", MinOffset: &offset}},
		})
		return err
	}
	applied := ask(t, r, "default", "dev1").GetPartitions()[0].GetAppliedOffset()
	if err := read(timeout, applied-1); err != nil {
		t.Errorf("offset %d, of the last record applied: %v", applied-1, err)
	}
	// The reader's own answer and the end of the caller's deadline race each other.
	switch err := read(short, applied); status.Code(err) {
	case codes.DeadlineExceeded:
	case codes.FailedPrecondition:
		found := false
		for _, d := range status.Convert(err).Details() {
			if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == "MIN_OFFSET_NOT_REACHED" {
				found = true
			}
		}
		if !found {
			t.Errorf("offset %d: no ErrorInfo with reason MIN_OFFSET_NOT_REACHED: %v", applied, err)
		}
	default:
		t.Errorf("offset %d, of a record that does not exist: %v", applied, err)
	}
}

func testCancel(t *testing.T, open Open) {
	r := open(t, []presence.Fact{Connected("dev1")}, Healthy())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	offset := int64(1 << 40)
	_, err := r.GetStates(ctx, &presencev1.GetStatesRequest{
		Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "dev1", MinOffset: &offset}},
	})
	if err == nil {
		t.Error("a read whose caller has gone was answered")
	}
}

func testConcurrent(t *testing.T, open Open) {
	r := open(t, []presence.Fact{Connected("dev1")}, Healthy())
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), timeout)
				answer, err := r.GetStates(ctx, &presencev1.GetStatesRequest{
					Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "dev1"}, {ClientId: "dev2"}},
				})
				cancel()
				if err != nil || len(answer.GetEntries()) != 2 || answer.GetEntries()[0].GetStatus() != "online" {
					t.Errorf("answer %v, error %v", answer, err)
					return
				}
			}
		})
	}
	wg.Wait()
}
