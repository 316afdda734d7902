// Package presenceclient asks a Presence query service, over gRPC, which MQTT clients are connected right now.
//
//	client, err := presenceclient.New(presenceclient.Config{Target: "presence:8081", TLS: &tls.Config{}, Credentials: ...})
//	...
//	status, err := client.Status(ctx, "VIN0000001")
//	if status.Online() { ... }
//
// What it guarantees:
//
//   - One [Client] is one connection, made when it is first needed, shared by all calls, watched by keep-alive and made anew when it
//     breaks. [New] does not wait for the service, and a call does not wait for a service that is down: it fails with UNAVAILABLE after
//     its attempts.
//   - Every call ends: where the context has no deadline, it gets [Config.Timeout]. Watches have none.
//   - Calls that only read are tried again on UNAVAILABLE, by gRPC's service config, with growing pauses, and all of a client's calls
//     together only while most of them succeed. RESOURCE_EXHAUSTED is tried again after the time that the service asks for, if that ends
//     before the deadline, else returned at once. Delete is not tried again on UNAVAILABLE: a second deletion would forget what has
//     happened since the first.
//   - Errors keep the service's gRPC status and details: status.Code works on them, and so do [IsNeverSeen] and its siblings.
//   - "unknown" is never made into online or offline: [Status.Online] and [Status.Offline] are both false for it, and the best guess has
//     a name of its own.
//   - Credentials go out only over TLS or to a loopback address, unless the configuration says otherwise.
//   - [Client.Watch] gives every transition that the service reports from its start on, in the service's order, over any number of broken
//     streams. What the service had to pass over is reported as skipped.
//   - With [Coalesce], concurrent single lookups share calls. A lookup keeps its own deadline, never fails because of another's client ID, and waits
//     for the others no longer than Window for the call to start and Patience for it to end; then it asks alone.
//
// All methods may be called from several goroutines. Messages returned are the caller's, except that the clients of one batch
// or page share one Freshness, which is to be read only.
//
// Package presencetest has a service in the same process, for tests of what uses this package. Neither of the two links Kafka or a store.
package presenceclient
