package simulator

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Reads is what an ideal reader makes of a message.
type Reads uint8

// What a message may be.
const (
	ReadsNothing  Reads = iota // nothing about presence: to be ignored
	ReadsFact                  // Message.Fact
	ReadsOther                 // a fact about a client that is none of the simulated ones, or of another namespace
	ReadsNode                  // something about a node
	ReadsSnapshot              // the last word about a client, from an unknown time; nothing, a fact or an observation
	ReadsDead                  // what no reader can take for a fact
)

// Message is one MQTT message as a bridge receives it.
type Message struct {
	Topic   string // the bytes as they are
	Payload []byte
	QoS     byte
	Retain  bool
	Reads   Reads
	Hazard  int // the hazard that it is, 0 if it is none of those of a single message

	// Fact is what the message tells, with ReadsFact. Fields that the message does not hold are empty.
	Fact presence.Fact
	// Loose: the message is garbled, so that a reader may leave out what does not name the fact.
	Loose bool
	// Stamp is of a log line, in milliseconds; 0 if the message is none, or has none.
	Stamp int64
	// Whole is false if the session did not see the line's stamp begin.
	Whole bool
}

// Arrival is what a bridge receives at an instant: the beginning of a session, a message, or what it learns in another way.
type Arrival struct {
	ReceivedMS int64
	Bridge     int
	Session    bool
	Resumed    bool // the broker has kept the session while it was down
	Message    *Message
	Event      *Event    // that the message tells; nil for heartbeats and what comes at a subscription
	Told       *Delivery // no message: the answer to a query, a Forgotten, a Feed, a node's silence
}

// Wire renders a history as the MQTT messages that its brokers would publish: every form that the brokers of a dialect and version are known
// to use, chosen by the plan's seed. It is written from what brokers send, not from the bridge's decoders.
type Wire struct {
	// Zone is the brokers' time zone, for dialects that write local time.
	Zone *time.Location
	// Stamps says how log lines are stamped.
	Stamps StampForm
	// Custom says which form custom events have. 0: topic events/<up or down>/<client ID>, times in milliseconds; 1: topic events, everything in the
	// payload, RFC 3339.
	Custom int

	h           *History
	d           dice // choices for the whole history
	version     string
	oldNano     bool
	username    string
	status      []string // by client: the convention of its status
	gone        map[string]bool
	down        map[string]bool // by bridge: it has no session
	resumedMS   map[int]int64   // by bridge: the second in which its session was resumed last
	generations int             // seen of a single node
	arrivals    []Arrival
}

// StampForm is how a log stamps its lines.
type StampForm uint8

// The forms of stamps.
const (
	StampEpoch StampForm = iota
	StampISO
	StampNone
)

// NewWire returns the wire of a history. Zone is one that its brokers may have.
func NewWire(h *History, zone *time.Location) *Wire {
	w := &Wire{h: h, Zone: zone, d: dice{h.Plan.Seed*0x9e3779b97f4a7c15 + 77 | 1}, gone: map[string]bool{}, down: map[string]bool{}, resumedMS: map[int]int64{}}
	habits := h.Plan.Nodes[0]
	w.Custom = w.d.n(2)
	w.Stamps = StampForm(w.d.n(3))
	if w.Stamps == StampNone && (habits.Clock != Seconds || h.Plan.Bridges > 1 || h.Plan.Mode == Clocks) {
		// Two bridges would stamp one line differently.
		w.Stamps = StampEpoch
	}
	w.username = [...]string{"fleet", "fleet", "grün 床", `a "b" c`, "undefined-1"}[w.d.n(5)]
	if habits.Words == wordsNanoMQ && w.d.in(20) {
		w.username = strings.Repeat("u", 80+w.d.n(30))
	}
	w.oldNano = w.d.in(30) && w.username == "fleet"
	for i := range h.Clients {
		w.oldNano = w.oldNano && !strings.ContainsAny(h.Clients[i].ID, `"\`)
	}
	w.version, _, _ = strings.Cut(habits.Version, ",")
	if habits.Version == emqx.Version {
		w.version = [...]string{"5.8.9", "5.7.2", "5.9.0", "5.10.3", "6.0.2"}[w.d.n(5)]
	}
	w.status = make([]string, len(h.Clients))
	for i := range h.Clients {
		w.status[i] = w.convention(i)
	}
	return w
}

// Arrivals returns what the bridges receive, in order.
func (w *Wire) Arrivals() []Arrival {
	sessions := w.h.sessions
	starts := w.starts()
	for i := range w.h.Deliveries {
		d := &w.h.Deliveries[i]
		for len(sessions) > 0 && sessions[0].sinceMS <= d.ReceivedMS {
			w.begin(&sessions[0], i)
			sessions = sessions[1:]
		}
		switch {
		case d.IsNode:
			w.node(d)
		case d.Event == nil:
			w.arrivals = append(w.arrivals, Arrival{ReceivedMS: d.ReceivedMS, Told: d})
		default:
			if late := d.ReceivedMS - d.Event.TrueMS; late > maxDelayMS && w.resumedMS[d.Bridge] != d.ReceivedMS-d.ReceivedMS%1_000 {
				// It has waited for the session.
				w.again(d)
			}
			for _, s := range starts[i] {
				w.add(d, nil, s)
			}
			for _, m := range w.Messages(d) {
				w.add(d, d.Event, m)
			}
		}
	}
	return w.arrivals
}

func (w *Wire) add(d *Delivery, e *Event, m Message) {
	w.arrivals = append(w.arrivals, Arrival{ReceivedMS: d.ReceivedMS, Bridge: d.Bridge, Event: e, Message: &m})
}

// begin is the beginning of a session: what the broker keeps retained comes first.
func (w *Wire) begin(s *session, next int) {
	w.arrivals = append(w.arrivals, Arrival{ReceivedMS: s.sinceMS, Bridge: s.bridge, Session: true})
	d := &Delivery{ReceivedMS: s.sinceMS, Bridge: s.bridge}
	w.retained(d)
	if w.h.Plan.Nodes[0].Retained && next > 0 {
		for i := range w.h.Clients {
			e := &Event{Kind: Replay, Habits: w.h.Plan.Nodes[0], ClientID: w.h.Clients[i].ID, Seq: w.seenBefore(s.sinceMS)}
			for _, m := range w.replay(e) {
				w.add(d, nil, m)
			}
		}
	}
}

// retained renders what the nodes keep retained about themselves.
func (w *Wire) retained(d *Delivery) {
	names := make([]string, len(w.h.sim.nodes))
	for i, n := range w.h.sim.nodes {
		names[i] = n.name
		if m, ok := w.versionMessage(n); ok {
			w.add(d, nil, m)
		}
	}
	switch h := w.h.Plan.Nodes[0]; {
	case h.Members:
		w.add(d, nil, Message{Topic: "$SYS/brokers", Payload: []byte(strings.Join(names, ",")), Retain: true, Reads: ReadsNode, Hazard: 18})
	case h.Clock == Seconds, h.Dialect == presence.DialectMosquittoPlugin:
		w.add(d, nil, Message{Topic: "$SYS/broker/uptime", Payload: []byte("99 seconds"), QoS: 2, Retain: true, Reads: ReadsNothing, Hazard: 18})
	}
}

// seenBefore returns the number of the event after the last one that was emitted before an instant.
func (w *Wire) seenBefore(ms int64) int {
	for i, e := range w.h.Events {
		if e.TrueMS >= ms {
			return i + 1
		}
	}
	return len(w.h.Events) + 1
}

// versionMessage returns what a node publishes of its version, retained.
func (w *Wire) versionMessage(n *node) (Message, bool) {
	m := Message{QoS: 0, Retain: true, Reads: ReadsNothing, Hazard: 18}
	switch n.habits.Words {
	case wordsEMQX4, wordsEMQX5:
		m.Topic, m.Payload = "$SYS/brokers/"+n.name+"/version", []byte(w.versionOf(n.habits))
	case wordsMosquitto20, wordsMosquitto21:
		m.Topic, m.Payload, m.QoS = "$SYS/broker/version", []byte("mosquitto version "+w.versionOf(n.habits)), 2
	default:
		if n.habits.Dialect != presence.DialectMosquittoPlugin {
			return m, false
		}
		m.Topic, m.Payload, m.QoS = "$SYS/broker/version", []byte("mosquitto version 2.1.2"), 2
	}
	return m, true
}

func (w *Wire) versionOf(h *Habits) string {
	if h.Version == emqx.Version {
		return w.version
	}
	v, _, _ := strings.Cut(h.Version, ",")
	return v
}

// Messages returns the messages of one arrival of an event: most often one, with noise around it.
func (w *Wire) Messages(d *Delivery) []Message {
	copied := *d.Event
	e := &copied
	r := render{w: w, e: e, h: e.Habits, d: dice{(w.h.Plan.Seed+uint64(e.Seq))*0x9e3779b97f4a7c15 | 1}, fact: d.Fact}
	r.id = w.ClientID(e)
	r.fact.ClientID, r.fact.Transport = r.id, e.transport()
	r.username = e.Username
	if e.Username == "fleet" {
		r.username = w.username
	}
	if e.Kind == Replay && e.Habits.Retained {
		return w.replay(e)
	}
	switch e.Habits.Dialect {
	case presence.DialectEMQX, presence.DialectEMQX50, presence.DialectEMQX43, presence.DialectEMQX40:
		r.emqx()
	case presence.DialectEMQX4Events:
		r.emqxRule()
	case presence.DialectRMQTT:
		r.rmqtt()
	case presence.DialectTDMQ:
		r.tdmq()
	case presence.DialectNanoMQ:
		r.nanomq()
	case presence.DialectAWS:
		r.aws()
	case presence.DialectMosquitto20, presence.DialectMosquitto21:
		r.line()
	case presence.DialectMosquittoPlugin:
		r.plugin()
	case presence.DialectStatusTopic:
		r.statusTopic()
	case presence.DialectSparkplug:
		r.sparkplug()
	default:
		r.custom()
	}
	for i := range r.messages {
		if m := &r.messages[i]; m.Reads == ReadsFact {
			m.Fact.SetID()
		}
	}
	return r.messages
}

// ClientID returns the client ID that an event's messages bear: some dialects' topics cannot carry all IDs, others carry more than the
// simulation has.
func (w *Wire) ClientID(e *Event) string {
	id := e.ClientID
	switch e.Habits.Dialect {
	case presence.DialectMosquitto20, presence.DialectMosquitto21, presence.DialectTDMQ, presence.DialectEMQX4Events:
		if id == "50%" {
			return "50%/+/#"
		}
	case presence.DialectStatusTopic:
		for i := range w.h.Clients {
			if w.h.Clients[i].ID != id {
				continue
			}
			if w.status[i] == zigbee {
				return "zigbee2mqtt/" + id
			}
		}
		return strings.ReplaceAll(id, "/", "_")
	case presence.DialectSparkplug:
		return "plant 1/" + strings.ReplaceAll(id, "/", "_")
	}
	return id
}

// replay returns the retained copy of what was said last of a client.
func (w *Wire) replay(e *Event) []Message {
	for i := min(e.Seq-1, len(w.h.Events)) - 1; i >= 0; i-- {
		last := w.h.Events[i]
		if last.ClientID != e.ClientID || last.Client < 0 || last.Kind > Refused {
			continue
		}
		messages := w.Messages(&Delivery{Event: last})
		for k := range messages {
			if messages[k].Reads == ReadsFact {
				messages[k].Retain, messages[k].Reads, messages[k].Hazard = true, ReadsSnapshot, 18
				return messages[k : k+1]
			}
		}
	}
	return nil
}

// node renders what the bridges learn of a node.
func (w *Wire) node(d *Delivery) {
	f := &d.Node
	n := w.nodeNamed(f.Node)
	switch {
	case f.Kind == presence.NodeStarted:
		w.generations++
		if n != nil && (n.habits.Clock == Seconds || n.habits.Dialect == presence.DialectMosquittoPlugin) && w.generations > 1 {
			// The broker has started again, and with it the bridge's session, which it has kept.
			for b := range w.h.Plan.Bridges {
				w.again(&Delivery{ReceivedMS: d.ReceivedMS, Bridge: b})
			}
		}
	case f.Kind == presence.NodeAlive && n != nil:
		if n.habits.Members && w.gone[n.name] {
			delete(w.gone, n.name)
			w.members(d)
		}
		w.heartbeat(d, n)
	case f.Kind == presence.NodeGone && n != nil && n.habits.Members:
		w.gone[n.name] = true
		if len(w.gone) == len(w.h.sim.nodes) {
			// Who sends the list is there again.
			w.gone = map[string]bool{n.name: true}
		}
		w.members(d)
	case f.Kind == presence.NodeGone && n != nil && n.habits.Clock == Seconds && w.Stamps != StampNone && !w.pending(d.ReceivedMS):
		for b := range w.h.Plan.Bridges {
			stamp := w.lineStamp(d.ReceivedMS - 5 + w.h.Plan.SkewMS[n.index])
			w.add(&Delivery{ReceivedMS: d.ReceivedMS, Bridge: b}, nil, w.lifecycle(n, stamp, "terminating"))
		}
	case f.Kind == presence.Feed:
		w.arrivals = append(w.arrivals, Arrival{ReceivedMS: d.ReceivedMS, Told: d})
		w.resume(d)
	default:
		w.arrivals = append(w.arrivals, Arrival{ReceivedMS: d.ReceivedMS, Told: d})
	}
}

// again resumes a session.
func (w *Wire) again(d *Delivery) {
	w.resumedMS[d.Bridge] = d.ReceivedMS - d.ReceivedMS%1_000
	w.arrivals = append(w.arrivals, Arrival{ReceivedMS: d.ReceivedMS, Bridge: d.Bridge, Session: true, Resumed: true})
	w.retained(d)
}

// resume begins a session that the broker has kept.
func (w *Wire) resume(d *Delivery) {
	f := &d.Node
	number, err := strconv.Atoi(strings.TrimPrefix(f.Bridge, "bridge-"))
	if err != nil || w.h.Plan.Nodes[0].QoS == 0 {
		return
	}
	down := f.CompleteSinceMS == 0 && f.GapToMS == 0 && f.GapFromMS != 0
	if w.down[f.Bridge] && !down && f.CompleteSinceMS < d.ReceivedMS-1 {
		w.again(&Delivery{ReceivedMS: d.ReceivedMS, Bridge: number})
	}
	w.down[f.Bridge] = down
}

// pending reports whether events are under way that were emitted before.
func (w *Wire) pending(ms int64) bool {
	return slices.ContainsFunc(w.h.Deliveries, func(d Delivery) bool { return d.Event != nil && d.Event.TrueMS <= ms && d.ReceivedMS >= ms })
}

func (w *Wire) nodeNamed(name string) *node {
	for _, n := range w.h.sim.nodes {
		if w.h.sim.factNode(n) == name && name != "" {
			return n
		}
	}
	return nil
}

func (w *Wire) members(d *Delivery) {
	var names []string
	for _, n := range w.h.sim.nodes {
		if !w.gone[n.name] {
			names = append(names, n.name)
		}
	}
	w.add(d, nil, Message{Topic: "$SYS/brokers", Payload: []byte(strings.Join(names, ",")), Reads: ReadsNode})
}

// heartbeat renders a node's heartbeat.
func (w *Wire) heartbeat(d *Delivery, n *node) {
	f := &d.Node
	uptime := f.UptimeMS.Value
	send := func(topic, payload string, reads Reads) {
		w.add(d, nil, Message{Topic: topic, Payload: []byte(payload), Reads: reads})
	}
	root := "$SYS/brokers/" + n.name
	switch n.habits.Words {
	case wordsEMQX5:
		clock := time.UnixMilli(f.TimeMS).In(w.Zone).Format("2006-01-02T15:04:05.000000000-07:00")
		if w.d.in(50) {
			send(root+"/datetime", clock, ReadsNode)
			send(root+"/uptime", strconv.FormatInt(uptime, 10), ReadsNode)
		} else {
			send(root+"/uptime", strconv.FormatInt(uptime, 10), ReadsNode)
			send(root+"/datetime", clock, ReadsNode)
		}
	case wordsEMQX4:
		send(root+"/uptime", uptimeText(uptime/1000), ReadsNode)
		send(root+"/datetime", time.UnixMilli(f.TimeMS).In(w.Zone).Format(time.DateTime), ReadsNode)
	case wordsRMQTT:
		send(root+"/stats", `{"connections.count":1,"connections.max":2,"sessions.count":1,"sessions.max":2}`, ReadsNode)
	default:
		w.add(d, nil, Message{Topic: "$SYS/broker/uptime", Payload: []byte(strconv.FormatInt(uptime/1000, 10) + " seconds"), QoS: 2, Reads: ReadsNode})
	}
}

// uptimeText is the uptime of EMQX 4.
func uptimeText(s int64) string {
	text := strconv.FormatInt(s%60, 10) + " seconds"
	for _, u := range []struct {
		div, mod int64
		name     string
	}{{60, 60, " minutes, "}, {3600, 24, " hours, "}, {86400, 1 << 40, " days, "}} {
		if s < u.div {
			break
		}
		text = strconv.FormatInt(s/u.div%u.mod, 10) + u.name + text
	}
	return text
}

// render renders one event.
type render struct {
	w        *Wire
	e        *Event
	h        *Habits
	d        dice
	fact     presence.Fact
	id       string
	username string
	messages []Message
}

// add adds a message of the event.
func (r *render) add(topic, payload string, reads Reads) *Message {
	m := Message{Topic: topic, Payload: []byte(payload), QoS: r.h.QoS, Reads: reads, Fact: r.fact}
	r.messages = append(r.messages, m)
	return &r.messages[len(r.messages)-1]
}

// hazard adds a message that is a hazard of its own.
func (r *render) hazard(n int, topic, payload string, reads Reads) {
	r.add(topic, payload, reads).Hazard = n
}
