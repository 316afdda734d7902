package simulator

import (
	"fmt"
	"slices"
	"strconv"
)

// connect lets a client connect to a node: what it has open on nodes within reach is taken over.
func (s *sim) connect(c *client, n *node, st *Step, d *dice) {
	if !n.up {
		return
	}
	h := n.habits
	k := s.open(c, n, st)
	if len(c.live) == 0 && s.nowMS == c.endedMS {
		// A client needs some time to come back.
		s.advance(s.nowMS + 1)
	}
	early := s.stamp(n, d)
	lateEnd := false
	var after []func()
	for _, old := range slices.Clone(c.live) {
		if !n.reaches(old.node) {
			continue
		}
		s.close(old)
		if s.plan.Mode == Silent && d.in(15) {
			// The old process does not step down in time and is killed.
			s.advance(s.nowMS + d.ms(5_000, 15_000))
			c.mourned = true
			s.h.Hazards.set(6)
			continue
		}
		late := old.node.habits.LateEnd && d.in(30)
		if late {
			s.advance(s.nowMS + d.ms(1, 40))
		}
		lateEnd = lateEnd || late
		after = append(after, s.takeOver(old, k.clean, d)...)
	}
	if len(c.live) == 0 && !n.up {
		return
	}
	after = append(after, s.replaceSession(c, k, d)...)
	if old := c.ended; old != nil && old.node != n {
		s.advance(s.nowMS + d.ms(0, 2))
	}
	if !n.up {
		return
	}
	k.openedMS, k.gen, k.connectedMS = s.nowMS, n.gen, s.stamp(n, d)
	if lateEnd {
		k.connectedMS = early
	}
	s.name(k, d)
	c.live = append(c.live, k)
	c.newest = k.num
	c.ended, c.muted = nil, nil
	if len(c.live) > 1 {
		c.doubled = true
		s.h.Hazards.set(13)
	}
	s.line(n, c.ip, d)
	e := s.event(Connected, k, d)
	k.opened = e
	if h.Clock == Fuzzy {
		e.StampMS = k.connectedMS
	}
	s.publish(e, d)
	for _, do := range after {
		do()
	}
}

// open prepares a connection: it does not count before it is named.
func (s *sim) open(c *client, n *node, st *Step) *conn {
	s.conns++
	k := &conn{num: s.conns, client: c, node: n, clean: st.Clean, keep: st.Keep, web: st.Web}
	if n.habits.Words == wordsNanoMQ {
		k.keep = !st.Clean
	}
	return k
}

// name gives a connection what its dialect knows it by.
func (s *sim) name(k *conn, d *dice) {
	c := k.client
	if len(c.free) > 0 && d.in(20) {
		i := d.n(len(c.free))
		k.port = c.free[i]
		c.free = slices.Delete(c.free, i, i+1)
	} else {
		k.port = c.port
		c.port++
	}
	if c.version += uint32(d.ms(1, 3)); c.endedMS != 0 && len(c.live) == 0 && s.nowMS-c.endedMS >= 3_600_000 {
		c.version = 0
	}
	k.version = c.version
	switch k.node.habits.Key {
	case ConnectedAtKey:
		k.key = strconv.FormatInt(k.connectedMS, 10)
		named := s.factNode(k.node) + "/" + k.key
		c.collided = c.collided || c.keys[named]
		c.keys[named] = true
	case PeerKey:
		k.key = fmt.Sprintf("%s:%d", c.ip, k.port)
	case SessionKey:
		k.key = fmt.Sprintf("a4666d2a-%04d-%d", k.num, c.index)
	case SequenceKey:
		c.bdSeq++
		k.key = strconv.Itoa(c.bdSeq % 256)
	case NoKey:
	}
}

// close ends a connection in truth.
func (s *sim) close(k *conn) {
	k.closed = true
	c := k.client
	c.live = slices.DeleteFunc(c.live, func(o *conn) bool { return o == k })
	c.ended, c.endedMS = nil, s.nowMS
	if k.keep {
		c.ended = k
	}
	// A port is free once nothing tells of the connection any more.
	s.at(s.nowMS+10_000, func() { c.free = append(c.free, k.port) })
}

// takeOver emits what the broker has to say of a connection that a newer one ends, and returns what it says after that.
func (s *sim) takeOver(old *conn, clean bool, d *dice) (after []func()) {
	cause := CauseTakenOver
	if clean {
		cause = CauseDiscarded
	}
	later := func(cause Cause, lag int64) {
		fork := d.fork()
		after = append(after, func() {
			s.at(s.nowMS+lag, func() { s.disconnected(old, cause, &fork) })
		})
	}
	lag := d.ms(0, 300)
	if d.in(5) {
		lag = d.ms(300, 5_000)
	}
	switch old.node.habits.Takeover {
	case TakeoverSilent:
		s.h.Hazards.set(5)
	case TakeoverBefore:
		s.disconnected(old, cause, d)
	case TakeoverAfter:
		later(cause, lag)
	case TakeoverEither:
		if d.in(50) {
			later(cause, lag)
		} else {
			s.disconnected(old, cause, d)
		}
	case TakeoverLogged:
		s.h.Hazards.set(5)
		s.disconnected(old, cause, d)
		if old.web {
			later(CauseLost, lag)
		}
	case TakeoverWill:
		switch d.n(3) {
		case 0:
			s.disconnected(old, cause, d)
		case 1:
			later(cause, lag)
		default:
			s.h.Hazards.set(5)
		}
	}
	return after
}

// replaceSession emits what the broker has to say of a session that outlived its connection and is resumed, or ended, by a newer one.
func (s *sim) replaceSession(c *client, k *conn, d *dice) (after []func()) {
	if len(c.live) > 0 {
		return nil
	}
	if old := c.muted; old != nil && old.alive() && old.node.habits.Words == wordsNanoMQ && k.clean {
		fork := d.fork()
		tell := func() { s.disconnected(old, CauseDiscarded, &fork) }
		if d.in(50) {
			return []func(){func() { s.at(s.nowMS+fork.ms(0, 300), tell) }}
		}
		tell()
		return nil
	}
	if old := c.ended; old != nil && old.alive() && k.node.reaches(old.node) && old.node.habits.Double && old.node.habits.Takeover != TakeoverSilent {
		cause := CauseTakenOver
		if k.clean {
			cause = CauseDiscarded
		}
		s.h.Hazards.set(1)
		s.disconnected(old, cause, d)
	}
	return nil
}

// alive reports whether the node is still the one that the connection was made to.
func (k *conn) alive() bool { return k.node.up && k.node.gen == k.gen }

// endConn ends what the client has open.
func (s *sim) endConn(c *client, cause Cause, d *dice) {
	if len(c.live) == 0 {
		return
	}
	k := c.live[len(c.live)-1]
	if len(c.live) > 1 && d.in(50) {
		k = c.live[0]
	}
	if cause == CauseKeepAlive {
		// The client has fallen silent; the broker finds out in time.
		fork := d.fork()
		s.at(s.nowMS+int64(c.keepAlive)*1500, func() {
			if !k.closed {
				s.finishConn(k, cause, &fork)
			}
		})
		return
	}
	s.finishConn(k, cause, d)
}

func (s *sim) finishConn(k *conn, cause Cause, d *dice) {
	h := k.node.habits
	s.close(k)
	if h.Muted && k.keep {
		k.client.muted = k
		if k.opened.Lost != "" {
			// Neither its beginning nor its end was told: a query in between sees the connection before it.
			k.client.mourned = true
		}
		s.h.Hazards.set(6)
		return
	}
	if lag := d.ms(0, max(h.EndLagMS, 0)); lag > 0 {
		fork := d.fork()
		s.at(s.nowMS+lag, func() { s.disconnected(k, cause, &fork) })
		return
	}
	s.disconnected(k, cause, d)
}

// disconnected emits the end of a connection, unless its node is gone meanwhile.
func (s *sim) disconnected(k *conn, cause Cause, d *dice) {
	if !k.alive() {
		k.client.mourned = k.client.mourned || k.node.habits.Beat < UptimeBeat
		return
	}
	e := s.event(Disconnected, k, d)
	e.Cause, e.RawReason, e.DisconnectedAtMS = cause, spelled[k.node.habits.Words][cause], e.StampMS
	s.publish(e, d)
}

// kick has an administrator end a session.
func (s *sim) kick(c *client, d *dice) {
	if len(c.live) > 0 {
		s.endConn(c, CauseKicked, d)
		return
	}
	if old := c.ended; old != nil && old.alive() && old.node.habits.Double && old.node.habits.Words == wordsEMQX4 {
		s.h.Hazards.set(1)
		s.disconnected(old, CauseKicked, d)
	}
	c.ended = nil
}

// expire ends the session of a client that has no connection: no second end of the connection (H17), but for brokers that told none.
func (s *sim) expire(c *client, d *dice) {
	if len(c.live) > 0 || c.ended == nil {
		return
	}
	s.h.Hazards.set(17)
	if old := c.muted; old != nil && old.node.habits.Words == wordsNanoMQ {
		s.disconnected(old, CauseExpired, d)
	} else if c.ended.alive() && c.ended.node.habits.Words == wordsRMQTT {
		s.publish(s.event(SessionEnded, c.ended, d), d)
	}
	c.ended, c.muted = nil, nil
}

// stranger sends a CONNECT with the client's ID and a wrong password.
func (s *sim) stranger(c *client, n *node, d *dice) {
	if !n.up {
		return
	}
	s.line(n, "198.51.100.9", d)
	e := &Event{Kind: Refused, Habits: n.habits, Node: n.name, StampMS: s.stamp(n, d), ClientID: c.id, Client: c.index, Username: "guest",
		IP: "198.51.100.9", Port: 40_000 + d.n(20_000), ProtocolVersion: 4, KeepAliveS: 60, CleanStart: true, Cause: CauseNotAuthorized, Refusal: 5}
	if d.in(20) {
		e.Cause, e.Refusal = CauseProtocol, 1
	}
	e.RawReason = spelled[n.habits.Words][e.Cause]
	if n.habits.Key == PeerKey {
		e.Key = e.Peer()
	}
	if len(c.live) > 0 && n.habits.Stranger != StrangerSilent {
		s.h.Hazards.set(4)
	}
	s.publish(e, d)
}

// noise emits something that tells of none of the clients, though it may look as if it did.
func (s *sim) noise(c *client, n *node, d *dice) {
	if !n.up {
		return
	}
	e := &Event{Habits: n.habits, Node: n.name, StampMS: s.stamp(n, d), ClientID: c.id, Client: -1, IP: "198.51.100.20", Port: 50_000}
	switch d.n(4) {
	case 0:
		e.Kind, e.ClientID = Self, "presence-bridge"
		s.h.Hazards.set(22)
	case 1:
		e.Kind = Gateway
		s.h.Hazards.set(21)
	case 2:
		e.Kind, e.ClientID = Poison, "\xff\xfe"+c.id
		s.h.Hazards.set(16)
	case 3:
		e.Kind = Replay
		s.h.Hazards.set(18)
	}
	s.publish(e, d)
}

// line emits the log line of an accepted socket, where there is a log.
func (s *sim) line(n *node, ip string, d *dice) {
	if n.habits.Clock == Seconds {
		s.publish(&Event{Kind: OtherLine, Habits: n.habits, Node: n.name, StampMS: s.stamp(n, d), Client: -1, IP: ip}, d)
	}
}

// event returns an event about a connection, as of now.
func (s *sim) event(kind EventKind, k *conn, d *dice) *Event {
	c := k.client
	e := &Event{
		Kind: kind, Habits: k.node.habits, Node: k.node.name, StampMS: s.stamp(k.node, d), ConnectedAtMS: k.connectedMS, ClientID: c.id, Client: c.index,
		Conn: k.num, Key: k.key, Username: c.username, IP: c.ip, Port: k.port, WebSocket: k.web, ProtocolVersion: c.protocol, KeepAliveS: c.keepAlive,
		CleanStart: k.clean, Version: k.version,
	}
	if k.keep {
		e.SessionExpiryS = 7200
	}
	if c.username == "" && e.Habits.Words.NoUsername() != "" {
		s.h.Hazards.set(20)
	}
	return e
}
