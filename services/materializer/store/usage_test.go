package store

import (
	"errors"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestDiskUsage writes rows and evidence, and sees that each counts as what it is, and that what was deleted takes no space any more.
func TestDiskUsage(t *testing.T) {
	s := open(t, vfs.NewMem())
	_, r := liveRow()
	const n = 5_000
	clients := make([][]byte, n)
	b := rowBatch(t, s, 3)
	for i := range clients {
		clients[i] = fmt.Appendf(nil, "default/VIN%019d", i*7919)
		b.PutRow(clients[i], Indexed{}, &r, r.State.Append(nil))
	}
	if err := errors.Join(b.Commit(), s.Compact(t.Context())); err != nil {
		t.Fatal(err)
	}
	before, err := s.DiskUsage()
	if err != nil || before.Clients < n*10 || before.Clients > n*300 || before.Evidence > before.Clients/10 {
		t.Fatalf("%+v, error %v", before, err)
	}
	if before.Total() < before.Clients {
		t.Errorf("the total is %d", before.Total())
	}
	b = rowBatch(t, s, 3)
	for _, client := range clients {
		b.DeleteRow(client, Indexed{})
	}
	if err := errors.Join(b.Commit(), s.Compact(t.Context())); err != nil {
		t.Fatal(err)
	}
	after, err := s.DiskUsage()
	if err != nil || after.Clients > before.Clients/10 {
		t.Errorf("%+v, error %v", after, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.DiskUsage(); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v", err)
	}
	if err := s.Compact(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("error %v", err)
	}
}
