// Package presence is all of Presence in one process: bridge, materializer and query, with an embedded MQTT broker and an embedded Kafka
// unless real ones are named.
//
//	clients --> broker --> bridge --> Kafka --> materializer --> query --> callers
//	(embedded, or --mqtt-url)         (embedded, or --kafka-brokers)
//
// The parts are those of the split deployment; only the read from query to the materializer stays in the process. The StateService is
// served as well, so that query can also run elsewhere, unless --state-addr is empty.
//
// # Data
//
// Everything is kept in one folder, which one process uses at a time:
//
//	LOCK            held while the process runs
//	accounts        account dev, unless --accounts-file names another file
//	dev-password    its password, readable by the owner only
//	page-token-key  signs the tokens of list pages, so that they outlive a restart
//	kafka/          the embedded Kafka
//	state/          the materializer's store
//	bridge/         the bridge's spool
//
// A fact that was acknowledged outlives a killed process. Sessions of the embedded broker do not: its next start is a new generation of the
// node, which makes every client offline that was connected. Calls are answered only after that is known, so that no client
// of the generation before is online at first.
//
// # Lifecycle
//
// [Open] takes the folder and binds every address, so that what cannot start fails at once. [Presence.Run] starts outlet first and stops
// inlet first.
package presence
