package query

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const hubPartitions = 2

// hubTest is a hub that is fed by hand.
type hubTest struct {
	testing.TB
	*watches
	at watchPosition
}

func newHubTest(t testing.TB, edit ...func(*Config)) *hubTest {
	t.Helper()
	cfg := DefaultConfig()
	// Nobody connects to it: the source is not run.
	cfg.Brokers = []string{"127.0.0.1:1"}
	for _, e := range edit {
		e(&cfg)
	}
	log := slog.New(slog.DiscardHandler)
	w, err := newWatches(cfg, &answers{cfg: cfg, reader: presencev1.UnimplementedStateServiceServer{}, log: log}, log, prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	h := &hubTest{TB: t, watches: w, at: watchPosition{topic: [16]byte{1}, timeMS: time.Now().UnixMilli(), next: make([]int64, hubPartitions)}}
	h.hub.begin(h.at, h.at, 7*24*time.Hour, nil)
	return h
}

// entry makes the next entry of a client's partition.
func (h *hubTest) entry(id string, from, to presence.Presence, connection string) *watchEntry {
	h.Helper()
	s := &eventlog.ClientState{
		Transition: true, Cluster: "default", ClientID: id, Status: to, PreviousStatus: from, Node: "n1", Connection: connection,
		EventOffset: 1, NodeEventOffset: h.at.next[0] + h.at.next[1],
	}
	p := eventlog.Partition(eventlog.ClientKey("default", id), hubPartitions)
	r := eventlog.StateRecord(s, p, eventlog.JSON)
	r.Offset = h.at.next[p]
	e, err := decodeWatch(r, &eventlog.ClientState{})
	if err != nil {
		h.Fatal(err)
	}
	e.timeMS = time.Now().UnixMilli()
	h.at.next[p]++
	return e
}

func (h *hubTest) tell(entries ...*watchEntry) {
	h.at.timeMS = time.Now().UnixMilli()
	h.hub.append(entries, h.at)
}

// connected tells that clients are online.
func (h *hubTest) connected(ids ...string) {
	h.Helper()
	for _, id := range ids {
		h.tell(h.entry(id, presence.Offline, presence.Online, "c"))
	}
}

// sinkFunc is a sink that hands every message over.
type sinkFunc func(m *presencev1.WatchClientsResponse) error

func (f sinkFunc) message(m *presencev1.WatchClientsResponse) error { return f(m) }

func (f sinkFunc) entry(e *watchEntry, token string) error {
	var m presencev1.WatchClientsResponse
	if err := proto.Unmarshal(e.body, &m); err != nil {
		return err
	}
	m.ResumeToken = token
	return f(&m)
}

func (f sinkFunc) flush() error { return nil }

// watched is a watch that runs.
type watched struct {
	t      testing.TB
	got    chan *presencev1.WatchClientsResponse
	ended  chan error
	cancel context.CancelFunc
}

// watch runs a watch whose messages wait until they are taken.
func (h *hubTest) watch(req *presencev1.WatchClientsRequest) *watched {
	h.Helper()
	ctx, cancel := context.WithCancel(h.Context())
	w := &watched{t: h.TB, got: make(chan *presencev1.WatchClientsResponse), ended: make(chan error, 1), cancel: cancel}
	v, err := h.begin(ctx, req)
	if err != nil {
		h.Fatalf("begin: %v", err)
	}
	go func() {
		err := v.run(ctx, sinkFunc(func(m *presencev1.WatchClientsResponse) error {
			select {
			case w.got <- m:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}))
		v.end()
		w.ended <- err
	}()
	return w
}

// next is the next message.
func (w *watched) next() *presencev1.WatchClientsResponse {
	w.t.Helper()
	select {
	case m := <-w.got:
		return m
	case err := <-w.ended:
		w.t.Fatalf("the watch ended: %v", err)
		return nil
	}
}

// want reads one message, whose type is a heartbeat if no client is named.
func (w *watched) want(kind, id string) *presencev1.WatchClientsResponse {
	w.t.Helper()
	m := w.next()
	if m.GetType() != kind || m.GetTransition().GetClientId() != id {
		w.t.Fatalf("got %v, want %s %s", m, kind, id)
	}
	return m
}

// silent checks that nothing is sent now.
func (w *watched) silent() {
	w.t.Helper()
	synctest.Wait()
	select {
	case m := <-w.got:
		w.t.Fatalf("got %v, want nothing", m)
	default:
	}
}

// inBubble runs a test in virtual time, with the hub waking its watchers.
func inBubble(t *testing.T, test func(t *testing.T, h *hubTest), edit ...func(*Config)) {
	synctest.Test(t, func(t *testing.T) {
		h := newHubTest(t, edit...)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			h.hub.wake(ctx)
		}()
		test(t, h)
		cancel()
		<-done
	})
}

func (w *watched) stop() {
	w.cancel()
	<-w.ended
}

func TestWatchHeartbeat(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		for _, ids := range [][]string{nil, {"dev1"}} {
			w := h.watch(&presencev1.WatchClientsRequest{ClientIds: ids, Heartbeat: durationpb.New(10 * time.Second)})
			w.want(watchHeartbeat, "")
			began := time.Now()
			w.want(watchHeartbeat, "")
			if took := time.Since(began); took != 10*time.Second {
				t.Errorf("a heartbeat after %v", took)
			}
			<-time.After(9 * time.Second)
			h.connected("dev1")
			w.want(watchTransition, "dev1")
			began = time.Now()
			token := w.want(watchHeartbeat, "").GetResumeToken()
			if took := time.Since(began); took != 10*time.Second {
				t.Errorf("a heartbeat after %v", took)
			}
			if token != h.head() {
				t.Errorf("the heartbeat's token is not that of the end")
			}
			w.stop()
		}
	})
}

func (h *hubTest) head() string {
	h.hub.mu.Lock()
	defer h.hub.mu.Unlock()
	return h.hub.headToken()
}

func TestWatchDebounce(t *testing.T) {
	const on, off, unknown = presence.Online, presence.Offline, presence.Unknown
	inBubble(t, func(t *testing.T, h *hubTest) {
		w := h.watch(&presencev1.WatchClientsRequest{Debounce: durationpb.New(5 * time.Second), Heartbeat: durationpb.New(time.Minute)})
		first := w.want(watchHeartbeat, "").GetResumeToken()
		h.tell(h.entry("a", off, on, "c1"))
		<-time.After(4 * time.Second)
		w.silent()
		h.tell(h.entry("a", on, off, "c1"))
		<-time.After(2 * time.Second)
		h.tell(h.entry("b", off, on, "c1"))
		w.silent()
		// The last of a comes; its token does not pass b, which is held since.
		m := w.want(watchTransition, "a")
		if m.GetTransition().GetStatus() != "offline" {
			t.Errorf("told %v", m)
		}
		resumed := h.watch(&presencev1.WatchClientsRequest{ResumeToken: m.GetResumeToken()})
		resumed.want(watchTransition, "b")
		resumed.stop()
		if m := w.want(watchTransition, "b"); m.GetResumeToken() != h.head() {
			t.Error("nothing is held, but the token is not that of the end")
		}
		// There and back again: nothing to tell.
		h.tell(h.entry("b", on, unknown, "c1"), h.entry("b", unknown, on, "c1"))
		<-time.After(6 * time.Second)
		w.silent()
		// The same status, but of another connection.
		h.tell(h.entry("b", on, off, "c1"), h.entry("b", off, on, "c2"))
		if m := w.want(watchTransition, "b"); m.GetTransition().GetKey() != "c2" {
			t.Errorf("told %v", m)
		}
		// While something is held, no heartbeat's token passes it.
		w.stop()
		if first == h.head() {
			t.Error("the end did not move")
		}
	})
}

func TestWatchDebounceHeartbeat(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		w := h.watch(&presencev1.WatchClientsRequest{Debounce: durationpb.New(5 * time.Minute), Heartbeat: durationpb.New(time.Second)})
		first := w.want(watchHeartbeat, "").GetResumeToken()
		h.connected("a", "b", "c")
		for range 5 {
			if m := w.want(watchHeartbeat, ""); m.GetResumeToken() != first {
				t.Fatal("the token has passed what is held")
			}
		}
		w.stop()
	})
}

// A client that never comes to rest does not hold the token back, and its last transition is not lost.
func TestWatchDebounceWithoutRest(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		const on, off = presence.Online, presence.Offline
		req := &presencev1.WatchClientsRequest{Debounce: durationpb.New(3 * time.Second), Heartbeat: durationpb.New(time.Second)}
		w := h.watch(req)
		before := w.want(watchHeartbeat, "").GetResumeToken()
		h.tell(h.entry("a", off, on, "c1"))
		for range 5 {
			token := w.want(watchHeartbeat, "").GetResumeToken()
			if w.want(watchHeartbeat, ""); token != before {
				t.Error("the token has passed what is held")
			}
			before = h.head()
			h.tell(h.entry("a", on, off, "c1"))
		}
		last := w.want(watchHeartbeat, "").GetResumeToken()
		w.stop()
		req.ResumeToken = last
		resumed := h.watch(req)
		for range 2 {
			resumed.want(watchHeartbeat, "")
		}
		if m := resumed.want(watchTransition, "a"); m.GetTransition().GetStatus() != "offline" {
			t.Errorf("told %v", m)
		}
		resumed.stop()
	})
}

func TestDebounceIsBounded(t *testing.T) {
	h := newHubTest(t)
	d := newDebouncer(time.Hour)
	now := time.Now()
	var early []string
	for i := range maxHeld + 3 {
		d.add(h.entry(fmt.Sprint("dev", i), presence.Offline, presence.Online, "c"), "token", now)
		for e := d.take(now); e != nil; e = d.take(now) {
			early = append(early, e.client.id)
		}
	}
	if want := []string{"dev0", "dev1", "dev2"}; !slices.Equal(early, want) {
		t.Errorf("told early: %v, want %v", early, want)
	}
	for i := range maxTold + 10 {
		d.saw(clientName{"default", fmt.Sprint(i)}, sight{})
	}
	if len(d.held) != maxHeld || len(d.told) != maxTold || d.latest.Len() != maxHeld {
		t.Errorf("%d held, %d told, a list of %d", len(d.held), len(d.told), d.latest.Len())
	}
}

// A watcher that is too slow is told what it has not seen, and where that begins; the others are not held up.
func TestWatchSlow(t *testing.T) {
	for name, ids := range map[string][]string{"all": nil, "single clients": {"slow", "quick"}} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, h *hubTest) {
				w := h.watch(&presencev1.WatchClientsRequest{ClientIds: ids, Heartbeat: durationpb.New(time.Minute)})
				w.want(watchHeartbeat, "")
				synctest.Wait()
				h.connected("slow")
				synctest.Wait() // It holds this one, and waits for it to be taken.
				before := h.head()
				for range 25 {
					h.connected("quick", "other")
				}
				h.connected("quick")
				synctest.Wait()
				told := w.want(watchTransition, "slow").GetResumeToken()
				if told != before {
					t.Error("the token of the first transition")
				}
				m := w.want(watchSkipped, "")
				if ids == nil && (m.GetSkipped().GetRecords() != 41 || m.GetSkipped().GetResumeToken() != told) {
					t.Errorf("skipped %v", m.GetSkipped())
				}
				if m.GetSkipped().GetRecords() < 40 {
					t.Errorf("skipped %v", m.GetSkipped())
				}
				quick := 0
				for {
					synctest.Wait()
					select {
					case m := <-w.got:
						if m.GetTransition().GetClientId() == "quick" {
							quick++
						}
						continue
					default:
					}
					break
				}
				if quick != 5 {
					t.Errorf("after the gap %d transitions of 5", quick)
				}
				h.connected("quick")
				w.want(watchTransition, "quick")
				w.stop()
			}, func(c *Config) { c.WatchBuffer = 10 })
		})
	}
}

// A watcher of single clients is told of each of their transitions, also when there are more than the hub notes.
func TestWatchSingleClientsFlood(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		w := h.watch(&presencev1.WatchClientsRequest{ClientIds: []string{"dev", "other"}, Heartbeat: durationpb.New(time.Minute)})
		w.want(watchHeartbeat, "")
		synctest.Wait()
		const n = 3 * maxWatchHits
		var entries []*watchEntry
		for i := range n {
			e := h.entry("dev", presence.Offline, presence.Online, fmt.Sprint(i))
			entries = append(entries, h.entry("noise", presence.Offline, presence.Online, "c"), e)
		}
		h.tell(entries[:n]...)
		synctest.Wait()
		for i := range n {
			if i == 2*maxWatchRead {
				// There is room for notes again, but not for these: some before them were not noted.
				h.tell(entries[n:]...)
			}
			if m := w.want(watchTransition, "dev"); m.GetTransition().GetKey() != fmt.Sprint(i) {
				t.Fatalf("transition %d is %v", i, m)
			}
		}
		synctest.Wait()
		h.connected("other")
		w.want(watchTransition, "other")
		w.stop()
		if len(h.hub.byClient) != 0 || h.hub.scanning != 0 {
			t.Errorf("after the watch %d clients are noted, %d watchers read", len(h.hub.byClient), h.hub.scanning)
		}
	})
}

// A position of another process, in whose sequence the partitions came in another order, is found exactly.
func TestWatchResumesAcrossSequences(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		var ids []string
		for i := range 40 {
			ids = append(ids, fmt.Sprint("dev", i))
		}
		h.connected(ids...)
		partition := func(id string) int32 { return eventlog.Partition(eventlog.ClientKey("default", id), hubPartitions) }
		// The other process had all of partition 1 and, of partition 0, the first three.
		p := watchPosition{topic: h.at.topic, timeMS: h.at.timeMS, next: []int64{3, h.at.next[1]}}
		w := h.watch(&presencev1.WatchClientsRequest{ResumeToken: p.token()})
		seen := 0
		for _, id := range ids {
			if partition(id) != 0 {
				continue
			}
			if seen++; seen > 3 {
				w.want(watchTransition, id)
			}
		}
		if seen < 5 {
			t.Fatalf("%d clients in partition 0", seen)
		}
		w.silent()
		if h.connected("next"); w.want(watchTransition, "next").GetResumeToken() != h.head() {
			t.Error("the token is not that of the end")
		}
		w.stop()
	})
}

// A position ahead of this process, in a partition that it has not read yet, is kept.
func TestWatchAheadOfTheHub(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		h.connected("dev1", "dev2")
		p := watchPosition{topic: h.at.topic, timeMS: h.at.timeMS, next: []int64{h.at.next[0] + 2, h.at.next[1] + 2}}
		c, err := h.hub.join(&watchFilter{cluster: "default", anyStatus: true}, h.hub.epoch, &p)
		if err != nil || c == nil {
			t.Fatal(c, err)
		}
		var got []string
		all := []string{"dev3", "dev4", "dev5", "dev6", "dev7", "dev8", "dev9", "dev10"}
		left := map[int32]int{0: 2, 1: 2}
		var want []string
		for _, id := range all {
			h.connected(id)
			if p := eventlog.Partition(eventlog.ClientKey("default", id), hubPartitions); left[p] > 0 {
				left[p]--
			} else {
				want = append(want, id)
			}
			r, err := c.read(make([]watchItem, 0, maxWatchRead))
			if err != nil {
				t.Fatal(err)
			}
			for _, item := range r.items {
				got = append(got, item.client.id)
			}
		}
		if !slices.Equal(got, want) || len(want) == 0 {
			t.Errorf("got %v, want %v", got, want)
		}
		c.leave()
	})
}

func TestWatchEnds(t *testing.T) {
	inBubble(t, func(t *testing.T, h *hubTest) {
		w := h.watch(&presencev1.WatchClientsRequest{})
		w.want(watchHeartbeat, "")
		h.hub.end(errTopicChanged)
		if err := <-w.ended; status.Code(err) != codes.OutOfRange {
			t.Errorf("the log is no more: %v", err)
		}
		h.hub.begin(h.at, h.at, time.Hour, nil)
		w = h.watch(&presencev1.WatchClientsRequest{ClientIds: []string{"a"}})
		w.want(watchHeartbeat, "")
		synctest.Wait()
		h.hub.close()
		w.want(watchHeartbeat, "")
		if err := <-w.ended; status.Code(err) != codes.Unavailable {
			t.Errorf("the service stops: %v", err)
		}
		// One that begins now ends at once, and says where to go on.
		w = h.watch(&presencev1.WatchClientsRequest{})
		w.want(watchHeartbeat, "")
		w.want(watchHeartbeat, "")
		if err := <-w.ended; status.Code(err) != codes.Unavailable {
			t.Errorf("the service has stopped: %v", err)
		}
	})
}

// The ring keeps its bounds, and says from where it has all.
func TestWatchRingBounds(t *testing.T) {
	h := newHubTest(t, func(c *Config) { c.WatchBufferBytes = 1 << 20 })
	for range 5_000 {
		h.connected("dev1", "dev2")
	}
	var bytes int64
	for _, e := range h.hub.ring {
		bytes += e.size()
	}
	if bytes != h.hub.bytes || bytes > 1<<20 || bytes < 1<<19 {
		t.Errorf("the ring holds %d bytes and says %d", bytes, h.hub.bytes)
	}
	for p, start := range h.hub.start {
		for _, e := range h.hub.ring {
			if e.partition == int32(p) {
				if e.offset != start {
					t.Errorf("partition %d begins at %d, the first entry is %d", p, start, e.offset)
				}
				break
			}
		}
	}
	if p, err := parseWatchToken(h.hub.before, time.Now()); err != nil || !slices.Equal(p.next, h.hub.start) {
		t.Errorf("the position before the ring is %v, %v; want %v", p, err, h.hub.start)
	}
}

func TestVersionsKnowCopies(t *testing.T) {
	var v versions
	entry := func(id string, event int64, removed bool) *watchEntry {
		return &watchEntry{client: clientName{"default", id}, version: [2]int64{event, 0}, removed: removed}
	}
	for i := range recentVersions {
		if v.copied(entry("dev", int64(i), false)) {
			t.Fatalf("version %d is new", i)
		}
	}
	for i := range recentVersions {
		if !v.copied(entry("dev", int64(i), false)) {
			t.Fatalf("version %d is a copy", i)
		}
	}
	if v.copied(entry("dev", 7, true)) || v.copied(entry("other", 7, false)) {
		t.Error("a removal, or another client, is no copy")
	}
	if v.copied(entry("dev", 0, false)) || len(v.seen) != recentVersions {
		t.Errorf("the window holds %d", len(v.seen))
	}
}

func FuzzWatchToken(f *testing.F) {
	now := time.UnixMilli(1_795_430_350_000)
	for _, p := range []watchPosition{
		{}, {timeMS: now.UnixMilli(), next: []int64{0}}, {topic: [16]byte{1, 2, 3}, timeMS: 1, next: []int64{1, 1 << 61, 0, 300}},
	} {
		f.Add(p.token())
	}
	f.Add("")
	f.Add("AQ==")
	f.Fuzz(func(t *testing.T, token string) {
		p, err := parseWatchToken(token, now)
		if err != nil {
			if !errors.Is(err, errWatchToken) {
				t.Errorf("error %v", err)
			}
			return
		}
		if p.token() != token {
			t.Errorf("token %q is read as that of %v", token, p)
		}
		for _, offset := range p.next {
			if offset < 0 {
				t.Errorf("offset %d", offset)
			}
		}
	})
}
