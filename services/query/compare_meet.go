package query

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// reasonOffsetPassed is the ErrorInfo reason of a digest that was asked for too late.
	reasonOffsetPassed = "OFFSET_PASSED"
	// firstLead is how far to aim ahead of an owner that had passed an offset; then it is four times as far each time, up to maxLead.
	firstLead, maxLead = 64, 1 << 16
	// idleInterval is how long both owners must stand still to count as idle.
	idleInterval = 300 * time.Millisecond
	// awayPatience is how long an owner may be missing, awayPause the time between two looks.
	awayPatience, awayPause = 5 * time.Second, 250 * time.Millisecond
)

// errIdle is returned for an offset ahead of both owners that nothing leads to any more.
var errIdle = errors.New("no facts come in")

// compare compares what a request selects, at one offset of both sides.
func (c *comparison) compare(ctx context.Context, req *presencev1.DigestStatesRequest) (*pair, error) {
	for {
		p, err := c.meet(ctx, req)
		if err == nil {
			err = p.read(req)
			p.close()
		}
		if err == nil {
			c.away = time.Time{}
			return p, nil
		}
		if err := c.again(ctx, err); err != nil {
			return nil, err
		}
	}
}

// again readies for another attempt after an error, or returns what is final.
func (c *comparison) again(ctx context.Context, err error) error {
	info := errorInfo(err)
	switch {
	case ctx.Err() != nil && c.missed != "":
		return status.Errorf(codes.FailedPrecondition, "no offset was found within %v at which both could be read; at last: %s", comparePartition, c.missed)
	case ctx.Err() != nil:
		return fmt.Errorf("compare partition %d: %w", c.partition, status.FromContextError(ctx.Err()).Err())
	case errors.Is(err, errIdle):
		c.lead = 0
		return nil
	case info.GetReason() == reasonOffsetPassed:
		c.missed = status.Convert(err).Message()
		c.lead = min(max(firstLead, 4*c.lead), maxLead)
		return nil
	case info.GetReason() == reasonMinOffset:
		if least, err := strconv.ParseInt(info.GetMetadata()["min_offset"], 10, 64); err == nil {
			c.least = max(c.least, least)
		}
		c.missed, c.lead = status.Convert(err).Message(), 0
		return nil
	}
	switch status.Code(err) {
	case codes.NotFound, codes.Unavailable, codes.Canceled:
		// It is changing hands, or away for good.
		if c.away.IsZero() {
			c.away = time.Now()
		}
		if c.hurry || time.Since(c.away) > awayPatience {
			return err
		}
		c.reader.Reroute()
		timer := time.NewTimer(awayPause)
		defer timer.Stop()
		select {
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("compare partition %d: %w", c.partition, err)
		}
	}
	return err
}

func errorInfo(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}

// meet opens the digests of both sides at one offset: at the larger of those that they have applied; further ahead if one of them had passed that
// before it was asked; but if nothing comes any more, then at what is there.
func (c *comparison) meet(ctx context.Context, req *presencev1.DigestStatesRequest) (*pair, error) {
	owners, applied, err := c.look(ctx)
	if err != nil {
		return nil, err
	}
	target := max(c.least, max(applied[0], applied[1])+c.lead)
	ctx, cancel := context.WithCancel(ctx)
	p := &pair{cancel: cancel}
	opened := make(chan error, len(p.sides))
	for i := range p.sides {
		side := &p.sides[i]
		side.sum = sha256.New()
		// A request of its own: one must not be changed while it is sent.
		ask := &presencev1.DigestStatesRequest{
			Partition: c.partition, Offset: &target, After: req.GetAfter(), Until: req.GetUntil(), Each: req.GetEach(), ClockMs: c.clockMS,
		}
		go func() { opened <- side.open(ctx, owners[i], ask) }()
	}
	ticker := time.NewTicker(idleInterval)
	defer ticker.Stop()
	for n := 0; n < len(p.sides); {
		select {
		case err = <-opened:
			n++
		case <-ticker.C:
			var now [2]int64
			if _, now, err = c.look(ctx); err == nil && now == applied && max(now[0], now[1]) < target {
				err = errIdle
			}
			applied = now
		}
		if err != nil {
			cancel()
			for ; n < len(p.sides); n++ {
				<-opened
			}
			return nil, err
		}
	}
	return p, nil
}

// look asks both owners how far they are.
func (c *comparison) look(ctx context.Context) (owners [2]presencev1.StateServiceClient, applied [2]int64, err error) {
	for i, replica := range [2]int{0, c.replica} {
		if owners[i], err = c.reader.OwnerIn(replica, c.partition); err != nil {
			return owners, applied, err
		}
		counts, err := owners[i].GetCounts(ctx, &presencev1.GetCountsRequest{Cluster: c.cluster, Partitions: []int32{c.partition}})
		if err != nil {
			return owners, applied, err
		}
		if len(counts.GetPartitions()) != 1 {
			return owners, applied, unavailable(fmt.Sprintf("partition %d has no owner in replica %s that has restored it", c.partition, c.reader.Replicas()[replica]))
		}
		applied[i] = counts.GetPartitions()[0].GetAppliedOffset()
	}
	return owners, applied, nil
}

// pair is the digests of both sides at one offset, the first replica's before the other's.
type pair struct {
	sides      [2]side
	cancel     context.CancelFunc
	difference *difference // the first; nil: there is none
}

func (p *pair) close() { p.cancel() }

// side is the digest of one owner on its way.
type side struct {
	stream  grpc.ServerStreamingClient[presencev1.DigestStatesResponse]
	head    *presencev1.DigestHead
	blocks  []*presencev1.DigestBlock // read, but not looked at
	clients int64
	sum     hash.Hash
}

// open returns once the owner is at the offset.
func (s *side) open(ctx context.Context, owner presencev1.StateServiceClient, req *presencev1.DigestStatesRequest) (err error) {
	if s.stream, err = owner.DigestStates(ctx, req); err != nil {
		return err
	}
	first, err := s.stream.Recv()
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = status.Error(codes.Internal, "a digest without a head")
		}
		return err
	}
	s.head, s.blocks = first.GetHead(), first.GetBlocks()
	if s.head == nil || s.head.GetOffset() != req.GetOffset() {
		return status.Errorf(codes.Internal, "a digest at offset %d, not at %d", s.head.GetOffset(), req.GetOffset())
	}
	return nil
}

// next returns the next block, nil after the last one.
func (s *side) next() (*presencev1.DigestBlock, error) {
	for len(s.blocks) == 0 {
		m, err := s.stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		s.blocks = m.GetBlocks()
	}
	b := s.blocks[0]
	s.blocks = s.blocks[1:]
	s.clients += b.GetClients()
	s.sum.Write(binary.AppendUvarint(nil, uint64(len(b.GetLast()))))
	s.sum.Write(b.GetLast())
	s.sum.Write(b.GetDigest())
	return b, nil
}

// read reads both sides to their ends, or to the first difference if there is a block for each client, and keeps that.
func (p *pair) read(req *presencev1.DigestStatesRequest) error {
	after := req.GetAfter()
	for {
		var blocks [2]*presencev1.DigestBlock
		for i := range p.sides {
			var err error
			if blocks[i], err = p.sides[i].next(); err != nil {
				return err
			}
		}
		if blocks[0] == nil && blocks[1] == nil {
			return nil
		}
		if p.difference != nil {
			continue
		}
		if blocks[0] != nil && blocks[1] != nil && bytes.Equal(blocks[0].GetLast(), blocks[1].GetLast()) && bytes.Equal(blocks[0].GetDigest(), blocks[1].GetDigest()) {
			after = blocks[0].GetLast()
			continue
		}
		if p.difference = differenceOf(blocks, after, req.GetEach()); req.GetEach() {
			return nil
		}
	}
}

// differenceOf is the difference that the first blocks that are not the same show. Of blocks of several clients, all that either of them covers may
// differ; of single clients, the first one does.
func differenceOf(blocks [2]*presencev1.DigestBlock, after []byte, each bool) *difference {
	d := &difference{after: after}
	for _, b := range blocks {
		switch {
		case b == nil:
		case d.until == nil, each == (bytes.Compare(b.GetLast(), d.until) < 0):
			d.until = b.GetLast()
		}
	}
	for i, b := range blocks {
		if b != nil && bytes.Equal(b.GetLast(), d.until) {
			d.digests[i] = b.GetDigest()
		}
	}
	return d
}

// fill puts what was compared into the answer.
func (p *pair) fill(to *presencev1.ReplicaComparison) {
	reference, replica := &p.sides[0], &p.sides[1]
	to.Offset, to.ReferenceClients, to.Clients = reference.head.GetOffset(), reference.clients, replica.clients
	to.ReferenceDigest, to.Digest = hex.EncodeToString(reference.sum.Sum(nil)[:16]), hex.EncodeToString(replica.sum.Sum(nil)[:16])
}
