package materializer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// exactWorld is a partition about which all answers are known: those of each client at each offset, with each table of nodes.
type exactWorld struct {
	p       *partition
	ids     []string
	records []*kgo.Record
	nodes   []*kgo.Record
	offsets map[string][]int64          // by client, of its facts
	states  map[string][]presence.State // by client, after so many of its facts
	tables  []*presence.Cluster         // after so many node facts
}

func newExactWorld(t *testing.T, clients, facts, nodeFacts int) *exactWorld {
	t.Helper()
	w := &exactWorld{p: benchPartition(t, false, store.DefaultEvidence), offsets: map[string][]int64{}, states: map[string][]presence.State{}}
	dice := rand.New(rand.NewPCG(1, 2))
	latest := map[string]presence.Fact{}
	for i := range clients {
		id := fmt.Sprint("dev", i)
		w.ids, w.states[id] = append(w.ids, id), []presence.State{{}}
	}
	for i := range facts {
		id, ms := w.ids[dice.IntN(clients)], int64(i)*1000
		f, online := latest[id]
		if online {
			f = closedAt(id, f.Node, f.ConnectedAtMS-t0, ms)
			delete(latest, id)
		} else {
			f = opened(id, fmt.Sprint("n", dice.IntN(3)), ms)
			latest[id] = f
		}
		r := eventlog.FactRecord(&f, eventlog.JSON)
		r.Offset = int64(i)
		w.records = append(w.records, r)
		states := w.states[id]
		// Apply works in place: each state is folded anew from its bytes.
		s, err := presence.DecodeState(states[len(states)-1].Append(nil))
		if err != nil {
			t.Fatal(err)
		}
		s.Apply(&f)
		w.states[id], w.offsets[id] = append(states, s), append(w.offsets[id], int64(i))
	}
	w.tables = []*presence.Cluster{nil}
	for i := range nodeFacts {
		f := started(fmt.Sprint("n", dice.IntN(3)), int64(i*facts/nodeFacts)*1000)
		r := eventlog.NodeRecord(&f, eventlog.JSON)
		r.Offset = int64(i)
		w.nodes = append(w.nodes, r)
		c := cloneCluster(w.tables[i])
		c.Apply(&f)
		w.tables = append(w.tables, c)
	}
	return w
}

// check compares an entry with the fold of what is below the offsets that the answer states.
func (w *exactWorld) check(id string, e *presencev1.StateEntry, f *presencev1.PartitionFreshness) error {
	n := 0
	for n < len(w.offsets[id]) && w.offsets[id][n] < f.GetAppliedOffset() {
		n++
	}
	state := w.states[id][n]
	v := presence.Status(&state, w.tables[f.GetNodeAppliedOffset()], w.p.allowanceMS())
	got := fmt.Sprintln(e.GetFound(), e.GetStatus(), e.GetBelief(), e.GetStatusReason(), e.GetSinceMs(), e.GetNode(), e.GetConnection().GetKey())
	want := fmt.Sprintln(!state.Empty(), v.Status, v.Belief, v.Reason, v.SinceMS, v.Node, connectionKey(&v))
	if logged := e.GetEvidence().GetFacts(); len(logged) > 0 {
		got, want = fmt.Sprintln(got, logged[len(logged)-1].GetOffset()), fmt.Sprintln(want, w.offsets[id][n-1])
	}
	if got != want {
		return fmt.Errorf("%s with %d facts below %d, and %d of the nodes: %swant %s", id, n, f.GetAppliedOffset(), f.GetNodeAppliedOffset(), got, want)
	}
	return nil
}

// ask reads clients in one of the ways there are, and checks the answer.
func (w *exactWorld) ask(m *Materializer, dice *rand.Rand) error {
	req := &presencev1.GetStatesRequest{Cluster: "default"}
	switch dice.IntN(4) {
	case 0:
		answer, err := m.ListStates(context.Background(), &presencev1.ListStatesRequest{Cluster: "default", Limit: maxListed})
		if err != nil {
			return err
		}
		for _, e := range answer.GetEntries() {
			if err := w.check(e.GetClientId(), e, answer.GetPartitions()[0]); err != nil {
				return fmt.Errorf("list: %w", err)
			}
		}
		return nil
	case 1:
		for _, id := range w.ids {
			req.Keys = append(req.Keys, &presencev1.StateKey{ClientId: id})
		}
	case 2:
		req.Explain = true
		fallthrough
	default:
		req.Keys = []*presencev1.StateKey{{ClientId: w.ids[dice.IntN(len(w.ids))]}}
	}
	answer, err := m.GetStates(context.Background(), req)
	if err != nil {
		return err
	}
	for _, e := range answer.GetEntries() {
		if err := w.check(req.GetKeys()[e.GetIndex()].GetClientId(), e, answer.GetPartitions()[0]); err != nil {
			return fmt.Errorf("%d clients, explained %v: %w", len(req.GetKeys()), req.GetExplain(), err)
		}
	}
	return nil
}

func (w *exactWorld) materializer() *Materializer {
	m := &Materializer{cfg: w.p.parts.cfg, log: w.p.log, metrics: w.p.parts.metrics}
	m.served.Store(&map[int32]*partition{0: w.p})
	m.shared.Store(w.p.parts)
	return m
}

// Every answer, whatever is folded and swept meanwhile, is the fold of exactly the facts below the offsets that it states.
func TestAnswersAreThoseOfTheirOffsets(t *testing.T) {
	const clients, facts, nodeFacts = 4, 6000, 60
	w := newExactWorld(t, clients, facts, nodeFacts)
	m := w.materializer()
	folded := make(chan struct{})
	failed := make(chan error, 4)
	var readers sync.WaitGroup
	for i := range 3 {
		readers.Go(func() {
			dice := rand.New(rand.NewPCG(3, uint64(i)))
			for {
				select {
				case <-folded:
					return
				default:
				}
				if err := w.ask(m, dice); err != nil {
					failed <- err
					return
				}
			}
		})
	}
	ctx := context.Background()
	for i := 0; i < facts; i += 2 {
		if every := facts / nodeFacts; i%every == 0 {
			if err := w.p.parts.nodes.apply(ctx, w.nodes[i/every:i/every+1]); err != nil {
				t.Fatal(err)
			}
			w.p.sweep.aim(w.p.parts.nodes.table(), w.p.meta.SweptNode)
		}
		if err := w.p.foldBatch(ctx, w.records[i:i+2]); err != nil {
			t.Fatal(err)
		}
		if w.p.sweep.active() && i%7 == 0 {
			if err := w.p.sweepChunk(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	close(folded)
	readers.Wait()
	select {
	case err := <-failed:
		t.Error(err)
	default:
	}
	if err := w.check(w.ids[0], one(t, m, w.ids[0]), &presencev1.PartitionFreshness{AppliedOffset: facts, NodeAppliedOffset: nodeFacts}); err != nil {
		t.Errorf("in the end: %v", err)
	}
}

func one(t *testing.T, m *Materializer, id string) *presencev1.StateEntry {
	t.Helper()
	answer, err := m.GetStates(t.Context(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: id}}})
	if err != nil || len(answer.GetEntries()) != 1 {
		t.Fatalf("%v, %v", answer, err)
	}
	return answer.GetEntries()[0]
}

// Rows of a batch that is visible, and of which readers were not told yet, go with its offset.
func TestAnswerBetweenACommitAndItsOffset(t *testing.T) {
	w := newExactWorld(t, 1, 20, 1)
	m := w.materializer()
	p, dice := w.p, rand.New(rand.NewPCG(1, 1))
	for i, r := range w.records {
		// What foldBatch does, but for the end: that comes after the reads.
		before := p.progress.read()
		if err := p.foldBatch(t.Context(), []*kgo.Record{r}); err != nil {
			t.Fatal(err)
		}
		p.progress.committing()
		p.progress.mu.Lock()
		p.progress.next, p.progress.applied = before.next, before.appliedMS
		p.progress.mu.Unlock()
		for range 8 {
			if err := w.ask(m, dice); err != nil {
				t.Fatalf("after fact %d: %v", i, err)
			}
		}
		p.progress.advance(p.meta.Next, p.meta.AppliedMS)
	}
}

// A row that was restored from client-state is ahead of the offset to go on from: what is said of its client is the fold up to the row's version.
func TestAnswerOfARestoredRow(t *testing.T) {
	const clients, facts, back = 4, 20, 5
	w := newExactWorld(t, clients, facts, 1)
	m, p := w.materializer(), w.p
	if err := p.foldBatch(t.Context(), w.records); err != nil {
		t.Fatal(err)
	}
	p.meta.Next = back
	b := p.indexes.NewBatch()
	b.PutMeta(&p.meta)
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	p.progress.mu.Lock()
	p.progress.next = back
	p.progress.mu.Unlock()
	for _, asked := range []string{"one", "view"} {
		for _, id := range w.ids {
			answer, err := m.GetStates(t.Context(), &presencev1.GetStatesRequest{Cluster: "default", Keys: []*presencev1.StateKey{{ClientId: id}}})
			if err == nil {
				err = w.check(id, answer.GetEntries()[0], answer.GetPartitions()[0])
			}
			if err != nil {
				t.Errorf("%s: %v", asked, err)
			}
		}
		p.progress.committing() // as long as a batch is committed, answers are from a view
	}
}

// A partition that was given up while a client of it was read is not answered for: somebody else may have written its rows.
func TestNoAnswerForAPartitionGivenUp(t *testing.T) {
	w := newExactWorld(t, 1, 2, 1)
	m := w.materializer()
	r := m.reader()
	r.cluster, r.ids = "default", []int32{0}
	k := &presencev1.StateKey{ClientId: w.ids[0]}
	r.locate(k)
	resp := &presencev1.GetStatesResponse{}
	owned := m.owned()
	m.setServed(0, nil)
	view, err := w.p.parts.store.NewView()
	if err != nil {
		t.Fatal(err)
	}
	r.seen = append(r.seen, partitionFreshness{0, w.p.progress.read()})
	if err := closeView(view, r.lookUp(view, owned)); err != nil || len(r.seen) != 0 {
		t.Errorf("it is still read, %v", err)
	}
	if done, err := r.readOne(k, resp); !done || err != nil || len(resp.GetNotOwned()) != 1 {
		t.Errorf("%v, %v, %v", done, err, resp)
	}
}
