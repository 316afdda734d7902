package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"
)

const (
	goalVisible      = 10 * time.Millisecond
	goalVisibleRatio = 1.5
	// visibleRounds is how often both sides take turns.
	visibleRounds = 5
	settleTime    = time.Second
	// inFlight bounds the clients that are awaited at once.
	inFlight = 256
	// minPoll is the time between two questions for one client; it is a tenth of the delay so far where that is more.
	minPoll = 500 * time.Microsecond
	ioLimit = 30 * time.Second
	// fleetKeepAliveS is longer than a run, so that clients need not ping.
	fleetKeepAliveS = 3600
)

// visibleSide is something that clients connect to and that is asked for them.
type visibleSide struct {
	name  string
	mqtt  string
	web   string
	admin string // of ours
	took  delays
	p     *process
}

// measureVisible compares the time from CONNECT to the answer that says online with a bare path of the same broker, the same Kafka and a consumer.
func measureVisible(ctx context.Context, cfg config, t *tools, dir string, report *table) (err error) {
	binaries, err := t.build(ctx, "presence")
	if err != nil {
		return err
	}
	embedded := compareVisible(ctx, cfg, t, binaries[0], filepath.Join(dir, "embedded"), "", "embedded Kafka", report)
	k, err := t.startKafka(ctx, filepath.Join(dir, "kafka"))
	if err != nil {
		return errors.Join(embedded, err)
	}
	defer func() { err = errors.Join(err, k.stop()) }()
	ctx, cancel := k.whileAlive(ctx)
	defer cancel()
	return errors.Join(embedded, compareVisible(ctx, cfg, t, binaries[0], filepath.Join(dir, "real"), k.addr, "real Kafka", report))
}

func compareVisible(ctx context.Context, cfg config, t *tools, binary, dir, brokers, name string, report *table) (err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	ours, err := startPresence(ctx, binary, dir, brokers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ours.p.stop()) }()
	bare, err := t.startBare(ctx, dir, brokers)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bare.p.stop()) }()
	for round := range visibleRounds {
		for _, side := range []*visibleSide{bare, ours} {
			report.progress("%s, %s, round %d", name, side.name, round+1)
			took, err := connectAndAsk(ctx, side, fmt.Sprintf("v%d", round), max(1, cfg.Connects/visibleRounds), cfg.Rate)
			if err != nil {
				return fmt.Errorf("%s, %s: %w", name, side.name, err)
			}
			if round > 0 { // the first one warms up
				side.took = append(side.took, took...)
			}
			// That its clients have gone must not meet the other.
			if err := until(ctx, time.Now().Add(settleTime)); err != nil {
				return err
			}
		}
	}
	if cfg.Profile > 0 {
		taken := profileOf(ctx, ours.p, ours.admin, dir, cfg.Profile)
		_, err := connectAndAsk(ctx, ours, "profiled", cfg.Rate*int(cfg.Profile.Seconds()), cfg.Rate)
		top, failed := taken.top(ctx)
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		report.profile("visible, "+name, top)
	}
	report.line("bare path, "+name, fmt.Sprintf("%v, %d clients at %d/s", bare.took.sorted(), len(bare.took), cfg.Rate), "", "")
	p99 := ours.took.sorted().at(0.99)
	report.result("connect to visible, "+name, fmt.Sprintf("%v", ours.took), fmt.Sprintf("p99 under %v", goalVisible), p99 < goalVisible)
	ratio := float64(p99) / float64(bare.took.at(0.99))
	report.result("  p99 of the bare one", fmt.Sprintf("%.2f times", ratio), fmt.Sprintf("within %.1f times", goalVisibleRatio), ratio <= goalVisibleRatio)
	return nil
}

// startPresence starts the all-in-one, with a Kafka elsewhere if it is given.
func startPresence(ctx context.Context, binary, dir, brokers string) (*visibleSide, error) {
	accounts := filepath.Join(dir, "accounts")
	if err := os.WriteFile(accounts, []byte(account), 0o600); err != nil {
		return nil, fmt.Errorf("write the accounts: %w", err)
	}
	args := []string{"--data-dir", filepath.Join(dir, "presence"), "--accounts-file", accounts, "--log-level", "warn", "--state-addr="}
	addrs := map[string]string{}
	for _, name := range []string{"mqtt", "http", "grpc", "admin", "kafka"} {
		addr, err := freeAddr()
		if err != nil {
			return nil, err
		}
		addrs[name] = addr
		args = append(args, "--"+name+"-addr", addr)
	}
	if brokers != "" {
		args = append(args, "--kafka-brokers", brokers, "--kafka-replication-factor", "1")
	}
	p, err := startProcess("presence", dir, exec.Command(binary, args...))
	if err != nil {
		return nil, err
	}
	err = p.await(ctx, "presence", func(ctx context.Context) error {
		_, err := get(ctx, "http://"+addrs["admin"]+"/readyz")
		return err
	})
	if err != nil {
		return nil, errors.Join(err, p.stop())
	}
	return &visibleSide{name: "presence", mqtt: addrs["mqtt"], web: addrs["http"], admin: addrs["admin"], p: p}, nil
}

// connectAndAsk connects clients at a rate, and asks for each on its own until it is online. The delay counts from before the connection is
// opened to the answer, and is up to a tenth too long. At the end all disconnect.
func connectAndAsk(ctx context.Context, side *visibleSide, name string, n, rate int) (delays, error) {
	ctx, cancel := context.WithTimeout(ctx, ioLimit+time.Duration(n)*time.Second/time.Duration(rate))
	defer cancel()
	callers := make(chan *webCaller, inFlight)
	conns := make([]net.Conn, 0, inFlight+n)
	defer func() {
		for _, c := range conns {
			_ = c.Close() // nothing is under way on it
		}
	}()
	for range inFlight {
		conn, err := net.Dial("tcp", side.web)
		if err != nil {
			return nil, fmt.Errorf("connect: %w", err)
		}
		conns = append(conns, conn)
		callers <- newWebCaller(conn, user, password)
	}
	var mu sync.Mutex
	var took delays
	var errs []error
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		if err := until(ctx, begin.Add(time.Duration(i)*time.Second/time.Duration(rate))); err != nil {
			errs = append(errs, err)
			break
		}
		var caller *webCaller
		select {
		case caller = <-callers:
		case <-ctx.Done():
		}
		if caller == nil {
			break
		}
		wg.Go(func() {
			conn, d, err := becomeVisible(ctx, side.mqtt, fmt.Sprintf("bench-%s-%06d", name, i), caller)
			callers <- caller
			mu.Lock()
			defer mu.Unlock()
			if conn != nil {
				conns = append(conns, conn)
			}
			if err != nil {
				errs = append(errs, err)
				return
			}
			took = append(took, d)
		})
	}
	wg.Wait()
	return took, errors.Join(append(errs, ctx.Err())...)
}

func becomeVisible(ctx context.Context, addr, id string, caller *webCaller) (net.Conn, time.Duration, error) {
	began := time.Now()
	conn, err := connectMQTT(ctx, addr, id)
	if err != nil {
		return conn, 0, err
	}
	for {
		online, err := caller.online(id)
		d := time.Since(began)
		if err != nil || online {
			return conn, d, err
		}
		// Later answers are asked for less often, so that the questions do not become the load.
		if err := until(ctx, time.Now().Add(max(d/10, minPoll))); err != nil {
			return conn, 0, fmt.Errorf("client %s is not online: %w", id, err)
		}
	}
}

// connectMQTT opens an MQTT 3.1.1 connection that nobody reads.
func connectMQTT(ctx context.Context, addr, id string) (net.Conn, error) {
	conn, err := (&net.Dialer{Timeout: ioLimit, KeepAlive: -1}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect client %s: %w", id, err)
	}
	packet := append(make([]byte, 0, 64), 0x10, byte(12+len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2)
	packet = binary.BigEndian.AppendUint16(packet, fleetKeepAliveS)
	packet = append(binary.BigEndian.AppendUint16(packet, uint16(len(id))), id...)
	var ack [4]byte
	if err = conn.SetDeadline(time.Now().Add(ioLimit)); err == nil {
		_, err = conn.Write(packet)
	}
	if err == nil {
		_, err = io.ReadFull(conn, ack[:])
	}
	if err == nil && (ack[0] != 0x20 || ack[3] != 0) {
		err = fmt.Errorf("the broker refuses it: %x", ack)
	}
	if err != nil {
		return conn, fmt.Errorf("connect client %s: %w", id, err)
	}
	return conn, nil
}
