package materializer

import (
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// two starts two members that share the partitions, whose sessions outlast the test.
func (l *log) two(leave bool) (ma, mb *instance, a Config) {
	l.t.Helper()
	a, b := l.config(vfs.NewMem()), l.config(vfs.NewMem())
	a.StateAdvertise, b.StateAdvertise = "127.0.0.1:2", "127.0.0.1:3"
	a.sessionTimeout, b.sessionTimeout = 2*patience, 2*patience
	a.LeaveOnStop = leave
	ma, mb = l.start(a).ready(), l.start(b)
	l.own(ma, 2)
	l.own(mb, 2)
	return ma, mb, a
}

// own waits until a member owns n partitions.
func (l *log) own(m *instance, n int) {
	l.t.Helper()
	servicetest.Eventually(l.t, patience, func() error {
		if owned := len(m.owned()); owned != n {
			return fmt.Errorf("%d partitions", owned)
		}
		return m.Ready(l.t.Context())
	})
}

// A restart within the session is no rebalance: the member gets its partitions back, and the other one's are not touched.
func TestRestartKeepsThePartitions(t *testing.T) {
	l := newLog(t)
	ma, mb, a := l.two(false)
	had, others := slices.Sorted(maps.Keys(ma.owned())), mb.owned()
	if err := ma.stop(); err != nil {
		t.Fatal(err)
	}
	ma = l.start(a)
	l.own(ma, 2)
	if got := slices.Sorted(maps.Keys(ma.owned())); !slices.Equal(got, had) {
		t.Errorf("it owned %v, and owns %v", had, got)
	}
	// Partitions that were given up would be others by now.
	if !maps.Equal(mb.owned(), others) {
		t.Error("the other member's partitions were given up")
	}
}

// A member that leaves when it is stopped is not waited for.
func TestLeaveOnStop(t *testing.T) {
	l := newLog(t)
	ma, mb, _ := l.two(true)
	began := time.Now()
	if err := ma.stop(); err != nil {
		t.Fatal(err)
	}
	l.own(mb, 4)
	t.Logf("its partitions have moved after %v", time.Since(began))
}
