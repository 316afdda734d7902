package bridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	mqtt "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/hooks/auth"
	"github.com/mochi-mqtt/server/v2/listeners"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service"
)

// script is a broker that plays a part: serve is called for each connection, one at a time.
func script(t *testing.T, serve func(c net.Conn, connect *packets.Connect)) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if p, err := packets.ReadPacket(c); err == nil {
				if connect, ok := p.Content.(*packets.Connect); ok {
					serve(c, connect)
				}
			}
			c.Close()
		}
	}()
	return "mqtt://" + l.Addr().String()
}

func connack(c net.Conn, resumed bool) {
	// A failed write shows as a client that does not go on.
	_, _ = (&packets.Connack{SessionPresent: resumed, Properties: &packets.Properties{}}).WriteTo(c)
}

func publish(c net.Conn, topic, payload string, id uint16, dup bool) {
	_, _ = (&packets.Publish{Topic: topic, Payload: []byte(payload), QoS: 2, PacketID: id, Duplicate: dup, Properties: &packets.Properties{}}).WriteTo(c)
}

// TestPoisonedSessionIsGivenUp_H16 has a broker that delivers, first of all and each time again, a packet that cannot be read.
func TestPoisonedSessionIsGivenUp_H16(t *testing.T) {
	k := newKafka(t)
	cleanStarts := make(chan bool, 100)
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{script(t, func(c net.Conn, connect *packets.Connect) {
		cleanStarts <- connect.CleanStart
		connack(c, !connect.CleanStart)
		if !connect.CleanStart {
			// PUBLISH with a property that does not exist.
			_, _ = c.Write([]byte{0x32, 7, 0, 1, 'a', 0, 1, 1, 0xFF})
		}
		for {
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			if s, ok := p.Content.(*packets.Subscribe); ok && connect.CleanStart {
				_, _ = (&packets.Suback{PacketID: s.PacketID, Reasons: make([]byte, len(s.Subscriptions)), Properties: &packets.Properties{}}).WriteTo(c)
			}
		}
	})}
	r := start(t, cfg)
	r.waitReady(t)
	for n := range poisonedAfter + 1 {
		if clean := <-cleanStarts; clean != (n == poisonedAfter) {
			t.Errorf("connection %d: clean start %v", n+1, clean)
		}
	}
	r.stop(t)
}

// TestRedeliveredLinesCountOnce_H1 has Mosquitto deliver a line again because the connection was lost before its acknowledgement: it is one line
// of its stamp, not two.
func TestRedeliveredLinesCountOnce_H1(t *testing.T) {
	k := newKafka(t)
	k.down.Store(true)
	settled := make(chan uint16, 10)
	connections := 0
	closed := func(n int) string { return fmt.Sprintf("%d: Client d1 disconnected.", 1_760_000_000+n) }
	topic := mosquittoLog + "N"
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{script(t, func(c net.Conn, _ *packets.Connect) {
		connections++
		connack(c, connections > 1)
		for {
			p, err := packets.ReadPacket(c)
			if err != nil {
				return
			}
			switch p := p.Content.(type) {
			case *packets.Subscribe:
				_, _ = (&packets.Suback{PacketID: p.PacketID, Reasons: make([]byte, len(p.Subscriptions)), Properties: &packets.Properties{}}).WriteTo(c)
				if connections == 1 {
					publish(c, topic, closed(0), 1, false)
					publish(c, topic, closed(1), 2, false)
					// The next acknowledgement comes after the spool has taken over, which is later than this.
					_ = c.Close()
					return
				}
				publish(c, topic, closed(0), 1, true)
				publish(c, topic, closed(1), 2, true)
				publish(c, topic, closed(1), 3, false)
			case *packets.Pubrec:
				settled <- p.PacketID
				_, _ = (&packets.Pubrel{PacketID: p.PacketID, Properties: &packets.Properties{}}).WriteTo(c)
			}
		}
	})}
	r := start(t, cfg)
	for _, want := range []uint16{1, 2, 3} {
		select {
		case got := <-settled:
			if got != want {
				t.Errorf("acknowledged %d, want %d", got, want)
			}
		case <-time.After(within):
			t.Fatalf("message %d is not acknowledged", want)
		}
	}
	k.down.Store(false)
	in := k.reader(t)
	in.want(3)
	var orders []uint32
	for _, f := range in.facts {
		orders = append(orders, f.Order)
	}
	if !slices.Equal(orders, []uint32{0, 1, 2}) {
		t.Errorf("orders %v", orders)
	}
	r.stop(t)
}

// TestTLSAndPassword connects with a certificate of an own authority, a name, and a password from a file; the first endpoint is dead.
func TestTLSAndPassword(t *testing.T) {
	dir := t.TempDir()
	certificate, ca := selfSigned(t, dir)
	s := mqtt.New(&mqtt.Options{InlineClient: true, Logger: slog.New(slog.DiscardHandler)})
	if err := s.AddHook(new(auth.Hook), &auth.Options{Ledger: &auth.Ledger{
		Auth: auth.AuthRules{{Username: "bridge", Password: "secret", Allow: true}},
		ACL:  auth.ACLRules{{Username: "bridge", Filters: auth.Filters{"$SYS/brokers/#": auth.ReadOnly}}},
	}}); err != nil {
		t.Fatal(err)
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.AddListener(listeners.NewNet("tls", l)); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve() }()
	t.Cleanup(func() { s.Close() })

	k := newKafka(t)
	cfg := testConfig(t, nil, k)
	cfg.MQTT.URLs = []string{"mqtts://127.0.0.1:1", "mqtts://" + l.Addr().String()}
	cfg.MQTT.Dialect, cfg.MQTT.Username = presence.DialectEMQX, "bridge"
	cfg.MQTT.PasswordFile = filepath.Join(dir, "password")
	if err := os.WriteFile(cfg.MQTT.PasswordFile, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.MQTT.TLS = service.ClientTLS{Enabled: true, CAFile: ca, ServerName: "broker.test"}
	r := start(t, cfg)
	r.waitReady(t)
	b := &broker{t: t, server: s}
	b.open("dev1", 1)
	k.reader(t).want(1)
	r.stop(t)
}

// selfSigned returns a certificate for broker.test that is its own authority, and the file of that.
func selfSigned(t *testing.T, dir string) (tls.Certificate, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "broker.test"}, DNSNames: []string{"broker.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "ca.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, file
}
