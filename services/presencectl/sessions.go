package presencectl

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

func (a *app) sessionsCommand() *cobra.Command {
	var min offsetFlag
	cmd := &cobra.Command{
		Use:     "sessions CLIENT-ID",
		GroupID: groupClients,
		Short:   "Show the latest connections of a client, or whether it was connected at a time",
		Long: `Lists the latest connections of a client, newest first; times are by the clock of the broker's node. An end is stated, if the broker
said when it was, or inferred: the connection ended by then at the latest. With --at it also says whether the client was connected then.`,
		Example: `  presencectl sessions dev1
  presencectl sessions dev1 --at -5m
  presencectl sessions dev1 --at 2026-01-31T12:00:00Z -o json | jq .at`,
		Args: a.oneClient,
	}
	min.add(cmd)
	at := a.timeFlag(cmd, "at", "say whether the client was connected at this time")
	cmd.RunE = a.asking(func(ctx context.Context, client presencev1.PresenceServiceClient, args []string) error {
		answer, err := client.ListSessions(ctx, &presencev1.ListSessionsRequest{
			ClientId: args[0], Cluster: a.settings.Cluster, MinOffset: min.value, At: at.proto(),
		})
		if err != nil {
			return fmt.Errorf("list sessions: %w", err)
		}
		a.noteStale(answer.GetFreshness())
		if a.json() {
			return a.printMessage(answer)
		}
		return a.printSessions(answer)
	})
	return cmd
}

func (a *app) printSessions(answer *presencev1.ListSessionsResponse) error {
	decided := -1
	if at := answer.GetAt(); at != nil {
		status := cell(at.GetStatus())
		if a.coloured() {
			status = colour(status)
		}
		if err := a.printf("At %s: %s (%s)\n\n", stamp(at.GetTime()), status, cell(at.GetReason())); err != nil {
			return err
		}
		if at.Session != nil {
			decided = int(at.GetSession())
		}
	}
	t := &table{header: []string{"STATE", "CONNECTED AT", "DISCONNECTED AT", "LASTED", "END", "REASON", "NODE"}}
	if answer.GetAt() != nil {
		t.header = append([]string{"AT"}, t.header...)
	}
	if a.wide() {
		t.header = append(t.header, "RAW REASON", "USERNAME", "PEER", "TRANSPORT", "PROTOCOL", "CONNECTION")
	}
	for i, s := range answer.GetSessions() {
		row := []string{cell(s.GetState()), stamp(s.GetConnectedAt()), stamp(s.GetDisconnectedAt()), a.lasted(s), cell(s.GetEnd()), cell(s.GetReason()), cell(s.GetNode())}
		if answer.GetAt() != nil {
			mark := ""
			if i == decided {
				mark = "*"
			}
			row = append([]string{mark}, row...)
		}
		if a.wide() {
			row = append(row, cell(s.GetRawReason()), cell(s.GetUsername()), cell(s.GetPeer()), cell(s.GetTransport()), cmp.Or(protocol(s.GetProtocolVersion()), absent), cell(s.GetKey()))
		}
		t.add(row...)
	}
	if err := a.printTable(t); err != nil {
		return err
	}
	if answer.GetCompleteSince() != nil {
		a.note("connections that ended before %s may be missing", stamp(answer.GetCompleteSince()))
	}
	return nil
}

// lasted returns how long a session lasted, or has lasted if it is open.
func (a *app) lasted(s *presencev1.Session) string {
	if s.GetConnectedAt() == nil {
		return absent
	}
	var end time.Time
	switch {
	case s.GetDisconnectedAt() != nil:
		end = s.GetDisconnectedAt().AsTime()
	case s.GetState() == "open":
		end = a.now()
	default:
		return absent
	}
	return span(end.Sub(s.GetConnectedAt().AsTime()))
}
