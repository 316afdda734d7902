// Package presencetest is a Presence query service in the process of a test: for what asks Presence through package presenceclient.
//
//	fake := presencetest.New(t)
//	fake.SetOnline("VIN0000001")
//	client := fake.NewClient(t)
//
// The client speaks gRPC to it, in memory and without the network, so that deadlines, cancellation, retries, error details and broken streams
// are the real ones. The fake knows of each client what the test says, and answers every call of the contract from that: single clients,
// batches, lists with filters and page tokens, sessions, counts, and watches with filter, token, snapshot, heartbeat and debounce. Like the
// service it refuses client IDs that MQTT does not allow. It has no accounts: who is to be refused is a [Fake.Fail] away.
//
// What a test has set is seen by the next call, and a watch that has begun gets each change once, in the order of the calls that made them;
// [Fake.Watches] tells when it has begun. Everything may be called from several goroutines. Time is that of the process, so that a fake may
// live in a testing/synctest bubble.
package presencetest
