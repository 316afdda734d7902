package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// TestBridgesFullDisk fills the volume of the spool while Kafka is down. The bridge stops and says what is missing; with room again it comes back with
// all that it had taken from the broker, which has queued the rest.
func TestBridgesFullDisk(t *testing.T) {
	t.Parallel()
	volume := smallVolume(t)
	broker := startMosquitto(t, stampForms[0])
	k, cfg := startStoppableKafka(t)
	dir := filepath.Join(volume, "data")
	b := newBridgeProcess(t, "b1", broker.tcp, cfg, "--data-dir", dir)
	b.start(t)
	b.ready(t)
	h := newHistory(t, cfg)
	Target{MQTT: broker.tcp, Unkeyed: true, history: h}.warmUp(t)
	c := newVisitors(t)
	k.stop(t)
	c.come(t, broker.tcp, "before", 200)
	ballast := filepath.Join(volume, "ballast")
	fill(t, ballast)
	c.come(t, broker.tcp, "during", 500)
	select {
	case <-b.exited:
	case <-time.After(bridgesPatience):
		t.Fatal("the bridge goes on with no room to keep what it takes")
	}
	if said := b.log.String(); !strings.Contains(said, "no space left on device") || !strings.Contains(said, dir) {
		t.Errorf("the bridge ends without saying that there is no room, and where:\n%s", said)
	}
	must(t, os.Remove(ballast))
	b.kill()
	b.start(t)
	k.start(t)
	b.ready(t)
	b.drained(t)
	servicetest.Eventually(t, bridgesPatience, func() error {
		if err := h.read(t.Context()); err != nil {
			return err
		}
		for id := range c.online {
			if len(h.Client(id).FactsOf(presence.Opened)) == 0 {
				return fmt.Errorf("the connection of client %q is lost", id)
			}
		}
		return nil
	})
	l := c.checkLog(t, h, 1)
	l.whole(t)
}
