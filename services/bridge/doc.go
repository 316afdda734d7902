// Package bridge carries what MQTT brokers tell about their clients to Kafka: facts in, records out, nothing lost unseen.
package bridge
