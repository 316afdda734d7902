package bridge

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/mqtt-presence/presence/libs/presence"
	"github.com/mqtt-presence/presence/libs/simulator"
)

// checkReads checks that a message became what it is.
func (r *wireRun) checkReads(w *simulator.Message, got *decoded, m *message) {
	became := "nothing"
	switch {
	case got.dead != nil:
		became = "dead letter, " + got.dead.reason + " (" + got.dead.detail + ")"
	case len(got.facts) > 0:
		became = fmt.Sprintf("%d facts", len(got.facts))
	case got.signal != nil:
		became = "node"
	case got.ignored != "":
		became = "ignored, " + got.ignored
	}
	ok := false
	switch w.Reads {
	case simulator.ReadsNothing:
		ok = got.ignored != ""
	case simulator.ReadsFact, simulator.ReadsOther:
		ok = len(got.facts) == 1 && got.dead == nil
	case simulator.ReadsNode:
		ok = got.signal != nil
	case simulator.ReadsSnapshot:
		// A device's own word is of an unknown time: it opens nothing.
		ok = got.dead == nil && (r.dialect != statusTopicDialect || len(got.facts) == 1 && got.facts[0].Kind != presence.Opened)
	case simulator.ReadsDead:
		ok = got.dead != nil && len(got.facts) == 0
	}
	if !ok {
		r.problem(fmt.Sprintf("kind %d", w.Reads), "%q %q became %s", m.topic, m.payload, became)
	}
}

// checkAuto checks that with all dialects in use a message becomes the same.
func (r *wireRun) checkAuto(bridge int, m *message, own *decoded) {
	if r.auto[bridge] == nil {
		return
	}
	all := deadLetter(deadTopic, "")
	for _, d := range r.auto[bridge] {
		if d.owns(m) {
			all = read(d, m)
			break
		}
	}
	if all.signal != nil && own.signal != nil && r.dialect == mosquittoPluginDialect {
		// Which of the two dialects of Mosquitto tells of the broker makes no difference.
		all.signal.dialect = own.signal.dialect
	}
	if !reflect.DeepEqual(all.facts, own.facts) || !reflect.DeepEqual(all.signal, own.signal) || all.ignored != own.ignored || (all.dead == nil) != (own.dead == nil) {
		r.problem("auto", "%q %q became %+v, and %+v with auto", m.topic, m.payload, *own, all)
	}
}

// want returns what a message tells, as the bridge is to put it.
func (r *wireRun) want(a *simulator.Arrival, order uint32) presence.Fact {
	w := a.Message
	f := w.Fact
	if name := wireNodes[f.Dialect]; name != "" {
		f.Node = name
	}
	switch {
	case strings.HasPrefix(w.Topic, mosquittoLog) && w.Stamp == 0:
		f.TimeMS, f.Order = a.ReceivedMS, order
	case w.Stamp != 0 && f.Order != 0:
		f.Order = order
	}
	if f.Transport != "" && !r.announced[a.Bridge][f.Peer] {
		f.Transport = ""
	}
	if strings.HasPrefix(w.Topic, mosquittoLog) {
		delete(r.announced[a.Bridge], f.Peer)
	}
	f.SetID()
	return f
}

// checkFact compares a fact with what the message tells.
func (r *wireRun) checkFact(w *simulator.Message, m *message, want, got presence.Fact) {
	var differ []string
	compare := func(name string, want, got any, names bool) {
		if want == got || !names && w.Loose && reflect.ValueOf(got).IsZero() {
			return
		}
		differ = append(differ, fmt.Sprintf("%s %v, want %v", name, got, want))
	}
	if strings.HasPrefix(w.Topic, mosquittoLog) {
		// The simulator has one text for each reason, the log has several.
		want.RawReason = got.RawReason
		want.SetID()
	}
	compare("kind", want.Kind, got.Kind, true)
	compare("cluster", defaultCluster, got.Cluster, true)
	compare("client", want.ClientID, got.ClientID, true)
	compare("dialect", want.Dialect, got.Dialect, true)
	compare("node", want.Node, got.Node, true)
	compare("time", want.TimeMS, got.TimeMS, true)
	compare("order", want.Order, got.Order, true)
	compare("received", want.ReceivedMS, got.ReceivedMS, true)
	compare("connected_at", want.ConnectedAtMS, got.ConnectedAtMS, true)
	compare("disconnected_at", want.DisconnectedAtMS, got.DisconnectedAtMS, true)
	compare("reason", want.Reason, got.Reason, true)
	if presence.ProfileOf(want.Dialect).Key != presence.KeyNone {
		compare("connection", want.Connection, got.Connection, true)
	}
	compare("raw reason", want.RawReason, got.RawReason, true)
	compare("user name", want.Username, got.Username, false)
	compare("peer", want.Peer, got.Peer, false)
	if r.h.Plan.Mode != simulator.Silent && !r.overrun() {
		// A line that was lost may be the one that would have told another connection of the address.
		compare("transport", want.Transport, got.Transport, false)
	}
	compare("protocol", want.ProtocolVersion, got.ProtocolVersion, false)
	compare("keep alive", want.KeepAliveS, got.KeepAliveS, false)
	compare("clean start", want.CleanStart, got.CleanStart, false)
	compare("session expiry", want.SessionExpiryS, got.SessionExpiryS, false)
	for _, d := range differ {
		field, _, _ := strings.Cut(d, " ")
		r.problem("field "+field, "%q %q: %s", m.topic, m.payload, d)
	}
	if id, ok := r.realIDs[want.ID]; ok && id != got.ID {
		r.problem("copies", "%q %q: two copies have two IDs", m.topic, m.payload)
	}
	if id, ok := r.idealIDs[got.ID]; ok && id != want.ID {
		r.problem("one ID", "%q %q: two facts have one ID", m.topic, m.payload)
	}
	r.realIDs[want.ID], r.idealIDs[got.ID] = got.ID, want.ID
	r.countHazards(m, &got)
}

// countHazards counts what makes a message of a client hard to read.
func (r *wireRun) countHazards(m *message, f *presence.Fact) {
	if strings.ContainsAny(f.ClientID, "/+#% :\",()") || strings.ContainsFunc(f.ClientID, func(c rune) bool { return c > 0x7f }) {
		r.hazards[15]++
	}
	payload := string(m.payload)
	if strings.Contains(payload, "x_zone") || strings.Contains(payload, "client_attrs") || len(r.h.Plan.Nodes) > 1 && r.h.Plan.Setup.Mixed {
		r.hazards[19]++
	}
	if f.Username == "" && (strings.Contains(payload, `"undefined"`) || strings.Contains(payload, `"(null)"`) || strings.Contains(payload, `"username":""`)) {
		r.hazards[20]++
	}
}

// compare compares the status of every client.
func (r *wireRun) compare() {
	_, _, gap := r.real.cluster.FeedGap()
	steps, unseen := r.clockSteps()
	starts := 0
	for i := range r.h.Deliveries {
		if r.h.Deliveries[i].Node.Kind == presence.NodeStarted {
			starts++
		}
	}
	for i := range r.h.Clients {
		c, want, got := &r.h.Clients[i], r.ideal.status(i), r.real.status(i)
		if r.dialect == mosquittoDialect && r.overrun() || r.late && starts > 1 || steps > 1 || unseen {
			// What is dropped at the spool's bound has been decoded, which it is not here; how far the broker's clock was off as it started again is
			// not known; or a clock is set again before a second heartbeat confirms that it was set.
			continue
		}
		wrong := got.Status != presence.Unknown && (got.Status == presence.Online) != c.Online
		idealWrong := want.Status != presence.Unknown && (want.Status == presence.Online) != c.Online
		if r.h.Plan.Mode != simulator.Silent && wrong && !idealWrong && !gap && !c.Mourned && !c.Outlived {
			r.problem("wrong", "%q is %s (%s), the truth is online=%t", c.ID, got.Status, got.Reason, c.Online)
		}
		if r.snapshots[i] || r.loose[i] || r.wire.Stamps == simulator.StampNone || r.h.Plan.Mode == simulator.Clocks {
			continue
		}
		// A generation of a node is known as precisely as its heartbeats tell: the answer may be better than the ideal one.
		better := !wrong && got.Status != presence.Unknown && want.Status == presence.Unknown && (got.Reason == presence.NodeRestarted || got.Reason == presence.NeverSeen)
		if (got.Status != want.Status || got.Belief != want.Belief) && !better {
			r.problem("status", "%q is %s (%s, belief %s), from ideal facts %s (%s, belief %s); the truth is online=%t", c.ID, got.Status, got.Reason, got.Belief,
				want.Status, want.Reason, want.Belief, c.Online)
		}
	}
}

// clockSteps returns how often clocks are set, and whether one is set back by less than the dialect shows.
func (r *wireRun) clockSteps() (steps int, unseen bool) {
	var visible int64
	switch profile := r.h.Plan.Nodes[0].Dialect; {
	case r.dialect == rmqttDialect:
		visible = 2 * rmqttLateMS
	case profile == presence.DialectEMQX40, profile == presence.DialectEMQX43, profile == presence.DialectEMQX4Events:
		visible = stepMS + 2*1000 // uptime and clock are told in whole seconds
	}
	for i := range r.h.Plan.Steps {
		if s := &r.h.Plan.Steps[i]; s.Action == simulator.SetClock {
			steps++
			unseen = unseen || s.ByMS < 0 && (-s.ByMS <= visible || r.dialect == mosquittoDialect && !r.sawStep)
		}
	}
	return steps, unseen
}

// overrun reports whether the spool drops something.
func (r *wireRun) overrun() bool {
	return slices.ContainsFunc(r.h.Plan.Steps, func(s simulator.Step) bool { return s.Action == simulator.Overrun })
}
