package kafka

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// disk stands in for the disk: it notes what is synced, and may hold a sync up, or refuse it.
type disk struct {
	mu     sync.Mutex
	synced []string
	err    error
	hold   chan struct{} // closed: goes on; nil: nothing is held up
	held   chan struct{} // is sent to by those that are held up
	only   string        // what is held up has it in its path
}

func (d *disk) fsync(path string) error {
	d.mu.Lock()
	hold, only := d.hold, d.only
	d.mu.Unlock()
	if hold != nil && strings.Contains(path, only) {
		d.held <- struct{}{}
		<-hold
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.synced = append(d.synced, filepath.Base(path))
	return d.err
}

// take returns what was synced since the last call, sorted.
func (d *disk) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.synced
	d.synced = nil
	slices.Sort(s)
	return s
}

func (d *disk) set(hold chan struct{}, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hold, d.err = hold, err
}

func newDisk(t *testing.T) (*syncer, *disk, string) {
	t.Helper()
	dir := t.TempDir()
	s, d := newSyncer(dir), &disk{held: make(chan struct{}, maxSyncs)}
	s.fsync = d.fsync
	partition := filepath.Join(dir, "partitions", "t-0")
	if err := os.MkdirAll(partition, 0o755); err != nil {
		t.Fatal(err)
	}
	return s, d, partition
}

func grow(t *testing.T, dir string, names ...string) {
	t.Helper()
	for _, name := range names {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString("x"); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// age makes a folder one to which nothing was added lately, so that only files that may grow are looked at.
func age(t *testing.T, dirs ...string) {
	t.Helper()
	past := time.Now().Add(-2 * settled)
	for _, dir := range dirs {
		if err := os.Chtimes(dir, past, past); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *disk) expect(t *testing.T, s *syncer, what string, want ...string) {
	t.Helper()
	if err := s.wait(); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	got := slices.Compact(d.take())
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: synced %q, want %q", what, got, want)
	}
}

// TestSyncerFinds syncs what has changed, and nothing else.
func TestSyncerFinds(t *testing.T) {
	s, d, partition := newDisk(t)
	grow(t, s.dir, "pids.log")
	grow(t, partition, "0.dat", "0.idx")
	d.expect(t, s, "new files", filepath.Base(s.dir), "partitions", "t-0", "pids.log", "0.dat", "0.idx")
	d.expect(t, s, "nothing")

	grow(t, partition, "0.dat", "0.idx")
	d.expect(t, s, "a file of a young folder has grown", "0.dat", "0.idx")
	age(t, partition, filepath.Dir(partition), s.dir)
	d.expect(t, s, "nothing")
	grow(t, partition, "0.dat", "0.idx")
	grow(t, s.dir, "pids.log")
	d.expect(t, s, "files of old folders have grown", "0.dat", "0.idx", "pids.log")
	d.expect(t, s, "nothing")

	grow(t, partition, "0.dat", "0.idx", "7.dat", "7.idx")
	d.expect(t, s, "a segment was begun", "t-0", "0.dat", "0.idx", "7.dat", "7.idx")
	age(t, partition, filepath.Dir(partition))
	d.expect(t, s, "nothing")
	grow(t, partition, "7.dat", "7.idx")
	d.expect(t, s, "the new segment has grown", "7.dat", "7.idx")

	// The broker writes one after the other, and others have it synced in between.
	grow(t, partition, "7.dat")
	d.expect(t, s, "the segment has grown", "7.dat")
	grow(t, partition, "7.idx")
	d.expect(t, s, "its index follows", "7.idx")

	for _, name := range []string{"7.dat", "7.idx"} {
		if err := os.Remove(filepath.Join(partition, name)); err != nil {
			t.Fatal(err)
		}
	}
	d.expect(t, s, "a segment was removed")
	if err := os.RemoveAll(partition); err != nil {
		t.Fatal(err)
	}
	d.expect(t, s, "a partition was removed")
}

// TestSyncerRounds has those who come during a round wait for the next one, all for the same.
func TestSyncerRounds(t *testing.T) {
	s, d, partition := newDisk(t)
	grow(t, partition, "0.dat", "0.idx")
	d.expect(t, s, "new files", filepath.Base(s.dir), "partitions", "t-0", "0.dat", "0.idx")

	hold := make(chan struct{})
	d.set(hold, nil)
	grow(t, partition, "0.dat", "0.idx")
	first := make(chan error, 1)
	go func() { first <- s.wait() }()
	<-d.held
	grow(t, partition, "0.dat", "0.idx") // too late for that round
	later := make(chan error, 8)
	for range cap(later) {
		go func() { later <- s.wait() }()
	}
	d.set(nil, nil)
	close(hold)
	if err := <-first; err != nil {
		t.Fatal(err)
	}
	for range cap(later) {
		if err := <-later; err != nil {
			t.Fatal(err)
		}
	}
	if got, want := d.take(), []string{"0.dat", "0.dat", "0.idx", "0.idx"}; !slices.Equal(got, want) {
		t.Errorf("synced %q, want %q", got, want)
	}
}

// TestSyncerFails answers nobody any more once a sync was refused: what was written before may be lost.
func TestSyncerFails(t *testing.T) {
	s, d, partition := newDisk(t)
	refused := errors.New("refused")
	d.set(nil, refused)
	grow(t, partition, "0.dat")
	if err := s.wait(); !errors.Is(err, refused) {
		t.Fatalf("error %v, want that of the disk", err)
	}
	d.set(nil, nil)
	if err := s.wait(); !errors.Is(err, refused) {
		t.Errorf("error %v after that, want the same", err)
	}
	select {
	case <-s.failed:
	default:
		t.Error("nobody is told")
	}
}

// TestAcknowledgedIsSynced holds the disk up: neither does a producer get its answer, nor a consumer the record.
func TestAcknowledgedIsSynced(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	dir, d := t.TempDir(), &disk{held: make(chan struct{}, 100)}
	s := newSyncer(dir)
	s.fsync = d.fsync
	k, err := open(Config{Addr: "127.0.0.1:0", Dir: dir}, slog.New(slog.DiscardHandler), s)
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- k.Run(running) }()
	producer, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	defer producer.Close()
	if _, err := kadm.NewClient(producer).CreateTopic(ctx, 1, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	consumer, err := kgo.NewClient(kgo.SeedBrokers(k.Addr()), kgo.ConsumeTopics("t"), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer consumer.Close()
	if err := producer.ProduceSync(ctx, kgo.StringRecord("first")).FirstErr(); err != nil {
		t.Fatal(err)
	}
	if err := consumer.PollFetches(ctx).Err(); err != nil {
		t.Fatal(err)
	}

	hold := make(chan struct{})
	d.set(hold, nil)
	acked, seen := make(chan error, 1), make(chan error, 1)
	producer.Produce(ctx, kgo.StringRecord("second"), func(_ *kgo.Record, err error) { acked <- err })
	go func() { seen <- consumer.PollFetches(ctx).Err() }()
	<-d.held
	short := time.NewTimer(50 * time.Millisecond)
	defer short.Stop()
	select {
	case <-acked:
		t.Error("acknowledged before it is on disk")
	case <-seen:
		t.Error("seen before it is on disk")
	case <-short.C:
	}
	d.set(nil, nil)
	close(hold)
	if err := errors.Join(<-acked, <-seen); err != nil {
		t.Error(err)
	}

	// A disk that refuses ends the broker: what it holds is not known any more.
	refused := errors.New("refused")
	d.set(nil, refused)
	producer.Produce(ctx, kgo.StringRecord("third"), nil)
	if err := <-ended; !errors.Is(err, refused) {
		t.Errorf("run ended with %v, want the error of the disk", err)
	}
	stop()
}

// TestSyncerFindsNewNames syncs a folder in which a name stands for another file than before: that of the file alone says nothing of its name.
func TestSyncerFindsNewNames(t *testing.T) {
	s, d, partition := newDisk(t)
	grow(t, s.dir, "groups.log")
	grow(t, partition, "0.dat", "0.idx", "7.dat", "7.idx")
	d.expect(t, s, "new files", filepath.Base(s.dir), "partitions", "t-0", "groups.log", "0.dat", "0.idx", "7.dat", "7.idx")

	if err := errors.Join(os.Remove(filepath.Join(partition, "7.dat")), os.Remove(filepath.Join(partition, "7.idx"))); err != nil {
		t.Fatal(err)
	}
	d.expect(t, s, "a segment was removed")
	grow(t, partition, "7.dat", "7.idx")
	d.expect(t, s, "it was begun again", "t-0", "7.dat", "7.idx")

	// A log that takes the place of another one, as small and as old.
	log := filepath.Join(s.dir, "groups.log")
	info, err := os.Stat(log)
	if err != nil {
		t.Fatal(err)
	}
	grow(t, s.dir, "groups.log.tmp")
	if err := errors.Join(os.Chtimes(log+".tmp", info.ModTime(), info.ModTime()), os.Rename(log+".tmp", log)); err != nil {
		t.Fatal(err)
	}
	d.expect(t, s, "a log was replaced", filepath.Base(s.dir), "groups.log")
	d.expect(t, s, "nothing")
}
