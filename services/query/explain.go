package query

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"

	"github.com/mqtt-presence/presence/libs/presence"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Words of ExplainedTransition.cause.
const (
	causeFact       = "client_fact"
	causeNodes      = "node_change"
	reasonNeverSeen = "NEVER_SEEN" // ErrorInfo
)

// ExplainClient implements the call of both transports.
func (a *answers) ExplainClient(ctx context.Context, req *presencev1.ExplainClientRequest) (*presencev1.Explanation, error) {
	if err := validMinOffset(req.MinOffset); err != nil {
		return nil, err
	}
	r, e, err := a.readFor(ctx, req.GetCluster(), req.GetClientId(), req.MinOffset, detail{evidence: true})
	if err != nil {
		return nil, err
	}
	fresh := a.freshness(r, e)
	if !e.GetFound() {
		return nil, withDetails(codes.NotFound, neverSeen(e, fresh)+". "+explainFeed(r.GetHealth(), fresh.GetFeed()).GetSummary(),
			&errdetails.ErrorInfo{Reason: reasonNeverSeen, Domain: errorDomain, Metadata: map[string]string{
				"status": e.GetStatus(), "status_reason": e.GetStatusReason(), "belief": e.GetBelief(), "feed": fresh.GetFeed(),
			}})
	}
	x := &explainer{e: e, health: r.GetHealth()}
	if ev := e.GetEvidence(); ev != nil {
		if x.state, err = presence.DecodeState(ev.GetState()); err != nil {
			return nil, a.internal(ctx, fmt.Errorf("decode the state that explains a client: %w", err))
		}
	}
	answer := &presencev1.Explanation{
		ClientId: req.GetClientId(), Cluster: a.clusterOf(req.GetCluster()), Status: e.GetStatus(), StatusReason: e.GetStatusReason(),
		Belief: e.GetBelief(), Since: timestamp(e.GetSinceMs()), Connections: x.connections(), Observations: x.observations(),
		Facts: x.facts(), Transitions: x.transitions(), Nodes: x.nodes(), Feed: explainFeed(x.health, fresh.GetFeed()), Freshness: fresh,
	}
	answer.FactsSinceOffset, answer.FactsNote = x.since()
	answer.Rule = x.rule(answer)
	return answer, nil
}

// explainer puts the evidence of one client into words.
type explainer struct {
	e      *presencev1.StateEntry
	state  presence.State
	health *presencev1.ClusterHealth
}

// rule says which rule decided, and what it was applied to.
func (x *explainer) rule(answer *presencev1.Explanation) string {
	reason := presence.ParseStatusReason(x.e.GetStatusReason())
	parts := []string{reason.Explain()}
	if reason == presence.BrokerObserved && len(answer.GetObservations()) > 0 {
		o := answer.GetObservations()[0]
		parts = append(parts, fmt.Sprintf("Asked at %s, it answered %s.", instant(o.GetQueryStart().AsTime().UnixMilli()), onlineWord(o.GetOnline())))
	}
	// These rules weigh connections of several nodes against each other.
	all := reason == presence.OlderConnectionOpen || reason == presence.OrderUndecided || reason == presence.SuccessorUnseen
	for _, c := range answer.GetConnections() {
		if all || c.GetCurrent() {
			parts = append(parts, c.GetSummary())
		}
	}
	if reason == presence.OrderUndecided && len(answer.GetNodes()) > 1 {
		parts = append(parts, fmt.Sprintf("The clocks of two nodes are trusted to within %v.", time.Duration(x.e.GetEvidence().GetAllowanceMs())*time.Millisecond))
	}
	for _, n := range answer.GetNodes() {
		if n.GetNode() == x.e.GetNode() && (n.GetState() == nodeGone || n.GetState() == nodeSilent) {
			parts = append(parts, n.GetSummary())
		}
	}
	parts = append(parts, interruption(x.health, answer.GetFeed().GetState())...)
	return strings.Join(parts, " ")
}

// connections describes what the state keeps, the newest first.
func (x *explainer) connections() []*presencev1.ExplainedConnection {
	nodes := make([]*presence.NodeState, len(x.state.Nodes))
	for i := range nodes {
		nodes[i] = &x.state.Nodes[i]
	}
	slices.SortStableFunc(nodes, func(a, b *presence.NodeState) int { return cmp.Compare(newestMS(b), newestMS(a)) })
	all := make([]*presencev1.ExplainedConnection, 0, len(nodes))
	for _, n := range nodes {
		end, held := x.ends(n)
		c := &presencev1.ExplainedConnection{
			Node: n.Node, Key: n.Conn.Key, Dialect: n.Conn.Dialect, ConnectedAt: timestamp(n.Conn.OpenedMS), Current: x.current(n),
			Summary: x.summary(n, end, held),
		}
		if end != nil {
			c.End = explainClose(end)
		}
		for i := range held {
			c.Held = append(c.Held, explainClose(&held[i]))
		}
		all = append(all, c)
	}
	if c := x.e.GetConnection(); c != nil && len(all) > 0 && !slices.ContainsFunc(all, (*presencev1.ExplainedConnection).GetCurrent) {
		all = slices.Insert(all, 0, x.earlier(c))
	}
	return all
}

// earlier describes the connection that the status is about, if it is not the newest of its node.
func (x *explainer) earlier(c *presencev1.Connection) *presencev1.ExplainedConnection {
	e := &presencev1.ExplainedConnection{
		Node: x.e.GetNode(), Current: true, Key: c.GetKey(), Dialect: x.e.GetDialect(), ConnectedAt: timestamp(c.GetConnectedAtMs()),
	}
	what := "no disconnect is known to be its own"
	if x.e.GetReason() != "" {
		e.End = &presencev1.ExplainedClose{Reason: x.e.GetReason(), RawReason: x.e.GetRawReason()}
		what = "it ended: " + reasonWords(&presence.Close{Reason: presence.ParseReason(x.e.GetReason()), RawReason: x.e.GetRawReason()})
	}
	e.Summary = fmt.Sprintf("The status is about the connection%s that opened at %s, which is not the newest by the clock of its node: "+
		"it does not tell the order here; %s.", toNode(x.e.GetNode()), instant(c.GetConnectedAtMs()), what)
	return e
}

// current reports whether the status is about the node's connection.
func (x *explainer) current(n *presence.NodeState) bool {
	c := x.e.GetConnection()
	return c != nil && n.Node == x.e.GetNode() && n.Conn.Key == c.GetKey() && n.Conn.OpenedMS == c.GetConnectedAtMs()
}

// ends returns the end of a node's newest connection, nil if none is known, and the other Closed that are kept.
func (x *explainer) ends(n *presence.NodeState) (end *presence.Close, held []presence.Close) {
	if n.Ended {
		return &n.End, n.Closes
	}
	closed := x.current(n) && presence.ParseStatusReason(x.e.GetStatusReason()) == presence.ConnectionClosed
	i := slices.IndexFunc(n.Closes, func(c presence.Close) bool {
		if c.Key != "" {
			return c.Key == n.Conn.Key
		}
		return closed && c.ClosedMS == x.e.GetSinceMs() && c.Reason.String() == x.e.GetReason()
	})
	if i < 0 {
		return nil, n.Closes
	}
	return &n.Closes[i], slices.Concat(n.Closes[:i], n.Closes[i+1:])
}

// newestMS is when the node's newest connection opened, or its newest Closed came if none is known.
func newestMS(n *presence.NodeState) int64 {
	if !n.Known && len(n.Closes) > 0 {
		return n.Closes[len(n.Closes)-1].ClosedMS
	}
	return n.Conn.OpenedMS
}

func explainClose(c *presence.Close) *presencev1.ExplainedClose {
	return &presencev1.ExplainedClose{
		DisconnectedAt: timestamp(c.ClosedMS), Reason: c.Reason.String(), RawReason: c.RawReason, Key: c.Key, Received: timestamp(c.ReceivedMS),
	}
}

// summary is a node's connection in words.
func (x *explainer) summary(n *presence.NodeState, end *presence.Close, held []presence.Close) string {
	var b strings.Builder
	switch {
	case !n.Known:
		fmt.Fprintf(&b, "No connection%s is known, only the end of one", toNode(n.Node))
	case n.Conn.Seen:
		fmt.Fprintf(&b, "The newest connection%s opened at %s", toNode(n.Node), instant(n.Conn.OpenedMS))
	default:
		fmt.Fprintf(&b, "The newest connection%s opened at %s (so its disconnect says, its connect was not seen)", toNode(n.Node), instant(n.Conn.OpenedMS))
	}
	switch floor := x.floor(n.Node); {
	case end != nil && n.Known:
		fmt.Fprintf(&b, " and ended at %s: %s.", instant(end.ClosedMS), reasonWords(end))
	case end != nil:
		fmt.Fprintf(&b, ", at %s: %s.", instant(end.ClosedMS), reasonWords(end))
	case n.Known && x.restarted(n, floor):
		fmt.Fprintf(&b, "; it is over, since the node restarted at %s.", instant(floor))
	case n.Known:
		b.WriteString("; no disconnect is known to be its own.")
	case len(held) > 0:
		fmt.Fprintf(&b, ", at %s: %s.", instant(held[len(held)-1].ClosedMS), reasonWords(&held[len(held)-1]))
		held = held[:len(held)-1]
	default:
		b.WriteString(".")
	}
	if k := len(held); k > 0 {
		c := &held[k-1]
		what := "a disconnect that may be of this connection or of another is kept"
		switch {
		case k > 1:
			what = fmt.Sprintf("%d disconnects that may be of this connection or of others are kept, the newest", k)
		case c.Key != "" && n.Known:
			what = "the disconnect of another connection is kept"
		}
		fmt.Fprintf(&b, " Besides, %s: at %s, %s.", what, instant(c.ClosedMS), reasonWords(c))
	}
	if n.PrunedMS != 0 {
		b.WriteString(" There were more disconnects than are kept.")
	}
	return b.String()
}

// restarted reports whether a restart of its node ended the connection. Of the one that the status is about, the status says so.
func (x *explainer) restarted(n *presence.NodeState, floor int64) bool {
	if x.current(n) {
		return presence.ParseStatusReason(x.e.GetStatusReason()) == presence.NodeRestarted
	}
	return n.Conn.OpenedMS < floor
}

// toNode says which node a connection is to, nothing if the broker's events name none.
func toNode(node string) string {
	if node == "" {
		return ""
	}
	return " to node " + node
}

func reasonWords(c *presence.Close) string {
	reason := c.Reason.String()
	if reason == "" {
		reason = "no reason given"
	}
	if c.RawReason == "" || c.RawReason == reason {
		return reason
	}
	return fmt.Sprintf("%s (in the broker's words %q)", reason, c.RawReason)
}

func (x *explainer) node(name string) *presencev1.NodeHealth {
	for _, n := range x.health.GetNodes() {
		if n.GetNode() == name {
			return n
		}
	}
	return nil
}

// floor is when the node's generation began, 0 if no restart was seen.
func (x *explainer) floor(name string) int64 { return x.node(name).GetStartedMs() }

func (x *explainer) observations() []*presencev1.ExplainedObservation {
	all := make([]*presencev1.ExplainedObservation, 0, len(x.state.Observed))
	for i := len(x.state.Observed) - 1; i >= 0; i-- {
		o := &x.state.Observed[i]
		all = append(all, &presencev1.ExplainedObservation{
			Online: o.Online, Node: o.Node, Key: o.Key, QueryStart: timestamp(o.QueryStartMS), QueryEnd: timestamp(o.QueryEndMS), Source: o.Source,
		})
	}
	return all
}

// facts lists the facts, the newest first.
func (x *explainer) facts() []*presencev1.ExplainedFact {
	facts := x.e.GetEvidence().GetFacts()
	all := make([]*presencev1.ExplainedFact, 0, len(facts))
	for _, f := range slices.Backward(facts) {
		outcome := presence.ParseOutcome(f.GetOutcome())
		e := &presencev1.ExplainedFact{
			Offset: f.GetOffset(), Type: f.GetType(), Outcome: f.GetOutcome(), Explanation: outcome.Explain(), Ignored: outcome.Ignored(),
			Node: f.GetNode(), Key: known(f.GetConnection()), Dialect: f.GetDialect(), Time: timestamp(f.GetTimeMs()), Received: timestamp(f.GetReceivedMs()),
			ConnectedAt: timestamp(f.GetConnectedAtMs()), DisconnectedAt: timestamp(f.GetDisconnectedAtMs()), Reason: known(f.GetReason()),
			RawReason: known(f.GetRawReason()), Online: f.Online, QueryStart: timestamp(f.GetQueryStartMs()), QueryEnd: timestamp(f.GetQueryEndMs()),
			Source: known(f.GetSource()), AsOf: timestamp(f.GetAsOfMs()),
		}
		if f.GetOrder() != 0 {
			e.Order = &f.Order
		}
		switch {
		case f.GetRestored():
			e.Explanation = "It is part of the state, which was restored from client-state: what became of it when it came is not known here."
		case !outcome.Ignored():
			e.Explanation += " " + x.part(f)
		}
		all = append(all, e)
	}
	return all
}

// part says what a fact that was applied is in the state now.
func (x *explainer) part(f *presencev1.EvidenceFact) string {
	const gone = "A later fact has taken its place."
	switch presence.ParseKind(f.GetType()) {
	case presence.Opened:
		at := cmp.Or(f.GetConnectedAtMs(), f.GetTimeMs())
		for i := range x.state.Nodes {
			if n := &x.state.Nodes[i]; n.Known && logged(f.GetNode(), n.Node) && n.Conn.OpenedMS == at && logged(f.GetConnection(), n.Conn.Key) {
				return "It is the newest connection to its node."
			}
		}
		if c := x.e.GetConnection(); c != nil && c.GetConnectedAtMs() == at && logged(f.GetConnection(), c.GetKey()) && logged(f.GetNode(), x.e.GetNode()) {
			return "The status is about this connection."
		}
	case presence.Closed:
		at := cmp.Or(f.GetDisconnectedAtMs(), f.GetTimeMs())
		is := func(c *presence.Close) bool {
			return c.ClosedMS == at && logged(f.GetConnection(), c.Key) && c.Order == f.GetOrder() && c.Reason.String() == f.GetReason()
		}
		for i := range x.state.Nodes {
			n := &x.state.Nodes[i]
			if !logged(f.GetNode(), n.Node) {
				continue
			}
			end, held := x.ends(n)
			switch {
			case end != nil && is(end):
				return "It ends the newest connection to its node."
			case slices.ContainsFunc(held, func(c presence.Close) bool { return is(&c) }):
				return "It is kept, since it may concern the newest connection to its node or a later one."
			}
		}
	case presence.Observed:
		for i := range x.state.Observed {
			if o := &x.state.Observed[i]; o.QueryStartMS == f.GetQueryStartMs() && o.QueryEndMS == f.GetQueryEndMs() {
				if o.Online {
					return "It is kept, and counts where the other facts alone do not say that the client is online."
				}
				return "It is kept, and counts against connections that the bridge heard of well before the query."
			}
		}
	case presence.Forgotten:
		return "What was known before was forgotten."
	case presence.KindUnknown:
	}
	return gone
}

// logged reports whether a text of the log stands for a text of the state: the log cuts what is long.
func logged(short, full string) bool {
	head, cut := strings.CutSuffix(short, "…")
	return short == full || cut && strings.HasPrefix(full, head)
}

// since says from which offset on the list of facts is complete, and why not from the beginning.
func (x *explainer) since() (*int64, string) {
	ev := x.e.GetEvidence()
	from := ev.GetLoggedFrom()
	switch {
	case ev == nil:
		return nil, "The materializer that answered keeps no facts: it is of an older version."
	case from < 0:
		return nil, "No facts are kept: the materializer's option evidence-per-client is 0."
	case ev.GetCut():
		return &from, fmt.Sprintf("Only the latest facts are kept: there were others before offset %d. What they mean for the status is in connections.", from)
	case from > 0:
		return &from, fmt.Sprintf("Facts before offset %d may be missing from the list: the store was filled from client-state up to there, or kept no facts "+
			"for a time. What they mean for the status is in connections.", from)
	}
	return &from, "These are all facts that came of the client."
}

// transitions lists them, the newest first.
func (x *explainer) transitions() []*presencev1.ExplainedTransition {
	list := x.e.GetEvidence().GetTransitions()
	all := make([]*presencev1.ExplainedTransition, 0, len(list))
	for _, t := range slices.Backward(list) {
		cause := causeFact
		if t.GetByNode() {
			cause = causeNodes
		}
		all = append(all, &presencev1.ExplainedTransition{
			Status: t.GetStatus(), PreviousStatus: t.GetPreviousStatus(), Belief: t.GetBelief(), StatusReason: t.GetStatusReason(),
			EventOffset: t.GetEventOffset(), NodeEventOffset: t.GetNodeEventOffset(), Cause: cause,
		})
	}
	return all
}

// nodes describes the nodes of the connections.
func (x *explainer) nodes() []*presencev1.ExplainedNode {
	var all []*presencev1.ExplainedNode
	for i := range x.state.Nodes {
		name := x.state.Nodes[i].Node
		if i > 0 && x.state.Nodes[i-1].Node == name {
			continue // another dialect's connection to the same node
		}
		n := x.node(name)
		e := &presencev1.ExplainedNode{Node: name, State: nodeHealth(x.health, name), StartedAt: timestamp(n.GetStartedMs()), AliveAt: timestamp(n.GetAliveMs())}
		switch {
		case n == nil:
			e.State = nodeUnheard
			e.Summary = fmt.Sprintf("Node %s has sent no heartbeat: whether it restarted is not known.", name)
			if name == "" {
				e.Summary = "The broker's events name no node: whether one restarted is not known."
			}
		case n.GetGone():
			e.Summary = fmt.Sprintf("Node %s left its cluster's list at %s: its connections are probably over, but nothing says so.", name, instant(n.GetGoneMs()))
		case n.GetSilent():
			e.Summary = fmt.Sprintf("Node %s has been silent, as noted at %s: its connections may live on.", name, instant(n.GetSilentMs()))
		case n.GetStartedMs() == 0:
			e.Summary = fmt.Sprintf("Node %s is alive, and no restart of it was seen.", name)
		default:
			e.Summary = fmt.Sprintf("Node %s is alive, and started at %s: connections made before are over.", name, instant(n.GetStartedMs()))
		}
		all = append(all, e)
	}
	return all
}

// explainFeed says what the bridges' subscriptions have to do with an answer; state is the word of the freshness.
func explainFeed(h *presencev1.ClusterHealth, state string) *presencev1.ExplainedFeed {
	parts := interruption(h, state)
	switch {
	case h.GetComplete():
		parts = append(parts, "Everything since the broker nodes began has been received: a client of which nothing is known is offline.")
	case len(h.GetFeeds()) > 0:
		parts = append(parts, "Not everything since the broker nodes began has been received: a client of which nothing is known may be connected all the same.")
	}
	return &presencev1.ExplainedFeed{
		State: state, Complete: h.GetComplete(), GapFrom: timestamp(h.GetGap().GetFromMs()), GapTo: timestamp(h.GetGap().GetToMs()),
		Summary: strings.Join(parts, " "),
	}
}

// interruption says what is not seen, or was not.
func interruption(h *presencev1.ClusterHealth, state string) (parts []string) {
	switch {
	case state == feedDown && len(h.GetFeeds()) == 0:
		parts = append(parts, "No bridge has ever reported from this cluster: what happens at its brokers is not seen. Check the cluster's name.")
	case state == feedDown:
		parts = append(parts, "No bridge is connected to the brokers: what happens there now is not seen, and this answer is stale.")
	}
	switch gap := h.GetGap(); {
	case gap == nil:
	case gap.GetToMs() == 0:
		parts = append(parts, fmt.Sprintf("The feed is interrupted since %s: that turns nobody offline, it makes answers stale.", instant(gap.GetFromMs())))
	default:
		parts = append(parts, fmt.Sprintf("Events between %s and %s may be lost: that turned nobody offline, it makes answers stale until the nodes restart or the "+
			"brokers have been asked about every client.", instant(gap.GetFromMs()), instant(gap.GetToMs())))
	}
	return parts
}

// known leaves out what is empty.
func known(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func onlineWord(online bool) string {
	if online {
		return "online"
	}
	return "offline"
}

// instant writes epoch milliseconds as answers write times.
func instant(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }
