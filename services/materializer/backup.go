package materializer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/service"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

const (
	// backupPart is how much of a file one message has, in bytes.
	backupPart = 512 << 10
	// backupPatience is how long the receiver of a backup may take for one part.
	backupPatience = time.Minute
	// backupRate is what it must take on average, in bytes a second: a copy that is held keeps space on disk.
	backupRate = 1 << 20
)

// backups lets one backup run at a time, and none when the store is to be closed.
type backups struct {
	mu     sync.Mutex
	closed bool
	cancel context.CancelCauseFunc // of the one that runs; nil: none
	done   chan struct{}           // closed when it has ended
}

var errBackupRunning = status.Error(codes.ResourceExhausted, "a backup of this materializer is running, and one at a time can: wait for its end")

// begin returns the context of a backup, which must call end.
func (b *backups) begin(ctx context.Context) (_ context.Context, end func(), err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closed:
		return nil, nil, storeError(store.ErrClosed)
	case b.cancel != nil:
		return nil, nil, errBackupRunning
	}
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	b.cancel, b.done = cancel, done
	return ctx, func() {
		cancel(nil)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.cancel = nil
		close(done)
	}, nil
}

// close ends the backup that runs and refuses more.
func (b *backups) close() {
	b.mu.Lock()
	b.closed = true
	cancel, done := b.cancel, b.done
	b.mu.Unlock()
	if cancel != nil {
		cancel(store.ErrClosed)
		<-done
	}
}

// Backup sends a copy of the store, of all partitions that it has rows of, as it is at one moment. The fold goes on meanwhile; what is held until
// the end is space on disk, and a receiver that takes less than backupRate, or stops for backupPatience, ends it. Errors are gRPC statuses.
func (m *Materializer) Backup(_ *presencev1.BackupRequest, stream presencev1.StateService_BackupServer) (err error) {
	ps := m.shared.Load()
	if ps == nil {
		return status.Error(codes.Unavailable, "the materializer is starting")
	}
	ctx, end, err := m.backups.begin(stream.Context())
	if err != nil {
		return err
	}
	defer end()
	began := time.Now()
	c, err := ps.store.Checkpoint()
	if err != nil {
		return m.backupError(err)
	}
	defer func() {
		if removed := c.Remove(); removed != nil && err == nil {
			err = m.backupError(removed)
		}
	}()
	s := sender{ctx: ctx, stream: stream, began: began, patience: m.cfg.backupPatience, checkpoint: c}
	if s.patience == 0 {
		s.patience = backupPatience
	}
	if err := s.run(m.cfg.Replica); err != nil {
		return m.backupError(err)
	}
	m.log.Info("backup sent", service.KeyCount, len(c.Files), "bytes", c.Size, service.KeyDuration, time.Since(began))
	return nil
}

// backupError returns the gRPC status of an error, and logs it: the receiver may be gone.
func (m *Materializer) backupError(err error) error {
	m.log.Warn("backup ended early", service.KeyError, err)
	if errors.Is(err, store.ErrNoRoom) {
		return status.Errorf(codes.ResourceExhausted, "%v: make room on it and try again", err)
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return storeError(err)
}

// sender sends a checkpoint.
type sender struct {
	ctx        context.Context
	stream     presencev1.StateService_BackupServer
	checkpoint *store.Checkpoint
	began      time.Time
	patience   time.Duration
	sent       int64 // bytes
}

func (s *sender) run(replica string) error {
	c := s.checkpoint
	if err := s.send(&presencev1.BackupResponse{Head: &presencev1.BackupHead{
		KafkaCluster: c.Identity.KafkaCluster, TopicId: c.Identity.TopicID[:], PartitionCount: c.Identity.Partitions, Offsets: c.Offsets,
		TakenMs: s.began.UnixMilli(), Replica: replica, Size: c.Size,
	}}); err != nil {
		return err
	}
	buf := make([]byte, backupPart)
	for _, f := range c.Files {
		if err := s.file(f, buf); err != nil {
			return err
		}
	}
	return nil
}

func (s *sender) file(f store.CheckpointFile, buf []byte) (err error) {
	r, err := s.checkpoint.Open(f)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	sum := sha256.New()
	for left := f.Size; ; {
		part := buf[:min(left, int64(len(buf)))]
		if _, err := io.ReadFull(r, part); err != nil {
			return fmt.Errorf("read file %s of the checkpoint: %w", f.Name, err)
		}
		_, _ = sum.Write(part) // never returns an error
		left -= int64(len(part))
		p := &presencev1.BackupFile{Name: f.Name, Size: f.Size, Data: part}
		if left == 0 {
			p.Sha256 = sum.Sum(nil)
		}
		if err := s.send(&presencev1.BackupResponse{File: p}); err != nil {
			return err
		}
		if left == 0 {
			return nil
		}
	}
}

// send returns once the message is on its way, or with an error if it is not in time: the call that sends ends when the one of the caller does.
func (s *sender) send(r *presencev1.BackupResponse) error {
	if err := s.checkpoint.Room(); err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() { sent <- s.stream.Send(r) }()
	late := time.NewTimer(min(s.patience, s.patience+time.Duration(s.sent/backupRate)*time.Second-time.Since(s.began)))
	defer late.Stop()
	select {
	case err := <-sent:
		s.sent += int64(len(r.GetFile().GetData()))
		return err
	case <-s.ctx.Done():
		return context.Cause(s.ctx)
	case <-late.C:
		return status.Errorf(codes.DeadlineExceeded, "the receiver of the backup is too slow: it has taken %d of %d bytes in %v, and must take %d a second and none for no longer than %v",
			s.sent, s.checkpoint.Size, time.Since(s.began).Round(time.Second), backupRate, s.patience)
	}
}
