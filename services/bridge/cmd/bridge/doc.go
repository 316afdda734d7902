// Command bridge carries the client events of MQTT brokers to Kafka. Its flags are listed by --help; it stops on SIGINT and SIGTERM, within
// a few seconds, and leaves in its spool what Kafka has not taken. "bridge replay", with the same flags, decodes the dead letters of its clusters
// again, and ends.
package main
