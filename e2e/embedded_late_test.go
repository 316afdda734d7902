package e2e

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service/servicetest"
	"github.com/mqtt-presence/presence/services/presence"
)

// inProcess is Presence in the test's own process, with what no flag sets, and with the broker's own table of clients.
type inProcess struct {
	*presence.Presence
	out, log output
}

// startInProcess starts it; it ends with the test.
func startInProcess(t *testing.T, change func(*presence.Config)) *inProcess {
	t.Helper()
	cfg := presence.DefaultConfig()
	cfg.DataDir, cfg.StateAddr = filepath.Join(t.TempDir(), "data"), ""
	for _, addr := range []*string{&cfg.MQTTAddr, &cfg.MQTTWSAddr, &cfg.KafkaAddr, &cfg.HTTPAddr, &cfg.GRPCAddr, &cfg.Admin.Addr} {
		*addr = "127.0.0.1:0"
	}
	change(&cfg)
	p := &inProcess{}
	log := slog.New(slog.NewTextHandler(&p.log, &slog.HandlerOptions{Level: slog.LevelWarn}))
	var err error
	p.Presence, err = presence.Open(t.Context(), cfg, log, &p.out)
	must(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("presence ended with %v", err)
		}
		if t.Failed() {
			t.Logf("presence wrote:\n%s", &p.log)
		}
	})
	servicetest.Eventually(t, patience, func() error {
		if !strings.Contains(p.out.String(), "curl") {
			return errors.New("presence is not ready")
		}
		return nil
	})
	return p
}

func (p *inProcess) target(t *testing.T) Target {
	t.Helper()
	account := printedAccount.FindStringSubmatch(p.out.String())
	if account == nil {
		t.Fatalf("no account was printed:\n%s", &p.out)
	}
	kafka := eventlog.DefaultConfig()
	kafka.Brokers = []string{p.KafkaAddr()}
	return Target{
		MQTT: p.MQTTAddr(), WebSocket: "ws://" + p.MQTTWSAddr(), REST: p.HTTPAddr().String(), GRPC: p.GRPCAddr().String(),
		User: account[1], Password: account[2], Kafka: kafka,
	}
}

// agree compares what clients see with the broker's own table.
func (p *inProcess) agree(t *testing.T, online map[string]bool) {
	t.Helper()
	servicetest.Eventually(t, patience, func() error {
		clients := p.MQTTClients()
		var errs []error
		for id, is := range online {
			if slices.Contains(clients, id) != is {
				errs = append(errs, errors.New("the broker's table does not agree about client "+id))
			}
		}
		return errors.Join(errs...)
	})
}

// TestEmbeddedLateEnds_H3_H7_H8 forces the order in which brokers that report from several tasks may tell of a takeover: the end of the old connection
// comes after the beginning of the new one.
func TestEmbeddedLateEnds_H3_H7_H8(t *testing.T) {
	t.Parallel()
	for _, transport := range []string{"tcp", "websocket"} {
		t.Run(transport, func(t *testing.T) {
			p := startInProcess(t, func(cfg *presence.Config) { cfg.LateDisconnects = true })
			tgt := p.target(t).open(t)
			if transport == "websocket" {
				tgt = tgt.overWebSocket()
			}
			tgt.LateEnds = true
			runScenarios(t, tgt)
			t.Run("stranger", func(t *testing.T) { scenarioStranger(t, tgt) })
			t.Run("storm", func(t *testing.T) { scenarioStorm(t, tgt, p.agree) })
		})
	}
}
