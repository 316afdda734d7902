package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/eclipse/paho.golang/paho"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	drainCommand = "drain"
	drainClient  = "bench-drain"
	// The bridge reads these lifecycle events of AWS IoT, which any broker lets a client publish.
	drainRoot    = "$aws/events/presence/"
	drainExpiryS = 3600
	drainMaximum = 65_535
	// publishWindow is how many publications wait for their acknowledgement.
	publishWindow = 1_000
)

const mosquittoConf = `listener %s 127.0.0.1
allow_anonymous true
max_queued_messages 0
max_inflight_messages 0
log_dest stderr
log_type error
log_type warning
`

// measureBridge lets the bridge and a plain subscriber empty the queues of their sessions, which hold the same events, from the same Mosquitto.
func measureBridge(ctx context.Context, cfg config, t *tools, dir string, report *table) (err error) {
	program, err := exec.LookPath("mosquitto")
	if err != nil {
		if program, err = exec.LookPath("/usr/sbin/mosquitto"); err != nil {
			return fmt.Errorf("%w: mosquitto; install it", errMissing)
		}
	}
	binaries, err := t.build(ctx, "bridge")
	if err != nil {
		return err
	}
	k, err := t.startKafka(ctx, filepath.Join(dir, "kafka"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.stop()) }()
	ctx, cancel := k.whileAlive(ctx)
	defer cancel()
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("read a port: %w", err)
	}
	conf := filepath.Join(dir, "mosquitto.conf")
	if err := os.WriteFile(conf, fmt.Appendf(nil, mosquittoConf, port), 0o600); err != nil {
		return fmt.Errorf("write mosquitto's configuration: %w", err)
	}
	mosquitto, err := startProcess("mosquitto", dir, exec.Command(program, "-c", conf))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mosquitto.stop()) }()
	b := &bridgeRuns{arena: &arena{tools: t, cfg: cfg, dir: dir, kafka: k, report: report}, broker: mosquitto, addr: addr, binary: binaries[0]}
	return b.compare(ctx)
}

// bridgeRuns compares runs of the bridge with those of a plain subscriber.
type bridgeRuns struct {
	*arena
	broker *process
	addr   string
	binary string
}

func (b *bridgeRuns) compare(ctx context.Context) error {
	err := b.broker.await(ctx, "mosquitto", func(ctx context.Context) error {
		conn, err := connectMQTT(ctx, b.addr, "bench-probe")
		if conn != nil {
			_ = conn.Close() // whether it stands is all that counts
		}
		return err
	})
	if err != nil {
		return err
	}
	// The sessions begin, so that what is published waits in them.
	if err := errors.Join(b.drainOnce(ctx, 0, nil), b.bridgeOnce(ctx, 0, nil)); err != nil {
		return err
	}
	var plain, ours []cost
	var failed error
	for round := range b.cfg.Repeat {
		var p, o cost
		if p, o, failed = b.round(ctx, round); failed != nil {
			break
		}
		plain, ours = append(plain, p), append(ours, o)
	}
	if len(ours) == 0 {
		return failed
	}
	subscriber, bridge := medianCost(plain), medianCost(ours)
	b.report.line("published before, QoS 1", fmt.Sprintf("%d events, in the queues of two sessions of Mosquitto", b.cfg.Messages), "", "")
	b.report.cost("plain paho subscriber, count only", subscriber, 0)
	b.report.cost("bridge, MQTT to Kafka", bridge, 0)
	b.report.line("  of the plain subscriber", fmt.Sprintf("%.1f %%", 100*bridge.rate()/subscriber.rate()), "", "")
	b.report.input(inBridge, microseconds(bridge.perEvent()))
	b.report.input(inBridgeKafka, microseconds(bridge.kafka/time.Duration(bridge.events)))
	b.report.input(inBridgeRate, bridge.rate())
	return failed
}

// round lets both empty their queues, which are filled before.
func (b *bridgeRuns) round(ctx context.Context, i int) (plain, ours cost, err error) {
	b.report.progress("round %d: publishing %d events", i+1, b.cfg.Messages)
	if err := publishLifecycle(ctx, b.addr, i, b.cfg.Messages); err != nil {
		return plain, ours, err
	}
	if err := b.drainOnce(ctx, b.cfg.Messages, &plain); err != nil {
		return plain, ours, err
	}
	err = b.bridgeOnce(ctx, b.cfg.Messages, &ours)
	return plain, ours, err
}

// drainOnce runs the plain subscriber until it has received n events; 0: until it is subscribed.
func (b *bridgeRuns) drainOnce(ctx context.Context, n int, c *cost) (err error) {
	began := time.Now()
	p, err := startPeer(ctx, "drain", b.dir, b.child(drainCommand, "--addr", b.addr, "--events", strconv.Itoa(n)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if c == nil {
		return nil
	}
	c.events, c.seconds = int64(n), time.Since(began).Seconds()
	c.usage, err = p.usage()
	return err
}

// bridgeOnce runs the bridge until Kafka has n more client events; 0: until it is subscribed.
func (b *bridgeRuns) bridgeOnce(ctx context.Context, n int, c *cost) (err error) {
	admin, err := freeAddr()
	if err != nil {
		return err
	}
	want := int64(0)
	if n > 0 {
		if want, err = b.kafka.ends(ctx, eventlog.TopicClientEvents); err != nil {
			return err
		}
		want += int64(n)
	}
	before, err := b.kafka.usage()
	if err != nil {
		return err
	}
	began := time.Now()
	p, err := startProcess("bridge", b.dir, exec.Command(b.binary, "--mqtt-url", "mqtt://"+b.addr, "--mqtt-dialect", "aws", "--kafka-brokers", b.kafka.addr,
		"--kafka-partitions", strconv.Itoa(b.cfg.Partitions), "--kafka-replication-factor", "1", "--kafka-compression", "lz4",
		"--data-dir", filepath.Join(b.dir, "bridge"), "--admin-addr", admin, "--log-level", "warn"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.stop()) }()
	if n == 0 {
		return p.await(ctx, "the bridge", func(ctx context.Context) error {
			_, err := get(ctx, "http://"+admin+"/readyz")
			return err
		})
	}
	if err := p.await(ctx, "the events to be in Kafka", func(ctx context.Context) error {
		have, err := b.kafka.ends(ctx, eventlog.TopicClientEvents)
		if err == nil && have < want {
			err = fmt.Errorf("%d of %d are there", have, want)
		}
		return err
	}); err != nil {
		return err
	}
	c.events, c.seconds = int64(n), time.Since(began).Seconds()
	after, err := b.kafka.usage()
	if err != nil {
		return err
	}
	c.kafka = after.cpu - before.cpu
	c.usage, err = p.usage()
	return err
}

// packetConn is a connection for paho, which reads single bytes and writes a packet in pieces between Lock and Unlock: both are buffered, as without it
// the system calls would be half of what a plain subscriber costs.
type packetConn struct {
	net.Conn
	in *bufio.Reader

	mu  sync.Mutex
	out bytes.Buffer
}

func newPacketConn(c net.Conn) *packetConn {
	return &packetConn{Conn: c, in: bufio.NewReaderSize(c, 64<<10)}
}

func (c *packetConn) Read(p []byte) (int, error) { return c.in.Read(p) }

func (c *packetConn) Write(p []byte) (int, error) { return c.out.Write(p) }

func (c *packetConn) Lock() { c.mu.Lock() }

func (c *packetConn) Unlock() {
	defer c.mu.Unlock()
	if _, err := c.Conn.Write(c.out.Bytes()); err != nil {
		_ = c.Conn.Close() // the reader's error tells
	}
	c.out.Reset()
}

// drain is the plain subscriber: it counts, and its library acknowledges.
type drain struct {
	Addr   string `conf:"addr" usage:"MQTT broker"`
	Events int64  `conf:"events" usage:"events to receive; 0: only begin the session"`
}

func drainMain(ctx context.Context, args []string) error {
	var d drain
	if err := service.Load("bench "+drainCommand, args, nil, &d); err != nil {
		return err
	}
	conn, err := net.Dial("tcp", d.Addr)
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	var received atomic.Int64
	all := make(chan struct{})
	lost := make(chan error, 1)
	subscriber := paho.NewClient(paho.ClientConfig{
		ClientID: drainClient, Conn: newPacketConn(conn),
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(paho.PublishReceived) (bool, error) {
			if received.Add(1) == d.Events {
				close(all)
			}
			return true, nil
		}},
		OnClientError: func(err error) { lost <- err },
	})
	expiry, maximum := uint32(drainExpiryS), uint16(drainMaximum)
	began := time.Now()
	if _, err := subscriber.Connect(ctx, &paho.Connect{
		ClientID: drainClient, KeepAlive: bareKeepAliveS, Properties: &paho.ConnectProperties{SessionExpiryInterval: &expiry, ReceiveMaximum: &maximum},
	}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	if d.Events == 0 {
		if _, err := subscriber.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: drainRoot + "#", QoS: 1}}}); err != nil {
			return fmt.Errorf("subscribe: %w", err)
		}
	} else {
		select {
		case <-all:
		case err := <-lost:
			return fmt.Errorf("receive: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	took := time.Since(began)
	if err := done(received.Load(), took); err != nil {
		return err
	}
	if err := subscriber.Disconnect(&paho.Disconnect{}); err != nil {
		return fmt.Errorf("disconnect: %w", err)
	}
	return nil
}

// publishLifecycle publishes n events with QoS 1 and returns once the broker has acknowledged all of them.
func publishLifecycle(ctx context.Context, addr string, round, n int) (err error) {
	conn, err := connectMQTT(ctx, addr, "bench-publisher")
	if conn != nil {
		defer func() { err = errors.Join(err, conn.Close()) }()
	}
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	free := make(chan struct{}, publishWindow)
	acked := make(chan error, 1)
	go func() {
		r := bufio.NewReader(conn)
		var ack [4]byte
		for range n {
			if _, err := io.ReadFull(r, ack[:]); err != nil {
				acked <- fmt.Errorf("read an acknowledgement: %w", err)
				return
			}
			<-free
		}
		acked <- nil
	}()
	w := bufio.NewWriter(conn)
	var packet []byte
	for i := range n {
		select {
		case free <- struct{}{}:
		default:
			// The window is full: what is written must go out before more is.
			if err := w.Flush(); err != nil {
				return fmt.Errorf("publish: %w", err)
			}
			select {
			case free <- struct{}{}:
			case err := <-acked:
				return err
			}
		}
		topic, payload := lifecycle(round, i)
		packet = appendPublish(packet[:0], topic, payload, uint16(i%drainMaximum+1))
		if _, err := w.Write(packet); err != nil {
			return fmt.Errorf("publish: %w", err)
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("publish: %w", err)
	}
	return <-acked
}

// lifecycle is an event of one of many clients.
func lifecycle(round, i int) (topic, payload string) {
	id := fmt.Sprintf("bench-%d-%07d", round, i)
	return drainRoot + "connected/" + id, fmt.Sprintf(`{"clientId":%q,"timestamp":%d,"eventType":"connected","sessionIdentifier":"a4666d2a-7d84-4ae4-ac5d-%012d",`+
		`"principalIdentifier":"12345678901234567890123456789012","ipAddress":"192.0.2.1%02d","versionNumber":0}`, id, time.Now().UnixMilli(), i, i%100)
}

// appendPublish appends a PUBLISH of MQTT 3.1.1 with QoS 1.
func appendPublish(dst []byte, topic, payload string, id uint16) []byte {
	dst = append(dst, 0x32)
	dst = binary.AppendUvarint(dst, uint64(2+len(topic)+2+len(payload)))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(topic)))
	dst = append(dst, topic...)
	dst = binary.BigEndian.AppendUint16(dst, id)
	return append(dst, payload...)
}
