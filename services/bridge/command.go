package bridge

import (
	"context"
	"errors"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/service"
)

// commandConfig is the configuration of the process: the bridge's, and what every service has.
type commandConfig struct {
	Config
	Log   service.LogConfig
	Admin service.AdminConfig
}

// Validate reports every mistake.
func (c *commandConfig) Validate() error { return errors.Join(c.Config.Validate(), c.Log.Validate()) }

// Command is the body of the bridge's main function: it reads flags, environment and file, and runs until ctx ends; or, if the first argument is
// "replay", it decodes dead letters again.
func Command(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == replayCommand {
		return runReplay(ctx, args[1:], os.Stdout)
	}
	cfg := commandConfig{Config: DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin()}
	if err := service.Load("bridge", args, os.Environ(), &cfg); err != nil {
		return err
	}
	log, err := cfg.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	b, err := New(cfg.Config, log, reg)
	if err != nil {
		return err
	}
	admin := service.NewAdmin(cfg.Admin.Addr, reg, log)
	admin.AddCheck("bridge", b.Ready)
	return service.Run(ctx, log, service.Part{Name: "admin", Run: admin.Run}, service.Part{Name: "bridge", Run: b.Run})
}
