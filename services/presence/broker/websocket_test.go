package broker_test

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqtt-presence/presence/services/presence/broker"
)

// overWS has a listener for WebSockets beside the one for TCP.
func overWS(cfg *broker.Config) { cfg.WSAddr = "127.0.0.1:0" }

// wsStream is the client's end of a WebSocket as a stream of bytes.
type wsStream struct {
	*websocket.Conn
	message io.Reader
}

func (s *wsStream) Read(p []byte) (n int, err error) {
	for n == 0 && err == nil {
		if s.message == nil {
			if _, s.message, err = s.NextReader(); err != nil {
				break
			}
		}
		if n, err = s.message.Read(p); errors.Is(err, io.EOF) {
			s.message, err = nil, nil
		}
	}
	return n, err
}

func (s *wsStream) Write(p []byte) (int, error) {
	return len(p), s.WriteMessage(websocket.BinaryMessage, p)
}

func (s *wsStream) SetDeadline(t time.Time) error {
	return errors.Join(s.SetReadDeadline(t), s.SetWriteDeadline(t))
}

func dialWS(t *testing.T, addr string, version byte) (*mqttConn, *websocket.Conn) {
	t.Helper()
	d := websocket.Dialer{Subprotocols: []string{"mqtt"}, HandshakeTimeout: patience}
	ws, answer, err := d.Dial("ws://"+addr+"/mqtt", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := answer.Header.Get("Sec-Websocket-Protocol"); got != "mqtt" {
		t.Errorf("the subprotocol is %q, want mqtt", got)
	}
	return newConn(t, &wsStream{Conn: ws}, version), ws
}

// wsAddr is where WebSockets are accepted.
func (r *running) wsAddr() string { return r.WSAddr().String() }

// TestWebSocketReasons ends connections in every way that a WebSocket adds.
func TestWebSocketReasons(t *testing.T) {
	r := ready(t, overWS)
	for _, tc := range []struct {
		name, reason string
		version      byte
		end          func(*mqttConn, *websocket.Conn)
	}{
		{"disconnect", "normal", 5, func(c *mqttConn, _ *websocket.Conn) { c.disconnect(0) }},
		{"no word", "tcp_closed", 5, func(_ *mqttConn, ws *websocket.Conn) { _ = ws.Close() }},
		{"close frame", "tcp_closed", 4, func(_ *mqttConn, ws *websocket.Conn) {
			text := websocket.FormatCloseMessage(websocket.CloseNormalClosure, "")
			if err := ws.WriteControl(websocket.CloseMessage, text, time.Now().Add(patience)); err != nil {
				t.Error(err)
			}
		}},
		{"silence", "keepalive_timeout", 4, func(c *mqttConn, _ *websocket.Conn) { c.waitClosed() }},
		{"text", "protocol_error", 4, func(_ *mqttConn, ws *websocket.Conn) {
			if err := ws.WriteMessage(websocket.TextMessage, []byte{0xc0, 0}); err != nil {
				t.Error(err)
			}
		}},
		{"kick", "kicked", 5, func(c *mqttConn, _ *websocket.Conn) {
			if !r.Kick("ws-kick") {
				t.Error("Kick found no connection")
			}
			c.mustRead(packets.Disconnect)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			id := "ws-" + tc.name
			c, ws := dialWS(t, r.wsAddr(), tc.version)
			c.connect(connectOptions{id: id, keepAlive: 1})
			up := r.want(t, "connected", id, "")
			_, port, _ := net.SplitHostPort(r.wsAddr())
			if !strings.Contains(up.Raw, `"ipaddress":"127.0.0.1","sockport":`+port+`,"protocol":"mqtt"`) {
				t.Errorf("the event does not name the listener's port %s: %s", port, up.Raw)
			}
			tc.end(c, ws)
			r.want(t, "disconnected", id, tc.reason)
			c.waitClosed()
		})
	}
}

// TestWebSocketMessages cuts packets where it likes: messages have nothing to do with them.
func TestWebSocketMessages(t *testing.T) {
	r := ready(t, overWS)
	c, ws := dialWS(t, r.wsAddr(), 4)
	send := func(part string) {
		t.Helper()
		if err := ws.WriteMessage(websocket.BinaryMessage, []byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	send("\x10")
	send("")
	send("\x0d\x00\x04MQTT\x04\x02\x00\x00\x00")
	send("\x01c\xc0\x00\xc0") // the end of CONNECT, a PINGREQ, and half of another
	send("\x00")
	c.mustRead(packets.Connack)
	c.mustRead(packets.Pingresp)
	c.mustRead(packets.Pingresp)
	r.want(t, "connected", "c", "")

	// More than one buffer in either direction, to a client over TCP and back.
	tcp := dial(t, r.addr, 4)
	tcp.connect(connectOptions{id: "tcp"})
	r.want(t, "connected", "tcp", "")
	for _, dir := range []struct{ from, to *mqttConn }{{c, tcp}, {tcp, c}} {
		dir.to.subscribe(0, "t")
		payload := strings.Repeat("0123456789", 20_000)
		dir.from.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish}, TopicName: "t", Payload: []byte(payload)})
		if pk := dir.to.mustRead(packets.Publish); string(pk.Payload) != payload {
			t.Errorf("%d bytes came of %d", len(pk.Payload), len(payload))
		}
	}
}

// TestWebSocketOrigin lets in browsers with pages of the same host, whatever the port, and no others.
func TestWebSocketOrigin(t *testing.T) {
	r := ready(t, overWS)
	for origin, want := range map[string]int{
		"http://127.0.0.1:3000":   http.StatusSwitchingProtocols,
		"http://attacker.example": http.StatusForbidden,
		"null":                    http.StatusForbidden,
		"http://%zz":              http.StatusForbidden,
	} {
		ws, answer, err := websocket.DefaultDialer.Dial("ws://"+r.wsAddr(), http.Header{"Origin": {origin}})
		if err == nil {
			_ = ws.Close()
		}
		if answer == nil || answer.StatusCode != want {
			t.Errorf("origin %s: %v, %v, want status %d", origin, answer, err, want)
		}
	}
	answer, err := http.Get("http://" + r.wsAddr() + "/mqtt")
	if err != nil {
		t.Fatal(err)
	}
	if err := answer.Body.Close(); err != nil || answer.StatusCode != http.StatusBadRequest {
		t.Errorf("a request that is no upgrade is answered %s, %v", answer.Status, err)
	}
}

// TestClients compares the server's own table with what is connected.
func TestClients(t *testing.T) {
	r := ready(t, overWS)
	c, _ := dialWS(t, r.wsAddr(), 5)
	c.connect(connectOptions{id: "stays", resume: true, sessionExpiry: 60})
	r.want(t, "connected", "stays", "")
	gone := dial(t, r.addr, 5)
	gone.connect(connectOptions{id: "goes", resume: true, sessionExpiry: 60})
	r.want(t, "connected", "goes", "")
	gone.disconnect(0)
	r.want(t, "disconnected", "goes", "normal")
	if got := r.Clients(); len(got) != 1 || got[0] != "stays" {
		t.Errorf("connected are %v, want [stays]", got)
	}
}

// TestLateDisconnects_H3_H7 forces the order of brokers that report from several tasks: the end of a connection that was taken over comes, and is
// stamped, after the beginning of its successor.
func TestLateDisconnects_H3_H7(t *testing.T) {
	r := ready(t, func(cfg *broker.Config) {
		overWS(cfg)
		cfg.LateDisconnects = true
	})
	transports := map[string]func(t *testing.T) *mqttConn{
		"tcp": func(t *testing.T) *mqttConn { return dial(t, r.addr, 5) },
		"ws": func(t *testing.T) *mqttConn {
			c, _ := dialWS(t, r.wsAddr(), 5)
			return c
		},
	}
	for _, tc := range []struct {
		first, second, reason string
		resume                bool
	}{
		{"tcp", "tcp", "takenover", true},
		{"tcp", "tcp", "discarded", false},
		{"ws", "ws", "takenover", true},
		{"tcp", "ws", "discarded", false},
		{"ws", "tcp", "takenover", true},
	} {
		id := tc.first + tc.second + tc.reason
		t.Run(id, func(t *testing.T) {
			first := transports[tc.first](t)
			first.connect(connectOptions{id: id, resume: true, sessionExpiry: 60})
			one := r.want(t, "connected", id, "")
			second := transports[tc.second](t)
			second.connect(connectOptions{id: id, resume: tc.resume, sessionExpiry: 60})
			two := r.want(t, "connected", id, "")
			end := r.want(t, "disconnected", id, tc.reason)
			if end.ConnectedAt != one.ConnectedAt || end.DisconnectedAt < two.ConnectedAt {
				t.Errorf("first %d, second %d; the end names %d and is of %d", one.ConnectedAt, two.ConnectedAt, end.ConnectedAt, end.DisconnectedAt)
			}
			first.waitClosed()
			second.disconnect(0)
			if last := r.want(t, "disconnected", id, "normal"); last.ConnectedAt != two.ConnectedAt {
				t.Errorf("the last event names %d, want %d", last.ConnectedAt, two.ConnectedAt)
			}
		})
	}
}

// TestLateDisconnectsStorm_H3_H8 lets many connections of one ID race: each gets one end, after its successor's beginning.
func TestLateDisconnectsStorm_H3_H8(t *testing.T) {
	r := ready(t, func(cfg *broker.Config) { cfg.LateDisconnects = true })
	const connections = 200
	for range connections {
		c := dial(t, r.addr, 4)
		// The broker may close the connection at any time: another takes over.
		go func() { _ = c.send(connectPacket(connectOptions{id: "storm"})) }()
	}
	open, last := map[int64]bool{}, int64(0)
	for range 2*connections - 1 {
		e := r.next(t)
		switch {
		case e.Kind == "connected" && e.ConnectedAt > last:
			open[e.ConnectedAt], last = true, e.ConnectedAt
		case e.Kind == "disconnected" && open[e.ConnectedAt] && e.ConnectedAt != last:
			delete(open, e.ConnectedAt)
		default:
			t.Fatalf("got %s of %d while %v are open and %d is the last", e.Kind, e.ConnectedAt, open, last)
		}
	}
	if len(open) != 1 || !open[last] {
		t.Errorf("open are %v, want the last, %d", open, last)
	}
}
