package simulator

import "github.com/mqtt-presence/presence/libs/presence"

// Cause is why a connection ended, as the broker knows it.
type Cause uint8

// The causes.
const (
	CauseNormal Cause = iota
	CauseLost
	CauseKeepAlive
	CauseKicked
	CauseNotAuthorized
	CauseProtocol
	CauseQuota
	CauseTakenOver
	CauseDiscarded
	CauseExpired // the session's end, where the broker tells of it as if a connection had ended
	numCauses
)

// Words is how a broker spells what it tells.
type Words uint8

// The spellings.
const (
	wordsNone Words = iota
	wordsEMQX5
	wordsEMQX4
	wordsRMQTT
	wordsTDMQ
	wordsMosquitto20
	wordsMosquitto21
	wordsNanoMQ
	wordsAWS
	wordsStatus
	numWords
)

// spelled holds the broker's own words by cause; empty: it has none.
var spelled = [numWords][numCauses]string{
	wordsEMQX5: {"normal", "tcp_closed", "keepalive_timeout", "kicked", "not_authorized", "malformed_packet", "quota_exceeded", "takenover", "discarded"},
	wordsEMQX4: {"normal", "tcp_closed", "keepalive_timeout", "kicked", "not_authorized", "malformed_packet", "quota_exceeded", "takeovered", "discarded"},
	wordsRMQTT: {"Disconnect(V3)", "RemoteClose", "KeepaliveTimeout", "ByAdminKick", "SubscribeFailed(not authorized)", "ProtocolError(malformed)", "MessageQueueFull",
		"Kicked", "Kicked"},
	wordsTDMQ: {"normal", "tcp_closed", "keepalive_timeout", "kicked", "authentication_expired", "protocol_error", "quota_exceeded", "takeovered", "takeovered"},
	wordsMosquitto20: {"", "closed its connection", "exceeded timeout", "administrative action", "not authorised", "malformed packet", "oversize packet",
		"already connected, closing old connection", "already connected, closing old connection"},
	wordsMosquitto21: {"", "connection closed by client", "exceeded timeout", "administrative action", "not authorised", "malformed packet", "quota exceeded",
		"session taken over", "session taken over"},
	wordsNanoMQ: {"0", "7", "8d", "1f", "d", "d", "7", "8e", "8e", "8e"},
	wordsAWS: {"CLIENT_INITIATED_DISCONNECT", "CONNECTION_LOST", "MQTT_KEEP_ALIVE_TIMEOUT", "API_INITIATED_DISCONNECT", "AUTH_ERROR", "CLIENT_ERROR", "THROTTLED",
		"DUPLICATE_CLIENTID", "DUPLICATE_CLIENTID"},
	// A device says goodbye itself; anything else is its will.
	wordsStatus: {"disconnected", "lost", "lost", "lost", "lost", "lost", "lost", "lost", "lost"},
}

// normalised holds what a reader makes of the words.
var normalised = [numWords][numCauses]presence.Reason{
	wordsEMQX5: emqxReasons, wordsEMQX4: emqxReasons,
	wordsAWS: {presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonKeepAliveTimeout, presence.ReasonKicked, presence.ReasonNotAuthorized,
		presence.ReasonProtocolError, presence.ReasonQuotaExceeded, presence.ReasonTakenOver, presence.ReasonTakenOver},
	// Its documents name four of the reasons.
	wordsTDMQ: {presence.ReasonNormal, presence.ReasonOther, presence.ReasonOther, presence.ReasonKicked, presence.ReasonNotAuthorized,
		presence.ReasonOther, presence.ReasonOther, presence.ReasonTakenOver, presence.ReasonTakenOver},
	// What is in the brackets of SubscribeFailed is free text.
	wordsRMQTT: {presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonKeepAliveTimeout, presence.ReasonKicked, presence.ReasonOther,
		presence.ReasonProtocolError, presence.ReasonQuotaExceeded, presence.ReasonTakenOver, presence.ReasonTakenOver},
	wordsMosquitto20: {presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonKeepAliveTimeout, presence.ReasonKicked, presence.ReasonNotAuthorized,
		presence.ReasonProtocolError, presence.ReasonProtocolError, presence.ReasonTakenOver, presence.ReasonTakenOver},
	wordsMosquitto21: {presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonKeepAliveTimeout, presence.ReasonKicked, presence.ReasonNotAuthorized,
		presence.ReasonProtocolError, presence.ReasonQuotaExceeded, presence.ReasonTakenOver, presence.ReasonTakenOver},
	// 0 stands for every DISCONNECT; 8e for the end of a session, whatever ended it; the rest are numbers of the network library, d of a protocol error.
	wordsNanoMQ: {presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonKeepAliveTimeout, presence.ReasonConnectionLost, presence.ReasonProtocolError,
		presence.ReasonProtocolError, presence.ReasonConnectionLost, presence.ReasonSessionExpired, presence.ReasonSessionExpired, presence.ReasonSessionExpired},
	wordsStatus: {presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonConnectionLost, presence.ReasonConnectionLost, presence.ReasonConnectionLost,
		presence.ReasonConnectionLost, presence.ReasonConnectionLost, presence.ReasonConnectionLost, presence.ReasonConnectionLost},
}

var emqxReasons = [numCauses]presence.Reason{presence.ReasonNormal, presence.ReasonConnectionLost, presence.ReasonKeepAliveTimeout, presence.ReasonKicked,
	presence.ReasonNotAuthorized, presence.ReasonProtocolError, presence.ReasonQuotaExceeded, presence.ReasonTakenOver, presence.ReasonDiscarded}

// NoUsername returns what a broker writes where a client has no user name (H20).
func (w Words) NoUsername() string {
	switch w {
	case wordsEMQX5, wordsEMQX4, wordsRMQTT:
		return "undefined"
	case wordsNanoMQ:
		return "(null)"
	}
	return ""
}
