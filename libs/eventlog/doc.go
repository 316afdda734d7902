// Package eventlog is the Kafka side of the contract: topics, keys, partitions and records, and the options of every Kafka client.
//
// It is the only place that knows a record's bytes. A record is flat JSON by default, or Protobuf (proto/presence/v1); its content-type
// header says which, and readers take both. The JSON form has a fixed field order, leaves out what is unknown, and writes numbers as
// numbers; readers ignore fields that they do not know. Of what clients choose, the client ID is kept whole, up to the largest that MQTT allows, and
// the username up to [MaxUsernameBytes].
//
//	topic                        key                          value
//	presence.client-events.v1    <cluster>/<client ID>        ClientEvent
//	presence.node-events.v1      <cluster>/<node>/<kind>      NodeEvent
//	                             <cluster>/<bridge>/feed      NodeEvent
//	presence.client-state.v1     <cluster>/<client ID>        ClientState, or none: a Tombstone; same partition as in client-events
//	                             checkpoint                   ClientState
//	presence.dead-letters.v1     -                            what could not be decoded; origin and reason in headers
//
// All facts of one client share a partition, chosen by Kafka's murmur2 over the key, so that any client can compute it. Within a
// partition a producer's order is kept. Nothing is promised about the order of different bridges' facts, nor across partitions; facts may
// come twice.
//
// Functions are safe for concurrent use. Decoded values own their bytes.
package eventlog
