package eventlog

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/presence"
)

// ErrBadRecord is returned for a record that is not of the contract. It can never be read, so it goes to the dead letters.
var ErrBadRecord = errors.New("bad record")

// Format is how a record's value is encoded.
type Format uint8

// The formats.
const (
	JSON Format = iota
	Protobuf
)

// Content types of the formats, the value of the header HeaderContentType.
const (
	HeaderContentType   = "content-type"
	ContentTypeJSON     = "application/json"
	ContentTypeProtobuf = "application/x-protobuf"
)

// String returns json or protobuf.
func (f Format) String() string {
	if f == Protobuf {
		return "protobuf"
	}
	return "json"
}

// ParseFormat is the inverse of String.
func ParseFormat(s string) (Format, error) {
	switch s {
	case "json":
		return JSON, nil
	case "protobuf":
		return Protobuf, nil
	}
	return JSON, fmt.Errorf("%q is neither json nor protobuf", s)
}

// The headers of records, which all share; an append to them makes a copy.
var (
	jsonHeaders     = []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte(ContentTypeJSON)}}
	protobufHeaders = []kgo.RecordHeader{{Key: HeaderContentType, Value: []byte(ContentTypeProtobuf)}}
)

func (f Format) headers() []kgo.RecordHeader {
	if f == Protobuf {
		return protobufHeaders
	}
	return jsonHeaders
}

// formatOf reads the content type of a record; a record without one is JSON.
func formatOf(r *kgo.Record) (Format, error) {
	for i := range r.Headers {
		if r.Headers[i].Key != HeaderContentType {
			continue
		}
		switch string(r.Headers[i].Value) {
		case ContentTypeJSON:
			return JSON, nil
		case ContentTypeProtobuf:
			return Protobuf, nil
		}
		return JSON, fmt.Errorf("%w: header %s is %q, neither %s nor %s", ErrBadRecord, HeaderContentType, r.Headers[i].Value, ContentTypeJSON, ContentTypeProtobuf)
	}
	return JSON, nil
}

// FactRecord returns the record of a client fact.
func FactRecord(f *presence.Fact, format Format) *kgo.Record {
	var value []byte
	if format == Protobuf {
		value = factProto(f)
	} else {
		value = AppendFactJSON(nil, f)
	}
	return &kgo.Record{Topic: TopicClientEvents, Key: ClientKey(f.Cluster, f.ClientID), Value: value, Headers: format.headers(), Timestamp: time.UnixMilli(f.ReceivedMS)}
}

// DecodeFact reads the record of a client fact. Of what f holds before, it keeps the memory of cluster, node and username if they are the
// same: pass the fact before. A username is cut to MaxUsernameBytes. The error wraps ErrBadRecord and names the field.
func DecodeFact(r *kgo.Record, f *presence.Fact) error {
	format, err := formatOf(r)
	if err != nil {
		return err
	}
	if format == Protobuf {
		err = factFromProto(r.Value, f)
	} else {
		err = DecodeFactJSON(r.Value, f)
	}
	if err != nil {
		return err
	}
	f.Username = cutUsername(f.Username)
	return checkFact(f)
}

func checkFact(f *presence.Fact) error {
	if f.Kind == presence.KindUnknown {
		return fmt.Errorf("%w: field \"type\" is none of connected, disconnected, observed, forgotten", ErrBadRecord)
	}
	if err := ValidCluster(f.Cluster); err != nil {
		return fmt.Errorf("%w: field \"cluster\": %w", ErrBadRecord, err)
	}
	if err := ValidClientID(f.ClientID); err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	switch {
	case (f.Kind == presence.Opened || f.Kind == presence.Closed) && f.TimeMS <= 0:
		return fmt.Errorf("%w: field \"time_ms\" is missing", ErrBadRecord)
	case f.Kind == presence.Observed && !f.Online.Valid:
		return fmt.Errorf("%w: field \"online\" is missing", ErrBadRecord)
	}
	for _, t := range []struct {
		field string
		ms    int64
	}{{"time_ms", f.TimeMS}, {"received_ms", f.ReceivedMS}, {"connected_at_ms", f.ConnectedAtMS}, {"disconnected_at_ms", f.DisconnectedAtMS},
		{"query_start_ms", f.QueryStartMS}, {"query_end_ms", f.QueryEndMS}, {"as_of_ms", f.AsOfMS}} {
		if t.ms > maxTimeMS {
			return fmt.Errorf("%w: field %q: %d is after the year 9999: give epoch milliseconds", ErrBadRecord, t.field, t.ms)
		}
	}
	return nil
}

// maxTimeMS is the end of the year 9999, the last that RFC 3339 can write. A time beyond it is in another unit, and would outweigh every
// later fact of its client.
const maxTimeMS = 253_402_300_799_999

// AppendFactJSON appends the JSON form of a client fact.
func AppendFactJSON(dst []byte, f *presence.Fact) []byte {
	var w objectWriter
	w.open(dst)
	w.str("id", f.ID)
	w.str("type", f.Kind.String())
	w.str("cluster", f.Cluster)
	w.str("client_id", f.ClientID)
	w.str("node", f.Node)
	w.str("connection", f.Connection)
	w.int("time_ms", f.TimeMS)
	w.int("order", int64(f.Order))
	w.int("received_ms", f.ReceivedMS)
	w.int("connected_at_ms", f.ConnectedAtMS)
	w.int("disconnected_at_ms", f.DisconnectedAtMS)
	w.str("username", f.Username)
	w.str("peer", f.Peer)
	w.str("transport", f.Transport)
	w.int("protocol_version", int64(f.ProtocolVersion))
	w.optInt("keep_alive_s", f.KeepAliveS)
	w.optBool("clean_start", f.CleanStart)
	w.optInt("session_expiry_s", f.SessionExpiryS)
	w.str("reason", f.Reason.String())
	w.str("raw_reason", f.RawReason)
	w.str("dialect", f.Dialect)
	w.optBool("online", f.Online)
	w.int("query_start_ms", f.QueryStartMS)
	w.int("query_end_ms", f.QueryEndMS)
	w.str("source", f.Source)
	w.int("as_of_ms", f.AsOfMS)
	return w.close()
}

// DecodeFactJSON reads the JSON form of a client fact; fields that it does not know are passed over. Memory of f is kept as DecodeFact does.
// The error wraps ErrBadRecord.
func DecodeFactJSON(b []byte, f *presence.Fact) error {
	cluster, node, username := f.Cluster, f.Node, f.Username
	*f = presence.Fact{}
	r := objectReader{b: b}
	err := r.object(func(name []byte) {
		switch string(name) {
		case "id":
			r.str(&f.ID)
		case "type":
			f.Kind = presence.ParseKind(string(r.raw()))
		case "cluster":
			r.same(&f.Cluster, cluster)
		case "client_id":
			r.str(&f.ClientID)
		case "node":
			r.same(&f.Node, node)
		case "connection":
			r.str(&f.Connection)
		case "time_ms":
			r.ms(&f.TimeMS)
		case "order":
			r.uint32(&f.Order)
		case "received_ms":
			r.ms(&f.ReceivedMS)
		case "connected_at_ms":
			r.ms(&f.ConnectedAtMS)
		case "disconnected_at_ms":
			r.ms(&f.DisconnectedAtMS)
		case "username":
			r.same(&f.Username, username)
		case "peer":
			r.str(&f.Peer)
		case "transport":
			r.str(&f.Transport)
		case "protocol_version":
			r.uint8(&f.ProtocolVersion)
		case "keep_alive_s":
			r.optInt(&f.KeepAliveS)
		case "clean_start":
			r.optBool(&f.CleanStart)
		case "session_expiry_s":
			r.optInt(&f.SessionExpiryS)
		case "reason":
			f.Reason = presence.ParseReason(string(r.raw()))
		case "raw_reason":
			r.str(&f.RawReason)
		case "dialect":
			f.Dialect = r.dialect()
		case "online":
			r.optBool(&f.Online)
		case "query_start_ms":
			r.ms(&f.QueryStartMS)
		case "query_end_ms":
			r.ms(&f.QueryEndMS)
		case "source":
			r.str(&f.Source)
		case "as_of_ms":
			r.ms(&f.AsOfMS)
		default:
			r.skip()
		}
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return nil
}

// dialect reads a dialect's name, without an allocation for those that are built in.
func (r *objectReader) dialect() string {
	b := r.raw()
	switch string(b) {
	case presence.DialectEMQX:
		return presence.DialectEMQX
	case presence.DialectMosquitto20:
		return presence.DialectMosquitto20
	}
	return string(b)
}

// NodeRecord returns the record of a node or feed fact.
func NodeRecord(f *presence.NodeFact, format Format) *kgo.Record {
	var value []byte
	if format == Protobuf {
		value = nodeProto(f)
	} else {
		value = AppendNodeFactJSON(nil, f)
	}
	return &kgo.Record{Topic: TopicNodeEvents, Key: NodeKey(f), Value: value, Headers: format.headers(), Timestamp: time.UnixMilli(f.ReceivedMS)}
}

// DecodeNodeFact reads the record of a node or feed fact. The error wraps ErrBadRecord and names the field.
func DecodeNodeFact(r *kgo.Record, f *presence.NodeFact) error {
	format, err := formatOf(r)
	if err != nil {
		return err
	}
	if format == Protobuf {
		err = nodeFromProto(r.Value, f)
	} else {
		err = decodeNodeFactJSON(r.Value, f)
	}
	if err != nil {
		return err
	}
	if f.Kind == presence.NodeUnknown {
		return fmt.Errorf("%w: field \"type\" is none of alive, started, gone, silent, feed", ErrBadRecord)
	}
	if err := ValidCluster(f.Cluster); err != nil {
		return fmt.Errorf("%w: field \"cluster\": %w", ErrBadRecord, err)
	}
	if f.Kind == presence.Feed && f.Bridge == "" {
		return fmt.Errorf("%w: field \"bridge\" is missing", ErrBadRecord)
	}
	if f.Kind != presence.Feed && f.Node == "" {
		return fmt.Errorf("%w: field \"node\" is missing", ErrBadRecord)
	}
	return nil
}

// AppendNodeFactJSON appends the JSON form of a node or feed fact.
func AppendNodeFactJSON(dst []byte, f *presence.NodeFact) []byte {
	var w objectWriter
	w.open(dst)
	w.str("id", f.ID)
	w.str("type", f.Kind.String())
	w.str("cluster", f.Cluster)
	w.str("node", f.Node)
	w.str("bridge", f.Bridge)
	w.str("dialect", f.Dialect)
	w.int("time_ms", f.TimeMS)
	w.int("received_ms", f.ReceivedMS)
	if f.UptimeMS.Valid {
		w.zero("uptime_ms", f.UptimeMS.Value)
	}
	w.int("started_ms", f.StartedMS)
	w.int("started_received_ms", f.StartedReceivedMS)
	w.int("complete_since_ms", f.CompleteSinceMS)
	w.int("gap_from_ms", f.GapFromMS)
	w.int("gap_to_ms", f.GapToMS)
	w.int("resynced_ms", f.ResyncedMS)
	w.int("dropped_count", f.DroppedCount)
	w.int("dropped_from_ms", f.DroppedFromMS)
	w.int("dropped_to_ms", f.DroppedToMS)
	w.int("lease_ms", f.LeaseMS)
	w.int("set_back_from_ms", f.SetBackFromMS)
	w.int("set_back_to_ms", f.SetBackToMS)
	w.str("covered_ms", coveredText(f))
	return w.close()
}

// coveredText returns the spans that a Feed fact has covered as the contract writes them: records are flat.
func coveredText(f *presence.NodeFact) string {
	var b []byte
	for i, s := range f.Covered[:f.Covered.Len()] {
		if i > 0 {
			b = append(b, ' ')
		}
		b = append(strconv.AppendInt(b, s.FromMS, 10), '-')
		b = strconv.AppendInt(b, s.ToMS, 10)
	}
	return string(b)
}

// setCovered is the inverse of coveredText. Of more spans than there is room for the latest stay.
func setCovered(f *presence.NodeFact, text string) error {
	f.Covered = presence.Coverage{}
	last := int64(0)
	for _, span := range strings.Fields(text) {
		begin, end, _ := strings.Cut(span, "-")
		from, err := strconv.ParseInt(begin, 10, 64)
		to, toErr := strconv.ParseInt(end, 10, 64)
		if err := errors.Join(err, toErr); err != nil || from <= 0 || from < last || to < from {
			return fmt.Errorf("%.60q is no span, from-to, after %d", span, last)
		}
		f.Covered.Add(from, to)
		last = to
	}
	return nil
}

func decodeNodeFactJSON(b []byte, f *presence.NodeFact) error {
	*f = presence.NodeFact{}
	r := objectReader{b: b}
	numbers := map[string]*int64{
		"time_ms": &f.TimeMS, "received_ms": &f.ReceivedMS, "started_ms": &f.StartedMS, "started_received_ms": &f.StartedReceivedMS,
		"complete_since_ms": &f.CompleteSinceMS, "gap_from_ms": &f.GapFromMS, "gap_to_ms": &f.GapToMS, "resynced_ms": &f.ResyncedMS,
		"dropped_count": &f.DroppedCount, "dropped_from_ms": &f.DroppedFromMS, "dropped_to_ms": &f.DroppedToMS, "lease_ms": &f.LeaseMS,
		"set_back_from_ms": &f.SetBackFromMS, "set_back_to_ms": &f.SetBackToMS,
	}
	err := r.object(func(name []byte) {
		switch string(name) {
		case "id":
			r.str(&f.ID)
		case "type":
			f.Kind = presence.ParseNodeKind(string(r.raw()))
		case "cluster":
			r.str(&f.Cluster)
		case "node":
			r.str(&f.Node)
		case "bridge":
			r.str(&f.Bridge)
		case "dialect":
			f.Dialect = r.dialect()
		case "uptime_ms":
			r.optMS(&f.UptimeMS)
		case "covered_ms":
			var spans string
			if r.str(&spans); r.err == nil {
				if err := setCovered(f, spans); err != nil {
					r.fail(err)
				}
			}
		default:
			if n := numbers[string(name)]; n != nil {
				r.ms(n)
				return
			}
			r.skip()
		}
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrBadRecord, err)
	}
	return nil
}
