// Package broker is the MQTT broker inside presence: mochi-mqtt, with the client events and heartbeats of EMQX 5.8 under $SYS.
//
//	clients --TCP--> front server --events--> queue --QoS 1--> feed server --in process--> bridge
//
// MQTT comes over TCP and, where Config.WSAddr says so, over WebSocket, which browsers may open from pages of the same host only.
//
// Clients are served by one mochi server, the bridge by another that no network reaches. Neither an ID, a subscription nor a will of a
// client can therefore touch the bridge's session or forge an event, and $SYS is closed to clients. The bridge gets in through
// [Broker.Dial].
//
// # Events
//
// Every connection that was accepted with CONNACK 0 gives exactly one connected and, once it is over, one disconnected event; a refused
// one gives none. Both carry the same connected_at, which no other connection of that client ID has. Events of one client ID are
// published in the order in which they happened: on a takeover the old connection's disconnected comes first. An ID that a topic cannot
// carry (+ and #) is percent-encoded in the topic and exact in the payload.
//
// A client's handler never waits for the feed. Events wait in a bounded queue while the bridge is slow or away; at its bound
// they are dropped, counted and reported to [Config.OnDrop].
//
// # Generations
//
// Clients are served only after [Config.Open] is closed, which says that the bridge's subscription stands, and uptime counts
// from that moment: whoever has seen the feed since then has seen all of this generation. Sessions live in memory and end with the process.
//
// # Time
//
// The broker's clock follows the machine's forwards and never goes back within a process.
package broker
