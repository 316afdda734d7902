package bridge

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

func TestConfigFromFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bridge.yaml")
	text := `
kafka-brokers: [kafka:9092]
data-dir: /var/lib/bridge
clusters:
  - name: eu
    mqtt-url: [mqtt://a, mqtts://b]
    mqtt-timezone: Europe/Berlin
  - name: us
    mqtt-url: [mqtt://c:1884]
    mqtt-dialect: emqx
    mqtt-client-id: mine
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := DefaultConfig()
	if err := service.Load("bridge", []string{"--config", file, "--bridge-name", "b7"}, nil, &cfg); err != nil {
		t.Fatal(err)
	}
	list := cfg.clusters()
	if len(list) != 2 || list[0].ClientID != "presence-bridge-eu-b7" || list[0].Dialect != dialectAuto || list[1].ClientID != "mine" {
		t.Errorf("clusters %+v", list)
	}
	endpoints, err := list[0].endpoints()
	if err != nil || endpoints[0].Host != "a:1883" || endpoints[1].Host != "b:8883" {
		t.Errorf("endpoints %v, %v", endpoints, err)
	}
	if tlsConfig, err := list[0].tlsConfig(); err != nil || tlsConfig == nil {
		t.Errorf("an mqtts endpoint has no TLS: %v", err)
	}
}

func TestConfigMistakesAreNamed(t *testing.T) {
	valid := func() Config {
		c := DefaultConfig()
		c.Brokers, c.DataDir, c.MQTT.URLs = []string{"kafka:9092"}, "/d", []string{"mqtt://a"}
		return c
	}
	if err := valid().Validate(); err != nil {
		t.Fatal(err)
	}
	for want, mend := range map[string]func(c *Config){
		"kafka-brokers":           func(c *Config) { c.Brokers = nil },
		"bridge-name":             func(c *Config) { c.Name = "" },
		"data-dir":                func(c *Config) { c.DataDir = "" },
		"spool-max-bytes":         func(c *Config) { c.SpoolMaxBytes = 5 },
		"feed-heartbeat-interval": func(c *Config) { c.HeartbeatInterval = 0 },
		"feed-lease":              func(c *Config) { c.LeaseDuration = 3 * time.Second },
		"cluster":                 func(c *Config) { c.Cluster = "A/B" },
		"mqtt-url: must":          func(c *Config) { c.MQTT.URLs = nil },
		"is not mqtt://":          func(c *Config) { c.MQTT.URLs = []string{"http://a"} },
		"mqtt-url: holds a user":  func(c *Config) { c.MQTT.URLs = []string{"mqtt://u:p@a"} },
		"mqtt-dialect":            func(c *Config) { c.MQTT.Dialect = "x" },
		"mqtt-timezone":           func(c *Config) { c.MQTT.Timezone = "Mars/Olympus" },
		"mqtt-client-id":          func(c *Config) { c.MQTT.ClientID = "\xff" },
		"mqtt-tls":                func(c *Config) { c.MQTT.TLS.CAFile = "/none" },
		"name \"x\" is used twice": func(c *Config) {
			c.MQTT.URLs = nil
			c.Clusters = []ClusterConfig{{Name: "x", MQTTConfig: valid().MQTT}, {Name: "x", MQTTConfig: valid().MQTT}}
		},
		"inside each item": func(c *Config) { c.Clusters = []ClusterConfig{{Name: "x", MQTTConfig: valid().MQTT}} },
	} {
		c := valid()
		mend(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error about %q, got %v", want, err)
		} else if strings.Contains(err.Error(), "u:p") {
			t.Errorf("the error shows a password: %v", err)
		}
	}
}
