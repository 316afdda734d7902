package presenceclient

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// reads are the calls that change nothing and may be made again. CheckIndexes is not one of them: it reads everything.
var reads = [...]string{
	"GetStatus", "GetClient", "BatchGetClients", "ExplainClient", "ListClients", "ListSessions", "GetStats", "ListNodes",
}

// serviceConfig returns gRPC's JSON: what is tried again, when, and when no longer. A call takes one token when it fails
// and gives a tenth of one back when it succeeds; below half of them nothing is tried again.
func serviceConfig(attempts int) string {
	if attempts < 2 {
		return `{}`
	}
	names := make([]string, len(reads))
	for i, call := range reads {
		names[i] = fmt.Sprintf(`{"service":%q,"method":%q}`, presencev1.PresenceService_ServiceDesc.ServiceName, call)
	}
	return fmt.Sprintf(`{"methodConfig":[{"name":[%s],"waitForReady":false,"retryPolicy":{"maxAttempts":%d,"initialBackoff":"0.1s",`+
		`"maxBackoff":"2s","backoffMultiplier":3,"retryableStatusCodes":["UNAVAILABLE"]}}],"retryThrottling":{"maxTokens":100,"tokenRatio":0.1}}`,
		strings.Join(names, ","), attempts)
}

// bounded gives calls a deadline that have none.
func bounded(timeout time.Duration) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, timeout)
			defer cancel()
		}
		return next(ctx, method, req, reply, cc, opts...)
	}
}

// patient makes a call again that was over a limit, after the time that the service asks for. gRPC's own retries cannot: they know only a
// trailer, and wait for it even past the deadline. What is over a limit was not begun, so that no call is excepted.
func patient(attempts int) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, next grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		for attempt := 1; ; attempt++ {
			err := next(ctx, method, req, reply, cc, opts...)
			if status.Code(err) != codes.ResourceExhausted || attempt >= attempts {
				return err
			}
			delay, ok := RetryAfter(err)
			if !ok {
				return err
			}
			// Callers that were refused together do not come back together.
			delay += time.Duration(rand.Int64N(int64(delay)/10 + 1))
			if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= delay {
				return err
			}
			if waits, ok := ctx.Value(onLimit{}).(func()); ok {
				waits()
			}
			if !pause(ctx, delay) {
				return status.FromContextError(ctx.Err()).Err()
			}
		}
	}
}

// onLimit is the key of a function in a call's context that is called when the call begins to wait for a limit.
type onLimit struct{}

// pause waits, and reports false if ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
