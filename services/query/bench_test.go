package query_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// constant is the least that a reader can do.
type constant struct {
	presencev1.UnimplementedStateServiceServer
	answer *presencev1.GetStatesResponse
}

func newConstant(b *testing.B) constant {
	b.Helper()
	fake := readertest.NewFake(1)
	fake.ApplyNodes(readertest.Healthy()...)
	fake.Apply(readertest.Connected("VIN0000001"))
	answer, err := fake.GetStates(b.Context(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: "VIN0000001"}}})
	if err != nil {
		b.Fatal(err)
	}
	return constant{answer: answer}
}

func (c constant) GetStates(context.Context, *presencev1.GetStatesRequest) (*presencev1.GetStatesResponse, error) {
	return c.answer, nil
}

// BenchmarkSeed compares the seed call with a handler that does nothing but write the same answer.
func BenchmarkSeed(b *testing.B) {
	b.Run("presence", func(b *testing.B) {
		s := serve(b, testConfig(b), newConstant(b))
		benchHTTP(b, s.service.HTTPAddr().String())
	})
	b.Run("bare net/http", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if _, err := w.Write([]byte(`{"online":true}`)); err != nil {
				b.Error(err)
			}
		})}
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		b.Cleanup(func() {
			if err := server.Close(); err != nil {
				b.Error(err)
			}
			<-served
		})
		benchHTTP(b, l.Addr().String())
	})
}

// benchHTTP sends requests over kept connections with the least that a client can do, so that the server's share is what differs.
func benchHTTP(b *testing.B, addr string) {
	b.Helper()
	request := []byte("GET /client-id/VIN0000001/status HTTP/1.1\r\nHost: presence\r\nAuthorization: " + basic("connect", password) + "\r\n\r\n")
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			b.Error(err)
			return
		}
		r := bufio.NewReader(conn)
		for pb.Next() {
			if err := roundTrip(conn, r, request); err != nil {
				b.Error(err)
				break
			}
		}
		if err := conn.Close(); err != nil {
			b.Error(err)
		}
	})
}

func roundTrip(conn net.Conn, r *bufio.Reader, request []byte) error {
	if _, err := conn.Write(request); err != nil {
		return err
	}
	const body = `{"online":true}`
	first := true
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && string(line) != "HTTP/1.1 200 OK\r\n" {
			return fmt.Errorf("answer %q", line)
		}
		first = false
		if len(line) == 2 {
			break
		}
	}
	got, err := r.Peek(len(body))
	if err != nil || string(got) != body {
		return fmt.Errorf("body %q: %w", got, err)
	}
	_, err = r.Discard(len(body))
	return err
}

type echo struct {
	presencev1.UnimplementedPresenceServiceServer

	answer *presencev1.GetStatusResponse
}

func (e echo) GetStatus(context.Context, *presencev1.GetStatusRequest) (*presencev1.GetStatusResponse, error) {
	return e.answer, nil
}

// BenchmarkGetStatus compares the gRPC call with a server that does nothing but return the same answer.
func BenchmarkGetStatus(b *testing.B) {
	reader := newConstant(b)
	s := serve(b, testConfig(b), reader)
	ctx := as(b, "connect")
	answer, err := s.rpc.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: "VIN0000001"})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("presence", func(b *testing.B) { benchGRPC(b, as(b, "connect"), s.rpc) })
	b.Run("bare grpc", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		server := grpc.NewServer()
		presencev1.RegisterPresenceServiceServer(server, echo{answer: answer})
		served := make(chan error, 1)
		go func() { served <- server.Serve(l) }()
		conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := conn.Close(); err != nil {
				b.Error(err)
			}
			server.Stop()
			if err := <-served; err != nil {
				b.Error(err)
			}
		})
		benchGRPC(b, as(b, "connect"), presencev1.NewPresenceServiceClient(conn))
	})
}

func benchGRPC(b *testing.B, ctx context.Context, c presencev1.PresenceServiceClient) {
	b.Helper()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		req := &presencev1.GetStatusRequest{ClientId: "VIN0000001"}
		for pb.Next() {
			answer, err := c.GetStatus(ctx, req)
			if err != nil || !answer.GetOnline() {
				b.Errorf("answer %v, error %v", answer, err)
				return
			}
		}
	})
}

// BenchmarkBatch asks for 1,000 clients over REST.
func BenchmarkBatch(b *testing.B) {
	fake := readertest.NewFake(16)
	fake.ApplyNodes(readertest.Healthy()...)
	ids, facts := devices(1000)
	fake.Apply(facts...)
	s := serve(b, testConfig(b), fake)
	body := batchBody(b, ids)
	b.ReportAllocs()
	for b.Loop() {
		if a := s.do("POST", "/v1/clients:batchGet", "read", body); a.status != http.StatusOK {
			b.Fatalf("%d %s", a.status, a.body)
		}
	}
}
