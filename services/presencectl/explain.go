package presencectl

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func (a *app) explainCommand() *cobra.Command {
	var min offsetFlag
	cmd := &cobra.Command{
		Use:     "explain CLIENT-ID",
		GroupID: groupClients,
		Short:   "Say why a client has its status",
		Long: `Shows the rule that decided, what is kept of the client's connections, the latest facts with their offsets in presence.client-events.v1
and what became of each, and what nodes and feed have to do with it.`,
		Example: "  presencectl explain dev1\n  presencectl explain dev1 -o json | jq '.facts[] | {offset, type, outcome}'",
		Args:    a.oneClient,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error {
			answer, err := client.ExplainClient(ctx, &presencev1.ExplainClientRequest{ClientId: args[0], Cluster: a.settings.Cluster, MinOffset: min.value})
			if err != nil {
				return fmt.Errorf("explain the client: %w", err)
			}
			a.noteStale(answer.GetFreshness())
			if a.json() {
				return a.printMessage(answer)
			}
			return a.printf("%s", a.explanation(answer))
		}),
	}
	min.add(cmd)
	return cmd
}

// explanation is an explanation to be read.
func (a *app) explanation(e *presencev1.Explanation) string {
	var b strings.Builder
	status := cell(e.GetStatus())
	if a.coloured() {
		status = colour(status)
	}
	fmt.Fprintf(&b, "Client %s of cluster %s is %s (%s)", cell(e.GetClientId()), cell(e.GetCluster()), status, cell(e.GetStatusReason()))
	if e.GetStatus() == unknown {
		fmt.Fprintf(&b, ", probably %s", cell(e.GetBelief()))
	}
	if e.GetSince() != nil {
		fmt.Fprintf(&b, ", since %s", stamp(e.GetSince()))
	}
	fmt.Fprintf(&b, ".\n%s\n", printable(e.GetRule()))

	section := func(title string, n int) bool {
		if n > 0 {
			fmt.Fprintf(&b, "\n%s\n", title)
		}
		return n > 0
	}
	if section("Connections", len(e.GetConnections())) {
		for _, c := range e.GetConnections() {
			mark := " "
			if c.GetCurrent() {
				mark = "*"
			}
			fmt.Fprintf(&b, "%s %s\n", mark, printable(c.GetSummary()))
		}
	}
	if section("Answers of the broker", len(e.GetObservations())) {
		for _, o := range e.GetObservations() {
			answer := offline
			if o.GetOnline() {
				answer = online
			}
			fmt.Fprintf(&b, "  %s, asked at %s (%s, node %s)\n", answer, stamp(o.GetQueryStart()), cell(o.GetSource()), cell(o.GetNode()))
		}
	}
	if section("Facts, newest first", len(e.GetFacts())) {
		b.WriteString(indent(a.factTable(e.GetFacts()).render(a.coloured())))
	}
	if note := e.GetFactsNote(); note != "" {
		fmt.Fprintf(&b, "  %s\n", printable(note))
	}
	if section("Transitions, newest first", len(e.GetTransitions())) {
		t := &table{header: []string{"OFFSETS", "STATUS", "PREVIOUS STATUS", "REASON", "CAUSE"}}
		for _, x := range e.GetTransitions() {
			t.add(fmt.Sprintf("%d/%d", x.GetEventOffset(), x.GetNodeEventOffset()), cell(x.GetStatus()), cell(x.GetPreviousStatus()), cell(x.GetStatusReason()), cell(x.GetCause()))
		}
		b.WriteString(indent(t.render(a.coloured())))
	}
	if section("Nodes", len(e.GetNodes())) {
		for _, n := range e.GetNodes() {
			fmt.Fprintf(&b, "  %s is %s: %s\n", cell(n.GetNode()), cell(n.GetState()), printable(n.GetSummary()))
		}
	}
	if f := e.GetFeed(); f != nil {
		fmt.Fprintf(&b, "\nFeed\n  %s: %s\n", cell(f.GetState()), printable(f.GetSummary()))
	}
	return b.String()
}

func (a *app) factTable(facts []*presencev1.ExplainedFact) *table {
	t := &table{header: []string{"OFFSET", "TYPE", "TIME", "NODE", "OUTCOME", "WHAT IT DID"}}
	if a.wide() {
		t.header = []string{"OFFSET", "TYPE", "TIME", "RECEIVED", "NODE", "CONNECTION", "REASON", "OUTCOME", "WHAT IT DID"}
	}
	for _, f := range facts {
		outcome := cell(f.GetOutcome())
		if a.wide() {
			t.add(fmt.Sprint(f.GetOffset()), cell(f.GetType()), stamp(f.GetTime()), stamp(f.GetReceived()), cell(f.GetNode()), cell(f.GetKey()),
				cell(f.GetReason()), outcome, printable(f.GetExplanation()))
			continue
		}
		t.add(fmt.Sprint(f.GetOffset()), cell(f.GetType()), stamp(f.GetTime()), cell(f.GetNode()), outcome, printable(f.GetExplanation()))
	}
	return t
}

// indent puts two spaces before each line.
func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n  ") + "\n"
}
