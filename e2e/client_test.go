package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// keepAliveS is larger than any scenario is long, so that clients need not ping.
const keepAliveS = 3600

// mqttClient is one MQTT 5 connection. It sends no more than it is told to, so that its end is the test's choice.
type mqttClient struct {
	id   string
	conn net.Conn
}

// refusedError is returned for a CONNECT that the broker answers with another reason code than success.
type refusedError struct{ code byte }

func (e *refusedError) Error() string { return fmt.Sprintf("the broker refuses it with %#x", e.code) }

// dialMQTT connects a client; it returns once the broker has accepted it. The address is host:port, for MQTT over WebSocket ws://host:port.
func dialMQTT(ctx context.Context, addr, clientID string) (*mqttClient, error) {
	return dialWith(ctx, addr, clientID, func(*packets.Connect) {})
}

// dialWith is dialMQTT with a change to the client's CONNECT.
func dialWith(ctx context.Context, addr, clientID string, change func(*packets.Connect)) (*mqttClient, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := dialTransport(ctx, addr)
	if err != nil {
		return nil, fmt.Errorf("connect client %q: %w", clientID, err)
	}
	c := &mqttClient{id: clientID, conn: conn}
	if err := c.handshake(ctx, change); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("connect client %q: %w", clientID, err)
	}
	return c, nil
}

func dialTransport(ctx context.Context, addr string) (net.Conn, error) {
	if strings.HasPrefix(addr, "ws://") {
		return dialWebSocket(ctx, addr)
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", addr)
}

func (c *mqttClient) handshake(ctx context.Context, change func(*packets.Connect)) error {
	deadline, _ := ctx.Deadline()
	if err := c.conn.SetDeadline(deadline); err != nil {
		return err
	}
	connect := packets.NewControlPacket(packets.CONNECT)
	content := connect.Content.(*packets.Connect)
	content.ClientID, content.CleanStart, content.KeepAlive = c.id, true, keepAliveS
	change(content)
	if _, err := connect.WriteTo(c.conn); err != nil {
		return fmt.Errorf("send CONNECT: %w", err)
	}
	p, err := packets.ReadPacket(c.conn)
	if err != nil {
		return fmt.Errorf("read CONNACK: %w", err)
	}
	ack, ok := p.Content.(*packets.Connack)
	switch {
	case !ok:
		return fmt.Errorf("read CONNACK: got %s", p.PacketType())
	case ack.ReasonCode != 0:
		return &refusedError{ack.ReasonCode}
	}
	return c.conn.SetDeadline(time.Time{})
}

// disconnect ends the connection in order.
func (c *mqttClient) disconnect() error {
	_, err := packets.NewControlPacket(packets.DISCONNECT).WriteTo(c.conn)
	// The broker closes the connection when it has read the packet; closing it first could overtake that.
	if err == nil {
		err = c.conn.SetReadDeadline(time.Now().Add(callTimeout))
	}
	if err == nil {
		_, _ = packets.ReadPacket(c.conn)
	}
	if closeErr := c.conn.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return fmt.Errorf("disconnect client %q: %w", c.id, err)
	}
	return nil
}

// kill ends the connection without a word, as the end of the client's process does.
func (c *mqttClient) kill() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("kill client %q: %w", c.id, err)
	}
	return nil
}

// alive reports whether the broker still answers on the connection.
func (c *mqttClient) alive() (bool, error) {
	if err := c.conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return false, nil // closed by the test
	}
	if _, err := packets.NewControlPacket(packets.PINGREQ).WriteTo(c.conn); err != nil {
		return false, nil
	}
	for {
		p, err := packets.ReadPacket(c.conn)
		switch ne := net.Error(nil); {
		case errors.As(err, &ne) && ne.Timeout():
			return false, fmt.Errorf("the broker neither answers client %q nor has it ended the connection", c.id)
		case err != nil:
			return false, nil
		case p.Type == packets.PINGRESP:
			return true, c.conn.SetDeadline(time.Time{})
		}
	}
}

// connect connects a client that is killed with the test, if it is still there.
func connect(t *testing.T, tgt Target, clientID string) *mqttClient {
	t.Helper()
	c, err := dialMQTT(t.Context(), tgt.MQTT, clientID)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.conn.Close() })
	return c
}

// must fails the test if an action did not work.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// waitClosed reads until the broker has ended the connection.
func (c *mqttClient) waitClosed() error {
	if err := c.conn.SetReadDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	for {
		_, err := packets.ReadPacket(c.conn)
		if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
			return fmt.Errorf("the broker has not ended the connection of client %q", c.id)
		}
		if err != nil {
			return nil
		}
	}
}
