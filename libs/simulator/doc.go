// Package simulator makes histories of MQTT broker clusters: what happened, what a bridge received of it, and the truth.
//
// It is written from what brokers do, not from the fold (libs/presence) that is tested with it. [Habits] is the table of what each version
// of each broker emits: which key names a connection, whether a takeover is told of and when, what a refused CONNECT or the end of a kept
// session looks like, how events are stamped, what a heartbeat tells. [Setups] are the clusters made from it.
//
//	seed --NewPlan--> Plan --Run--> History --> facts as they arrive, in order
//	                   ^                   \--> the truth of each client at the end
//	                   +---Shrink---<- a plan that breaks a law
//
// A [Plan] is a list of steps: clients connect, take over, disconnect, lose their sockets, time out, are kicked; strangers are refused; nodes
// crash, stop, start again, have their clocks set, fall apart into two sides; the bridge loses its session or its spool runs over, and sweeps
// the broker with queries. [Run] plays it on one true time line; every node has its own clock. An [Event] is one thing a broker emitted, with
// all that a payload needs; a [Delivery] is one arrival of it, with the [presence.Fact] that an ideal reader makes of it, or what an ideal
// bridge says of a node or of its own subscription. What is delivered is delayed, reordered (within a node where the dialect allows),
// duplicated by redelivery or by a second bridge, which may know less of it, lost visibly (session, spool, silent node) or silently (inside the broker).
//
// What a plan may hold is its [Mode]: everything delivered and clocks within the allowance, clocks that are set back and forth, visible loss,
// silent loss.
//
// A [Wire] renders a history as the MQTT messages that its brokers would publish, for the decoders that are to read them.
//
// # Guarantees
//
//   - The same plan gives the same history. A plan follows from its setup, mode and seed.
//   - A step's choices are its own: taking other steps out does not change them, so that plans shrink well. The zero seed makes the
//     simplest choices.
//   - The truth is the broker's: a client is online while some node has a connection of it open. A half-open connection counts until its
//     keep alive runs out.
//   - [History.Hazards] holds those of H1 to H22 that really occurred in what arrived: a ghost disconnect counts if it came after its
//     successor's connect.
//   - Loss is visible to the bridge, and asserted by it, in every mode but the silent one. That includes a node that is silent or left the
//     list of its cluster: it may serve clients on the other side of a partition, so the feed has a gap until it is heard again.
//
// The package's tests check the laws of the fold on more than 100,000 histories, and with -soak for as long as one likes. Values are not
// safe for concurrent use.
package simulator
