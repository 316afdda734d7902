package presenceclient

import presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"

// Words of a status, as in the messages of the contract.
const (
	StatusOnline  = "online"
	StatusOffline = "offline"
	StatusUnknown = "unknown"
)

// reasonNeverSeen is the status reason of a client that was never seen.
const reasonNeverSeen = "never_seen"

// Status says whether a client is connected.
type Status struct {
	// Word is online, offline, or unknown where the facts do not decide.
	Word string
	// Belief is online or offline: the best guess where Word is unknown, else the same.
	Belief string
	// Reason is which rule decided, such as connected, closed or never_seen.
	Reason string
	// Freshness says how far the answer may lag behind the brokers. Read only: answers share it.
	Freshness *presencev1.Freshness
}

// StatusOf returns the status in a message about a client.
func StatusOf(c *presencev1.Client) Status {
	return Status{Word: c.GetStatus(), Belief: c.GetBelief(), Reason: c.GetStatusReason(), Freshness: c.GetFreshness()}
}

// Online reports whether the client is known to be connected.
func (s Status) Online() bool { return s.Word == StatusOnline }

// Offline reports whether the client is known not to be connected.
func (s Status) Offline() bool { return s.Word == StatusOffline }

// Unknown reports whether the facts do not decide. It is true of the zero Status.
func (s Status) Unknown() bool { return !s.Online() && !s.Offline() }

// ProbablyOnline is the best guess, certain or not.
func (s Status) ProbablyOnline() bool { return s.Belief == StatusOnline }

// Stale reports whether the answer lags behind the brokers by more than the service's bound, or may: freshness that is absent counts as stale.
func (s Status) Stale() bool { return s.Freshness == nil || s.Freshness.GetStale() }

// Confident reports whether the client is known to be online or offline by an answer that is not stale.
func (s Status) Confident() bool { return !s.Unknown() && !s.Stale() }

// String returns the word, and the belief beside it where it is unknown.
func (s Status) String() string {
	if s.Unknown() && s.Belief != "" {
		return StatusUnknown + ", probably " + s.Belief
	}
	if s.Word == "" {
		return StatusUnknown
	}
	return s.Word
}
