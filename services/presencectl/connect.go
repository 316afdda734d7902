package presencectl

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// maxAnswer bounds one message from the service, in bytes: 1,000 clients with long texts.
const maxAnswer = 64 << 20

// retryPolicy makes gRPC ask again where a partition has no owner for a moment. Deleting is left out: each attempt would be a deletion of its own.
const retryPolicy = `{"methodConfig":[{
	"name":[
		{"service":"presence.v1.PresenceService","method":"GetStatus"},
		{"service":"presence.v1.PresenceService","method":"GetClient"},
		{"service":"presence.v1.PresenceService","method":"BatchGetClients"},
		{"service":"presence.v1.PresenceService","method":"ExplainClient"},
		{"service":"presence.v1.PresenceService","method":"ListClients"},
		{"service":"presence.v1.PresenceService","method":"ListSessions"},
		{"service":"presence.v1.PresenceService","method":"GetStats"},
		{"service":"presence.v1.PresenceService","method":"ListNodes"}
	],
	"retryPolicy":{"maxAttempts":4,"initialBackoff":"0.2s","maxBackoff":"2s","backoffMultiplier":2,"retryableStatusCodes":["UNAVAILABLE"]}
}]}`

// asking returns the body of a command that asks the service.
func (a *app) asking(run func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) (err error) {
		if err := errors.Join(a.checkOutput(), a.resolve()); err != nil {
			return err
		}
		conn, err := a.connect()
		if err != nil {
			return err
		}
		// Closing a connection that is no longer needed has no failure to report.
		defer func() { _ = conn.Close() }()
		return run(cmd.Context(), presencev1.NewPresenceServiceClient(conn), args)
	}
}

// connect returns a connection to the service; it is made at the first call.
func (a *app) connect() (*grpc.ClientConn, error) {
	s := &a.settings
	tlsConfig, err := service.ClientTLS{
		Enabled: s.TLS, CAFile: s.TLSCAFile, CertFile: s.TLSCertFile, KeyFile: s.TLSKeyFile, ServerName: s.TLSServerName,
	}.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(retryPolicy),
		grpc.WithUserAgent(name + "/" + service.Version()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithUnaryInterceptor(s.limitTime),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	}
	if header, err := s.authorization(); err != nil {
		return nil, err
	} else if header != "" {
		if tlsConfig == nil && !s.loopback() && !s.AllowPlaintext {
			return nil, fmt.Errorf("server: %s is another machine, and without --tls everybody on the way could read the credential; use --tls, or --allow-plaintext to send it all the same", s.Server)
		}
		opts = append(opts, grpc.WithPerRPCCredentials(perCall{s}))
	}
	conn, err := grpc.NewClient(s.Server, opts...)
	if err != nil {
		return nil, fmt.Errorf("server: %w", err)
	}
	return conn, nil
}

// limitTime gives each call --timeout, unless it has a deadline.
func (s *settings) limitTime(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, ok := ctx.Deadline(); !ok && s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	return invoke(ctx, method, req, reply, cc, opts...)
}

// atLeast returns a context for a call that may take longer than others do, unless --timeout says more.
func (s *settings) atLeast(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if s.Timeout == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, max(d, s.Timeout))
}

// authorization returns the header that says who asks, empty for nobody. Files are read at each call: tokens are renewed while a watch runs.
func (s *settings) authorization() (string, error) {
	bearer, err := service.ReadSecret(s.TokenFile, s.token)
	if err != nil {
		return "", fmt.Errorf("token-file: %w", err)
	}
	if bearer != "" {
		return "Bearer " + bearer.Reveal(), nil
	}
	if s.User == "" {
		return "", nil
	}
	secret, err := service.ReadSecret(s.PasswordFile, s.password)
	if err != nil {
		return "", fmt.Errorf("password-file: %w", err)
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(s.User+":"+secret.Reveal())), nil
}

// perCall adds the authorization to every call.
type perCall struct{ settings *settings }

// GetRequestMetadata returns the header.
func (p perCall) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	header, err := p.settings.authorization()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": header}, nil
}

// RequireTransportSecurity is false: connect has seen to it.
func (p perCall) RequireTransportSecurity() bool { return false }
