package main

import (
	"context"
	"io"
	"net"
	"testing"
	"time"
)

// TestPublishLifecycle publishes to a listener that acknowledges everything, and compares what it has got.
func TestPublishLifecycle(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	const n = 3_000
	got := make(chan error, 1)
	received := 0
	go func() {
		got <- func() error {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			connect := make([]byte, 14+len("bench-publisher"))
			if _, err := io.ReadFull(conn, connect); err != nil {
				return err
			}
			if _, err := conn.Write([]byte{0x20, 2, 0, 0}); err != nil {
				return err
			}
			topic, payload := lifecycle(1, 0)
			packet := make([]byte, len(appendPublish(nil, topic, payload, 1)))
			id := 3 + 2 + len(topic) // behind header, two bytes of length, and the topic
			for range n {
				if _, err := io.ReadFull(conn, packet); err != nil {
					return err
				}
				received++
				if _, err := conn.Write([]byte{0x40, 2, packet[id], packet[id+1]}); err != nil {
					return err
				}
			}
			return conn.Close()
		}()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := publishLifecycle(ctx, l.Addr().String(), 1, n); err != nil {
		t.Error(err)
	}
	if err := <-got; err != nil || received != n {
		t.Errorf("%d of %d, error %v", received, n, err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
