// Package query answers "is this MQTT client connected right now?" over REST and gRPC.
//
// The service keeps no state of its own. It asks a [StateReader]: the materializer itself when both run in one process, or a
// [Router], which finds the owner of each partition in Kafka's consumer group and asks it over gRPC.
//
//	caller --REST--> rest.go --\                              /--> in process
//	                            gate --> answers --> StateReader
//	caller --gRPC--> grpc.go --/                              \--> Router --> materializers
//
// What it guarantees:
//
//   - REST and gRPC are one contract (proto/presence/v1) and one implementation: the same question gets the same answer, the same error
//     code and the same message on both.
//   - An MQTT client ID is opaque. Every ID of 1 to 65,535 bytes of UTF-8 can be asked for; it is never cleaned, folded or normalised.
//   - Every /v1 answer, and GetStatus, says how fresh it is. What is not known counts as stale.
//   - An answer that the facts do not decide is "unknown", with the best belief beside it; the short call answers the belief and
//     says so in the header Presence-Status.
//   - While one replica answers, no request fails for another's sake, and none waits long: an owner that takes longer than 150 ms for a client, or
//     400 ms for a list or counts, is raced by the other replica's. One that lost, or cannot be reached, is passed over until it answers a probe.
//   - The replica named first is asked, unless another's rows of the partition are fresh and its own are not. Where none are, what answers says so.
//   - Without a replica a request waits for the next owner as long as request-timeout, asks again whenever the routing changes, and then says
//     which partition has none.
//   - An error says what is wrong and what to do, names the field, and never shows what is inside the service.
//   - The web page at / holds no data and needs no account: it asks the calls of the contract with the credentials that its user gives it,
//     loads nothing from elsewhere, and shows whatever a client calls itself as text.
//   - A list, a count or a check is of all partitions, or it is an error: never of those alone that have an owner. A page token is bound to
//     its call, cluster and filter, and cannot be made or changed by a caller. Between pages, a client that does not change is neither
//     missed nor listed twice.
//   - "Was it connected at T?" is answered online or offline only where the facts that were received decide it.
//   - The only write is the forgotten record of DeleteClient. If Kafka does not confirm it, the error says whether it may be in the log.
//   - A watch tells every transition that its filter selects exactly once, those of one client in the order of their versions. With the token
//     of a message it goes on after it, also at another query service or after a restart; where transitions are held back (debounce), some
//     may come again then. What a slow watcher did not get is said. A snapshot is never older than the transitions that follow it.
//   - Nobody learns from the time an answer takes whether an account exists, or how its password is kept. The cost of a password is paid
//     once per credential, and who tries many queues behind himself and keeps nobody out.
//   - There is no anonymous access to data: a caller is an account with a password, an account that a client certificate stands for, or the
//     subject of a bearer token that a key of the JWKS file has signed.
//   - Who asks beyond a rate is refused, told when to come back, and slowed down if he does not wait. Connections, streams and the time that
//     a request may take are bounded, so that one caller does not take another's place.
//   - Every denied call and every call that needs admin is written to the audit log, or counted there.
//   - Accounts, keys and certificates are read again when their files change, without a request lost; what is wrong changes nothing.
//
// [Service.Run] blocks, owns its goroutines and stops within 3 seconds of its context's end. All exported methods may be called
// from several goroutines. Metrics are labelled by call and outcome, never by client ID.
package query
