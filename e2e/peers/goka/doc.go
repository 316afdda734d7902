// Command goka is a baseline of the bench: Goka with a persistent table that keeps the newest event of each client.
//
// It does less than a materializer: the newest event by time wins, whatever connection it ends; there are no transitions, no indexes, no history.
// It prints "done EVENTS SECONDS" once it has applied every event that the topic had at the start, and ends when standard input does, so that whoever
// started it can look at the process before.
package main
