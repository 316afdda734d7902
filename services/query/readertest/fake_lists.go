package readertest

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Look bounds the rows that one list looks at, as the materializer bounds its work. 0 takes that back.
func (f *Fake) Look(rows int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looks = rows
}

// Damage makes a check find these differences in partition 0 until it repairs them.
func (f *Fake) Damage(differences ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.damage = differences
}

// placed is a client with its place in a list.
type placed struct {
	id    string
	entry *presencev1.StateEntry
	at    *presencev1.Position
}

// scan returns all clients of a cluster in the given partitions, by client ID. A client that was forgotten is none.
func (f *Fake) scan(cluster string, partitions []int32) []placed {
	var all []placed
	for key, r := range f.rows {
		of, id, err := eventlog.SplitClientKey([]byte(key))
		p := eventlog.Partition([]byte(key), f.partitions)
		if err != nil || of != cluster || r.state.Empty() || !slices.Contains(partitions, p) {
			continue
		}
		e := f.entry(0, p, r, f.clusters[cluster])
		e.ClientId = id
		all = append(all, placed{id: id, entry: e})
	}
	slices.SortFunc(all, func(a, b placed) int { return strings.Compare(a.id, b.id) })
	return all
}

// split returns the partitions to read, and those asked for that are not owned.
func (f *Fake) split(asked []int32) (read, notOwned []int32, err error) {
	if len(asked) == 0 {
		for p := range f.partitions {
			if f.owned == nil || f.owned[p] {
				read = append(read, p)
			}
		}
		return read, nil, nil
	}
	for _, p := range asked {
		switch {
		case p < 0 || p >= f.partitions:
			return nil, nil, status.Errorf(codes.InvalidArgument, "partitions: there is no partition %d", p)
		case f.owned == nil || f.owned[p]:
			read = append(read, p)
		default:
			notOwned = append(notOwned, p)
		}
	}
	return read, notOwned, nil
}

func (f *Fake) freshnesses(partitions []int32) []*presencev1.PartitionFreshness {
	all := make([]*presencev1.PartitionFreshness, len(partitions))
	for i, p := range partitions {
		all[i] = f.freshness(p)
	}
	return all
}

// ListStates implements StateReader and StateService by looking at every row.
func (f *Fake) ListStates(ctx context.Context, req *presencev1.ListStatesRequest) (*presencev1.ListStatesResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	read, notOwned, err := f.split(req.GetPartitions())
	if err != nil {
		return nil, err
	}
	answer := &presencev1.ListStatesResponse{
		Exact: true, NotOwned: notOwned, Partitions: f.freshnesses(read), Health: f.health(req.GetCluster()), PartitionCount: f.partitions,
	}
	bySince := req.SinceFromMs != nil || req.SinceBeforeMs != nil
	all := f.scan(req.GetCluster(), read)
	for i := range all {
		all[i].at = &presencev1.Position{ClientId: all[i].id}
		if bySince {
			all[i].at.SinceMs = all[i].entry.GetSinceMs()
		}
	}
	slices.SortStableFunc(all, func(a, b placed) int { return comparePlaces(a.at, b.at) })
	var total int64
	var last *presencev1.Position
	looked := 0
	for _, c := range all {
		selected := selects(req, c.entry)
		if selected {
			total++
		}
		switch {
		case answer.GetReadTo() != nil, req.GetAfter() != nil && comparePlaces(c.at, req.GetAfter()) <= 0:
		case len(answer.GetEntries()) == int(req.GetLimit()), f.looks > 0 && looked == f.looks:
			answer.ReadTo = last
		default:
			last = c.at
			looked++
			if selected {
				answer.Entries = append(answer.Entries, c.entry)
			}
		}
	}
	if req.GetCount() && counted(req) {
		answer.Total = &total
	}
	return answer, nil
}

func comparePlaces(a, b *presencev1.Position) int {
	return cmp.Or(cmp.Compare(a.GetSinceMs(), b.GetSinceMs()), strings.Compare(a.GetClientId(), b.GetClientId()))
}

// selects reports whether a filter selects a client.
func selects(req *presencev1.ListStatesRequest, e *presencev1.StateEntry) bool {
	is := func(want, got string) bool { return want == "" || want == got }
	return is(req.GetStatus(), e.GetStatus()) && is(req.GetNode(), e.GetNode()) && is(req.GetUsername(), e.GetConnection().GetUsername()) &&
		strings.HasPrefix(e.GetClientId(), req.GetClientIdPrefix()) &&
		(req.SinceFromMs == nil || e.GetSinceMs() >= req.GetSinceFromMs()) && (req.SinceBeforeMs == nil || e.GetSinceMs() < req.GetSinceBeforeMs())
}

// counted reports whether there is a counter of a filter.
func counted(req *presencev1.ListStatesRequest) bool {
	return req.GetClientIdPrefix() == "" && req.SinceFromMs == nil && req.SinceBeforeMs == nil &&
		(req.GetUsername() == "" || req.GetStatus() == "" && req.GetNode() == "")
}

// GetCounts implements StateReader and StateService.
func (f *Fake) GetCounts(ctx context.Context, req *presencev1.GetCountsRequest) (*presencev1.GetCountsResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	read, notOwned, err := f.split(req.GetPartitions())
	if err != nil {
		return nil, err
	}
	clusters := map[string]bool{}
	for key := range f.rows {
		if of, _, err := eventlog.SplitClientKey([]byte(key)); err == nil {
			clusters[of] = true
		}
	}
	type name struct{ cluster, status, node string }
	counts, all := map[name]int64{}, map[name]int64{}
	for cluster := range clusters {
		for _, c := range f.scan(cluster, read) {
			all[name{cluster: cluster, status: c.entry.GetStatus()}]++
			if cluster == req.GetCluster() {
				counts[name{status: c.entry.GetStatus(), node: c.entry.GetNode()}]++
			}
		}
	}
	list := func(of map[name]int64) (l []*presencev1.StateCount) {
		for n, clients := range of {
			l = append(l, &presencev1.StateCount{Cluster: n.cluster, Status: n.status, Node: n.node, Clients: clients})
		}
		return l
	}
	return &presencev1.GetCountsResponse{
		Counts: list(counts), Clusters: list(all), Exact: true, NotOwned: notOwned, Partitions: f.freshnesses(read),
		Health: f.health(req.GetCluster()), PartitionCount: f.partitions,
	}, nil
}

// ListUsernames implements StateReader and StateService.
func (f *Fake) ListUsernames(ctx context.Context, req *presencev1.ListUsernamesRequest) (*presencev1.ListUsernamesResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	read, notOwned, err := f.split(req.GetPartitions())
	if err != nil {
		return nil, err
	}
	counts := map[string]int64{}
	for _, c := range f.scan(req.GetCluster(), read) {
		if u := c.entry.GetConnection().GetUsername(); u != "" && (req.After == nil || u > req.GetAfter()) {
			counts[u]++
		}
	}
	answer := &presencev1.ListUsernamesResponse{
		End: true, Exact: true, NotOwned: notOwned, Partitions: f.freshnesses(read), Health: f.health(req.GetCluster()), PartitionCount: f.partitions,
	}
	for _, u := range slices.Sorted(maps.Keys(counts)) {
		if len(answer.GetUsernames()) == int(req.GetLimit()) {
			answer.End = false
			break
		}
		answer.Usernames = append(answer.Usernames, &presencev1.StateUsername{Username: u, Clients: counts[u]})
	}
	return answer, nil
}

// CheckStore implements StateReader and StateService.
func (f *Fake) CheckStore(ctx context.Context, req *presencev1.CheckStoreRequest) (*presencev1.CheckStoreResponse, error) {
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	read, notOwned, err := f.split(req.GetPartitions())
	if err != nil {
		return nil, err
	}
	answer := &presencev1.CheckStoreResponse{NotOwned: notOwned, PartitionCount: f.partitions}
	for _, p := range read {
		c := &presencev1.StoreCheck{Partition: p}
		for key, r := range f.rows {
			if eventlog.Partition([]byte(key), f.partitions) == p && !r.state.Empty() {
				c.Clients++
			}
		}
		if p == 0 && len(f.damage) > 0 {
			c.Differences, c.Repairing = slices.Clone(f.damage), req.GetRepair()
			if req.GetRepair() {
				f.damage = nil
			}
		}
		answer.Checks = append(answer.Checks, c)
	}
	return answer, nil
}

// past is what a fake keeps of a client's connections that are not current.
type past struct {
	sessions []*presencev1.HistorySession
}

// leave keeps the connection of a verdict, as far as it is known, in case that it ceases to be current.
func (p *past) leave(v *presence.Verdict) {
	if v.Conn == nil || v.Conn.OpenedMS == 0 {
		return
	}
	s := p.session(v.Node, v.Conn.Key, v.Conn.OpenedMS)
	if s == nil {
		s = &presencev1.HistorySession{Node: v.Node, Dialect: v.Conn.Dialect, Connection: connectionOf(v.Conn)}
		p.sessions = append(p.sessions, s)
	}
	if v.Status == presence.Offline && v.Reason == presence.ConnectionClosed {
		s.Stated, s.EndedMs, s.Reason, s.RawReason = true, v.SinceMS, v.Close.String(), v.Raw
	}
}

func (p *past) session(node, key string, openedMS int64) *presencev1.HistorySession {
	for _, s := range p.sessions {
		if s.GetNode() == node && s.GetConnection().GetKey() == key && (openedMS == 0 || s.GetConnection().GetConnectedAtMs() == openedMS) {
			return s
		}
	}
	return nil
}

// note takes in a fact about a connection that may not be current.
func (p *past) note(f *presence.Fact, forgottenMS int64) {
	switch f.Kind {
	case presence.Opened:
		if p.session(f.Node, f.Connection, f.OpenedMS()) == nil {
			p.sessions = append(p.sessions, &presencev1.HistorySession{
				Node: f.Node, Dialect: f.Dialect, Connection: &presencev1.Connection{Key: f.Connection, ConnectedAtMs: f.OpenedMS(), Username: f.Username, Peer: f.Peer},
			})
		}
	case presence.Closed:
		if s := p.session(f.Node, f.Connection, f.ConnectedAtMS); s != nil {
			s.Stated, s.EndedMs, s.Reason, s.RawReason = true, f.ClosedMS(), f.Reason.String(), f.RawReason
		}
	case presence.KindUnknown, presence.Observed, presence.Forgotten:
	}
	p.sessions = slices.DeleteFunc(p.sessions, func(s *presencev1.HistorySession) bool { return s.GetConnection().GetConnectedAtMs() <= forgottenMS })
}

// historyOf returns the connections that are not current, newest first. One without an end had it when the next one opened.
func (f *Fake) historyOf(r *row, cluster string) *presencev1.History {
	v := presence.Status(&r.state, f.clusters[cluster], presence.DefaultAllowanceMS)
	h := &presencev1.History{CompleteSinceMs: r.state.ForgottenMS}
	sessions := slices.Clone(r.past.sessions)
	slices.SortStableFunc(sessions, func(a, b *presencev1.HistorySession) int {
		return cmp.Compare(b.GetConnection().GetConnectedAtMs(), a.GetConnection().GetConnectedAtMs())
	})
	for i, s := range sessions {
		if v.Conn != nil && s.GetNode() == v.Node && s.GetConnection().GetKey() == v.Conn.Key && s.GetConnection().GetConnectedAtMs() == v.Conn.OpenedMS {
			continue
		}
		c := &presencev1.HistorySession{
			Node: s.GetNode(), Dialect: s.GetDialect(), Connection: s.GetConnection(), EndedMs: s.GetEndedMs(), Stated: s.GetStated(), Reason: s.GetReason(), RawReason: s.GetRawReason(),
		}
		if i > 0 && !c.GetStated() {
			c.EndedMs, c.Reason = sessions[i-1].GetConnection().GetConnectedAtMs(), presence.ConnectionSuperseded.String()
		}
		h.Sessions = append(h.Sessions, c)
	}
	return h
}

func connectionOf(c *presence.Connection) *presencev1.Connection {
	v := &presencev1.Connection{
		Key: c.Key, ConnectedAtMs: c.OpenedMS, Username: c.Username, Peer: c.Peer, Transport: c.Transport, ProtocolVersion: uint32(c.ProtocolVersion),
	}
	if o := c.KeepAliveS; o.Valid {
		v.KeepAliveS = &o.Value
	}
	if o := c.CleanStart; o.Valid {
		v.CleanStart = &o.Value
	}
	if o := c.SessionExpiryS; o.Valid {
		v.SessionExpiryS = &o.Value
	}
	return v
}
