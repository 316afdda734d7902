// Package presence is the fold: it turns the facts that brokers and bridges assert about MQTT clients into state, and state
// into an answer to "is this client connected right now?".
//
// The package is pure and imports only the standard library: no clock, log, context, store or wire format of another system.
// Times are data, in epoch milliseconds. Values are not safe for concurrent mutation.
//
// # State and status
//
// [State.Apply] folds one client [Fact] into a client's [State]; [Cluster.Apply] folds one [NodeFact] into the small table of
// nodes and feeds of a cluster. [Status] computes the answer from both. Both states are join semilattices, so that
//
//   - L1: the same set of facts, in any order, with any duplicates, gives byte-identical state ([State.Append]);
//   - L9: no fact makes the fold panic or err; each has an [Outcome].
//
// Per client and node the state keeps the newest Opened by that node's own clock (a newer connection of a node always ends
// its older ones), the Closed that ends it, and at most [MaxCloses] Closed that may concern a later connection (L8):
//
//	facts of one node, on that node's clock ------------------------------------------------>
//	  Opened a   Closed a   Opened b            Closed b        Closed c (its Opened not seen)
//	  \____ dropped ____/   newest connection   its end         held
//
// A fact below the newest Opened of its node can never matter again and is dropped as it comes. Because the maximum only
// grows, filtering by it keeps L1.
//
// # How a status comes about
//
// docs/laws.md has the rules in their order, the state diagram, and an example of each [StatusReason] that the tests run. In short:
//
//	no connection known .......................... offline or unknown (never_seen)
//	a connection has no end ...................... online  (connected)
//	  but a newer one, elsewhere, was closed ..... unknown (older_connection_open), belief offline
//	  or they are too close in time to tell ...... unknown (order_undecided)
//	  or its node left the cluster's list ........ unknown (node_gone), belief offline
//	  or its node is silent ...................... unknown (node_silent), belief online
//	  or its end may be silent ................... unknown (close_ambiguous), belief online
//	every connection ended ....................... offline (closed)
//	  by a newer generation of its node .......... offline (node_restarted)
//	  one by a newer one, elsewhere .............. offline (superseded)
//	  by a takeover whose successor is unseen .... unknown (successor_unseen), belief online
//	  by a Closed that names no connection and may
//	  come from another one ...................... unknown (close_ambiguous)
//	what would decide was dropped by a bound ..... unknown (history_pruned)
//	the broker was asked, later .................. online or offline (observed)
//
// # Where stamps do not tell
//
// Connections of one node are ordered by that node's clock. Three things break this, and then keys and the bridge's reception decide, from the
// newest connection and the [MaxEarlier] before it: the clock was set back over the stamps ([NodeFact] says so), two connections have one
// stamp, or the node stands for many machines ([Profile].SkewMS).
package presence
