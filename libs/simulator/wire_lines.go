package simulator

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

const logTopic = "$SYS/broker/log/"

// line renders a line of Mosquitto's log.
func (r *render) line() {
	e := r.e
	r.fact.Username, r.fact.Peer = r.username, e.Peer()
	if e.Kind != Connected {
		r.fact.Username = ""
	}
	keyed := r.h.Words == wordsMosquitto21
	if e.Kind != Connected && !keyed {
		r.fact.Peer = ""
	}
	protocol := map[uint8]int{3: 1, 4: 2, 5: 5}[e.ProtocolVersion]
	clean := 0
	if e.CleanStart {
		clean = 1
	}
	user := ""
	if r.username != "" {
		user = fmt.Sprintf(", u'%s'", r.username)
	}
	switch e.Kind {
	case Connected:
		r.log("N", fmt.Sprintf("New client connected from %s as %s (p%d, c%d, k%d%s).", e.Peer(), r.id, protocol, clean, e.KeepAliveS, user), ReadsFact)
	case Disconnected, Refused:
		level := "N"
		if r.h.Takeover == TakeoverLogged && e.Cause >= CauseTakenOver {
			level = "E"
		}
		line := r.ended(keyed)
		if strings.Contains(strings.ToLower(line), "bad socket read/write") {
			// Whatever else may go wrong within the broker.
			r.fact.Reason = presence.ReasonOther
		}
		m := r.log(level, line, ReadsFact)
		if e.Kind == Refused {
			m.Hazard = 4
		}
	case OtherLine:
		r.otherLine(keyed)
	case Self:
		r.log("N", fmt.Sprintf("New client connected from 127.0.0.1:40001 as %s (p5, c0, k30).", r.id), ReadsOther).Hazard = 22
	case Gateway:
		r.log("N", "New bridge connected from 203.0.113.9:40000 as edge1.bridge (p2, c0, k60).", ReadsOther).Hazard = 21
	case Poison:
		if r.d.in(30) {
			line := "Client " + strings.Repeat("床", 400) + " closed its connection."
			r.log("N", line, ReadsDead).Hazard = 16
			m := &r.messages[len(r.messages)-1]
			m.Payload = m.Payload[:min(len(m.Payload), 999)]
			return
		}
		r.log("N", fmt.Sprintf("New client connected from 198.51.100.20:50000 as %s (p2, c1, k60).", r.id), ReadsDead).Hazard = 16
	case Replay:
		r.hazard(18, "$SYS/broker/version", "mosquitto version "+r.w.versionOf(r.h), ReadsNothing)
		r.messages[0].Retain = true
		r.log("I", "Config loaded from /etc/mosquitto/mosquitto.conf.", ReadsNothing)
	case SessionEnded:
	}
}

// ended returns the line of a connection's end.
func (r *render) ended(keyed bool) string {
	e := r.e
	if keyed {
		texts := map[Cause][]string{
			CauseNormal: {""}, CauseLost: {": connection closed by client", ": Connection reset by peer", ": bad socket read/write: Connection timed out"},
			CauseKeepAlive: {": exceeded timeout"}, CauseKicked: {": administrative action"}, CauseNotAuthorized: {": not authorised"},
			CauseProtocol: {": malformed packet", ": protocol error", ": oversize packet"}, CauseQuota: {": quota exceeded", ": receive maximum exceeded"},
			CauseTakenOver: {": session taken over"}, CauseDiscarded: {": session taken over"},
		}[e.Cause]
		return fmt.Sprintf("Client %s [%s] disconnected%s.", r.id, e.Peer(), texts[r.d.n(len(texts))])
	}
	texts := map[Cause][]string{
		CauseNormal: {"Client %s disconnected."},
		CauseLost: {"Client %s closed its connection.", "Client %s closed its connection.", "Client %s disconnected: Connection reset by peer.",
			"Bad socket read/write on client %s: Invalid arguments provided."},
		CauseKeepAlive:     {"Client %s has exceeded timeout, disconnecting."},
		CauseKicked:        {"Client %s been disconnected by administrative action."},
		CauseNotAuthorized: {"Client %s disconnected, not authorised."},
		CauseProtocol:      {"Client %s disconnected due to malformed packet.", "Client %s disconnected due to protocol error."},
		CauseQuota:         {"Client %s disconnected due to oversize packet.", "Client %s disconnected due to oversize payload."},
		CauseTakenOver:     {"Client %s already connected, closing old connection."},
		CauseDiscarded:     {"Client %s already connected, closing old connection."},
	}[e.Cause]
	i := r.d.n(len(texts))
	if e.WebSocket && e.Cause == CauseLost {
		i = 0
	}
	return fmt.Sprintf(texts[i], r.id)
}

// otherLine renders a line that is about no client: a TCP listener announces a connection, one of libwebsockets does not.
func (r *render) otherLine(keyed bool) {
	if r.e.Seq < len(r.w.h.Events) {
		next := r.w.h.Events[r.e.Seq]
		if next.IP == r.e.IP && !next.WebSocket && (next.Kind == Connected || next.Kind == Refused) {
			r.log("N", fmt.Sprintf("New connection from %s on port 1883.", next.Peer()), ReadsNothing)
			return
		}
	}
	unknown := "Client <unknown> closed its connection."
	if keyed {
		unknown = "Client 198.51.100.7 [198.51.100.7:4444] disconnected: connection closed by client."
	}
	switch r.d.n(6) {
	case 0, 1:
		r.log("N", unknown, ReadsNothing)
	case 2:
		r.log("N", "Client d1 negotiated TLSv1.3 cipher TLS_AES_256_GCM_SHA384", ReadsNothing)
	case 3:
		r.log("M/subscribe", "0 d1 a/b", ReadsNothing)
	case 4:
		r.log("W", "Warning: Client d1 disconnected.", ReadsNothing)
	default:
		r.log("I", "Opening ipv4 listen socket on port 1883.", ReadsNothing)
	}
}

// log adds a line, with its stamp.
func (r *render) log(level, line string, reads Reads) *Message {
	stamp := r.w.lineStamp(r.e.StampMS)
	m := r.add(logTopic+level, r.w.stamped(stamp, line), reads)
	m.Stamp = stamp
	return m
}

// lineStamp returns the stamp of a line of an instant; 0 if lines have none.
func (w *Wire) lineStamp(ms int64) int64 {
	if w.Stamps == StampNone {
		return 0
	}
	return ms / 1000 * 1000
}

func (w *Wire) stamped(stamp int64, line string) string {
	switch w.Stamps {
	case StampISO:
		return time.UnixMilli(stamp).In(w.Zone).Format("2006-01-02T15:04:05") + ": " + line
	case StampEpoch:
		return strconv.FormatInt(stamp/1000, 10) + ": " + line
	}
	return line
}

// lifecycle is the line of a broker that starts or stops.
func (w *Wire) lifecycle(n *node, stamp int64, what string) Message {
	line := w.stamped(stamp, "mosquitto version "+w.versionOf(n.habits)+" "+what)
	return Message{Topic: logTopic + "I", Payload: []byte(line), QoS: 2, Reads: ReadsNode, Stamp: stamp}
}

// starts returns the lines of starts, by the number of the delivery before which they arrive: a broker that keeps the bridge's session sends
// the line of its start before anything else of that generation. Half of the starts are told.
func (w *Wire) starts() map[int][]Message {
	starts := map[int][]Message{}
	n := w.h.sim.nodes[0]
	if n.habits.Clock != Seconds || w.Stamps == StampNone || w.h.Plan.Mode == Clocks {
		return nil
	}
	generations := 0
	for i := range w.h.Deliveries {
		f := &w.h.Deliveries[i].Node
		if f.Kind != presence.NodeStarted || !w.h.Deliveries[i].IsNode {
			continue
		}
		if generations++; generations == 1 || w.d.in(50) {
			continue
		}
		bootMS := f.StartedReceivedMS + 999
		stamp := w.lineStamp(bootMS + w.h.Plan.SkewMS[0])
		seen := map[int]bool{}
		for k := range w.h.Deliveries {
			d := &w.h.Deliveries[k]
			if d.Event != nil && d.Event.TrueMS >= bootMS && !seen[d.Bridge] {
				if seen[d.Bridge] = true; k >= i {
					// A heartbeat of the generation came first.
					continue
				}
				starts[k] = append(starts[k], w.lifecycle(n, stamp, "starting"))
			}
		}
	}
	return starts
}
