package eventlog

import (
	"fmt"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Why a client's state was removed.
const (
	RemovedForgotten = "forgotten" // somebody asked for it
	RemovedExpired   = "expired"   // nothing was heard of the client for long
)

// Headers of a tombstone, and of a checkpoint.
const (
	headerRemoved   = "reason"
	headerAsOf      = "as_of_ms"
	headerEvent     = "event_offset"
	headerNodeEvent = "node_event_offset"
	headerClock     = "clock_ms"
)

// Tombstone is a record of client-state without a value: what was published of the client is removed, and compaction drops it. What there is
// to say stands in headers, numbers in decimal.
type Tombstone struct {
	Cluster, ClientID string
	Reason            string // RemovedForgotten or RemovedExpired
	AsOfMS            int64  // facts up to this time are to be forgotten, also those that come later; 0 if none are. RemovedForgotten has it
	TimeMS            int64  // event time of what caused it; the record's timestamp

	// EventOffset and NodeEventOffset are the version, as in ClientState. A transition that the same fact caused comes before, and has the same.
	EventOffset, NodeEventOffset int64
}

// TombstoneRecord returns the record, for the partition that the client's facts are in.
func TombstoneRecord(t *Tombstone, partition int32) *kgo.Record {
	r := &kgo.Record{
		Topic: TopicClientState, Partition: partition, Key: ClientKey(t.Cluster, t.ClientID), Timestamp: time.UnixMilli(t.TimeMS),
		Headers: []kgo.RecordHeader{{Key: headerRemoved, Value: []byte(t.Reason)}},
	}
	if t.AsOfMS != 0 {
		r.Headers = append(r.Headers, decimalHeader(headerAsOf, t.AsOfMS))
	}
	r.Headers = append(r.Headers, decimalHeader(headerEvent, t.EventOffset), decimalHeader(headerNodeEvent, t.NodeEventOffset))
	return r
}

func decimalHeader(key string, v int64) kgo.RecordHeader {
	return kgo.RecordHeader{Key: key, Value: strconv.AppendInt(nil, v, 10)}
}

// DecodeTombstone reads a record of client-state without a value. It reports false for one that is not of the contract, such as somebody
// else's, which says nothing of a version. The error wraps ErrBadRecord and names the header.
func DecodeTombstone(r *kgo.Record, t *Tombstone) (ok bool, err error) {
	*t = Tombstone{TimeMS: r.Timestamp.UnixMilli()}
	seen := 0
	for _, h := range r.Headers {
		var to *int64
		least, most := int64(-1), int64(1<<62)
		switch h.Key {
		case headerRemoved:
			t.Reason = string(h.Value)
			continue
		case headerAsOf:
			to, least, most = &t.AsOfMS, 1, maxTimeMS
		case headerEvent:
			to = &t.EventOffset
			seen |= 1
		case headerNodeEvent:
			to = &t.NodeEventOffset
			seen |= 2
		default:
			continue
		}
		if *to, err = strconv.ParseInt(string(h.Value), 10, 64); err != nil || *to < least || *to > most {
			return false, fmt.Errorf("%w: header %q is %q, no number from %d to %d", ErrBadRecord, h.Key, h.Value, least, most)
		}
	}
	if t.Reason == "" {
		return false, nil
	}
	if seen != 3 {
		return false, fmt.Errorf("%w: a tombstone needs the headers %q and %q", ErrBadRecord, headerEvent, headerNodeEvent)
	}
	if t.Reason == RemovedForgotten && t.AsOfMS == 0 {
		// Without it what is to be kept out would be let in.
		return false, fmt.Errorf("%w: a tombstone of what was forgotten needs the header %q", ErrBadRecord, headerAsOf)
	}
	if t.Cluster, t.ClientID, err = SplitClientKey(r.Key); err != nil {
		return false, err
	}
	if err := ValidCluster(t.Cluster); err != nil {
		return false, fmt.Errorf("%w: key: %w", ErrBadRecord, err)
	}
	if err := ValidClientID(t.ClientID); err != nil {
		return false, fmt.Errorf("%w: key: %w", ErrBadRecord, err)
	}
	return true, nil
}

// clockOf reads the clock of a checkpoint; 0 if the record, of an older version, has none.
func clockOf(r *kgo.Record) int64 {
	for _, h := range r.Headers {
		if h.Key == headerClock {
			if v, err := strconv.ParseInt(string(h.Value), 10, 64); err == nil {
				return v
			}
		}
	}
	return 0
}
