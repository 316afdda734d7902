package main

import (
	"context"
	"errors"
	"os"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/mqtt-presence/presence/libs/service"
	"github.com/mqtt-presence/presence/services/materializer"
)

func main() { os.Exit(service.Main("materializer", os.Args[1:], run)) }

func run(ctx context.Context, args []string) error {
	cfg := struct {
		materializer.Config
		service.AdminConfig
		service.LogConfig
	}{materializer.DefaultConfig(), service.DefaultAdmin(), service.DefaultLog()}
	if err := service.Load("materializer", args, os.Environ(), &cfg); err != nil {
		return err
	}
	log, err := cfg.Logger(os.Stderr)
	if err := errors.Join(err, cfg.Config.Validate()); err != nil {
		return &service.ConfigError{Err: err}
	}
	reg := prometheus.NewRegistry()
	m, err := materializer.New(cfg.Config, log, reg)
	if err != nil {
		return err
	}
	admin := service.NewAdmin(cfg.Addr, reg, log)
	admin.AddCheck("materializer", m.Ready)
	return service.Run(ctx, log, service.Part{Name: "admin", Run: admin.Run}, service.Part{Name: "materializer", Run: m.Run})
}
