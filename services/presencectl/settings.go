package presencectl

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/mqtt-presence/presence/libs/eventlog"
	"github.com/mqtt-presence/presence/libs/service"
)

const (
	envPrefix = "PRESENCECTL_"
	// Secrets have no flag, and no place in the configuration file.
	envPassword      = envPrefix + "PASSWORD"
	envToken         = envPrefix + "TOKEN"
	envKafkaPassword = envPrefix + "KAFKA_SASL_PASSWORD"
	envConfig        = envPrefix + "CONFIG"
	envContext       = envPrefix + "CONTEXT"

	defaultServer  = "127.0.0.1:8081"
	defaultTimeout = 10 * time.Second
)

// settings say whom to ask, as whom and about what: what a context holds.
type settings struct {
	Server         string        `yaml:"server,omitempty"`
	Cluster        string        `yaml:"cluster,omitempty"`
	Timeout        time.Duration `yaml:"timeout,omitempty"`
	User           string        `yaml:"user,omitempty"`
	PasswordFile   string        `yaml:"password-file,omitempty"`
	TokenFile      string        `yaml:"token-file,omitempty"`
	AllowPlaintext bool          `yaml:"allow-plaintext,omitempty"`
	TLS            bool          `yaml:"tls,omitempty"`
	TLSCAFile      string        `yaml:"tls-ca-file,omitempty"`
	TLSCertFile    string        `yaml:"tls-cert-file,omitempty"`
	TLSKeyFile     string        `yaml:"tls-key-file,omitempty"`
	TLSServerName  string        `yaml:"tls-server-name,omitempty"`

	KafkaBrokers          string `yaml:"kafka-brokers,omitempty"`
	KafkaSASLMechanism    string `yaml:"kafka-sasl-mechanism,omitempty"`
	KafkaSASLUsername     string `yaml:"kafka-sasl-username,omitempty"`
	KafkaSASLPasswordFile string `yaml:"kafka-sasl-password-file,omitempty"`
	KafkaTLS              bool   `yaml:"kafka-tls,omitempty"`
	KafkaTLSCAFile        string `yaml:"kafka-tls-ca-file,omitempty"`
	KafkaTLSCertFile      string `yaml:"kafka-tls-cert-file,omitempty"`
	KafkaTLSKeyFile       string `yaml:"kafka-tls-key-file,omitempty"`
	KafkaTLSServerName    string `yaml:"kafka-tls-server-name,omitempty"`

	// From the environment only.
	password, token, kafkaPassword service.Secret
}

func defaultSettings() settings { return settings{Server: defaultServer, Timeout: defaultTimeout} }

// settingFlags are the flags of the settings; those of Kafka belong to the commands that need it.
type settingFlags struct{ common, kafka *pflag.FlagSet }

// bind returns flags that set s. Their defaults are what s holds.
func bind(s *settings) settingFlags {
	f := settingFlags{pflag.NewFlagSet("", pflag.ContinueOnError), pflag.NewFlagSet("", pflag.ContinueOnError)}
	for _, o := range []struct {
		flags *pflag.FlagSet
		to    any
		name  string
		usage string
	}{
		{f.common, &s.Server, "server", "query service to ask over gRPC, host:port"},
		{f.common, &s.Cluster, "cluster", "MQTT broker cluster (default: the service's)"},
		{f.common, &s.Timeout, "timeout", "how long one call may take; 0: without limit"},
		{f.common, &s.User, "user", "account to ask as; its password is in --password-file or " + envPassword},
		{f.common, &s.PasswordFile, "password-file", "file with the account's password"},
		{f.common, &s.TokenFile, "token-file", "file with a bearer token, in place of an account; or " + envToken},
		{f.common, &s.AllowPlaintext, "allow-plaintext", "send password or token to another machine without TLS"},
		{f.common, &s.TLS, "tls", "connect with TLS"},
		{f.common, &s.TLSCAFile, "tls-ca-file", "PEM file of the authorities that may sign the service's certificate (default: the system's)"},
		{f.common, &s.TLSCertFile, "tls-cert-file", "PEM file of the certificate to show"},
		{f.common, &s.TLSKeyFile, "tls-key-file", "PEM file of that certificate's private key"},
		{f.common, &s.TLSServerName, "tls-server-name", "name to expect in the service's certificate (default: the host of --server)"},
		{f.kafka, &s.KafkaBrokers, "kafka-brokers", "Kafka brokers of the services, host:port, separated by commas"},
		{f.kafka, &s.KafkaSASLMechanism, "kafka-sasl-mechanism", "PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512"},
		{f.kafka, &s.KafkaSASLUsername, "kafka-sasl-username", "SASL user"},
		{f.kafka, &s.KafkaSASLPasswordFile, "kafka-sasl-password-file", "file with the SASL password; or " + envKafkaPassword},
		{f.kafka, &s.KafkaTLS, "kafka-tls", "connect to Kafka with TLS"},
		{f.kafka, &s.KafkaTLSCAFile, "kafka-tls-ca-file", "PEM file of the authorities that may sign Kafka's certificates (default: the system's)"},
		{f.kafka, &s.KafkaTLSCertFile, "kafka-tls-cert-file", "PEM file of the certificate to show to Kafka"},
		{f.kafka, &s.KafkaTLSKeyFile, "kafka-tls-key-file", "PEM file of that certificate's private key"},
		{f.kafka, &s.KafkaTLSServerName, "kafka-tls-server-name", "name to expect in Kafka's certificates (default: the host that is dialled)"},
	} {
		switch to := o.to.(type) {
		case *string:
			o.flags.StringVar(to, o.name, *to, o.usage)
		case *bool:
			o.flags.BoolVar(to, o.name, *to, o.usage)
		case *time.Duration:
			o.flags.DurationVar(to, o.name, *to, o.usage)
		}
	}
	return f
}

func (f settingFlags) all(do func(*pflag.Flag)) {
	f.common.VisitAll(do)
	f.kafka.VisitAll(do)
}

// lookup returns the flag of a setting, nil if there is none of that name.
func (f settingFlags) lookup(name string) *pflag.Flag {
	if flag := f.common.Lookup(name); flag != nil {
		return flag
	}
	return f.kafka.Lookup(name)
}

// isFile reports whether a setting names a file.
func isFile(name string) bool { return strings.HasSuffix(name, "-file") }

func envOf(flag string) string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// layer is one source of settings, by name. The secrets of the environment are in it as "password" and "token".
type layer struct {
	name   string
	values map[string]string
}

// credential returns which kind of credential a setting is part of, empty for none.
func credential(setting string) string {
	switch setting {
	case "user", "password-file", "password":
		return "user and password"
	case "token-file", "token":
		return "token"
	}
	return ""
}

// kind returns the kind of credential that a layer gives.
func (l layer) kind() (kind string, err error) {
	for setting := range l.values {
		c := credential(setting)
		if c != "" && kind != "" && c != kind {
			return "", fmt.Errorf("%s: has a user or a password, and a token; give one kind of credential", l.name)
		}
		kind = cmp.Or(kind, c)
	}
	for _, secret := range []string{"password", "token"} {
		if l.values[secret] != "" && l.values[secret+"-file"] != "" {
			return "", fmt.Errorf("%s: %s is given twice, as a file and as it is; remove one", l.name, secret)
		}
	}
	return kind, nil
}

// resolve fills in the settings: from the flags, then from the environment, then from the context. Of credentials, a source that gives one
// kind takes away what later ones give of the other.
func (a *app) resolve() error {
	if err := a.checkEnviron(); err != nil {
		return err
	}
	flags, environ := layer{"flags", map[string]string{}}, layer{"environment", map[string]string{}}
	a.flags.all(func(f *pflag.Flag) {
		if f.Changed {
			flags.values[f.Name] = f.Value.String()
		}
		if v := a.env(envOf(f.Name)); v != "" {
			environ.values[f.Name] = v
		}
	})
	for setting, variable := range map[string]string{"password": envPassword, "token": envToken} {
		if v := a.env(variable); v != "" {
			environ.values[setting] = v
		}
	}
	a.settings.kafkaPassword = service.Secret(a.env(envKafkaPassword))
	layers := []layer{flags, environ}
	chosen, err := a.chosenContext()
	if err != nil {
		return err
	}
	if chosen != nil {
		layers = append(layers, layer{"context " + chosen.Name, chosen.values()})
	}

	kind, given := "", map[string]bool{}
	for _, l := range layers {
		own, err := l.kind()
		if err != nil {
			return err
		}
		for setting, value := range l.values {
			c := credential(setting)
			slot := strings.TrimSuffix(setting, "-file") // a secret and its file are one thing
			if c == "" {
				slot = setting
			}
			if given[slot] || c != "" && kind != "" && c != kind {
				continue
			}
			if err := a.settings.set(a.flags, setting, value); err != nil {
				return fmt.Errorf("%s: %w", l.name, err)
			}
		}
		for setting := range l.values {
			given[setting] = true
			if credential(setting) != "" {
				given[strings.TrimSuffix(setting, "-file")] = true
			}
		}
		kind = cmp.Or(kind, own)
	}
	return a.settings.validate()
}

func (s *settings) set(flags settingFlags, setting, value string) error {
	switch setting {
	case "password":
		s.password = service.Secret(value)
	case "token":
		s.token = service.Secret(value)
	default:
		if err := flags.lookup(setting).Value.Set(value); err != nil {
			return fmt.Errorf("%s: %w", setting, err)
		}
	}
	return nil
}

// checkEnviron reports variables with our prefix that mean nothing: they are misspelt.
func (a *app) checkEnviron() error {
	known := []string{envPassword, envToken, envKafkaPassword, envConfig, envContext}
	a.flags.all(func(f *pflag.Flag) { known = append(known, envOf(f.Name)) })
	for _, e := range a.environ {
		key, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(key, envPrefix) && !slices.Contains(known, key) {
			slices.Sort(known)
			return fmt.Errorf("environment variable %s: unknown; known are %s", key, strings.Join(known, ", "))
		}
	}
	return nil
}

func (s *settings) validate() error {
	if _, _, err := net.SplitHostPort(s.Server); err != nil {
		return fmt.Errorf("server: %q is not host:port: %w", s.Server, err)
	}
	if s.Cluster != "" {
		if err := eventlog.ValidCluster(s.Cluster); err != nil {
			return fmt.Errorf("cluster: %w", err)
		}
	}
	if s.Timeout < 0 {
		return fmt.Errorf("timeout: %v is negative", s.Timeout)
	}
	hasPassword := s.PasswordFile != "" || s.password != ""
	switch {
	case hasPassword && s.User == "":
		return errors.New("user: is missing beside the password")
	case !hasPassword && s.User != "":
		return fmt.Errorf("password-file: is missing beside user %q; or set %s", s.User, envPassword)
	}
	return nil
}

// loopback reports whether the service is on this machine, so that what goes to it passes no network.
func (s *settings) loopback() bool {
	host, _, err := net.SplitHostPort(s.Server)
	ip := net.ParseIP(host)
	return err == nil && (host == "localhost" || ip != nil && ip.IsLoopback())
}

// eventlog returns the configuration of the Kafka client.
func (s *settings) eventlog() (eventlog.Config, error) {
	c := eventlog.DefaultConfig()
	for broker := range strings.SplitSeq(s.KafkaBrokers, ",") {
		if broker = strings.TrimSpace(broker); broker != "" {
			c.Brokers = append(c.Brokers, broker)
		}
	}
	if len(c.Brokers) == 0 {
		return c, errors.New("kafka-brokers: dead letters are read from Kafka itself; name its brokers, for 'presence' on this machine --kafka-brokers 127.0.0.1:9092")
	}
	c.SASLMechanism, c.SASLUsername = s.KafkaSASLMechanism, s.KafkaSASLUsername
	c.SASLPasswordFile, c.SASLPassword = s.KafkaSASLPasswordFile, s.kafkaPassword
	c.TLS = service.ClientTLS{
		Enabled: s.KafkaTLS, CAFile: s.KafkaTLSCAFile, CertFile: s.KafkaTLSCertFile, KeyFile: s.KafkaTLSKeyFile, ServerName: s.KafkaTLSServerName,
	}
	return c, c.Validate()
}
