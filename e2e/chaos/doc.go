// Package chaos plans faults, and proves from what is left in Kafka that they have cost nothing that is promised.
//
// [Plan] makes a schedule of a seed: which process of a deployment is killed, stopped, cut off or restarted when, and for how long. The same seed makes
// the same schedule, whatever happens in the run.
//
// [Ledger] takes in all records of the topics, in any interleaving of the partitions, and [Ledger.Check] proves:
//
//   - copies of a fact are equal but for when they were received and for what one of them does not know, and all records of a client are in the partition of its key;
//   - the states of a client come in the order of their versions, and what comes again has the same bytes;
//   - every transition is what the fold makes of the facts up to its version, begins where the one before it ended, and changes something; every state is
//     the folded one, byte for byte;
//   - no transition is lost: between two of them, and after the last, no fact changes the verdict;
//   - nothing is committed in a partition by a producer that was fenced there;
//   - after a checkpoint no state from before its offset comes for the first time;
//   - there is no dead letter.
//
// [Ledger.CheckClient] proves of one client what concerns no other.
//
// [Ledger.CheckAnswers] holds recorded answers against the fold at the offsets that they state, and [Tail.Check] their stated lag against what the log
// had at the time.
//
// Checks cost a fold of each client's facts. A Ledger is used by one goroutine at a time, a Tail by any number.
package chaos
