package query

import (
	"testing"
	"time"

	"google.golang.org/grpc/tap"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// A call ends after as long as it may last, over gRPC as over REST, and a stream after as long as it likes.
func TestUnaryCallsEnd(t *testing.T) {
	desc := &presencev1.PresenceService_ServiceDesc
	handle := endUnary(desc, newCalls(), time.Minute)
	for method, want := range map[string]time.Duration{
		"GetClient": time.Minute, "CheckIndexes": time.Minute + checkTimeout, callWatch: 0,
	} {
		began := time.Now()
		ctx, err := handle(t.Context(), &tap.Info{FullMethodName: "/" + desc.ServiceName + "/" + method})
		if err != nil {
			t.Fatal(err)
		}
		deadline, bounded := ctx.Deadline()
		if bounded != (want > 0) || bounded && (deadline.Before(began.Add(want)) || deadline.After(time.Now().Add(want))) {
			t.Errorf("%s ends %v after it began, want %v", method, deadline.Sub(began), want)
		}
	}
}
