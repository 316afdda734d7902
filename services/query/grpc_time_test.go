package query

import (
	"testing"
	"time"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// A call ends after as long as it may last, over gRPC as over REST, and a stream after as long as it likes.
func TestUnaryCallsEnd(t *testing.T) {
	desc := &presencev1.PresenceService_ServiceDesc
	unary := unaryTimes(desc, newCalls(), time.Minute)
	for method, want := range map[string]time.Duration{
		"GetClient": time.Minute, "CheckIndexes": time.Minute + checkTimeout, "CompareReplicas": time.Minute + compareTimeout, callWatch: 0,
	} {
		got, bounded := unary["/"+desc.ServiceName+"/"+method]
		if bounded != (want > 0) || got != want {
			t.Errorf("%s may last %v, want %v", method, got, want)
		}
	}
}
