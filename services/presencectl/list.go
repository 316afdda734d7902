package presencectl

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const maxPage = 1_000

func (a *app) listCommand() *cobra.Command {
	var filter clientFilter
	var all bool
	var pageSize int32
	var token string
	cmd := &cobra.Command{
		Use:     "list",
		GroupID: groupClients,
		Short:   "List clients",
		Long: `Lists the clients that all given filters select: by client ID, or, with a bound of since, by the time at which their status began. One
page, unless --all asks for the rest as well. How many there are in all, and the token of the next page, go to standard error.`,
		Example: `  presencectl list --status online --node emqx@10.0.3.11
  presencectl list --client-id-prefix VIN --all -o json | jq -r .client_id
  presencectl list --status offline --since-from -15m --all
  presencectl list --page-size 1000 --page-token "$TOKEN"`,
		Args: a.noArgs,
	}
	a.filterFlags(cmd, &filter, "online, offline or unknown")
	from := a.timeFlag(cmd, "since-from", "the status began at this time or later")
	before := a.timeFlag(cmd, "since-before", "the status began before this time")
	cmd.Flags().BoolVar(&all, "all", false, "follow the pages to the end")
	cmd.Flags().Int32Var(&pageSize, "page-size", 0, "clients a page, 1 to 1000 (default 100, with --all 1000)")
	cmd.Flags().StringVar(&token, "page-token", "", "token of the page to begin with, with the same filters as before")
	cmd.RunE = a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, _ []string) error {
		if err := filter.validate(); err != nil {
			return err
		}
		if pageSize < 0 || pageSize > maxPage {
			return fmt.Errorf("--page-size: %d is not 1 to %d", pageSize, maxPage)
		}
		if all && pageSize == 0 {
			pageSize = maxPage
		}
		return a.list(ctx, client, &presencev1.ListClientsRequest{
			Cluster: a.settings.Cluster, Status: filter.status, Node: filter.node, Username: filter.username, ClientIdPrefix: filter.prefix,
			SinceFrom: from.proto(), SinceBefore: before.proto(), PageSize: pageSize, PageToken: token,
		}, all)
	})
	return cmd
}

func (a *app) list(ctx context.Context, client presencev1.PresenceServiceClient, req *presencev1.ListClientsRequest, all bool) error {
	t := a.clientTable()
	listed := 0
	var last *presencev1.ListClientsResponse
	stale := false
	for {
		page, err := client.ListClients(ctx, req)
		if err != nil {
			if listed > 0 {
				a.note("%s listed; go on with --page-token %s", number(int64(listed), "client"), cell(req.GetPageToken()))
			}
			return fmt.Errorf("list clients: %w", err)
		}
		if !stale {
			a.noteStale(page.GetFreshness())
			stale = page.GetFreshness().GetStale()
		}
		if last == nil || len(page.GetClients()) > 0 {
			if err := a.printClients(t, page.GetClients()); err != nil {
				return err
			}
		}
		listed += len(page.GetClients())
		last = page
		if !all || page.GetNextPageToken() == "" {
			break
		}
		if page.GetNextPageToken() == req.GetPageToken() {
			return errors.New("list clients: the service answers with the page token that it was given; it would never end")
		}
		req.PageToken = page.GetNextPageToken()
	}
	switch {
	case last.GetNextPageToken() != "" && last.Total != nil:
		a.note("%d of %s; the next page: --page-token %s, all of them: --all", listed, number(last.GetTotal(), "client"), cell(last.GetNextPageToken()))
	case last.GetNextPageToken() != "":
		a.note("%s, and there may be more; the next page: --page-token %s, all of them: --all", number(int64(listed), "client"), cell(last.GetNextPageToken()))
	case !a.json():
		a.note("%s", number(int64(listed), "client"))
	}
	if !last.GetExact() {
		a.note("indexes are being brought up to date: totals, and lists by since, may be off for a while; each status shown is right")
	}
	return nil
}
