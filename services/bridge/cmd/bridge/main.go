// Command bridge carries the client events of MQTT brokers to Kafka.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/bridge"
)

type config struct {
	bridge.Config
	Log   service.LogConfig
	Admin service.AdminConfig
}

// Validate reports every mistake.
func (c *config) Validate() error { return errors.Join(c.Config.Validate(), c.Log.Validate()) }

func main() { os.Exit(service.Main("bridge", os.Args[1:], run)) }

func run(ctx context.Context, args []string) error {
	cfg := config{Config: bridge.DefaultConfig(), Log: service.DefaultLog(), Admin: service.DefaultAdmin()}
	if err := service.Load("bridge", args, os.Environ(), &cfg); err != nil {
		return err
	}
	log, err := cfg.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	b, err := bridge.New(cfg.Config, log, reg)
	if err != nil {
		return err
	}
	admin := service.NewAdmin(cfg.Admin.Addr, reg, log)
	admin.AddCheck("bridge", b.Ready)
	return service.Run(ctx, log, service.Part{Name: "admin", Run: admin.Run}, service.Part{Name: "bridge", Run: b.Run})
}
