package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// stopWithin is how long an ordinary stop may take.
const stopWithin = 3 * time.Second

// TestEmbedded runs the scenarios on the all-in-one process, and those that need its own broker.
func TestEmbedded(t *testing.T) {
	t.Parallel()
	a := newAllInOne(t)
	a.start(t)
	tgt := a.target(t).open(t)
	runScenarios(t, tgt)
	t.Run("keep alive", func(t *testing.T) { scenarioKeepAlive(t, tgt) })
	t.Run("refused connect", func(t *testing.T) { scenarioRefusedConnect(t, tgt) })
	t.Run("broker IDs", func(t *testing.T) { scenarioBrokerIDs(t, tgt) })
	t.Run("stranger H4", func(t *testing.T) { scenarioStranger(t, tgt) })
	t.Run("never seen is offline", func(t *testing.T) {
		c, err := tgt.asker.ask(t.Context(), "embedded-never-seen")
		if !errors.Is(err, errNeverSeen) || c.GetStatus() != "offline" {
			t.Errorf("the feed is complete, and a client never seen is %s: %v", c.GetStatus(), err)
		}
	})
	t.Run("stop", func(t *testing.T) {
		connect(t, tgt, "embedded-stop")
		tgt.expectOnline(t, "embedded-stop")
		began := time.Now()
		if err := a.end(t, syscall.SIGTERM); err != nil {
			t.Errorf("presence ended with %v", err)
		}
		if took := time.Since(began); took > stopWithin {
			t.Errorf("the stop took %v, want at most %v", took, stopWithin)
		}
		a.start(t)
		tgt := a.target(t).open(t)
		if got := tgt.expectOffline(t, "embedded-stop").GetConnection().GetCloseReason(); got != "server_shutdown" {
			t.Errorf("close_reason is %q, want server_shutdown", got)
		}
	})
	if log := a.log.String(); log != "" {
		t.Errorf("presence warned:\n%s", log)
	}
}

// scenarioKeepAlive lets a client fall silent.
func scenarioKeepAlive(t *testing.T, tgt Target) {
	const id = "embedded-keep-alive"
	conn := rawConnect(t, tgt.MQTT, id, 1)
	tgt.expectOnline(t, id)
	// The broker ends the connection after 1.5 s, and not before.
	began := time.Now()
	must(t, conn.SetReadDeadline(began.Add(callTimeout)))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Fatalf("the broker does not end the silent connection: %v", err)
	}
	if got := tgt.expectOffline(t, id).GetConnection().GetCloseReason(); got != "keep_alive_timeout" {
		t.Errorf("close_reason is %q, want keep_alive_timeout", got)
	}
	tgt.expectFacts(t, id, 1, presence.ReasonKeepAliveTimeout)
}

// scenarioRefusedConnect is refused for an ID that is too long for the events' topic.
func scenarioRefusedConnect(t *testing.T, tgt Target) {
	id := strings.Repeat("y", 65_535)
	if c, err := dialMQTT(t.Context(), tgt.MQTT, id); err == nil {
		_ = c.kill()
		t.Error("a client whose events no topic can carry was accepted")
	}
	const other = "embedded-after-refusal"
	connect(t, tgt, other)
	tgt.expectOnline(t, other)
	if c, err := tgt.asker.ask(t.Context(), id); !errors.Is(err, errNeverSeen) {
		t.Errorf("the refused client was seen: %v, %v", c, err)
	}
}

// scenarioBrokerIDs brings in IDs that only this broker takes.
func scenarioBrokerIDs(t *testing.T, tgt Target) {
	for _, id := range []string{"+", "#", "a/+/b", "a+b", "a%2Bb", "$SYS", "/", "//", " ", "a\ufffdb", strings.Repeat("z", 65_000)} {
		c := connect(t, tgt, id)
		tgt.expectOnline(t, id)
		must(t, c.disconnect())
		tgt.expectOffline(t, id)
	}
	if n := len(tgt.history.DeadLetters()); n != 0 {
		t.Errorf("%d messages became dead letters: %+v", n, tgt.history.DeadLetters())
	}
}

// rawConnect connects an MQTT 3.1.1 client with a keep alive in seconds.
func rawConnect(t *testing.T, addr, id string, keepAlive uint16) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, callTimeout)
	must(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	packet := append([]byte{0x10, byte(12 + len(id)), 0, 4}, "MQTT\x04\x02"...)
	packet = binary.BigEndian.AppendUint16(packet, keepAlive)
	packet = append(binary.BigEndian.AppendUint16(packet, uint16(len(id))), id...)
	_, err = conn.Write(packet)
	must(t, err)
	ack := make([]byte, 4)
	must(t, conn.SetReadDeadline(time.Now().Add(callTimeout)))
	_, err = io.ReadFull(conn, ack)
	must(t, err)
	if ack[0] != 0x20 || ack[3] != 0 {
		t.Fatalf("the broker answers CONNECT with %x", ack)
	}
	return conn
}

// TestEmbeddedKilled kills the process with -9 again and again: account and history stay, clients that died with the broker are offline at
// once, and those that come back are online.
func TestEmbeddedKilled(t *testing.T) {
	t.Parallel()
	a := newAllInOne(t)
	a.start(t)
	first := a.target(t)
	const stays, comes, left = "killed-stays-away", "killed-comes-back", "killed-left-before"
	tgt := first.open(t)
	connect(t, tgt, left)
	tgt.expectOnline(t, left)
	c := connect(t, tgt, left)
	must(t, c.disconnect())
	tgt.expectOffline(t, left)
	for round := range 3 {
		for _, id := range []string{stays, comes} {
			connect(t, tgt, id)
			tgt.expectOnline(t, id)
		}
		if err := a.end(t, syscall.SIGKILL); err == nil {
			t.Fatal("presence was not killed")
		}
		a.start(t)
		second := a.target(t)
		if second.User != first.User || second.Password != first.Password {
			t.Fatalf("the account was %s/%s and is %s/%s", first.User, first.Password, second.User, second.Password)
		}
		tgt = second.open(t)
		// No waiting: whoever is told that all is ready gets the right answer.
		answer, err := tgt.asker.ask(t.Context(), stays)
		if err != nil || answer.GetStatus() != "offline" || answer.GetStatusReason() != presence.NodeRestarted.String() {
			t.Fatalf("round %d: right after the start the client is %s (%s): %v", round, answer.GetStatus(), answer.GetStatusReason(), err)
		}
		tgt.expect(t, stays, "offline", presence.NodeRestarted.String())
		tgt.expect(t, comes, "offline", presence.NodeRestarted.String())
		tgt.expectOffline(t, left)
		tgt.expectFacts(t, stays, round+1)
	}
}

// TestEmbeddedNeverFalselyOnline_H10 asks all the while that a killed process starts again.
func TestEmbeddedNeverFalselyOnline_H10(t *testing.T) {
	t.Parallel()
	a := newAllInOne(t)
	a.start(t)
	tgt := a.target(t).open(t)
	const id = "killed-asked"
	connect(t, tgt, id)
	tgt.expectOnline(t, id)
	if err := a.end(t, syscall.SIGKILL); err == nil {
		t.Fatal("presence was not killed")
	}
	stop, stopped := make(chan struct{}), make(chan error)
	go func() {
		for {
			if s, err := tgt.asker.seed(t.Context(), id); err == nil && s.online {
				stopped <- errors.New("the client that died with the broker was online")
				return
			}
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
		}
	}()
	a.start(t)
	close(stop)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

// TestEmbeddedKilledInStorm_H10_H11 kills presence three times while clients connect as fast as they can: transactions are open in the embedded
// Kafka then. It must come back each time, and nobody who died with it may be online.
func TestEmbeddedKilledInStorm_H10_H11(t *testing.T) {
	t.Parallel()
	const connections, connecting = 400, 4
	a := newAllInOne(t)
	a.start(t)
	for round := range 3 {
		tgt := a.target(t).open(t)
		var wg sync.WaitGroup
		for w := range connecting {
			wg.Go(func() {
				for i := range connections / connecting {
					c, err := dialMQTT(t.Context(), tgt.MQTT, fmt.Sprintf("storm-%d-%d-%d", round, w, i))
					if err != nil {
						t.Errorf("connect: %v", err)
						return
					}
					t.Cleanup(func() { _ = c.conn.Close() })
				}
			})
		}
		wg.Wait()
		if err := a.end(t, syscall.SIGKILL); err == nil {
			t.Fatal("presence was not killed")
		}
		a.start(t)
		for w := range connecting {
			id := fmt.Sprintf("storm-%d-%d-0", round, w)
			servicetest.Eventually(t, patience, func() error {
				s, err := a.target(t).open(t).asker.seed(t.Context(), id)
				if err == nil && s.online {
					t.Fatalf("%s died with the broker and is online", id)
				}
				return err
			})
		}
	}
}

// TestEmbeddedFirstStart follows what a first start prints, as a stranger would.
func TestEmbeddedFirstStart(t *testing.T) {
	t.Parallel()
	a := newAllInOne(t)
	a.start(t)
	for _, file := range []string{"dev-password", "accounts"} {
		info, err := os.Stat(filepath.Join(a.dir, file))
		must(t, err)
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", file, info.Mode().Perm())
		}
	}
	if got := a.paste(t, "curl"); got != `{"online":false}` {
		t.Errorf("the printed curl line answers %s", got)
	}
	conn := rawConnect(t, a.flag("mqtt-addr"), "dev1", 60)
	servicetest.Eventually(t, time.Second, func() error {
		if got := a.paste(t, "curl"); got != `{"online":true}` {
			return fmt.Errorf("with dev1 connected the printed curl line answers %s", got)
		}
		return nil
	})
	must(t, conn.Close())
	servicetest.Eventually(t, time.Second, func() error {
		if got := a.paste(t, "curl"); got != `{"online":false}` {
			return fmt.Errorf("with dev1 gone the printed curl line answers %s", got)
		}
		return nil
	})

	// A second process is kept out of the folder.
	b := newAllInOne(t, "--data-dir", a.dir)
	out, err := exec.Command(b.binary, b.flags...).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "--data-dir") {
		t.Errorf("a second process on the same folder ended with %v: %s", err, out)
	}
}

// TestEmbeddedBusyPorts wants an error that names the flag.
func TestEmbeddedBusyPorts(t *testing.T) {
	t.Parallel()
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer func() { must(t, busy.Close()) }()
	for _, name := range []string{"mqtt-addr", "mqtt-ws-addr", "kafka-addr", "http-addr", "grpc-addr", "admin-addr", "state-addr"} {
		a := newAllInOne(t, "--"+name, busy.Addr().String())
		out, err := exec.Command(a.binary, a.flags...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "--"+name) {
			t.Errorf("with a busy %s presence ended with %v: %s", name, err, out)
		}
	}
}
