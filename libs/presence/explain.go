package presence

// The sentences stand here once: answers and documents quote them.

var statusReasonSentences = [...]string{
	NeverSeen:            "No fact about this client is known: it is offline if everything since the broker nodes began has been received, otherwise that cannot be said.",
	Connected:            "The newest connection has no end: nothing that the brokers sent ends it.",
	ConnectionClosed:     "Every known connection has ended, the newest one by a disconnect of its own.",
	ConnectionSuperseded: "An older connection has no disconnect of its own, but a newer one ended it, and that one has ended as well.",
	SuccessorUnseen:      "The connection ended because a newer one took the client over, and that newer one has not been seen: the client is probably connected.",
	OrderUndecided:       "Two events are so close in time that the clocks do not tell which came last.",
	CloseAmbiguous: "A disconnect came that names no connection, and it may belong to another one than the newest: to an earlier connection that ended late, " +
		"or to a stranger who failed to log in with this client ID. Or no disconnect came, and this broker does not announce the end of every such connection.",
	OlderConnectionOpen: "The newest connection has ended, but an older one on another node has not, although this broker reports the end of every connection that is taken over.",
	NodeRestarted:       "The broker node of the connection has restarted since: no connection made before that is alive.",
	NodeIsGone:          "The broker node of the connection has left the cluster's list of nodes, and nothing was heard of the client since: it is probably disconnected.",
	NodeIsSilent:        "The broker node of the connection sends no heartbeats any more: that may be the node or the way to it, so the client is probably still connected.",
	BrokerObserved:      "The broker itself was asked, later than the events tell, and its answer decides.",
	HistoryPruned:       "More happened than is kept of one client, and what would decide was among what was dropped.",
}

// Explain returns the rule as a sentence for people who do not know the source.
func (r StatusReason) Explain() string { return word(statusReasonSentences[:], int(r)) }

var outcomeSentences = [...]string{
	Applied:    "It changed what is known of the client.",
	Duplicate:  "Ignored: it was known already, for example because two bridges or a redelivery brought it.",
	Superseded: "Ignored: a newer connection of the client to the same node makes it meaningless.",
	Ghost:      "Ignored for the status: it is the end of a connection that a newer one to the same node has replaced.",
	TooOld:     "Ignored: it is older than what is kept of the client, or than a deletion of it.",
	Held:       "Kept: it is the end of a connection whose beginning has not been seen.",
}

// Explain returns the outcome as a sentence for people who do not know the source.
func (o Outcome) Explain() string { return word(outcomeSentences[:], int(o)) }

// Ignored reports whether the fact made no difference to the status.
func (o Outcome) Ignored() bool { return o != Applied && o != Held }

// ParseOutcome is the inverse of String; Applied for any other word.
func ParseOutcome(s string) Outcome { return Outcome(index(outcomeWords[:], s)) }
