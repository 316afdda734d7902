package materializer

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/backup"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// serving is a configuration with a StateService and a directory of the operating system.
func (l *log) serving(dir string) Config {
	cfg := l.frequentCheckpoints(nil)
	cfg.DataDir, cfg.NoServer, cfg.StateAddr = dir, false, "127.0.0.1:0"
	return cfg
}

// backup takes a backup over the network and returns the file.
func (i *instance) backup() (file string, m *backup.Manifest) {
	i.t.Helper()
	stream, done := i.backupStream()
	defer done()
	file = filepath.Join(i.t.TempDir(), "backup.tar")
	m, err := backup.Write(file, false, stream)
	if err != nil {
		i.t.Fatal(err)
	}
	return file, m
}

func (i *instance) backupStream() (_ presencev1.StateService_BackupClient, done func()) {
	i.t.Helper()
	conn, err := grpc.NewClient(i.StateAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		i.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	stream, err := presencev1.NewStateServiceClient(conn).Backup(ctx, &presencev1.BackupRequest{})
	if err != nil {
		i.t.Fatal(err)
	}
	return stream, func() {
		cancel()
		_ = conn.Close()
	}
}

// fromBackup returns a directory filled with a backup.
func fromBackup(t *testing.T, file string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	if _, err := backup.Restore(t.Context(), file, dir); err != nil {
		t.Fatal(err)
	}
	return dir
}

// A backup is taken while facts are folded and published; the original goes on and stops; the backup goes on in its place. What it has of
// unpublished transitions gives way to what was published since.
func TestBackupUnderTraffic(t *testing.T) {
	for _, held := range []bool{false, true} {
		t.Run(fmt.Sprintf("unpublished=%v", held), func(t *testing.T) {
			t.Parallel()
			l, ref := newLog(t), reference{}
			dice := rand.New(rand.NewPCG(7, 7))
			w := world{r: dice}
			traffic := func(n int) {
				for range n {
					if facts := w.facts(); len(facts) > 0 {
						ref.send(l, facts...)
					}
				}
			}
			m := l.start(l.serving(t.TempDir())).ready()
			traffic(20)
			m.published(l)
			release := func() {}
			if held {
				release = l.hold()
			}
			defer release()
			stop, stopped := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(stopped)
				for {
					select {
					case <-stop:
						return
					default:
						traffic(1)
					}
				}
			}()
			if held {
				servicetest.Eventually(t, patience, func() error {
					for _, p := range m.owned() {
						if p.outbox.depth() < 3 {
							return errors.New("too little is held")
						}
					}
					return nil
				})
			}
			file, manifest := m.backup()
			close(stop)
			<-stopped
			dir := fromBackup(t, file)
			if held && unpublishedIn(t, dir) == 0 {
				t.Error("the backup has no unpublished transitions")
			}
			if len(manifest.Partitions) != 4 || manifest.Replica != "a" || manifest.PartitionCount != 4 {
				t.Errorf("manifest is %+v", manifest)
			}
			release()
			traffic(20)
			m.published(l)
			m.mustStop()
			traffic(5)

			m = l.start(l.serving(dir)).ready()
			m.published(l)
			ref.sameAs(m)
			if answer, err := m.CheckStore(t.Context(), &presencev1.CheckStoreRequest{}); err != nil || slices.ContainsFunc(answer.GetChecks(), func(c *presencev1.StoreCheck) bool { return len(c.GetDifferences()) > 0 && !c.GetRepairing() }) {
				t.Errorf("indexes: %v, %v", answer, err)
			}
			traffic(5)
			m.published(l)
			ref.sameAs(m)
			m.mustStop()
			l.states() // checks versions, bytes and chains
			for _, p := range manifest.Partitions {
				if p.NextOffset == 0 {
					t.Errorf("partition %d of the manifest has no offset", p.Partition)
				}
			}
		})
	}
}

// unpublishedIn counts the outbox of a store.
func unpublishedIn(t *testing.T, dir string) (n int) {
	t.Helper()
	s, err := store.Open(dir, store.Options{CacheBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	for id := range int32(4) {
		err = errors.Join(err, s.Outbox(id, func(store.Chunk) error { n++; return nil }))
	}
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	return n
}

// The backup of a process that had some of the partitions serves one that gets all.
func TestBackupOfOtherPartitions(t *testing.T) {
	l, ref := newLog(t), reference{}
	a, b := l.serving(t.TempDir()), l.serving(t.TempDir())
	a.StateAdvertise, b.StateAdvertise = "127.0.0.1:2", "127.0.0.1:3"
	ma := l.start(a).ready()
	mb := l.start(b).ready()
	servicetest.Eventually(t, patience, func() error {
		if n, k := len(ma.owned()), len(mb.owned()); n != 2 || k != 2 {
			return fmt.Errorf("%d and %d partitions", n, k)
		}
		return nil
	})
	ref.send(l, uneventful(20)...)
	l.publishedBy(ma, mb)
	file, _ := ma.backup()
	ma.mustStop()
	ref.send(l, uneventful(40)...)
	servicetest.Eventually(t, patience, func() error {
		if n := len(mb.owned()); n != 4 {
			return fmt.Errorf("%d partitions", n)
		}
		return mb.Ready(t.Context())
	})
	mb.published(l)
	mb.mustStop()
	ref.send(l, late(40)...)
	a.DataDir = fromBackup(t, file)
	ma = l.start(a)
	servicetest.Eventually(t, patience, func() error {
		if n := len(ma.owned()); n != 4 {
			return fmt.Errorf("%d partitions", n)
		}
		return ma.Ready(t.Context())
	})
	ma.published(l)
	ref.sameAs(ma)
	ma.mustStop()
	l.states()
}

// publishedBy waits until instances that share the partitions have published everything.
func (l *log) publishedBy(instances ...*instance) {
	l.t.Helper()
	servicetest.Eventually(l.t, patience, func() error {
		applied := int64(0)
		for _, i := range instances {
			for id, p := range i.owned() {
				f := p.progress.read()
				if n := p.outbox.depth(); n > 0 || f.next < f.end {
					return fmt.Errorf("partition %d: %d unpublished, applied %d of %d", id, n, f.next, f.end)
				}
				applied += f.next
			}
		}
		if facts := int64(len(uneventful(20))); applied != facts {
			return fmt.Errorf("%d of %d facts are applied", applied, facts)
		}
		return nil
	})
}

// A backup from which client-events no longer follows is as an old disk: it is filled anew from a later checkpoint, or there is none.
func TestBackupOlderThanRetention(t *testing.T) {
	l, ref := newLog(t), reference{}
	m := l.start(l.serving(t.TempDir())).ready()
	ref.send(l, uneventful(8)...)
	m.checkpointed(l)
	file, _ := m.backup()
	m.mustStop()
	// Nobody publishes what follows, and then it is gone.
	l.facts(late(8)...)
	l.facts(uneventful(8)...)
	l.forgetEvents()
	if err := runError(t, l.serving(fromBackup(t, file))); !errors.Is(err, errOutOfRange) || !strings.Contains(err.Error(), "retention") {
		t.Errorf("error is %v", err)
	}
}

// stuck is the stream of a receiver that takes some messages and then no more.
type stuck struct {
	grpc.ServerStream
	ctx   context.Context
	takes int
	full  chan struct{} // closed when it takes no more
	taken []string
}

func newStuck(ctx context.Context, takes int) *stuck {
	return &stuck{ctx: ctx, takes: takes, full: make(chan struct{})}
}

func (s *stuck) Context() context.Context { return s.ctx }

func (s *stuck) Send(r *presencev1.BackupResponse) error {
	if s.takes--; s.takes < 0 {
		close(s.full)
		<-s.ctx.Done()
		return s.ctx.Err()
	}
	s.taken = append(s.taken, r.GetFile().GetName())
	return nil
}

// leftovers lists what stands of checkpoints in a store's directory.
func leftovers(t *testing.T, fs vfs.FS, dir string) []string {
	t.Helper()
	names, err := fs.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(name string) bool { return !strings.HasPrefix(name, "backup") })
}

// A receiver that takes nothing holds neither the fold nor anything for long; there is one backup at a time.
func TestBackupToASlowReceiver(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	cfg := l.config(fs)
	cfg.backupPatience = 2 * time.Second
	m := l.start(cfg).ready()
	m.get("a", l.facts(opened("a", "n1", 0)))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	slow := newStuck(ctx, 2)
	ended := make(chan error, 1)
	go func() { ended <- m.Backup(&presencev1.BackupRequest{}, slow) }()
	<-slow.full
	if err := m.Backup(&presencev1.BackupRequest{}, newStuck(ctx, 0)); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "one at a time") {
		t.Errorf("the second backup: %v", err)
	}
	for ms := range int64(5) {
		m.get("a", l.facts(opened("a", "n1", 10*ms)))
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended at once: %v", err)
	default:
	}
	if err := <-ended; status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "too slow") {
		t.Errorf("the slow backup: %v", err)
	}
	if left := leftovers(t, fs, "data"); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
	if err := m.Backup(&presencev1.BackupRequest{}, newStuck(ctx, 1000)); err != nil {
		t.Errorf("the next backup: %v", err)
	}
}

// A receiver that goes away, and a materializer that stops, end a backup.
func TestBackupIsCutOff(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewMem()
	m := l.start(l.config(fs)).ready()
	cutOff(t, m, "receiver", func(cancel func()) { cancel() }, codes.Canceled)
	cutOff(t, m, "stop", func(func()) { m.mustStop() }, codes.Unavailable)
	if left := leftovers(t, fs, "data"); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
	if err := m.Backup(&presencev1.BackupRequest{}, newStuck(t.Context(), 1000)); status.Code(err) != codes.Unavailable {
		t.Errorf("after the end: %v", err)
	}
}

func cutOff(t *testing.T, m *instance, name string, by func(cancel func()), want codes.Code) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := newStuck(ctx, 1)
	ended := make(chan error, 1)
	go func() { ended <- m.Backup(&presencev1.BackupRequest{}, s) }()
	<-s.full
	by(cancel)
	if err := <-ended; status.Code(err) != want {
		t.Errorf("%s: %v, want %v", name, err, want)
	}
}

// What a crash left of a checkpoint is removed by the next start, which goes on from its own store.
func TestBackupAfterACrash(t *testing.T) {
	l := newLog(t)
	fs := vfs.NewCrashableMem()
	m := l.start(l.config(fs)).ready()
	l.facts(opened("a", "n1", 0))
	m.published(l)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	s := newStuck(ctx, 2)
	ended := make(chan error, 1)
	go func() { ended <- m.Backup(&presencev1.BackupRequest{}, s) }()
	<-s.full
	crashed := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	cancel()
	<-ended
	m.mustStop()
	if left := leftovers(t, crashed, "data"); len(left) == 0 {
		t.Fatal("the crash left nothing of the checkpoint")
	}
	m = l.start(l.config(crashed)).ready()
	if left := leftovers(t, crashed, "data"); len(left) != 0 {
		t.Errorf("left are %v", left)
	}
	if e := m.get("a", nil); e.GetStatus() != "online" {
		t.Errorf("a is %v", e)
	}
}

// unlinkedFS has no hard links.
type unlinkedFS struct{ *vfs.MemFS }

func (unlinkedFS) Link(string, string) error { return errors.New("operation not supported") }

// A backup leaves the room that the store needs: Pebble ends the process when its log cannot be written.
func TestBackupNeedsRoom(t *testing.T) {
	const reserve, files = 128 << 20, 50_000
	for _, tc := range []struct {
		name   string
		linked bool
		free   uint64
		want   string // empty: it is taken
	}{
		{"linked", true, reserve + files, ""}, {"linked, full", true, reserve - 1, "bytes free"},
		{"copied", false, reserve + 1<<30, ""}, {"copied, full", false, reserve + files, "no hard links and all files are copied"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLog(t)
			mem := vfs.NewMem()
			mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: tc.free, TotalBytes: 1 << 40})
			var fs vfs.FS = mem
			if !tc.linked {
				fs = unlinkedFS{mem}
			}
			m := l.start(l.config(fs)).ready()
			facts := make([]presence.Fact, 4000)
			for i := range facts {
				facts[i] = opened(fmt.Sprint("dev", i), "n1", int64(i))
			}
			l.facts(facts...)
			m.published(l)
			err := m.Backup(&presencev1.BackupRequest{}, newStuck(t.Context(), 1000))
			if tc.want == "" && err != nil || tc.want != "" && (status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
			if left := leftovers(t, mem, "data"); len(left) != 0 {
				t.Errorf("left are %v", left)
			}
			if tc.want != "" {
				return
			}
			// It becomes full while a receiver is slow.
			s := newStuck(t.Context(), 1000)
			filling := &filler{stuck: s, mem: mem}
			if err := m.Backup(&presencev1.BackupRequest{}, filling); status.Code(err) != codes.ResourceExhausted {
				t.Errorf("on a disk that fills up: %v", err)
			}
		})
	}
}

// filler fills the disk with the first part.
type filler struct {
	*stuck
	mem *vfs.MemFS
}

func (f *filler) Send(r *presencev1.BackupResponse) error {
	f.mem.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 20, TotalBytes: 1 << 40})
	return f.stuck.Send(r)
}
