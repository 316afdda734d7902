//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// crowdWorkers is how many clients act at the same time.
const crowdWorkers = 24

// crowd is clients that come and go at a steady pace: they disconnect, are killed, and take their own connections over.
type crowd struct {
	addr    string
	members []*member
	stop    context.CancelFunc
	done    sync.WaitGroup

	events  atomic.Int64 // beginnings and ends of connections that the broker has seen, as far as the clients can tell
	refused atomic.Int64 // connects that did not succeed: the broker is away
	late    atomic.Int64 // nanoseconds by which the latest event missed its time
}

type member struct {
	id   string
	conn net.Conn // nil if the client has ended it, or the broker was seen to have
}

// startCrowd lets clients make that many events a second.
func startCrowd(t *testing.T, addr string, clients int, rate float64, seed uint64) *crowd {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	c := &crowd{addr: addr, stop: cancel}
	for i := range clients {
		c.members = append(c.members, &member{id: fmt.Sprintf("chaos-%05d", i)})
	}
	t.Cleanup(func() {
		c.finish()
		for _, m := range c.members {
			if m.conn != nil {
				_ = m.conn.Close()
			}
		}
	})
	began := time.Now()
	for w := range crowdWorkers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		c.done.Go(func() {
			for done := 0; ctx.Err() == nil; {
				due := began.Add(time.Duration(float64(done*crowdWorkers+w) / rate * float64(time.Second)))
				if !waitUntil(ctx, due) {
					return
				}
				c.late.Store(int64(time.Since(due)))
				if time.Since(due) > time.Second {
					// What was missed is not made up for: the pace is a bound.
					done += int(time.Since(due).Seconds() * rate / crowdWorkers)
				}
				n := c.act(c.members[rng.IntN(len(c.members)/crowdWorkers)*crowdWorkers+w], rng)
				c.events.Add(int64(n))
				done += max(1, n)
			}
		})
	}
	return c
}

// waitUntil reports false if the context ended before.
func waitUntil(ctx context.Context, at time.Time) bool {
	timer := time.NewTimer(time.Until(at))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// act has a client do something, and returns how many events that makes.
func (c *crowd) act(m *member, rng *rand.Rand) int {
	old := m.conn
	what := rng.IntN(10)
	if old != nil && what < 7 {
		m.conn = nil
		events := 1
		if what < 4 {
			if _, err := old.Write([]byte{0xe0, 0}); err != nil {
				events = 0
			}
		}
		_ = old.Close()
		return events
	}
	conn, err := dialBare(c.addr, m.id)
	if err != nil {
		c.refused.Add(1)
		if old != nil {
			// The broker may have accepted it all the same, and then it has ended the old one.
			_ = old.Close()
		}
		m.conn = nil
		return 0
	}
	m.conn = conn
	if old != nil {
		_ = old.Close()
		return 2
	}
	return 1
}

// dialBare connects an MQTT 3.1.1 client with as few instructions as possible.
func dialBare(addr, id string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: callTimeout, KeepAlive: -1}).Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	packet := append(make([]byte, 0, 64), 0x10, byte(12+len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2)
	packet = binary.BigEndian.AppendUint16(packet, keepAliveS)
	packet = append(binary.BigEndian.AppendUint16(packet, uint16(len(id))), id...)
	var ack [4]byte
	if err = conn.SetDeadline(time.Now().Add(callTimeout)); err == nil {
		_, err = conn.Write(packet)
	}
	if err == nil {
		_, err = io.ReadFull(conn, ack[:])
	}
	if err == nil && (ack[0] != 0x20 || ack[3] != 0) {
		err = fmt.Errorf("the broker refuses client %s: %x", id, ack)
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// finish ends the coming and going; who is connected stays so.
func (c *crowd) finish() {
	c.stop()
	c.done.Wait()
}

// truth asks the broker on every connection whether it is there.
func (c *crowd) truth() map[string]bool {
	online := make(map[string]bool, len(c.members))
	for _, m := range c.members {
		online[m.id] = m.alive()
		if !online[m.id] && m.conn != nil {
			_ = m.conn.Close()
			m.conn = nil
		}
	}
	return online
}

func (m *member) alive() bool {
	if m.conn == nil || m.conn.SetDeadline(time.Now().Add(callTimeout)) != nil {
		return false
	}
	var pong [2]byte
	if _, err := m.conn.Write([]byte{0xc0, 0}); err != nil {
		return false
	}
	_, err := io.ReadFull(m.conn, pong[:])
	return err == nil && pong[0] == 0xd0
}
