// Package kafka is the Kafka broker inside presence: franz-go's kfake, one broker that keeps everything in a folder.
//
// What it acknowledges is on disk: records, committed offsets and producer state outlive a killed process and a loss of power. Nor does a
// consumer see a record before. The files are synced together, by those who wait for it, and not in the order in which they were written: a
// loss of power may leave any part of what was not acknowledged. The acknowledgement of a record, and a consumer that does not wait for the end of
// transactions, wait for the partitions that they are about, all others for everything. Any Kafka client can use it at its address, without TLS and
// SASL, so that address should stay on loopback.
//
// It differs from Kafka where kfake does. Compaction runs hourly, does not know min.compaction.lag.ms, and rewrites a partition in place:
// it removes the files before it writes the new ones, so that a process killed in that moment loses what a compacted partition held. What it keeps of consumer groups and of producers' IDs
// it rewrites at 10 MB, and renames without a sync: on a file system that does not write a renamed file first, a loss of power in that moment loses it.
// Retention applies to compacted topics too, for which it is therefore off. Positions of all record batches are held in memory, about
// 100 bytes each, which is why client events are also bounded by size.
package kafka
