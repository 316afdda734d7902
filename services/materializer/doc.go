// Package materializer folds client events from Kafka into rows, and answers for them: is this client connected right now?
//
//	client-events --fetcher--> queue --fold--> store (rows, outbox, next offset) --publisher--> client-state
//	node-events ---> node table -----^ sweep       ^ GetStates, ListStates, GetCounts
//
// A process owns the partitions that its consumer group assigns to it. One goroutine per partition folds its facts, sweeps its rows after
// a change of nodes and writes its checkpoints; beside it one publishes its outbox. Catching up and being live are one
// path: facts are folded into a working set, which is committed after each take from the queue, or, by a partition that catches up, once it has
// grown, so that a row is read at most once and written once for many facts. Few partitions catch up at a time, the others wait for their turn.
//
// # Guarantees
//
//   - A fact has one of three fates: it is applied; or it can never be and is in the dead letters, durably, before the offset passes it; or
//     Run stops with an error and a restart begins with it again.
//   - Rows, the transitions that they caused and the next offset are one batch of the store, whatever takes from the queue it is made of: how the log
//     is cut into takes and batches, and which of them a crash takes, makes no difference to anything that is kept. Readers see the latest
//     batch and its offset; who waits for an offset that is folded has it committed. The group's committed offset is a progress
//     report. If Kafka no longer has the next offset, facts are lost, and that is an error.
//   - Transitions are published in order, all of them, with versions (client-events offset, node-events offset) that ascend per client. A
//     record is published only after the store has synced its batch: what others have read is not undone by a crash of any kind. After
//     a crash the same bytes may come twice, with equal versions.
//   - One process publishes a partition: to acquire it fences the one before, and then reads what that one published and this store does
//     not have. A store without rows is filled this way, and a partition that comes back goes on from what others made of it.
//   - A store that was left so far behind that Kafka may not say any more who was forgotten meanwhile is filled anew, partition by partition.
//   - A backup is the store as it is at one moment. A store that is made of it goes on as one that was left behind then: what it has of
//     unpublished transitions gives way to what was published since.
//   - A checkpoint says: all states up to this offset are published before it in its partition.
//   - Node events are read to the end before the first fact is folded, at every start, and wait for nothing after that. A change of
//     nodes is in every answer at once; the sweep publishes the transitions that follow.
//   - Beside the state stands the evidence: of each client the latest facts with their offsets and outcomes, and the transitions that they
//     or a change of nodes caused. What was folded elsewhere is not in it, and the answer says from which offset on all facts are.
//   - Beside the state stands also the history: the latest connections that it has let go, each once, whatever came late, twice or in
//     another order. An end is stated, or it is bounded by what followed. The answer says since when none is missing.
//   - Expiry is a function of the log: with --expire-after a client that is offline, or of which no connection is known, goes once the received
//     times of its partition have passed its latest fact by that; facts that are older still are too old. How facts are batched, when a process restarts, and when the walk
//     that frees the space comes by, makes no difference. One bridge with a clock far ahead moves nothing. Two things a store that was
//     filled from client-state does not know: a repeated fact that changed nothing, by which a client counts as heard of, and, where an
//     offset goes back, how late it was then.
//   - What was forgotten stays forgotten, in every store, also in one that is filled later, from the log or from client-state: a marker keeps
//     out facts that come late or twice, for two weeks of the partition's time, however soon clients expire. For all who ask, it is a client
//     never seen.
//   - A list by client ID misses nobody and has nobody twice who does not change while its pages are read: while the rows do not show a change
//     of nodes yet, or indexes are being built, the rows themselves are looked through. Totals, counts and lists by since may be off
//     meanwhile, and say so; a list by since is refused while the indexes are being built. A call looks at no more than maxLooked rows.
//   - Indexes are written with the rows if the first batch of a partition without rows is also the one that catches up. Else they are built once
//     the partition has caught up, and when CheckStore found that they are not what the rows say and was to repair them.
//   - An answer about a client is what the facts below the applied offset that it states make, and the node facts below its node-events offset, no
//     more and no less. So is each entry of a batch or a list, for the offsets of its partition, unless that catches up, which it says: then rows may be
//     ahead of the offset.
//   - A Kafka that does not answer, restarts, elects leaders or has too few replicas ends nothing, at the start or later: what failed is tried again. What ends
//     Run is what a person must mend (eventlog.Permanent, lost facts, the store), and a membership that another process takes again and again.
//   - A partition that was lost is read as it was until it is acquired again, or the group has given it to another. Its answers say how old they are.
//   - A member that restarts within its session of 10 s gets its partitions back without a rebalance. One that is stopped for good is waited for so
//     long, unless it leaves the group (Config.LeaveOnStop).
//
// # Bounds
//
// At most maxQueued records of maxQueuedBytes wait for the fold, over all partitions, and about maxOutbox bytes of a partition for publication: beyond
// that its fold waits, with all that it has folded committed, and after a second the others go on without it. A node record that cannot be read is put into the dead letters at
// every start, since the topic is read from its beginning.
//
// The working sets of the partitions that catch up, as many as there are processors but at most maxTurns, take workingBytes in all, as they count
// themselves; a partition that begins less than farBehind records behind, or has caught up before, needs no turn and commits every take. A set is
// committed after maxOpen at the latest, and holds back at most about maxOpenOutbox bytes from publication in memory, also if one take would make more;
// what it has beyond spillOutbox goes to disk, where all partitions have at most about maxSpilled bytes that wait for publication. A sweep
// goes on between two commits.
//
// # Concurrency
//
// The calls of StateService, Ready, StateAddr and Listen may be called from any goroutine at any time. Run runs once.
package materializer
