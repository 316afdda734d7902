package simulator

import "github.com/mqtt-presence/presence/libs/presence"

// KeyForm is what names a connection in a dialect's events.
type KeyForm uint8

// The forms of connection keys.
const (
	NoKey          KeyForm = iota
	ConnectedAtKey         // the instant of connecting, in milliseconds
	PeerKey                // the client's address and port
	SessionKey             // an opaque name that never comes again
	SequenceKey            // Sparkplug's bdSeq: 0 to 255, then from 0 again
)

// TakeoverForm is what a broker emits for the connection that a newer one of the same client ID ends.
type TakeoverForm uint8

// The forms of takeovers.
const (
	TakeoverSilent TakeoverForm = iota // nothing
	TakeoverBefore                     // its disconnect, and then the new connect
	TakeoverAfter                      // its disconnect, as a rule after the new connect
	TakeoverEither                     // its disconnect, in no order
	TakeoverLogged                     // a line that says so; a WebSocket logs its end late as well
	TakeoverWill                       // its will may come late, or not at all
)

// StrangerForm is what a broker emits for a refused CONNECT with a live client's ID.
type StrangerForm uint8

// The forms of refused CONNECTs.
const (
	StrangerSilent      StrangerForm = iota // nothing that reads as presence
	StrangerCloses                          // a disconnect of that ID
	StrangerClosesKeyed                     // a disconnect of that ID and of the stranger's own address
	StrangerOpens                           // a connect with a return code
)

// ClockForm is how a dialect stamps events.
type ClockForm uint8

// The forms of stamps.
const (
	Milliseconds ClockForm = iota
	Seconds                // whole seconds, with the ordinal of the line
	Received               // none: what is received is stamped by the bridge
	Fuzzy                  // milliseconds, two minutes off either way
)

// BeatForm is what a node's heartbeat tells.
type BeatForm uint8

// The forms of heartbeats.
const (
	NoBeat     BeatForm = iota
	PlainBeat           // that the node is there
	UptimeBeat          // its uptime
	ClockBeat           // its uptime and its clock
)

// Habits is what one version of a broker does, as far as its events show it, by the broker's source and documents. It is not the fold's
// profile, and is not derived from it.
type Habits struct {
	Dialect string
	Version string // for people, and for rendering
	Words   Words  // how it spells reasons and missing user names

	Key         KeyForm
	ClosedKey   bool // the disconnect carries the key too
	ClosedSince bool // the disconnect carries connected_at
	Clock       ClockForm
	ConnectedAt bool // the connect carries connected_at beside its stamp
	EndedAt     bool // the disconnect carries disconnected_at beside its stamp

	Takeover TakeoverForm
	Double   bool // taking over, or kicking, a session whose connection has ended emits its disconnect again
	LateEnd  bool // disconnected_at of a taken-over connection is stamped after the new connected_at (EMQX #16675)
	Stranger StrangerForm
	Muted    bool // the end of a connection with a persistent session emits nothing

	Ordered  bool  // one node's events arrive in the order in which they were emitted
	EndLagMS int64 // a disconnect is stamped and emitted up to so much after the end
	QoS      byte
	Retained bool // events are retained messages

	Beat     BeatForm
	Members  bool // the cluster publishes the list of its running nodes
	Nodes    int  // how many nodes a cluster may have
	Hidden   bool // events name no node
	Queries  bool // a client can be asked for
	QueryKey bool // the answer names the connection
}

// Setup is a cluster to simulate: the habits that its nodes may have, and who is not there.
type Setup struct {
	Name      string
	Nodes     []*Habits // of each node, one of these
	Mixed     bool      // the first two nodes differ (H19)
	TCPOnly   bool      // no WebSocket
	Strangers bool
	// Plain keeps to ends that only an open connection can come to, as seen in the broker's log.
	Plain bool
}

// The habits, by dialect and version.
var (
	emqx = Habits{Dialect: presence.DialectEMQX, Version: "5.8.9", Words: wordsEMQX5, Key: ConnectedAtKey, ClosedKey: true, ClosedSince: true,
		ConnectedAt: true, EndedAt: true, Takeover: TakeoverBefore, LateEnd: true, Ordered: true, Beat: ClockBeat, Members: true, Nodes: 3, Queries: true, QueryKey: true}
	emqx56  = with(emqx, func(h *Habits) { h.Version, h.Double = "5.6.1", true })
	emqx61  = with(emqx, func(h *Habits) { h.Version, h.LateEnd = "6.1.1", false })
	emqxNew = with(emqx, func(h *Habits) { h.Version, h.LateEnd, h.Ordered = "6.1.1, shared subscription", false, false })
	emqx50  = with(emqx, func(h *Habits) {
		h.Dialect, h.Version, h.Takeover, h.LateEnd = presence.DialectEMQX50, "5.0.9", TakeoverSilent, false
	})
	emqx43 = with(emqx50, func(h *Habits) {
		h.Dialect, h.Version, h.Words, h.QoS, h.QueryKey = presence.DialectEMQX43, "4.4.19", wordsEMQX4, 1, false
	})
	emqx43on = with(emqx43, func(h *Habits) {
		h.Version, h.Takeover, h.LateEnd = "4.4.19, client_disconnect_takeovered on", TakeoverBefore, true
	})
	emqx40 = with(emqx43, func(h *Habits) {
		h.Dialect, h.Version, h.ClosedKey, h.ClosedSince, h.Double = presence.DialectEMQX40, "4.2.14", false, false, true
	})
	emqx4Events = with(emqx43, func(h *Habits) {
		h.Dialect, h.Key, h.ClosedSince = presence.DialectEMQX4Events, PeerKey, false
	})

	rmqtt = Habits{Dialect: presence.DialectRMQTT, Version: "0.24", Words: wordsRMQTT, Key: PeerKey, ClosedKey: true, ConnectedAt: true, EndedAt: true,
		Takeover: TakeoverAfter, EndLagMS: 300, QoS: 1, Beat: PlainBeat, Nodes: 3, Queries: true, QueryKey: true}

	tdmq = Habits{Dialect: presence.DialectTDMQ, Words: wordsTDMQ, Key: ConnectedAtKey, ConnectedAt: true, EndedAt: true, Takeover: TakeoverEither,
		Nodes: 2, Hidden: true, Queries: true}
	tdmqKeyed = with(tdmq, func(h *Habits) {
		h.Version, h.ClosedKey, h.ClosedSince = "with connected_at in the disconnect", true, true
	})

	mosquitto20 = Habits{Dialect: presence.DialectMosquitto20, Version: "2.0.20", Words: wordsMosquitto20, Clock: Seconds, Takeover: TakeoverLogged,
		Stranger: StrangerCloses, Ordered: true, QoS: 2, Beat: UptimeBeat, Nodes: 1}
	mosquitto21 = Habits{Dialect: presence.DialectMosquitto21, Version: "2.1.2", Words: wordsMosquitto21, Key: PeerKey, ClosedKey: true, Clock: Seconds,
		Takeover: TakeoverBefore, Double: true, Stranger: StrangerClosesKeyed, Ordered: true, QoS: 2, Beat: UptimeBeat, Nodes: 1}
	mosquittoPlugin = Habits{Dialect: presence.DialectMosquittoPlugin, Version: "2.1.2", Words: wordsNone, Clock: Received, Takeover: TakeoverBefore,
		Stranger: StrangerCloses, Muted: true, Ordered: true, Retained: true, Beat: UptimeBeat, Nodes: 1}

	nanomq = Habits{Dialect: presence.DialectNanoMQ, Version: "0.24.2", Words: wordsNanoMQ, Takeover: TakeoverEither, Stranger: StrangerOpens, Muted: true,
		Nodes: 1, Queries: true}

	aws = Habits{Dialect: presence.DialectAWS, Words: wordsAWS, Key: SessionKey, ClosedKey: true, Clock: Fuzzy, Takeover: TakeoverEither, QoS: 1,
		Nodes: 1, Hidden: true, Queries: true}

	statusTopic = Habits{Dialect: presence.DialectStatusTopic, Words: wordsStatus, Clock: Received, Takeover: TakeoverWill, Ordered: true, QoS: 1,
		Retained: true, Nodes: 1, Hidden: true}
	sparkplug = with(statusTopic, func(h *Habits) {
		h.Dialect, h.Words, h.Key, h.ClosedKey, h.Retained = presence.DialectSparkplug, wordsNone, SequenceKey, true, false
	})

	custom         = Habits{Dialect: presence.DialectCustom, Words: wordsEMQX5, Takeover: TakeoverEither, EndLagMS: 50, Nodes: 2, Hidden: true, Queries: true}
	customReusable = with(custom, func(h *Habits) {
		h.Dialect, h.Key, h.ClosedKey, h.Hidden, h.QueryKey = presence.DialectCustomReusable, PeerKey, true, false, true
	})
	customUnique = with(customReusable, func(h *Habits) { h.Dialect, h.Key = presence.DialectCustomUnique, SessionKey })
)

func with(h Habits, change func(*Habits)) Habits {
	change(&h)
	return h
}

// Setups returns every cluster that is simulated, by name.
func Setups() []Setup {
	return []Setup{
		{Name: "emqx", Nodes: []*Habits{&emqx, &emqx56, &emqx61, &emqxNew}, Strangers: true},
		{Name: "emqx-5.0", Nodes: []*Habits{&emqx50}, Strangers: true},
		{Name: "emqx-4.3", Nodes: []*Habits{&emqx43}, Strangers: true},
		{Name: "emqx-4.3-flagged", Nodes: []*Habits{&emqx43on}, Strangers: true},
		{Name: "emqx-mixed", Nodes: []*Habits{&emqx43, &emqx61}, Mixed: true, Strangers: true},
		{Name: "emqx-4.0", Nodes: []*Habits{&emqx40}, Strangers: true},
		{Name: "emqx-4-events", Nodes: []*Habits{&emqx4Events}, Strangers: true},
		{Name: "rmqtt", Nodes: []*Habits{&rmqtt}, Strangers: true},
		{Name: "tdmq", Nodes: []*Habits{&tdmq}, Strangers: true},
		{Name: "tdmq-keyed", Nodes: []*Habits{&tdmqKeyed}, Strangers: true},
		{Name: "mosquitto-2.0-tcp", Nodes: []*Habits{&mosquitto20}, TCPOnly: true, Plain: true},
		{Name: "mosquitto-2.0", Nodes: []*Habits{&mosquitto20}, Strangers: true},
		{Name: "mosquitto-2.1", Nodes: []*Habits{&mosquitto21}, Strangers: true},
		{Name: "mosquitto-plugin", Nodes: []*Habits{&mosquittoPlugin}, Strangers: true},
		{Name: "nanomq", Nodes: []*Habits{&nanomq}, Strangers: true},
		{Name: "aws", Nodes: []*Habits{&aws}, Strangers: true},
		{Name: "status-topic", Nodes: []*Habits{&statusTopic}},
		{Name: "sparkplug", Nodes: []*Habits{&sparkplug}},
		{Name: "custom", Nodes: []*Habits{&custom}},
		{Name: "custom-reusable", Nodes: []*Habits{&customReusable}},
		{Name: "custom-unique-key", Nodes: []*Habits{&customUnique}},
	}
}
