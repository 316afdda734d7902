package simulator

import (
	"strconv"

	"github.com/mqtt-presence/presence/libs/presence"
)

// EventKind says what a broker told.
type EventKind uint8

// The kinds of events. Only the first three can give a client fact.
const (
	Connected    EventKind = iota // a CONNECT was accepted
	Disconnected                  // a connection ended
	Refused                       // a CONNECT was refused
	SessionEnded                  // a session without connection ended; no presence
	OtherLine                     // a log line that counts for the order of the others
	Gateway                       // a client of another namespace with the same ID connected (H21)
	Self                          // the bridge's own connection (H22)
	Poison                        // bytes that no reader can take for a fact (H15, H16)
	Replay                        // a retained copy at subscribe (H18)
	numEventKinds
)

var eventWords = [numEventKinds]string{"connected", "disconnected", "refused", "session ended", "line", "gateway", "self", "poison", "replay"}

func (k EventKind) String() string { return eventWords[k] }

// Event is one thing that a broker emits, with everything that any dialect's payload carries. Times are epoch milliseconds.
type Event struct {
	Seq    int // in the order of emission
	Kind   EventKind
	Habits *Habits
	Node   string // as the broker names it
	TrueMS int64  // when it was emitted

	StampMS          int64 // when it was emitted, by the node's clock
	ConnectedAtMS    int64 // when the connection opened, by the node's clock
	DisconnectedAtMS int64 // Disconnected: when it closed, by the node's clock

	ClientID        string
	Client          int    // index of the client, -1 if it is none of the simulated ones
	Conn            int    // number of the connection, 0 if it is none
	Key             string // what names the connection in its connect, empty if the dialect has nothing
	Username        string // empty: none; Words.NoUsername says how that is written
	IP              string
	Port            int // the client's
	WebSocket       bool
	ProtocolVersion uint8
	KeepAliveS      uint32
	CleanStart      bool
	SessionExpiryS  uint32
	Version         uint32 // of the session, where the dialect counts (AWS versionNumber)

	Cause     Cause
	RawReason string // in the broker's own words
	Refusal   uint8  // Refused: the return code

	Lost string // why nobody receives it; empty if it is delivered
}

// Peer returns the client's address and port.
func (e *Event) Peer() string { return e.IP + ":" + strconv.Itoa(e.Port) }

// transport returns what a session that saw all that came before knows of it.
func (e *Event) transport() string {
	if e.Habits.Clock == Seconds && e.Kind == Connected && !e.WebSocket {
		return "tcp"
	}
	return ""
}

// fact returns what an ideal reader makes of the event, received at an instant; order is the line's ordinal, where the dialect has lines.
func (e *Event) fact(receivedMS int64, order uint32) (presence.Fact, bool) {
	h := e.Habits
	f := presence.Fact{
		Cluster: clusterName, ClientID: e.ClientID, Dialect: h.Dialect, TimeMS: e.StampMS, Order: order, ReceivedMS: receivedMS, Username: e.Username,
	}
	if !h.Hidden {
		f.Node = e.Node
	}
	switch {
	case h.Clock == Received:
		f.TimeMS = receivedMS
	case h.Clock == Fuzzy:
		f.Order = e.Version + 1
	}
	switch e.Kind {
	case Connected:
		f.Kind, f.Connection = presence.Opened, e.Key
		if h.ConnectedAt {
			f.ConnectedAtMS = e.ConnectedAtMS
		}
		if h.Clock != Received {
			f.KeepAliveS = presence.Some(e.KeepAliveS)
			f.ProtocolVersion = e.ProtocolVersion
		}
		if h.Clock != Received && h.Clock != Fuzzy {
			f.CleanStart = presence.Some(e.CleanStart)
		}
		f.Transport = e.transport()
	case Disconnected, Refused:
		if e.Kind == Refused && h.Stranger != StrangerCloses && h.Stranger != StrangerClosesKeyed {
			return f, false
		}
		f.Kind, f.RawReason, f.Reason = presence.Closed, e.RawReason, normalised[h.Words][e.Cause]
		if h.ClosedKey {
			f.Connection = e.Key
		}
		if h.ClosedSince {
			f.ConnectedAtMS = e.ConnectedAtMS
		}
		if h.EndedAt {
			f.DisconnectedAtMS = e.DisconnectedAtMS
		}
	default:
		return f, false
	}
	if h.Key == PeerKey || h.Clock == Seconds && e.Kind == Connected {
		f.Peer = e.Peer()
	} else if h.Key == ConnectedAtKey {
		f.Peer = e.IP
	}
	f.SetID()
	return f, true
}
