package presence

// KeyKind says what a dialect's connection key is worth.
type KeyKind uint8

// The kinds of connection keys.
const (
	KeyNone     KeyKind = iota // a Closed names only the client ID
	KeyReusable                // ip:port: names a connection only together with node and time
	KeyUnique                  // a Closed ends exactly the connection that it names
)

// Profile states a dialect's habits, as far as the fold depends on them.
type Profile struct {
	Key              KeyKind
	ClosedOnTakeover bool // a connection that is taken over gets a Closed
	NamesOpening     bool // a Closed with a key tells when its connection opened
	OrderedFeed      bool // the stamps of one node's events are in the order in which things happened to a client
	// Certain are the reasons that, in an unkeyed Closed of an ordered feed, can only come from the open connection.
	Certain ReasonSet
	// CertainOverTCP are the reasons that are certain as long as neither the connection nor the one before it may be a WebSocket.
	CertainOverTCP ReasonSet
	// Stranger are the reasons that the refused CONNECT of somebody else with the client's ID may have (H4).
	Stranger ReasonSet
	// SilentPersistent: a connection that is not known to have clean start may end without a Closed (H6), so that nothing but a query can
	// tell whether it is still open.
	SilentPersistent bool
	// SkewMS is how far two stamps of what the dialect calls one node may be apart from the truth, because it hides many machines.
	SkewMS int64
}

// ReasonSet is a set of reasons.
type ReasonSet uint32

// Reasons returns the set of the given reasons.
func Reasons(rs ...Reason) ReasonSet {
	var s ReasonSet
	for _, r := range rs {
		s |= 1 << r
	}
	return s
}

// Has reports whether r is in the set.
func (s ReasonSet) Has(r Reason) bool { return s&(1<<r) != 0 }

// Names of the dialects whose profiles are built in. A bridge's dialect may assert facts of several: versions differ in their habits.
const (
	DialectEMQX            = "emqx"              // 5.0.10 and later, 6.x
	DialectEMQX50          = "emqx-5.0"          // 5.0.0 to 5.0.9: no Closed on takeover
	DialectEMQX43          = "emqx-4.3"          // 4.3.6 to 4.4: keyed, no Closed on takeover by default
	DialectEMQX40          = "emqx-4.0"          // 4.0 to 4.3.5: a Closed names no connection
	DialectEMQX4Events     = "emqx-4-events"     // $events/... of EMQX 4 as MQTT topics: the key is the client's address and port
	DialectRMQTT           = "rmqtt"             // the key is the client's address and port
	DialectTDMQ            = "tdmq"              // $events/... of Tencent TDMQ: a Closed names no connection unless it has connected_at
	DialectMosquitto20     = "mosquitto-2.0"     // log_dest topic; also 1.x and 2.1.0
	DialectMosquitto21     = "mosquitto-2.1"     // log_dest topic, 2.1.1 and later
	DialectMosquittoPlugin = "mosquitto-plugin"  // 2.1's plugin connection-state
	DialectNanoMQ          = "nanomq"            // old and new topics
	DialectAWS             = "aws"               // AWS IoT Core's $aws/events/presence
	DialectStatusTopic     = "status-topic"      // retained status written by the device itself: Zigbee2MQTT, Tasmota, Homie
	DialectSparkplug       = "sparkplug"         // Sparkplug B's NBIRTH and NDEATH: the key is bdSeq
	DialectCustom          = "custom"            // from configuration, without a key
	DialectCustomReusable  = "custom-reusable"   // from configuration, with a key that comes again
	DialectCustomUnique    = "custom-unique-key" // from configuration, with a key that does not
)

// AWSSkewMS is how far two stamps of AWS IoT Core may be apart: each is within 2 minutes of the truth (AWS IoT lifecycle events).
const AWSSkewMS = 240_000

// ProfileOf returns the profile of a dialect. A dialect that is not built in gets a careful one: what its facts name is
// believed (a key is compared), nothing is concluded from what they do not say.
func ProfileOf(dialect string) Profile {
	switch dialect {
	case DialectEMQX:
		return Profile{Key: KeyUnique, ClosedOnTakeover: true, NamesOpening: true}
	case DialectEMQX50, DialectEMQX43:
		return Profile{Key: KeyUnique, NamesOpening: true}
	case DialectEMQX40:
		// Neither a refused CONNECT nor a takeover emits anything, and a node's Closed is stamped by the connection's own process
		// before its successor's Opened: whatever ends on a node is the connection that opened there last.
		return Profile{Key: KeyNone, OrderedFeed: true, Certain: ^Reasons(ReasonTakenOver, ReasonDiscarded)}
	case DialectEMQX4Events:
		return Profile{Key: KeyReusable, OrderedFeed: true}
	case DialectRMQTT:
		return Profile{Key: KeyReusable, ClosedOnTakeover: true}
	case DialectTDMQ:
		return Profile{Key: KeyUnique, ClosedOnTakeover: true, NamesOpening: true}
	case DialectMosquitto20:
		return Profile{
			Key: KeyNone, OrderedFeed: true,
			// Only a client that is connected can send DISCONNECT, be kicked or time out; a stranger's refused CONNECT logs
			// not_authorized or a protocol error with the ID that it claims (H4). With libwebsockets a taken-over connection
			// logs its end late (H3), so a dead socket is certain over TCP only.
			Certain:        Reasons(ReasonNormal, ReasonKicked),
			CertainOverTCP: Reasons(ReasonConnectionLost, ReasonKeepAliveTimeout),
		}
	case DialectMosquitto21:
		return Profile{
			Key: KeyReusable, ClosedOnTakeover: true, OrderedFeed: true,
			Stranger: ^Reasons(ReasonNormal, ReasonKeepAliveTimeout, ReasonKicked, ReasonTakenOver, ReasonDiscarded, ReasonSessionExpired),
		}
	case DialectMosquittoPlugin:
		return Profile{Key: KeyNone, ClosedOnTakeover: true, SilentPersistent: true}
	case DialectNanoMQ:
		return Profile{Key: KeyNone, SilentPersistent: true}
	case DialectAWS:
		return Profile{Key: KeyUnique, ClosedOnTakeover: true, SkewMS: skewMS(dialect)}
	case DialectStatusTopic:
		// The broker keeps the order of one topic's messages; a clean goodbye is written by the device itself, and Zigbee2MQTT finds
		// its devices silent by itself. A will may come late, from the connection before.
		return Profile{Key: KeyNone, OrderedFeed: true, Certain: Reasons(ReasonNormal, ReasonKeepAliveTimeout)}
	case DialectSparkplug:
		return Profile{Key: KeyReusable}
	case DialectCustom:
		return Profile{Key: KeyNone}
	case DialectCustomReusable:
		return Profile{Key: KeyReusable}
	default:
		return Profile{Key: KeyUnique}
	}
}

// skewMS is Profile.SkewMS, where nothing else of the profile is needed.
func skewMS(dialect string) int64 {
	if dialect == DialectAWS {
		return AWSSkewMS
	}
	return 0
}
