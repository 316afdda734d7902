package query_test

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// A header of very many small fields would take a hundred times its bytes.
func TestHeadersTooMany(t *testing.T) {
	t.Run("plain", func(t *testing.T) {
		s := serve(t, testConfig(t), readertest.NewFake(1))
		testHeaders(t, func() (net.Conn, error) { return net.Dial("tcp", s.service.HTTPAddr().String()) })
	})
	t.Run("TLS", func(t *testing.T) {
		cfg := testConfig(t)
		cert, key, pool := certificate(t)
		cfg.TLS.CertFile, cfg.TLS.KeyFile = cert, key
		s := serve(t, cfg, readertest.NewFake(1))
		testHeaders(t, func() (net.Conn, error) {
			return tls.Dial("tcp", s.service.HTTPAddr().String(), &tls.Config{RootCAs: pool, NextProtos: []string{"http/1.1"}})
		})
	})
}

func testHeaders(t *testing.T, dial func() (net.Conn, error)) {
	t.Helper()
	for _, c := range []struct {
		fields int
		body   string
		want   int
	}{{900, "", 200}, {1_100, "", 431}, {10, strings.Repeat("\n", 5_000), 200}} {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close() }()
		in := bufio.NewReader(conn)
		// Twice: the second request of a connection is counted anew.
		for range 2 {
			var b strings.Builder
			fmt.Fprintf(&b, "POST /client-id/dev1/status HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: %d\r\n", basic("connect", password), len(c.body))
			for i := range c.fields {
				fmt.Fprintf(&b, "a%d:\r\n", i)
			}
			b.WriteString("\r\n" + c.body)
			if _, err := io.WriteString(conn, b.String()); err != nil {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(in, nil)
			if err != nil || answer.StatusCode != c.want {
				t.Fatalf("%d fields: %v, %v; want %d", c.fields, answer, err, c.want)
			}
			if _, err := io.Copy(io.Discard, answer.Body); err != nil {
				t.Fatal(err)
			}
			if c.want != 200 {
				break
			}
		}
	}
}

// What nobody may send is refused before it is received: the message of an unary call would be kept until it is complete.
func TestMessagesOfStrangersAreNotKept(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	for _, authorization := range []string{"", basic("admin", "wrong"), "Bearer x"} {
		ctx := as(t, "")
		if authorization != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", authorization)
		}
		// A stream to the caller, so that nothing has to be sent for the answer to come.
		stream, err := s.conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, presencev1.PresenceService_BatchGetClients_FullMethodName)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.RecvMsg(&presencev1.BatchGetClientsResponse{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%.10q: %v", authorization, err)
		}
	}
}
