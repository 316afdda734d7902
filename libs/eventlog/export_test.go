package eventlog

import "github.com/twmb/franz-go/pkg/kgo"

// WatchEvery is Watch with another interval.
var WatchEvery = watch

// KafkaLogger is what a client with the log logs to.
func KafkaLogger(l *ClientLog) kgo.Logger { return kafkaLogger{l} }

// Connected says that a client with the log has connected to a broker.
func Connected(l *ClientLog, addr string) { l.connected(addr) }
