package presencectl

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/mqtt-presence/presence/libs/eventlog"
	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// Statuses, as the contract spells them.
const (
	online  = "online"
	offline = "offline"
	unknown = "unknown"
)

var statuses = []string{online, offline, unknown}

func validClientID(id string) error { return eventlog.ValidClientID(id) }

// noteStale says that an answer may be out of date.
func (a *app) noteStale(f *presencev1.Freshness) {
	if !f.GetStale() {
		return
	}
	text := "the answer may be out of date: " + strings.Join(f.GetStaleReasons(), ", ")
	if f.LagMs != nil && f.GetLagMs() > 0 {
		text += fmt.Sprintf(" (%d ms, %d records behind)", f.GetLagMs(), f.GetLagRecords())
	}
	a.note("%s", text)
}

func (a *app) statusCommand() *cobra.Command {
	var quiet, fresh bool
	cmd := &cobra.Command{
		Use:     "status CLIENT-ID",
		GroupID: groupClients,
		Short:   "Say whether a client is connected, for scripts by the exit code",
		Long: `Prints online, offline or unknown; for unknown also the best guess and the rule that could not decide.
It exits with 0 for online, 1 for offline, 2 for unknown, 3 for an error.`,
		Example: `  presencectl status dev1
  presencectl status -q dev1 && echo connected
  presencectl status -- -starts-with-a-hyphen`,
		Args: a.oneClient,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error {
			answer, err := client.GetStatus(ctx, &presencev1.GetStatusRequest{ClientId: args[0], Cluster: a.settings.Cluster})
			if err != nil {
				return fmt.Errorf("ask for the status: %w", err)
			}
			if fresh && answer.GetFreshness().GetStale() {
				return fmt.Errorf("the answer, %s, is stale: %s", answer.GetStatus(), strings.Join(answer.GetFreshness().GetStaleReasons(), ", "))
			}
			if !quiet {
				a.noteStale(answer.GetFreshness())
				if err := a.printStatus(answer); err != nil {
					return err
				}
			}
			return exitOf(answer.GetStatus())
		}),
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print nothing")
	cmd.Flags().BoolVar(&fresh, "fresh", false, "take a stale answer for an error")
	return cmd
}

func (a *app) printStatus(answer *presencev1.GetStatusResponse) error {
	if a.json() {
		return a.printMessage(answer)
	}
	status := answer.GetStatus()
	text := cell(status)
	if a.coloured() {
		text = colour(text)
	}
	if status == unknown {
		guess := offline
		if answer.GetOnline() {
			guess = online
		}
		return a.printf("%s (probably %s: %s)\n", text, guess, cell(answer.GetStatusReason()))
	}
	if a.wide() {
		return a.printf("%s (%s)\n", text, cell(answer.GetStatusReason()))
	}
	return a.printf("%s\n", text)
}

// exitOf returns the exit code for a status, as an error where it is not 0.
func exitOf(status string) error {
	switch status {
	case online:
		return nil
	case offline:
		return exitCode(exitOffline)
	case unknown:
		return exitCode(exitUnknown)
	}
	return fmt.Errorf("the service answers with status %q, which this version does not know", status)
}

func (a *app) getCommand() *cobra.Command {
	var min offsetFlag
	cmd := &cobra.Command{
		Use:     "get CLIENT-ID",
		GroupID: groupClients,
		Short:   "Show what is known of a client",
		Example: `  presencectl get dev1
  presencectl get dev1 -o json | jq .connection`,
		Args: a.oneClient,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error {
			answer, err := client.GetClient(ctx, &presencev1.GetClientRequest{ClientId: args[0], Cluster: a.settings.Cluster, MinOffset: min.value})
			if err != nil {
				return fmt.Errorf("get the client: %w", err)
			}
			a.noteStale(answer.GetFreshness())
			if a.json() {
				return a.printMessage(answer)
			}
			return a.printClient(answer)
		}),
	}
	min.add(cmd)
	return cmd
}

// printClient prints one client as lines of a name and a value; what is not known is left out.
func (a *app) printClient(c *presencev1.Client) error {
	t := &table{header: []string{"", "STATUS"}, headless: true}
	row := func(name, value string) {
		if value != "" && value != absent {
			t.add(name+":", value)
		}
	}
	row("Client ID", cell(c.GetClientId()))
	row("Cluster", cell(c.GetCluster()))
	row("Status", cell(c.GetStatus()))
	row("Reason", cell(c.GetStatusReason()))
	if c.GetStatus() == unknown {
		row("Probably", cell(c.GetBelief()))
	}
	row("Since", a.sinceText(c))
	if n := c.GetConnection(); n != nil {
		row("Node", cell(n.GetNode()))
		row("Connected at", stamp(n.GetConnectedAt()))
		row("Connection", cell(n.GetKey()))
		row("Username", cell(n.GetUsername()))
		row("Peer", cell(n.GetPeer()))
		row("Transport", cell(n.GetTransport()))
		row("Protocol", protocol(n.GetProtocolVersion()))
		if n.KeepAliveS != nil {
			row("Keep alive", fmt.Sprintf("%d s", n.GetKeepAliveS()))
		}
		if n.CleanStart != nil {
			row("Clean start", fmt.Sprint(n.GetCleanStart()))
		}
		if n.SessionExpiryS != nil {
			row("Session expiry", fmt.Sprintf("%d s", n.GetSessionExpiryS()))
		}
		row("Closed because", cell(n.GetCloseReason()))
		row("In its words", cell(n.GetCloseRawReason()))
	}
	if l := c.GetLastTransition(); l != nil {
		row("Before", cell(l.GetPreviousStatus()))
		row("Changed at", stamp(l.GetTime()))
	}
	if c.DetectionDelayS != nil {
		row("Unnoticed for", fmt.Sprintf("up to %d s after a broken connection", c.GetDetectionDelayS()))
	}
	if a.wide() {
		f := c.GetFreshness()
		row("Partition", fmt.Sprint(f.GetPartition()))
		row("Applied offset", fmt.Sprint(f.GetAppliedOffset()))
		row("Applied time", stamp(f.GetAppliedTime()))
		row("Feed", cell(f.GetFeed()))
		row("Node state", cell(f.GetNode()))
	}
	return a.printTable(t)
}

func (a *app) sinceText(c *presencev1.Client) string {
	if c.GetSince() == nil {
		return ""
	}
	return fmt.Sprintf("%s (%s)", stamp(c.GetSince()), span(a.now().Sub(c.GetSince().AsTime())))
}

func protocol(level uint32) string {
	switch level {
	case 0:
		return ""
	case 3:
		return "MQTT 3.1"
	case 4:
		return "MQTT 3.1.1"
	case 5:
		return "MQTT 5"
	}
	return fmt.Sprintf("level %d", level)
}

const (
	// batchIDs and batchBytes bound one call: by the contract, and well below the bytes that any gRPC server takes.
	batchIDs   = 1_000
	batchBytes = 2 << 20
)

func (a *app) batchCommand() *cobra.Command {
	var file string
	var null bool
	cmd := &cobra.Command{
		Use:     "batch [CLIENT-ID...]",
		GroupID: groupClients,
		Short:   "Ask for any number of clients",
		Long: `Client IDs are the arguments, or the lines of a file or of standard input. They are answered in their order, 1,000 a call. Empty
lines are skipped; everything else of a line belongs to the ID, spaces too. IDs that hold line breaks go with --null.`,
		Example: `  presencectl batch dev1 dev2 dev3
  presencectl batch --file ids.txt -o json | jq -r 'select(.status != "online") | .client_id'
  find-my-devices --print0 | presencectl batch --null`,
		RunE: a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) (err error) {
			b := &batch{app: a, client: client, table: a.clientTable()}
			if len(args) > 0 {
				if file != "" || null {
					return &usageError{errors.New("client IDs come as arguments or from --file, not both; --null is for files"), name + " batch"}
				}
				for _, id := range args {
					if err := b.add(ctx, id, "argument"); err != nil {
						return err
					}
				}
				return b.flush(ctx)
			}
			in := a.in
			if file != "" && file != "-" {
				f, err := os.Open(file)
				if err != nil {
					return fmt.Errorf("file: %w", err)
				}
				defer func() { err = errors.Join(err, f.Close()) }()
				in = f
			}
			if err := b.read(ctx, in, null); err != nil {
				return err
			}
			return b.flush(ctx)
		}),
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "read client IDs from this file, - for standard input")
	cmd.Flags().BoolVarP(&null, "null", "0", false, "client IDs are separated by NUL, not by line breaks")
	return cmd
}

// batch collects client IDs until they fill a call.
type batch struct {
	app    *app
	client presencev1.PresenceServiceClient
	table  *table
	ids    []string
	bytes  int
}

func (b *batch) read(ctx context.Context, in io.Reader, null bool) error {
	separator, what := byte('\n'), "line"
	if null {
		separator, what = 0, "ID"
	}
	s := bufio.NewScanner(in)
	s.Buffer(nil, eventlog.MaxClientIDBytes+2)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, separator); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	n := 0
	for s.Scan() {
		n++
		if len(s.Bytes()) == 0 {
			continue
		}
		if err := b.add(ctx, s.Text(), fmt.Sprintf("%s %d", what, n)); err != nil {
			return err
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("read client IDs, %s %d: %w", what, n+1, err)
	}
	return nil
}

func (b *batch) add(ctx context.Context, id, at string) error {
	if err := validClientID(id); err != nil {
		return fmt.Errorf("%s: %w", at, err)
	}
	if len(b.ids) == batchIDs || b.bytes+len(id) > batchBytes {
		if err := b.flush(ctx); err != nil {
			return err
		}
	}
	b.ids, b.bytes = append(b.ids, id), b.bytes+len(id)
	return nil
}

// flush asks for what was collected.
func (b *batch) flush(ctx context.Context) error {
	if len(b.ids) == 0 {
		return nil
	}
	answer, err := b.client.BatchGetClients(ctx, &presencev1.BatchGetClientsRequest{ClientIds: b.ids, Cluster: b.app.settings.Cluster})
	if err != nil {
		return fmt.Errorf("ask for %d clients: %w", len(b.ids), err)
	}
	b.ids, b.bytes = b.ids[:0], 0
	b.app.noteStale(answer.GetFreshness())
	return b.app.printClients(b.table, answer.GetClients())
}

// clientTable is the table of a list of clients.
func (a *app) clientTable() *table {
	t := &table{header: []string{"CLIENT ID", "STATUS", "REASON", "SINCE", "NODE"}, widths: []int{12, 7, 12, 24, 12}}
	if a.wide() {
		t.header = append(t.header, "BELIEF", "CONNECTED AT", "USERNAME", "PEER")
		t.widths = append(t.widths, 7, 24, 8, 8)
	}
	return t
}

// printClients prints the next clients of a list.
func (a *app) printClients(t *table, clients []*presencev1.Client) error {
	if a.json() {
		for _, c := range clients {
			if err := a.printMessage(c); err != nil {
				return err
			}
		}
		return nil
	}
	t.rows = nil
	for _, c := range clients {
		n := c.GetConnection()
		row := []string{cell(c.GetClientId()), cell(c.GetStatus()), cell(c.GetStatusReason()), stamp(c.GetSince()), cell(n.GetNode())}
		if a.wide() {
			row = append(row, cell(c.GetBelief()), stamp(n.GetConnectedAt()), cell(n.GetUsername()), cell(n.GetPeer()))
		}
		t.add(row...)
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	t.headless = true
	return nil
}
