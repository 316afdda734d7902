package query

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	errorDomain = "presence"
	// reasonMinOffset is the ErrorInfo reason of a read that did not see its own event in time.
	reasonMinOffset = "MIN_OFFSET_NOT_REACHED"
	// reasonIndexes is that of a list that needs indexes which its owner is building.
	reasonIndexes = "INDEXES_BUILDING"
	// retryDelay is how long a caller should wait where nothing tells better.
	retryDelay = time.Second
)

// withDetails returns an error of gRPC's status with error details, which both transports show.
func withDetails(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	s := status.New(code, message)
	if detailed, err := s.WithDetails(details...); err == nil {
		s = detailed
	}
	return s.Err()
}

// invalid says what is wrong with a field of the request; the message names the field too.
func invalid(field, message string) error {
	return withDetails(codes.InvalidArgument, message, &errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: message}},
	})
}

func retryLater(code codes.Code, message string, after time.Duration) error {
	return withDetails(code, message, &errdetails.RetryInfo{RetryDelay: durationpb.New(after)})
}

func unavailable(message string) error { return retryLater(codes.Unavailable, message, retryDelay) }

func minOffsetNotReached(offset int64) error {
	return withDetails(codes.FailedPrecondition,
		fmt.Sprintf("min_offset: the record at offset %d was not applied in time; ask again", offset),
		&errdetails.ErrorInfo{Reason: reasonMinOffset, Domain: errorDomain},
		&errdetails.RetryInfo{RetryDelay: durationpb.New(retryDelay)})
}

// isMinOffset reports whether err is the materializer's, or our own, "not applied yet".
func isMinOffset(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == reasonMinOffset {
			return true
		}
	}
	return false
}

// isIndexes reports whether err says that indexes are being built: the owner is well, and to wait for it is no use.
func isIndexes(err error) bool {
	info := errorInfo(err)
	return info != nil && info.GetReason() == reasonIndexes
}

// retryAfter returns the delay that the error asks for, 0 if none.
func retryAfter(s *status.Status) time.Duration {
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

// readError maps what a StateReader returned to what a caller may see: internals do not leak outwards.
func readError(ctx context.Context, err error, minOffset *int64, timeout time.Duration) error {
	code := status.Code(err)
	if errors.Is(err, context.DeadlineExceeded) {
		code = codes.DeadlineExceeded
	}
	if errors.Is(err, context.Canceled) {
		code = codes.Canceled
	}
	switch code {
	case codes.FailedPrecondition, codes.DeadlineExceeded:
		if minOffset != nil && (code == codes.DeadlineExceeded || isMinOffset(err)) {
			return minOffsetNotReached(*minOffset)
		}
		if code == codes.DeadlineExceeded {
			return unavailable(fmt.Sprintf("no owner of the client's state answered within %v; ask again", timeout))
		}
	case codes.Unavailable:
		s := status.Convert(err)
		if retryAfter(s) > 0 {
			return err
		}
		return unavailable(s.Message())
	case codes.Canceled:
		if ctx.Err() != nil {
			return status.Error(codes.Canceled, "the caller has gone")
		}
		return unavailable("the owner of the client's state is stopping; ask again")
	}
	return &internalError{err}
}

// internalError hides its cause from callers; the log shows it.
type internalError struct{ cause error }

func (e *internalError) Error() string { return "read the client's state: " + e.cause.Error() }

func (e *internalError) Unwrap() error { return e.cause }

// GRPCStatus is what callers see in place of the cause.
func (e *internalError) GRPCStatus() *status.Status {
	return status.New(codes.Internal, "the state of the client could not be read; the service's log says why")
}

// httpStatus is the one place where an error's code becomes an HTTP status.
func httpStatus(s *status.Status) int {
	switch s.Code() {
	case codes.OK:
		return http.StatusOK
	case codes.InvalidArgument:
		return http.StatusBadRequest
	case codes.OutOfRange:
		return http.StatusGone
	case codes.Unauthenticated:
		return http.StatusUnauthorized
	case codes.PermissionDenied:
		return http.StatusForbidden
	case codes.NotFound:
		return http.StatusNotFound
	case codes.AlreadyExists, codes.Aborted:
		return http.StatusConflict
	case codes.ResourceExhausted:
		return http.StatusTooManyRequests
	case codes.Unimplemented:
		return http.StatusNotImplemented
	case codes.FailedPrecondition:
		// A min_offset that was not applied in time: asking again helps. Replicas that do not exist: it does not.
		if retryAfter(s) == 0 {
			return http.StatusBadRequest
		}
		return http.StatusServiceUnavailable
	case codes.Unavailable, codes.Canceled:
		return http.StatusServiceUnavailable
	case codes.DeadlineExceeded:
		return http.StatusGatewayTimeout
	case codes.Unknown, codes.Internal, codes.DataLoss:
	}
	return http.StatusInternalServerError
}

// wholeSeconds is d for a Retry-After header: whole seconds, at least 1.
func wholeSeconds(d time.Duration) int {
	return max(1, int(math.Ceil(d.Seconds())))
}
