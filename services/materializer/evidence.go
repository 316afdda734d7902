package materializer

import (
	"cmp"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// log links a fact that was folded to the others of its client, for writeEvidence.
func (f *fold) log(i int) {
	pf := &f.facts[i]
	e := &f.entries[pf.entry]
	if isForgotten(&pf.Fact, &e.row.State) {
		return
	}
	if pf.Fact.Kind == presence.Forgotten && pf.Outcome == presence.Applied {
		// Everything before is to be forgotten, also what the log says of it.
		e.first, e.logged, e.forgotten = 0, 0, true
	}
	if e.first == 0 {
		e.first = i + 1
	} else {
		f.facts[e.last-1].next = i + 1
	}
	e.last = i + 1
	e.logged++
}

// writeEvidence appends the client's facts of the batch to its log.
func (p *partition) writeEvidence(b *store.Batch, e *entry) {
	limit := p.parts.cfg.EvidencePerClient
	if !e.forgotten && (e.logged == 0 || limit == 0) {
		return
	}
	f := &p.folds
	f.key = append(f.key[:0], e.key...)
	if limit == 0 {
		b.SetEvidence(f.key, nil) // of when there was a log
		return
	}
	log := f.logged[:0]
	if e.forgotten || e.logged > limit {
		log = store.MarkCut(log)
	}
	skip := e.logged - limit
	for i := e.first; i != 0; i = f.facts[i-1].next {
		if skip--; skip >= 0 {
			continue
		}
		log = store.AppendEvidence(log, &f.facts[i-1].Evidence)
	}
	f.logged = log
	if e.forgotten {
		b.SetEvidence(f.key, log)
		return
	}
	b.AddEvidence(f.key, log)
}

// logChange appends a transition that no fact of the client caused to its log.
func (p *partition) logChange(b *store.Batch, client []byte, r *store.Row) {
	if p.parts.cfg.EvidencePerClient == 0 {
		return
	}
	f := &p.folds
	f.logged = store.AppendEvidence(f.logged[:0], &store.Evidence{Offset: r.Last.Version.Event, Changed: true, Change: changeOf(&r.Last)})
	b.AddEvidence(client, f.logged)
}

func changeOf(t *store.Transition) store.Change {
	return store.Change{Status: t.Status, Belief: t.Belief, Previous: t.Previous, Reason: t.Reason, Node: t.Version.Node}
}

// loggedFrom is the offset from which on the partition's facts are logged, if the logging begins now.
func (p *partition) loggedFrom() int64 {
	if p.parts.cfg.EvidencePerClient == 0 {
		return -1
	}
	return p.meta.Next
}

// noteLogging notes that logging was turned on or off since the partition was folded last.
func (p *partition) noteLogging() error {
	from, err := p.parts.store.Logged(p.id)
	if err != nil || (from < 0) == (p.parts.cfg.EvidencePerClient == 0) {
		return err
	}
	b := p.parts.store.NewBatch(p.id)
	b.PutLogged(p.loggedFrom())
	return b.Commit()
}

// evidence describes what the status of the row that was read rests on.
func (r *reader) evidence(from source, p *partition, state []byte) (*presencev1.Evidence, error) {
	e := &presencev1.Evidence{State: slices.Clone(state), LoggedFrom: -1, AllowanceMs: p.allowanceMS()}
	if p.parts.cfg.EvidencePerClient == 0 {
		return e, nil
	}
	var err error
	if e.LoggedFrom, err = from.Logged(p.id); err != nil {
		return nil, err
	}
	log, complete, cut, err := from.Evidence(p.id, r.key)
	if err != nil {
		return nil, err
	}
	if e.Cut = cut; cut && complete > 0 {
		oldest := &log[len(log)-complete]
		from := oldest.Offset
		if oldest.Fact.Kind == presence.KindUnknown {
			from++ // the facts up to it came before
		}
		e.LoggedFrom = max(e.LoggedFrom, from)
	}
	// A partition that went back to an earlier offset folds facts again: the first entry tells what became of them.
	facts, versions := map[int64]bool{}, map[store.Version]bool{}
	for i := range log {
		l := &log[i]
		if l.Fact.Kind != presence.KindUnknown && !facts[l.Offset] {
			facts[l.Offset] = true
			e.Facts = append(e.Facts, factOf(l))
		}
		if v := (store.Version{Event: l.Offset, Node: l.Change.Node}); l.Changed && !versions[v] {
			versions[v] = true
			e.Transitions = append(e.Transitions, transitionOf(l))
		}
	}
	slices.SortStableFunc(e.Facts, func(a, b *presencev1.EvidenceFact) int { return cmp.Compare(a.GetOffset(), b.GetOffset()) })
	return e, nil
}

func factOf(l *store.Evidence) *presencev1.EvidenceFact {
	f := &l.Fact
	return &presencev1.EvidenceFact{
		Offset: l.Offset, Type: f.Kind.String(), Outcome: l.Outcome.String(), Restored: l.Restored, Node: f.Node, Connection: f.Connection,
		Dialect: f.Dialect, TimeMs: f.TimeMS, Order: f.Order, ReceivedMs: f.ReceivedMS, ConnectedAtMs: f.ConnectedAtMS,
		DisconnectedAtMs: f.DisconnectedAtMS, Reason: f.Reason.String(), RawReason: f.RawReason, Online: pointer(f.Online),
		QueryStartMs: f.QueryStartMS, QueryEndMs: f.QueryEndMS, Source: f.Source, AsOfMs: f.AsOfMS,
	}
}

func transitionOf(l *store.Evidence) *presencev1.EvidenceTransition {
	c := &l.Change
	return &presencev1.EvidenceTransition{
		Status: c.Status.String(), PreviousStatus: c.Previous.String(), Belief: c.Belief.String(), StatusReason: c.Reason.String(),
		EventOffset: l.Offset, NodeEventOffset: c.Node, ByNode: l.Fact.Kind == presence.KindUnknown,
	}
}
