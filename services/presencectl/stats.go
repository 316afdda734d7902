package presencectl

import (
	"context"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func (a *app) statsCommand() *cobra.Command {
	var usernames, all bool
	cmd := &cobra.Command{
		Use:     "stats",
		GroupID: groupFleet,
		Short:   "Count clients by status, cluster, node and username",
		Example: `  presencectl stats
  presencectl stats --usernames
  presencectl stats -o json | jq .clients.online`,
		Args: a.noArgs,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, _ []string) error {
			req := &presencev1.GetStatsRequest{Cluster: a.settings.Cluster, SkipUsernames: !usernames && !all}
			if all {
				req.PageSize = maxPage
			}
			stats, err := client.GetStats(ctx, req)
			if err != nil {
				return fmt.Errorf("count clients: %w", err)
			}
			for all && stats.GetNextPageToken() != "" {
				req.PageToken = stats.GetNextPageToken()
				page, err := client.GetStats(ctx, req)
				if err != nil {
					return fmt.Errorf("count clients by username: %w", err)
				}
				if page.GetNextPageToken() == req.GetPageToken() {
					return fmt.Errorf("count clients by username: the service answers with the page token that it was given; it would never end")
				}
				stats.Usernames = append(stats.Usernames, page.GetUsernames()...)
				stats.NextPageToken = page.GetNextPageToken()
			}
			a.noteStale(stats.GetFreshness())
			if !stats.GetExact() {
				a.note("indexes are being brought up to date: counts may be off for a while")
			}
			if stats.GetNextPageToken() != "" {
				a.note("there are more usernames; --all-usernames shows them all")
			}
			if a.json() {
				return a.printMessage(stats)
			}
			return a.printStats(stats)
		}),
	}
	cmd.Flags().BoolVar(&usernames, "usernames", false, "count by username too, the first 100")
	cmd.Flags().BoolVar(&all, "all-usernames", false, "count by username too, all of them")
	return cmd
}

func counts(c *presencev1.StatusCounts) []string {
	var cells []string
	for _, n := range []int64{c.GetOnline(), c.GetOffline(), c.GetUnknown(), c.GetTotal()} {
		cells = append(cells, strconv.FormatInt(n, 10))
	}
	return cells
}

func (a *app) printStats(s *presencev1.Stats) error {
	countsOf := func(what string) *table {
		return &table{header: []string{what, "ONLINE", "OFFLINE", "UNKNOWN", "TOTAL"}}
	}
	clusters := countsOf("CLUSTER")
	if len(s.GetClusters()) == 0 {
		clusters.add(append([]string{cell(s.GetCluster())}, counts(s.GetClients())...)...)
	}
	for _, c := range s.GetClusters() {
		clusters.add(append([]string{cell(c.GetCluster())}, counts(c.GetClients())...)...)
	}
	if err := a.printTable(clusters); err != nil {
		return err
	}
	if len(s.GetNodes()) > 0 {
		nodes := countsOf("NODE OF " + cell(s.GetCluster()))
		for _, n := range s.GetNodes() {
			nodes.add(append([]string{cell(n.GetNode())}, counts(n.GetClients())...)...)
		}
		if err := a.printf("\n%s", nodes.render(a.coloured())); err != nil {
			return err
		}
	}
	if len(s.GetUsernames()) == 0 {
		return nil
	}
	usernames := &table{header: []string{"USERNAME IN " + cell(s.GetCluster()), "CLIENTS"}}
	for _, u := range s.GetUsernames() {
		usernames.add(cell(u.GetUsername()), strconv.FormatInt(u.GetClients(), 10))
	}
	return a.printf("\n%s", usernames.render(a.coloured()))
}

func (a *app) nodesCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "nodes",
		GroupID: groupFleet,
		Short:   "Show the broker's nodes, and the subscriptions to their events",
		Long: `Shows how the nodes of a cluster are (ok, silent, gone or unheard), since when each runs, and each bridge's subscription (feed) to their
events. A gap is a time in which events may have been lost; until it is healed, answers are stale.`,
		Example: "  presencectl nodes\n  presencectl nodes --cluster eu-1 -o json",
		Args:    a.noArgs,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, _ []string) error {
			answer, err := client.ListNodes(ctx, &presencev1.ListNodesRequest{Cluster: a.settings.Cluster})
			if err != nil {
				return fmt.Errorf("list nodes: %w", err)
			}
			a.noteStale(answer.GetFreshness())
			if a.json() {
				return a.printMessage(answer)
			}
			return a.printNodes(answer)
		}),
	}
}

func (a *app) printNodes(answer *presencev1.ListNodesResponse) error {
	nodes := &table{header: []string{"NODE", "STATE", "STARTED AT", "HEARD", "ONLINE", "OFFLINE", "UNKNOWN", "TOTAL"}}
	if a.wide() {
		nodes.header = append(nodes.header, "SILENT AT", "GONE AT")
	}
	for _, n := range answer.GetNodes() {
		heard := absent
		if n.GetAliveAt() != nil {
			heard = span(a.now().Sub(n.GetAliveAt().AsTime())) + " ago"
		}
		row := append([]string{cell(n.GetNode()), cell(n.GetState()), stamp(n.GetStartedAt()), heard}, counts(n.GetClients())...)
		if a.wide() {
			row = append(row, stamp(n.GetSilentAt()), stamp(n.GetGoneAt()))
		}
		nodes.add(row...)
	}
	feeds := &table{header: []string{"FEED OF BRIDGE", "STATE", "HEARD", "LEASE", "DROPPED"}}
	for _, f := range answer.GetFeeds() {
		heard := absent
		if f.GetAliveAt() != nil {
			heard = span(a.now().Sub(f.GetAliveAt().AsTime())) + " ago"
		}
		feeds.add(cell(f.GetBridge()), cell(f.GetState()), heard, fmt.Sprintf("%d ms", f.GetLeaseMs()), strconv.FormatInt(f.GetDroppedCount(), 10))
	}
	about := "Complete: everything since the nodes started has been received, so that a client never seen is offline."
	if !answer.GetComplete() {
		about = "Not complete: a client never seen is unknown."
	}
	if gap := answer.GetGap(); gap != nil {
		about += fmt.Sprintf("\nGap: events may be lost from %s", stamp(gap.GetFrom()))
		if gap.GetTo() == nil {
			about += ", and still are."
		} else {
			about += fmt.Sprintf(" to %s.", stamp(gap.GetTo()))
		}
	}
	return a.printf("%s\n%s\n%s\n", nodes.render(a.coloured()), feeds.render(a.coloured()), about)
}
