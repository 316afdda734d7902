package simulator

import (
	"fmt"
	"strings"

	"github.com/mqtt-presence/presence/libs/presence"
)

// String tells the history as a time line: what was emitted, what arrived, and the truth. Times are milliseconds since its beginning; those
// in brackets are the node's clock.
func (h *History) String() string {
	var b strings.Builder
	p := h.Plan
	fmt.Fprintf(&b, "%s, %s, seed %d: %d clients, %d bridges\n", p.Setup.Name, p.Mode, p.Seed, p.Clients, p.Bridges)
	for i, n := range p.Nodes {
		fmt.Fprintf(&b, "  node %d: %s %s, clock %+d ms\n", i, n.Dialect, n.Version, p.SkewMS[i])
	}
	b.WriteString("plan\n")
	for i := range p.Steps {
		fmt.Fprintf(&b, "  %s\n", &p.Steps[i])
	}
	b.WriteString("emitted\n")
	for _, e := range h.Events {
		fmt.Fprintf(&b, "  %9d  %s\n", e.TrueMS-epochMS, e)
	}
	b.WriteString("arrived\n")
	for i := range h.Deliveries {
		d := &h.Deliveries[i]
		switch {
		case d.IsNode:
			fmt.Fprintf(&b, "  %9d  %s\n", d.ReceivedMS-epochMS, nodeString(&d.Node))
		case d.IsFact:
			fmt.Fprintf(&b, "  %9d  c%d %s\n", d.ReceivedMS-epochMS, d.Client, factString(&d.Fact))
		}
	}
	b.WriteString("truth\n")
	for i := range h.Clients {
		c := &h.Clients[i]
		fmt.Fprintf(&b, "  c%d %q", i, c.ID)
		if c.Online {
			fmt.Fprintf(&b, " online by #%d %s on %s\n", c.Conn, c.Key, c.Node)
		} else {
			b.WriteString(" offline\n")
		}
	}
	return b.String()
}

func (e *Event) String() string {
	text := fmt.Sprintf("%s [%d] %s", e.Node, e.StampMS-epochMS, e.Kind)
	if e.Client >= 0 {
		text += fmt.Sprintf(" c%d", e.Client)
	}
	if e.Conn > 0 {
		text += fmt.Sprintf(" #%d", e.Conn)
	}
	if e.Kind == Disconnected || e.Kind == Refused {
		text += fmt.Sprintf(" %q", e.RawReason)
	}
	if e.Lost != "" {
		text += " LOST: " + e.Lost
	}
	return text
}

func factString(f *presence.Fact) string {
	text := fmt.Sprintf("%s node=%s key=%s [%s]", f.Kind, f.Node, f.Connection, since(f.TimeMS))
	for _, o := range []struct {
		name string
		ms   int64
	}{{"connected_at", f.ConnectedAtMS}, {"disconnected_at", f.DisconnectedAtMS}, {"query", f.QueryStartMS}, {"as_of", f.AsOfMS}} {
		if o.ms != 0 {
			text += fmt.Sprintf(" %s=%s", o.name, since(o.ms))
		}
	}
	if f.Order != 0 {
		text += fmt.Sprintf(" order=%d", f.Order)
	}
	if f.Transport != "" {
		text += " " + f.Transport
	}
	if f.Reason != 0 {
		text += " " + f.Reason.String()
	}
	if f.Online.Valid {
		text += fmt.Sprintf(" online=%t", f.Online.Value)
	}
	return text
}

func nodeString(f *presence.NodeFact) string {
	if f.Kind == presence.Feed {
		return fmt.Sprintf("feed %s complete=%s gap=%s..%s resynced=%s dropped=%d..%s", f.Bridge, since(f.CompleteSinceMS), since(f.GapFromMS), since(f.GapToMS),
			since(f.ResyncedMS), f.DroppedCount, since(f.DroppedToMS))
	}
	return fmt.Sprintf("node %s %s [%s] uptime=%d started=%s set_back=%s..%s", f.Node, f.Kind, since(f.TimeMS), f.UptimeMS.Value, since(f.StartedMS),
		since(f.SetBackFromMS), since(f.SetBackToMS))
}

func since(ms int64) string {
	if ms == 0 {
		return "-"
	}
	return fmt.Sprint(ms - epochMS)
}
