package presencetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/mqtt-presence/presence/libs/presenceclient"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// DefaultCluster is the MQTT broker cluster of clients that are set without one.
	DefaultCluster = "default"
	// DefaultNode is the broker node of clients that are set online without one.
	DefaultNode = "node-1"

	// buffer is the size of a connection's buffer, in bytes.
	buffer = 256 << 10
	// maxMessage is what the service takes.
	maxMessage = 8 << 20
)

// Fake is a query service in memory. Make one with [New] or [Start].
type Fake struct {
	presencev1.UnimplementedPresenceServiceServer

	listener *bufconn.Listener
	server   *grpc.Server
	served   chan error

	mu      sync.Mutex
	clients map[key]*client
	log     []*presencev1.WatchClientsResponse // all transitions and removals, oldest first; its places are the tokens
	lost    int                                // a token before it is too old
	changed chan struct{}
	stale   []string
	calls   map[string]int
	faults  map[string]*fault
	delays  map[string]time.Duration
	watches map[*running]struct{}
}

type key struct{ cluster, id string }

// client is what the fake knows of one.
type client struct {
	now      *presencev1.Client
	sessions []*presencev1.Session // ended, oldest first
}

// fault makes calls fail.
type fault struct {
	err  error
	once bool
}

// running is a watch.
type running struct {
	broken chan error
	skip   chan int64
}

// Start starts a fake. Close ends it.
func Start() *Fake {
	f := &Fake{
		listener: bufconn.Listen(buffer), served: make(chan error, 1),
		clients: map[key]*client{}, changed: make(chan struct{}), calls: map[string]int{},
		faults: map[string]*fault{}, delays: map[string]time.Duration{}, watches: map[*running]struct{}{},
	}
	f.server = grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.UnaryInterceptor(f.unary), grpc.StreamInterceptor(f.stream),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}))
	presencev1.RegisterPresenceServiceServer(f.server, f)
	go func() { f.served <- f.server.Serve(f.listener) }()
	return f
}

// New starts a fake for a test, ended with it.
func New(t testing.TB) *Fake {
	t.Helper()
	f := Start()
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Errorf("close the fake: %v", err)
		}
	})
	return f
}

// Close ends the fake, and every call and watch.
func (f *Fake) Close() error {
	f.server.Stop()
	if err := <-f.served; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serve the fake: %w", err)
	}
	return nil
}

// Config returns the configuration of a client of this fake, for tests that change it.
func (f *Fake) Config() presenceclient.Config {
	return presenceclient.Config{
		Target: "passthrough:///localhost",
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return f.listener.DialContext(ctx) }),
		},
	}
}

// Client returns a new client of this fake.
func (f *Fake) Client() (*presenceclient.Client, error) { return presenceclient.New(f.Config()) }

// NewClient returns a new client of this fake, closed when the test ends.
func (f *Fake) NewClient(t testing.TB) *presenceclient.Client {
	t.Helper()
	c, err := f.Client()
	if err != nil {
		t.Fatalf("make a client of the fake: %v", err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("close the client of the fake: %v", err)
		}
	})
	return c
}

// SetOnline opens a new connection of each client in the default cluster, on DefaultNode.
func (f *Fake) SetOnline(clientIDs ...string) {
	for _, id := range clientIDs {
		now := timestamppb.Now()
		f.Set(&presencev1.Client{
			ClientId: id, Status: presenceclient.StatusOnline, StatusReason: "connected", Since: now,
			Connection: &presencev1.ClientConnection{Node: DefaultNode, ConnectedAt: now, ProtocolVersion: 5},
		})
	}
}

// SetOffline ends the connection of each client in the default cluster, by a normal DISCONNECT.
func (f *Fake) SetOffline(clientIDs ...string) {
	for _, id := range clientIDs {
		c := f.known(id)
		c.Status, c.StatusReason, c.Belief, c.Since = presenceclient.StatusOffline, "closed", "", timestamppb.Now()
		if c.Connection == nil {
			c.Connection = &presencev1.ClientConnection{Node: DefaultNode}
		}
		c.Connection.CloseReason = "normal"
		f.Set(c)
	}
}

// SetUnknown makes the status of a client in the default cluster one that the facts do not decide, for a status reason such as node_silent, and
// with what is believed.
func (f *Fake) SetUnknown(clientID, statusReason string, probablyOnline bool) {
	c := f.known(clientID)
	c.Status, c.StatusReason, c.Belief, c.Since = presenceclient.StatusUnknown, statusReason, presenceclient.StatusOffline, timestamppb.Now()
	if probablyOnline {
		c.Belief = presenceclient.StatusOnline
	}
	f.Set(c)
}

// known returns a copy of what is known of a client in the default cluster.
func (f *Fake) known(clientID string) *presencev1.Client {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.clients[key{DefaultCluster, clientID}]; c != nil {
		return proto.CloneOf(c.now)
	}
	return &presencev1.Client{ClientId: clientID}
}

// Set makes clients what the messages say, as one change for each. Cluster, belief, since and last transition are filled in where they are
// absent. Where the connection is another than before, the one before becomes a session.
func (f *Fake) Set(clients ...*presencev1.Client) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range clients {
		f.set(proto.CloneOf(c))
	}
}

func (f *Fake) set(c *presencev1.Client) {
	if c.Cluster == "" {
		c.Cluster = DefaultCluster
	}
	if c.Since == nil {
		c.Since = timestamppb.Now()
	}
	if c.Belief == "" {
		c.Belief = c.Status
		if c.Status == presenceclient.StatusUnknown {
			c.Belief = presenceclient.StatusOffline
		}
	}
	k := key{c.Cluster, c.ClientId}
	known := f.clients[k]
	if known == nil {
		known = &client{}
		f.clients[k] = known
	}
	previous := known.now.GetStatus()
	if c.LastTransition == nil || proto.Equal(c.LastTransition, known.now.GetLastTransition()) {
		c.LastTransition = &presencev1.Transition{PreviousStatus: previous, Time: c.Since, EventOffset: int64(len(f.log))}
	}
	if was := known.now.GetConnection(); was != nil && !same(was, c.Connection) {
		known.sessions = append(known.sessions, ended(known.now, c.Since))
	}
	known.now = c
	f.append(&presencev1.WatchClientsResponse{Type: presenceclient.EventTransition, Transition: transition(c, previous)})
}

// same reports whether two messages are about one connection.
func same(a, b *presencev1.ClientConnection) bool {
	return a.GetNode() == b.GetNode() && a.GetKey() == b.GetKey() && proto.Equal(a.GetConnectedAt(), b.GetConnectedAt())
}

func transition(c *presencev1.Client, previous string) *presencev1.ClientTransition {
	conn := c.GetConnection()
	return &presencev1.ClientTransition{
		ClientId: c.ClientId, Cluster: c.Cluster, Status: c.Status, PreviousStatus: previous, StatusReason: c.StatusReason, Belief: c.Belief,
		Since: c.Since, Node: conn.GetNode(), Key: conn.GetKey(), ConnectedAt: conn.GetConnectedAt(), Username: conn.GetUsername(), Peer: conn.GetPeer(),
		CloseReason: conn.GetCloseReason(), CloseRawReason: conn.GetCloseRawReason(), Time: c.LastTransition.GetTime(),
		EventOffset: c.LastTransition.GetEventOffset(), NodeEventOffset: c.LastTransition.GetNodeEventOffset(),
	}
}

// Forget makes clients of the default cluster never seen.
func (f *Fake) Forget(clientIDs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, id := range clientIDs {
		f.forget(key{DefaultCluster, id})
	}
}

func (f *Fake) forget(k key) {
	known := f.clients[k]
	if known == nil {
		return
	}
	delete(f.clients, k)
	now := timestamppb.Now()
	if known.now.GetStatus() != presenceclient.StatusOffline {
		f.append(&presencev1.WatchClientsResponse{Type: presenceclient.EventTransition, Transition: &presencev1.ClientTransition{
			ClientId: k.id, Cluster: k.cluster, Status: presenceclient.StatusOffline, PreviousStatus: known.now.GetStatus(),
			StatusReason: reasonNeverSeen, Belief: presenceclient.StatusOffline, Time: now, EventOffset: int64(len(f.log)),
		}})
	}
	f.append(&presencev1.WatchClientsResponse{Type: presenceclient.EventRemoved, Transition: &presencev1.ClientTransition{
		ClientId: k.id, Cluster: k.cluster, StatusReason: "forgotten", Time: now, EventOffset: int64(len(f.log)),
	}})
}

// append adds to the log and wakes the watches.
func (f *Fake) append(event *presencev1.WatchClientsResponse) {
	f.log = append(f.log, event)
	close(f.changed)
	f.changed = make(chan struct{})
}

// SetStale makes all answers stale for reasons such as lagging or feed_gap; none makes them fresh again.
func (f *Fake) SetStale(reasons ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stale = slices.Clone(reasons)
}

// Fail makes every call of a name, such as GetStatus or WatchClients, fail with an error, which may carry a gRPC status. Nil ends that.
func (f *Fake) Fail(call string, err error) { f.fail(call, err, false) }

// FailOnce does the same for the next call only.
func (f *Fake) FailOnce(call string, err error) { f.fail(call, err, true) }

func (f *Fake) fail(call string, err error, once bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		delete(f.faults, call)
		return
	}
	f.faults[call] = &fault{err, once}
}

// Delay makes every call of a name take that long more, or until its caller gives up. 0 ends that.
func (f *Fake) Delay(call string, d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delays[call] = d
}

// Calls returns how many calls of a name there were, those that failed included.
func (f *Fake) Calls(call string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[call]
}

// Watches returns how many watches are under way.
func (f *Fake) Watches() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watches)
}

// BreakWatches ends all watches that are under way with an error, which may carry a gRPC status.
func (f *Fake) BreakWatches(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		select {
		case w.broken <- err:
		default: // It is being ended already.
		}
	}
}

// Skip makes all watches that are under way report that so many records were passed over.
func (f *Fake) Skip(records int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watches {
		select {
		case w.skip <- records:
		default: // The one before is not sent yet.
		}
	}
}

// LoseLog makes the resume tokens of watches too old, except those of the latest change.
func (f *Fake) LoseLog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = len(f.log)
}

// unary counts, delays and fails calls.
func (f *Fake) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	if err := f.before(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(ctx, req)
}

func (f *Fake) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if err := f.before(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handler(srv, stream)
}

func (f *Fake) before(ctx context.Context, fullMethod string) error {
	call := fullMethod[strings.LastIndexByte(fullMethod, '/')+1:]
	f.mu.Lock()
	f.calls[call]++
	delay, fault := f.delays[call], f.faults[call]
	if fault != nil && fault.once {
		delete(f.faults, call)
	}
	f.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if fault != nil {
		return fault.err
	}
	return nil
}

// sorted returns the keys of the clients in a cluster, by client ID.
func (f *Fake) sorted(cluster string) []key {
	var all []key
	for k := range maps.Keys(f.clients) {
		if k.cluster == cluster {
			all = append(all, k)
		}
	}
	slices.SortFunc(all, func(a, b key) int { return strings.Compare(a.id, b.id) })
	return all
}
