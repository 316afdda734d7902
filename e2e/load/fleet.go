package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// keepAliveS is longer than a run, so that clients need not ping.
	keepAliveS = 3600
	ioTimeout  = 30 * time.Second
	// spareFiles are those that a process needs besides the clients' sockets.
	spareFiles = 200
)

// fleet is many MQTT 3.1.1 clients: connections that nobody reads, one socket and no goroutine each.
type fleet struct {
	addr  string
	ids   []string
	conns []net.Conn
}

func newFleet(addr string, clients int) *fleet {
	f := &fleet{addr: addr, ids: make([]string, clients), conns: make([]net.Conn, clients)}
	run := strconv.FormatInt(time.Now().UnixNano(), 36)
	for i := range f.ids {
		f.ids[i] = fmt.Sprintf("load-%s-%07d", run, i)
	}
	return f
}

// checkFiles wants a limit of open files that suffices. Go has raised the soft limit to the hard one.
func checkFiles(clients int) error {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("read the limit of open files: %w", err)
	}
	if need := uint64(clients + spareFiles); limit.Max < need {
		return fmt.Errorf("the limit of open files is %d, %d clients need %d: raise it with 'ulimit -Hn %d' as root, or give fewer --clients", limit.Max, clients, need, need)
	}
	return nil
}

// open connects client i; it returns once the broker has accepted it.
func (f *fleet) open(ctx context.Context, i int) error {
	conn, err := (&net.Dialer{Timeout: ioTimeout, KeepAlive: -1}).DialContext(ctx, "tcp", f.addr)
	if err != nil {
		return fmt.Errorf("connect client %s: %w", f.ids[i], err)
	}
	f.conns[i] = conn
	id := f.ids[i]
	packet := make([]byte, 0, 64)
	packet = append(packet, 0x10, byte(12+len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2)
	packet = binary.BigEndian.AppendUint16(packet, keepAliveS)
	packet = append(binary.BigEndian.AppendUint16(packet, uint16(len(id))), id...)
	var ack [4]byte
	err = conn.SetDeadline(time.Now().Add(ioTimeout))
	if err == nil {
		_, err = conn.Write(packet)
	}
	if err == nil {
		_, err = io.ReadFull(conn, ack[:])
	}
	if err == nil && (ack[0] != 0x20 || ack[3] != 0) {
		err = fmt.Errorf("the broker refuses it: %x", ack)
	}
	if err != nil {
		return fmt.Errorf("connect client %s: %w", id, err)
	}
	return nil
}

// connect connects the clients from first up to before last, at most rate per second if it is not 0.
func (f *fleet) connect(ctx context.Context, first, last, workers, rate int) error {
	began := time.Now()
	return each(ctx, first, last, workers, func(ctx context.Context, i int) error {
		if rate > 0 {
			if err := until(ctx, began.Add(time.Duration(i-first)*time.Second/time.Duration(rate))); err != nil {
				return err
			}
		}
		return f.open(ctx, i)
	})
}

// disconnect ends all connections in order.
func (f *fleet) disconnect(ctx context.Context, workers int) error {
	return each(ctx, 0, len(f.ids), workers, func(_ context.Context, i int) error {
		conn := f.conns[i]
		f.conns[i] = nil
		_, err := conn.Write([]byte{0xe0, 0})
		if err := errors.Join(err, conn.Close()); err != nil {
			return fmt.Errorf("disconnect client %s: %w", f.ids[i], err)
		}
		return nil
	})
}

// close closes what is still open.
func (f *fleet) close() {
	for _, c := range f.conns {
		if c != nil {
			// The run is over or has failed already.
			_ = c.Close()
		}
	}
}

// each calls do for first up to before last, from several goroutines, until one fails.
func each(ctx context.Context, first, last, workers int, do func(ctx context.Context, i int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	next := atomic.Int64{}
	next.Store(int64(first))
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= last {
					return
				}
				if err := do(ctx, i); err != nil {
					cancel(err)
				}
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// until waits for a time.
func until(ctx context.Context, at time.Time) error {
	wait := time.Until(at)
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
