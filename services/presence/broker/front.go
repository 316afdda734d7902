package broker

import (
	"fmt"
	"strings"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"
)

const (
	// maxSessionExpiry bounds how long a session without a connection stays in memory, in seconds.
	maxSessionExpiry = 7 * 24 * 60 * 60
	// maxPendingWrites is how many packets may wait for a client that reads slowly. Mochi allocates the queue with the connection,
	// 8 bytes each.
	maxPendingWrites = 1024
)

// front is the hook into the server that clients connect to. For one connection mochi calls, always from the goroutine that
// serves it and in this order: OnConnect, OnConnectAuthenticate, OnSessionEstablish, OnPacketSent with CONNACK, OnPacketRead for each
// packet, OnDisconnect. It leaves early if CONNECT is refused or CONNACK cannot be written; [Broker.finish] follows in any case.
type front struct {
	mqtt.HookBase
	b *Broker
}

func newFrontServer(b *Broker) (*mqtt.Server, error) {
	capabilities := mqtt.NewDefaultServerCapabilities()
	capabilities.MaximumClientWritesPending = maxPendingWrites
	capabilities.MaximumSessionExpiryInterval = maxSessionExpiry
	server := mqtt.New(&mqtt.Options{
		Capabilities: capabilities,
		Logger:       quiet(b.log),
		// Mochi's own $SYS/broker topics, which nobody may read, stop the world for memory statistics each time.
		SysTopicResendInterval: 24 * 60 * 60,
	})
	if err := server.AddHook(&front{b: b}, nil); err != nil {
		return nil, fmt.Errorf("add the hook of the mqtt broker: %w", err)
	}
	return server, nil
}

// ID names the hook in mochi's log lines.
func (*front) ID() string { return "presence-events" }

// Provides lists the calls that mochi makes.
func (*front) Provides(call byte) bool {
	switch call {
	case mqtt.OnConnect, mqtt.OnConnectAuthenticate, mqtt.OnACLCheck, mqtt.OnSessionEstablish, mqtt.OnPacketSent, mqtt.OnPacketRead, mqtt.OnDisconnect:
		return true
	}
	return false
}

// OnConnect refuses what could not be told apart in events, and wills that would publish under $SYS.
func (h *front) OnConnect(cl *mqtt.Client, pk packets.Packet) error {
	c, err := connOf(cl)
	if err != nil {
		return err
	}
	c.keepAlive = pk.Connect.Keepalive
	// The broker may send more unacknowledged messages than a client's Receive Maximum: a broker that hangs is worse.
	noSendQuota(cl)
	switch {
	case !h.b.reportable(cl.ID):
		return h.refuse(cl, packets.ErrClientIdentifierNotValid)
	case pk.Connect.WillFlag && isSys(pk.Connect.WillTopic):
		return h.refuse(cl, packets.ErrNotAuthorized)
	}
	return nil
}

func (h *front) refuse(cl *mqtt.Client, code packets.Code) error {
	sent := code
	if cl.Properties.ProtocolVersion < 5 && code == packets.ErrNotAuthorized {
		sent = packets.ErrBadUsernameOrPassword // mochi has MQTT 3's "not authorized" (3.2.2.3) only as this code's counterpart
	}
	if err := h.b.front.SendConnack(cl, sent, false, nil); err != nil {
		return fmt.Errorf("refuse connect: %w", err)
	}
	return code
}

// OnConnectAuthenticate lets everybody in: the listener is on loopback unless its address says otherwise.
func (*front) OnConnectAuthenticate(*mqtt.Client, packets.Packet) bool { return true }

// OnACLCheck closes $SYS for subscribing; mochi itself ignores what clients publish there. It also asks for each message that it delivers, with the topic itself, so that no
// wildcard or shared filter gets around it.
func (*front) OnACLCheck(_ *mqtt.Client, topic string, _ bool) bool { return !isSys(topic) }

func isSys(topic string) bool {
	first, rest, _ := strings.Cut(topic, "/")
	if strings.EqualFold(first, mqtt.SharePrefix) {
		_, filter, _ := strings.Cut(rest, "/")
		first, _, _ = strings.Cut(filter, "/")
	}
	return strings.EqualFold(first, mqtt.SysPrefix) // mochi ignores the case, too
}

// OnSessionEstablish announces the connection, before CONNACK, as EMQX does, and the end of the one that it takes over.
func (h *front) OnSessionEstablish(cl *mqtt.Client, pk packets.Packet) {
	c, err := connOf(cl)
	if err != nil {
		return
	}
	h.b.opened(c, cl, pk)
}

// OnPacketSent lets the next connection of the ID take its turn once the session is in mochi's table.
func (*front) OnPacketSent(cl *mqtt.Client, pk packets.Packet, _ []byte) {
	if pk.FixedHeader.Type != packets.Connack {
		return
	}
	if c, err := connOf(cl); err == nil && c.turn {
		c.turn = false
		c.entry.turn.Unlock()
	}
}

// OnPacketRead keeps the reason code of DISCONNECT.
func (*front) OnPacketRead(cl *mqtt.Client, pk packets.Packet) (packets.Packet, error) {
	if pk.FixedHeader.Type == packets.Disconnect {
		if c, err := connOf(cl); err == nil {
			c.sent = pk.ReasonCode
			c.left.Store(true)
		}
	}
	return pk, nil
}

// OnDisconnect takes the turn, so that mochi's removal of the session, which follows, cannot hit that of a successor.
func (*front) OnDisconnect(cl *mqtt.Client, _ error, _ bool) {
	if c, err := connOf(cl); err == nil && c.entry != nil && !c.turn {
		c.entry.turn.Lock()
		c.turn = true
	}
}

// connOf returns the connection that Broker.serve gave to mochi.
func connOf(cl *mqtt.Client) (*conn, error) {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return nil, fmt.Errorf("client %q has no connection of this broker", cl.ID)
	}
	return c, nil
}
