package query

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	maxWatchIDs = 1_000
	// maxWatchIDBytes bounds all of them: they are kept as long as the watch lasts.
	maxWatchIDBytes  = 256 << 10
	maxDebounce      = 10 * time.Minute
	defaultHeartbeat = 15 * time.Second
	minHeartbeat     = time.Second
	maxHeartbeat     = 5 * time.Minute
)

// watchFilter is what a watcher asked for. It is never changed.
type watchFilter struct {
	cluster, node, username, prefix string
	status                          presence.Presence
	anyStatus                       bool
	ids                             map[string]bool // nil: any
	heartbeat, debounce             time.Duration
}

// newWatchFilter checks a request, its position excepted.
func newWatchFilter(req *presencev1.WatchClientsRequest, cluster string) (*watchFilter, error) {
	f := &watchFilter{
		cluster: cluster, node: req.GetNode(), username: req.GetUsername(), prefix: req.GetClientIdPrefix(), anyStatus: req.GetStatus() == "",
		heartbeat: defaultHeartbeat,
	}
	if req.GetCluster() != "" {
		if err := eventlog.ValidCluster(req.GetCluster()); err != nil {
			return nil, invalid("cluster", "cluster: "+err.Error())
		}
	}
	if !f.anyStatus {
		f.status = presence.ParsePresence(req.GetStatus())
		if f.status.String() != req.GetStatus() {
			return nil, invalid("status", fmt.Sprintf("status %.40q is none of online, offline and unknown", req.GetStatus()))
		}
	}
	for _, text := range []struct{ field, value string }{{"node", f.node}, {"username", f.username}, {"client_id_prefix", f.prefix}} {
		if len(text.value) > maxText || !utf8.ValidString(text.value) {
			return nil, invalid(text.field, fmt.Sprintf("%s must be valid UTF-8 of at most %d bytes", text.field, maxText))
		}
	}
	if err := f.setIDs(req.GetClientIds()); err != nil {
		return nil, err
	}
	if d := req.GetDebounce(); d != nil {
		if f.debounce = d.AsDuration(); !d.IsValid() || f.debounce < 0 || f.debounce > maxDebounce {
			return nil, invalid("debounce", fmt.Sprintf("debounce must be a duration of 0 to %v, such as 5s", maxDebounce))
		}
	}
	if d := req.GetHeartbeat(); d != nil {
		if f.heartbeat = d.AsDuration(); !d.IsValid() || f.heartbeat < minHeartbeat || f.heartbeat > maxHeartbeat {
			return nil, invalid("heartbeat", fmt.Sprintf("heartbeat must be a duration of %v to %v, such as 15s", minHeartbeat, maxHeartbeat))
		}
	}
	if req.GetSnapshot() && req.GetResumeToken() != "" {
		return nil, invalid("snapshot", "snapshot and resume_token exclude each other: begin with all clients, or go on from a position")
	}
	return f, nil
}

func (f *watchFilter) setIDs(ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	if len(ids) > maxWatchIDs {
		return invalid("client_ids", fmt.Sprintf("client_ids holds %d client IDs; give at most %d, or a client_id_prefix", len(ids), maxWatchIDs))
	}
	f.ids = make(map[string]bool, len(ids))
	size := 0
	for i, id := range ids {
		if size += len(id); size > maxWatchIDBytes {
			return invalid("client_ids", fmt.Sprintf("client_ids has more than %d bytes in all; watch fewer clients at once, or a client_id_prefix", maxWatchIDBytes))
		}
		if err := eventlog.ValidClientID(id); err != nil {
			field := fmt.Sprintf("client_ids[%d]", i)
			return invalid(field, field+": "+err.Error())
		}
		f.ids[id] = true
	}
	return nil
}

// selects reports whether the watcher is to be told. That a client was removed says nothing of its status, node or username, so whoever
// could know the client is told.
func (f *watchFilter) selects(e *watchEntry) bool {
	if e.client.cluster != f.cluster || !f.names(e.client.id) {
		return false
	}
	if e.removed {
		return true
	}
	return (f.anyStatus || e.status == f.status || e.previous == f.status) &&
		(f.node == "" || e.node == f.node) && (f.username == "" || e.username == f.username)
}

// selectsState reports whether a client is part of the snapshot.
func (f *watchFilter) selectsState(clientID string, e *presencev1.StateEntry) bool {
	return f.names(clientID) && (f.anyStatus || e.GetStatus() == f.status.String()) &&
		(f.node == "" || e.GetNode() == f.node) && (f.username == "" || e.GetConnection().GetUsername() == f.username)
}

func (f *watchFilter) names(clientID string) bool {
	return strings.HasPrefix(clientID, f.prefix) && (f.ids == nil || f.ids[clientID])
}

// clients returns the clients that alone can be selected, sorted; nil if any can.
func (f *watchFilter) clients() []string {
	if f.ids == nil {
		return nil
	}
	all := make([]string, 0, len(f.ids))
	for id := range f.ids {
		if strings.HasPrefix(id, f.prefix) {
			all = append(all, id)
		}
	}
	slices.Sort(all)
	return all
}
