package broker

import (
	"time"

	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqtt-presence/presence/libs/service"
)

// opened announces a connection whose CONNECT was accepted. It takes the turn of the client ID, which OnPacketSent or finish gives back.
func (b *Broker) opened(c *conn, cl *mqtt.Client, pk packets.Packet) {
	e := b.entries.enter(cl.ID)
	c.client, c.entry, c.turn = cl, e, true
	now := b.clock.nowMS()
	if old := e.live; old != nil {
		left := old.left.Load()
		reason := reasonTakenOver
		switch {
		case left:
			// It has ended by itself, and mochi is not done with it yet.
			reason = reasonOf(packets.CodeDisconnect, old.sent)
		case pk.Connect.Clean:
			reason = reasonDiscarded
		}
		if b.cfg.LateDisconnects && !left {
			old.late = reason
		} else {
			b.disconnected(old, reason, now)
		}
	}
	// connected_at is the connection's key, also when two connections begin within a millisecond.
	e.last = max(now, e.last+1)
	e.live = c

	c.info.ClientID = cl.ID
	c.info.Username = noUsername
	if pk.Connect.UsernameFlag {
		c.info.Username = string(pk.Connect.Username)
	}
	c.info.ProtoName = string(pk.Connect.ProtocolName)
	c.info.ProtoVer = pk.ProtocolVersion
	c.info.ConnectedAt = e.last
	event := connectedEvent{
		clientInfo:     c.info,
		KeepAlive:      pk.Connect.Keepalive,
		CleanStart:     pk.Connect.Clean,
		ExpiryInterval: expirySeconds(pk) * 1000,
	}
	event.TS = now
	b.metrics.connected.Inc()
	b.metrics.connections.Inc()
	b.publish("connected", c.info.ClientID, event)
}

// expirySeconds is how long the session outlives the connection.
func expirySeconds(pk packets.Packet) int64 {
	switch {
	case pk.ProtocolVersion == 5:
		return min(int64(pk.Properties.SessionExpiryInterval), maxSessionExpiry)
	case pk.Connect.Clean:
		return 0
	}
	return maxSessionExpiry
}

// finish announces the end of a connection, unless its successor has done so. It is called once mochi has let go of it.
func (b *Broker) finish(c *conn, err error) {
	e := c.entry
	if e == nil {
		return // refused, or closed before CONNECT
	}
	if !c.turn {
		e.turn.Lock()
	}
	switch {
	case c.late != "":
		b.disconnected(c, c.late, max(b.clock.nowMS(), e.last))
	case e.live == c:
		cause := c.client.StopCause()
		if cause == nil {
			cause = err
		}
		reason := reasonOf(cause, c.sent)
		if c.stalled.Load() {
			reason = reasonTimedOut
		}
		b.disconnected(c, reason, b.clock.nowMS())
		e.live = nil
	}
	// The entry, which knows the last stamp, goes with its last user: the next connection must not begin in the same millisecond.
	if ahead := e.last + 1 - b.clock.nowMS(); ahead > 0 {
		time.Sleep(time.Duration(ahead) * time.Millisecond)
	}
	c.turn = false
	e.turn.Unlock()
	b.entries.leave(c.info.ClientID, e)
}

// disconnected publishes the end of a connection.
func (b *Broker) disconnected(c *conn, reason string, now int64) {
	event := disconnectedEvent{clientInfo: c.info, Reason: reason, DisconnectedAt: max(now, c.info.ConnectedAt)}
	event.TS = now
	b.metrics.disconnected.Inc()
	b.metrics.connections.Dec()
	b.publish("disconnected", c.info.ClientID, event)
}

func (b *Broker) publish(event, clientID string, payload any) {
	encoded, err := encode(payload)
	if err != nil {
		// Strings and numbers always encode.
		b.log.Error("event not encoded", service.KeyError, err)
		return
	}
	b.feed.publish(message{topic: b.eventTopic(clientID, event), payload: encoded, at: b.clock.now()})
}
