package query

import (
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// WatchClients implements the gRPC call.
func (a *answers) WatchClients(req *presencev1.WatchClientsRequest, stream grpc.ServerStreamingServer[presencev1.WatchClientsResponse]) error {
	ctx := stream.Context()
	v, err := a.watches.begin(ctx, req)
	if err != nil {
		return err
	}
	defer v.end()
	running := v.metrics.watchers.WithLabelValues(overGRPC)
	running.Inc()
	defer running.Dec()
	return v.run(ctx, &streamSink{stream})
}

// streamSink sends over gRPC.
type streamSink struct{ stream grpc.ServerStream }

// sharedMessage is a WatchClientsResponse whose largest part all watchers share. Only tolerantCodec knows it.
type sharedMessage struct {
	token string
	body  []byte
}

// encoded is the message as gRPC sends it; no byte of the body is copied.
func (m *sharedMessage) encoded() mem.BufferSlice {
	token := make([]byte, 0, len(m.token)+4)
	token = protowire.AppendTag(token, fieldResumeToken, protowire.BytesType)
	token = protowire.AppendString(token, m.token)
	return mem.BufferSlice{mem.SliceBuffer(token), mem.SliceBuffer(m.body)}
}

func (s *streamSink) entry(e *watchEntry, token string) error {
	return s.send(&sharedMessage{token, e.body})
}

func (s *streamSink) message(m *presencev1.WatchClientsResponse) error { return s.send(m) }

func (s *streamSink) send(m any) error {
	if err := s.stream.SendMsg(m); err != nil {
		return fmt.Errorf("send a message: %w", err)
	}
	return nil
}

// flush does nothing: gRPC sends at once.
func (s *streamSink) flush() error { return nil }
