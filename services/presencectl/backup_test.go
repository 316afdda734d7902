package presencectl

import (
	"crypto/sha256"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// fakeMaterializer sends a store of two files, or an error after the first.
type fakeMaterializer struct {
	presencev1.UnimplementedStateServiceServer
	fail error
}

func (f *fakeMaterializer) Backup(_ *presencev1.BackupRequest, s presencev1.StateService_BackupServer) error {
	files := []*presencev1.BackupFile{{Name: "000004.sst", Data: []byte("rows")}, {Name: "MANIFEST-000001", Data: []byte{}}}
	if err := s.Send(&presencev1.BackupResponse{Head: &presencev1.BackupHead{
		KafkaCluster: "k\x1b[2J", TopicId: []byte("0123456789abcdef"), PartitionCount: 4, Offsets: map[int32]int64{3: 7, 0: 12}, TakenMs: testNow.UnixMilli() - 90_000, Replica: "a", Size: 4,
	}}); err != nil {
		return err
	}
	for i, p := range files {
		sum := sha256.Sum256(p.GetData())
		p.Size, p.Sha256 = int64(len(p.GetData())), sum[:]
		if err := s.Send(&presencev1.BackupResponse{File: p}); err != nil {
			return err
		}
		if f.fail != nil && i == 0 {
			return f.fail
		}
	}
	return nil
}

func (f *fakeMaterializer) start(t *testing.T, opts ...grpc.ServerOption) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(opts...)
	presencev1.RegisterStateServiceServer(server, f)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	return l.Addr().String()
}

func TestBackupAndRestore(t *testing.T) {
	r := newRunner(t)
	addr := (&fakeMaterializer{}).start(t)
	file, dir := filepath.Join(r.dir, "a.tar"), filepath.Join(r.dir, "data")
	shown := `Taken          2026-01-31T11:58:30.000Z (1m30s ago)
Replica        a
Kafka cluster  "k\x1b[2J"
Client-events  topic ID 30313233343536373839616263646566, 4 partitions
Next offsets   0:12,3:7
Size           4 bytes in 2 files
`
	check := func(wantErr string, args ...string) {
		t.Helper()
		out, errOut, code := r.run(args...)
		if !strings.HasSuffix(out, shown) || !strings.Contains(out, file) || code != exitOK || !strings.Contains(errOut, wantErr) {
			t.Errorf("%v: exit %d, %q\n%s", args, code, errOut, out)
		}
	}
	refused := func(wantErr string, args ...string) {
		t.Helper()
		if out, errOut, code := r.run(args...); out != "" || code != exitError || !strings.Contains(errOut, wantErr) {
			t.Errorf("%v: exit %d, %q, want %q\n%s", args, code, errOut, wantErr, out)
		}
	}
	check("", "backup", file, "--materializer", addr)
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file is %v, %v", info, err)
	}
	refused("file already exists; name another file, or replace it with --force", "backup", file, "--materializer", addr)
	check("", "backup", file, "--materializer", addr, "--force")
	check("nothing was restored", "restore", file, "--dry-run")
	refused("--data-dir: name the materializer's directory", "restore", file)
	check("restored to "+dir, "restore", file, "--data-dir", dir)
	if rows, err := os.ReadFile(filepath.Join(dir, "000004.sst")); err != nil || string(rows) != "rows" {
		t.Errorf("restored %q, %v", rows, err)
	}
	refused(`directory is not empty: there is "000004.sst"; stop the materializer`, "restore", file, "--data-dir", dir)
	refused("directory is not empty", "restore", file, "--data-dir", dir, "--dry-run")
	refused("2 arguments, and presencectl restore takes one file", "restore", file, dir)
	refused("name a file (./- is one of that name)", "backup", "-", "--materializer", addr)
	refused("name a file (./- is one of that name)", "restore", "-", "--dry-run")

	out, _, _ := r.run("restore", file, "--dry-run", "-o", "json")
	var m struct {
		File       string
		TakenMS    int64 `json:"taken_ms"`
		Partitions []struct {
			NextOffset int64 `json:"next_offset"`
		}
	}
	if err := json.Unmarshal([]byte(out), &m); err != nil || m.File != file || m.TakenMS != testNow.UnixMilli()-90_000 || len(m.Partitions) != 2 || m.Partitions[1].NextOffset != 7 {
		t.Errorf("json: %v, %s", err, out)
	}
}

// What goes wrong leaves no file, and advice about materializers, not about the query service.
func TestBackupFails(t *testing.T) {
	r := newRunner(t)
	file := filepath.Join(r.dir, "a.tar")
	busy := (&fakeMaterializer{fail: status.Error(codes.ResourceExhausted, "a backup of this materializer is running")}).start(t)
	for _, c := range []struct{ addr, want string }{
		{busy, "a backup of this materializer is running (RESOURCE_EXHAUSTED)"},
		{"127.0.0.1:1", "Does a materializer serve its StateService at 127.0.0.1:1"},
		{newFake().start(t), "is no materializer"},
	} {
		out, errOut, code := r.run("backup", file, "--materializer", c.addr)
		if out != "" || code != exitError || !strings.Contains(errOut, c.want) || strings.Contains(errOut, "query service") != strings.Contains(c.want, "no materializer") {
			t.Errorf("%s: exit %d, %q, want %q", c.addr, code, errOut, c.want)
		}
	}
	if entries, err := os.ReadDir(r.dir); err != nil || len(entries) != 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// The account of the query service is not told to a materializer; a certificate is.
func TestBackupOverTLS(t *testing.T) {
	r := newRunner(t)
	authority := servicetest.NewAuthority(t)
	certFile, keyFile := authority.Issue("ops", time.Hour)
	config, err := service.ServerTLS{CertFile: certFile, KeyFile: keyFile, ClientCAFile: authority.File}.Config()
	if err != nil {
		t.Fatal(err)
	}
	var authorization []string
	m := &fakeMaterializer{}
	addr := m.start(t, grpc.Creds(credentials.NewTLS(config)), grpc.StreamInterceptor(func(srv any, s grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		authorization = metadata.ValueFromIncomingContext(s.Context(), "authorization")
		return h(srv, s)
	}))
	file := filepath.Join(r.dir, "a.tar")
	args := []string{"backup", file, "--materializer", addr, "--user", "dev", "--password-file", writeFile(t, filepath.Join(r.dir, "password"), "secret"), "--tls", "--tls-ca-file", authority.File}
	if _, errOut, code := r.run(args...); code != exitError || !strings.Contains(errOut, "materializer") {
		t.Errorf("without a certificate: exit %d, %s", code, errOut)
	}
	if _, errOut, code := r.run(append(args, "--tls-cert-file", certFile, "--tls-key-file", keyFile)...); code != exitOK {
		t.Errorf("with a certificate: exit %d, %s", code, errOut)
	}
	if len(authorization) != 0 {
		t.Errorf("the materializer was told %q", authorization)
	}
}
