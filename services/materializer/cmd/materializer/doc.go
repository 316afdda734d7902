// Command materializer folds client events from Kafka into rows, publishes transitions, and serves the rows to query.
package main
