// Package store keeps a materializer's rows, offsets and outbox in Pebble. keys.go is the one place that knows a key's layout, row.go,
// outbox.go, evidence.go and sessions.go that of a value.
//
// # Guarantees
//
//   - What belongs together is one [Batch] of one partition: the rows that a run of facts changed, the records that it caused (the
//     outbox) and the next offset. A batch is in the store whole or not at all, after any crash.
//   - Commit does not wait for the disk. A crash of the process or of the machine takes a suffix of the batches, never one from between
//     others: what is left is consistent, just older, and is folded again. Whoever tells others what is in a batch waits for
//     [Store.Sync] first, after which nothing that was committed before can be lost.
//   - Many rows of a partition may be loaded as tables ([Indexes.NewLoad]). That is a batch too, but one that is synced, together with all
//     that was committed before it. Its outbox may be on disk before ([Spill]); nobody sees it until the load is committed.
//   - What depends on arrival, a client's log of [Evidence], stands beside its row, is written with it and bounded in entries and bytes. So does
//     its history of every [Session] that the row's state has let go, which does not depend on arrival: histories are joined by Pebble, in any order.
//   - What indexes and counters hold is a function of the rows alone, and is written in the batch of the row. Where that was not so from the
//     first row on, as in the facts of an empty store, or was by rules of another version, [Indexes.Build] makes up for it; until it has, a
//     [View] says that they are not complete.
//   - A View shows rows, indexes and counters as they were at one moment.
//   - A [Checkpoint] is a copy of all that was committed before, of which another store can be made. It holds space on disk and nothing else, and
//     leaves the store the room that it needs.
//   - A disk that is full ends the process, with one error, while it works and at a start; with room again it goes on from what was committed. Only
//     a checkpoint is given up instead, and whoever asked for it is told.
//   - A directory that holds something else than a store, or a part of one, is not touched.
//   - A store serves one Kafka cluster and one client-events topic: [Store.Bind] refuses any other, naming both.
//
// A Store is safe for concurrent use; a Batch belongs to one goroutine. Byte slices passed in are copied, those passed to callbacks are
// valid only during the call, decoded values own their strings.
package store
