package presencectl

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

const (
	// deleteTimeout is how long a deletion may take that waits until it is applied, checkTimeout how long reading all rows may.
	deleteTimeout = 30 * time.Second
	checkTimeout  = 30 * time.Minute
)

// confirm asks on standard error and reads the answer from standard input.
func (a *app) confirm(question string) error {
	_, _ = fmt.Fprintf(a.err, "%s [y/N] ", printable(question))
	line, err := bufio.NewReader(io.LimitReader(a.in, 1<<10)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the confirmation: %w", err)
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return errors.New("not confirmed, nothing was done; --yes goes without the question")
}

func (a *app) deleteCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:     "delete CLIENT-ID",
		GroupID: groupAdmin,
		Short:   "Forget everything known of a client",
		Long: `Forgets everything known of a client up to now: its state and history at once, its events in Kafka when the topic's retention passes, which
it prints. A client that connects again is known again. The account needs the permission admin.`,
		Example: `  presencectl delete dev1
  presencectl delete dev1 --yes --cluster eu-1`,
		Args: a.oneClient,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error {
			if !yes {
				of := "the service's default cluster"
				if a.settings.Cluster != "" {
					of = "cluster " + a.settings.Cluster
				}
				if err := a.confirm(fmt.Sprintf("Forget everything known of client %s of %s?", cell(args[0]), of)); err != nil {
					return err
				}
			}
			ctx, cancel := a.settings.atLeast(ctx, deleteTimeout)
			defer cancel()
			answer, err := client.DeleteClient(ctx, &presencev1.DeleteClientRequest{ClientId: args[0], Cluster: a.settings.Cluster})
			if err != nil {
				return fmt.Errorf("delete the client: %w", err)
			}
			if a.json() {
				return a.printMessage(answer)
			}
			return a.printDeleted(answer)
		}),
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask for confirmation")
	return cmd
}

func (a *app) printDeleted(d *presencev1.DeleteClientResponse) error {
	text := fmt.Sprintf("Client %s of cluster %s: everything known up to %s is forgotten.\n", cell(d.GetClientId()), cell(d.GetCluster()), stamp(d.GetAsOf()))
	if !d.GetApplied() {
		text += fmt.Sprintf("That is recorded, but not applied yet: until it is, answers may still show the client. Read with --min-offset %d to see it applied.\n", d.GetOffset())
	}
	if gone := d.GetEventsGoneBy(); gone != nil {
		text += fmt.Sprintf("Its events are gone from Kafka (presence.client-events.v1) by %s, in %s.\n", stamp(gone), span(gone.AsTime().Sub(a.now())))
	} else {
		text += "Its events stay in Kafka (presence.client-events.v1): the topic keeps records without a limit of time. Set its retention.ms.\n"
	}
	return a.printf("%s", text)
}

func (a *app) checkIndexesCommand() *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:     "check-indexes",
		GroupID: groupAdmin,
		Short:   "Compare indexes and counters with a scan of all rows",
		Long: `Compares the indexes and counters behind lists and stats with a scan of all rows, and names what differs; it takes a while. If something
differs it exits with 3, with --repair too, which has them built anew. The account needs the permission admin.`,
		Example: "  presencectl check-indexes\n  presencectl check-indexes --repair",
		Args:    a.noArgs,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, _ []string) error {
			ctx, cancel := a.settings.atLeast(ctx, checkTimeout)
			defer cancel()
			answer, err := client.CheckIndexes(ctx, &presencev1.CheckIndexesRequest{Repair: repair})
			if err != nil {
				return fmt.Errorf("check the indexes: %w", err)
			}
			show := a.printIndexes
			if a.json() {
				show = func(m *presencev1.CheckIndexesResponse) error { return a.printMessage(m) }
			}
			if err := show(answer); err != nil || answer.GetOk() {
				return err
			}
			if repair {
				return errors.New("indexes differ from the rows; they are being built anew: check again in a while")
			}
			return errors.New("indexes differ from the rows; --repair has them built anew")
		}),
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "build indexes and counters anew where they differ")
	return cmd
}

func (a *app) printIndexes(answer *presencev1.CheckIndexesResponse) error {
	t := &table{header: []string{"PARTITION", "CLIENTS", "INDEX ENTRIES", "COUNTERS", "DIFFERENCES", "REPAIRING"}}
	var b strings.Builder
	for _, p := range answer.GetPartitions() {
		t.add(strconv.Itoa(int(p.GetPartition())), strconv.FormatInt(p.GetClients(), 10), strconv.FormatInt(p.GetIndexEntries(), 10),
			strconv.FormatInt(p.GetCounters(), 10), strconv.Itoa(len(p.GetDifferences())), strconv.FormatBool(p.GetRepairing()))
		for _, d := range p.GetDifferences() {
			fmt.Fprintf(&b, "  partition %d: %s\n", p.GetPartition(), printable(d))
		}
	}
	if b.Len() > 0 {
		return a.printf("%s\nDifferences (at most 100 a partition):\n%s", t.render(a.coloured()), b.String())
	}
	return a.printTable(t)
}
