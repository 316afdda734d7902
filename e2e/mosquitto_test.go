package e2e

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// account is the only one that these tests' Mosquitto knows. Clients without a user name need none.
const account = "fleet"

// mosquittoConf returns the repository's configuration of Mosquitto with other listeners, a file of passwords, and more lines. The listeners are as
// Mosquitto writes them: a port, and an address if it is not to listen on all.
func mosquittoConf(t *testing.T, tcp, ws, dataDir, passwordFile string, more ...string) string {
	t.Helper()
	conf, err := os.ReadFile(filepath.Join("images", "compose", "mosquitto.conf"))
	must(t, err)
	for _, r := range []struct{ old, new string }{
		{"listener 1883\n", "listener " + tcp + "\nlistener " + ws + "\nprotocol websockets\n"},
		{"persistence_location /mosquitto/data/\n", "persistence_location " + dataDir + "/\n"},
	} {
		if bytes.Count(conf, []byte(r.old)) != 1 {
			t.Fatalf("mosquitto.conf has no line %q, or more than one", r.old)
		}
		conf = bytes.Replace(conf, []byte(r.old), []byte(r.new), 1)
	}
	more = append([]string{"password_file " + passwordFile, "sys_interval 1"}, more...)
	return string(conf) + strings.Join(more, "\n") + "\n"
}

// mosquittoPasswords returns a password file with the account, as mosquitto_passwd writes it.
func mosquittoPasswords(t *testing.T) string {
	t.Helper()
	const iterations = 101
	salt := []byte("twelve bytes")
	key, err := pbkdf2.Key(sha512.New, "right", salt, iterations, 64)
	must(t, err)
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%s:$7$%d$%s$%s\n", account, iterations, encode(salt), encode(key))
}

// stampForm is a way in which Mosquitto writes the time of a log line.
type stampForm struct {
	name     string
	conf     []string
	tz       string // the broker's TZ. The form with rules needs no zone files
	timezone string // what the bridge is told
}

var stampForms = []stampForm{
	{name: "epoch"},
	{name: "local", conf: []string{"log_timestamp_format %Y-%m-%dT%H:%M:%S"}, tz: "IST-5:30", timezone: "Asia/Kolkata"},
	{name: "iso", conf: []string{"log_timestamp_format %Y-%m-%dT%H:%M:%S%z"}, tz: "IST-5:30"},
	{name: "none", conf: []string{"log_timestamp false"}},
}

// scenarioStampForm runs the scenarios that depend on the stamps of log lines.
func scenarioStampForm(t *testing.T, tgt Target) {
	tgt.warmUp(t)
	t.Run("connect and disconnect", func(t *testing.T) { scenarioDisconnect(t, tgt) })
	t.Run("killed client", func(t *testing.T) { scenarioKilledClient(t, tgt) })
	t.Run("takeover", func(t *testing.T) { scenarioTakeover(t, tgt) })
	if tgt.Unordered {
		t.Run("three short connections", func(t *testing.T) { scenarioShortConnections(t, tgt) })
	} else {
		t.Run("identical lines", func(t *testing.T) { scenarioIdenticalLines(t, tgt) })
	}
	const clockSkewMS = 60_000
	stamped := 0
	for _, id := range tgt.history.Clients() {
		for _, f := range tgt.history.Client(id).Facts {
			stamped++
			if diff := f.ReceivedMS - f.TimeMS; diff < -clockSkewMS || diff > clockSkewMS || !tgt.Unordered && f.TimeMS%1000 != 0 {
				t.Errorf("the stamp %d is not in whole seconds, or not near the time of receipt, %d", f.TimeMS, f.ReceivedMS)
			}
		}
	}
	if stamped == 0 {
		t.Error("the log has no fact")
	}
	if n := len(tgt.history.DeadLetters()); n != 0 {
		t.Errorf("%d messages became dead letters: %+v", n, tgt.history.DeadLetters())
	}
}

// mosquittoStorm compares clients with the broker's own count.
func mosquittoStorm(t *testing.T, tgt Target) {
	scenarioStorm(t, tgt, func(t *testing.T, online map[string]bool) {
		const bridgeAndReader = 2
		want := bridgeAndReader
		for _, is := range online {
			if is {
				want++
			}
		}
		expectConnected(t, tgt.MQTT, want)
	})
}

// expectConnected waits until Mosquitto itself counts that many connections, the one that asks included.
func expectConnected(t *testing.T, addr string, want int) {
	t.Helper()
	readSys(t, addr, "clients/connected", func(count string) error {
		if count != strconv.Itoa(want) {
			return fmt.Errorf("it counts %s connections, want %d", count, want)
		}
		return nil
	})
}

// namesStrangers asks for Mosquitto's version: from 2.0.13 on, the log line of a failed login has the ID that the stranger claims.
func namesStrangers(t *testing.T, addr string) bool {
	t.Helper()
	var major, minor, patch int
	readSys(t, addr, "version", func(version string) error {
		_, err := fmt.Sscanf(version, "mosquitto version %d.%d.%d", &major, &minor, &patch)
		return err
	})
	t.Logf("Mosquitto %d.%d.%d", major, minor, patch)
	return patch >= 13 || minor > 0 || major > 2
}

// readSys reads a topic of Mosquitto's own until the check of its content returns nil.
func readSys(t *testing.T, addr, topic string, check func(content string) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := dialMQTT(ctx, addr, "reader")
	must(t, err)
	defer func() { _ = c.kill() }()
	deadline, _ := ctx.Deadline()
	must(t, c.conn.SetDeadline(deadline))
	subscribe := packets.NewControlPacket(packets.SUBSCRIBE)
	content := subscribe.Content.(*packets.Subscribe)
	content.PacketID, content.Subscriptions = 1, []packets.SubOptions{{Topic: "$SYS/broker/" + topic}}
	_, err = subscribe.WriteTo(c.conn)
	must(t, err)
	wrong := errors.New("it sends nothing")
	for {
		p, err := packets.ReadPacket(c.conn)
		if err != nil {
			t.Fatalf("read %s of Mosquitto: %v, then %v", topic, wrong, err)
		}
		if p.Type != packets.PUBLISH {
			continue
		}
		if wrong = check(string(p.Content.(*packets.Publish).Payload)); wrong == nil {
			return
		}
	}
}

// mosquittoProcess is the Mosquitto of this machine, with a folder and addresses of its own.
type mosquittoProcess struct {
	tcp, ws string // host:port
}

// startMosquitto starts it; it ends with the test, which is skipped where there is none.
func startMosquitto(t *testing.T, form stampForm) *mosquittoProcess {
	t.Helper()
	binary, err := exec.LookPath("mosquitto")
	if err != nil {
		binary, err = exec.LookPath("/usr/sbin/mosquitto")
	}
	if err != nil {
		t.Skip("mosquitto is not installed")
	}
	m := &mosquittoProcess{tcp: freeAddr(t), ws: freeAddr(t)}
	dir := t.TempDir()
	passwords := filepath.Join(dir, "passwords")
	must(t, os.WriteFile(passwords, []byte(mosquittoPasswords(t)), 0o600))
	listener := func(addr string) string {
		host, port, err := net.SplitHostPort(addr)
		must(t, err)
		return port + " " + host
	}
	// Started by root, the broker would give up root, and could not read the test's folder any more.
	conf := mosquittoConf(t, listener(m.tcp), listener(m.ws), dir, passwords, append([]string{"user root"}, form.conf...)...)
	file := filepath.Join(dir, "mosquitto.conf")
	must(t, os.WriteFile(file, []byte(conf), 0o600))
	var log output
	cmd := exec.Command(binary, "-c", file)
	cmd.Env = append(os.Environ(), "TZ="+form.tz)
	cmd.Stdout, cmd.Stderr = &log, &log
	must(t, cmd.Start())
	t.Cleanup(func() {
		// Either may fail only because the process has ended already.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if lines := strings.Split(log.String(), "\n"); t.Failed() {
			t.Logf("the last lines of Mosquitto:\n%s", strings.Join(lines[max(0, len(lines)-mosquittoLines):], "\n"))
		}
	})
	servicetest.Eventually(t, patience, func() error {
		for _, addr := range []string{m.tcp, m.ws} {
			c, err := net.DialTimeout("tcp", addr, time.Second)
			if err != nil {
				return err
			}
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	return m
}

// mosquittoLines is how much of its log a failed test shows.
const mosquittoLines = 40

// startOnMosquitto starts the all-in-one process on the machine's Mosquitto.
func startOnMosquitto(t *testing.T, form stampForm) Target {
	t.Helper()
	m := startMosquitto(t, form)
	a := newAllInOne(t, "--mqtt-url", "mqtt://"+m.tcp, "--mqtt-timezone", form.timezone)
	a.start(t)
	tgt := a.target(t)
	tgt.MQTT, tgt.WebSocket, tgt.Unkeyed, tgt.Unordered = m.tcp, "ws://"+m.ws, true, form.name == "none"
	tgt.NamesStrangers = namesStrangers(t, m.tcp)
	return tgt.open(t)
}

// TestMosquitto runs the scenarios on the Mosquitto of this machine, where there is one, without Docker.
func TestMosquitto(t *testing.T) {
	t.Parallel()
	tgt := startOnMosquitto(t, stampForms[0])
	runScenarios(t, tgt)
	t.Run("late ghost H3", func(t *testing.T) { scenarioLateGhost(t, tgt) })
	t.Run("stranger H4", func(t *testing.T) { scenarioStranger(t, tgt) })
	t.Run("identical lines H8", func(t *testing.T) { scenarioIdenticalLines(t, tgt) })
}

// TestMosquittoStorm has a thousand clients of the machine's Mosquitto take over, leave and come back as fast as they can.
func TestMosquittoStorm(t *testing.T) {
	t.Parallel()
	t.Run("TCP H5 H8", func(t *testing.T) {
		tgt := startOnMosquitto(t, stampForms[0])
		tgt.warmUp(t)
		mosquittoStorm(t, tgt)
	})
	t.Run("WebSocket H3 H8", func(t *testing.T) {
		tgt := startOnMosquitto(t, stampForms[0]).overWebSocket()
		tgt.warmUp(t)
		mosquittoStorm(t, tgt)
	})
}

// TestMosquittoStampForms_H9 reads the log in each form of its stamps, local time without a zone among them.
func TestMosquittoStampForms_H9(t *testing.T) {
	t.Parallel()
	for _, form := range stampForms {
		t.Run(form.name, func(t *testing.T) { scenarioStampForm(t, startOnMosquitto(t, form)) })
	}
}
