package presencectl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	presencev1 "github.com/mqtt-presence/presence/proto/presence/v1"
)

// completionTimeout bounds what a shell waits for names of the service.
const completionTimeout = 2 * time.Second

var shells = []string{"bash", "zsh", "fish"}

func (a *app) completionCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:     "completion bash|zsh|fish",
		GroupID: groupSelf,
		Short:   "Print a script that completes commands, contexts, nodes and clusters",
		Long: `Prints the script of a shell. Contexts come from the configuration file, nodes and clusters from the service, as the account in use.

  bash  needs the package bash-completion; in ~/.bashrc:  source <(presencectl completion bash)
  zsh   in ~/.zshrc, after compinit:                      source <(presencectl completion zsh)
  fish  presencectl completion fish >~/.config/fish/completions/presencectl.fish`,
		Example:               "  source <(presencectl completion bash)",
		DisableFlagsInUseLine: true,
		ValidArgs:             shells,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return &usageError{errors.New("give a shell: bash, zsh or fish"), cmd.CommandPath()}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.out, true)
			case "zsh":
				return root.GenZshCompletion(a.out)
			case "fish":
				return root.GenFishCompletion(a.out, true)
			}
			return &usageError{fmt.Errorf("shell %q is none of bash, zsh, fish", args[0]), cmd.CommandPath()}
		},
	}
}

// complete registers what can be completed everywhere.
func (a *app) complete(root *cobra.Command) {
	a.completeFlag(root, "output", completeWords(outputs))
	a.completeFlag(root, "context", a.completeContexts)
	a.completeFlag(root, "cluster", a.completeClusters)
	for _, flag := range []string{"server", "user", "timeout", "tls-server-name"} {
		a.completeFlag(root, flag, completeWords(nil))
	}
}

// completeFlag registers how a flag is completed. The only error there is a flag that does not exist, or comes twice.
func (a *app) completeFlag(cmd *cobra.Command, flag string, f cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		a.note("--%s has no completion: %v", flag, err)
	}
}

func completeWords(words []string) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		return beginning(words, typed), cobra.ShellCompDirectiveNoFileComp
	}
}

// beginning returns the words that begin with what was typed.
func beginning(words []string, typed string) []string {
	return slices.DeleteFunc(slices.Clone(words), func(w string) bool { return !strings.HasPrefix(w, typed) })
}

func (a *app) completeContexts(_ *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
	c, err := a.loadConfig()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, g := range c.Contexts {
		names = append(names, g.Name)
	}
	return beginning(names, typed), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeNodes(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completeFromService(cmd, typed, func(ctx context.Context, client presencev1.PresenceServiceClient) ([]string, error) {
		answer, err := client.ListNodes(ctx, &presencev1.ListNodesRequest{Cluster: a.settings.Cluster})
		var names []string
		for _, n := range answer.GetNodes() {
			names = append(names, n.GetNode())
		}
		return names, err
	})
}

func (a *app) completeClusters(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	return a.completeFromService(cmd, typed, func(ctx context.Context, client presencev1.PresenceServiceClient) ([]string, error) {
		// What was typed of the cluster so far is none.
		answer, err := client.GetStats(ctx, &presencev1.GetStatsRequest{SkipUsernames: true})
		var names []string
		for _, c := range answer.GetClusters() {
			names = append(names, c.GetCluster())
		}
		return names, err
	})
}

// completeFromService asks the service for names. Those that do not stand in a command line as they are, are left out: names of nodes come from brokers.
func (a *app) completeFromService(cmd *cobra.Command, typed string, ask func(context.Context, presencev1.PresenceServiceClient) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	var names []string
	ctx, cancel := context.WithTimeout(cmd.Context(), completionTimeout)
	defer cancel()
	err := a.asking(func(_ context.Context, client presencev1.PresenceServiceClient, _ []string) error {
		all, err := ask(ctx, client)
		for _, n := range all {
			if cell(n) == n && !strings.ContainsAny(n, "\"'`$&|;<>()*?[]{}!#~=%\\:") {
				names = append(names, n)
			}
		}
		return err
	})(cmd, nil)
	if err != nil {
		// A shell has no place for errors; BASH_COMP_DEBUG_FILE has.
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return beginning(names, typed), cobra.ShellCompDirectiveNoFileComp
}
