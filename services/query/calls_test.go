package query_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// smallFleet has clients of every status on three nodes, of which one is silent and one was never heard of, in a gap that is over.
func smallFleet() *readertest.Fake {
	fake := readertest.NewFake(2)
	silent := started("n2", 0)
	silent.Kind, silent.ReceivedMS = presence.NodeSilent, t0+60_000
	fake.ApplyNodes(started("n1", 0), started("n2", 0), silent, feed(-10))
	client := func(id, node, username string, second int64) presence.Fact {
		f := emqxOpened(node, "k-"+id, second)
		f.Cluster, f.ClientID, f.Username, f.Peer, f.ProtocolVersion = "default", id, username, "203.0.113.7:4711", 5
		f.KeepAliveS, f.ReceivedMS = presence.Some[uint32](60), f.TimeMS+12
		return f
	}
	on, off := client("dev1", "n1", "fleet", 10), client("a/b", "n1", "fleet", 20)
	first := client("dev2", "n1", "", 5)
	other := client("dev1", "n1", "lab", 7)
	other.Cluster = "other"
	closed := func(f presence.Fact, second int64) presence.Fact {
		f = emqxClosed(f, second, presence.ReasonKeepAliveTimeout, "keepalive_timeout")
		f.ReceivedMS = f.TimeMS + 12
		return f
	}
	fake.Apply(on, off, closed(off, 50), first, closed(first, 15), client("dev2", "n3", "lab", 30), client("dev3", "n2", "lab", 40), other)
	return fake
}

func TestAnswersOfTheCalls(t *testing.T) {
	s := serve(t, testConfig(t), smallFleet())
	at := func(second int64) *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: t0/1000 + second} }
	ctx := func() context.Context { return as(t, "admin") }
	for _, c := range []struct {
		name, path string
		rpc        func() (proto.Message, error)
	}{
		{"clients", "/v1/clients", func() (proto.Message, error) { return s.rpc.ListClients(ctx(), &presencev1.ListClientsRequest{}) }},
		{"clients_filtered", "/v1/clients?status=offline&node=n1&cluster=default", func() (proto.Message, error) {
			return s.rpc.ListClients(ctx(), &presencev1.ListClientsRequest{Status: "offline", Node: "n1", Cluster: "default"})
		}},
		{"clients_since", "/v1/clients?since_from=2025-10-09T08:53:35Z&client_id_prefix=dev", func() (proto.Message, error) {
			return s.rpc.ListClients(ctx(), &presencev1.ListClientsRequest{SinceFrom: at(35 - 20), ClientIdPrefix: "dev"})
		}},
		{"clients_none", "/v1/clients?username=nobody", func() (proto.Message, error) {
			return s.rpc.ListClients(ctx(), &presencev1.ListClientsRequest{Username: "nobody"})
		}},
		{"sessions", "/v1/clients/dev2/sessions", func() (proto.Message, error) {
			return s.rpc.ListSessions(ctx(), &presencev1.ListSessionsRequest{ClientId: "dev2"})
		}},
		{"sessions_at", "/v1/clients/a%2Fb/sessions?at=2025-10-09T08:53:45.5%2B00:00", func() (proto.Message, error) {
			return s.rpc.ListSessions(ctx(), &presencev1.ListSessionsRequest{ClientId: "a/b", At: &timestamppb.Timestamp{Seconds: t0/1000 + 25, Nanos: 500_000_000}})
		}},
		{"stats", "/v1/stats", func() (proto.Message, error) { return s.rpc.GetStats(ctx(), &presencev1.GetStatsRequest{}) }},
		{"stats_skip_usernames", "/v1/stats?skip_usernames=true&cluster=other", func() (proto.Message, error) {
			return s.rpc.GetStats(ctx(), &presencev1.GetStatsRequest{SkipUsernames: true, Cluster: "other"})
		}},
		{"nodes", "/v1/nodes", func() (proto.Message, error) { return s.rpc.ListNodes(ctx(), &presencev1.ListNodesRequest{}) }},
		{"nodes_none", "/v1/nodes?cluster=elsewhere", func() (proto.Message, error) {
			return s.rpc.ListNodes(ctx(), &presencev1.ListNodesRequest{Cluster: "elsewhere"})
		}},
		{"indexes", "", func() (proto.Message, error) { return s.rpc.CheckIndexes(ctx(), &presencev1.CheckIndexesRequest{}) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			overGRPC, err := c.rpc()
			if err != nil {
				t.Fatal(err)
			}
			a := answer{}
			if c.path == "" {
				a = s.do("POST", "/v1/indexes:check", "admin", "{}")
			} else {
				a = s.do("GET", c.path, "read", "")
			}
			overREST := overGRPC.ProtoReflect().New().Interface()
			if err := protojson.Unmarshal([]byte(a.body), overREST); a.status != http.StatusOK || err != nil {
				t.Fatalf("%d %.300s: %v", a.status, a.body, err)
			}
			if !proto.Equal(overREST, overGRPC) {
				t.Errorf("REST %v\ngRPC %v", overREST, overGRPC)
			}
			golden(t, filepath.Join("testdata", "calls", c.name+".json"), a.body)
		})
	}
}

// pagesOf reads a list over REST to its end.
func pagesOf(t *testing.T, s *server, query string) (ids []string, pages int) {
	t.Helper()
	token := ""
	for range 1000 {
		a := s.do("GET", "/v1/clients?"+query+"&page_token="+url.QueryEscape(token), "read", "")
		var page struct {
			Clients []struct {
				ClientID string `json:"client_id"`
			} `json:"clients"`
			Next string `json:"next_page_token"`
		}
		if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != 200 {
			t.Fatalf("%d %.300s: %v", a.status, a.body, err)
		}
		pages++
		for _, c := range page.Clients {
			ids = append(ids, c.ClientID)
		}
		if token = page.Next; token == "" {
			return ids, pages
		}
	}
	t.Fatal("the list has no end")
	return nil, 0
}

// Every client ID is listed once, also where a page is cut before it is full, and in front of an ID of 64 KiB.
func TestPagesOfEveryClientID(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	want := readertest.IDs()
	for _, id := range want {
		fake.Apply(readertest.Connected(id))
	}
	slices.Sort(want)
	s := serve(t, testConfig(t), fake)
	for _, c := range []struct {
		query string
		look  int
		pages int
	}{{"page_size=3", 0, (len(want) + 2) / 3}, {"page_size=1000", 0, 1}, {"page_size=3", 2, (len(want) + 1) / 2}} {
		fake.Look(c.look)
		if got, pages := pagesOf(t, s, c.query); !slices.Equal(got, want) || pages != c.pages {
			t.Errorf("%s, looking at %d rows: %d clients on %d pages, want %d on %d", c.query, c.look, len(got), pages, len(want), c.pages)
		}
	}
	// A filter that selects nobody for many rows: pages are empty, but not the last ones.
	fake.Look(2)
	if got, pages := pagesOf(t, s, "client_id_prefix=dev1"); !slices.Equal(got, []string{"dev1"}) || pages < 2 {
		t.Errorf("%q on %d pages", got, pages)
	}
}

// What is written between two pages neither hides nor repeats a client that does not change.
func TestPagesWhileOthersChange(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	var steady []string
	for i := range 50 {
		steady = append(steady, fmt.Sprint("steady", i))
		fake.Apply(readertest.Connected(steady[i]))
	}
	slices.Sort(steady)
	s := serve(t, testConfig(t), fake)
	random := rand.New(rand.NewPCG(1, 2))
	var got []string
	token := ""
	for {
		a, err := s.rpc.ListClients(as(t, "read"), &presencev1.ListClientsRequest{PageSize: int32(1 + random.IntN(7)), PageToken: token, Status: "online"})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range a.GetClients() {
			if strings.HasPrefix(c.GetClientId(), "steady") {
				got = append(got, c.GetClientId())
			}
		}
		for range 10 {
			f := readertest.Connected(fmt.Sprint([]string{"s", "steadx", "z"}[random.IntN(3)], random.IntN(40)))
			fake.Apply(f)
			if random.IntN(2) == 0 {
				fake.Apply(readertest.Disconnected(f))
			}
		}
		if token = a.GetNextPageToken(); token == "" {
			break
		}
	}
	if !slices.Equal(got, steady) {
		t.Errorf("%q\nwant %q", got, steady)
	}
}

func TestPageTokenBelongsToItsList(t *testing.T) {
	s := serve(t, testConfig(t), smallFleet())
	first, err := s.rpc.ListClients(as(t, "read"), &presencev1.ListClientsRequest{PageSize: 1})
	if err != nil || first.GetNextPageToken() == "" {
		t.Fatalf("%v, %v", first, err)
	}
	token := first.GetNextPageToken()
	for _, req := range []*presencev1.ListClientsRequest{
		{Status: "online"}, {Node: "n1"}, {Username: "fleet"}, {ClientIdPrefix: "d"}, {SinceFrom: &timestamppb.Timestamp{}}, {SinceBefore: timestamppb.Now()}, {Cluster: "other"},
	} {
		req.PageToken = token
		if _, err := s.rpc.ListClients(as(t, "read"), req); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "page_token") {
			t.Errorf("%v: %v", req, err)
		}
	}
	if _, err := s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{PageToken: token}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("statistics: %v", err)
	}
	// Naming the default cluster, or another size, is the same list.
	if a, err := s.rpc.ListClients(as(t, "read"), &presencev1.ListClientsRequest{PageToken: token, Cluster: "default", PageSize: 9}); err != nil || len(a.GetClients()) != 3 {
		t.Errorf("%v, %v", a, err)
	}
}

func TestUsernamesAreRanked(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	type count struct {
		name string
		n    int64
	}
	var want []count
	for i := range 60 {
		c := count{fmt.Sprintf("user%02d", i), int64(1 + i*7%5)}
		want = append(want, c)
		for j := range c.n {
			f := readertest.Connected(fmt.Sprintf("%s-%d", c.name, j))
			f.Username = c.name
			fake.Apply(f)
		}
	}
	slices.SortFunc(want, func(a, b count) int {
		if a.n != b.n {
			return int(b.n - a.n)
		}
		return strings.Compare(a.name, b.name)
	})
	s := serve(t, testConfig(t), fake)
	for _, size := range []int32{1, 7, 59, 60, 61} {
		var got []count
		token := ""
		for {
			a, err := s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, u := range a.GetUsernames() {
				got = append(got, count{u.GetUsername(), u.GetClients()})
			}
			if token = a.GetNextPageToken(); token == "" {
				break
			}
			if len(a.GetUsernames()) != int(size) {
				t.Fatalf("a page of %d usernames is not the last one", len(a.GetUsernames()))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v\nwant %v", size, got, want)
		}
	}
	a, err := s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{PageSize: 1})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.rpc.GetStats(as(t, "read"), &presencev1.GetStatsRequest{PageToken: a.GetNextPageToken(), SkipUsernames: true}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("the next page of usernames, without usernames: %v", err)
	}
}

// While partitions are restored in this process, or have no owner, no answer looks like one over all of them.
func TestNoPartialAnswers(t *testing.T) {
	fake := smallFleet()
	s := serve(t, testConfig(t), fake)
	fake.Own(1)
	for _, path := range []string{"/v1/clients", "/v1/stats", "/v1/nodes", "/v1/stats?skip_usernames=true"} {
		a := s.do("GET", path, "read", "")
		if a.status != 503 || a.header.Get("Retry-After") != "1" || !strings.Contains(a.body, "1 of 2 partitions") || !strings.Contains(a.body, "RetryInfo") {
			t.Errorf("%s: %d %v %s", path, a.status, a.header, a.body)
		}
	}
	if a := s.do("POST", "/v1/indexes:check", "admin", "{}"); a.status != 503 || !strings.Contains(a.body, "1 of 2 partitions") {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func TestIndexesAreRepaired(t *testing.T) {
	fake := smallFleet()
	fake.Damage("row default/dev1 is in no index")
	s := serve(t, testConfig(t), fake)
	if a := s.do("POST", "/v1/indexes:check", "read", "{}"); a.status != 403 {
		t.Errorf("without the permission: %d %s", a.status, a.body)
	}
	for _, c := range []struct {
		body          string
		ok, repairing bool
	}{{"{}", false, false}, {`{"repair":true}`, false, true}, {"{}", true, false}} {
		m := s.do("POST", "/v1/indexes:check", "admin", c.body).fields(t)
		partitions, _ := m["partitions"].([]any)
		first, _ := partitions[0].(map[string]any)
		if m["ok"] != c.ok || first["repairing"] != c.repairing || len(partitions) != 2 {
			t.Errorf("%s: %v", c.body, m)
		}
	}
}

// Both "sessions" and "a/sessions" are client IDs, of which each call can ask.
func TestSessionsOfEveryClientID(t *testing.T) {
	fake := readertest.NewFake(4)
	fake.ApplyNodes(readertest.Healthy()...)
	for _, id := range readertest.IDs() {
		c := readertest.Connected(id)
		fake.Apply(c, readertest.Disconnected(c))
	}
	s := serve(t, testConfig(t), fake)
	for _, id := range readertest.IDs() {
		for _, path := range []string{escape(id), encodeAll(id)} {
			a := s.do("GET", "/v1/clients/"+path+"/sessions", "read", "")
			m := a.fields(t)
			sessions, _ := m["sessions"].([]any)
			if a.status != 200 || m["client_id"] != id || len(sessions) != 1 {
				t.Errorf("%.20q: %d %.300s", id, a.status, a.body)
			}
		}
		r, err := s.rpc.ListSessions(as(t, "read"), &presencev1.ListSessionsRequest{ClientId: id})
		if err != nil || r.GetClientId() != id || len(r.GetSessions()) != 1 {
			t.Errorf("%.20q over gRPC: %v, %v", id, r, err)
		}
	}
	if a := s.do("GET", "/v1/clients/never/sessions", "read", ""); a.status != 404 || !strings.Contains(a.body, "never seen") {
		t.Errorf("%d %s", a.status, a.body)
	}
	if _, err := s.rpc.ListSessions(as(t, "read"), &presencev1.ListSessionsRequest{ClientId: "dev1", At: &timestamppb.Timestamp{Nanos: -1}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("a time that is none: %v", err)
	}
}

var _ query.StateReader = (*readertest.Fake)(nil)
