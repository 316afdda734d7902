package kafka

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// TestHeads finds the requests in what is read, however it is cut.
func TestHeads(t *testing.T) {
	var stream []byte
	var want []string
	for i, size := range []int{8, 0, 20, headBytes, headBytes + 1, 3 * headBytes, 9} {
		body := make([]byte, size)
		for j := range body {
			body[j] = byte(i + j)
		}
		stream = append(binary.BigEndian.AppendUint32(stream, uint32(size)), body...)
		if size > 0 {
			want = append(want, fmt.Sprintf("%x", body[:min(size, headBytes)]))
		}
	}
	for _, chunk := range []int{1, 3, 4, 7, 511, 512, 513, len(stream)} {
		var h heads
		var got []string
		for part := range slices.Chunk(stream, chunk) {
			h.read(part, func(head []byte) { got = append(got, fmt.Sprintf("%x", head)) })
		}
		if !slices.Equal(got, want) {
			t.Errorf("in chunks of %d: %d requests, want %d, or others", chunk, len(got), len(want))
		}
	}
}

// TestParseRequest takes only those for narrow that tell of the partitions they name alone.
func TestParseRequest(t *testing.T) {
	format := kmsg.NewRequestFormatter(kmsg.FormatterClientID("presence"))
	fetch := func(version int16, isolation int8) kmsg.Request {
		r := kmsg.NewPtrFetchRequest()
		r.Version, r.IsolationLevel, r.MaxWaitMillis, r.MinBytes, r.MaxBytes = version, isolation, 250, 1, 1<<25
		return r
	}
	produce := kmsg.NewPtrProduceRequest()
	produce.Version = 12
	for _, c := range []struct {
		request kmsg.Request
		narrow  bool
	}{
		{fetch(4, 0), true}, {fetch(4, 1), false},
		{fetch(11, 0), true}, {fetch(11, 1), false},
		{fetch(12, 0), true}, {fetch(12, 1), false},
		{fetch(14, 0), true}, {fetch(14, 1), false},
		{fetch(18, 0), true}, {fetch(18, 1), false},
		{produce, true},
		{kmsg.NewPtrEndTxnRequest(), false},
		{kmsg.NewPtrMetadataRequest(), false},
	} {
		frame := format.AppendRequest(nil, c.request, 7)
		r := parseRequest(frame[4:])
		if r.key != c.request.Key() || r.version != c.request.GetVersion() || r.correlation != 7 || r.narrow != c.narrow {
			t.Errorf("%s version %d: %+v, want narrow %t", kmsg.NameForKey(c.request.Key()), c.request.GetVersion(), r, c.narrow)
		}
	}
	for n := range 20 {
		// A request that is cut short is none that is known.
		if r := parseRequest(format.AppendRequest(nil, fetch(18, 0), 7)[4:][:n]); r.narrow {
			t.Errorf("%d bytes of a fetch are narrow", n)
		}
	}
}

// openHeld starts a broker on a disk that is held up for one partition, in topic t, of which two have a record of a client.
func openHeld(ctx context.Context, t *testing.T, only string) (k *Kafka, cl *kgo.Client, d *disk, release func()) {
	t.Helper()
	dir := t.TempDir()
	s := newSyncer(dir)
	d = &disk{held: make(chan struct{}, 100), only: only}
	s.fsync = d.fsync
	k, err := open(Config{Addr: "127.0.0.1:0", Dir: dir}, slog.New(slog.DiscardHandler), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	cl = dial(t, k)
	if _, err := kadm.NewClient(cl).CreateTopic(ctx, 2, 1, nil, "t"); err != nil {
		t.Fatal(err)
	}
	for p := range int32(2) {
		if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "t", Partition: p, Value: []byte("first")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	hold := make(chan struct{})
	d.set(hold, nil)
	release = sync.OnceFunc(func() { d.set(nil, nil); close(hold) })
	return k, cl, d, release
}

func dial(t *testing.T, k *Kafka, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(k.Addr()), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// TestWaitsForItsPartitions has the answer to a producer wait for what it is about, and so it is with a consumer.
func TestWaitsForItsPartitions(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	k, held, d, release := openHeld(ctx, t, "t-1")
	defer release() // before the clients are closed
	other := dial(t, k)
	consumer := dial(t, k, kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{"t": {0: kgo.NewOffset().At(1)}}))
	one := func() {
		t.Helper()
		if err := other.ProduceSync(ctx, &kgo.Record{Topic: "t", Partition: 0, Value: []byte("not held")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := consumer.PollFetches(ctx).Err(); err != nil {
			t.Fatal(err)
		}
	}
	one() // what clients ask for at first is about more than a partition
	acked := make(chan error, 1)
	held.Produce(ctx, &kgo.Record{Topic: "t", Partition: 1, Value: []byte("held")}, func(_ *kgo.Record, err error) { acked <- err })
	<-d.held
	one()
	select {
	case err := <-acked:
		t.Errorf("acknowledged before it is on disk: %v", err)
	default:
	}
	release()
	if err := <-acked; err != nil {
		t.Error(err)
	}
}

// TestGoesOn writes what comes on a connection while an earlier answer waits, which it does not overtake.
func TestGoesOn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	k, cl, _, release := openHeld(ctx, t, "t-1")
	defer release() // before the clients are closed
	size := func(partition string) int64 {
		info, err := os.Stat(filepath.Join(k.syncer.dir, partitionsDir, partition, "0.dat"))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	before := []int64{size("t-0"), size("t-1")}
	acked := make(chan error, 2)
	var order []int32
	produce := func(p int32) {
		cl.Produce(ctx, &kgo.Record{Topic: "t", Partition: p, Value: []byte("v")}, func(r *kgo.Record, err error) {
			order = append(order, r.Partition)
			acked <- err
		})
	}
	grown := func(partition string, before int64) {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for size(partition) == before {
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("nothing is written to %s", partition)
			}
		}
	}
	produce(1)
	grown("t-1", before[1])
	produce(0)
	grown("t-0", before[0])
	select {
	case err := <-acked:
		t.Errorf("acknowledged while the first is not on disk: %v", err)
	default:
	}
	release()
	if err := errors.Join(<-acked, <-acked); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(order, []int32{1, 0}) {
		t.Errorf("acknowledged in the order %v", order)
	}
}
