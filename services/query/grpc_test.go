package query_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/query/readertest"
)

// rawCodec sends requests as bytes: Go's own encoder would refuse what is not UTF-8, other languages' do not.
type rawCodec struct{}

var _ encoding.Codec = rawCodec{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	b, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("marshal %T", v)
	}
	return *b, nil
}

func (rawCodec) Unmarshal(b []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("unmarshal %T", v)
	}
	return proto.Unmarshal(b, m)
}

func (s *server) raw(ctx context.Context, method, id string, into proto.Message) error {
	body := protowire.AppendTag(nil, 1, protowire.BytesType)
	body = protowire.AppendString(body, id)
	return s.conn.Invoke(ctx, method, &body, into, grpc.ForceCodec(rawCodec{}))
}

func (s *server) status(ctx context.Context, id string) (*presencev1.GetStatusResponse, error) {
	answer := &presencev1.GetStatusResponse{}
	return answer, s.raw(ctx, presencev1.PresenceService_GetStatus_FullMethodName, id, answer)
}

func (s *server) client(ctx context.Context, id string) (*presencev1.Client, error) {
	answer := &presencev1.Client{}
	return answer, s.raw(ctx, presencev1.PresenceService_GetClient_FullMethodName, id, answer)
}

func TestHealthFollowsReadinessWithoutAnAccount(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	health := healthv1.NewHealthClient(s.conn)
	for _, name := range []string{"", "presence.v1.PresenceService"} {
		servicetest.Eventually(t, testTimeout, func() error {
			answer, err := health.Check(as(t, ""), &healthv1.HealthCheckRequest{Service: name})
			if err != nil {
				return err
			}
			if answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
				return errors.New(answer.GetStatus().String())
			}
			return nil
		})
	}
}

func TestReflectionNeedsNoAccount(t *testing.T) {
	s := serve(t, testConfig(t), readertest.NewFake(1))
	stream, err := reflectionv1.NewServerReflectionClient(s.conn).ServerReflectionInfo(as(t, ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range answer.GetListServicesResponse().GetService() {
		found = found || s.GetName() == "presence.v1.PresenceService"
	}
	if !found {
		t.Errorf("PresenceService is not listed: %v", answer)
	}
}

func TestGRPCRefusesWhatIsWrong(t *testing.T) {
	fake := readertest.NewFake(1)
	s := serve(t, testConfig(t), fake)
	ids := make([]string, 1001)
	for _, c := range []struct {
		name string
		err  error
	}{
		{"too many", second(s.rpc.BatchGetClients(as(t, "read"), &presencev1.BatchGetClientsRequest{ClientIds: ids}))},
		{"none", second(s.rpc.BatchGetClients(as(t, "read"), &presencev1.BatchGetClientsRequest{}))},
		{"an empty one", second(s.rpc.BatchGetClients(as(t, "read"), &presencev1.BatchGetClientsRequest{ClientIds: []string{"a", ""}}))},
		{"cluster", second(s.rpc.GetStatus(as(t, "connect"), &presencev1.GetStatusRequest{ClientId: "a", Cluster: "A"}))},
	} {
		if status.Code(c.err) != codes.InvalidArgument {
			t.Errorf("%s: %v", c.name, c.err)
		}
	}
	if fake.Calls() != 0 {
		t.Errorf("the reader was asked %d times", fake.Calls())
	}
	// The credentials are looked at before the message.
	if _, err := s.status(as(t, ""), "\xff"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("no credentials, and not UTF-8: %v", err)
	}
}

func second[T any](_ T, err error) error { return err }
