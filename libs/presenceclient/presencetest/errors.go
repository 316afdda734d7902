package presencetest

import (
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Unavailable returns the error of a service that has no owner for a client's state right now.
func Unavailable() error {
	return status.Error(codes.Unavailable, "nobody owns the partition of this client right now; ask again")
}

// RateLimited returns the error of a service that refuses a call, and asks to wait before the next.
func RateLimited(retryAfter time.Duration) error {
	return detailed(status.New(codes.ResourceExhausted, "the account makes too many requests"),
		&errdetails.RetryInfo{RetryDelay: durationpb.New(retryAfter)})
}

// Denied returns the error of a service whose account lacks a permission.
func Denied() error {
	return status.Error(codes.PermissionDenied, "the account lacks the permission")
}

// notApplied is the error of a min_offset that has not come yet.
func notApplied(offset int64) error {
	return detailed(status.New(codes.FailedPrecondition, fmt.Sprintf("min_offset: the record at offset %d was not applied in time; ask again", offset)),
		&errdetails.ErrorInfo{Reason: "MIN_OFFSET_NOT_REACHED", Domain: "presence"}, &errdetails.RetryInfo{RetryDelay: durationpb.New(time.Second)})
}

// detailed returns the status with details, or without them if they cannot be encoded.
func detailed(s *status.Status, details ...protoadapt.MessageV1) error {
	if with, err := s.WithDetails(details...); err == nil {
		s = with
	}
	return s.Err()
}
