// Package bridge carries what MQTT brokers tell about their clients to Kafka, as facts.
//
//	MQTT broker --> session --> decoder --> pipeline --> Kafka
//	                   ^                       | ^
//	                   +--- acknowledgement ---+ +-- spool (disk)
//
// A [Bridge] serves one or more clusters, each with an MQTT session and decoders of its own. It is the only part that talks to brokers.
//
// # Guarantees
//
//   - A message is acknowledged to the broker only when its facts are durable: acknowledged by all of Kafka's in-sync replicas, or synced to
//     the spool. Acknowledgements keep the order of receipt.
//   - The bridge never stops reading. When Kafka is slow or down the spool takes over, for every QoS, and the broker does not notice. At
//     the spool's bound facts are dropped, counted, and asserted in a Feed fact.
//   - Facts of one cluster reach Kafka in the order of receipt. A fact may come more than once, with the same ID; taking the first copy of
//     each keeps the order.
//   - Topics that are deleted, created again or given more partitions under it end it, with an error that says so. What Kafka had not taken is in the
//     spool, and the next start gives it to the new topics.
//   - Every message ends as facts, as a signal about a node, as ignored, or as a dead letter, and is counted as such. Client IDs go through as
//     they are; bytes that are not UTF-8 become dead letters, so that no two IDs are ever merged.
//   - What the bridge missed is asserted: its Feed fact says since when it has seen everything, and which gap or drop ended that. A session
//     that the broker kept, at QoS 1 or 2 and within the time that it keeps events, continues without a gap, over a restart of the bridge too.
//     After a crash the gap begins at the last Feed fact.
//   - A new generation of a node is asserted once its uptime became smaller, or its boot lies after its previous heartbeat by both
//     clocks. A clock that was set, a late delivery and a retained copy are not a new generation.
//   - A node is asserted to be silent once three of its heartbeats stay away while the subscription stands and has stood for that long: an outage
//     of the bridge is never a node's silence. That a node's clock was set back is asserted with its heartbeats, once two of them tell it.
//   - A dead letter keeps the message as it came, and what the bridge knew of the broker's dialect and version, so that a later decoder can read it:
//     the subcommand "replay" does, and may be repeated, since the facts that it produces have the same IDs each time.
//   - The clients of a gateway are a cluster of their own, with the nodes and the feed of the cluster that they came with.
//
// # Limits
//
// EMQX 5 publishes its events at QoS 0: every lost connection is a gap. Mosquitto keeps log lines for 20 seconds and stamps them with whole
// seconds: around a restart within one second, before and after cannot be told apart. Loss inside a broker that it does not tell about
// cannot be seen.
//
// # Concurrency
//
// The methods of [Bridge] may be called from several goroutines; Run once. It owns all goroutines that it starts.
package bridge
