package query

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/service"
)

// accountCommand is the subcommand that prints a line for the accounts file.
const accountCommand = "account"

// commandConfig is the configuration of the query binary.
type commandConfig struct {
	Query Config
	Admin service.AdminConfig
	Log   service.LogConfig
}

// Validate reports every mistake of all parts.
func (c *commandConfig) Validate() error {
	return errors.Join(c.Query.Validate(), c.Log.Validate())
}

// Command is the query binary: it serves until ctx ends, or, if the first argument is "account", prints a line for the accounts file.
func Command(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == accountCommand {
		return printAccount(args[1:], os.Stdin, os.Stdout)
	}
	cfg := &commandConfig{Query: DefaultConfig(), Admin: service.DefaultAdmin(), Log: service.DefaultLog()}
	if err := service.Load("query", args, os.Environ(), cfg); err != nil {
		return err
	}
	log, err := cfg.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	router, err := NewRouter(cfg.Query, log, reg)
	if err != nil {
		return err
	}
	s, err := New(cfg.Query, router, log, reg)
	if err != nil {
		return err
	}
	admin := service.NewAdmin(cfg.Admin.Addr, reg, log)
	admin.AddCheck("query", s.Ready)
	if err := errors.Join(admin.Listen(), s.Listen()); err != nil {
		return err
	}
	return service.Run(ctx, log,
		service.Part{Name: "admin", Run: admin.Run},
		service.Part{Name: "router", Run: router.Run},
		service.Part{Name: "topics", Run: router.WatchTopics},
		service.Part{Name: "query", Run: s.Run},
	)
}

// accountConfig is the configuration of the account subcommand.
type accountConfig struct {
	User        string `conf:"user" flagonly:"true" usage:"name of the account"`
	Permissions string `conf:"permissions" flagonly:"true" usage:"what it may ask: connect (the seed call and GetStatus), read (/v1), admin (all); separated by commas"`
}

// printAccount reads a password from in and prints the account's line to out.
func printAccount(args []string, in io.Reader, out io.Writer) error {
	cfg := &accountConfig{Permissions: "connect,read"}
	// Variables of the environment belong to the service, and so are not looked at.
	if err := service.LoadTo(out, "query account", args, nil, cfg); err != nil {
		return err
	}
	password, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the password from standard input: %w", err)
	}
	line, err := AccountLine(cfg.User, strings.TrimRight(password, "\r\n"), cfg.Permissions)
	if err != nil {
		return &service.ConfigError{Err: err}
	}
	if _, err := fmt.Fprintln(out, line); err != nil {
		return fmt.Errorf("print the account: %w", err)
	}
	return nil
}
