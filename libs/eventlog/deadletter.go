package eventlog

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// DeadLetter is something that could not be decoded, with where it came from and why: everything that it takes to try again.
type DeadLetter struct {
	Source     string // mqtt or kafka
	Topic      string // MQTT or Kafka topic; the raw bytes, which need not be UTF-8
	Cluster    string
	Dialect    string
	Reason     string // a word to count by
	Detail     string // for a person: what is wrong, with the field
	ReceivedMS int64  // kafka: the record's own time
	Payload    []byte
	// CutFrom is the length in bytes of the payload, of which Payload is the beginning, as the whole would not fit into a record; 0: nothing
	// was cut.
	CutFrom int

	// Kafka only.
	Partition int32
	Offset    int64
	Key       []byte             // nil: the record had none, or the letter is of a time when letters did not say
	Headers   []kgo.RecordHeader // of the record

	// MQTT only.
	QoS    byte
	Retain bool
	// Version is the message by which the bridge knew the broker's version, its topic and its payload with a space between; empty: it
	// did not know, or the dialect needs none.
	Version string
}

const (
	// maxDeadPayload bounds what a dead letter keeps of a payload, and maxDeadHeaders of a record's key and headers, in bytes: together below
	// what Kafka takes by default, 1 MiB.
	maxDeadPayload = 512 << 10
	maxDeadHeaders = 256 << 10
	maxDeadDetail  = 4 << 10
)

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
	headerKey       = "key"
	headerQoS       = "qos"
	headerRetain    = "retain"
	headerVersion   = "broker-version"
	headerCutFrom   = "cut-from"
	// headerOfRecord begins the names of the headers that the record had.
	headerOfRecord = "header."
)

// Sources of dead letters.
const (
	SourceMQTT  = "mqtt"
	SourceKafka = "kafka"
)

// DeadLetterRecord returns the record: the payload as it came, the rest in headers. What would not fit into a record is cut, and CutFrom says so.
func DeadLetterRecord(d *DeadLetter) *kgo.Record {
	l := *d
	d = &l
	if n := len(d.Payload); n > maxDeadPayload {
		d.Payload, d.CutFrom = d.Payload[:maxDeadPayload], n
	}
	if recordHeaderBytes(d) > maxDeadHeaders {
		d.Key, d.Headers, d.CutFrom = nil, nil, max(d.CutFrom, len(d.Payload), 1)
	}
	if len(d.Detail) > maxDeadDetail {
		d.Detail = strings.ToValidUTF8(d.Detail[:maxDeadDetail], "")
	}
	r := &kgo.Record{Topic: TopicDeadLetters, Value: d.Payload, Timestamp: time.UnixMilli(d.ReceivedMS)}
	add := func(key, value string) {
		if value != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
		}
	}
	add(headerSource, d.Source)
	add(headerTopic, d.Topic)
	add(headerCluster, d.Cluster)
	add(headerDialect, d.Dialect)
	add(headerReason, d.Reason)
	add(headerDetail, d.Detail)
	if d.CutFrom != 0 {
		add(headerCutFrom, strconv.Itoa(d.CutFrom))
	}
	switch d.Source {
	case SourceKafka:
		add(headerPartition, strconv.FormatInt(int64(d.Partition), 10))
		add(headerOffset, strconv.FormatInt(d.Offset, 10))
		if d.Key != nil {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerKey, Value: d.Key})
		}
		for _, h := range d.Headers {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: headerOfRecord + h.Key, Value: h.Value})
		}
	case SourceMQTT:
		add(headerQoS, strconv.Itoa(int(d.QoS)))
		add(headerRetain, strconv.FormatBool(d.Retain))
		add(headerVersion, d.Version)
	}
	return r
}

func recordHeaderBytes(d *DeadLetter) int {
	n := len(d.Key)
	for _, h := range d.Headers {
		n += len(h.Key) + len(h.Value)
	}
	return n
}

// DecodeDeadLetter is the inverse of DeadLetterRecord. The error wraps ErrBadRecord.
func DecodeDeadLetter(r *kgo.Record) (DeadLetter, error) {
	d := DeadLetter{Payload: r.Value, ReceivedMS: r.Timestamp.UnixMilli()}
	for _, h := range r.Headers {
		if name, ok := strings.CutPrefix(h.Key, headerOfRecord); ok {
			d.Headers = append(d.Headers, kgo.RecordHeader{Key: name, Value: h.Value})
			continue
		}
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
		case headerKey:
			d.Key = h.Value
		case headerQoS:
			var n uint64
			n, err = strconv.ParseUint(v, 10, 8)
			d.QoS = byte(n)
		case headerRetain:
			d.Retain, err = strconv.ParseBool(v)
		case headerVersion:
			d.Version = v
		case headerCutFrom:
			d.CutFrom, err = strconv.Atoi(v)
		}
		if err != nil {
			return d, fmt.Errorf("%w: header %s: %w", ErrBadRecord, h.Key, err)
		}
	}
	return d, nil
}
