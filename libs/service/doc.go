// Package service holds what every main needs: configuration, logging, TLS,
// secrets, the admin listener, and the order in which parts start and stop.
//
// # Configuration
//
// [Load] fills a struct that already holds its defaults. Flags win over
// PRESENCE_* environment variables, which win over the YAML file named by
// --config or PRESENCE_CONFIG, which wins over the defaults. One name serves all
// four: the option kafka-brokers is the flag --kafka-brokers, the variable
// PRESENCE_KAFKA_BROKERS and the YAML key kafka-brokers. Every unknown name and
// every value that does not parse is an error, also where a stronger source
// overrides it, so that a misspelt setting is never silently without effect.
// Load reads nothing but its arguments and the file, and starts nothing.
//
// # Lifecycle
//
//	parts:   admin    store    query    bridge
//	start:     1 ------> 2 ------> 3 ------> 4     outlet first
//	stop:      4 <------ 3 <------ 2 <------ 1     inlet first
//
// [Run] starts its parts in the order given and stops them in the reverse order,
// each cancelled and awaited before the next, so that what enters last is
// still carried to the end. A part's Run blocks, owns the goroutines that it starts, and
// returns nil once its context is cancelled; any earlier return stops the others.
// Run returns within [GracePeriod] of the first cancellation or failure.
//
// # Concurrency
//
// [Admin] may be used from several goroutines. Nothing here keeps package-level
// state, except the version that the linker may set.
package service
