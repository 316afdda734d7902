package presence

import (
	"strconv"
	"testing"
)

// BenchmarkApply folds a connection and its end into a client's state, as most facts do.
func BenchmarkApply(b *testing.B) {
	b.ReportAllocs()
	var st State
	for i := range b.N {
		at := int64(i + 1)
		f := Fact{Kind: Opened, Dialect: DialectEMQX, Node: "emqx@10.0.3.11", Connection: "1760000000123", ConnectedAtMS: at, TimeMS: at, ReceivedMS: at}
		st.Apply(&f)
		f.Kind, f.Reason = Closed, ReasonNormal
		st.Apply(&f)
	}
}

// BenchmarkStatus answers for a client with one live connection.
func BenchmarkStatus(b *testing.B) {
	b.ReportAllocs()
	st := typical()
	c := Cluster{Nodes: map[string]*Node{"emqx@10.0.3.11": {StartedMS: 1}}}
	for range b.N {
		if v := Status(&st, &c, DefaultAllowanceMS); v.Status != Online {
			b.Fatal(v)
		}
	}
}

func typical() State {
	var st State
	at := int64(1_760_000_000_123)
	st.Apply(&Fact{Kind: Opened, Dialect: DialectEMQX, Node: "emqx@10.0.3.11", Connection: strconv.FormatInt(at, 10), ConnectedAtMS: at, TimeMS: at + 1,
		ReceivedMS: at + 20, Username: "user-0000001", Peer: "203.0.113.7", ProtocolVersion: 5, KeepAliveS: Some(uint32(60)), CleanStart: Some(true), SessionExpiryS: Some(uint32(0))})
	return st
}

// BenchmarkCodec writes and reads the state of a client with one live connection, and reports its size.
func BenchmarkCodec(b *testing.B) {
	b.ReportAllocs()
	st := typical()
	var buf []byte
	for range b.N {
		buf = st.Append(buf[:0])
		if _, err := DecodeState(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(buf)), "state-bytes")
}
