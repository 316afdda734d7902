package materializer

import (
	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/services/materializer/store"
)

// A client that was forgotten leaves a marker: a row whose state has nothing but the time up to which facts are to be forgotten, so that those
// that come late, or once more, are kept out. For everybody who asks it is a client never seen. What the log, the history and client-state have
// of the client goes with the batch that folds the Forgotten; client-events lose it at their retention.

// buryForgotten removes a client from client-state, where nothing is left of it.
func (p *partition) buryForgotten(e *entry, f *presence.Fact, version store.Version) {
	s := &e.row.State
	if !s.Empty() {
		return // newer facts are kept: a record without the older ones follows at the next checkpoint
	}
	p.bury(&eventlog.Tombstone{Cluster: f.Cluster, ClientID: f.ClientID, Reason: eventlog.RemovedForgotten, AsOfMS: s.ForgottenMS, TimeMS: eventTime(f),
		EventOffset: version.Event, NodeEventOffset: version.Node})
	e.row.Latest = version
	e.published, e.transition = p.encodeState(s), true
}

// isForgotten reports whether a fact is one of those that were to be forgotten, and of which nothing is to be kept, not even that it came.
func isForgotten(f *presence.Fact, s *presence.State) bool {
	switch f.Kind {
	case presence.Opened:
		return f.OpenedMS() <= s.ForgottenMS
	case presence.Closed:
		if namesOpening(f) {
			return f.ConnectedAtMS <= s.ForgottenMS
		}
		return f.ClosedMS() <= s.ForgottenMS
	case presence.Observed:
		return f.QueryStartMS <= s.ForgottenMS
	case presence.Forgotten, presence.KindUnknown:
	}
	return false
}

// forgetSessions replaces a client's history by what it has of connections that are not to be forgotten, and by what the batch logged.
func (p *partition) forgetSessions(b *store.Batch, e *entry, log []byte) error {
	f := &p.folds
	if !e.expired {
		stored, err := p.parts.store.AppendSessions(nil, p.id, f.key)
		if err != nil {
			return err
		}
		log = append(stored, log...)
	}
	log, err := store.ForgetSessions(log, e.row.State.ForgottenMS)
	if err != nil {
		return err
	}
	if log, err = store.JoinSessions(log, max(p.parts.cfg.SessionsPerClient, 1)); err != nil {
		return err
	}
	b.SetSessions(f.key, log)
	return nil
}
