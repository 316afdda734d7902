package query

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// maxMessage bounds a gRPC message, in bytes, as maxBody does for REST.
	maxMessage = maxBody
	// maxHeaderList bounds the metadata of a call, in bytes.
	maxHeaderList = 64 << 10
	maxStreams    = 1_000
)

// newGRPC returns a server of PresenceService, health and reflection. The last two need no account.
func newGRPC(a *answers, g *gate, m *metrics, tlsConfig *tls.Config) (*grpc.Server, *health.Server) {
	i := &interceptor{gate: g, metrics: m, calls: newCalls()}
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
		grpc.ForceServerCodecV2(tolerantCodec{encoding.GetCodecV2(proto.Name)}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout, Time: time.Minute, Timeout: 10 * time.Second}),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	server := grpc.NewServer(opts...)
	server.RegisterService(withReadableErrors(&presencev1.PresenceService_ServiceDesc), a)
	h := health.NewServer()
	healthv1.RegisterHealthServer(server, h)
	reflection.Register(server)
	return server, h
}

type interceptor struct {
	gate    *gate
	metrics *metrics
	calls   *calls
}

// unary admits calls of PresenceService, and measures them.
func (i *interceptor) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	call, ours := methodOf(info.FullMethod)
	if !ours {
		return handler(ctx, req)
	}
	began := time.Now()
	var answer any
	p, err := i.gate.admit(ctx, callerOfGRPC(ctx), i.calls.method(info.FullMethod))
	if err == nil {
		answer, err = handler(withPass(ctx, &p), req)
	}
	i.metrics.observe(overGRPC, call, status.Code(err), began)
	return answer, err
}

// stream admits streams of PresenceService, and measures how long they lasted.
func (i *interceptor) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	call, ours := methodOf(info.FullMethod)
	if !ours {
		return handler(srv, stream)
	}
	began := time.Now()
	ctx := stream.Context()
	p, err := i.gate.admit(ctx, callerOfGRPC(ctx), i.calls.method(info.FullMethod))
	if err == nil {
		var end func()
		if ctx, end, err = p.stream(withPass(ctx, &p)); err == nil {
			err = handler(srv, &boundedStream{stream, ctx})
			end()
		}
	}
	i.metrics.observe(overGRPC, call, status.Code(err), began)
	return err
}

// boundedStream is a stream whose context ends when the stream has lasted as long as one may.
type boundedStream struct {
	grpc.ServerStream
	ctx context.Context
}

// Context of the stream and its pass.
func (s *boundedStream) Context() context.Context { return s.ctx }

// withReadableErrors returns the service with handlers that answer a message which does not decode, such as one whose client_id is not
// UTF-8, with INVALID_ARGUMENT in place of gRPC's INTERNAL, and not before the caller was admitted. It needs tolerantCodec.
func withReadableErrors(desc *grpc.ServiceDesc) *grpc.ServiceDesc {
	copied := *desc
	copied.Methods = make([]grpc.MethodDesc, len(desc.Methods))
	for i, m := range desc.Methods {
		handler := m.Handler
		m.Handler = func(srv any, ctx context.Context, dec func(any) error, outer grpc.UnaryServerInterceptor) (any, error) {
			var in incoming
			decode := func(v any) error {
				in.message = v
				return dec(&in)
			}
			check := func(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
				return outer(ctx, req, info, func(ctx context.Context, req any) (any, error) {
					if in.wrong != nil {
						return nil, invalid("client_id",
							"the request does not decode; client_id, client_ids and cluster must be valid UTF-8: "+in.wrong.Error())
					}
					return next(ctx, req)
				})
			}
			return handler(srv, ctx, decode, check)
		}
		copied.Methods[i] = m
	}
	return &copied
}

// incoming is a message that is being received, and what was wrong with it.
type incoming struct {
	message any
	wrong   error
}

// tolerantCodec is gRPC's own codec, except that it leaves errors in an incoming to its reader: gRPC answers the caller itself when a
// codec fails.
type tolerantCodec struct{ encoding.CodecV2 }

// Unmarshal decodes into v.
func (c tolerantCodec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	in.wrong = c.CodecV2.Unmarshal(data, in.message)
	return nil
}
