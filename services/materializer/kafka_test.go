package materializer

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// A new leader does not know the end of its partition at once.
func TestOffsetsOfANewLeader(t *testing.T) {
	const topic, offset = "t", 7
	for _, tc := range []struct {
		name  string
		err   error
		times int
		want  error
	}{
		{"known", nil, 0, nil},
		{"known a little later", kerr.OffsetNotAvailable, 5, nil},
		{"no leader for a while", kerr.LeaderNotAvailable, 5, nil},
		{"never known", kerr.OffsetNotAvailable, 1 << 30, kerr.OffsetNotAvailable},
		{"refused", kerr.TopicAuthorizationFailed, 1, kerr.TopicAuthorizationFailed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				asked := 0
				got, err := offsetOf(t.Context(), func(context.Context, ...string) (kadm.ListedOffsets, error) {
					o := kadm.ListedOffset{Topic: topic, Partition: 1, Offset: offset}
					if asked++; asked <= tc.times {
						o.Err = tc.err
					}
					return kadm.ListedOffsets{topic: {1: o}}, nil
				}, topic, 1)
				if !errors.Is(err, tc.want) || err == nil && got != offset {
					t.Errorf("%d, %v; want error %v", got, err, tc.want)
				}
			})
		})
	}
}
