package presencectl

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func (a *app) configCommand() *cobra.Command {
	config := &cobra.Command{
		Use:     "config",
		GroupID: groupSelf,
		Short:   "Keep contexts: which service to ask, and as whom",
		Long: `A context is a named group of settings in the configuration file: whom to ask, as whom, about which cluster. Each setting has the
name of its flag. The file is $XDG_CONFIG_HOME/presencectl/config.yaml (or the one of --config, or PRESENCECTL_CONFIG), has mode 0600,
and holds no secrets, only the names of files that do.`,
		Example: `  presencectl config set-context local --user dev --password-file presence-data/dev-password
  presencectl config set-context prod --server presence.example.com:8081 --tls --token-file ~/.presence-token --cluster eu-1
  presencectl config use-context prod`,
		Args: a.noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	config.AddCommand(a.setContextCommand(), a.useContextCommand(), a.getContextsCommand(), a.deleteContextCommand(), a.currentContextCommand())
	return config
}

func (a *app) setContextCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set-context NAME",
		Short: "Make a context, or change settings of one",
		Long: `Sets the settings that are given as flags; an empty value removes one. What is not given stays. The first context becomes the
current one. Files are kept by their absolute path.`,
		Example: `  presencectl config set-context local --user dev --password-file presence-data/dev-password --kafka-brokers 127.0.0.1:9092
  presencectl config set-context prod --cluster ""`,
		Args:              a.oneContext,
		ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			if err := validContextName(args[0]); err != nil {
				return err
			}
			if c.find(args[0]) == nil {
				c.Contexts = append(c.Contexts, namedGroup{Name: args[0]})
			}
			g := c.find(args[0])
			if err := a.changeContext(g); err != nil {
				return err
			}
			if c.Current == "" {
				c.Current = g.Name
			}
			return a.saveConfig(c)
		},
	}
	cmd.Flags().AddFlagSet(a.flags.kafka)
	return cmd
}

// changeContext sets what was given on the command line.
func (a *app) changeContext(g *namedGroup) error {
	to := bind(&g.settings)
	var errs []error
	a.flags.all(func(f *pflag.Flag) {
		if !f.Changed {
			return
		}
		value := f.Value.String()
		if isFile(f.Name) && value != "" {
			absolute, err := filepath.Abs(value)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", f.Name, err))
			}
			value = absolute
		}
		if err := to.lookup(f.Name).Value.Set(value); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", f.Name, err))
		}
	})
	if _, err := (layer{"context " + g.Name, g.values()}).kind(); err != nil {
		errs = append(errs, err)
	}
	// A password may come from the environment.
	check := g.settings
	if check.Server == "" {
		check.Server = defaultServer
	}
	if check.User != "" && check.PasswordFile == "" {
		check.PasswordFile = envPassword
	}
	return errors.Join(append(errs, check.validate())...)
}

func (a *app) useContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "use-context NAME",
		Short:             "Make a context the current one",
		Example:           "  presencectl config use-context prod",
		Args:              a.oneContext,
		ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			if c.find(args[0]) == nil {
				return fmt.Errorf("there is no context %q; '%s config get-contexts' lists them", args[0], name)
			}
			c.Current = args[0]
			return a.saveConfig(c)
		},
	}
}

func (a *app) deleteContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "delete-context NAME",
		Short:             "Remove a context",
		Example:           "  presencectl config delete-context prod",
		Args:              a.oneContext,
		ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			if c.find(args[0]) == nil {
				return fmt.Errorf("there is no context %q; '%s config get-contexts' lists them", args[0], name)
			}
			c.Contexts = slices.DeleteFunc(c.Contexts, func(g namedGroup) bool { return g.Name == args[0] })
			if c.Current == args[0] {
				c.Current = ""
				a.note("it was the current context; there is none now")
			}
			return a.saveConfig(c)
		},
	}
}

func (a *app) currentContextCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "current-context",
		Short:   "Print the name of the context in use",
		Example: "  presencectl config current-context",
		Args:    a.noArgs,
		RunE: func(*cobra.Command, []string) error {
			g, err := a.chosenContext()
			if err != nil {
				return err
			}
			if g == nil {
				return fmt.Errorf("there is no current context; make one with '%s config set-context'", name)
			}
			return a.printf("%s\n", g.Name)
		},
	}
}

func (a *app) getContextsCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "get-contexts",
		Short:   "List all contexts",
		Example: "  presencectl config get-contexts\n  presencectl config get-contexts -o json",
		Args:    a.noArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.loadConfig()
			if err != nil {
				return err
			}
			t := &table{header: []string{"CURRENT", "NAME", "SERVER", "CLUSTER", "USER", "CREDENTIAL"}}
			for _, g := range c.Contexts {
				if a.json() {
					values := g.values()
					values["name"], values["current"] = g.Name, fmt.Sprint(g.Name == c.Current)
					if err := a.printJSON(values); err != nil {
						return err
					}
					continue
				}
				current, server, credential := "", g.Server, g.PasswordFile
				if g.Name == c.Current {
					current = "*"
				}
				if server == "" {
					server = defaultServer
				}
				if g.TokenFile != "" {
					credential = g.TokenFile
				}
				t.add(current, cell(g.Name), cell(server), cell(g.Cluster), cell(g.User), cell(credential))
			}
			if a.json() {
				return nil
			}
			return a.printTable(t)
		},
	}
}

func (a *app) oneContext(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return &usageError{errors.New("give the name of one context"), cmd.CommandPath()}
	}
	return nil
}
