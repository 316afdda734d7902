package broker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/mqtt-presence/presence/services/presence/broker"
)

func TestHeartbeats(t *testing.T) {
	r := start(t, func(c *broker.Config) { c.HeartbeatInterval = 20 * time.Millisecond })
	r.read(t)
	retained := map[string]string{}
	for range 3 {
		pk := r.other(t)
		if !pk.FixedHeader.Retain {
			t.Errorf("%s is not retained", pk.TopicName)
		}
		retained[pk.TopicName] = string(pk.Payload)
	}
	if retained["$SYS/brokers"] != "presence@127.0.0.1" || retained[prefix+"version"] != "5.8.9" || !strings.Contains(retained[prefix+"sysdescr"], "mochi") {
		t.Errorf("retained messages %v", retained)
	}

	// A client that comes early is served once the broker is open, and after the first heartbeat.
	early := dial(t, r.addr, 4)
	early.write(connectPacket(connectOptions{id: "early"}))
	served := make(chan error, 1)
	go func() {
		_, err := early.read()
		served <- err
	}()
	select {
	case pk := <-r.others:
		t.Fatalf("%s before the broker was open", pk.TopicName)
	case <-served:
		t.Fatal("a client was served before the broker was open")
	case <-time.After(50 * time.Millisecond):
	}
	close(r.open)
	var started []int64
	for range 3 {
		up, now := r.other(t), r.other(t)
		if up.TopicName != prefix+"uptime" || now.TopicName != prefix+"datetime" {
			t.Fatalf("heartbeat of %s and %s", up.TopicName, now.TopicName)
		}
		uptime, err := strconv.ParseInt(string(up.Payload), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		at, err := time.Parse(time.RFC3339Nano, string(now.Payload))
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, at.UnixMilli()-uptime)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	e := r.want(t, "connected", "early", "")
	for _, s := range started {
		if s != started[0] || s > e.ConnectedAt {
			t.Errorf("generation began at %v, a client connected at %d", started, e.ConnectedAt)
		}
	}
}

// TestBridgeReconnects cuts the bridge's connection while events happen: none is lost.
func TestBridgeReconnects(t *testing.T) {
	r := start(t, nil)
	b := r.bridge(t)
	b.subscribe(1, "$SYS/brokers/+/clients/#")
	close(r.open)
	const clients = 300
	missing := map[string]bool{}
	ids := make(chan string, clients)
	for i := range clients {
		id := fmt.Sprintf("c%d", i)
		missing[id] = true
		ids <- id
	}
	close(ids)
	for range 4 {
		go func() {
			for id := range ids {
				c, err := net.Dial("tcp", r.addr)
				if err == nil {
					t.Cleanup(func() { _ = c.Close() })
					err = (&mqttConn{conn: c, version: 4}).send(connectPacket(connectOptions{id: id}))
				}
				if err != nil {
					t.Errorf("connect %s: %v", id, err)
				}
			}
		}()
	}
	for n := 0; len(missing) > 0; n++ {
		pk, err := b.read()
		if err != nil {
			t.Fatal(err)
		}
		if pk.FixedHeader.Type == packets.Suback && (pk.PacketID == 0 || pk.ReasonCodes[0] != 1) {
			t.Fatalf("subscription %d was answered with %#x, want 1", pk.PacketID, pk.ReasonCodes[0])
		}
		if pk.FixedHeader.Type != packets.Publish {
			continue
		}
		if n%10 == 9 {
			// Not acknowledged: it must come again. What was acknowledged is, once a PINGREQ sent after it is answered.
			b.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingreq}})
			for answered := false; !answered; {
				p, err := b.read()
				if err != nil {
					t.Fatal(err)
				}
				answered = p.FixedHeader.Type == packets.Pingresp
			}
			_ = b.conn.Close()
			b = r.bridge(t)
			b.write(packets.Packet{
				FixedHeader: packets.FixedHeader{Type: packets.Subscribe, Qos: 1},
				PacketID:    pk.PacketID, // which is in use in the other direction
				Filters:     packets.Subscriptions{{Filter: "$SYS/brokers/+/clients/#", Qos: 1}},
			})
			continue
		}
		b.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: pk.PacketID})
		var e event
		if err := json.Unmarshal(pk.Payload, &e); err != nil {
			t.Fatal(err)
		}
		delete(missing, e.ClientID)
	}
}

// TestWindow leaves as many messages unacknowledged as the bridge allows, and no more.
func TestWindow(t *testing.T) {
	r := start(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	pipe, err := r.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const window, clients = 5, 60
	b := newConn(t, pipe, 5)
	b.connect(connectOptions{id: "bridge", resume: true, sessionExpiry: 60, receiveMaximum: window})
	b.subscribe(1, "$SYS/brokers/+/clients/#")
	close(r.open)
	for i := range clients {
		dial(t, r.addr, 4).connect(connectOptions{id: fmt.Sprintf("c%d", i)})
	}
	var unacknowledged []uint16
	for range clients {
		unacknowledged = append(unacknowledged, b.mustRead(packets.Publish).PacketID)
		if len(unacknowledged) < window {
			continue
		}
		if err := pipe.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.r.Peek(1); err == nil {
			t.Fatalf("a message came while %d were unacknowledged", window)
		}
		for _, id := range unacknowledged {
			b.write(packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: id})
		}
		unacknowledged = nil
	}
}

// TestDrops_H11_H12 fills the queue while the bridge acknowledges nothing.
func TestDrops_H11_H12(t *testing.T) {
	drops := make(chan broker.Drop, 1000)
	r := start(t, func(c *broker.Config) {
		c.QueueLimit = 10
		c.OnDrop = func(d broker.Drop) { drops <- d }
	})
	close(r.open) // without a bridge: everything waits in the queue
	before := time.Now().Add(-time.Second)
	const clients = 40
	for i := range clients {
		dial(t, r.addr, 4).connect(connectOptions{id: fmt.Sprintf("c%d", i)})
	}
	b := r.bridge(t)
	b.subscribe(1, "$SYS/brokers/+/clients/#")
	go r.pump(b)

	lost, got := 0, 0
	for lost+got < clients {
		select {
		case d := <-drops:
			lost += d.Count
			if d.From.Before(before) || d.To.Before(d.From) || d.To.After(time.Now()) {
				t.Errorf("drop %+v", d)
			}
		case <-r.events:
			got++
		case <-time.After(patience):
			t.Fatalf("%d events came and %d were reported as lost, want %d in all", got, lost, clients)
		}
	}
	if lost == 0 || got == 0 {
		t.Errorf("%d events came, %d were lost, want some of both", got, lost)
	}
}

// TestStop stops the broker under clients: all of them are told as gone, in time.
func TestStop(t *testing.T) {
	r := ready(t, nil)
	const clients = 100
	for i := range clients {
		dial(t, r.addr, 5).connect(connectOptions{id: fmt.Sprintf("c%d", i)})
		r.next(t)
	}
	began := time.Now()
	r.stop()
	for range clients {
		if e := r.next(t); e.Kind != "disconnected" || e.Reason != "server_shutting_down" {
			t.Fatalf("got %s (%s)", e.Kind, e.Reason)
		}
	}
	err := <-r.done
	if took := time.Since(began); err != nil || took > 2*time.Second {
		t.Errorf("Run returned %v after %v", err, took)
	}
	r.done <- nil
	if _, err := r.Dial(context.Background()); err == nil {
		t.Error("Dial succeeds after the end")
	}
}
