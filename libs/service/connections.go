package service

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// evictionSample is how many connections of an address are compared to find the one that was quiet longest.
const evictionSample = 64

// Connections bounds the open connections of one or more listeners, in all and for each address. Accepting never waits: a connection
// beyond the bound of its address is closed at once. When all places are taken, a newcomer takes one from the address that holds most,
// which loses the connection that was quiet longest, unless the newcomer's own address is that one: then the newcomer is closed. So
// nobody who holds many connections keeps out somebody who holds few.
type Connections struct {
	max, perAddress int
	refused         *prometheus.CounterVec
	began           time.Time

	mu     sync.Mutex
	total  int
	open   map[netip.Addr]map[*limitedConn]struct{}
	levels map[int]map[netip.Addr]struct{} // addresses by the number of their connections
	most   int                             // the highest level
}

// NewConnections returns a bound of max connections in all, and perAddress for each address; 0 stands for no bound. Addresses of IPv6
// count as one if they share their first 64 bits.
func NewConnections(maximum, perAddress int, reg prometheus.Registerer) (*Connections, error) {
	c := &Connections{
		max: maximum, perAddress: perAddress, began: time.Now(),
		open: make(map[netip.Addr]map[*limitedConn]struct{}), levels: make(map[int]map[netip.Addr]struct{}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "presence_connections_refused_total",
			Help: "Connections closed by the bounds, by reason: address (its own bound), full (of the address that holds most), evicted (for another address).",
		}, []string{"reason"}),
	}
	opened := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "presence_connections_open", Help: "Connections of callers that are open.",
	}, func() float64 {
		c.mu.Lock()
		defer c.mu.Unlock()
		return float64(c.total)
	})
	for _, each := range []prometheus.Collector{c.refused, opened} {
		if err := reg.Register(each); err != nil {
			return nil, fmt.Errorf("register the metrics of connections: %w", err)
		}
	}
	return c, nil
}

// Limit returns a listener whose connections count.
func (c *Connections) Limit(l net.Listener) net.Listener { return &limitedListener{l, c} }

type limitedListener struct {
	net.Listener
	connections *Connections
}

// Accept returns the next connection that is within the bounds.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if admitted := l.connections.admit(conn); admitted != nil {
			return admitted, nil
		}
		// Who is refused does not matter to others.
		_ = conn.Close()
	}
}

// AddressKey is what limits by address count by: the address, of IPv6 the first 64 bits, which are one caller's to choose from.
func AddressKey(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	if !addr.Is6() {
		return addr
	}
	prefix, err := addr.Prefix(64)
	if err != nil {
		return addr
	}
	return prefix.Addr()
}

func keyOf(addr net.Addr) netip.Addr {
	at, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return AddressKey(at.Addr())
}

// admit counts the connection, or returns nil if it is refused.
func (c *Connections) admit(conn net.Conn) net.Conn {
	l := &limitedConn{Conn: conn, connections: c, key: keyOf(conn.RemoteAddr())}
	l.read.Store(int64(time.Since(c.began)))
	c.mu.Lock()
	mine := len(c.open[l.key])
	if c.perAddress > 0 && mine >= c.perAddress {
		c.mu.Unlock()
		c.refused.WithLabelValues("address").Inc()
		return nil
	}
	var victim *limitedConn
	if c.max > 0 && c.total >= c.max {
		if mine+1 >= c.most {
			c.mu.Unlock()
			c.refused.WithLabelValues("full").Inc()
			return nil
		}
		victim = c.quietest()
		c.remove(victim)
	}
	c.add(l)
	c.mu.Unlock()
	if victim != nil {
		c.refused.WithLabelValues("evicted").Inc()
		// It is gone from the count, and nobody waits for how it ends.
		_ = victim.Conn.Close()
	}
	return l
}

// quietest returns the connection to be closed for another address.
func (c *Connections) quietest() *limitedConn {
	var found *limitedConn
	seen := 0
	for key := range c.levels[c.most] {
		for l := range c.open[key] {
			if found == nil || l.read.Load() < found.read.Load() {
				found = l
			}
			if seen++; seen == evictionSample {
				return found
			}
		}
	}
	return found
}

func (c *Connections) add(l *limitedConn) {
	set := c.open[l.key]
	if set == nil {
		set = make(map[*limitedConn]struct{})
		c.open[l.key] = set
	}
	c.level(l.key, len(set), len(set)+1)
	set[l] = struct{}{}
	c.total++
}

// remove does nothing if the connection is gone already.
func (c *Connections) remove(l *limitedConn) {
	set := c.open[l.key]
	if _, there := set[l]; !there {
		return
	}
	c.level(l.key, len(set), len(set)-1)
	if delete(set, l); len(set) == 0 {
		delete(c.open, l.key)
	}
	c.total--
}

// level moves an address from one number of connections to the next one up or down.
func (c *Connections) level(key netip.Addr, from, to int) {
	if delete(c.levels[from], key); len(c.levels[from]) == 0 {
		delete(c.levels, from)
	}
	if to > 0 {
		if c.levels[to] == nil {
			c.levels[to] = make(map[netip.Addr]struct{})
		}
		c.levels[to][key] = struct{}{}
	}
	if to > c.most || from == c.most && c.levels[from] == nil {
		c.most = to
	}
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	connections *Connections
	key         netip.Addr
	read        atomic.Int64 // when something was read last, since Connections began
	closed      atomic.Bool
}

// Read notes that the connection is in use.
func (l *limitedConn) Read(p []byte) (int, error) {
	n, err := l.Conn.Read(p)
	if n > 0 {
		l.read.Store(int64(time.Since(l.connections.began)))
	}
	return n, err
}

// Close gives the place back.
func (l *limitedConn) Close() error {
	if l.closed.CompareAndSwap(false, true) {
		l.connections.mu.Lock()
		l.connections.remove(l)
		l.connections.mu.Unlock()
	}
	err := l.Conn.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil // by an eviction
	}
	return err
}
