package service

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// addressed is a connection with a remote address of choice.
type addressed struct {
	net.Conn
	from netip.Addr
}

func (a *addressed) RemoteAddr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(a.from, 1))
}
func (a *addressed) Close() error { return nil }

func newTestConnections(t *testing.T, maximum, perAddress int) *Connections {
	t.Helper()
	c, err := NewConnections(maximum, perAddress, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *Connections) from(addr string) net.Conn {
	return c.admit(&addressed{from: netip.MustParseAddr(addr)})
}

func TestConnectionsArePerAddress(t *testing.T) {
	c := newTestConnections(t, 0, 2)
	first, second := c.from("10.0.0.1"), c.from("10.0.0.1")
	if first == nil || second == nil || c.from("10.0.0.1") != nil {
		t.Fatal("want 2 connections and no third")
	}
	if c.from("10.0.0.2") == nil {
		t.Error("another address was refused")
	}
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	if c.from("10.0.0.1") == nil || c.from("10.0.0.1") != nil {
		t.Error("a closed connection gives back one place")
	}
	// One /64 is one caller, and so is a mapped address.
	for _, test := range []struct {
		a, b string
		same bool
	}{
		{"2001:db8::1", "2001:db8::ffff:1", true}, {"2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"::ffff:10.0.0.9", "10.0.0.9", true}, {"10.0.0.8", "10.0.0.9", false},
	} {
		if same := AddressKey(netip.MustParseAddr(test.a)) == AddressKey(netip.MustParseAddr(test.b)); same != test.same {
			t.Errorf("%s and %s: %v", test.a, test.b, same)
		}
	}
}

func TestNewcomerTakesThePlaceOfWhoHoldsMost(t *testing.T) {
	c := newTestConnections(t, 10, 0)
	for range 10 {
		c.from("10.0.0.1")
	}
	if c.from("10.0.0.1") != nil {
		t.Error("the address that holds most got more")
	}
	for i := range 5 {
		if c.from("10.0.0.2") == nil && i < 4 {
			t.Errorf("connection %d of the newcomer was refused", i)
		}
	}
	if one, two := len(c.open[netip.MustParseAddr("10.0.0.1")]), len(c.open[netip.MustParseAddr("10.0.0.2")]); one+two != 10 || two < 4 {
		t.Errorf("the first has %d, the newcomer %d", one, two)
	}
	if c.from("10.0.0.3") == nil {
		t.Error("a third address was refused")
	}
}

func TestConnectionsCount(t *testing.T) {
	c := newTestConnections(t, 20, 12)
	var open []net.Conn
	random := rand.New(rand.NewPCG(1, 2))
	for range 20_000 {
		if len(open) > 0 && random.IntN(3) == 0 {
			i := random.IntN(len(open))
			if err := open[i].Close(); err != nil {
				t.Fatal(err)
			}
			open[i] = open[len(open)-1]
			open = open[:len(open)-1]
		} else if conn := c.from(fmt.Sprintf("10.0.0.%d", random.IntN(5))); conn != nil {
			open = append(open, conn)
		}
		total, most := 0, 0
		for key, set := range c.open {
			total += len(set)
			most = max(most, len(set))
			if _, there := c.levels[len(set)][key]; !there || len(set) > 12 {
				t.Fatalf("%v has %d connections, levels %v", key, len(set), c.levels)
			}
		}
		if total != c.total || most != c.most || total > 20 {
			t.Fatalf("counted %d, most %d; there are %d, most %d", c.total, c.most, total, most)
		}
	}
}

func TestListenerClosesWhoIsBeyondTheBound(t *testing.T) {
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newTestConnections(t, 0, 1).Limit(inner)
	accepted := make(chan net.Conn)
	go func() {
		defer close(accepted)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- conn
		}
	}()
	dial := func() net.Conn {
		conn, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	dial()
	first := <-accepted
	if n, err := dial().Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("the second connection read %d bytes: %v", n, err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	dial()
	third := <-accepted
	if err := errors.Join(third.Close(), l.Close()); err != nil {
		t.Error(err)
	}
	if _, open := <-accepted; open {
		t.Error("a fourth connection")
	}
}
