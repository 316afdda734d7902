package broker_test

import (
	"bufio"
	"bytes"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"
)

// patience bounds every wait of these tests.
const patience = 10 * time.Second

// mqttConn is one end of an MQTT connection, packet by packet.
type mqttConn struct {
	t       testing.TB
	conn    net.Conn
	r       *bufio.Reader
	version byte
}

func newConn(t testing.TB, c net.Conn, version byte) *mqttConn {
	t.Helper()
	t.Cleanup(func() { _ = c.Close() })
	return &mqttConn{t: t, conn: c, r: bufio.NewReader(c), version: version}
}

func dial(t testing.TB, addr string, version byte) *mqttConn {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Fatal(err)
	}
	return newConn(t, c, version)
}

func (c *mqttConn) write(pk packets.Packet) {
	c.t.Helper()
	if err := c.send(pk); err != nil {
		c.t.Fatalf("write packet type %d: %v", pk.FixedHeader.Type, err)
	}
}

// send is write for goroutines besides the test's own.
func (c *mqttConn) send(pk packets.Packet) error {
	pk.ProtocolVersion = c.version
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case packets.Connect:
		err = pk.ConnectEncode(&b)
	case packets.Subscribe:
		err = pk.SubscribeEncode(&b)
	case packets.Publish:
		err = pk.PublishEncode(&b)
	case packets.Puback:
		err = pk.PubackEncode(&b)
	case packets.Disconnect:
		err = pk.DisconnectEncode(&b)
	case packets.Pingreq:
		err = pk.PingreqEncode(&b)
	default:
		err = errors.New("unexpected type")
	}
	if err == nil {
		err = c.conn.SetWriteDeadline(time.Now().Add(patience))
	}
	if err == nil {
		_, err = c.conn.Write(b.Bytes())
	}
	return err
}

// read returns the next packet, or the error of a closed connection.
func (c *mqttConn) read() (packets.Packet, error) {
	if err := c.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return packets.Packet{}, err
	}
	first, err := c.r.ReadByte()
	if err != nil {
		return packets.Packet{}, err
	}
	pk := packets.Packet{ProtocolVersion: c.version}
	if err := pk.FixedHeader.Decode(first); err != nil {
		return pk, err
	}
	if pk.FixedHeader.Remaining, _, err = packets.DecodeLength(c.r); err != nil {
		return pk, err
	}
	body := make([]byte, pk.FixedHeader.Remaining)
	for n := 0; n < len(body); {
		m, err := c.r.Read(body[n:])
		if err != nil {
			return pk, err
		}
		n += m
	}
	switch pk.FixedHeader.Type {
	case packets.Connack:
		err = pk.ConnackDecode(body)
	case packets.Suback:
		err = pk.SubackDecode(body)
	case packets.Publish:
		err = pk.PublishDecode(body)
	case packets.Puback:
		err = pk.PubackDecode(body)
	case packets.Disconnect:
		err = pk.DisconnectDecode(body)
	}
	return pk, err
}

func (c *mqttConn) mustRead(want byte) packets.Packet {
	c.t.Helper()
	pk, err := c.read()
	if err != nil {
		c.t.Fatalf("read packet type %d: %v", want, err)
	}
	if pk.FixedHeader.Type != want {
		c.t.Fatalf("read packet type %d, want %d", pk.FixedHeader.Type, want)
	}
	return pk
}

// connectOptions are the fields of CONNECT that tests set.
type connectOptions struct {
	id            string
	username      string
	resume        bool
	keepAlive     uint16
	sessionExpiry uint32
	willTopic     string

	receiveMaximum uint16
}

func (c *mqttConn) sendConnect(o connectOptions) packets.Packet {
	c.t.Helper()
	c.write(connectPacket(o))
	return c.mustRead(packets.Connack)
}

func connectPacket(o connectOptions) packets.Packet {
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Connect},
		Connect: packets.ConnectParams{
			ProtocolName:     []byte("MQTT"),
			ClientIdentifier: o.id,
			Clean:            !o.resume,
			Keepalive:        o.keepAlive,
			UsernameFlag:     o.username != "",
			Username:         []byte(o.username),
			WillFlag:         o.willTopic != "",
			WillTopic:        o.willTopic,
			WillPayload:      []byte("x"),
		},
	}
	if o.sessionExpiry > 0 {
		pk.Properties.SessionExpiryInterval = o.sessionExpiry
		pk.Properties.SessionExpiryIntervalFlag = true
	}
	pk.Properties.ReceiveMaximum = o.receiveMaximum
	return pk
}

func (c *mqttConn) connect(o connectOptions) {
	c.t.Helper()
	if ack := c.sendConnect(o); ack.ReasonCode != 0 {
		c.t.Fatalf("CONNECT of %q was refused with %#x", o.id, ack.ReasonCode)
	}
}

// subscribe returns the reason codes of SUBACK.
func (c *mqttConn) subscribe(qos byte, filters ...string) []byte {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1}, PacketID: 1}
	for _, f := range filters {
		pk.Filters = append(pk.Filters, packets.Subscription{Filter: f, Qos: qos})
	}
	c.write(pk)
	for {
		pk, err := c.read()
		if err != nil {
			c.t.Fatalf("SUBSCRIBE %v: %v", filters, err)
		}
		if pk.FixedHeader.Type == packets.Suback {
			return pk.ReasonCodes
		}
	}
}

func (c *mqttConn) publish(topic string, qos byte) {
	c.t.Helper()
	pk := packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos}, TopicName: topic, Payload: []byte("x")}
	if qos > 0 {
		pk.PacketID = 7
	}
	c.write(pk)
}

func (c *mqttConn) disconnect(code byte) {
	c.t.Helper()
	c.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Disconnect}, ReasonCode: code})
}

// waitClosed reads until the other side has closed the connection.
func (c *mqttConn) waitClosed() {
	c.t.Helper()
	for {
		_, err := c.read()
		if e, ok := err.(net.Error); ok && e.Timeout() {
			c.t.Fatal("the broker did not close the connection")
		}
		if err != nil {
			return
		}
	}
}
