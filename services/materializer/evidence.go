package materializer

import (
	"cmp"
	"slices"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// note notes a fact that was folded, and what became of it, for the client's log.
func (p *partition) note(e *entry, x *store.Evidence) {
	f := &p.folds
	if isForgotten(&x.Fact, &e.row.State) {
		return
	}
	if x.Fact.Kind == presence.Forgotten && x.Outcome == presence.Applied {
		// Everything before is to be forgotten, also what the log says of it.
		e.logged, e.forgotten = chain{}, true
	}
	if p.parts.cfg.EvidencePerClient > 0 {
		f.scratch = store.AppendEvidence(f.scratch[:0], x)
		f.logs.add(&e.logged, f.scratch)
	}
}

// writeEvidence appends the set's facts of a client to its log.
func (p *partition) writeEvidence(b *store.Batch, e *entry) {
	limit := p.parts.cfg.EvidencePerClient
	if !e.forgotten && e.logged.count == 0 {
		return
	}
	f := &p.folds
	f.key = append(f.key[:0], e.key...)
	if limit == 0 {
		b.SetEvidence(f.key, nil) // of when there was a log
		return
	}
	log := f.scratch[:0]
	if e.forgotten || int(e.logged.count) > limit {
		log = store.MarkCut(log)
	}
	log = f.logs.append(log, e.logged, limit)
	f.scratch = log
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
	f.scratch = store.AppendEvidence(f.scratch[:0], &store.Evidence{Offset: r.Last.Version.Event, Changed: true, Change: changeOf(&r.Last)})
	b.AddEvidence(client, f.scratch)
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
