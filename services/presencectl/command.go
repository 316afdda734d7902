package presencectl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/mqtt-presence/presence/libs/service"
)

const name = "presencectl"

// Exit codes.
const (
	exitOK      = 0 // status: online
	exitOffline = 1 // status only
	exitUnknown = 2 // status only
	exitError   = 3
)

// Process is what a command has from the process that it runs in.
type Process struct {
	Args    []string // without the program's name
	Environ []string // as [os.Environ] returns it
	In      io.Reader
	Out     io.Writer
	Err     io.Writer
}

// Main is the body of the main function: it runs a command until it ends or ctx does, and returns the exit code.
func Main(ctx context.Context, p Process) int { return newApp(p).run(ctx, p.Args) }

func (a *app) run(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var exit exitCode
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return int(exit)
	}
	a.complain(err)
	return exitError
}

// Root returns the command tree, for the generated reference.
func Root() *cobra.Command {
	return newApp(Process{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard}).root()
}

// exitCode is the error of a command that has printed its answer and ends with a code of its own.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// usageError is a mistake on the command line.
type usageError struct {
	err     error
	command string // whose help tells more
}

func (e *usageError) Error() string { return e.err.Error() }

func (e *usageError) Unwrap() error { return e.err }

// app is one run.
type app struct {
	in       io.Reader
	out, err io.Writer
	environ  []string
	now      func() time.Time

	settings settings
	flags    settingFlags
	context  string // --context
	config   string // --config
	output   string // -o
}

func newApp(p Process) *app {
	a := &app{in: p.In, out: p.Out, err: p.Err, environ: p.Environ, now: time.Now, settings: defaultSettings()}
	a.flags = bind(&a.settings)
	return a
}

const rootHelp = `presencectl asks a Presence service which MQTT clients are connected right now, and why it thinks so.

It talks to the query service over gRPC, at 127.0.0.1:8081 unless told otherwise. For 'presence', all in one process, on this machine:

  presencectl config set-context local --user dev --password-file DATA-DIR/dev-password
  presencectl status dev1

DATA-DIR is its --data-dir; at its start it prints the password and the file that keeps it. Whom to ask, and as whom, is given by flags, by
environment variables (--server is PRESENCECTL_SERVER) or by a context of the configuration file; flags win over the environment, and
this over the context. Passwords and tokens come from a file, or from PRESENCECTL_PASSWORD and PRESENCECTL_TOKEN.

Exit codes: 3 for every error, a wrong command line too, and where 'compare-replicas' or 'check-indexes' find that something is wrong. 'presencectl
status' exits with 0 for online, 1 for offline, 2 for unknown; every other command with 0.`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   name,
		Short: "Ask which MQTT clients are connected",
		Long:  rootHelp,
		Example: `  presencectl status dev1 && echo connected
  presencectl list --status unknown --all
  presencectl watch --client-id-prefix VIN -o json`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          a.noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &usageError{err, cmd.CommandPath()} })
	root.AddGroup(
		&cobra.Group{ID: groupClients, Title: "Clients:"},
		&cobra.Group{ID: groupFleet, Title: "The fleet:"},
		&cobra.Group{ID: groupAdmin, Title: "Administration:"},
		&cobra.Group{ID: groupSelf, Title: "presencectl itself:"},
	)
	root.SetHelpCommandGroupID(groupSelf)

	flags := root.PersistentFlags()
	flags.StringVar(&a.config, "config", "", "configuration file with contexts (default $XDG_CONFIG_HOME/presencectl/config.yaml)")
	flags.StringVar(&a.context, "context", "", "context of the configuration file to use (default: its current one)")
	flags.StringVarP(&a.output, "output", "o", outputTable, "table, wide (a table with more columns) or json (one object a line)")
	flags.AddFlagSet(a.flags.common)
	a.complete(root)

	root.AddCommand(
		a.statusCommand(), a.getCommand(), a.batchCommand(), a.listCommand(), a.sessionsCommand(), a.explainCommand(), a.watchCommand(),
		a.statsCommand(), a.nodesCommand(),
		a.deleteCommand(), a.checkIndexesCommand(), a.compareReplicasCommand(), a.deadLettersCommand(), a.backupCommand(), a.restoreCommand(),
		a.configCommand(), a.completionCommand(root), a.versionCommand(),
	)
	return root
}

// Groups of commands in the help.
const (
	groupClients = "clients"
	groupFleet   = "fleet"
	groupAdmin   = "admin"
	groupSelf    = "self"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		GroupID: groupSelf,
		Short:   "Print the version of presencectl",
		Example: "  presencectl version",
		Args:    a.noArgs,
		RunE: func(*cobra.Command, []string) error {
			return a.printf("%s %s\n", name, service.Version())
		},
	}
}

// noArgs, oneClient and atMostClients check the arguments of a command.
func (a *app) noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasAvailableSubCommands() {
		cmd.SuggestionsMinimumDistance = 2
		err := fmt.Errorf("unknown command %q", args[0])
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
		}
		return &usageError{err, cmd.CommandPath()}
	}
	return &usageError{fmt.Errorf("argument %q: %s takes none", args[0], cmd.CommandPath()), cmd.CommandPath()}
}

func (a *app) oneClient(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return &usageError{errors.New("give a client ID; one that begins with a hyphen goes after --"), cmd.CommandPath()}
	case len(args) > 1:
		return &usageError{fmt.Errorf("%d arguments, and %s takes one client ID; put an ID with spaces in quotes, and ask for several with %s batch",
			len(args), cmd.CommandPath(), name), cmd.CommandPath()}
	}
	if err := validClientID(args[0]); err != nil {
		return &usageError{err, cmd.CommandPath()}
	}
	return nil
}

// complain prints an error, and what to do about it.
func (a *app) complain(err error) {
	text := fmt.Sprintf("%s: %s\n", name, printable(strings.ReplaceAll(describe(err), "\n", "; ")))
	for _, hint := range a.hints(err) {
		text += "  " + printable(hint) + "\n"
	}
	var usage *usageError
	if errors.As(err, &usage) {
		text += fmt.Sprintf("Run '%s --help' for usage.\n", usage.command)
	}
	// There is nowhere left to report that standard error is closed.
	_, _ = io.WriteString(a.err, text)
}

// note says something about the answer on standard error.
func (a *app) note(format string, args ...any) {
	_, _ = fmt.Fprintf(a.err, "%s: %s\n", name, printable(fmt.Sprintf(format, args...)))
}

func (a *app) printf(format string, args ...any) error {
	if _, err := fmt.Fprintf(a.out, format, args...); err != nil {
		return fmt.Errorf("print the answer: %w", err)
	}
	return nil
}

// env returns an environment variable, empty if it is not set.
func (a *app) env(variable string) string {
	for _, e := range a.environ {
		if key, value, _ := strings.Cut(e, "="); key == variable {
			return value
		}
	}
	return ""
}

// coloured reports whether colours may go to standard output: it is a terminal, and nobody asked for none (no-color.org).
func (a *app) coloured() bool {
	f, ok := a.out.(*os.File)
	if !ok || a.env("NO_COLOR") != "" || a.env("TERM") == "dumb" || a.env("TERM") == "" {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
