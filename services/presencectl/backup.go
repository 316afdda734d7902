package presencectl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/backup"
	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const defaultMaterializer = "127.0.0.1:8083"

// A materializer that does not answer for so long is gone.
const (
	silenceBeforePing = 20 * time.Second
	silenceAfterPing  = 20 * time.Second
)

func (a *app) backupCommand() *cobra.Command {
	var materializer string
	var force bool
	cmd := &cobra.Command{
		Use:     "backup FILE",
		GroupID: groupAdmin,
		Short:   "Copy a materializer's store to a file",
		Long: `Asks one materializer for a copy of its store as it is at one moment, and writes that to FILE: whole, or not at all. The materializer goes on
meanwhile. A store can always be filled from Kafka again; a backup makes that faster, and keeps evidence and history, which Kafka does not have. The
file holds client IDs and usernames, and is readable by its owner only.

It talks to the materializer itself, its --state-addr, which knows no accounts: with TLS it wants a client certificate. --tls and what
goes with it mean this connection, and --server and its account are not used.`,
		Example: `  presencectl backup presence-a.tar --materializer 127.0.0.1:8083
  presencectl backup /backups/a.tar --materializer m1:8083 --tls --tls-ca-file ca.pem --tls-cert-file ops.pem --tls-key-file ops.key
  presencectl restore presence-a.tar --dry-run      # reads it again, and shows what it is`,
		Args: a.oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := errors.Join(a.checkOutput(), a.resolve()); err != nil {
				return err
			}
			m, err := a.takeBackup(cmd.Context(), materializer, args[0], force)
			if err != nil {
				return err
			}
			return a.printManifest(args[0], m)
		},
	}
	cmd.Flags().StringVar(&materializer, "materializer", defaultMaterializer, "the materializer's --state-addr, host:port")
	cmd.Flags().BoolVar(&force, "force", false, "replace FILE if it is there")
	return cmd
}

// oneFile checks the argument of a command that takes a file.
func (a *app) oneFile(cmd *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return &usageError{fmt.Errorf("%d arguments, and %s takes one file", len(args), cmd.CommandPath()), cmd.CommandPath()}
	}
	if args[0] == "-" {
		return &usageError{errors.New("- as FILE: a backup is read again to be checked, and so cannot be a pipe; name a file (./- is one of that name)"), cmd.CommandPath()}
	}
	return nil
}

func (a *app) takeBackup(ctx context.Context, materializer, file string, force bool) (m *backup.Manifest, err error) {
	conn, err := a.settings.connectMaterializer(materializer)
	if err != nil {
		return nil, err
	}
	// Closing a connection that is no longer needed has no failure to report.
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := presencev1.NewStateServiceClient(conn).Backup(ctx, &presencev1.BackupRequest{})
	if err == nil {
		m, err = backup.Write(file, force, stream)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%w; name another file, or replace it with --force", err)
	}
	if _, ok := status.FromError(err); err != nil && ok {
		err = &materializerError{err, materializer}
	}
	return m, err
}

// connectMaterializer returns a connection to a materializer; it is made at the first call.
func (s *settings) connectMaterializer(addr string) (*grpc.ClientConn, error) {
	tlsConfig, err := service.ClientTLS{
		Enabled: s.TLS, CAFile: s.TLSCAFile, CertFile: s.TLSCertFile, KeyFile: s.TLSKeyFile, ServerName: s.TLSServerName,
	}.Config()
	if err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	opts := []grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(name + "/" + service.Version()),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: silenceBeforePing, Timeout: silenceAfterPing}),
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.WithTransportCredentials(credentials.NewTLS(tlsConfig)))
	}
	conn, err := grpc.NewClient(addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("materializer: %w", err)
	}
	return conn, nil
}

// materializerError is an error of a call to a materializer, for which other advice holds than for one of the query service.
type materializerError struct {
	err  error
	addr string
}

func (e *materializerError) Error() string { return e.err.Error() }

func (e *materializerError) Unwrap() error { return e.err }

// hint says what can be done.
func (e *materializerError) hint() string {
	switch status.Code(e.err) {
	case codes.Unavailable:
		return fmt.Sprintf("Does a materializer serve its StateService at %s, with TLS as said? --materializer and --tls name another; 'presence' has one where its --state-addr says.", e.addr)
	case codes.Unimplemented:
		return fmt.Sprintf("%s is no materializer, or it is older than this %s: --materializer is its --state-addr, and not where the query service listens.", e.addr, name)
	}
	return ""
}

// jsonBackup is a backup as JSON.
type jsonBackup struct {
	File string `json:"file"`
	*backup.Manifest
}

// printManifest prints what a backup says of itself.
func (a *app) printManifest(file string, m *backup.Manifest) error {
	if a.json() {
		return a.printJSON(jsonBackup{file, m})
	}
	taken := time.UnixMilli(m.TakenMS).UTC()
	offsets := make([]string, len(m.Partitions))
	for i, p := range m.Partitions {
		offsets[i] = fmt.Sprintf("%d:%d", p.Partition, p.NextOffset)
	}
	t := &table{header: []string{"", ""}, headless: true}
	t.add("File", cell(file))
	t.add("Taken", fmt.Sprintf("%s (%s ago)", taken.Format(stampFormat), span(a.now().Sub(taken))))
	t.add("Replica", cell(m.Replica))
	t.add("Kafka cluster", cell(m.KafkaCluster))
	t.add("Client-events", fmt.Sprintf("topic ID %s, %s", cell(m.TopicID), number(int64(m.PartitionCount), "partition")))
	t.add("Next offsets", cell(strings.Join(offsets, ",")))
	t.add("Size", fmt.Sprintf("%s in %s", number(m.Size, "byte"), number(int64(len(m.Files)), "file")))
	return a.printTable(t)
}
