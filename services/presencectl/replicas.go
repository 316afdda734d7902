package presencectl

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func (a *app) compareReplicasCommand() *cobra.Command {
	var partitions []int32
	cmd := &cobra.Command{
		Use:     "compare-replicas",
		GroupID: groupAdmin,
		Short:   "Compare the states that the replicas have",
		Long: `Compares what each replica of the materializer knows with what the first one knows, partition by partition, while both go on: the states of all
clients, but those that have expired, at one offset of presence.client-events.v1. It names the first client that differs; it takes a while. If
something differs, or could not be compared, it exits with 3. The service must know several replicas (its --replicas). The account needs
the permission admin.`,
		Example: "  presencectl compare-replicas\n  presencectl compare-replicas --partition 3 --partition 7 -o json",
		Args:    a.noArgs,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, _ []string) error {
			ctx, cancel := a.settings.atLeast(ctx, checkTimeout)
			defer cancel()
			answer, err := client.CompareReplicas(ctx, &presencev1.CompareReplicasRequest{Partitions: partitions})
			if err != nil {
				return fmt.Errorf("compare the replicas: %w", err)
			}
			show := a.printComparisons
			if a.json() {
				show = func(m *presencev1.CompareReplicasResponse) error { return a.printMessage(m) }
			}
			if err := show(answer); err != nil || answer.GetOk() {
				return err
			}
			for _, c := range answer.GetComparisons() {
				if c.GetError() == "" && !c.GetEqual() {
					return errors.New("the replicas differ; 'presencectl explain CLIENT-ID' tells what the preferred one knows of a client, and a replica " +
						"that starts with an empty data-dir is filled from Kafka")
				}
			}
			return errors.New("not all partitions were compared")
		}),
	}
	cmd.Flags().Int32SliceVar(&partitions, "partition", nil, "compare this partition only; may be repeated")
	return cmd
}

func (a *app) printComparisons(answer *presencev1.CompareReplicasResponse) error {
	t := &table{header: []string{"PARTITION", "REPLICA", "REFERENCE", "OFFSET", "CLIENTS", "REFERENCE CLIENTS", "EQUAL"}}
	var differ, missing strings.Builder
	for _, c := range answer.GetComparisons() {
		row := []string{strconv.Itoa(int(c.GetPartition())), c.GetReplica(), c.GetReference()}
		if c.GetError() != "" {
			t.add(append(row, "", "", "", "not compared")...)
			fmt.Fprintf(&missing, "  partition %d, replica %s: %s\n", c.GetPartition(), cell(c.GetReplica()), printable(c.GetError()))
			continue
		}
		t.add(append(row, strconv.FormatInt(c.GetOffset(), 10), strconv.FormatInt(c.GetClients(), 10), strconv.FormatInt(c.GetReferenceClients(), 10),
			strconv.FormatBool(c.GetEqual()))...)
		if d := c.GetFirstDifference(); d != nil {
			fmt.Fprintf(&differ, "  partition %d: client %s of cluster %s: %s in replica %s, %s in replica %s\n", c.GetPartition(), cell(d.GetClientId()), cell(d.GetCluster()),
				stateDigest(d.GetReferenceDigest()), cell(c.GetReference()), stateDigest(d.GetDigest()), cell(c.GetReplica()))
		}
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	for _, part := range []struct{ heading, lines string }{
		{"First client that differs in each partition", differ.String()}, {"Not compared", missing.String()},
	} {
		if part.lines == "" {
			continue
		}
		if err := a.printf("\n%s:\n%s", part.heading, part.lines); err != nil {
			return err
		}
	}
	return nil
}

// stateDigest is how a client's state is told from another one.
func stateDigest(digest string) string {
	if digest == "" {
		return "absent"
	}
	return "state " + cell(digest)
}
