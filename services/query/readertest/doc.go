// Package readertest holds what every query.StateReader must do, as a test function, and a reader in memory.
//
// [Run] is the contract: it is run on the reader in process, on the same reader over gRPC and a router, and on the materializer. [Fake]
// folds facts with the real fold (libs/presence), so that a test can say what the brokers said and not what the answer should be.
// Answers are built anew for each call and belong to the caller. A Fake may be used from several goroutines.
package readertest
