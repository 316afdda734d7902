package query

import (
	"errors"
	"fmt"
	"time"

	"github.com/mqtt-presence/presence/libs/service"
)

// Names of a client certificate that may be an account.
const (
	certCN  = "cn"
	certURI = "uri"
)

// LimitsConfig bounds what callers may use. Embed it.
type LimitsConfig struct {
	RateLimit        float64 `conf:"rate-limit" usage:"requests per second that each account may make; a batch costs 1 more for each 100 clients; 0: no limit"`
	RateBurst        int     `conf:"rate-burst" usage:"requests that an account may make at once; 0: those of one second"`
	AddressRateLimit float64 `conf:"address-rate-limit" usage:"requests per second that each address may make, also those that are refused; of IPv6 the first 64 bits count; 0: no limit"`
	AddressRateBurst int     `conf:"address-rate-burst" usage:"requests that an address may make at once; 0: those of one second"`

	MaxConnections           int           `conf:"max-connections" usage:"open connections of REST and gRPC in all; when they are taken, the address that holds most loses one to a newcomer; 0: no bound"`
	MaxConnectionsPerAddress int           `conf:"max-connections-per-address" usage:"open connections of one address; of IPv6 the first 64 bits count; 0: half of max-connections"`
	MaxStreams               int           `conf:"max-streams" usage:"open watches of REST and gRPC in all; 0: no bound"`
	MaxStreamsPerAccount     int           `conf:"max-streams-per-account" usage:"open watches of one account; 0: half of max-streams"`
	MaxStreamTime            time.Duration `conf:"max-stream-time" usage:"how long a watch may last before the caller must open another; 0: as long as it likes"`
}

// DefaultLimits bounds connections and streams, and has no rate limit: what a caller may cost is the deployment's choice.
func DefaultLimits() LimitsConfig {
	return LimitsConfig{MaxConnections: 32_768, MaxStreams: 20_000}
}

// Validate reports every limit that is wrong, by name.
func (c LimitsConfig) Validate() error {
	var errs []error
	for _, r := range []struct {
		option string
		rate   float64
		burst  int
	}{{"rate", c.RateLimit, c.RateBurst}, {"address-rate", c.AddressRateLimit, c.AddressRateBurst}} {
		if !(r.rate >= 0) || r.rate > 1e9 {
			errs = append(errs, fmt.Errorf("%s-limit: %v is not a rate; give requests per second, or 0 for no limit", r.option, r.rate))
		}
		if r.burst < 0 {
			errs = append(errs, fmt.Errorf("%s-burst: %d is negative; give a number of requests, or 0 for those of one second", r.option, r.burst))
		}
	}
	for _, n := range []struct {
		option string
		value  int
	}{
		{"max-connections", c.MaxConnections}, {"max-connections-per-address", c.MaxConnectionsPerAddress},
		{"max-streams", c.MaxStreams}, {"max-streams-per-account", c.MaxStreamsPerAccount},
	} {
		if n.value < 0 {
			errs = append(errs, fmt.Errorf("%s: %d is negative; give a number, or 0", n.option, n.value))
		}
	}
	if c.MaxStreamTime < 0 || c.MaxStreamTime > 0 && c.MaxStreamTime < time.Second {
		errs = append(errs, fmt.Errorf("max-stream-time: %v is too short; give at least 1s, or 0 for no bound", c.MaxStreamTime))
	}
	return errors.Join(errs...)
}

// connectionsPerAddress is what 0 stands for, too.
func (c LimitsConfig) connectionsPerAddress() int {
	if c.MaxConnectionsPerAddress == 0 {
		return (c.MaxConnections + 1) / 2
	}
	return c.MaxConnectionsPerAddress
}

// AccessConfig says who may ask besides the accounts of a file with passwords, and what is written down of it. Embed it.
type AccessConfig struct {
	Tokens            TokenConfig `prefix:"jwt-"`
	ClientCertAccount string      `conf:"client-cert-account" usage:"which name of a client certificate is an account, for callers that send no authorization: cn (common name) or uri (a URI of the alternative names); the accounts file has a line NAME:cert:PERMISSIONS for it; empty: none. Needs tls-client-ca-file"`
	AuditLog          string      `conf:"audit-log" usage:"file that a line of JSON is appended to for each denied call and each call that needs admin; - is standard error; empty: they go to the service's log"`
	AllowInsecure     bool        `conf:"allow-insecure" usage:"listen beyond loopback also without TLS or accounts; it is said at start what is missing"`
}

// DefaultAccess takes no tokens and no certificates for accounts.
func DefaultAccess() AccessConfig { return AccessConfig{Tokens: DefaultTokens()} }

// validateAccess reports what is wrong with who may ask.
func (c Config) validateAccess() error {
	errs := []error{c.Tokens.Validate(), c.LimitsConfig.Validate()}
	if c.AccountsFile == "" && c.Tokens.JWKSFile == "" {
		errs = append(errs, errNoAccountsFile)
	}
	switch c.ClientCertAccount {
	case "":
	case certCN, certURI:
		if c.TLS.ClientCAFile == "" || c.AccountsFile == "" {
			errs = append(errs, errors.New("client-cert-account: needs tls-client-ca-file, which certificates are checked against, and accounts-file, which says what they may ask"))
		}
	default:
		errs = append(errs, fmt.Errorf("client-cert-account: %q is neither cn nor uri", c.ClientCertAccount))
	}
	_, err := service.CheckExposed(c.AllowInsecure, c.listeners()...)
	return errors.Join(append(errs, err)...)
}

// listeners are those of callers. Accounts or tokens there always are.
func (c Config) listeners() []service.Listener {
	var missing []string
	if c.TLS == (service.ServerTLS{}) {
		missing = []string{"TLS (tls-cert-file)"}
	}
	return []service.Listener{{Option: "http-addr", Addr: c.HTTPAddr, Missing: missing}, {Option: "grpc-addr", Addr: c.GRPCAddr, Missing: missing}}
}

// insecure is what to warn of at the start, empty if there is nothing.
func (c Config) insecure() string {
	warning, err := service.CheckExposed(c.AllowInsecure, c.listeners()...)
	if err != nil {
		return "" // Validate has refused it
	}
	return warning
}
