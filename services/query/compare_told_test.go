package query

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A caller reads the words of an error, once, however often it was wrapped, and no machine's address.
func TestToldOfAComparison(t *testing.T) {
	const hidden = "the states could not be read; the logs of this service and of the materializers say why"
	for want, err := range map[string]error{
		"partition 3 is restored":                   fmt.Errorf("compare partition 3: %w", status.Error(codes.NotFound, "partition 3 is restored")),
		"partition 4 is restored":                   status.Error(codes.NotFound, "partition 4 is restored"),
		"an owner of the partition does not answer": fmt.Errorf("compare partition 3: %w", status.Error(codes.Unavailable, "dial tcp 10.0.0.1:8083")),
		"there was not enough time":                 fmt.Errorf("compare partition 3: %w", status.Error(codes.DeadlineExceeded, "late")),
		hidden:                                      errors.New("disk"),
	} {
		if got := told(err); got != want {
			t.Errorf("%v: told %q, want %q", err, got, want)
		}
	}
}
