package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// diskBytes is the size of the volume that is filled up: what a start takes, and some thousands of facts.
const diskBytes = 48 << 20

// smallVolume returns an empty volume of diskBytes, without which there is nothing to test.
func smallVolume(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: nothing was tested with a full disk, since only root can mount a small volume")
	}
	volume := t.TempDir()
	if err := syscall.Mount("tmpfs", volume, "tmpfs", 0, fmt.Sprintf("size=%d", diskBytes)); err != nil {
		t.Skipf("SKIPPED: nothing was tested with a full disk: mount a small volume: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(volume, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return volume
}

// TestFullDisk fills the volume of the data folder. Presence may go on for as long as it keeps its promises; then it stops, and says what is
// missing. With room again it comes back with everything that it had promised, and nobody who is gone is online.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	volume := smallVolume(t)
	a := newAllInOne(t)
	a.dir = filepath.Join(volume, "data")
	a.flags[1] = a.dir
	a.start(t)
	tgt := a.target(t).open(t)
	for i := range 3 {
		c := connect(t, tgt, fmt.Sprintf("before-%d", i))
		tgt.expectOnline(t, c.id)
	}

	ballast := filepath.Join(volume, "ballast")
	fill(t, ballast)
	for i := 0; a.running(); i++ {
		c, err := dialMQTT(t.Context(), tgt.MQTT, fmt.Sprintf("during-%04d", i))
		if err == nil {
			_ = c.disconnect()
		}
		if i == 20_000 {
			t.Fatal("presence takes facts without end, with no room to keep them")
		}
	}
	if said := a.log.String(); !strings.Contains(said, "no space left on device") || !strings.Contains(said, a.dir) {
		t.Errorf("presence ends without saying that there is no room, and where:\n%s", said)
	}

	must(t, os.Remove(ballast))
	a.start(t)
	tgt = a.target(t).open(t)
	after := connect(t, tgt, "after")
	tgt.expectOnline(t, after.id)
	for i := range 3 {
		tgt.expect(t, fmt.Sprintf("before-%d", i), "offline", presence.NodeRestarted.String())
	}
	var online presencev1.ListClientsResponse
	if code, err := tgt.asker.rest(t.Context(), http.MethodGet, "/v1/clients?status=online", nil, &online); err != nil || code != http.StatusOK {
		t.Fatalf("list the clients that are online: %d, %v", code, err)
	}
	if len(online.GetClients()) != 1 || online.GetClients()[0].GetClientId() != after.id {
		t.Errorf("online are %v, connected is %s alone", online.GetClients(), after.id)
	}
}

// running reports whether the process is there.
func (a *allInOne) running() bool {
	select {
	case <-a.exited:
		a.cmd = nil
		return false
	default:
		return true
	}
}

// fill writes a file until its volume is full.
func fill(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	must(t, err)
	zeros := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(zeros)
	}
	must(t, f.Close())
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the volume: %v", err)
	}
}
