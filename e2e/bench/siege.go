package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	siegeCommand = "siege"
	siegeReady   = "under way"
	// drip is the time between two bytes of a header that never ends.
	drip = time.Second
	// siegeAddresses is how many addresses the connections come from that do nothing useful: a free port is found slowly where thousands
	// are taken.
	siegeAddresses = 64
	flooder        = "flooder"
)

// siege is what a hostile network does to a query service.
type siege struct {
	HTTPAddr string `conf:"http-addr" usage:"address of the REST calls"`
	GRPCAddr string `conf:"grpc-addr" usage:"address of the gRPC calls"`
	Client   string `conf:"client" usage:"client that is asked for"`
	Idle     int    `conf:"idle" usage:"connections that say nothing"`
	Slow     int    `conf:"slow" usage:"connections that send a header a byte a second"`
	Floods   int    `conf:"floods" usage:"connections over which one account asks without pause, as many again over gRPC"`
}

// siegeMain runs until standard input ends, and says when everything is under way.
func siegeMain(ctx context.Context, args []string) error {
	var s siege
	if err := service.Load("bench "+siegeCommand, args, nil, &s); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, os.Stdin) // its end is what counts
	}()
	asked, err := s.run(ctx, func() error {
		_, err := fmt.Println(siegeReady)
		return err
	})
	if err != nil {
		return err
	}
	_, err = fmt.Println(asked)
	return err
}

// start runs the siege in a process of its own, which has its own bound of open files, and returns what ends it and tells how often it has asked. The
// process is the last to get a processor: a besieger brings his own, and only what he makes the service do is to be measured.
func (s siege) start(ctx context.Context) (stop func() (asked int64, err error), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	cmd := exec.CommandContext(ctx, "nice", "-n", "19", self, siegeCommand, "--http-addr", s.HTTPAddr, "--grpc-addr", s.GRPCAddr, "--client", s.Client,
		"--idle", fmt.Sprint(s.Idle), "--slow", fmt.Sprint(s.Slow), "--floods", fmt.Sprint(s.Floods))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the siege: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the siege: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the siege: %w", err)
	}
	said := bufio.NewReader(out)
	stop = func() (asked int64, err error) {
		err = in.Close()
		line, failed := said.ReadString('\n')
		if failed == nil {
			asked, failed = strconv.ParseInt(strings.TrimSpace(line), 10, 64)
		}
		return asked, errors.Join(err, failed, cmd.Wait())
	}
	if line, err := said.ReadString('\n'); err != nil || strings.TrimSpace(line) != siegeReady {
		_, failed := stop()
		return nil, errors.Join(fmt.Errorf("wait for the siege, which said %q: %w", line, err), failed)
	}
	return stop, nil
}

// startHere runs the siege in this process.
func (s siege) startHere(ctx context.Context) (stop func() (asked int64, err error), err error) {
	ready := make(chan struct{})
	var asked int64
	laid := start(func(ctx context.Context) (err error) {
		asked, err = s.run(ctx, func() error { close(ready); return nil })
		return err
	})
	stop = func() (int64, error) {
		err := laid.stop()
		return asked, err
	}
	select {
	case <-ready:
		return stop, nil
	case <-laid.done:
		_, err := stop()
		return nil, err
	case <-ctx.Done():
		_, err := stop()
		return nil, errors.Join(ctx.Err(), err)
	}
}

// run lays the siege until ctx ends, and returns how often it has asked since ready was called, which is when all of it is under way.
func (s siege) run(ctx context.Context, ready func() error) (asked int64, err error) {
	var asks atomic.Int64
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var open atomic.Int64
	hold := func(i int, keep func(ctx context.Context, conn net.Conn)) {
		wg.Go(func() {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, byte(1+i%siegeAddresses))}}
			for first := true; ctx.Err() == nil; first = false {
				conn, err := dialer.DialContext(ctx, "tcp", s.HTTPAddr)
				if first {
					open.Add(1)
				}
				if err == nil {
					gone := context.AfterFunc(ctx, func() { _ = conn.Close() })
					keep(ctx, conn)
					gone()
					_ = conn.Close() // the other side may have closed it
				}
			}
		})
	}
	want := int64(s.Idle + s.Slow)
	for i := range s.Idle + s.Slow {
		if i < s.Idle {
			hold(i, keepIdle)
		} else {
			hold(i, keepSlow)
		}
		// Not all at once: the backlog of a listener is short.
		if err := await(ctx, "connections", func(context.Context) error {
			if int64(i)-open.Load() > 64 {
				return errors.New("they are being opened")
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	if err := await(ctx, "connections", func(context.Context) error {
		if n := open.Load(); n < want {
			return fmt.Errorf("%d of %d are open", n, want)
		}
		return nil
	}); err != nil {
		return 0, err
	}
	if err := s.flood(ctx, &wg, &asks); err != nil {
		return 0, err
	}
	before := asks.Load()
	if err := ready(); err != nil {
		return 0, fmt.Errorf("say that the siege is under way: %w", err)
	}
	<-ctx.Done()
	return asks.Load() - before, nil
}

// keepIdle waits for the end of the connection.
func keepIdle(_ context.Context, conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// keepSlow sends a header that never ends.
func keepSlow(ctx context.Context, conn net.Conn) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: presence\r\nX: "); err != nil {
		return
	}
	tick := time.NewTicker(drip)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := io.WriteString(conn, "x"); err != nil {
			return
		}
	}
}

// flood asks as one account, over many connections, each without pause, and counts the answers.
func (s siege) flood(ctx context.Context, wg *sync.WaitGroup, asked *atomic.Int64) error {
	authorization := "Basic " + base64.StdEncoding.EncodeToString([]byte(flooder+":"+password))
	transport := &http.Transport{MaxIdleConnsPerHost: s.Floods, MaxConnsPerHost: s.Floods}
	conn, err := grpc.NewClient(s.GRPCAddr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	rpc := presencev1.NewPresenceServiceClient(conn)
	asking := metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
	for range s.Floods {
		wg.Go(func() {
			for ctx.Err() == nil {
				r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.HTTPAddr+"/client-id/"+s.Client+"/status", nil)
				if err != nil {
					return
				}
				r.Header.Set("Authorization", authorization)
				response, err := transport.RoundTrip(r)
				if err != nil {
					continue
				}
				_, _ = io.Copy(io.Discard, response.Body)
				_ = response.Body.Close()
				asked.Add(1)
			}
		})
		wg.Go(func() {
			for ctx.Err() == nil {
				// Most of the answers are that the rate is used up.
				_, _ = rpc.GetStatus(asking, &presencev1.GetStatusRequest{ClientId: s.Client})
				asked.Add(1)
			}
		})
	}
	wg.Go(func() {
		<-ctx.Done()
		transport.CloseIdleConnections()
		_ = conn.Close()
	})
	return nil
}
