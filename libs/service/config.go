package service

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
)

// ErrHelp is returned by Load after it printed the usage or the version. It is
// no failure: Main exits with 0 on it.
var ErrHelp = errors.New("help was printed")

// ConfigError is one mistake in the configuration. All errors of Load other than
// ErrHelp and mistakes in the config struct itself are, or join, ConfigErrors.
type ConfigError struct {
	Source string // where the value stands, such as "flag --http-addr"; empty if Validate found it
	Err    error  // what is wrong and how to mend it
}

// Error names the source and the key before the mistake.
func (e *ConfigError) Error() string {
	if e.Source == "" {
		return e.Err.Error()
	}
	return e.Source + ": " + e.Err.Error()
}

// Unwrap returns Err.
func (e *ConfigError) Unwrap() error { return e.Err }

// Defaulter is implemented by pointers to the structs of a yamlonly list.
// SetDefaults is called on each new item before the file's values are laid over it.
type Defaulter interface{ SetDefaults() }

// ignoredEnv matches the PRESENCE_ variables, with their values, that are not options: those of the e2e
// tests and of docker-compose, and those that Kubernetes and Docker set in every
// container for a service whose name begins with "presence".
var ignoredEnv = regexp.MustCompile(`^PRESENCE_(E2E_.*|VERSION|(.*_)?IMAGE` +
	`|(.*_)?SERVICE_(HOST|PORT(_.*)?)|(.*_)?PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)=` +
	`|^PRESENCE_(.*_)?PORT=(tcp|udp|sctp)://`)

// Load fills cfg, a pointer to a struct that holds the defaults, from flags
// (args, without the program's name), environment variables (environ, as
// [os.Environ] returns them) and the YAML file, in this order of precedence.
//
// Fields are tagged conf:"kafka-brokers" usage:"meaning". Structs without a conf
// tag are squashed, their options after the prefix of a prefix:"mqtt-tls-" tag;
// conf:"-" leaves a field out. A field may be a string, bool, integer, float,
// [time.Duration], []string, or any type whose pointer unmarshals text. In flags
// and variables a list is separated by commas; its flag can also be repeated. An
// empty variable counts as absent. Fields tagged secret:"true" or of type [Secret] are read
// from the environment only; a list of structs tagged yamlonly:"true" only from the file; those tagged flagonly:"true", of a subcommand,
// only from flags.
//
// If cfg has a method Validate() error, Load calls it last. The errors of all
// sources are joined, each a [ConfigError]; --help and --version print to standard output and
// return [ErrHelp].
func Load(name string, args, environ []string, cfg any) error {
	return LoadTo(os.Stdout, name, args, environ, cfg)
}

// LoadTo is Load with w in place of standard output.
func LoadTo(w io.Writer, name string, args, environ []string, cfg any) error {
	options, err := optionsOf(cfg)
	if err != nil {
		return err
	}
	flags, err := parseFlags(options, args)
	if err != nil {
		return err
	}
	switch {
	case flags.help:
		return cmp.Or(printUsage(w, name, options), ErrHelp)
	case flags.version:
		if _, err := fmt.Fprintf(w, "%s %s\n", name, Version()); err != nil {
			return fmt.Errorf("print the version: %w", err)
		}
		return ErrHelp
	}

	k := koanf.New(".")
	fileErr := loadFile(k, options, cmp.Or(flags.config, lookupEnv(environ, configEnv)))
	envErr := loadEnv(k, options, environ)
	flagErr := k.Load(posflag.ProviderWithFlag(flags.set, "", nil, flags.value), nil)
	if err := errors.Join(fileErr, envErr, flagErr); err != nil {
		return err
	}
	for _, o := range options {
		if !k.Exists(o.name) {
			continue
		}
		v, err := o.parse(k.Get(o.name), o.name)
		if err != nil {
			return &ConfigError{Source: o.name, Err: err}
		}
		o.field.Set(v)
	}
	if c, ok := cfg.(interface{ Validate() error }); ok {
		if err := c.Validate(); err != nil {
			return &ConfigError{Err: err}
		}
	}
	return nil
}

var configEnv = (&option{name: configOption}).env()

// parse converts raw to the option's type; at is where it stands in the file.
func (o *option) parse(raw any, at string) (reflect.Value, error) {
	if o.yamlOnly {
		return parseStructs(o.field.Type(), raw, at)
	}
	return parseValue(o.field.Type(), raw, o.secret)
}

// loadFile checks the YAML file and adds it to k.
func loadFile(k *koanf.Koanf, options []*option, file string) error {
	values, err := readYAML(file)
	if err != nil {
		return err
	}
	var errs []error
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := checkKey(options, key, key, values[key]); err != nil {
			errs = append(errs, &ConfigError{Source: fmt.Sprintf("key %s in file %s", key, file), Err: err})
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	return k.Load(confmap.Provider(values, ""), nil)
}

// readYAML returns the keys of a file, none if file is "".
func readYAML(file string) (map[string]any, error) {
	if file == "" {
		return nil, nil
	}
	source := "file " + file
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, &ConfigError{Source: source, Err: fmt.Errorf("read the configuration named by --config or %s: %w", configEnv, err)}
	}
	if severalDocuments(data) {
		return nil, &ConfigError{Source: source, Err: errors.New("holds more than one YAML document; join them into one")}
	}
	values, err := yaml.Parser().Unmarshal(data)
	if err != nil {
		return nil, &ConfigError{Source: source, Err: fmt.Errorf("parse as YAML, want keys named like the flags: %w", err)}
	}
	return values, nil
}

// severalDocuments says whether a document begins after content. The parser would
// read the first document and leave the others without effect.
func severalDocuments(data []byte) bool {
	content := false
	for line := range bytes.Lines(data) {
		switch line = bytes.TrimRight(line, " \t\r\n"); {
		case bytes.HasPrefix(line, []byte("---")):
			if content {
				return true
			}
			content = len(line) > len("---")
		case len(line) > 0 && line[0] != '#' && line[0] != '%':
			content = true
		}
	}
	return false
}

// checkKey reports an unknown key or a value that does not parse.
func checkKey(options []*option, key, at string, raw any) error {
	o := findOption(options, key)
	switch {
	case o == nil:
		return fmt.Errorf("unknown key%s", suggest(key, options, (*option).hasYAML, func(o *option) string { return o.name }))
	case !o.hasYAML():
		return fmt.Errorf("secrets do not belong into this file; set the environment variable %s%s", o.env(), fileHint(options, o))
	}
	_, err := o.parse(raw, at)
	return err
}

// parseStructs converts the list raw to a slice of structs, each key checked as
// those at the top of the file are.
func parseStructs(t reflect.Type, raw any, at string) (reflect.Value, error) {
	items, ok := raw.([]any)
	if !ok {
		return reflect.Value{}, fmt.Errorf("%s is not a list; begin each item with a hyphen", show(raw))
	}
	list := reflect.MakeSlice(t, len(items), len(items))
	var errs []error
	for i, item := range items {
		itemAt := fmt.Sprintf("%s[%d]", at, i)
		values, ok := item.(map[string]any)
		if !ok {
			errs = append(errs, fmt.Errorf("%s: %s is not a group of keys", itemAt, show(item)))
			continue
		}
		target := list.Index(i).Addr().Interface()
		if d, ok := target.(Defaulter); ok {
			d.SetDefaults()
		}
		options, err := optionsOf(target)
		if err != nil {
			return list, err
		}
		for _, key := range slices.Sorted(maps.Keys(values)) {
			keyAt := itemAt + "." + key
			if err := checkKey(options, key, keyAt, values[key]); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", keyAt, err))
				continue
			}
			o := findOption(options, key)
			v, err := o.parse(values[key], keyAt)
			if err != nil {
				return list, err
			}
			o.field.Set(v)
		}
	}
	return list, errors.Join(errs...)
}

// loadEnv checks the PRESENCE_ variables and adds them to k.
func loadEnv(k *koanf.Koanf, options []*option, environ []string) error {
	var errs []error
	add := func(variable, value string) (string, any) {
		i := slices.IndexFunc(options, func(o *option) bool { return o.env() == variable })
		if i < 0 {
			if variable != configEnv && !ignoredEnv.MatchString(variable+"="+value) {
				errs = append(errs, envError(variable, fmt.Errorf("unknown variable%s; unset it",
					suggest(variable, options, (*option).hasEnv, (*option).env))))
			}
			return "", nil
		}
		o := options[i]
		switch {
		case !o.hasEnv():
			errs = append(errs, envError(variable, fmt.Errorf("%s can be given only in the YAML file; unset the variable", o.name)))
			return "", nil
		case value == "":
			return "", nil
		}
		if _, err := o.parse(value, ""); err != nil {
			errs = append(errs, envError(variable, err))
		}
		return o.name, value
	}
	provider := env.Provider("", env.Opt{
		Prefix:        envPrefix,
		TransformFunc: add,
		EnvironFunc:   func() []string { return slices.Sorted(slices.Values(environ)) },
	})
	if err := k.Load(provider, nil); err != nil {
		return fmt.Errorf("read the environment: %w", err)
	}
	return errors.Join(errs...)
}

func envError(variable string, err error) error {
	return &ConfigError{Source: "environment variable " + variable, Err: err}
}

// lookupEnv returns the value of a variable, "" if it is absent.
func lookupEnv(environ []string, variable string) string {
	for _, e := range environ {
		if name, value, _ := strings.Cut(e, "="); name == variable {
			return value
		}
	}
	return ""
}

// suggest returns "; did you mean X?" or how to find out.
func suggest(name string, options []*option, usable func(*option) bool, spell func(*option) string) string {
	var names []string
	for _, o := range options {
		if usable(o) {
			names = append(names, spell(o))
		}
	}
	if n := nearest(name, names); n != "" {
		return "; did you mean " + n + "?"
	}
	return "; --help lists all"
}

// fileHint points at the option that takes a secret from a file, if there is one.
func fileHint(options []*option, o *option) string {
	if f := findOption(options, o.name+"-file"); f != nil {
		return " or give " + f.name
	}
	return ""
}
