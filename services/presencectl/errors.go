package presencectl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// describe returns an error as the user sees it: a gRPC error by its message, with its code behind.
func describe(err error) string {
	if errors.Is(err, context.Canceled) {
		return "interrupted"
	}
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) {
		return err.Error()
	}
	s := carrier.GRPCStatus()
	if s.Code() == codes.Canceled {
		return "interrupted"
	}
	if before, ok := strings.CutSuffix(err.Error(), s.String()); ok || strings.Contains(err.Error(), "rpc error:") {
		before, _, _ = strings.Cut(before, "rpc error:")
		return before + fmt.Sprintf("%s (%s)", s.Message(), word(s.Code()))
	}
	return err.Error()
}

// word is a code as gRPC's own documents write it: NOT_FOUND.
func word(c codes.Code) string {
	var b strings.Builder
	for i, r := range c.String() {
		if i > 0 && r >= 'A' && r <= 'Z' && c != codes.OK {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// hints says what can be done about an error of the service.
func (a *app) hints(err error) []string {
	var carrier interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &carrier) {
		return nil
	}
	var own *materializerError
	if errors.As(err, &own) {
		if hint := own.hint(); hint != "" {
			return []string{hint}
		}
		return nil
	}
	var list []string
	switch s := carrier.GRPCStatus(); s.Code() {
	case codes.Unauthenticated:
		list = append(list, "Say who asks: --user and --password-file, or --token-file; '"+name+" config set-context' keeps them.")
		if a.settings.loopback() {
			list = append(list, "'presence' on this machine keeps the password of its account dev in DATA-DIR/dev-password, and prints it at its start:",
				"  "+name+" config set-context local --user dev --password-file DATA-DIR/dev-password")
		}
	case codes.PermissionDenied:
		list = append(list, "The account lacks the permission: 'connect' for status, 'read' for other questions, 'admin' for delete, check-indexes and compare-replicas.")
	case codes.Unavailable, codes.ResourceExhausted:
		if after := retryAfter(err); after > 0 {
			list = append(list, fmt.Sprintf("Try again in %s.", span(after)))
		} else if s.Code() == codes.Unavailable {
			list = append(list, fmt.Sprintf("Does a query service listen for gRPC at %s, with TLS as said? --server and --tls name another.", a.settings.Server))
		}
	case codes.OutOfRange:
		list = append(list, "Begin anew with all clients as they are now: "+name+" watch --snapshot")
	case codes.DeadlineExceeded:
		list = append(list, fmt.Sprintf("No answer within %v; --timeout gives it longer.", a.settings.Timeout))
	case codes.Unimplemented:
		list = append(list, "The service does not know this call: is it older than this "+name+"?")
	default:
	}
	return list
}

// retryAfter returns the delay that the service asks for, 0 if none.
func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.RetryInfo); ok {
			return info.GetRetryDelay().AsDuration()
		}
	}
	return 0
}
