package query

import (
	"context"
	"crypto/tls"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// maxMessage bounds a gRPC message, in bytes, as maxBody does for REST.
	maxMessage = maxBody
	// maxHeaderList bounds the metadata of a call, in bytes.
	maxHeaderList = 64 << 10
	maxStreams    = 1_000
	// streamWorkers is how many goroutines are kept for calls: a new one for each would grow its small stack three times on the way down to the
	// store, a tenth of the call's time. Watches keep theirs; a call that finds none idle gets a new one.
	streamWorkers = 32
	// connectionAge is when a caller is asked to connect anew, for other replicas and new certificates; what runs may end.
	connectionAge = time.Hour
)

// newGRPC returns a server of PresenceService, health and reflection. The last two need no account.
func newGRPC(a *answers, g *gate, m *metrics, tlsConfig *tls.Config, unaryTime time.Duration) (*grpc.Server, *health.Server) {
	desc := &presencev1.PresenceService_ServiceDesc
	i := &interceptor{gate: g, metrics: m, calls: newCalls()}
	opts := []grpc.ServerOption{
		grpc.UnaryInterceptor(i.unary),
		grpc.StreamInterceptor(i.stream),
		grpc.ForceServerCodecV2(tolerantCodec{encoding.GetCodecV2(proto.Name)}),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxHeaderListSize(maxHeaderList),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.InTapHandle(i.tap(desc, unaryTime)),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout, MaxConnectionAge: connectionAge, Time: time.Minute, Timeout: 10 * time.Second}),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	server := grpc.NewServer(opts...)
	server.RegisterService(withReadableErrors(desc), a)
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
	name, ours := methodOf(info.FullMethod)
	began := time.Now()
	c := callerOfGRPC(ctx)
	var answer any
	knocked, err := i.gate.knock(ctx, c.address)
	if err == nil && !ours {
		return handler(ctx, req)
	}
	p, call := pass{reason: refusedAddress}, i.calls.method(info.FullMethod)
	if err == nil {
		if p, err = i.gate.admit(ctx, c, call); err == nil {
			answer, err = handler(withPass(ctx, &p), req)
		}
	}
	if policy, left := rateLimitHeaders([]limited{knocked, p.limits()}); policy != "" {
		// It fails only if the caller has gone.
		_ = grpc.SetHeader(ctx, metadata.Pairs("ratelimit-policy", policy, "ratelimit", left))
	}
	switch {
	case !ours:
	case err == nil && name == i.metrics.getStatus.call:
		i.metrics.getStatus.observe(began)
	default:
		i.metrics.observe(overGRPC, name, status.Code(err), began)
	}
	i.audit(ctx, c, call, &p, req, err)
	return answer, err
}

// audit has the call written down, if it is one of those that are. Req is nil for a stream.
func (i *interceptor) audit(ctx context.Context, c caller, call *call, p *pass, req any, err error) {
	if p.reason == "" && call.need != permAdmin {
		return
	}
	e := audited{transport: overGRPC, call: call.name, account: p.name, address: c.address, code: status.Code(err), reason: p.reason}
	if r, ok := req.(interface{ GetClientId() string }); ok {
		e.clientID = r.GetClientId()
	}
	if r, ok := req.(interface{ GetCluster() string }); ok {
		e.cluster = r.GetCluster()
	}
	i.gate.audit.record(ctx, call.need, e)
}

// stream admits streams of PresenceService, and measures how long they lasted.
func (i *interceptor) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	name, ours := methodOf(info.FullMethod)
	began := time.Now()
	ctx := stream.Context()
	c := callerOfGRPC(ctx)
	knocked, err := i.gate.knock(ctx, c.address)
	if err == nil && !ours {
		end, err := i.gate.anonymousStream(c.address)
		if err != nil {
			return err
		}
		defer end()
		return handler(srv, stream)
	}
	p, call := pass{reason: refusedAddress}, i.calls.method(info.FullMethod)
	var end func()
	if err == nil {
		if p, err = i.gate.admit(ctx, c, call); err == nil {
			ctx, end, err = p.stream(withPass(ctx, &p))
		}
	}
	if policy, left := rateLimitHeaders([]limited{knocked, p.limits()}); policy != "" {
		// It fails only if the caller has gone.
		_ = stream.SetHeader(metadata.Pairs("ratelimit-policy", policy, "ratelimit", left))
	}
	if err == nil {
		err = streamEnd(ctx, handler(srv, &boundedStream{stream, ctx}))
		end()
	}
	switch {
	case !ours:
	case err == nil && name == i.metrics.getStatus.call:
		i.metrics.getStatus.observe(began)
	default:
		i.metrics.observe(overGRPC, name, status.Code(err), began)
	}
	i.audit(stream.Context(), c, call, &p, nil, err)
	return err
}

// tap looks at a call before its request is received, which gRPC does before it asks an interceptor: what nobody may send is not kept in memory,
// up to maxMessage a call, until it is complete. Calls that have one request and one answer are ended after a time; one that may last longer has
// that time on top.
func (i *interceptor) tap(desc *grpc.ServiceDesc, after time.Duration) tap.ServerInHandle {
	unary := unaryTimes(desc, i.calls, after)
	return func(ctx context.Context, info *tap.Info) (context.Context, error) {
		name, ours := methodOf(info.FullMethodName)
		if !ours {
			return i.tapAnonymous(ctx, info)
		}
		began := time.Now()
		c := callerOfGRPC(ctx)
		t := &tapped{Context: ctx}
		t.who, t.reason, t.err = i.gate.recognise(ctx, c)
		if status.Code(t.err) == codes.Unauthenticated {
			err := t.err
			p := pass{gate: i.gate, principal: principal{name: t.who.name}, reason: refusedAddress}
			if _, limited := i.gate.knock(ctx, c.address); limited != nil {
				err = limited
			} else {
				err = p.refuse(t.reason, err)
			}
			i.metrics.observe(overGRPC, name, status.Code(err), began)
			i.audit(ctx, c, i.calls.method(info.FullMethodName), &p, nil, err)
			return nil, err
		}
		within, ok := unary[info.FullMethodName]
		if deadline, has := ctx.Deadline(); ok && (!has || time.Until(deadline) > within) {
			t.Context, t.cancel = context.WithTimeout(ctx, within)
		}
		return t, nil
	}
}

// unaryTimes returns how long the calls may last that have one request and one answer, by full method.
func unaryTimes(desc *grpc.ServiceDesc, calls *calls, after time.Duration) map[string]time.Duration {
	unary := make(map[string]time.Duration)
	for _, m := range desc.Methods {
		name := "/" + desc.ServiceName + "/" + m.MethodName
		unary[name] = after + calls.method(name).lasts
	}
	return unary
}

// tapAnonymous counts a call of health that has one request, until it ends. Streams are counted later.
func (i *interceptor) tapAnonymous(ctx context.Context, info *tap.Info) (context.Context, error) {
	if info.FullMethodName != healthv1.Health_Check_FullMethodName && info.FullMethodName != healthv1.Health_List_FullMethodName {
		return ctx, nil
	}
	end, err := i.gate.anonymousStream(callerOfGRPC(ctx).address)
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, end)
	return ctx, nil
}

// tapped is the context of a call whose caller was looked at. Nobody has to cancel it: it ends with the call, whose context it is made of.
type tapped struct {
	context.Context
	cancel context.CancelFunc

	who    principal
	reason string
	err    error
}

type tappedKey struct{}

// Value is that of the call's context, and of the tapped one itself.
func (t *tapped) Value(key any) any {
	if key == (tappedKey{}) {
		return t
	}
	return t.Context.Value(key)
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
					if err := in.unreadable(); err != nil {
						return nil, err
					}
					return next(ctx, req)
				})
			}
			return handler(srv, ctx, decode, check)
		}
		copied.Methods[i] = m
	}
	copied.Streams = make([]grpc.StreamDesc, len(desc.Streams))
	for i, s := range desc.Streams {
		handler := s.Handler
		s.Handler = func(srv any, stream grpc.ServerStream) error { return handler(srv, readableStream{stream}) }
		copied.Streams[i] = s
	}
	return &copied
}

// readableStream is a stream that answers a message which does not decode in the same way.
type readableStream struct{ grpc.ServerStream }

// RecvMsg receives a message.
func (s readableStream) RecvMsg(m any) error {
	in := incoming{message: m}
	if err := s.ServerStream.RecvMsg(&in); err != nil {
		return err
	}
	return in.unreadable()
}

// incoming is a message that is being received, and what was wrong with it.
type incoming struct {
	message any
	wrong   error
	field   string // that is not UTF-8
}

// unreadable is what the caller is told if the message did not decode.
func (in *incoming) unreadable() error {
	if in.wrong == nil {
		return nil
	}
	if in.field != "" {
		return invalid(in.field, in.field+" is not valid UTF-8")
	}
	return invalid("request", "the request does not decode: "+in.wrong.Error())
}

// tolerantCodec is gRPC's own codec, except that it sends messages that are encoded already, and that it leaves errors in an incoming to
// its reader: gRPC answers the caller itself when a codec fails.
type tolerantCodec struct{ encoding.CodecV2 }

// Marshal encodes v.
func (c tolerantCodec) Marshal(v any) (mem.BufferSlice, error) {
	if m, ok := v.(*sharedMessage); ok {
		return m.encoded(), nil
	}
	return c.CodecV2.Marshal(v)
}

// Unmarshal decodes into v.
func (c tolerantCodec) Unmarshal(data mem.BufferSlice, v any) error {
	in, ok := v.(*incoming)
	if !ok {
		return c.CodecV2.Unmarshal(data, v)
	}
	if in.wrong = c.CodecV2.Unmarshal(data, in.message); in.wrong != nil {
		in.field = wrongField(data.Materialize(), in.message)
	}
	return nil
}
