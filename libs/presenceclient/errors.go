package presenceclient

import (
	"fmt"
	"time"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// reasonMinOffset is the service's ErrorInfo reason of a read that did not see its own event in time.
const reasonMinOffset = "MIN_OFFSET_NOT_REACHED"

// maxClientID is the longest MQTT client ID, in bytes.
const maxClientID = 65_535

// IsNeverSeen reports whether the error says that the client was never seen, or was forgotten.
func IsNeverSeen(err error) bool { return status.Code(err) == codes.NotFound }

// IsUnavailable reports whether the service, or the owner of the client's state, could not be reached: asking later helps.
func IsUnavailable(err error) bool { return status.Code(err) == codes.Unavailable }

// IsRateLimited reports whether the account or the address has made too many calls, or has too many watches; [RetryAfter] tells when to ask again.
func IsRateLimited(err error) bool { return status.Code(err) == codes.ResourceExhausted }

// IsDenied reports whether the credentials are wrong or lack the permission.
func IsDenied(err error) bool {
	code := status.Code(err)
	return code == codes.Unauthenticated || code == codes.PermissionDenied
}

// IsNotApplied reports whether the event of a read-your-event lookup was not applied in time: asking again helps.
func IsNotApplied(err error) bool {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetReason() == reasonMinOffset {
			return true
		}
	}
	return false
}

// IsTooOld reports whether a watch cannot go on from its token, since the log no longer has all that came after it: take a snapshot.
func IsTooOld(err error) bool { return status.Code(err) == codes.OutOfRange }

// RetryAfter returns how long the service asks to wait before the call is made again; false if it does not say.
func RetryAfter(err error) (time.Duration, bool) {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok && info.GetRetryDelay().IsValid() {
			return max(info.GetRetryDelay().AsDuration(), 0), true
		}
	}
	return 0, false
}

// WrongField returns the field of the request that the service, or this package, takes for wrong; empty if the error is another.
func WrongField(err error) string {
	for _, d := range status.Convert(err).Details() {
		if bad, ok := d.(*errdetails.BadRequest); ok && len(bad.GetFieldViolations()) > 0 {
			return bad.GetFieldViolations()[0].GetField()
		}
	}
	return ""
}

// checkID refuses what the service would: a batch must not fail because of one client ID in it, and gRPC does not even send text that is
// not UTF-8.
func checkID(field, id string) error {
	switch {
	case id == "":
		return invalid(field, "is empty: an MQTT client ID has at least one byte")
	case len(id) > maxClientID:
		return invalid(field, fmt.Sprintf("has %d bytes: an MQTT client ID has at most %d", len(id), maxClientID))
	case !utf8.ValidString(id):
		return invalid(field, "is not valid UTF-8")
	}
	return nil
}

func invalid(field, what string) error {
	s := status.New(codes.InvalidArgument, field+" "+what)
	detailed, err := s.WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: what}}})
	if err != nil {
		return s.Err()
	}
	return detailed.Err()
}

// failed wraps the error of a call; its status stays.
func failed(doing string, err error) error { return fmt.Errorf("%s: %w", doing, err) }
