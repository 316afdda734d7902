package bridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/mqtt-presence/presence/libs/service"
)

const (
	// keepAliveS bounds how long a dead connection goes unseen, well below what the broker keeps.
	keepAliveS       = 5
	sessionExpiryS   = 3600
	receiveMaximum   = 2048 // Mosquitto sends only 20 messages ahead unless it is told a number
	connectTimeout   = 10 * time.Second
	subscribeRetry   = 50 * time.Millisecond // doubled with each attempt
	subscribeRetries = 7                     // after which it stays as it is
	maxBackoff       = 5 * time.Second
	shortConnection  = 5 * time.Second
	toldTakeovers    = 3   // within rivalMemory
	takeoverPause    = 100 // in place of the number of short connections, after a takeover
	poisonedAfter    = 5   // short connections of a resumed session, one after the other
	reasonTakenOver  = 0x8E
	reasonSubRefused = 0x80
	reasonIDInUse    = 0x91
)

// receiver is what a session hands its events to. Calls come one at a time, except subscribed and refused.
type receiver interface {
	// connected is called after each CONNACK, before the first message.
	connected(resumed bool, atMS int64)
	// received is called for each message, in order. settle must be called once the message's facts are durable, in the order of receipt.
	received(m *message, redelivered bool, settle func())
	// subscribed is called after each SUBACK. partly tells what the broker refused of it, nil if nothing.
	subscribed(resumed bool, connectedMS, atMS int64, partly error)
	// refused is called when the broker refuses the subscription.
	refused(err error)
	// disconnected is called when a connection has ended; lastMS is when the broker was last heard.
	disconnected(lastMS int64)
}

// mqttSession keeps one persistent MQTT session with the broker of a cluster. A message is acknowledged when it is settled, in order; a message that
// was not settled before the connection was lost is delivered again, and told from a new one by its packet identifier.
type mqttSession struct {
	log       *slog.Logger
	to        receiver
	filters   []filter
	clientID  string
	username  string
	password  service.Secret
	endpoints []*url.URL
	dial      func(ctx context.Context, u *url.URL) (net.Conn, error)
	// embedded brokers are not told a receive maximum: mochi, which then counts a quota, can deadlock between a publish and an
	// acknowledgement (Inflight.NextImmediate takes its read lock twice).
	embedded bool

	acks       ackedState
	lastReadMS atomic.Int64

	mu        sync.Mutex
	resumed   bool
	connected time.Time // CONNACK of the connection that stands
	short     int       // connections of a resumed session that ended at once, one after the other
	cancel    context.CancelFunc
	taken     time.Time // when another client with the ID took the session over last; zero: none has
	takeovers int
	told      []time.Time // when the broker told of such a takeover, the latest
}

func newMQTTSession(c *ClusterConfig, password service.Secret, dial func(context.Context) (net.Conn, error), filters []filter, to receiver, log *slog.Logger) (*mqttSession, error) {
	s := &mqttSession{log: log, to: to, filters: filters, clientID: c.ClientID, username: c.Username, password: password, cancel: func() {}}
	s.acks = ackedState{State: state.NewInMemory(), connected: s.onConnack, unsettled: map[uint16]uint64{}}
	if dial != nil {
		s.embedded, s.endpoints = true, []*url.URL{{Scheme: "mqtt", Host: "embedded"}}
		s.dial = func(ctx context.Context, _ *url.URL) (net.Conn, error) { return dial(ctx) }
		return s, nil
	}
	var err error
	if s.endpoints, err = c.endpoints(); err != nil {
		return nil, err
	}
	var tlsConfig *tls.Config
	if tlsConfig, err = c.tlsConfig(); err != nil {
		return nil, fmt.Errorf("mqtt-tls: %w", err)
	}
	s.dial = dialer(tlsConfig, func(u *url.URL) bool { return !c.TLS.Enabled && !usesTLS(u) })
	return s, nil
}

// run keeps the session connected until ctx ends; it leaves it to the broker to keep.
func (s *mqttSession) run(ctx context.Context) error {
	receiveMax := uint16(receiveMaximum)
	expiry := uint32(sessionExpiryS)
	manager, err := autopaho.NewConnection(ctx, autopaho.ClientConfig{
		ServerUrls:            s.endpoints,
		KeepAlive:             keepAliveS,
		SessionExpiryInterval: expiry,
		ConnectTimeout:        connectTimeout,
		ConnectUsername:       s.username,
		ConnectPassword:       []byte(s.password.Reveal()),
		ReconnectBackoff:      s.backoff,
		AttemptConnection: func(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
			c, err := s.dial(ctx, u)
			if err != nil {
				return nil, fmt.Errorf("dial %s: %w", describe(u), err)
			}
			return newBrokerConn(c, &s.lastReadMS), nil
		},
		ConnectPacketBuilder: func(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			if !s.embedded {
				c.Properties.ReceiveMaximum = &receiveMax
			}
			c.CleanStart = s.poisoned()
			return c, nil
		},
		OnConnectionUp:   func(m *autopaho.ConnectionManager, _ *paho.Connack) { s.onUp(ctx, m) },
		OnConnectionDown: func() bool { s.onDown(); return true },
		OnConnectError: func(err error) {
			if ctx.Err() == nil {
				s.log.Warn("cannot connect to the mqtt broker; trying again", service.KeyError, err)
			}
		},
		ClientConfig: paho.ClientConfig{
			ClientID:          s.clientID,
			Session:           &s.acks,
			OnPublishReceived: []func(paho.PublishReceived) (bool, error){s.onPublish},
			OnClientError: func(err error) {
				if ctx.Err() == nil {
					s.log.Warn("the mqtt connection was lost", service.KeyError, err)
				}
			},
			OnServerDisconnect: s.onServerDisconnect,
		},
	})
	if err != nil {
		return fmt.Errorf("start the mqtt session: %w", err)
	}
	<-manager.Done()
	s.onDown()
	return nil
}

// backoff delays the attempt to connect; the first one after a connection that held comes at once.
func (s *mqttSession) backoff(attempt int) time.Duration {
	s.mu.Lock()
	attempt += s.short
	s.mu.Unlock()
	if attempt == 0 {
		return 0
	}
	d := min(50*time.Millisecond<<min(attempt, 10), maxBackoff)
	return d/2 + rand.N(d/2)
}

// poisoned reports whether the session should be given up: each time it was resumed the connection broke at once, so what the broker
// delivers first cannot be read, or the broker cannot write it. The next session begins without it, and with a gap.
func (s *mqttSession) poisoned() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.short < poisonedAfter || s.short == takeoverPause {
		return false
	}
	s.log.Error("resuming the mqtt session fails again and again; beginning a new one", service.KeyCount, s.short)
	return true
}

// takeover notes that another client took the session over.
func (s *mqttSession) takeover(now time.Time) {
	s.mu.Lock()
	s.taken, s.short = now, takeoverPause
	s.takeovers++
	n := s.takeovers
	s.mu.Unlock()
	s.log.Error("another client took over the session; give every bridge its own bridge-name or mqtt-client-id", "mqtt_client_id", s.clientID, service.KeyCount, n)
}

// toldTakeover notes that the broker tells of a connection with this session's client ID that was taken over: not every broker tells its client. Now
// and then it is the bridge's own, which it lost; again and again it is not.
func (s *mqttSession) toldTakeover(now time.Time) {
	s.mu.Lock()
	s.told = append(s.told, now)
	s.told = s.told[max(0, len(s.told)-toldTakeovers):]
	again := len(s.told) == toldTakeovers && now.Sub(s.told[0]) < rivalMemory && now.Sub(s.taken) > shortConnection/5
	s.mu.Unlock()
	if again {
		s.takeover(now)
	}
}

// takenOver returns when another client took the session over last; zero if none has.
func (s *mqttSession) takenOver() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.taken
}

func (s *mqttSession) onConnack(resumed bool) {
	now := time.Now()
	s.mu.Lock()
	s.resumed, s.connected = resumed, now
	s.mu.Unlock()
	s.to.connected(resumed, now.UnixMilli())
}

func (s *mqttSession) onUp(ctx context.Context, manager *autopaho.ConnectionManager) {
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.cancel = cancel
	resumed, connected := s.resumed, s.connected
	s.mu.Unlock()
	go s.subscribe(ctx, manager, resumed, connected)
}

// subscribe subscribes, and goes on trying while the connection stands.
func (s *mqttSession) subscribe(ctx context.Context, manager *autopaho.ConnectionManager, resumed bool, connected time.Time) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for attempt := 0; ; attempt++ {
		select {
		case <-ctx.Done():
			return
		case <-retry.C:
		}
		partly, err := s.trySubscribe(ctx, manager)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			s.to.subscribed(resumed, connected.UnixMilli(), time.Now().UnixMilli(), partly)
			return
		}
		s.log.Warn("cannot subscribe to the broker's events; trying again", service.KeyError, err)
		s.to.refused(err)
		retry.Reset(subscribeRetry << min(attempt, subscribeRetries))
	}
}

// trySubscribe asks for all filters. The broker may refuse some, such as those of other dialects, which partly tells; one with events it must
// grant.
func (s *mqttSession) trySubscribe(ctx context.Context, manager *autopaho.ConnectionManager) (partly, err error) {
	request := &paho.Subscribe{}
	for _, f := range s.filters {
		request.Subscriptions = append(request.Subscriptions, paho.SubscribeOptions{Topic: f.topic, QoS: f.qos})
	}
	answer, err := manager.Subscribe(ctx, request)
	if answer == nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	granted := false
	refused := map[byte][]string{}
	for i, f := range s.filters {
		switch {
		case i >= len(answer.Reasons):
			return nil, fmt.Errorf("subscribe to %d filters: the broker answers for %d", len(s.filters), len(answer.Reasons))
		case answer.Reasons[i] < reasonSubRefused:
			granted = granted || f.events
		default:
			refused[answer.Reasons[i]] = append(refused[answer.Reasons[i]], f.topic)
		}
	}
	if len(refused) == 0 {
		return nil, nil
	}
	var errs []error
	for code, topics := range refused {
		hint := fmt.Sprintf("allow client %q to subscribe to it", s.clientID)
		if code == reasonIDInUse {
			// Some brokers share the identifiers of their own messages with the client's: the next one is free.
			hint = "the packet identifier is in use"
		}
		errs = append(errs, fmt.Errorf("the broker refuses %s with reason 0x%02X: %s", strings.Join(topics, ", "), code, hint))
	}
	partly = errors.Join(errs...)
	if !granted || len(refused[reasonIDInUse]) > 0 {
		return nil, partly
	}
	s.log.Warn("subscribed in part", service.KeyError, partly)
	return partly, nil
}

func (s *mqttSession) onPublish(p paho.PublishReceived) (bool, error) {
	m := &message{topic: p.Packet.Topic, payload: p.Packet.Payload, qos: p.Packet.QoS, retain: p.Packet.Retain, receivedMS: time.Now().UnixMilli()}
	if m.qos == 0 {
		s.to.received(m, false, nil)
		return true, nil
	}
	ticket, redelivered := s.acks.receive(p.Packet)
	s.to.received(m, redelivered, func() { s.acks.settle(ticket) })
	return true, nil
}

func (s *mqttSession) onDown() {
	s.mu.Lock()
	cancel, connected := s.cancel, s.connected
	s.cancel, s.connected = func() {}, time.Time{}
	if !connected.IsZero() {
		switch {
		case !s.taken.Before(connected):
			// Nothing is wrong with the session; but two that take it from each other without a pause would do nothing else.
			s.short = takeoverPause
		case time.Since(connected) >= shortConnection:
			s.short = 0
		case s.resumed:
			s.short++
		default:
			// A session that begins anew holds nothing that could break it; but wait before the next attempt.
			s.short = 1
		}
	}
	s.mu.Unlock()
	cancel()
	if !connected.IsZero() {
		s.to.disconnected(s.lastReadMS.Load())
	}
}

func (s *mqttSession) onServerDisconnect(d *paho.Disconnect) {
	if d.ReasonCode == reasonTakenOver {
		s.takeover(time.Now())
		return
	}
	reason := ""
	if d.Properties != nil {
		reason = d.Properties.ReasonString
	}
	s.log.Warn("the broker ended the mqtt connection", service.KeyReason, fmt.Sprintf("0x%02X %s", d.ReasonCode, reason))
}

// ackedState is the MQTT session state of the client library with acknowledgements of our own timing: the library's manual mode sends them
// on a ticker, here they go out when the message is settled, which is in the order of receipt (MQTT 5, 4.6).
type ackedState struct {
	*state.State
	connected func(resumed bool)

	mu        sync.Mutex
	epoch     uint64            // number of the connection
	unsettled map[uint16]uint64 // by packet identifier: the connection that last delivered it
}

// ticket names a message to acknowledge.
type ticket struct {
	epoch  uint64
	packet *packets.Publish
}

// ConAckReceived begins a connection.
func (s *ackedState) ConAckReceived(w io.Writer, c *packets.Connect, a *packets.Connack) error {
	s.mu.Lock()
	s.epoch++
	if !a.SessionPresent {
		s.unsettled = map[uint16]uint64{}
	}
	err := s.State.ConAckReceived(w, c, a)
	s.mu.Unlock()
	if err == nil {
		s.connected(a.SessionPresent)
	}
	return err
}

// Ack is called by the library when a message was handed over, which is too early.
func (s *ackedState) Ack(*packets.Publish) error { return nil }

// receive notes a message that is to be settled, and reports whether the connection before had delivered it already.
func (s *ackedState) receive(p *paho.Publish) (t ticket, redelivered bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last, seen := s.unsettled[p.PacketID]
	s.unsettled[p.PacketID] = s.epoch
	return ticket{s.epoch, &packets.Publish{PacketID: p.PacketID, QoS: p.QoS}}, p.Duplicate() && seen && last < s.epoch
}

// settle acknowledges a message, unless its connection is gone: the broker will deliver it again.
func (s *ackedState) settle(t ticket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t.epoch != s.epoch {
		return
	}
	delete(s.unsettled, t.packet.PacketID)
	// An error is one of the connection, whose reader reports it.
	_ = s.State.Ack(t.packet)
}
