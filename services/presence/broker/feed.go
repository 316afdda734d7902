package broker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

// feedWindow is how many messages the bridge may leave unacknowledged, if it does not ask for fewer. It is below every limit at which mochi
// drops or reorders.
const feedWindow = 4096

// message is one MQTT message of the feed.
type message struct {
	topic   string
	payload []byte
	retain  bool
	at      time.Time // on the node's clock
}

// feed carries messages to the bridge, in order: a bounded queue, drained into a mochi server of its own that only Broker.Dial reaches.
type feed struct {
	server *mqtt.Server
	limit  int
	onDrop func(Drop)

	mu      sync.Mutex
	queue   []message
	drop    Drop
	pending atomic.Int64 // queued, or taken and not yet handed to mochi

	wake    chan struct{} // something changed that run may wait for; one slot
	session atomic.Pointer[mqtt.Client]
	// gate is held while a message is handed to mochi, and while the bridge's session moves to a new connection: mochi would drop a
	// message that comes in between.
	gate sync.Mutex
	wg   sync.WaitGroup
}

func newFeed(limit int, onDrop func(Drop), log *slog.Logger) (*feed, error) {
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClientWritesPending = 2 * feedWindow
	capabilities.MaximumInflight = 2 * feedWindow
	capabilities.MaximumMessageExpiryInterval = 0
	f := &feed{
		limit:  limit,
		onDrop: onDrop,
		wake:   make(chan struct{}, 1),
		server: mqtt.New(&mqtt.Options{Capabilities: capabilities, Logger: quiet(log), InlineClient: true}),
	}
	if err := f.server.AddHook(&feedHook{f: f}, nil); err != nil {
		return nil, fmt.Errorf("add the hook of the feed: %w", err)
	}
	return f, nil
}

// publish queues a client event, or counts it as dropped. It never waits.
func (f *feed) publish(m message) {
	f.mu.Lock()
	if len(f.queue) < f.limit {
		f.queue = append(f.queue, m)
		f.pending.Add(1)
	} else {
		if f.drop.Count == 0 {
			f.drop.From = m.at
		}
		f.drop.To = m.at
		f.drop.Count++
	}
	f.mu.Unlock()
	f.signal()
}

func (f *feed) signal() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// take returns all that is queued, and what was dropped since the last call.
func (f *feed) take() ([]message, Drop) {
	f.mu.Lock()
	defer f.mu.Unlock()
	queue, drop := f.queue, f.drop
	f.queue, f.drop = nil, Drop{}
	return queue, drop
}

// run hands the queue to mochi until ctx ends.
func (f *feed) run(ctx context.Context) {
	for {
		batch, drop := f.take()
		if drop.Count > 0 && f.onDrop != nil {
			f.onDrop(drop)
		}
		for _, m := range batch {
			if !f.send(ctx, m) {
				return
			}
			f.pending.Add(-1)
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
	}
}

// send waits until the bridge's window has room. Retained messages need no reader.
func (f *feed) send(ctx context.Context, m message) bool {
	for !m.retain && !f.room() {
		select {
		case <-ctx.Done():
			return false
		case <-f.wake:
		}
	}
	f.gate.Lock()
	defer f.gate.Unlock()
	// Publish fails only for packets that are malformed.
	if err := f.server.Publish(m.topic, m.payload, m.retain, 1); err != nil {
		f.server.Log.Error("event not published", "error", err, "mqtt_topic", m.topic)
	}
	return true
}

func (f *feed) room() bool {
	s := f.session.Load()
	if s == nil {
		return false
	}
	c, ok := s.Net.Conn.(*feedConn)
	return ok && s.State.Inflight.Len() < c.window
}

// idle says whether all that was queued has been acknowledged, or nobody is there to do so.
func (f *feed) idle() bool {
	s := f.session.Load()
	return s == nil || s.Closed() || f.pending.Load() == 0 && s.State.Inflight.Len() == 0
}

// serve serves one in-process connection until it ends.
func (f *feed) serve(c net.Conn) {
	fc := newFeedConn(c)
	f.wg.Go(fc.readAhead)
	err := f.server.EstablishConnection("feed", fc)
	f.open(fc)
	f.server.Log.Debug("feed connection ended", "error", err)
}

func (f *feed) open(c *feedConn) {
	if c.gate {
		c.gate = false
		f.gate.Unlock()
	}
}

// feedHook is the hook into the feed's server.
type feedHook struct {
	mqtt.HookBase
	f *feed
}

// ID names the hook in mochi's log lines.
func (*feedHook) ID() string { return "presence-feed" }

// Provides lists the calls that mochi makes.
func (*feedHook) Provides(call byte) bool {
	switch call {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnSessionEstablished, mqtt.OnSubscribe,
		mqtt.OnPacketEncode, mqtt.OnSubscribed, mqtt.OnQosComplete, mqtt.OnDisconnect:
		return true
	}
	return false
}

// OnConnect takes the bridge's Receive Maximum (MQTT 5, 3.1.2.11.3) into the feed's own hands.
func (h *feedHook) OnConnect(cl *mqtt.Client, _ packets.Packet) error {
	if c, ok := cl.Net.Conn.(*feedConn); ok {
		if announced := int(cl.Properties.Props.ReceiveMaximum); announced > 0 {
			c.window = min(c.window, announced)
		}
	}
	noSendQuota(cl)
	return nil
}

// noSendQuota turns mochi's send quota off. With it mochi looks after each packet of a client for messages that have waited
// for the quota, under a read lock that it takes twice; if somebody publishes to the client in between, both wait for ever.
func noSendQuota(cl *mqtt.Client) {
	cl.Properties.Props.ReceiveMaximum = 0
	cl.State.Inflight.ResetSendQuota(0)
}

// OnConnectAuthenticate accepts whoever could dial.
func (*feedHook) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnACLCheck makes the feed read-only.
func (*feedHook) OnACLCheck(_ *mqtt.Client, _ string, write bool) bool { return !write }

// OnSessionEstablish stops the flow while mochi copies the session.
func (h *feedHook) OnSessionEstablish(cl *mqtt.Client, _ packets.Packet) {
	if c, ok := cl.Net.Conn.(*feedConn); ok {
		h.f.gate.Lock()
		c.gate = true
	}
}

// OnSessionEstablished lets it go on, if the session was resumed with its subscription.
func (h *feedHook) OnSessionEstablished(cl *mqtt.Client, _ packets.Packet) {
	h.follow(cl)
	if c, ok := cl.Net.Conn.(*feedConn); ok {
		h.f.open(c)
	}
}

// OnSubscribe and OnPacketEncode hide the packet identifier of SUBSCRIBE from mochi, which would refuse it if a message to the client that
// is not yet acknowledged has the same: the two sides number their packets independently (MQTT 5, 2.2.1).
func (h *feedHook) OnSubscribe(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if c, ok := cl.Net.Conn.(*feedConn); ok {
		c.subscribeID, pk.PacketID = pk.PacketID, 0
	}
	return pk
}

// OnPacketEncode puts the packet identifier into SUBACK.
func (h *feedHook) OnPacketEncode(cl *mqtt.Client, pk packets.Packet) packets.Packet {
	if c, ok := cl.Net.Conn.(*feedConn); ok && pk.FixedHeader.Type == packets.Suback {
		pk.PacketID = c.subscribeID
	}
	return pk
}

// OnSubscribed starts the flow.
func (h *feedHook) OnSubscribed(cl *mqtt.Client, _ packets.Packet, _ []byte) { h.follow(cl) }

func (h *feedHook) follow(cl *mqtt.Client) {
	for filter := range cl.State.Subscriptions.GetAll() {
		if strings.Contains(filter, "/clients/") || strings.HasSuffix(filter, "#") {
			h.f.session.Store(cl)
			h.f.signal()
			return
		}
	}
}

// OnQosComplete makes room in the window.
func (h *feedHook) OnQosComplete(*mqtt.Client, packets.Packet) { h.f.signal() }

// OnDisconnect forgets a session that ends with its connection.
func (h *feedHook) OnDisconnect(cl *mqtt.Client, _ error, expire bool) {
	if expire {
		h.f.session.CompareAndSwap(cl, nil)
	}
	h.f.signal()
}
