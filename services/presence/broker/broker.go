package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// version is EMQX's whose events these are; sysdescr says who really speaks.
	version  = "5.8.9"
	sysdescr = "Presence embedded broker (mochi-mqtt " + mqtt.Version + ")"

	// announceInterval is the time between two copies of the retained messages.
	announceInterval = time.Minute
	// drainTimeout bounds how long Run waits for clients to go, and then for the bridge to take the last events.
	drainTimeout = time.Second
)

// ErrClosed is returned by Dial once the broker has stopped.
var ErrClosed = errors.New("mqtt broker is closed")

// Broker is an MQTT 3.1.1 and 5 broker whose events go to one bridge in the same process.
type Broker struct {
	cfg     Config
	log     *slog.Logger
	clock   *clock
	front   *mqtt.Server
	feed    *feed
	entries entries
	metrics *metrics

	listener net.Listener
	ws       *wsListener // nil: none
	openedMS atomic.Int64
	serving  chan struct{} // closed once the feed is served

	mu     sync.Mutex
	conns  map[*conn]struct{} // connections of clients
	closed bool
	wg     sync.WaitGroup // their handlers
}

// New returns a broker that does not listen yet.
func New(cfg Config, log *slog.Logger, reg prometheus.Registerer) (*Broker, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	b := &Broker{
		cfg:     cfg,
		log:     log.With(service.KeyComponent, "broker"),
		clock:   newClock(),
		serving: make(chan struct{}),
		conns:   make(map[*conn]struct{}),
	}
	var err error
	if b.metrics, err = newMetrics(b, reg); err != nil {
		return nil, err
	}
	if b.front, err = newFrontServer(b); err != nil {
		return nil, err
	}
	onDrop := func(d Drop) {
		b.metrics.dropped.Add(float64(d.Count))
		b.log.Warn("client events dropped: the bridge does not keep up", service.KeyCount, d.Count)
		if cfg.OnDrop != nil {
			cfg.OnDrop(d)
		}
	}
	if b.feed, err = newFeed(cfg.QueueLimit, onDrop, b.log); err != nil {
		return nil, err
	}
	return b, nil
}

// Listen binds the addresses, so that a busy port is an error before anything has started. Clients that connect wait until they are served.
func (b *Broker) Listen() error {
	if b.listener == nil {
		l, err := net.Listen("tcp", b.cfg.Addr)
		if err != nil {
			return fmt.Errorf("listen for mqtt on %s: %w", b.cfg.Addr, err)
		}
		b.listener = l
	}
	if b.ws == nil && b.cfg.WSAddr != "" {
		ws, err := listenWS(b.cfg.WSAddr, b.handle, b.log)
		if err != nil {
			return err
		}
		b.ws = ws
	}
	return nil
}

// Addr is the address that Listen bound, nil before.
func (b *Broker) Addr() net.Addr {
	if b.listener == nil {
		return nil
	}
	return b.listener.Addr()
}

// WSAddr is the address for MQTT over WebSocket that Listen bound, nil before and if there is none.
func (b *Broker) WSAddr() net.Addr {
	if b.ws == nil {
		return nil
	}
	return b.ws.Addr()
}

// Clients returns the IDs of the clients that are connected by the server's own table, which no event has made, in no order.
func (b *Broker) Clients() []string {
	var ids []string
	for id, cl := range b.front.Clients.GetAll() {
		if !cl.Closed() {
			ids = append(ids, id)
		}
	}
	return ids
}

// Node is the broker's name in topics.
func (b *Broker) Node() string { return b.cfg.Node }

// OpenedMS is when this generation began to serve clients, on the broker's clock, in epoch milliseconds; 0 before.
func (b *Broker) OpenedMS() int64 { return b.openedMS.Load() }

// Dial connects to the feed, in process. It waits until Run has begun.
func (b *Broker) Dial(ctx context.Context) (net.Conn, error) {
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("dial the embedded mqtt broker: %w", ctx.Err())
	case <-b.serving:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	ours, theirs := net.Pipe()
	b.feed.wg.Go(func() { b.feed.serve(ours) })
	return theirs, nil
}

// Kick ends a client's connection and says whether it had one.
func (b *Broker) Kick(clientID string) bool {
	// While a takeover is under way, mochi still knows the connection that goes: wait for the ID's turn.
	e := b.entries.enter(clientID)
	cl, ok := b.front.Clients.Get(clientID)
	e.turn.Unlock()
	b.entries.leave(clientID, e)
	if !ok || cl.Closed() {
		return false
	}
	// The code comes back as an error; the connection is closed in any case.
	_ = b.front.DisconnectClient(cl, packets.ErrAdministrativeAction)
	return true
}

// Run serves the feed at once and clients once Config.Open is closed, until ctx ends. It then disconnects the clients, gives the bridge
// the chance to take the last events, and returns nil.
func (b *Broker) Run(ctx context.Context) error {
	if err := b.Listen(); err != nil {
		return err
	}
	if err := b.front.Serve(); err != nil {
		return errors.Join(fmt.Errorf("start the mqtt broker: %w", err), b.closeListeners())
	}
	feedCtx, stopFeed := context.WithCancel(context.WithoutCancel(ctx))
	defer stopFeed()
	b.feed.wg.Go(func() { b.feed.run(feedCtx) })
	b.announce()
	close(b.serving)

	var err error
	select {
	case <-ctx.Done():
	case <-b.cfg.Open:
		err = b.serve(ctx)
	}
	return errors.Join(err, b.stop(stopFeed))
}

// serve accepts clients and sends heartbeats until ctx ends.
func (b *Broker) serve(ctx context.Context) error {
	openedMS := b.clock.nowMS()
	b.openedMS.Store(openedMS)
	b.heartbeat(openedMS)
	b.log.Info("serving", service.KeyAddr, b.listener.Addr().String())
	accepting := 1
	accepted := make(chan error, 2)
	go func() { accepted <- fmt.Errorf("accept mqtt connections on %s: %w", b.listener.Addr(), b.accept()) }()
	if b.ws != nil {
		b.log.Info("serving websockets", service.KeyAddr, b.ws.Addr().String())
		accepting++
		go func() { accepted <- fmt.Errorf("accept websockets on %s: %w", b.ws.Addr(), b.ws.serve()) }()
	}

	beat := time.NewTicker(b.cfg.HeartbeatInterval)
	defer beat.Stop()
	announce := time.NewTicker(announceInterval)
	defer announce.Stop()
	for {
		select {
		case <-ctx.Done():
			closeErr := b.closeListeners()
			for range accepting {
				<-accepted
			}
			return closeErr
		case err := <-accepted:
			return err
		case <-beat.C:
			b.heartbeat(openedMS)
		case <-announce.C:
			b.announce()
		}
	}
}

// accept serves each connection until the listener is closed.
func (b *Broker) accept() error {
	for {
		c, err := b.listener.Accept()
		if err != nil {
			return err
		}
		b.handle(newConn(c, "tcp"))
	}
}

// closeListeners ends accepting; once is enough.
func (b *Broker) closeListeners() error {
	err := ignoreClosed(b.listener.Close())
	if b.ws != nil {
		err = errors.Join(err, b.ws.Close())
	}
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// handle serves one client in a goroutine of its own.
func (b *Broker) handle(c *conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		b.drop(c)
		return
	}
	b.conns[c] = struct{}{}
	b.wg.Go(func() {
		defer func() {
			b.mu.Lock()
			delete(b.conns, c)
			b.mu.Unlock()
		}()
		if err := c.SetReadDeadline(time.Now().Add(connectTimeout)); err != nil {
			b.drop(c)
			return
		}
		err := b.front.EstablishConnection(c.listener, c)
		b.finish(c, err)
		b.log.Debug("connection ended", service.KeyError, err)
	})
}

// drop closes a connection about which there is nothing to say.
func (b *Broker) drop(c *conn) {
	if err := c.Close(); err != nil {
		b.log.Debug("close connection", service.KeyError, err)
	}
}

// announce publishes what does not change.
func (b *Broker) announce() {
	at := b.clock.now()
	for _, m := range []message{
		{topic: brokersTopic, payload: []byte(b.cfg.Node)},
		{topic: b.nodeTopic("version"), payload: []byte(version)},
		{topic: b.nodeTopic("sysdescr"), payload: []byte(sysdescr)},
	} {
		m.retain, m.at = true, at
		b.feed.publish(m)
	}
}

// heartbeat publishes uptime and datetime of one instant, whose difference is the start of the generation to the millisecond.
func (b *Broker) heartbeat(openedMS int64) {
	now := b.clock.now()
	uptime := strconv.FormatInt(now.UnixMilli()-openedMS, 10)
	b.feed.publish(message{topic: b.nodeTopic("uptime"), payload: []byte(uptime), at: now})
	b.feed.publish(message{topic: b.nodeTopic("datetime"), payload: now.AppendFormat(nil, time.RFC3339Nano), at: now})
}

// stop ends all connections, clients first.
func (b *Broker) stop(stopFeed context.CancelFunc) error {
	closeErr := b.closeListeners()
	b.mu.Lock()
	b.closed = true
	conns := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		conns = append(conns, c)
	}
	b.mu.Unlock()
	for _, cl := range b.front.Clients.GetAll() {
		if !cl.Closed() {
			// One that does not read would hold up the others.
			go func() { _ = b.front.DisconnectClient(cl, packets.ErrServerShuttingDown) }()
		}
	}
	gone := make(chan struct{})
	go func() {
		b.wg.Wait()
		close(gone)
	}()
	timeout := time.NewTimer(drainTimeout)
	defer timeout.Stop()
	select {
	case <-gone:
	case <-timeout.C:
	}
	for _, c := range conns {
		b.drop(c)
	}
	<-gone

	drained := time.NewTimer(drainTimeout)
	defer drained.Stop()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for waiting := true; waiting && !b.feed.idle(); {
		select {
		case <-poll.C:
		case <-drained.C:
			waiting = false
		}
	}
	stopFeed()
	for _, cl := range b.feed.server.Clients.GetAll() {
		cl.Stop(packets.ErrServerShuttingDown)
	}
	b.feed.wg.Wait()
	return errors.Join(closeErr, b.front.Close(), b.feed.server.Close())
}
