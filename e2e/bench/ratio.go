package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	goalSeed = 0.80
	goalGRPC = 0.90
)

// caller asks once, and returns an error if the answer is not that the client is online.
type caller func() error

// side is one of the two servers that are compared, with a caller for each goroutine.
type side struct {
	callers []caller
	rates   []float64     // of each round, in calls per second
	cpu     time.Duration // of this process, callers included
	delays  delays
}

// turn lets all callers ask for a time.
func (s *side) turn(ctx context.Context, d time.Duration) error {
	var wg sync.WaitGroup
	took := make([]delays, len(s.callers))
	errs := make([]error, len(s.callers))
	before, err := usageOf("self")
	if err != nil {
		return err
	}
	began := time.Now()
	for i, ask := range s.callers {
		wg.Go(func() {
			for last := time.Now(); last.Sub(began) < d && ctx.Err() == nil; {
				if errs[i] = ask(); errs[i] != nil {
					return
				}
				now := time.Now()
				took[i] = append(took[i], now.Sub(last))
				last = now
			}
		})
	}
	wg.Wait()
	elapsed, calls := time.Since(began), 0
	after, err := usageOf("self")
	if err != nil {
		return err
	}
	s.cpu += after.cpu - before.cpu
	for _, t := range took {
		calls += len(t)
		s.delays = append(s.delays, t...)
	}
	s.rates = append(s.rates, float64(calls)/elapsed.Seconds())
	return errors.Join(append(errs, ctx.Err())...)
}

// perCall is the CPU time of a call, with its caller's share.
func (s *side) perCall() time.Duration { return s.cpu / time.Duration(max(len(s.delays), 1)) }

// compare lets both sides take turns, so that what else the machine does meets both, and returns the median of the rounds' ratios.
func compare(ctx context.Context, cfg config, ours, bare *side) (float64, error) {
	for _, s := range []*side{ours, bare} {
		if err := s.turn(ctx, cfg.Round/10); err != nil { // to warm up
			return 0, err
		}
		s.rates, s.delays, s.cpu = nil, nil, 0
	}
	ratios := make([]float64, cfg.Rounds)
	for i := range ratios {
		if err := errors.Join(ours.turn(ctx, cfg.Round), bare.turn(ctx, cfg.Round)); err != nil {
			return 0, err
		}
		ratios[i] = ours.rates[i] / bare.rates[i]
	}
	return median(ratios), nil
}

// profileTurn profiles a side once its rounds are measured.
func (t *table) profileTurn(ctx context.Context, cfg config, name string, s *side) error {
	profiled := side{callers: s.callers}
	return t.profileHere(ctx, name, cfg.Profile, func(d time.Duration) error { return profiled.turn(ctx, d) })
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func (t *table) ratio(what, beside string, ours, bare *side, ratio, goal float64) {
	t.line(beside, fmt.Sprintf("%.0f/s, %v", median(bare.rates), bare.delays.sorted()), "", "")
	t.line(what, fmt.Sprintf("%.0f/s, %v", median(ours.rates), ours.delays.sorted()), "", "")
	t.result("  of the bare one", fmt.Sprintf("%.1f %%", 100*ratio), fmt.Sprintf("at least %.0f %%", 100*goal), ratio >= goal)
}

// online makes one client online, and returns its ID.
func (s *stack) online(ctx context.Context) (string, error) {
	if err := s.fill(ctx, 1); err != nil {
		return "", err
	}
	client, err := s.client()
	if err != nil {
		return "", err
	}
	id := clientID(0)
	err = await(ctx, "a client to be online", func(ctx context.Context) error {
		status, err := client.Status(ctx, id)
		if err == nil && !status.Confident() {
			err = fmt.Errorf("it is %v because of %s; stale: %v", status, status.Reason, status.Freshness.GetStaleReasons())
		}
		return err
	})
	return id, errors.Join(err, client.Close())
}

// measureSeed compares the short call with a handler that does nothing but write the same answer.
func measureSeed(ctx context.Context, cfg config, s *stack, t *table) (err error) {
	id, err := s.online(ctx)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		// A caller that has gone needs no answer; one that waits for it says that it did not come.
		_, _ = w.Write([]byte(seedAnswer))
	})}
	bareServer := start(func(context.Context) error {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	defer func() { err = errors.Join(err, server.Close(), bareServer.stop()) }()

	ours, closeOurs, err := httpSide(cfg.Callers, s.queryConf.HTTPAddr, id)
	defer closeOurs()
	if err != nil {
		return err
	}
	bare, closeBare, err := httpSide(cfg.Callers, l.Addr().String(), id)
	defer closeBare()
	if err != nil {
		return err
	}
	ratio, err := compare(ctx, cfg, ours, bare)
	if err == nil {
		err = t.profileTurn(ctx, cfg, "seed call", ours)
	}
	if err != nil {
		return err
	}
	t.ratio("seed call", "bare net/http handler", ours, bare, ratio, goalSeed)
	t.input(inREST, microseconds(ours.perCall()))
	return nil
}

const seedAnswer = `{"online":true}`

// httpSide opens a connection for each caller, with the least that a client can do, so that the server's share is what differs.
func httpSide(callers int, addr, id string) (*side, func(), error) {
	s := &side{}
	var conns []net.Conn
	closeAll := func() {
		for _, c := range conns {
			_ = c.Close() // nothing is under way on it
		}
	}
	request := []byte("GET /client-id/" + id + "/status HTTP/1.1\r\nHost: presence\r\nAuthorization: Basic " +
		base64.StdEncoding.EncodeToString([]byte(user+":"+password)) + "\r\n\r\n")
	for range callers {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, closeAll, fmt.Errorf("connect: %w", err)
		}
		conns = append(conns, conn)
		r := bufio.NewReader(conn)
		s.callers = append(s.callers, func() error { return roundTrip(conn, r, request) })
	}
	return s, closeAll, nil
}

func roundTrip(conn net.Conn, r *bufio.Reader, request []byte) error {
	if _, err := conn.Write(request); err != nil {
		return fmt.Errorf("ask: %w", err)
	}
	for first := true; ; first = false {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return fmt.Errorf("read the answer: %w", err)
		}
		if first && string(line) != "HTTP/1.1 200 OK\r\n" {
			return fmt.Errorf("the answer is %q", line)
		}
		if len(line) == 2 {
			break
		}
	}
	body, err := r.Peek(len(seedAnswer))
	if err != nil || string(body) != seedAnswer {
		return fmt.Errorf("the answer is %q: %w", body, err)
	}
	_, err = r.Discard(len(seedAnswer))
	return err
}

// bareService returns one answer.
type bareService struct {
	presencev1.UnimplementedPresenceServiceServer

	answer *presencev1.GetStatusResponse
}

func (b *bareService) GetStatus(context.Context, *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	return b.answer, nil
}

// measureGRPC compares GetStatus with a server that does nothing but return the same answer.
func measureGRPC(ctx context.Context, cfg config, s *stack, t *table) (err error) {
	id, err := s.online(ctx)
	if err != nil {
		return err
	}
	ours, rpc, closeOurs, err := grpcSide(ctx, cfg.Callers, s.queryConf.GRPCAddr, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeOurs()) }()
	answer, err := rpc.GetStatus(authorized(ctx), &presencev1.GetStatusRequest{ClientId: id})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	server := grpc.NewServer()
	presencev1.RegisterPresenceServiceServer(server, &bareService{answer: answer})
	bareServer := start(func(context.Context) error { return server.Serve(l) })
	defer func() {
		server.Stop()
		err = errors.Join(err, bareServer.stop())
	}()
	bare, _, closeBare, err := grpcSide(ctx, cfg.Callers, l.Addr().String(), id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeBare()) }()
	ratio, err := compare(ctx, cfg, ours, bare)
	if err == nil {
		err = t.profileTurn(ctx, cfg, "GetStatus", ours)
	}
	if err != nil {
		return err
	}
	t.ratio("GetStatus", "bare gRPC server", ours, bare, ratio, goalGRPC)
	t.input(inGRPC, microseconds(ours.perCall()))
	return nil
}

func authorized(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

const callTimeout = 5 * time.Second

// grpcSide opens one connection, which all callers share, as a service does.
func grpcSide(ctx context.Context, callers int, addr, id string) (*side, presencev1.PresenceServiceClient, func() error, error) {
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("connect: %w", err)
	}
	rpc := presencev1.NewPresenceServiceClient(conn)
	ctx = authorized(ctx)
	req := &presencev1.GetStatusRequest{ClientId: id}
	s := &side{}
	for range callers {
		s.callers = append(s.callers, func() error {
			// Both sides have a deadline, as the calls of presenceclient have.
			ctx, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			answer, err := rpc.GetStatus(ctx, req)
			if err != nil {
				return err
			}
			if !answer.GetOnline() || answer.GetStatus() != "online" {
				return fmt.Errorf("the answer is %v", answer)
			}
			return nil
		})
	}
	return s, rpc, conn.Close, nil
}
