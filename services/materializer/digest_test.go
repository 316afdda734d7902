package materializer

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// collector is the stream of a caller in the same process.
type collector struct {
	grpc.ServerStream
	ctx  context.Context
	head *presencev1.DigestHead
	// each is the digest of every client, where a block was asked for each.
	each    map[string]string
	blocks  int
	clients int64
	sending func() error // nil: takes everything
}

func (c *collector) Context() context.Context { return c.ctx }

func (c *collector) Send(m *presencev1.DigestStatesResponse) error {
	if c.sending != nil {
		if err := c.sending(); err != nil {
			return err
		}
	}
	if m.GetHead() != nil {
		c.head = m.GetHead()
	}
	for _, b := range m.GetBlocks() {
		c.each[string(b.GetLast())] = string(b.GetDigest())
		c.blocks++
		c.clients += b.GetClients()
	}
	return nil
}

// digests asks for a digest, client by client.
func digests(ctx context.Context, m *Materializer, partition int32, offset int64) (*collector, error) {
	c := &collector{ctx: ctx, each: map[string]string{}}
	req := &presencev1.DigestStatesRequest{Partition: partition, Each: true}
	if offset >= 0 {
		req.Offset = &offset
	}
	return c, m.DigestStates(req, c)
}

// statesDigests are the digests of what the pure fold makes of facts.
func statesDigests(facts []presence.Fact) map[string]string {
	states := map[string]*presence.State{}
	for i := range facts {
		key := facts[i].Cluster + "/" + facts[i].ClientID
		if states[key] == nil {
			states[key] = &presence.State{}
		}
		states[key].Apply(&facts[i])
	}
	out := map[string]string{}
	for key, s := range states {
		state := s.Append(nil)
		b := binary.AppendUvarint(append(append(binary.AppendUvarint(nil, uint64(len(key))), key...), state...), uint64(len(state)))
		sum := sha256.Sum256(b)
		out[key] = string(sum[:store.DigestSize])
	}
	return out
}

// differ names what two digests do not have in common.
func differ(got, want map[string]string) string {
	var names []string
	for key := range want {
		if got[key] != want[key] {
			names = append(names, key)
		}
	}
	for key := range got {
		if _, ok := want[key]; !ok {
			names = append(names, "+"+key)
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// While facts come in without a pause, a digest shows the states at exactly the offset that was asked for.
func TestDigestAtAnOffset(t *testing.T) {
	l := newLog(t)
	m := l.start(l.config(vfs.NewMem())).ready()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var clients []string
	for i := 0; len(clients) < 300; i++ {
		if id := fmt.Sprint("dev", i); eventlog.Partition(eventlog.ClientKey("default", id), l.cfg.Partitions) == 2 {
			clients = append(clients, id)
		}
	}
	const total = 12_000
	facts := make([]presence.Fact, total)
	r := rand.New(rand.NewPCG(1, 1))
	for i := range facts {
		facts[i] = opened(clients[r.IntN(len(clients))], fmt.Sprint("n", r.IntN(3)), int64(i))
	}
	type answer struct {
		offset int64
		got    *collector
		err    error
	}
	answers := make(chan answer, 64)
	var asking sync.WaitGroup
	for range cap(answers) {
		offset := r.Int64N(total + 1)
		asking.Go(func() {
			got, err := digests(ctx, m.Materializer, 2, offset)
			answers <- answer{offset, got, err}
		})
	}
	for i := 0; i < total; i += 400 {
		l.facts(facts[i : i+400]...)
	}
	asking.Wait()
	close(answers)
	reached := 0
	for a := range answers {
		switch {
		case status.Code(a.err) == codes.FailedPrecondition && strings.Contains(a.err.Error(), "ask for another"):
			// Not more than two are computed at a time: meanwhile the fold has passed it.
		case a.err != nil:
			t.Errorf("at %d: %v", a.offset, a.err)
		default:
			reached++
			if a.got.head.GetOffset() != a.offset || a.got.head.GetPartitionCount() != l.cfg.Partitions {
				t.Errorf("asked for %d, got %v", a.offset, a.got.head)
			}
			if d := differ(a.got.each, statesDigests(facts[:a.offset])); d != "" {
				t.Fatalf("at %d: %s", a.offset, d)
			}
		}
	}
	if reached < 2 {
		t.Errorf("%d of %d offsets were reached", reached, cap(answers))
	}
	// As they are, once all is folded.
	m.caughtUp(l)
	got, err := digests(ctx, m.Materializer, 2, -1)
	if err != nil || got.head.GetOffset() != total || differ(got.each, statesDigests(facts)) != "" {
		t.Errorf("at the end: %v, %v", got.head, err)
	}
	// An offset that was passed says so.
	_, err = digests(ctx, m.Materializer, 2, 5)
	if info := infoOf(t, err); info.GetReason() != "OFFSET_PASSED" || info.GetMetadata()["applied_offset"] != fmt.Sprint(total) {
		t.Errorf("an offset of before: %v", err)
	}
}

func TestDigestErrors(t *testing.T) {
	l := newLog(t)
	m := l.start(l.config(vfs.NewMem())).ready()
	for _, c := range []struct {
		partition int32
		offset    int64
		code      codes.Code
	}{{-1, 0, codes.NotFound}, {l.cfg.Partitions, 0, codes.NotFound}, {0, -7, codes.InvalidArgument}} {
		s := &collector{ctx: t.Context()}
		if err := m.DigestStates(&presencev1.DigestStatesRequest{Partition: c.partition, Offset: &c.offset}, s); status.Code(err) != c.code {
			t.Errorf("partition %d, offset %d: %v", c.partition, c.offset, err)
		}
	}
	// Who goes before an offset is there takes the wish back.
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := digests(ctx, m.Materializer, 0, 1_000)
		left <- err
	}()
	p := m.owned()[0]
	servicetest.Eventually(t, patience, func() error {
		if p.stops.below() != 1_000 {
			return errors.New("no stop yet")
		}
		return nil
	})
	cancel()
	if err := <-left; status.Code(err) != codes.Canceled {
		t.Errorf("canceled: %v", err)
	}
	if at := p.stops.below(); at < 1<<62 {
		t.Errorf("the fold still stops at %d", at)
	}
	// One that waits when the partition is given up is told.
	go func() {
		_, err := digests(t.Context(), m.Materializer, 0, 1_000)
		left <- err
	}()
	servicetest.Eventually(t, patience, func() error {
		if p.stops.below() != 1_000 {
			return errors.New("no stop yet")
		}
		return nil
	})
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-left; status.Code(err) != codes.NotFound {
		t.Errorf("given up: %v", err)
	}
}

// A caller that takes nothing does not keep the store from being closed.
func TestDigestOfASlowCaller(t *testing.T) {
	l := newLog(t)
	m := l.start(l.config(vfs.NewMem())).ready()
	m.caughtUp(l)
	ctx, cancel := context.WithCancel(t.Context())
	stuck := make(chan struct{})
	c := &collector{ctx: ctx, each: map[string]string{}, sending: func() error {
		close(stuck)
		<-ctx.Done()
		return ctx.Err()
	}}
	done := make(chan error, 1)
	go func() { done <- m.DigestStates(&presencev1.DigestStatesRequest{Partition: 1}, c) }()
	<-stuck
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
}

// digestsOf is what a partition that runs without Kafka says at its offset.
func digestsOf(t testing.TB, p *partition, clockMS int64) map[string]string {
	t.Helper()
	view, err := p.parts.store.NewView()
	if err != nil {
		t.Fatal(err)
	}
	c := &collector{ctx: t.Context(), each: map[string]string{}}
	d := &digest{p: p, table: p.parts.nodes.table(), view: view, offset: p.meta.Next, clockMS: clockMS, of: store.Digest{Each: true},
		out: make(chan *presencev1.DigestStatesResponse)}
	if err := d.send(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return c.each
}

// Rows that are due to expire, rows that were walked over, markers and clients that came back: replicas with other batches, restarts and walks have
// the same digest, at every offset.
func TestDigestIsAFunctionOfTheLog(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	sizes := map[bool]int{}
	for round := range 30 {
		facts := agingFacts(random)
		one, two := expiring(t, false, 3*24*time.Hour), expiring(t, false, 3*24*time.Hour)
		for i := 0; i < len(facts); {
			end := i + min(1+random.IntN(30), len(facts)-i)
			foldFacts(t, one, int64(i), facts[i:end]...)
			for i < end {
				n := min(1+random.IntN(5), end-i)
				foldFacts(t, two, int64(i), facts[i:i+n]...)
				i += n
			}
			switch random.IntN(4) {
			case 0:
				walk(t, one)
			case 1:
				walk(t, two)
			case 2:
				restart(t, two)
			}
			got, want := digestsOf(t, two, 0), digestsOf(t, one, 0)
			if d := differ(got, want); d != "" {
				t.Fatalf("round %d, offset %d: %s\n%s\n%s", round, i, d, dump(t, one), dump(t, two))
			}
			sizes[len(got) < 6]++
		}
	}
	if sizes[true] < 50 || sizes[false] < 20 {
		t.Errorf("too little expired, or too much: %v", sizes)
	}
}

// restored is a replica that client-state filled at a partition's offset: it does not know when a fact was repeated.
func restored(t testing.TB, p *partition) *partition {
	t.Helper()
	r := expiring(t, false, p.parts.cfg.ExpireAfter)
	b := r.indexes.NewBatch()
	if _, err := p.parts.store.Rows(0, nil, 1<<30, func(client, value []byte) error {
		var row store.Row
		if _, err := row.Decode(value); err != nil {
			return err
		}
		if p.gone(&row) {
			asOfMS := p.remembered(&row.State)
			if asOfMS == 0 {
				return nil
			}
			row = p.neverSeen("default", asOfMS, p.parts.nodes.table())
		}
		if row.Latest.Event = p.meta.Next - 1; !row.State.Empty() {
			row.ReceivedMS = latestReceived(&row.State)
		}
		b.PutRow(client, store.Indexed{}, &row, row.State.Append(nil))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	r.meta = p.meta
	b.PutMeta(&r.meta)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestDigestOfARestoredReplica(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	for round := range 40 {
		facts := endedOnce(agingFacts(random))
		one := expiring(t, false, 3*24*time.Hour)
		at := 20 + random.IntN(len(facts)-20)
		foldFacts(t, one, 0, facts[:at]...)
		two := restored(t, one)
		for i := at; i < len(facts); i++ {
			foldFacts(t, one, int64(i), facts[i])
			foldFacts(t, two, int64(i), facts[i])
			clock := max(one.meta.ClockMS, two.meta.ClockMS)
			if d := differ(digestsOf(t, two, clock), digestsOf(t, one, clock)); d != "" {
				t.Fatalf("round %d, restored at %d, offset %d: %s\n%s\n%s", round, at, i, d, dump(t, one), dump(t, two))
			}
		}
	}
}

// endedOnce leaves out what says once more that a connection has ended: see digest.go for what a restored replica makes of that days later.
func endedOnce(facts []presence.Fact) []presence.Fact {
	ended := map[string]bool{}
	return slices.DeleteFunc(facts, func(f presence.Fact) bool {
		key := fmt.Sprint(f.ClientID, f.Node, f.Connection)
		again := f.Kind == presence.Closed && ended[key]
		ended[key] = ended[key] || f.Kind == presence.Closed
		return again
	})
}

// infoOf returns an error's ErrorInfo, nil if it has none.
func infoOf(t testing.TB, err error) *errdetails.ErrorInfo {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info
		}
	}
	return nil
}
