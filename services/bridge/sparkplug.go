package bridge

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/mqtt-presence/presence/libs/presence"
)

// Sparkplug B (Eclipse Sparkplug 3.0) has the only will with a connection key: an edge node counts its connections in the metric bdSeq, from 0 to
// 255 and around, and writes the count of a connection into its NBIRTH and into the will NDEATH. So a late will never ends a newer
// connection. The time in a will is that of the connection's beginning, and that in NBIRTH is the device's clock: both messages are stamped with the
// time of reception.
const (
	nodeBirth = "NBIRTH"
	nodeDeath = "NDEATH"

	metricBdSeq = "bdSeq"
)

// Field numbers of org.eclipse.tahu.protobuf.Payload and its Metric.
const (
	payloadMetrics  = 2
	metricName      = 1
	metricIntValue  = 10 // uint32
	metricLongValue = 11 // uint64
)

var (
	errNoBdSeq    = errors.New("it has no metric bdSeq, which names the connection")
	errBdSeqValue = errors.New("its metric bdSeq has no whole number")
)

func (d *statusDecoder) sparkplug(s statusSource, m *message) decoded {
	levels := strings.Split(strings.TrimPrefix(m.topic, s.base+"/"), "/")
	if len(levels) != 3 || levels[0] == "" || levels[2] == "" || levels[1] != nodeBirth && levels[1] != nodeDeath {
		return deadLetter(deadTopic, "the topic is not <base>/<group>/NBIRTH|NDEATH/<node>")
	}
	if m.retain {
		// Neither message may be retained; a copy of unknown age would name a connection long gone.
		return ignore(ignoredRetained)
	}
	count, err := readBdSeq(m.payload)
	if err != nil {
		return deadLetter(deadPayload, fmt.Sprintf("the Sparkplug payload: %v", err))
	}
	f := presence.Fact{
		Kind: presence.Opened, Cluster: d.cluster, ClientID: levels[0] + "/" + levels[2], Dialect: presence.DialectSparkplug,
		Connection: strconv.FormatUint(count, 10), ReceivedMS: m.receivedMS,
	}
	if levels[1] == nodeDeath {
		f.Kind, f.Reason, f.RawReason = presence.Closed, presence.ReasonConnectionLost, nodeDeath
	}
	f.TimeMS, f.Order = d.arrivals.next(m.receivedMS)
	f.SetID()
	return decoded{facts: []presence.Fact{f}}
}

// readBdSeq finds the metric bdSeq of a payload; a birth may hold thousands of others.
func readBdSeq(payload []byte) (uint64, error) {
	count, found := uint64(0), false
	err := eachField(payload, func(number protowire.Number, kind protowire.Type, value []byte) error {
		if number != payloadMetrics || kind != protowire.BytesType || found {
			return nil
		}
		metric, _ := protowire.ConsumeBytes(value)
		n, named, err := readMetric(metric)
		if named {
			count, found = n, true
		}
		return err
	})
	if err == nil && !found {
		err = errNoBdSeq
	}
	return count, err
}

// readMetric returns the whole number of a metric, if it is bdSeq.
func readMetric(metric []byte) (value uint64, named bool, err error) {
	has := false
	err = eachField(metric, func(number protowire.Number, kind protowire.Type, field []byte) error {
		switch {
		case number == metricName && kind == protowire.BytesType:
			name, _ := protowire.ConsumeString(field)
			named = name == metricBdSeq
		case (number == metricLongValue || number == metricIntValue) && kind == protowire.VarintType:
			value, _ = protowire.ConsumeVarint(field)
			has = true
		}
		return nil
	})
	if err == nil && named && !has {
		err = errBdSeqValue
	}
	return value, named, err
}

// eachField calls f for each field of a message; value begins behind the tag.
func eachField(b []byte, f func(number protowire.Number, kind protowire.Type, value []byte) error) error {
	for len(b) > 0 {
		number, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(number, kind, b); n < 0 {
			return protowire.ParseError(n)
		}
		if err := f(number, kind, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
