package presence

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Kind says what a client fact asserts.
type Kind uint8

// The kinds of client facts. Their words are the "type" of a record of client-events.
const (
	KindUnknown Kind = iota // not a fact: the fold ignores it
	Opened                  // the broker accepted a connection
	Closed                  // the broker ended a connection
	Observed                // the broker's answer to an active query
	Forgotten               // everything known up to a time is to be forgotten
)

var kindWords = [...]string{"unknown", "connected", "disconnected", "observed", "forgotten"}

// String returns the word that records use: connected, disconnected, observed or forgotten.
func (k Kind) String() string { return word(kindWords[:], int(k)) }

// ParseKind is the inverse of String; KindUnknown for any other word.
func ParseKind(s string) Kind { return Kind(index(kindWords[:], s)) }

// Reason is the normalised cause of a Closed; the broker's own text stands beside it in Fact.RawReason.
type Reason uint8

// The normalised reasons.
const (
	ReasonUnknown          Reason = iota // the broker gave none
	ReasonNormal                         // the client sent DISCONNECT
	ReasonConnectionLost                 // the socket closed or failed
	ReasonKeepAliveTimeout               // nothing was heard for 1.5 times the keep alive (MQTT 5, 3.1.2.10)
	ReasonTakenOver                      // a newer connection resumed the session
	ReasonDiscarded                      // a newer connection with clean start ended the session
	ReasonKicked                         // an administrator ended it
	ReasonNotAuthorized                  // authentication or authorisation failed or ran out
	ReasonProtocolError                  // malformed packet, protocol error, packet too large
	ReasonQuotaExceeded                  // a limit of the broker
	ReasonServerShutdown                 // the node stops or moves its clients
	ReasonServerError                    // the broker failed
	ReasonSessionExpired                 // the session's expiry interval ran out
	ReasonOther                          // a text that is none of the above
)

var reasonWords = [...]string{"", "normal", "connection_lost", "keep_alive_timeout", "taken_over", "discarded", "kicked", "not_authorized",
	"protocol_error", "quota_exceeded", "server_shutdown", "server_error", "session_expired", "other"}

// String returns the word that records use; empty for ReasonUnknown.
func (r Reason) String() string { return word(reasonWords[:], int(r)) }

// ParseReason is the inverse of String. A word of a newer version reads as ReasonOther.
func ParseReason(s string) Reason {
	if s == "" {
		return ReasonUnknown
	}
	if i := index(reasonWords[:], s); i > 0 {
		return Reason(i)
	}
	return ReasonOther
}

// Takeover reports whether the reason proves that a newer connection of the same client ID exists.
func (r Reason) Takeover() bool { return r == ReasonTakenOver || r == ReasonDiscarded }

// Opt is a value that may be unknown, which is not the same as zero: a keep alive of 0 s means that it is off.
type Opt[T comparable] struct {
	Value T
	Valid bool
}

// Some returns a known value.
func Some[T comparable](v T) Opt[T] { return Opt[T]{Value: v, Valid: true} }

// Fact is one thing that a broker, or the bridge on its behalf, asserted about one client. Empty and zero mean unknown.
type Fact struct {
	ID       string // deterministic: copies of one fact have the same ID, see [Fact.SetID]
	Kind     Kind
	Cluster  string
	ClientID string // MQTT Client Identifier: opaque, case-sensitive, valid UTF-8, never normalised
	Dialect  string // names the [Profile] of whoever asserted it
	Node     string // the broker node that the connection was made to

	// Connection is the dialect's connection key, empty where it has none. It is compared within one client and node only.
	Connection string

	TimeMS int64 // when it was published, on the node's clock
	// Order is the 1-based ordinal among all log lines of the feed with the same stamp, where stamps are coarser than events;
	// 0 when unknown. It belongs to the time.
	Order      uint32
	ReceivedMS int64 // when the bridge received it, on the bridge's clock; copies join by the smallest

	ConnectedAtMS    int64 // when the connection opened, on the node's clock, if told apart from TimeMS
	DisconnectedAtMS int64 // when it closed, on the node's clock, if told apart from TimeMS

	Username        string
	Peer            string // client's address, with its port where the broker tells
	Transport       string // "tcp", "websocket", ...: only where the broker tells
	ProtocolVersion uint8  // MQTT protocol level: 3, 4 or 5
	KeepAliveS      Opt[uint32]
	CleanStart      Opt[bool]
	SessionExpiryS  Opt[uint32]

	Reason    Reason
	RawReason string // the broker's own words

	Online       Opt[bool] // Observed: the broker's answer
	QueryStartMS int64     // Observed: on the bridge's clock
	QueryEndMS   int64     // Observed: on the bridge's clock
	Source       string    // Observed: which query answered; Forgotten: who asked

	AsOfMS int64 // Forgotten: facts up to this time, on their node's clock, are to be forgotten
}

// OpenedMS returns when the connection that the fact is about opened, on its node's clock; 0 if the fact does not tell.
func (f *Fact) OpenedMS() int64 {
	if f.ConnectedAtMS != 0 || f.Kind != Opened {
		return f.ConnectedAtMS
	}
	return f.TimeMS
}

// ClosedMS returns when a Closed happened, on its node's clock.
func (f *Fact) ClosedMS() int64 {
	if f.DisconnectedAtMS != 0 {
		return f.DisconnectedAtMS
	}
	return f.TimeMS
}

// SetID computes the fact's ID from everything that names it, and from nothing that depends on who received it or when: two
// bridges that see one event, or one bridge that sees it twice, give it the same ID.
func (f *Fact) SetID() {
	h := sha256.New()
	var n [8]byte
	num := func(v int64) {
		binary.BigEndian.PutUint64(n[:], uint64(v))
		h.Write(n[:])
	}
	for _, s := range []string{f.Cluster, f.ClientID, f.Node, f.Connection, f.Peer, f.RawReason, f.Source} {
		num(int64(len(s)))
		h.Write([]byte(s))
	}
	for _, v := range []int64{int64(f.Kind), f.TimeMS, int64(f.Order), f.ConnectedAtMS, f.DisconnectedAtMS, f.QueryStartMS, f.QueryEndMS, f.AsOfMS, int64(f.Reason)} {
		num(v)
	}
	var sum [sha256.Size]byte
	f.ID = hex.EncodeToString(h.Sum(sum[:0])[:16])
}

// Outcome says what the fold did with a fact.
type Outcome uint8

// The outcomes.
const (
	Applied    Outcome = iota // it changed the state
	Duplicate                 // the state already held it
	Superseded                // a newer connection of the same node makes it meaningless
	Ghost                     // a Closed of a connection that is not the newest of its node
	TooOld                    // older than what the state keeps, or than a Forgotten
	Held                      // a Closed kept for a connection whose Opened has not been seen
	NumOutcomes
)

var outcomeWords = [...]string{"applied", "duplicate", "superseded", "ghost", "too_old", "held"}

// String returns the word that metrics and explanations use.
func (o Outcome) String() string { return word(outcomeWords[:], int(o)) }

func word(words []string, i int) string {
	if i < len(words) {
		return words[i]
	}
	return words[0]
}

func index(words []string, s string) int {
	for i, w := range words {
		if w == s {
			return i
		}
	}
	return 0
}
