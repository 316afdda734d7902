package presence

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/mqtt-presence/presence/libs/service"
)

// Command is the presence binary: it runs everything until ctx ends.
func Command(ctx context.Context, args []string) error {
	cfg := DefaultConfig()
	if err := service.Load("presence", args, os.Environ(), &cfg); err != nil {
		return err
	}
	log, err := cfg.Log.Logger(os.Stderr)
	if err != nil {
		return err
	}
	p, err := Open(ctx, cfg, log, os.Stdout)
	if err != nil {
		return err
	}
	return p.Run(ctx)
}

// welcome tells, once everything is ready, where it is and how to ask it.
func (p *Presence) welcome(ctx context.Context) error {
	if err := p.await(ctx, p.ready); err != nil {
		return nil // stopped before
	}
	if _, err := fmt.Fprint(p.out, p.text()); err != nil {
		return fmt.Errorf("print the addresses: %w", err)
	}
	<-ctx.Done()
	return nil
}

func (p *Presence) text() string {
	scheme := "http"
	if p.cfg.TLS.CertFile != "" {
		scheme = "https"
	}
	rest := scheme + "://" + reachable(p.HTTPAddr().String())
	var b strings.Builder
	b.WriteString("\nPresence is ready.\n\n")
	row := func(name, value string) { fmt.Fprintf(&b, "  %-12s %s\n", name, value) }
	if p.broker != nil {
		row("MQTT", "mqtt://"+reachable(p.MQTTAddr())+"  (embedded)")
		if addr := p.MQTTWSAddr(); addr != "" {
			row("WebSocket", "ws://"+reachable(addr)+"  (embedded)")
		}
	} else {
		row("MQTT", strings.Join(p.cfg.MQTT.URLs, ", "))
	}
	row("web page", rest+"/")
	row("REST", rest+"  (calls: "+rest+"/openapi.json)")
	row("gRPC", reachable(p.GRPCAddr().String()))
	if p.kafka != nil {
		row("Kafka", p.KafkaAddr()+"  (embedded)")
	} else {
		row("Kafka", strings.Join(p.cfg.Kafka.Brokers, ", "))
	}
	row("admin", "http://"+reachable(p.admin.Addr().String())+"/metrics")
	credentials := "USER:PASSWORD"
	switch {
	case p.cfg.AccountsFile != "":
		row("accounts", p.cfg.AccountsFile)
	case p.account.password == "":
		row("accounts", p.cfg.accountsPath())
	default:
		credentials = p.account.user + ":" + p.account.password
		row("account", p.account.user+", password "+p.account.password+"  (kept in "+p.account.passwordFile+")")
	}
	if p.broker != nil {
		host, port, _ := net.SplitHostPort(reachable(p.MQTTAddr()))
		fmt.Fprintf(&b, "\nConnect a client, for example:\n\n  mosquitto_sub -h %s -p %s -i dev1 -t x\n", host, port)
	}
	fmt.Fprintf(&b, "\nIs it connected?\n\n  curl -u '%s' %s/client-id/dev1/status\n\n", credentials, rest)
	return b.String()
}

// reachable turns a listen address into one to call from this machine.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = ""
	}
	return net.JoinHostPort(cmp.Or(host, "127.0.0.1"), port)
}
