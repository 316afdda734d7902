package broker

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"
)

// Config says where the broker listens and how it tells about its clients.
type Config struct {
	// Addr is the listen address for MQTT over TCP, host:port.
	Addr string
	// WSAddr is the listen address for MQTT over WebSocket, host:port; empty: none.
	WSAddr string
	// Node is the broker's name in topics, stable over restarts.
	Node string
	// HeartbeatInterval is the time between two uptime and datetime messages.
	HeartbeatInterval time.Duration
	// QueueLimit is how many messages may wait for the bridge.
	QueueLimit int
	// Open is closed once the bridge's subscription stands; no client is served before.
	Open <-chan struct{}
	// OnDrop is told, from one goroutine, that events between two times on the broker's clock were lost because the queue was full. It
	// may be nil.
	OnDrop func(Drop)
	// LateDisconnects is for tests. A connection that is taken over reports its end itself, once its handler is done: always after its
	// successor has reported its beginning, and with a stamp that is not before it. Brokers that publish each event from a task of its own
	// behave like that.
	LateDisconnects bool
}

// Drop is a number of events that were lost, and when.
type Drop struct {
	Count    int
	From, To time.Time
}

// DefaultConfig listens on MQTT's port on loopback.
func DefaultConfig() Config {
	return Config{
		Addr:              "127.0.0.1:1883",
		Node:              "presence@127.0.0.1",
		HeartbeatInterval: 5 * time.Second,
		QueueLimit:        200_000,
	}
}

// Validate reports every field that cannot be used.
func (c Config) Validate() error {
	var errs []error
	if _, _, err := net.SplitHostPort(c.Addr); err != nil {
		errs = append(errs, fmt.Errorf("broker address %q is not host:port: %w", c.Addr, err))
	}
	if c.WSAddr != "" {
		if _, _, err := net.SplitHostPort(c.WSAddr); err != nil {
			errs = append(errs, fmt.Errorf("broker websocket address %q is not host:port: %w", c.WSAddr, err))
		}
	}
	if c.Node == "" || strings.ContainsAny(c.Node, "/+#,\x00") {
		errs = append(errs, fmt.Errorf("broker node %q cannot be a topic level; use name@host", c.Node))
	}
	if c.HeartbeatInterval <= 0 {
		errs = append(errs, fmt.Errorf("broker heartbeat interval %v is not positive", c.HeartbeatInterval))
	}
	if c.QueueLimit < 1 {
		errs = append(errs, fmt.Errorf("broker queue limit %d is less than 1", c.QueueLimit))
	}
	if c.Open == nil {
		errs = append(errs, errors.New("broker open channel is missing; without it no client would ever be served"))
	}
	return errors.Join(errs...)
}
