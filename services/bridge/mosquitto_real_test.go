package bridge

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
)

// mosquitto runs the real broker, where there is one.
type mosquitto struct {
	t    *testing.T
	bin  string
	conf string
	port string
	cmd  *exec.Cmd
}

func newMosquitto(t *testing.T) *mosquitto {
	t.Helper()
	var bin string
	for _, candidate := range []string{"mosquitto", "/usr/sbin/mosquitto"} {
		if path, err := exec.LookPath(candidate); err == nil {
			bin = path
		}
	}
	for _, tool := range []string{"mosquitto_pub", "mosquitto_sub"} {
		if _, err := exec.LookPath(tool); err != nil {
			bin = ""
		}
	}
	if bin == "" {
		t.Skip("mosquitto and its clients are not installed")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err := errors.Join(err, l.Close()); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	m := &mosquitto{t: t, bin: bin, conf: filepath.Join(dir, "mosquitto.conf"), port: port}
	conf := "listener " + port + " 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location " + dir + "/\nautosave_interval 1\nuser root\n" +
		"log_dest topic\nlog_type notice\nlog_type error\nlog_type information\nconnection_messages true\nmax_queued_messages 0\nsys_interval 1\n"
	if err := os.WriteFile(m.conf, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start()
	t.Cleanup(m.kill)
	return m
}

func (m *mosquitto) start() {
	m.t.Helper()
	m.cmd = exec.Command(m.bin, "-c", m.conf)
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	servicetest.Eventually(m.t, within, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:"+m.port)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

func (m *mosquitto) kill() {
	if m.cmd == nil {
		return
	}
	// Either may fail only because the process has ended already.
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.cmd = nil
}

// pub connects, publishes and disconnects.
func (m *mosquitto) pub(clientID string, args ...string) {
	m.t.Helper()
	args = append([]string{"-h", "127.0.0.1", "-p", m.port, "-i", clientID, "-t", "a", "-m", "b"}, args...)
	if out, err := exec.Command("mosquitto_pub", args...).CombinedOutput(); err != nil {
		m.t.Fatalf("mosquitto_pub: %v: %s", err, out)
	}
}

// sub connects and stays; the returned function kills it.
func (m *mosquitto) sub(clientID string, args ...string) func() {
	m.t.Helper()
	cmd := exec.Command("mosquitto_sub", append([]string{"-h", "127.0.0.1", "-p", m.port, "-i", clientID, "-t", "none"}, args...)...)
	cmd.Stdout, cmd.Stderr = io.Discard, io.Discard
	if err := cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	stopped := false
	stop := func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	m.t.Cleanup(stop)
	return stop
}

// connect connects and stays, without coming back when the connection breaks.
func (m *mosquitto) connect(clientID string) {
	m.t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+m.port)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { c.Close() })
	packet := append([]byte{0x10, byte(12 + len(clientID)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 60, 0, byte(len(clientID))}, clientID...)
	if _, err := c.Write(packet); err != nil {
		m.t.Fatal(err)
	}
	var answer [4]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil || answer != [4]byte{0x20, 2, 0, 0} {
		m.t.Fatalf("CONNACK %x: %v", answer, err)
	}
}

// status folds what the reader has of a client.
func (r *reader) status(clientID string) presence.Verdict {
	var state presence.State
	var cluster presence.Cluster
	for i := range r.nodes {
		cluster.Apply(&r.nodes[i])
	}
	for i := range r.facts {
		if r.facts[i].ClientID == clientID {
			state.Apply(&r.facts[i])
		}
	}
	return presence.Status(&state, &cluster, presence.DefaultAllowanceMS)
}

func (r *reader) wantStatus(clientID string, want presence.Presence, reason presence.StatusReason) {
	r.t.Helper()
	r.until(func() error {
		v := r.status(clientID)
		if v.Status != want || v.Reason != reason {
			return fmt.Errorf("%s is %v (%v), want %v (%v)", clientID, v.Status, v.Reason, want, reason)
		}
		return nil
	})
}

// TestMosquitto reads the log of a real Mosquitto 2.0.
func TestMosquitto(t *testing.T) {
	m, k := newMosquitto(t), newKafka(t)
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{"mqtt://127.0.0.1:" + m.port}
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)

	// A stamp has whole seconds: let the one in which the session began pass, so that lines can be numbered.
	in.until(func() error {
		m.pub("first")
		if len(in.facts) == 0 || in.facts[len(in.facts)-1].Order == 0 {
			return errors.New("no line is numbered")
		}
		return nil
	})
	id := "my dev (p2) as x"
	kill := m.sub(id, "-u", "a b", "-k", "30", "-c")
	in.wantStatus(id, presence.Online, presence.Connected)
	f := in.facts[len(in.facts)-1]
	if f.ClientID != id || f.Username != "a b" || f.Transport != "tcp" || f.ProtocolVersion != 4 || f.KeepAliveS != presence.Some[uint32](30) || f.CleanStart != presence.Some(false) || f.Order == 0 || !strings.HasPrefix(f.Peer, "127.0.0.1:") {
		t.Errorf("fact %+v", f)
	}
	kill()
	in.wantStatus(id, presence.Offline, presence.ConnectionClosed)

	for range 3 {
		m.pub("d1")
	}
	in.wantStatus("d1", presence.Offline, presence.ConnectionClosed)
	in.until(func() error {
		opened, closed := 0, 0
		for _, f := range in.facts {
			if f.ClientID == "d1" && f.Kind == presence.Opened {
				opened++
			}
			if f.ClientID == "d1" && f.Kind == presence.Closed {
				closed++
			}
		}
		if opened != 3 || closed != 3 {
			return fmt.Errorf("%d opened and %d closed of three short connections", opened, closed)
		}
		return nil
	})

	m.connect("taken")
	in.wantStatus("taken", presence.Online, presence.Connected)
	m.connect("taken")
	in.until(func() error {
		n := 0
		for _, f := range in.facts {
			if f.ClientID == "taken" && f.Kind == presence.Closed && f.Reason == presence.ReasonTakenOver {
				n++
			}
		}
		if n == 0 {
			return errors.New("no takeover")
		}
		return nil
	})
	in.wantStatus("taken", presence.Online, presence.Connected)

	in.until(func() error {
		if !slices.ContainsFunc(in.nodes, func(f presence.NodeFact) bool { return f.Kind == presence.NodeStarted }) {
			return errors.New("no heartbeat")
		}
		return nil
	})
	// Within one second, before and after a restart cannot be told apart.
	in.until(func() error {
		m.pub("last")
		last := in.facts[len(in.facts)-1]
		if last.ClientID != "last" || last.TimeMS <= in.status("taken").SinceMS {
			return errors.New("the second has not passed")
		}
		return nil
	})
	m.kill()
	m.start()
	in.wantStatus("taken", presence.Offline, presence.NodeRestarted)
	r.stop(t)
	for i, rec := range in.dead {
		t.Errorf("dead letter %d: %s: %s", i, rec.Headers, rec.Value)
	}
}

// TestMosquittoKeepsTheSession restarts the bridge: Mosquitto keeps the lines for it, so nothing is lost and nothing is asserted as lost.
func TestMosquittoKeepsTheSession(t *testing.T) {
	m, k := newMosquitto(t), newKafka(t)
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{"mqtt://127.0.0.1:" + m.port}
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)
	m.connect("before")
	in.wantStatus("before", presence.Online, presence.Connected)
	before := in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS != 0 && f.Dialect != "" })
	r.stop(t)

	m.connect("between")
	r = start(t, cfg)
	in.wantStatus("between", presence.Online, presence.Connected)
	after := in.feed(func(f presence.NodeFact) bool { return f.CompleteSinceMS != 0 && f.ReceivedMS > before.ReceivedMS+1 })
	if after.CompleteSinceMS != before.CompleteSinceMS || after.GapFromMS != 0 {
		t.Errorf("before the restart %+v, after it %+v", before, after)
	}
	r.stop(t)
}

// TestMosquittoBurst has many clients come and go at once, with Kafka slow: no line may be lost.
func TestMosquittoBurst(t *testing.T) {
	m, k := newMosquitto(t), newKafka(t)
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{"mqtt://127.0.0.1:" + m.port}
	r := start(t, cfg)
	r.waitReady(t)
	in := k.reader(t)
	k.down.Store(true)
	const n = 2000
	for i := range n {
		m.connect(fmt.Sprintf("c%d", i%500))
	}
	k.down.Store(false)
	in.until(func() error {
		opened := 0
		for _, f := range in.facts {
			if f.Kind == presence.Opened && strings.HasPrefix(f.ClientID, "c") {
				opened++
			}
		}
		if opened != n {
			return fmt.Errorf("%d of %d connections", opened, n)
		}
		return nil
	})
	for i := range 500 {
		in.wantStatus(fmt.Sprintf("c%d", i), presence.Online, presence.Connected)
	}
	r.stop(t)
}
