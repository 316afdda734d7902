package readertest

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Fake is a StateReader, and a StateService, in memory. It owns all partitions until Own is called.
type Fake struct {
	presencev1.UnimplementedStateServiceServer

	mu         sync.Mutex
	partitions int32
	owned      map[int32]bool
	clusters   map[string]*presence.Cluster
	rows       map[string]*row
	applied    []int64       // next offset by partition
	appliedMS  []int64       // received time of the last fact by partition
	changed    chan struct{} // closed when facts are applied
	edit       func(*presencev1.GetStatesResponse) error
	calls      int
	looks      int // rows that a list looks at; 0: all
	damage     []string
	behind     bool
	stops      []*stop // digests that wait for their offset
	clockMS    int64
	least      int64
}

// row is what is kept of one client.
type row struct {
	state      presence.State
	dialect    string
	receivedMS int64
	offset     int64
	previous   presence.Presence
	changedMS  int64

	facts       []*presencev1.EvidenceFact
	transitions []*presencev1.EvidenceTransition
	past        past
}

// NewFake returns a reader that has seen nothing.
func NewFake(partitions int32) *Fake {
	return &Fake{
		partitions: partitions,
		clusters:   make(map[string]*presence.Cluster),
		rows:       make(map[string]*row),
		applied:    make([]int64, partitions),
		appliedMS:  make([]int64, partitions),
		changed:    make(chan struct{}),
	}
}

// Apply folds facts, each at the next offset of its partition.
func (f *Fake) Apply(facts ...presence.Fact) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range facts {
		fact := &facts[i]
		key := string(eventlog.ClientKey(fact.Cluster, fact.ClientID))
		p := eventlog.Partition([]byte(key), f.partitions)
		r := f.rows[key]
		if r == nil {
			r = &row{}
			f.rows[key] = r
		}
		before := presence.Status(&r.state, f.clusters[fact.Cluster], presence.DefaultAllowanceMS)
		place := placeOf(&before)
		r.past.leave(&before)
		outcome := r.state.Apply(fact)
		r.facts = append(r.facts, factOf(fact, outcome, f.applied[p]))
		after := presence.Status(&r.state, f.clusters[fact.Cluster], presence.DefaultAllowanceMS)
		r.past.note(fact, r.state.ForgottenMS)
		if after.Status != before.Status || after.Reason != before.Reason || placeOf(&after) != place {
			r.previous, r.changedMS, r.offset = before.Status, fact.TimeMS, f.applied[p]
			r.transitions = append(r.transitions, &presencev1.EvidenceTransition{
				Status: after.Status.String(), PreviousStatus: before.Status.String(), Belief: after.Belief.String(),
				StatusReason: after.Reason.String(), EventOffset: f.applied[p], NodeEventOffset: -1,
			})
		}
		r.dialect, r.receivedMS = fact.Dialect, fact.ReceivedMS
		f.applied[p]++
		f.appliedMS[p] = fact.ReceivedMS
		f.makeStops(p)
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// ApplyNodes folds facts about nodes and feeds.
func (f *Fake) ApplyNodes(facts ...presence.NodeFact) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range facts {
		c := f.clusters[facts[i].Cluster]
		if c == nil {
			c = &presence.Cluster{}
			f.clusters[facts[i].Cluster] = c
		}
		c.Apply(&facts[i])
	}
}

// Own makes the fake the owner of these partitions and no others.
func (f *Fake) Own(partitions ...int32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.owned = make(map[int32]bool)
	for _, p := range partitions {
		f.owned[p] = true
	}
}

// Edit changes each answer before it is given, or makes it an error. Nil takes that back.
func (f *Fake) Edit(edit func(*presencev1.GetStatesResponse) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.edit = edit
}

// CatchUp makes the fake say that it is catching up, or not any more.
func (f *Fake) CatchUp(behind bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.behind = behind
}

// Calls is the number of calls so far.
func (f *Fake) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// GetStates implements StateReader and StateService.
func (f *Fake) GetStates(ctx context.Context, req *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	for i, k := range req.GetKeys() {
		p := eventlog.Partition(eventlog.ClientKey(req.GetCluster(), k.GetClientId()), f.partitions)
		if k.MinOffset != nil {
			if err := f.wait(ctx, i, p, k.GetMinOffset()); err != nil {
				return nil, err
			}
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	answer := &presencev1.GetStatesResponse{Health: f.health(req.GetCluster())}
	told := make(map[int32]bool)
	for i, k := range req.GetKeys() {
		key := eventlog.ClientKey(req.GetCluster(), k.GetClientId())
		p := eventlog.Partition(key, f.partitions)
		if f.owned != nil && !f.owned[p] {
			answer.NotOwned = append(answer.NotOwned, uint32(i))
			continue
		}
		answer.Entries = append(answer.Entries, f.entry(uint32(i), p, f.rows[string(key)], f.clusters[req.GetCluster()]))
		if r := f.rows[string(key)]; r != nil && req.GetExplain() {
			answer.Entries[len(answer.Entries)-1].Evidence = &presencev1.Evidence{
				State: r.state.Append(nil), Facts: slices.Clone(r.facts), Transitions: slices.Clone(r.transitions), AllowanceMs: presence.DefaultAllowanceMS,
			}
		}
		if r := f.rows[string(key)]; r != nil && req.GetHistory() && !r.state.Empty() {
			answer.Entries[len(answer.Entries)-1].History = f.historyOf(r, req.GetCluster())
		}
		if !told[p] {
			told[p] = true
			answer.Partitions = append(answer.Partitions, f.freshness(p))
		}
	}
	if f.edit != nil {
		if err := f.edit(answer); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

func (f *Fake) freshness(p int32) *presencev1.PartitionFreshness {
	return &presencev1.PartitionFreshness{
		Partition: p, AppliedOffset: f.applied[p], EndOffset: f.applied[p], AppliedTimeMs: f.appliedMS[p], EndOffsetTimeMs: time.Now().UnixMilli(), Ready: !f.behind,
	}
}

// reached reports whether a record was applied, and returns a channel that the next facts close.
func (f *Fake) reached(p int32, offset int64) (bool, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.applied[p] > offset, f.changed
}

// wait returns nil once a record was applied, and an error if ctx ends before.
func (f *Fake) wait(ctx context.Context, key int, p int32, offset int64) error {
	for {
		reached, changed := f.reached(p, offset)
		if reached {
			return nil
		}
		select {
		case <-changed:
			continue
		case <-ctx.Done():
		}
		return notReached(key, p, offset)
	}
}

func notReached(key int, p int32, offset int64) error {
	s, err := status.New(codes.FailedPrecondition, fmt.Sprintf("key %d: offset %d of partition %d is not applied", key, offset, p)).
		WithDetails(&errdetails.ErrorInfo{Reason: "MIN_OFFSET_NOT_REACHED", Domain: "presence"})
	if err != nil {
		return fmt.Errorf("add details: %w", err)
	}
	return s.Err()
}

func (f *Fake) entry(index uint32, partition int32, r *row, c *presence.Cluster) *presencev1.StateEntry {
	e := &presencev1.StateEntry{Index: index, Partition: partition}
	state := &presence.State{}
	if r != nil {
		e.Found, state = !r.state.Empty(), &r.state
		e.Dialect, e.ReceivedMs = r.dialect, r.receivedMS
		e.EventOffset, e.TransitionTimeMs, e.PreviousStatus = r.offset, r.changedMS, r.previous.String()
	}
	v := presence.Status(state, c, presence.DefaultAllowanceMS)
	e.Status, e.Belief, e.StatusReason = v.Status.String(), v.Belief.String(), v.Reason.String()
	e.SinceMs, e.Node, e.Reason, e.RawReason = v.SinceMS, v.Node, v.Close.String(), v.Raw
	if v.Conn != nil {
		e.Connection = connectionOf(v.Conn)
	}
	return e
}

// placeOf names the connection that decided; the verdict itself points into the state.
func placeOf(v *presence.Verdict) [2]string {
	if v.Conn == nil {
		return [2]string{v.Node}
	}
	return [2]string{v.Node, v.Conn.Key}
}

func factOf(f *presence.Fact, o presence.Outcome, offset int64) *presencev1.EvidenceFact {
	e := &presencev1.EvidenceFact{
		Offset: offset, Type: f.Kind.String(), Outcome: o.String(), Node: f.Node, Connection: f.Connection, Dialect: f.Dialect, TimeMs: f.TimeMS,
		Order: f.Order, ReceivedMs: f.ReceivedMS, ConnectedAtMs: f.ConnectedAtMS, DisconnectedAtMs: f.DisconnectedAtMS,
		Reason: f.Reason.String(), RawReason: f.RawReason, QueryStartMs: f.QueryStartMS, QueryEndMs: f.QueryEndMS, Source: f.Source, AsOfMs: f.AsOfMS,
	}
	if f.Online.Valid {
		e.Online = &f.Online.Value
	}
	return e
}

func (f *Fake) health(cluster string) *presencev1.ClusterHealth {
	c := f.clusters[cluster]
	if c == nil {
		return &presencev1.ClusterHealth{}
	}
	h := &presencev1.ClusterHealth{Complete: c.FeedComplete()}
	for name, n := range c.Nodes {
		h.Nodes = append(h.Nodes, &presencev1.NodeHealth{
			Node: name, StartedMs: n.StartedMS, AliveMs: n.AliveMS, Gone: n.Gone(), Silent: n.Silent(), GoneMs: n.GoneMS, SilentMs: n.SilentMS,
		})
	}
	for bridge, feed := range c.Feeds {
		h.Feeds = append(h.Feeds, &presencev1.FeedHealth{
			Bridge: bridge, AliveMs: feed.ToldMS(), LeaseMs: feed.LeaseMS, Connected: feed.CompleteSinceMS != 0, DroppedCount: feed.DroppedCount,
			GapFromMs: feed.GapFromMS, GapToMs: feed.GapToMS, DroppedFromMs: feed.DroppedFromMS, DroppedToMs: feed.DroppedToMS, CompleteSinceMs: feed.CompleteSinceMS,
		})
	}
	if from, to, open := c.FeedGap(); open {
		h.Gap = &presencev1.FeedGap{FromMs: from, ToMs: to}
	}
	return h
}

// Serve offers a StateService over gRPC on loopback until the test ends, and returns its address and a function that stops it earlier.
func Serve(t testing.TB, s presencev1.StateServiceServer) (addr string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("listen for the state service: %v", err)
	}
	server := grpc.NewServer(grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}))
	presencev1.RegisterStateServiceServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Errorf("serve the state service: %v", err)
		}
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}
