// Package eventlogtest gives tests a Kafka of their own: a fake broker in the process that speaks the real protocol.
package eventlogtest
