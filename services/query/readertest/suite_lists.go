package readertest

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query"
)

// runLists checks what a StateReader promises of lists, counters and history.
func runLists(t *testing.T, open Open) {
	t.Run("a list selects what its filter says, in order, whatever the pages", func(t *testing.T) { testLists(t, open) })
	t.Run("counters are those of a list", func(t *testing.T) { testCounts(t, open) })
	t.Run("usernames are listed ascending by name", func(t *testing.T) { testUsernames(t, open) })
	t.Run("connections that are not current are told newest first", func(t *testing.T) { testHistory(t, open) })
	t.Run("a client that was forgotten is in no answer", func(t *testing.T) { testForgotten(t, open) })
	t.Run("indexes are what the rows say", func(t *testing.T) { testCheck(t, open) })
}

// fleet returns facts about clients that differ in status, node, username and since, in two clusters.
func fleet() []presence.Fact {
	var facts []presence.Fact
	for i := range 40 {
		for j, id := range []string{fmt.Sprintf("dev%d", i), fmt.Sprintf("VIN/%d", i), fmt.Sprintf("a%d%%2F日", i)} {
			f := Connected(id)
			f.Connection = fmt.Sprint(i, j)
			// Some have the same since.
			f.TimeMS -= int64(i/4*1000 + 50_000)
			f.ReceivedMS, f.ConnectedAtMS = f.TimeMS, f.TimeMS
			f.Node, f.Username = fmt.Sprint("n", 1+i%3), fmt.Sprint("user", i%7)
			switch {
			case i%11 == 3:
				f.Username = ""
			case i == 39:
				f.Cluster = "other"
			}
			f.SetID()
			facts = append(facts, f)
			if (i+j)%3 == 0 {
				closed := Disconnected(f)
				facts = append(facts, closed)
			}
		}
	}
	return facts
}

// settle waits until lists and counters are exact.
func settle(t *testing.T, r query.StateReader, cluster string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := r.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: cluster})
		if err == nil && answer.GetExact() && len(answer.GetPartitions()) == int(answer.GetPartitionCount()) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("counters do not become exact: %v, %v", answer, err)
		case <-tick.C:
		}
	}
}

// everyone reads all clients that facts are about, one by one, as lists show them: with their ID and without an index.
func everyone(t *testing.T, r query.StateReader, facts []presence.Fact, cluster string) []*presencev1.StateEntry {
	t.Helper()
	var ids []string
	for i := range facts {
		if facts[i].Cluster == cluster && !slices.Contains(ids, facts[i].ClientID) {
			ids = append(ids, facts[i].ClientID)
		}
	}
	slices.Sort(ids)
	var all []*presencev1.StateEntry
	for i, e := range ask(t, r, cluster, ids...).GetEntries() {
		e.Index, e.ClientId = 0, ids[i]
		if e.GetFound() {
			all = append(all, e)
		}
	}
	return all
}

func placeIn(req *presencev1.ListStatesRequest, e *presencev1.StateEntry) *presencev1.Position {
	at := &presencev1.Position{ClientId: e.GetClientId()}
	if req.SinceFromMs != nil || req.SinceBeforeMs != nil {
		at.SinceMs = e.GetSinceMs()
	}
	return at
}

// pages reads a list to its end and checks each page against the promises.
func pages(t *testing.T, r query.StateReader, req *presencev1.ListStatesRequest) (all []*presencev1.StateEntry, total *int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var after *presencev1.Position
	for range 10_000 {
		page, ok := proto.Clone(req).(*presencev1.ListStatesRequest)
		if !ok {
			t.Fatal("a clone is of another type")
		}
		page.After = after
		answer, err := r.ListStates(ctx, page)
		if err != nil {
			t.Fatalf("list %v: %v", page, err)
		}
		read := map[int32]bool{}
		for _, p := range answer.GetPartitions() {
			read[p.GetPartition()] = true
		}
		if len(answer.GetNotOwned()) > 0 || answer.GetPartitionCount() <= 0 || len(read) != int(answer.GetPartitionCount()) {
			t.Fatalf("read %d of %d partitions, not owned %v", len(read), answer.GetPartitionCount(), answer.GetNotOwned())
		}
		if !answer.GetExact() || len(answer.GetHealth().GetNodes()) == 0 {
			t.Errorf("exact %v, health %v", answer.GetExact(), answer.GetHealth())
		}
		if len(answer.GetEntries()) > int(req.GetLimit()) {
			t.Fatalf("%d entries, at most %d were asked for", len(answer.GetEntries()), req.GetLimit())
		}
		for _, e := range answer.GetEntries() {
			at := placeIn(req, e)
			if after != nil && comparePlaces(at, after) <= 0 {
				t.Fatalf("client %q comes again, or too late", e.GetClientId())
			}
			if to := answer.GetReadTo(); to != nil && comparePlaces(at, to) > 0 {
				t.Fatalf("client %q lies beyond the place that was read to", e.GetClientId())
			}
			after = at
		}
		all, total = append(all, answer.GetEntries()...), answer.Total
		to := answer.GetReadTo()
		if to == nil {
			return all, total
		}
		if page.GetAfter() != nil && comparePlaces(to, page.GetAfter()) <= 0 {
			t.Fatalf("a list after %v was read to %v", page.GetAfter(), to)
		}
		after = to
	}
	t.Fatal("the list has no end")
	return nil, nil
}

func testLists(t *testing.T, open Open) {
	facts := fleet()
	r := open(t, facts, Healthy())
	settle(t, r, "default")
	all := everyone(t, r, facts, "default")
	sinces := make([]int64, len(all))
	for i, e := range all {
		sinces[i] = e.GetSinceMs()
	}
	slices.Sort(sinces)
	middle, late := sinces[len(sinces)/3], sinces[2*len(sinces)/3]
	zero := int64(0)
	for _, c := range []struct {
		name    string
		req     *presencev1.ListStatesRequest
		counted bool
	}{
		{"all", &presencev1.ListStatesRequest{}, true},
		{"online", &presencev1.ListStatesRequest{Status: "online"}, true},
		{"offline", &presencev1.ListStatesRequest{Status: "offline"}, true},
		{"unknown", &presencev1.ListStatesRequest{Status: "unknown"}, true},
		{"of a node", &presencev1.ListStatesRequest{Node: "n2"}, true},
		{"online of a node", &presencev1.ListStatesRequest{Node: "n2", Status: "online"}, true},
		{"of a node that is not", &presencev1.ListStatesRequest{Node: "n"}, true},
		{"of a username", &presencev1.ListStatesRequest{Username: "user4"}, true},
		{"of a username that is not", &presencev1.ListStatesRequest{Username: "user"}, true},
		{"online of a username", &presencev1.ListStatesRequest{Username: "user4", Status: "online"}, false},
		{"prefix", &presencev1.ListStatesRequest{ClientIdPrefix: "dev1"}, false},
		{"prefix up to a character", &presencev1.ListStatesRequest{ClientIdPrefix: "a1%2F"}, false},
		{"prefix of nobody", &presencev1.ListStatesRequest{ClientIdPrefix: "dev1/"}, false},
		{"prefix and status", &presencev1.ListStatesRequest{ClientIdPrefix: "VIN/", Status: "offline"}, false},
		{"prefix, node and username", &presencev1.ListStatesRequest{ClientIdPrefix: "VIN/", Node: "n1", Username: "user3"}, false},
		{"since", &presencev1.ListStatesRequest{SinceFromMs: &middle}, false},
		{"since the beginning", &presencev1.ListStatesRequest{SinceFromMs: &zero}, false},
		{"before", &presencev1.ListStatesRequest{SinceBeforeMs: &middle}, false},
		{"between", &presencev1.ListStatesRequest{SinceFromMs: &middle, SinceBeforeMs: &late}, false},
		{"online since", &presencev1.ListStatesRequest{SinceFromMs: &middle, Status: "online"}, false},
		{"since, of a node and a prefix", &presencev1.ListStatesRequest{SinceFromMs: &zero, Node: "n1", ClientIdPrefix: "d"}, false},
		{"since, of a username", &presencev1.ListStatesRequest{SinceFromMs: &middle, Username: "user2"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.req.Cluster, c.req.Count = "default", true
			var want []*presencev1.StateEntry
			for _, e := range all {
				if selects(c.req, e) {
					want = append(want, e)
				}
			}
			slices.SortFunc(want, func(a, b *presencev1.StateEntry) int { return comparePlaces(placeIn(c.req, a), placeIn(c.req, b)) })
			for _, limit := range []int32{1, 7, 1000} {
				c.req.Limit = limit
				got, total := pages(t, r, c.req)
				if len(got) != len(want) {
					t.Fatalf("pages of %d: %d clients, want %d", limit, len(got), len(want))
				}
				for i := range got {
					if !proto.Equal(got[i], want[i]) {
						t.Fatalf("pages of %d: client %d is\n%v\nwant\n%v", limit, i, got[i], want[i])
					}
				}
				if (total != nil) != c.counted || total != nil && *total != int64(len(want)) {
					t.Errorf("total %v of %d, counted %v", total, len(want), c.counted)
				}
			}
		})
	}
}

func testCounts(t *testing.T, open Open) {
	facts := fleet()
	r := open(t, facts, Healthy())
	settle(t, r, "default")
	want := map[string]int64{}
	for _, cluster := range []string{"default", "other"} {
		for _, e := range everyone(t, r, facts, cluster) {
			want["cluster "+cluster+" "+e.GetStatus()]++
			if cluster == "default" {
				want["node "+e.GetNode()+" "+e.GetStatus()]++
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	answer, err := r.GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: "default"})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]int64{}
	for _, c := range answer.GetCounts() {
		got["node "+c.GetNode()+" "+c.GetStatus()] += c.GetClients()
	}
	for _, c := range answer.GetClusters() {
		got["cluster "+c.GetCluster()+" "+c.GetStatus()] += c.GetClients()
	}
	for name, n := range got {
		if n != want[name] {
			t.Errorf("%s: %d, want %d", name, n, want[name])
		}
	}
	for name, n := range want {
		if n != got[name] {
			t.Errorf("%s: %d, want %d", name, got[name], n)
		}
	}
	if len(answer.GetHealth().GetNodes()) != 1 {
		t.Errorf("health %v", answer.GetHealth())
	}
}

func testUsernames(t *testing.T, open Open) {
	facts := fleet()
	r := open(t, facts, Healthy())
	settle(t, r, "default")
	counts := map[string]int64{}
	for _, e := range everyone(t, r, facts, "default") {
		if u := e.GetConnection().GetUsername(); u != "" {
			counts[u]++
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for _, limit := range []int32{1, 3, 1000} {
		got := map[string]int64{}
		var after *string
		for page := 0; ; page++ {
			answer, err := r.ListUsernames(ctx, &presencev1.ListUsernamesRequest{Cluster: "default", After: after, Limit: limit})
			if err != nil {
				t.Fatal(err)
			}
			if page > 100 || len(answer.GetUsernames()) > int(limit) || !answer.GetEnd() && len(answer.GetUsernames()) == 0 {
				t.Fatalf("page %d has %d usernames", page, len(answer.GetUsernames()))
			}
			for _, u := range answer.GetUsernames() {
				if after != nil && u.GetUsername() <= *after {
					t.Fatalf("username %q after %q", u.GetUsername(), *after)
				}
				name := u.GetUsername()
				got[name], after = u.GetClients(), &name
			}
			if answer.GetEnd() {
				break
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(counts) {
			t.Errorf("pages of %d: %v, want %v", limit, got, counts)
		}
	}
}

// history reads the connections that are not current.
func history(t *testing.T, r query.StateReader, id string) *presencev1.History {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	answer, err := r.GetStates(ctx, &presencev1.GetStatesRequest{Cluster: "default", History: true, Keys: []*presencev1.StateKey{{ClientId: id}}})
	if err != nil || len(answer.GetEntries()) != 1 {
		t.Fatalf("answer %v, error %v", answer, err)
	}
	return answer.GetEntries()[0].GetHistory()
}

func testHistory(t *testing.T, open Open) {
	base := time.Now().UnixMilli() - 100_000
	connect := func(id, key string, seconds int64) presence.Fact {
		f := Connected(id)
		f.TimeMS = base + seconds*1000
		f.ReceivedMS, f.ConnectedAtMS, f.Connection = f.TimeMS, f.TimeMS, key
		f.SetID()
		return f
	}
	var facts []presence.Fact
	// One that came and went, one that lasts.
	first, second := connect("quiet", "k1", 1), connect("quiet", "k2", 10)
	facts = append(facts, first, Disconnected(first), second)
	// Two takeovers: the end of the first is told late, that of the second never.
	one, two, three := connect("busy", "k1", 1), connect("busy", "k2", 10), connect("busy", "k3", 20)
	late := Disconnected(one)
	late.DisconnectedAtMS, late.Reason, late.RawReason = two.TimeMS, presence.ReasonTakenOver, "takenover"
	late.SetID()
	facts = append(facts, one, two, late, three)
	// An older one that is heard of last.
	facts = append(facts, connect("late", "k2", 10), connect("late", "k1", 1))
	r := open(t, facts, Healthy())
	told := func(id string) (all []string) {
		h := history(t, r, id)
		if h.GetCompleteSinceMs() != 0 {
			t.Errorf("%s: complete since %d", id, h.GetCompleteSinceMs())
		}
		for _, s := range h.GetSessions() {
			all = append(all, fmt.Sprintf("%s %s %ds-%ds %v %s/%s", s.GetNode(), s.GetConnection().GetKey(), (s.GetConnection().GetConnectedAtMs()-base)/1000,
				(s.GetEndedMs()-base)/1000, s.GetStated(), s.GetReason(), s.GetRawReason()))
		}
		return all
	}
	for id, want := range map[string][]string{
		"quiet": {"n1 k1 1s-2s true keep_alive_timeout/keepalive_timeout"},
		"busy":  {"n1 k2 10s-20s false superseded/", "n1 k1 1s-10s true taken_over/takenover"},
		"late":  {"n1 k1 1s-10s false superseded/"},
	} {
		if got := told(id); !slices.Equal(got, want) {
			t.Errorf("%s:\n\t%s\nwant\n\t%s", id, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
		}
	}
	if h := ask(t, r, "default", "quiet").GetEntries()[0].GetHistory(); h != nil {
		t.Errorf("nobody asked for the history %v", h)
	}
	if h := history(t, r, "never"); h != nil {
		t.Errorf("history of a client never seen: %v", h)
	}
}

func testForgotten(t *testing.T, open Open) {
	gone, back, stays := Connected("gone"), Connected("back"), Connected("stays")
	forget := func(f presence.Fact) presence.Fact {
		d := presence.Fact{Kind: presence.Forgotten, Cluster: f.Cluster, ClientID: f.ClientID, TimeMS: f.TimeMS + 10, ReceivedMS: f.ReceivedMS + 10,
			AsOfMS: f.TimeMS + 10, Source: "test"}
		d.SetID()
		return d
	}
	again := back
	again.TimeMS, again.ReceivedMS, again.ConnectedAtMS, again.Connection = back.TimeMS+20, back.ReceivedMS+20, back.TimeMS+20, "again"
	again.SetID()
	// A late copy of what was forgotten changes nothing.
	r := open(t, []presence.Fact{gone, back, stays, forget(gone), forget(back), gone, again}, Healthy())
	settle(t, r, "default")
	entries := ask(t, r, "default", "gone", "back", "stays").GetEntries()
	if e := entries[0]; e.GetFound() || e.GetStatus() != "offline" || e.GetStatusReason() != "never_seen" || e.GetConnection() != nil {
		t.Errorf("a client that was forgotten: %v", e)
	}
	if e := entries[1]; e.GetStatus() != "online" || e.GetConnection().GetKey() != "again" {
		t.Errorf("a client that came back: %v", e)
	}
	if h := history(t, r, "back"); len(h.GetSessions()) != 0 || h.GetCompleteSinceMs() != back.TimeMS+10 {
		t.Errorf("history of a client that came back: %v", h)
	}
	got, total := pages(t, r, &presencev1.ListStatesRequest{Cluster: "default", Limit: 10, Count: true})
	if len(got) != 2 || total == nil || *total != 2 {
		t.Errorf("%d clients are listed, total %v, want 2", len(got), total)
	}
}

func testCheck(t *testing.T, open Open) {
	facts := fleet()
	r := open(t, facts, Healthy())
	settle(t, r, "default")
	clients := int64(len(everyone(t, r, facts, "default")) + len(everyone(t, r, facts, "other")))
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	for _, repair := range []bool{false, true} {
		answer, err := r.CheckStore(ctx, &presencev1.CheckStoreRequest{Repair: repair})
		if err != nil {
			t.Fatal(err)
		}
		if len(answer.GetNotOwned()) > 0 || len(answer.GetChecks()) != int(answer.GetPartitionCount()) {
			t.Fatalf("%d of %d partitions, not owned %v", len(answer.GetChecks()), answer.GetPartitionCount(), answer.GetNotOwned())
		}
		slices.SortFunc(answer.GetChecks(), func(a, b *presencev1.StoreCheck) int { return cmp.Compare(a.GetPartition(), b.GetPartition()) })
		var n int64
		for i, c := range answer.GetChecks() {
			n += c.GetClients()
			if int(c.GetPartition()) != i || len(c.GetDifferences()) > 0 || c.GetRepairing() {
				t.Errorf("check %d: %v", i, c)
			}
		}
		if n != clients {
			t.Errorf("%d clients, want %d", n, clients)
		}
	}
}
