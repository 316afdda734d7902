package materializer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

func TestClockGoesByTheFacts(t *testing.T) {
	const start, far = 1_760_000_000_000, 4_000_000_000_000
	for _, c := range []struct {
		name  string
		times []int64
		want  int64
	}{
		{"it follows", []int64{start + 1, start + hourMS, start + 5}, start + hourMS},
		{"a bridge far ahead moves it not", []int64{start + 1, far, start + 2, far + dayMS + 1, start + 3, far + 2*dayMS}, start + 3},
		{"nor does one in between that is alone for less than a day", []int64{start + 1, far, far + dayMS - 1}, start + 1},
		{"after a long silence it comes a day late", []int64{start + 30*dayMS, start + 30*dayMS + hourMS, start + 31*dayMS}, start + 31*dayMS},
		{"what is between counts from there", []int64{far, start + 30*dayMS, start + 31*dayMS}, start + 31*dayMS},
		{"after a silence a bridge far ahead moves it no further", []int64{start + 30*dayMS, far, start + 30*dayMS + 1}, start + 30*dayMS + 1},
		{"a silence after another", []int64{start + 30*dayMS, start + 60*dayMS, start + 90*dayMS}, start + 60*dayMS},
	} {
		m := store.Meta{ClockMS: start}
		for _, ms := range c.times {
			tick(&m, ms)
		}
		if m.ClockMS != c.want {
			t.Errorf("%s: %d, want %d", c.name, m.ClockMS-start, c.want-start)
		}
	}
	// Of a new partition too: the first fact is as if it came after a silence.
	var m store.Meta
	for _, ms := range []int64{start, far, start + 1, far + dayMS, start + 2} {
		tick(&m, ms)
	}
	if m.ClockMS > start+2 {
		t.Errorf("a bridge far ahead moves the clock of a new partition by %d", m.ClockMS-start)
	}
}

// dump writes what a store has of a partition's clients, but for offsets of publication.
func dump(t testing.TB, p *partition) string {
	t.Helper()
	var out bytes.Buffer
	if _, err := p.parts.store.Rows(0, nil, 1<<30, func(client, value []byte) error {
		var r store.Row
		if _, err := r.Decode(value); err != nil {
			return err
		}
		log, err := p.parts.store.AppendSessions(nil, 0, client)
		fmt.Fprintf(&out, "%s %x %x\n", client, value, log)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "clock %d\n", p.meta.ClockMS)
	return out.String()
}

// walk removes what is gone.
func walk(t testing.TB, p *partition) {
	t.Helper()
	p.expiry = expiry{active: true}
	for p.expiry.active {
		if err := p.expiryChunk(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}

// restart is what a restart keeps of a partition.
func restart(t testing.TB, p *partition) {
	t.Helper()
	meta, _, err := p.parts.store.Meta(0)
	if err != nil {
		t.Fatal(err)
	}
	p.meta = meta
	if p.indexes, err = p.parts.store.Indexes(0); err != nil {
		t.Fatal(err)
	}
	p.folds = fold{}
	p.folds.init()
}

func expiring(t testing.TB, publish bool, after time.Duration) *partition {
	t.Helper()
	p := sessionPartition(t, publish)
	p.parts.cfg.ExpireAfter = after
	return p
}

// at is a fact as received at a time.
func at(f presence.Fact, receivedMS int64) presence.Fact {
	f.ReceivedMS = t0 + receivedMS
	return f
}

func TestExpiry(t *testing.T) {
	const later = 40 * dayMS
	other := func(ms int64) presence.Fact { return opened("other", "n1", ms) }
	// The clock follows a day after a silence.
	pass := []presence.Fact{other(later), other(later + dayMS), other(later + dayMS + 1)}
	// A login that failed says nothing of the client that it names; whether that is offline is not known here.
	stranger := of(line(presence.Closed, 2, 1, presence.ReasonNotAuthorized), func(f *presence.Fact) { f.Dialect, f.Connection = presence.DialectMosquitto21, "127.0.0.1:9" })
	tests := []struct {
		name  string
		facts []presence.Fact
		then  []presence.Fact
		want  []string // sessions of the client at the end
	}{
		{"an offline client is forgotten", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000)}, nil, nil},
		{"one that is online stays", []presence.Fact{opened("a", "n1", 1000)}, nil, []string{"n1 1000 connected"}},
		{"one that is undecided stays", []presence.Fact{opened("a", "n1", 1000), of(closedAt("a", "n1", 1000, 2000), func(f *presence.Fact) { f.Reason = presence.ReasonTakenOver })}, nil,
			[]string{"n1 1000 successor_unseen"}},
		{"one that comes back begins anew", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000)}, []presence.Fact{opened("a", "n1", later+2*dayMS)},
			[]string{"n1 3628800000 connected"}},
		{"what is too old does not come back", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000)}, []presence.Fact{opened("a", "n1", 1000)}, nil},
		{"a Closed of before that was received now", []presence.Fact{opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000)},
			[]presence.Fact{at(closedAt("a", "n1", 1000, 2000), later+dayMS)}, []string{"n1 1000 closed"}},
		{"one of which no connection is known, as if it were never seen", []presence.Fact{stranger}, nil, nil},
		{"a deletion is never too old", []presence.Fact{opened("a", "n1", 1000)}, []presence.Fact{forgotten("a", 5000, 5000)}, nil},
		{"what is too old changes nothing of one that stays", []presence.Fact{opened("a", "n1", 1000)}, []presence.Fact{closedAt("a", "n1", 1000, 2000)}, []string{"n1 1000 connected"}},
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			for _, walked := range []bool{false, true} {
				p := expiring(t, true, 30*24*time.Hour)
				offset := int64(0)
				fold := func(facts ...presence.Fact) {
					foldFacts(t, p, offset, facts...)
					offset += int64(len(facts))
				}
				fold(c.facts...)
				fold(pass...)
				if walked {
					walk(t, p)
				}
				fold(c.then...)
				walk(t, p)
				e := read(t, p, "a")
				if got := sessions(e); !slices.Equal(got, c.want) || e.GetFound() != (c.want != nil) {
					t.Errorf("walked %v: %q, found %v; want %q", walked, got, e.GetFound(), c.want)
				}
			}
		})
	}
}

// What is folded again after a client expired is published again, also where nothing but the tombstone tells it from what was published before.
func TestExpiredIsPublishedAgain(t *testing.T) {
	p := expiring(t, true, 24*time.Hour)
	setNodes(p, started("n1", 0), presence.NodeFact{ID: "f", Kind: presence.Feed, Cluster: "default", Bridge: "b", ReceivedMS: t0, LeaseMS: 1000, CompleteSinceMS: t0, ResyncedMS: t0})
	denied := presence.Fact{Kind: presence.Observed, Cluster: "default", ClientID: "a", Dialect: presence.DialectEMQX, Online: presence.Some(false),
		QueryStartMS: t0 + 10, QueryEndMS: t0 + 20, ReceivedMS: t0 + 30}
	dirty := func() (clients []string) {
		if err := p.parts.store.Dirty(0, func(client []byte) (bool, error) {
			clients = append(clients, string(client))
			return true, nil
		}); err != nil {
			t.Fatal(err)
		}
		return clients
	}
	foldFacts(t, p, 0, denied)
	for want := []string{"default/a"}; ; foldFacts(t, p, 1, opened("b", "n1", 1), opened("b", "n1", dayMS), opened("b", "n1", 2*dayMS), at(denied, 2*dayMS)) {
		if got := dirty(); !slices.Equal(got, want) {
			t.Fatalf("at offset %d the dirty ones are %q, want %q", p.meta.Next, got, want)
		}
		if p.meta.Next > 1 {
			break
		}
		if err := p.checkpoint(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := dirty(); len(got) != 0 {
			t.Fatalf("%q are dirty after the checkpoint", got)
		}
	}
	if got := buriedOf(t, p, "a"); !slices.Equal(got, []string{"offline 0", "expired 3"}) { // and the next checkpoint has it again
		t.Errorf("published %q", got)
	}
}

// A store that is filled from client-state goes on with the clock of the checkpoint.
func TestClockIsRestored(t *testing.T) {
	l := newLog(t)
	cfg := l.config(vfs.NewMem())
	cfg.CheckpointInterval = 10 * time.Millisecond
	m := l.start(cfg).ready()
	m.get("a", l.facts(opened("a", "n1", 0), opened("a", "n1", dayMS), opened("a", "n1", dayMS+1000)))
	m.published(l)
	id := eventlog.Partition(eventlog.ClientKey("default", "a"), l.cfg.Partitions)
	servicetest.Eventually(t, patience, func() error { return l.checkpointed(id, 3) })
	if err := m.stop(); err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	if err := l.start(l.config(fs)).ready().stop(); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open("data", store.Options{FS: fs})
	if err != nil {
		t.Fatal(err)
	}
	meta, _, err := db.Meta(id)
	if err := errors.Join(err, db.Close()); err != nil || meta.ClockMS != t0+dayMS+1005 {
		t.Errorf("the clock is %d, error %v", meta.ClockMS-t0, err)
	}
}

// What expired is missing in the history of a client that comes back, which says so; in that of one that stayed nothing is.
func TestHistoryWithoutWhatExpired(t *testing.T) {
	const later = 40 * dayMS
	for _, walked := range []bool{false, true} {
		p := expiring(t, true, 30*24*time.Hour)
		foldFacts(t, p, 0, opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("stays", "n1", 1000), opened("stays", "n1", 2000),
			opened("other", "n1", later), opened("other", "n1", later+dayMS), opened("other", "n1", later+dayMS+1))
		if walked {
			walk(t, p)
		}
		foldFacts(t, p, 7, opened("a", "n1", later+2*dayMS), opened("stays", "n1", later+2*dayMS))
		for id, want := range map[string]int64{"a": later + 2*dayMS + 5 - 30*dayMS, "stays": 1000} {
			if got := read(t, p, id).GetHistory().GetCompleteSinceMs() - t0; got != want {
				t.Errorf("walked %v: the history of %s is complete since %d, want %d", walked, id, got, want)
			}
		}
	}
}

// What is kept does not depend on how facts were batched, on restarts, or on when the walk came by.
func TestExpiryIsAFunctionOfTheLog(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for round := range 40 {
		facts := agingFacts(random)
		whole := expiring(t, false, 3*24*time.Hour)
		foldFacts(t, whole, 0, facts...)
		walk(t, whole)
		want := dump(t, whole)

		live := expiring(t, false, 3*24*time.Hour)
		for i := 0; i < len(facts); {
			n := min(1+random.IntN(20), len(facts)-i)
			foldFacts(t, live, int64(i), facts[i:i+n]...)
			i += n
			switch random.IntN(4) {
			case 0:
				walk(t, live)
			case 1:
				restart(t, live)
			}
		}
		walk(t, live)
		if got := dump(t, live); got != want {
			t.Fatalf("round %d:\n%s\nwant\n%s", round, got, want)
		}
	}
}

// agingFacts are facts about a few clients, over weeks, with silences, late and repeated facts, deletions, and a bridge whose clock is wrong.
func agingFacts(random *rand.Rand) []presence.Fact {
	var facts []presence.Fact
	var now int64 = dayMS
	openedMS := map[string]int64{}
	for range 150 {
		switch random.IntN(12) {
		case 0:
			now += int64(random.IntN(6)) * dayMS
		case 1:
			if len(facts) > 0 {
				late := facts[random.IntN(len(facts))]
				if random.IntN(2) == 0 {
					late.ReceivedMS = t0 + now
				}
				facts = append(facts, late)
			}
			continue
		case 2:
			facts = append(facts, at(opened("x", "n1", now), now+3650*dayMS))
			continue
		case 3:
			facts = append(facts, forgotten("abcdef"[random.IntN(6):][:1], now-int64(random.IntN(3))*1000, now))
			continue
		}
		now += int64(random.IntN(int(6 * hourMS)))
		id, node := "abcdef"[random.IntN(6):][:1], fmt.Sprint("n", random.IntN(2))
		if ms, ok := openedMS[id+node]; ok && random.IntN(2) == 0 {
			facts = append(facts, closedAt(id, node, ms, now))
			continue
		}
		openedMS[id+node] = now
		facts = append(facts, opened(id, node, now))
	}
	return facts
}

// forgotten asks for a client to be forgotten.
func forgotten(id string, asOfMS, receivedMS int64) presence.Fact {
	f := presence.Fact{Kind: presence.Forgotten, Cluster: "default", ClientID: id, TimeMS: t0 + receivedMS, ReceivedMS: t0 + receivedMS, AsOfMS: t0 + asOfMS, Source: "ops"}
	f.SetID()
	return f
}

// buriedOf returns the records of a client in the outbox of a partition without Kafka: statuses, and reasons of tombstones.
func buriedOf(t testing.TB, p *partition, clientID string) []string {
	t.Helper()
	var out []string
	if err := eachRecord(p.parts.store, 0, func(r *kgo.Record) error {
		var d record
		ok, err := d.decode(r)
		switch {
		case err != nil || !ok:
			return fmt.Errorf("record of %s: %v, %w", r.Key, ok, err)
		case d.state == nil && d.tombstone.ClientID == clientID:
			out = append(out, fmt.Sprint(d.tombstone.Reason, " ", d.version.Event))
		case d.state != nil && d.state.ClientID == clientID:
			out = append(out, fmt.Sprint(d.state.Status, " ", d.version.Event))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestExpiryIsPublished(t *testing.T) {
	p := expiring(t, true, 24*time.Hour)
	foldFacts(t, p, 0, opened("a", "n1", 1000), closedAt("a", "n1", 1000, 2000), opened("b", "n1", 1), opened("b", "n1", dayMS), opened("b", "n1", dayMS+5000))
	walk(t, p)
	foldFacts(t, p, 5, opened("a", "n1", 3*dayMS/2), closedAt("a", "n1", 3*dayMS/2, 3*dayMS/2+1), opened("b", "n1", 2*dayMS), opened("b", "n1", 3*dayMS),
		opened("a", "n1", 3*dayMS+1))
	if got, want := buriedOf(t, p, "a"), []string{"online 0", "offline 1", "expired 4", "online 5", "offline 6", "expired 8", "online 9"}; !slices.Equal(got, want) {
		t.Errorf("published %q, want %q", got, want)
	}
	var r kgo.Record
	if err := eachRecord(p.parts.store, 0, func(stored *kgo.Record) error {
		if len(stored.Value) == 0 {
			r = *stored
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	var d eventlog.Tombstone
	if ok, err := eventlog.DecodeTombstone(&r, &d); r.Value != nil || !ok || err != nil {
		t.Errorf("the tombstone in the store is %+v, %v, %v", r, ok, err)
	}
}
