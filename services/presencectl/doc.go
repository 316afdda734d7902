// Package presencectl is the command line of Presence. Everything about clients goes over the public gRPC contract (PresenceService), everything
// about dead letters over Kafka: they are no part of that contract, because whoever may read them sees what brokers sent, whatever it was.
//
// # Guarantees
//
//   - [Main] exits with 3 on every error, of usage too, and where compare-replicas or check-indexes find that something is wrong. The command status
//     exits with 0 for online, 1 for offline, 2 for unknown; every other command with 0.
//   - Standard output holds answers only: a table, or with -o json one JSON object a line, as REST answers. What is said about an answer
//     (that it is stale, that there are more pages, that a watch skipped something) goes to standard error.
//   - What comes from brokers and clients, such as client IDs, cannot act on the terminal: in tables a text with bytes that do not print, or that
//     could be mistaken for another cell, is quoted as in Go, and JSON escapes every character that does not print. Colours go to a terminal only.
//   - Secrets come from files or the environment, never from the command line, and do not go over a connection without TLS to another machine
//     unless that is allowed in so many words.
//   - A context file is written whole or not at all, with mode 0600. It names files with secrets and holds none.
//   - watch goes on by itself after its connection was lost, where it left off; if that is not possible it says so and ends. What the service
//     skipped for it is reported, never swallowed.
//   - Replaying a dead letter twice is as good as once: facts have deterministic IDs.
//
// # Concurrency
//
// A call of Main keeps no state in the package; several may run at once.
package presencectl
