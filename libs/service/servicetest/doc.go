// Package servicetest helps tests to wait for what other goroutines or processes do. It
// polls with a ticker and a deadline, and never sleeps for a guessed time. It makes the certificates of tests, too.
package servicetest
