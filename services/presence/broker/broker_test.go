package broker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/services/presence/broker"
)

const prefix = "$SYS/brokers/presence@127.0.0.1/"

// running is a broker with a bridge that reads its feed.
type running struct {
	*broker.Broker
	addr   string
	open   chan struct{}
	stop   context.CancelFunc
	done   chan error
	events chan packets.Packet // beneath clients/
	others chan packets.Packet
}

func start(t *testing.T, change func(*broker.Config)) *running {
	t.Helper()
	r := &running{open: make(chan struct{}), done: make(chan error, 1), events: make(chan packets.Packet, 1000), others: make(chan packets.Packet, 1000)}
	cfg := broker.DefaultConfig()
	cfg.Addr, cfg.Open = "127.0.0.1:0", r.open
	if change != nil {
		change(&cfg)
	}
	var err error
	if r.Broker, err = broker.New(cfg, slog.New(slog.DiscardHandler), prometheus.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	r.addr = r.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.done <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-r.done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(patience):
			t.Error("Run did not return")
		}
	})
	return r
}

// bridge connects to the feed as the bridge does.
func (r *running) bridge(t *testing.T) *mqttConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := r.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	b := newConn(t, c, 5)
	b.connect(connectOptions{id: "bridge", resume: true, sessionExpiry: 3600})
	return b
}

// ready starts a broker with a subscribed bridge and opens it.
func ready(t *testing.T, change func(*broker.Config)) *running {
	t.Helper()
	r := start(t, change)
	r.read(t)
	close(r.open)
	return r
}

// read subscribes to all that the feed has.
func (r *running) read(t *testing.T) {
	t.Helper()
	b := r.bridge(t)
	// Mochi does not deliver the retained message of a parent level for "$SYS/brokers/#" (MQTT 5, 4.7.1.2).
	if codes := b.subscribe(1, "$SYS/brokers", "$SYS/brokers/#"); !bytes.Equal(codes, []byte{1, 1}) {
		t.Fatalf("subscriptions granted %v, want QoS 1", codes)
	}
	go r.pump(b)
}

// pump acknowledges and sorts what the feed delivers.
func (r *running) pump(b *mqttConn) {
	for {
		pk, err := b.read()
		if err != nil {
			return
		}
		if pk.FixedHeader.Type != packets.Publish {
			continue
		}
		var ack packets.Packet
		ack.FixedHeader.Type = packets.Puback
		ack.PacketID = pk.PacketID
		if b.send(ack) != nil {
			return
		}
		if strings.HasPrefix(pk.TopicName, prefix+"clients/") {
			r.events <- pk
		} else {
			r.others <- pk
		}
	}
}

// event is what tests read of an event.
type event struct {
	Kind           string `json:"-"`
	Topic          string `json:"-"`
	QoS            byte   `json:"-"`
	Raw            string `json:"-"`
	ClientID       string `json:"clientid"`
	ConnectedAt    int64  `json:"connected_at"`
	DisconnectedAt int64  `json:"disconnected_at"`
	Reason         string `json:"reason"`
}

func (r *running) next(t *testing.T) event {
	t.Helper()
	select {
	case pk := <-r.events:
		e := event{Topic: pk.TopicName, QoS: pk.FixedHeader.Qos, Raw: string(pk.Payload)}
		e.Kind = pk.TopicName[strings.LastIndexByte(pk.TopicName, '/')+1:]
		if err := json.Unmarshal(pk.Payload, &e); err != nil {
			t.Fatal(err)
		}
		return e
	case <-time.After(patience):
		t.Fatal("no event came")
	}
	return event{}
}

// other returns the next message that is no client event.
func (r *running) other(t *testing.T) packets.Packet {
	t.Helper()
	select {
	case pk := <-r.others:
		return pk
	case <-time.After(patience):
		t.Fatal("no message came")
	}
	return packets.Packet{}
}

func (r *running) want(t *testing.T, kind, id, reason string) event {
	t.Helper()
	e := r.next(t)
	if e.Kind != kind || e.ClientID != id || e.Reason != reason {
		t.Fatalf("got %s of %q (%s), want %s of %q (%s)", e.Kind, e.ClientID, e.Reason, kind, id, reason)
	}
	return e
}

var stamps = regexp.MustCompile(`"(connected_at|disconnected_at|ts)":\d{13}\b`)

// TestPayload compares whole payloads, times aside, with those of EMQX 5.8.
func TestPayload(t *testing.T) {
	r := ready(t, nil)
	_, port, _ := strings.Cut(r.addr, ":")
	base := func(id, user string, version int) string {
		return fmt.Sprintf(`{"clientid":%q,"username":%q,"ipaddress":"127.0.0.1","sockport":%s,"protocol":"mqtt","proto_name":"MQTT","proto_ver":%d,"connected_at":T,"ts":T`,
			id, user, port, version)
	}
	for _, tc := range []struct {
		name                    string
		version                 byte
		options                 connectOptions
		connected, disconnected string
	}{
		{"v4 clean", 4, connectOptions{id: "VIN0000001", keepAlive: 60},
			base("VIN0000001", "undefined", 4) + `,"keepalive":60,"clean_start":true,"expiry_interval":0}`,
			base("VIN0000001", "undefined", 4) + `,"reason":"normal","disconnected_at":T}`},
		{"v4 resume", 4, connectOptions{id: "VIN0000002", username: "fleet", resume: true},
			base("VIN0000002", "fleet", 4) + `,"keepalive":0,"clean_start":false,"expiry_interval":604800000}`,
			base("VIN0000002", "fleet", 4) + `,"reason":"normal","disconnected_at":T}`},
		{"v5 expiry", 5, connectOptions{id: "<&>", username: "flêt", resume: true, sessionExpiry: 7200, keepAlive: 65535},
			base("<&>", "flêt", 5) + `,"keepalive":65535,"clean_start":false,"expiry_interval":7200000}`,
			base("<&>", "flêt", 5) + `,"reason":"normal","disconnected_at":T}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := dial(t, r.addr, tc.version)
			before := time.Now().UnixMilli()
			c.connect(tc.options)
			up := r.next(t)
			c.disconnect(0)
			c.waitClosed()
			down := r.next(t)
			for _, got := range []struct {
				event
				kind, want string
			}{{up, "connected", tc.connected}, {down, "disconnected", tc.disconnected}} {
				if masked := stamps.ReplaceAllString(got.Raw, `"$1":T`); masked != got.want {
					t.Errorf("payload\n%s\nwant\n%s", masked, got.want)
				}
				if topic := prefix + "clients/" + tc.options.id + "/" + got.kind; got.Topic != topic || got.QoS != 1 {
					t.Errorf("topic %s at QoS %d, want %s at QoS 1", got.Topic, got.QoS, topic)
				}
			}
			if up.ConnectedAt != down.ConnectedAt || up.ConnectedAt < before || down.DisconnectedAt < up.ConnectedAt {
				t.Errorf("connected at %d and %d, disconnected at %d, want the first two equal, not before %d nor after the third",
					up.ConnectedAt, down.ConnectedAt, down.DisconnectedAt, before)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	r := ready(t, nil)
	for _, tc := range []struct {
		reason  string
		version byte
		end     func(*mqttConn)
	}{
		{"normal", 4, func(c *mqttConn) { c.disconnect(0) }},
		{"tcp_closed", 4, func(c *mqttConn) { _ = c.conn.Close() }},
		{"disconnect_with_will_message", 5, func(c *mqttConn) { c.disconnect(0x04) }},
		{"administrative_action", 5, func(c *mqttConn) { c.disconnect(0x98) }},
		{"keepalive_timeout", 4, func(c *mqttConn) { c.waitClosed() }},
		{"kicked", 5, func(c *mqttConn) {
			if !r.Kick("c-kicked") {
				t.Error("Kick found no connection")
			}
			if pk := c.mustRead(packets.Disconnect); pk.ReasonCode != 0x98 {
				t.Errorf("DISCONNECT with %#x, want 0x98", pk.ReasonCode)
			}
		}},
		{"protocol_error", 5, func(c *mqttConn) {
			c.write(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Connect},
				Connect:     packets.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: "again", Clean: true},
			})
		}},
		{"malformed_packet", 4, func(c *mqttConn) {
			if _, err := c.conn.Write([]byte{0x30, 0xff, 0xff, 0xff, 0xff, 0xff}); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Run(tc.reason, func(t *testing.T) {
			id := "c-" + tc.reason
			c := dial(t, r.addr, tc.version)
			c.connect(connectOptions{id: id, keepAlive: 1})
			r.want(t, "connected", id, "")
			tc.end(c)
			r.want(t, "disconnected", id, tc.reason)
		})
	}
}

func TestTakeover(t *testing.T) {
	r := ready(t, nil)
	for _, tc := range []struct {
		reason string
		resume bool
	}{{"takenover", true}, {"discarded", false}} {
		t.Run(tc.reason, func(t *testing.T) {
			first := dial(t, r.addr, 5)
			first.connect(connectOptions{id: tc.reason, resume: true, sessionExpiry: 60})
			one := r.want(t, "connected", tc.reason, "")

			second := dial(t, r.addr, 5)
			second.connect(connectOptions{id: tc.reason, resume: tc.resume, sessionExpiry: 60})
			end := r.want(t, "disconnected", tc.reason, tc.reason)
			two := r.want(t, "connected", tc.reason, "")
			if end.ConnectedAt != one.ConnectedAt || two.ConnectedAt <= one.ConnectedAt || end.DisconnectedAt > two.ConnectedAt {
				t.Errorf("first %d, its end names %d at %d, second %d", one.ConnectedAt, end.ConnectedAt, end.DisconnectedAt, two.ConnectedAt)
			}
			if pk := first.mustRead(packets.Disconnect); pk.ReasonCode != 0x8E {
				t.Errorf("the first got DISCONNECT %#x, want 0x8E", pk.ReasonCode)
			}
			first.waitClosed()

			// The first's handler has ended as well; its end must not be told again.
			second.disconnect(0)
			if last := r.want(t, "disconnected", tc.reason, "normal"); last.ConnectedAt != two.ConnectedAt {
				t.Errorf("the last event names %d, want %d", last.ConnectedAt, two.ConnectedAt)
			}
		})
	}
}

// TestTakeoverStorm lets many connections of one ID race. Whatever order they come in, their events must alternate, each pair naming a
// connection of its own.
func TestTakeoverStorm(t *testing.T) {
	r := ready(t, nil)
	const connections = 200
	for range connections {
		c := dial(t, r.addr, 4)
		// The broker may close the connection at any time: another takes over.
		go func() { _ = c.send(connectPacket(connectOptions{id: "storm"})) }()
	}
	last := int64(0)
	for n := range connections {
		up := r.want(t, "connected", "storm", "")
		if up.ConnectedAt <= last {
			t.Fatalf("connection %d has connected_at %d, not after %d", n, up.ConnectedAt, last)
		}
		last = up.ConnectedAt
		if n == connections-1 {
			break
		}
		if down := r.next(t); down.Kind != "disconnected" || down.ConnectedAt != last {
			t.Fatalf("got %s of %d, want disconnected of %d", down.Kind, down.ConnectedAt, last)
		}
	}
	if !r.Kick("storm") {
		t.Error("the last connection is not the one that the broker knows")
	}
	if down := r.want(t, "disconnected", "storm", "kicked"); down.ConnectedAt != last {
		t.Errorf("the last event names %d, want %d", down.ConnectedAt, last)
	}
}

// TestQuickConnections makes connections of one ID that each last well under a millisecond.
func TestQuickConnections(t *testing.T) {
	r := ready(t, nil)
	seen := map[int64]bool{}
	for range 50 {
		c := dial(t, r.addr, 4)
		c.connect(connectOptions{id: "quick"})
		c.disconnect(0)
		c.waitClosed()
		up := r.want(t, "connected", "quick", "")
		if down := r.want(t, "disconnected", "quick", "normal"); seen[up.ConnectedAt] || down.ConnectedAt != up.ConnectedAt {
			t.Fatalf("connected_at %d is not the connection's own", up.ConnectedAt)
		}
		seen[up.ConnectedAt] = true
	}
}

func TestClientIDs_H15(t *testing.T) {
	r := ready(t, nil)
	for _, id := range []string{"a/b", "a//b/", "x#y", "+/#", "a+b", "a%2Bb", "a%2Fb", "VIN 1", "日本", "..", ".", "a:b", `"\`, "$SYS", "a\uFFFDb"} {
		c := dial(t, r.addr, 5)
		c.connect(connectOptions{id: id})
		e := r.want(t, "connected", id, "")
		if strings.ContainsAny(e.Topic, "+#") {
			t.Errorf("topic %q is a wildcard", e.Topic)
		}
		c.disconnect(0)
		r.want(t, "disconnected", id, "normal")
	}
	// An ID of the server's choice.
	c := dial(t, r.addr, 5)
	ack := c.sendConnect(connectOptions{})
	if id := ack.Properties.AssignedClientID; id == "" || r.next(t).ClientID != id {
		t.Errorf("assigned ID %q is not the event's", id)
	}
}

func TestRefused_H4(t *testing.T) {
	r := ready(t, nil)
	fits := 65535 - len(prefix+"clients//disconnected")
	for _, tc := range []struct {
		name    string
		version byte
		options connectOptions
		code    byte
	}{
		{"too long", 5, connectOptions{id: strings.Repeat("x", fits+1)}, 0x85},
		{"too long for MQTT 3", 4, connectOptions{id: strings.Repeat("x", fits+1)}, 0x02},
		{"too long when encoded", 5, connectOptions{id: "+" + strings.Repeat("x", fits-1)}, 0x85},
		{"ambiguous", 5, connectOptions{id: "\uFFFD#"}, 0x85},
		{"will under $SYS", 5, connectOptions{id: "will", willTopic: prefix + "clients/x/connected"}, 0x87},
		{"will under $SYS for MQTT 3", 4, connectOptions{id: "will", willTopic: "$SYS/x"}, 0x05},
	} {
		c := dial(t, r.addr, tc.version)
		if ack := c.sendConnect(tc.options); ack.ReasonCode != tc.code {
			t.Errorf("%s: CONNACK %#x, want %#x", tc.name, ack.ReasonCode, tc.code)
		}
		c.waitClosed()
	}
	// Nothing was said about them: the next event is that of the longest ID that fits.
	id := strings.Repeat("x", fits)
	c := dial(t, r.addr, 5)
	c.connect(connectOptions{id: id})
	r.want(t, "connected", id, "")
}

// TestSysIsClosed reads and writes $SYS as a client.
func TestSysIsClosed(t *testing.T) {
	r := ready(t, nil)
	c := dial(t, r.addr, 5)
	c.connect(connectOptions{id: "spy"})
	r.want(t, "connected", "spy", "")
	if codes := c.subscribe(0, "$SYS/#", "$SYS/brokers/+/clients/#", "$share/g/$SYS/#", "$SYS"); !bytes.Equal(codes, []byte{0x87, 0x87, 0x87, 0x87}) {
		t.Errorf("subscriptions to $SYS were answered with %#x, want 0x87", codes)
	}
	if codes := c.subscribe(0, "#", "+/#", "+/brokers/#"); !bytes.Equal(codes, []byte{0, 0, 0}) {
		t.Errorf("subscriptions were answered with %#x, want 0", codes)
	}
	c.publish(prefix+"clients/victim/connected", 1)
	c.publish("plain", 0)
	if pk := c.mustRead(packets.Publish); pk.TopicName != "plain" {
		t.Errorf("got %s, want the client's own message only", pk.TopicName)
	}
	c.disconnect(0)
	r.want(t, "disconnected", "spy", "normal")
}

// TestBridgeIDIsFree_H22 lets a client use the bridge's ID.
func TestBridgeIDIsFree_H22(t *testing.T) {
	r := ready(t, nil)
	c := dial(t, r.addr, 5)
	c.connect(connectOptions{id: "bridge"})
	r.want(t, "connected", "bridge", "")
	c.disconnect(0)
	r.want(t, "disconnected", "bridge", "normal")
}

// TestNoSendQuota delivers more than a client's Receive Maximum: with its send quota on, mochi can hang for ever.
func TestNoSendQuota(t *testing.T) {
	r := ready(t, nil)
	c := dial(t, r.addr, 5)
	c.connect(connectOptions{id: "c", receiveMaximum: 1})
	c.subscribe(1, "t")
	for range 3 {
		c.publish("t", 1)
	}
	for got := 0; got < 3; {
		pk, err := c.read()
		if err != nil {
			t.Fatalf("after %d messages: %v", got, err)
		}
		if pk.FixedHeader.Type == packets.Publish {
			got++
		}
	}
}
