package service

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

type testConfig struct {
	LogConfig
	Brokers    []string      `conf:"kafka-brokers" usage:"Kafka brokers, host:port"`
	Partitions int           `conf:"kafka-partitions" usage:"partitions of a new topic"`
	Bytes      int64         `conf:"spool-bytes" usage:"bound of the spool | in bytes"`
	Replicas   uint          `conf:"replicas" usage:"replicas"`
	Share      float64       `conf:"share" usage:"share, 0 to 1"`
	Publish    bool          `conf:"publish" usage:"publish transitions"`
	StaleAfter time.Duration `conf:"stale-after" usage:"age at which answers are stale"`
	Least      slog.Level    `conf:"least" usage:"least level"`
	Password   Secret        `conf:"mqtt-password" usage:"password"`
	PassFile   string        `conf:"mqtt-password-file" usage:"file of the password"`
	TLS        ClientTLS     `prefix:"mqtt-tls-"`
	Clusters   []testCluster `conf:"clusters" yamlonly:"true" usage:"clusters"`
	Derived    chan int      `conf:"-"`
	invalid    error
}

type testCluster struct {
	Name    string        `conf:"name" usage:"name"`
	URLs    []string      `conf:"mqtt-url" usage:"endpoints"`
	Timeout time.Duration `conf:"timeout" usage:"timeout"`
	TLS     ClientTLS     `prefix:"mqtt-tls-"`
}

func (c *testCluster) SetDefaults() { c.Timeout = time.Minute }

func (c *testConfig) Validate() error {
	return errors.Join(c.LogConfig.Validate(), c.invalid)
}

func defaults() *testConfig {
	return &testConfig{
		LogConfig:  DefaultLog(),
		Brokers:    []string{"default:9092"},
		Partitions: 16,
		StaleAfter: 10 * time.Second,
		Password:   "",
	}
}

func writeFile(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoadPrecedence(t *testing.T) {
	file := writeFile(t, "p.yaml", "# ours\n---\nkafka-partitions: 2\nstale-after: 2s\nkafka-brokers: [file:1, 'file:2']\n")
	for _, test := range []struct {
		name       string
		args       []string
		environ    []string
		partitions int
		staleAfter time.Duration
		brokers    []string
	}{
		{"defaults", nil, nil, 16, 10 * time.Second, []string{"default:9092"}},
		{"file by flag", []string{"--config", file}, nil, 2, 2 * time.Second, []string{"file:1", "file:2"}},
		{"file by environment", nil, []string{"PRESENCE_CONFIG=" + file}, 2, 2 * time.Second, []string{"file:1", "file:2"}},
		{
			"file by flag wins", []string{"--config=" + file}, []string{"PRESENCE_CONFIG=/nowhere"},
			2, 2 * time.Second, []string{"file:1", "file:2"},
		},
		{
			"environment over file", []string{"--config", file},
			[]string{"PRESENCE_KAFKA_PARTITIONS=3", "PRESENCE_KAFKA_BROKERS=env:1, env:2"},
			3, 2 * time.Second, []string{"env:1", "env:2"},
		},
		{
			"flag over environment over file", []string{"--config", file, "--kafka-partitions=4", "--kafka-brokers", "f:1", "--kafka-brokers=f:2,f:3"},
			[]string{"PRESENCE_KAFKA_PARTITIONS=3", "PRESENCE_KAFKA_BROKERS=env:1", "PRESENCE_STALE_AFTER=3s"},
			4, 3 * time.Second, []string{"f:1", "f:2", "f:3"},
		},
		{
			"flag equal to the default still wins", []string{"--kafka-partitions=16"}, []string{"PRESENCE_KAFKA_PARTITIONS=3"},
			16, 10 * time.Second, []string{"default:9092"},
		},
		{
			"an empty variable is absent", []string{"--config", file}, []string{"PRESENCE_KAFKA_PARTITIONS="},
			2, 2 * time.Second, []string{"file:1", "file:2"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			cfg := defaults()
			if err := Load("bridge", test.args, test.environ, cfg); err != nil {
				t.Fatal(err)
			}
			if cfg.Partitions != test.partitions || cfg.StaleAfter != test.staleAfter || !reflect.DeepEqual(cfg.Brokers, test.brokers) {
				t.Errorf("got %d, %v, %q; want %d, %v, %q",
					cfg.Partitions, cfg.StaleAfter, cfg.Brokers, test.partitions, test.staleAfter, test.brokers)
			}
		})
	}
}

// TestLoadTypes gives every type of option through every source that it has.
func TestLoadTypes(t *testing.T) {
	want := defaults()
	want.Level = "debug"
	want.Brokers = []string{"a:1"}
	want.Partitions = -3
	want.Bytes = 1 << 40
	want.Replicas = 7
	want.Share = 0.5
	want.Publish = true
	want.StaleAfter = 1500 * time.Millisecond
	want.Least = slog.LevelWarn
	want.PassFile = "x"
	want.TLS = ClientTLS{Enabled: true, CAFile: "ca.pem"}

	names := []string{
		"log-level", "kafka-brokers", "kafka-partitions", "spool-bytes", "replicas", "share", "publish",
		"stale-after", "least", "mqtt-password-file", "mqtt-tls-enabled", "mqtt-tls-ca-file",
	}
	values := []string{"debug", "a:1", "-3", "1099511627776", "7", "0.5", "true", "1500ms", "warn", "x", "true", "ca.pem"}
	var args, environ []string
	var file strings.Builder
	for i, name := range names {
		args = append(args, "--"+name+"="+values[i])
		environ = append(environ, "PRESENCE_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+values[i])
		fmt.Fprintf(&file, "%s: %s\n", name, values[i])
	}
	path := writeFile(t, "all.yaml", file.String())
	for source, load := range map[string]func(cfg any) error{
		"flags":       func(cfg any) error { return Load("x", args, nil, cfg) },
		"environment": func(cfg any) error { return Load("x", nil, environ, cfg) },
		"file":        func(cfg any) error { return Load("x", []string{"--config", path}, nil, cfg) },
	} {
		t.Run(source, func(t *testing.T) {
			got := defaults()
			if err := load(got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestLoadBoolFlagNeedsNoValue(t *testing.T) {
	cfg := defaults()
	if err := Load("x", []string{"--publish", "--replicas=2"}, nil, cfg); err != nil {
		t.Fatal(err)
	}
	if !cfg.Publish || cfg.Replicas != 2 {
		t.Errorf("got %v, %d; want true, 2", cfg.Publish, cfg.Replicas)
	}
}

func TestLoadStructList(t *testing.T) {
	file := writeFile(t, "c.yaml", `
clusters:
  - name: east
    mqtt-url: [mqtt://a:1883, mqtt://b:1883]
    timeout: 5s
    mqtt-tls-enabled: true
  - name: west
`)
	cfg := defaults()
	if err := Load("x", []string{"--config", file}, nil, cfg); err != nil {
		t.Fatal(err)
	}
	want := []testCluster{
		{Name: "east", URLs: []string{"mqtt://a:1883", "mqtt://b:1883"}, Timeout: 5 * time.Second, TLS: ClientTLS{Enabled: true}},
		{Name: "west", Timeout: time.Minute},
	}
	if !reflect.DeepEqual(cfg.Clusters, want) {
		t.Errorf("got %+v, want %+v", cfg.Clusters, want)
	}
}

func TestLoadSecret(t *testing.T) {
	cfg := defaults()
	if err := Load("x", nil, []string{"PRESENCE_MQTT_PASSWORD=hunter2, or so"}, cfg); err != nil {
		t.Fatal(err)
	}
	if got := cfg.Password.Reveal(); got != "hunter2, or so" {
		t.Errorf("got %q", got)
	}
}

// TestLoadErrors gives one mistake each; the error names the source, the key and a
// way out.
func TestLoadErrors(t *testing.T) {
	for _, test := range []struct {
		name    string
		args    []string
		environ []string
		file    string // content
		want    []string
	}{
		{name: "unknown flag", args: []string{"--kafka-broker=x"}, want: []string{"flag --kafka-broker:", "unknown flag", "did you mean --kafka-brokers?"}},
		{name: "unlike any flag", args: []string{"--zzz"}, want: []string{"flag --zzz:", "unknown flag", "--help"}},
		{name: "single hyphen", args: []string{"-publish"}, want: []string{"flag -publish:", "two hyphens"}},
		{name: "no value", args: []string{"--kafka-brokers"}, want: []string{"flag --kafka-brokers:", "give one"}},
		{name: "bad int", args: []string{"--kafka-partitions=many"}, want: []string{"flag --kafka-partitions:", `"many" is not a whole number`}},
		{name: "negative uint", args: []string{"--replicas=-1"}, want: []string{"flag --replicas:", "zero or above"}},
		{name: "bad float", args: []string{"--share=NaN"}, want: []string{"flag --share:", "finite number"}},
		{name: "bad bool", args: []string{"--publish=maybe"}, want: []string{"flag --publish:", "neither true nor false"}},
		{name: "duration without unit", args: []string{"--stale-after=10"}, want: []string{"flag --stale-after:", "500ms, 10s or 2m"}},
		{name: "bad text", args: []string{"--least=loud"}, want: []string{"flag --least:", `"loud" does not parse`}},
		{name: "empty item", args: []string{"--kafka-brokers=a,,b"}, want: []string{"flag --kafka-brokers:", "empty item"}},
		{name: "positional", args: []string{"--publish", "false"}, want: []string{"argument false:", "--flag=false"}},
		{name: "secret flag", args: []string{"--mqtt-password=hunter2"}, want: []string{"flag --mqtt-password:", "PRESENCE_MQTT_PASSWORD or give mqtt-password-file"}},
		{name: "yamlonly flag", args: []string{"--clusters=x"}, want: []string{"flag --clusters:", "only in the YAML file"}},

		{name: "unknown variable", environ: []string{"PRESENCE_KAFKA_BROKER=x"}, want: []string{"environment variable PRESENCE_KAFKA_BROKER:", "did you mean PRESENCE_KAFKA_BROKERS?", "unset it"}},
		{name: "not of Kubernetes", environ: []string{"PRESENCE_HTTP_PORT=8080"}, want: []string{"environment variable PRESENCE_HTTP_PORT:", "unknown variable"}},
		{name: "bad variable", environ: []string{"PRESENCE_REPLICAS=x"}, want: []string{"environment variable PRESENCE_REPLICAS:", `"x" is not`}},
		{name: "overridden but bad", args: []string{"--replicas=1"}, environ: []string{"PRESENCE_REPLICAS=x"}, want: []string{"environment variable PRESENCE_REPLICAS:"}},
		{name: "yamlonly variable", environ: []string{"PRESENCE_CLUSTERS=x"}, want: []string{"environment variable PRESENCE_CLUSTERS:", "only in the YAML file"}},

		{name: "unknown key", file: "kafka-partition: 3", want: []string{"key kafka-partition in file", "unknown key", "did you mean kafka-partitions?"}},
		{name: "nested key", file: "kafka:\n  brokers: x", want: []string{"key kafka in file", "unknown key"}},
		{name: "no value in file", file: "kafka-partitions:", want: []string{"key kafka-partitions in file", "remove the key"}},
		{name: "wrong type in file", file: "kafka-partitions: 1.5", want: []string{"key kafka-partitions in file", "1.5 is not a whole number"}},
		{name: "number for duration", file: "stale-after: 10", want: []string{"key stale-after in file", "10 is not a duration"}},
		{name: "number for text", file: "mqtt-password-file: 0123", want: []string{"key mqtt-password-file in file", "83 is not text; put it in quotes"}},
		{name: "number in list", file: "kafka-brokers: [a, 1]", want: []string{"key kafka-brokers in file", "item 1, 1, is not text"}},
		{name: "group for list", file: "kafka-brokers: {a: b}", want: []string{"key kafka-brokers in file", "is not a list"}},
		{name: "secret in file", file: "mqtt-password: hunter2", want: []string{"key mqtt-password in file", "PRESENCE_MQTT_PASSWORD or give mqtt-password-file"}},
		{name: "not a mapping", file: "- a", want: []string{"file ", "parse as YAML"}},
		{name: "twice", file: "replicas: 1\nreplicas: 2", want: []string{"file ", "already defined"}},
		{name: "two documents", file: "replicas: 1\n---\nreplica: 2", want: []string{"file ", "more than one YAML document"}},
		{name: "struct list is text", file: "clusters: east", want: []string{"key clusters in file", "begin each item with a hyphen"}},
		{name: "unknown key in item", file: "clusters:\n- name: a\n- nam: b", want: []string{"key clusters in file", "clusters[1].nam: unknown key", "did you mean name?"}},
		{name: "bad value in item", file: "clusters:\n- timeout: 5", want: []string{"clusters[0].timeout: 5 is not a duration"}},
		{name: "item is text", file: "clusters: [east]", want: []string{`clusters[0]: "east" is not a group`}},
		{name: "absent file", args: []string{"--config=/nowhere/p.yaml"}, want: []string{"file /nowhere/p.yaml:", "--config or PRESENCE_CONFIG", "no such file"}},

		{name: "Validate", args: []string{"--log-level=loud"}, want: []string{"log-level:", "debug, info, warn or error"}},
		{
			name: "all at once", environ: []string{"PRESENCE_X=1", "PRESENCE_REPLICAS=x"}, file: "y: 1\nz: 1",
			want: []string{"PRESENCE_X", "PRESENCE_REPLICAS", "key y", "key z"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := test.args
			if test.file != "" {
				args = append(args, "--config="+writeFile(t, "p.yaml", test.file))
			}
			err := Load("x", args, test.environ, defaults())
			var usage *ConfigError
			if !errors.As(err, &usage) {
				t.Fatalf("got error %v, want a ConfigError", err)
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q lacks %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error %q shows the secret", err)
			}
		})
	}
}

func TestLoadIgnoresForeignVariables(t *testing.T) {
	err := Load("x", nil, []string{
		"HOME=/", "PRESENCEFUL=1",
		"PRESENCE_E2E_KAFKA_IMAGE=k", "PRESENCE_VERSION=1", "PRESENCE_IMAGE=i", "PRESENCE_BRIDGE_IMAGE=b",
		// Kubernetes sets these for a service named "presence", and one named "presence-query".
		"PRESENCE_SERVICE_HOST=10.0.0.1", "PRESENCE_SERVICE_PORT=80", "PRESENCE_SERVICE_PORT_HTTP=80", "PRESENCE_PORT=tcp://10.0.0.1:80",
		"PRESENCE_QUERY_PORT_80_TCP=tcp://10.0.0.1:80", "PRESENCE_QUERY_PORT_80_TCP_ADDR=10.0.0.1",
	}, defaults())
	if err != nil {
		t.Error(err)
	}
}

func TestLoadValidates(t *testing.T) {
	cfg := defaults()
	cfg.invalid = errors.New("stale-after is below zero")
	if err := Load("x", nil, nil, cfg); !errors.Is(err, cfg.invalid) {
		t.Errorf("got %v, want the error of Validate", err)
	}
}

func TestLoadHelp(t *testing.T) {
	for _, arg := range []string{"--help", "-h"} {
		var out bytes.Buffer
		cfg := defaults()
		cfg.invalid = errors.New("not asked")
		if err := LoadTo(&out, "bridge", []string{arg, "left", "over"}, []string{"PRESENCE_X=1"}, cfg); !errors.Is(err, ErrHelp) {
			t.Fatalf("got %v, want ErrHelp", err)
		}
		for _, want := range []string{
			"Usage: bridge [flags]",
			"  --kafka-partitions int\n        partitions of a new topic (environment PRESENCE_KAFKA_PARTITIONS, default 16)\n",
			"  --stale-after duration\n        age at which answers are stale (environment PRESENCE_STALE_AFTER, default 10s)\n",
			"  PRESENCE_MQTT_PASSWORD (environment only)\n        password\n",
			"  clusters (YAML only)\n        clusters\n",
			"  --config string\n",
		} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("usage lacks %q:\n%s", want, &out)
			}
		}
		if a, b := strings.Index(out.String(), "--kafka-brokers"), strings.Index(out.String(), "--stale-after"); a > b {
			t.Error("usage is not sorted")
		}
	}
}

func TestLoadVersion(t *testing.T) {
	var out bytes.Buffer
	if err := LoadTo(&out, "bridge", []string{"--version"}, nil, defaults()); !errors.Is(err, ErrHelp) {
		t.Fatalf("got %v, want ErrHelp", err)
	}
	if got, want := out.String(), "bridge "+Version()+"\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestReference(t *testing.T) {
	cfg := defaults()
	cfg.Password = "hunter2"
	var out bytes.Buffer
	if err := Reference(&out, "bridge", cfg); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| bridge flag | environment variable | YAML key | type | default | meaning |\n|---|---|---|---|---|---|\n",
		"| `--kafka-brokers` | `PRESENCE_KAFKA_BROKERS` | `kafka-brokers` | list | `default:9092` | Kafka brokers, host:port |\n",
		"|  | `PRESENCE_MQTT_PASSWORD` |  | secret |  | password |\n",
		"|  |  | `clusters` | list of groups |  | clusters |\n",
		"| `--least` | `PRESENCE_LEAST` | `least` | text | `INFO` | least level |\n",
		`bound of the spool \| in bytes |`,
		"| `--mqtt-tls-ca-file` | `PRESENCE_MQTT_TLS_CA_FILE` |",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("reference lacks %q:\n%s", want, &out)
		}
	}
}

// TestConfigMistakes has structs that cannot be configured.
func TestConfigMistakes(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  any
		want string
	}{
		{"not a pointer", testConfig{}, "pointer to a struct"},
		{"nil", (*testConfig)(nil), "pointer to a struct"},
		{"no tag", &struct{ A int }{}, "no conf tag"},
		{"no usage", &struct {
			A int `conf:"a"`
		}{}, "no usage tag"},
		{"bad name", &struct {
			A int `conf:"a_b" usage:"x"`
		}{}, "lower case words"},
		{"reserved", &struct {
			A int `conf:"config" usage:"x"`
		}{}, "taken by Load"},
		{"type", &struct {
			A map[string]string `conf:"a" usage:"x"`
		}{}, "unsupported type"},
		{"yamlonly", &struct {
			A []int `conf:"a" usage:"x" yamlonly:"true"`
		}{}, "list of structs"},
		{"secret in item", &struct {
			A []struct {
				S Secret `conf:"s" usage:"x"`
			} `conf:"a" usage:"x" yamlonly:"true"`
		}{}, "which a file may not hold"},
		{"same name", &struct {
			A int `conf:"a" usage:"x"`
			B int `conf:"a" usage:"x"`
		}{}, `two fields are tagged "a"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := Load("x", nil, nil, test.cfg)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want an error with %q", err, test.want)
			}
		})
	}
}
