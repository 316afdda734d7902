package materializer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// A digest compares replicas: it covers what every correct one has of a partition at an offset, and nothing else. That is the state of each client,
// byte for byte (L1), but for what a replica may come to a little earlier or later, or may never come to know:
//
//   - A client that can have expired is left out, whether or not the walk has come by its row. Which row is gone is decided here by the times in the
//     state, where the fold goes by the latest time that anything was received of the client, so as to have no replica count a client that
//     another one, which was restored from client-state and does not know of repeated facts, has let go. Its status is computed from the node
//     table as it is now, not taken from what was published last.
//   - Markers of forgotten clients, and in a state the time up to which the client was forgotten, are left out: a store that is filled when
//     client-state has compacted the tombstone away knows nothing of it, and is right. What a marker keeps out is in the digest.
//
// What remains are differences between replicas that are both right, of clients of which nothing was heard for expire-after:
//
//   - One that comes back in the moment in which its status changes by a fact about nodes begins anew in a replica that had read that fact, and goes on
//     in another. So does one whose connection is said once more to have ended, of which a restored replica does not know when that
//     was said before; and one that comes back after a silence of all clients that a restore fell into, whose clock then follows later.
//     A state forgets what is a day older than its newest connection, and no client expires sooner, so that the next connection makes
//     both the same.
//   - A replica that is behind with node-events counts clients that others do not, until it has read them.
//
// And replicas that are to be compared expire clients after the same time.

const (
	// maxDigests is how many digests are computed at a time: each reads a whole partition and keeps the store from being compacted.
	maxDigests = 2
	// digestTimeout bounds how long a digest holds its view, also where nobody takes the blocks.
	digestTimeout = 5 * time.Minute
	// stopPatience bounds the wait for an offset.
	stopPatience = time.Minute
	// digestBytes is about the size of a message with blocks.
	digestBytes = 64 << 10
)

// reasonOffsetPassed is the reason of the error for an offset that was wanted too late.
const reasonOffsetPassed = "OFFSET_PASSED"

// stop is the wish to read the store as it is when a partition has folded all facts below an offset, and none from it on.
type stop struct {
	offset int64 // asIs: wherever the partition is
	done   chan struct{}

	// Set before done is closed.
	view *store.View
	at   int64
	err  error
}

const asIs = -1

var (
	errPassed = errors.New("the offset was passed")
	errNobody = errors.New("the partition was given up")
)

// stops are the stops that a partition has before it. Readers add them, its fold makes them.
type stops struct {
	wake chan struct{} // has something to say when there is a new one

	mu      sync.Mutex
	waiting []*stop // ascending
	ended   bool
}

func newStops() *stops { return &stops{wake: make(chan struct{}, 1)} }

// add adds a stop; it is done at once if there is no fold any more.
func (s *stops) add(w *stop) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		w.err = errNobody
		close(w.done)
		return
	}
	i, _ := slices.BinarySearchFunc(s.waiting, w.offset, func(a *stop, offset int64) int { return cmp.Compare(a.offset, offset) })
	s.waiting = slices.Insert(s.waiting, i, w)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// leave takes a stop back. If it was made meanwhile, its view is closed.
func (s *stops) leave(w *stop) error {
	s.mu.Lock()
	at := slices.Index(s.waiting, w)
	if at >= 0 {
		s.waiting = slices.Delete(s.waiting, at, at+1)
	}
	s.mu.Unlock()
	if at >= 0 {
		return nil
	}
	<-w.done
	if w.view == nil {
		return nil
	}
	return w.view.Close()
}

// below returns the offset of the first stop: no fact from it on may be folded before it is made.
func (s *stops) below() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.waiting) == 0 {
		return math.MaxInt64
	}
	return s.waiting[0].offset
}

// due removes and returns the stops up to an offset.
func (s *stops) due(offset int64) []*stop {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for n < len(s.waiting) && s.waiting[n].offset <= offset {
		n++
	}
	due := slices.Clone(s.waiting[:n])
	s.waiting = slices.Delete(s.waiting, 0, n)
	return due
}

// end is called when nothing is folded any more.
func (s *stops) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for _, w := range s.waiting {
		w.err = errNobody
		close(w.done)
	}
	s.waiting = nil
}

// makeStops makes the stops that the fold has come to, between two batches. All that was folded must be in the store. Whoever waits for a stop is
// handed a view, and reads it while the fold goes on.
func (p *partition) makeStops() {
	next := p.meta.Next
	// Where offsets have no record, the next record says how far the partition is.
	reached := max(next, p.queue.first())
	for _, w := range p.stops.due(reached) {
		switch {
		case w.offset == asIs:
			w.at = next
			w.view, w.err = p.parts.store.NewView()
		case w.offset < next:
			w.at, w.err = next, errPassed
		default:
			w.at = w.offset
			w.view, w.err = p.parts.store.NewView()
		}
		close(w.done)
	}
}

// stopAt waits until the partition has come to an offset and returns the store as it is then. The view must be closed.
func (p *partition) stopAt(ctx context.Context, offset int64) (view *store.View, at int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	w := &stop{offset: offset, done: make(chan struct{})}
	p.stops.add(w)
	select {
	case <-w.done:
		return w.view, w.at, w.err
	case <-ctx.Done():
		return nil, p.progress.read().next, errors.Join(ctx.Err(), p.stops.leave(w))
	}
}

// DigestStates digests a partition's states at an offset, which the partition reaches, is seen at, and leaves without a pause. Errors are gRPC
// statuses: NotFound for a partition that is not owned, or not restored yet; FailedPrecondition with ErrorInfo reason OFFSET_PASSED, or
// MIN_OFFSET_NOT_REACHED, with applied_offset in its metadata. The latter has also min_offset where rows that were restored from client-state
// hold facts from the offset on: from there on none does.
func (m *Materializer) DigestStates(req *presencev1.DigestStatesRequest, stream grpc.ServerStreamingServer[presencev1.DigestStatesResponse]) error {
	id, offset := req.GetPartition(), int64(asIs)
	if req.Offset != nil {
		if offset = req.GetOffset(); offset < 0 {
			return status.Errorf(codes.InvalidArgument, "offset: %d is negative; give an offset of client-events, or none", offset)
		}
	}
	p := m.owned()[id]
	if p == nil {
		return notOwned(id)
	}
	ctx, cancel := context.WithTimeout(stream.Context(), digestTimeout)
	defer cancel()
	select {
	case m.digests <- struct{}{}:
		defer func() { <-m.digests }()
	case <-ctx.Done():
		return status.Errorf(codes.ResourceExhausted, "%d digests are being computed, which is all that are at a time; ask again", maxDigests)
	}
	view, at, err := p.stopAt(ctx, offset)
	switch {
	case errors.Is(err, errNobody):
		return notOwned(id)
	case errors.Is(err, errPassed):
		return offsetError(reasonOffsetPassed, id, offset, at, 0)
	case err != nil && ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded):
		return offsetError(reasonMinOffset, id, offset, at, 0)
	case err != nil:
		return storeError(err)
	}
	d := &digest{p: p, table: p.parts.nodes.table(), view: view, offset: at, clockMS: req.GetClockMs(), partitions: m.cfg.Kafka.Partitions,
		of: store.Digest{After: req.GetAfter(), Until: req.GetUntil(), Each: req.GetEach()}, out: make(chan *presencev1.DigestStatesResponse)}
	return d.send(ctx, stream)
}

func notOwned(partition int32) error {
	return status.Errorf(codes.NotFound, "partition %d is not owned by this process", partition)
}

// offsetError says that a partition is not at an offset: it is at another one. Least is the least offset that makes sense, 0 if any does.
func offsetError(reason string, partition int32, want, applied, least int64) error {
	info := &errdetails.ErrorInfo{Reason: reason, Domain: errorDomain, Metadata: map[string]string{
		"partition": fmt.Sprint(partition), "applied_offset": fmt.Sprint(applied),
	}}
	if least > 0 {
		info.Metadata["min_offset"] = fmt.Sprint(least)
	}
	s := status.Newf(codes.FailedPrecondition, "partition %d has applied the offsets below %d, its states at offset %d cannot be read: ask for another", partition, applied, want)
	detailed, err := s.WithDetails(info)
	if err != nil {
		return s.Err()
	}
	return detailed.Err()
}

// digest is one digest on its way to who asked for it.
type digest struct {
	p          *partition
	table      *nodeTable
	view       *store.View
	offset     int64
	clockMS    int64 // by which clients have expired
	partitions int32
	of         store.Digest
	ahead      int64 // the largest version of a row that holds facts from the offset on, 0 if none does

	out    chan *presencev1.DigestStatesResponse
	blocks []*presencev1.DigestBlock
	size   int
}

// send computes the digest and sends it. A slow taker does not hold the view for longer than ctx lasts: that is why two goroutines do it.
func (d *digest) send(ctx context.Context, stream grpc.ServerStreamingServer[presencev1.DigestStatesResponse]) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	computed := make(chan error, 1)
	go func() {
		err := closeView(d.view, d.compute(ctx))
		close(d.out)
		computed <- err
	}()
	var sent error
	for message := range d.out {
		if sent == nil {
			if sent = stream.Send(message); sent != nil {
				cancel()
			}
		}
	}
	err := <-computed
	switch {
	case sent != nil:
		return sent
	case err != nil:
		return storeError(err)
	case d.ahead > 0:
		return offsetError(reasonMinOffset, d.p.id, d.offset, d.offset, d.ahead)
	}
	return nil
}

func (d *digest) compute(ctx context.Context) error {
	meta, _, err := d.view.Meta(d.p.id)
	if err != nil {
		return err
	}
	if err := d.put(ctx, &presencev1.DigestStatesResponse{Head: &presencev1.DigestHead{Offset: d.offset, PartitionCount: d.partitions, ClockMs: meta.ClockMS}}); err != nil {
		return err
	}
	d.clockMS = max(d.clockMS, meta.ClockMS)
	d.of.Absent = d.absent
	if err := d.view.Digest(ctx, d.p.id, &d.of, func(b *store.DigestBlock) error { return d.block(ctx, b) }); err != nil {
		return err
	}
	return d.flush(ctx)
}

// absent reports whether a row is no client's that every correct replica has, and readies its state.
func (d *digest) absent(client []byte, r *store.Row) (bool, error) {
	if r.Latest.Event >= d.offset {
		d.ahead = max(d.ahead, r.Latest.Event+1)
	}
	if r.State.Empty() {
		return true, nil
	}
	limit := d.p.parts.cfg.ExpireAfter.Milliseconds()
	if limit > 0 && latestReceived(&r.State) < d.clockMS-limit {
		v := presence.Status(&r.State, d.table.cluster(clusterOf(client)), d.p.allowanceMS())
		if v.Status == presence.Offline || v.Reason == presence.NeverSeen {
			return true, nil
		}
	}
	r.State.ForgottenMS = 0
	return false, nil
}

// block adds a block to the message that is sent next.
func (d *digest) block(ctx context.Context, b *store.DigestBlock) error {
	d.blocks = append(d.blocks, &presencev1.DigestBlock{Last: slices.Clone(b.Last), Clients: b.Clients, Digest: slices.Clone(b.Sum[:])})
	if d.size += len(b.Last) + 2*store.DigestSize; d.size < digestBytes {
		return nil
	}
	return d.flush(ctx)
}

func (d *digest) flush(ctx context.Context) error {
	if len(d.blocks) == 0 {
		return nil
	}
	message := &presencev1.DigestStatesResponse{Blocks: d.blocks}
	d.blocks, d.size = nil, 0
	return d.put(ctx, message)
}

func (d *digest) put(ctx context.Context, message *presencev1.DigestStatesResponse) error {
	select {
	case d.out <- message:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
