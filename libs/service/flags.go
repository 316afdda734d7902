package service

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
)

// parsedFlags is the command line after its values were checked.
type parsedFlags struct {
	set     *pflag.FlagSet
	config  string
	help    bool
	version bool
}

// parseFlags parses args, every value with the parser of its option.
func parseFlags(options []*option, args []string) (*parsedFlags, error) {
	p := &parsedFlags{set: pflag.NewFlagSet("", pflag.ContinueOnError)}
	p.set.Usage = func() {}
	p.set.BoolVarP(&p.help, helpOption, "h", false, "")
	p.set.BoolVar(&p.version, versionOption, false, "")
	p.set.StringVar(&p.config, configOption, "", "")
	for _, o := range options {
		if !o.hasFlag() {
			continue
		}
		f := p.set.VarPF(&flagValue{option: o}, o.name, "", "")
		if o.typeName() == "bool" {
			f.NoOptDefVal = "true"
		}
	}
	if err := p.set.Parse(args); err != nil {
		return nil, flagError(options, err)
	}
	if p.help || p.version {
		return p, nil
	}
	if rest := p.set.Args(); len(rest) > 0 {
		return nil, &ConfigError{
			Source: "argument " + strings.Join(rest, " "),
			Err:    errors.New("no arguments are expected after the flags; write bool flags as --flag=false, and put values with spaces in quotes"),
		}
	}
	return p, nil
}

// value is posflag's callback: the options' flags, raw. Posflag drops those that were
// not given.
func (*parsedFlags) value(f *pflag.Flag) (string, any) {
	v, ok := f.Value.(*flagValue)
	if !ok {
		return "", nil
	}
	return v.option.name, v.raw
}

// flagError says what is wrong with the command line, by flag.
func flagError(options []*option, err error) error {
	var (
		unknown *pflag.NotExistError
		invalid *pflag.InvalidValueError
		missing *pflag.ValueRequiredError
	)
	switch {
	case errors.As(err, &unknown):
		name := unknown.GetSpecifiedName()
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			return &ConfigError{Source: "flag -" + short, Err: errors.New("unknown flag; long flags begin with two hyphens")}
		}
		return &ConfigError{Source: "flag --" + name, Err: unknownFlag(options, name)}
	case errors.As(err, &invalid):
		return &ConfigError{Source: "flag --" + invalid.GetFlag().Name, Err: errors.Unwrap(invalid)}
	case errors.As(err, &missing):
		return &ConfigError{Source: "flag --" + missing.GetSpecifiedName(), Err: errors.New("has no value; give one")}
	}
	return &ConfigError{Source: "command line", Err: err}
}

func unknownFlag(options []*option, name string) error {
	switch o := findOption(options, name); {
	case o == nil:
		return fmt.Errorf("unknown flag%s", suggest(name, options, (*option).hasFlag, func(o *option) string { return "--" + o.name }))
	case o.secret:
		return fmt.Errorf("a secret is not given on the command line, where others can read it; set the environment variable %s%s",
			o.env(), fileHint(options, o))
	}
	return fmt.Errorf("%s can be given only in the YAML file", name)
}

// flagValue checks the values of one flag and keeps them raw for koanf.
type flagValue struct {
	option *option
	raw    any // string, or []string for a list
}

// String is called by pflag for its own usage text, which is never printed.
func (v *flagValue) String() string { return "" }

// Type is the word for the flag's type.
func (v *flagValue) Type() string { return v.option.typeName() }

// Set takes the value; a list grows by the items of each value.
func (v *flagValue) Set(text string) error {
	if _, err := v.option.parse(text, ""); err != nil {
		return err
	}
	if v.option.typeName() != "list" {
		v.raw = text
		return nil
	}
	items, err := splitList(text)
	if err != nil {
		return err
	}
	all, _ := v.raw.([]string)
	v.raw = append(all, items...)
	return nil
}
