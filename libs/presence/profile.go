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
	OrderedFeed      bool // the broker's events are one ordered stream
	// Certain are the reasons that, in an unkeyed Closed of an ordered feed, can only come from the open connection.
	Certain ReasonSet
	// CertainOverTCP are the reasons that are certain as long as neither the connection nor the one before it may be a WebSocket.
	CertainOverTCP ReasonSet
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

// Names of the dialects whose profiles are built in.
const (
	DialectEMQX        = "emqx"          // 5.0.10 and later, 6.x
	DialectEMQX50      = "emqx-5.0"      // 5.0.0 to 5.0.9: no Closed on takeover
	DialectMosquitto20 = "mosquitto-2.0" // log_dest topic; also 1.x and 2.1.0
	DialectMosquitto21 = "mosquitto-2.1" // log_dest topic, 2.1.1 and later
)

// ProfileOf returns the profile of a dialect. A dialect that is not built in gets the most careful one: what its facts name is
// believed (a key is compared), nothing is concluded from what they do not say.
func ProfileOf(dialect string) Profile {
	switch dialect {
	case DialectEMQX:
		return Profile{Key: KeyUnique, ClosedOnTakeover: true}
	case DialectEMQX50:
		return Profile{Key: KeyUnique}
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
		return Profile{Key: KeyReusable, ClosedOnTakeover: true, OrderedFeed: true}
	default:
		return Profile{Key: KeyUnique}
	}
}
