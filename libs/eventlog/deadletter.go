package eventlog

import (
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// DeadLetter is something that could not be decoded, with where it came from and why.
type DeadLetter struct {
	Source     string // mqtt or kafka
	Topic      string // MQTT or Kafka topic; the raw bytes, which need not be UTF-8
	Partition  int32  // kafka only
	Offset     int64  // kafka only
	Cluster    string
	Dialect    string
	Reason     string // a word to count by
	Detail     string // for a person: what is wrong, with the field
	ReceivedMS int64
	Payload    []byte
}

// Headers of a dead letter.
const (
	headerSource    = "source"
	headerTopic     = "topic"
	headerPartition = "partition"
	headerOffset    = "offset"
	headerCluster   = "cluster"
	headerDialect   = "dialect"
	headerReason    = "reason"
	headerDetail    = "detail"
)

// Sources of dead letters.
const (
	SourceMQTT  = "mqtt"
	SourceKafka = "kafka"
)

// DeadLetterRecord returns the record: the payload as it came, the rest in headers.
func DeadLetterRecord(d *DeadLetter) *kgo.Record {
	r := &kgo.Record{Topic: TopicDeadLetters, Value: d.Payload, Timestamp: time.UnixMilli(d.ReceivedMS)}
	add := func(key, value string) {
		if value != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
		}
	}
	add(headerSource, d.Source)
	add(headerTopic, d.Topic)
	if d.Source == SourceKafka {
		add(headerPartition, strconv.FormatInt(int64(d.Partition), 10))
		add(headerOffset, strconv.FormatInt(d.Offset, 10))
	}
	add(headerCluster, d.Cluster)
	add(headerDialect, d.Dialect)
	add(headerReason, d.Reason)
	add(headerDetail, d.Detail)
	return r
}

// DecodeDeadLetter is the inverse of DeadLetterRecord. The error wraps ErrBadRecord.
func DecodeDeadLetter(r *kgo.Record) (DeadLetter, error) {
	d := DeadLetter{Payload: r.Value, ReceivedMS: r.Timestamp.UnixMilli()}
	for _, h := range r.Headers {
		v := string(h.Value)
		var err error
		switch h.Key {
		case headerSource:
			d.Source = v
		case headerTopic:
			d.Topic = v
		case headerPartition:
			var n int64
			n, err = strconv.ParseInt(v, 10, 32)
			d.Partition = int32(n)
		case headerOffset:
			d.Offset, err = strconv.ParseInt(v, 10, 64)
		case headerCluster:
			d.Cluster = v
		case headerDialect:
			d.Dialect = v
		case headerReason:
			d.Reason = v
		case headerDetail:
			d.Detail = v
		}
		if err != nil {
			return d, fmt.Errorf("%w: header %s: %w", ErrBadRecord, h.Key, err)
		}
	}
	return d, nil
}
