package service

import (
	"cmp"
	"fmt"
	"io"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
)

// version is set at link time with -ldflags "-X <this package>.version=v1.2.3"
// where the build has no version control at hand.
var version string

// Version returns the version that the binary was linked with, else the one that
// the Go toolchain recorded, else "(devel)".
func Version() string {
	recorded := ""
	if info, ok := debug.ReadBuildInfo(); ok {
		recorded = info.Main.Version
	}
	return cmp.Or(version, recorded, "(devel)")
}

// Reference writes the options of cfg, which holds the defaults, as a markdown
// table, sorted by name. The name is the program's.
func Reference(w io.Writer, name string, cfg any) error {
	options, err := optionsOf(cfg)
	if err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "| %s flag | environment variable | YAML key | type | default | meaning |\n|---|---|---|---|---|---|\n", name)
	for _, o := range documented(options) {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n",
			code(o.flag), code(o.env), code(o.key), o.typ, code(o.def), strings.ReplaceAll(o.usage, "|", `\|`))
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write the reference of %s: %w", name, err)
	}
	return nil
}

func printUsage(w io.Writer, name string, options []*option) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s [flags]\n\n", name)
	if !flagsOnly(options) {
		b.WriteString("Flags win over environment variables, these over the YAML file of --config.\n" +
			"YAML keys are the flags without the hyphens in front.\n\n")
	}
	for _, o := range documented(options) {
		switch {
		case o.flag != "":
			fmt.Fprintf(&b, "  %s %s\n", o.flag, o.typ)
		case o.env != "":
			fmt.Fprintf(&b, "  %s (environment only)\n", o.env)
		default:
			fmt.Fprintf(&b, "  %s (YAML only)\n", o.key)
		}
		fmt.Fprintf(&b, "        %s", o.usage)
		var notes []string
		if o.flag != "" && o.env != "" {
			notes = append(notes, "environment "+o.env)
		}
		if o.def != "" {
			notes = append(notes, "default "+o.def)
		}
		if len(notes) > 0 {
			fmt.Fprintf(&b, " (%s)", strings.Join(notes, ", "))
		}
		b.WriteByte('\n')
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("print the usage: %w", err)
	}
	return nil
}

// flagsOnly reports whether the options can come from nowhere else.
func flagsOnly(options []*option) bool {
	return len(options) > 0 && !slices.ContainsFunc(options, func(o *option) bool { return !o.flagOnly })
}

// optionDoc is an option in words; what it does not have is "".
type optionDoc struct {
	name, flag, env, key, typ, def, usage string
}

// documented returns the options and those that Load adds, sorted by name.
func documented(options []*option) []optionDoc {
	var docs []optionDoc
	if !flagsOnly(options) {
		docs = append(docs, optionDoc{name: configOption, flag: "--" + configOption, env: configEnv, typ: "string", usage: "YAML file to read options from"})
	}
	docs = append(docs, []optionDoc{
		{name: helpOption, flag: "--" + helpOption, typ: "bool", usage: "print this and exit"},
		{name: versionOption, flag: "--" + versionOption, typ: "bool", usage: "print the version and exit"},
	}...)
	for _, o := range options {
		d := optionDoc{name: o.name, typ: o.typeName(), usage: o.usage}
		if o.hasFlag() {
			d.flag = "--" + o.name
		}
		if o.hasEnv() {
			d.env = o.env()
		}
		if o.hasYAML() {
			d.key = o.name
		}
		if !o.secret && !o.yamlOnly {
			d.def = o.defaultText()
		}
		docs = append(docs, d)
	}
	slices.SortFunc(docs, func(a, b optionDoc) int { return cmp.Compare(a.name, b.name) })
	return docs
}

// typeName is the word for the option's type.
func (o *option) typeName() string {
	switch {
	case o.yamlOnly:
		return "list of groups"
	case o.secret:
		return "secret"
	}
	return typeName(o.field.Type())
}

// defaultText is the field's value, quoted if it has spaces, "" if it is empty.
func (o *option) defaultText() string {
	text := formatValue(o.field)
	if strings.ContainsAny(text, " \t\n") {
		return strconv.Quote(text)
	}
	return text
}

func code(text string) string {
	if text == "" {
		return ""
	}
	return "`" + strings.ReplaceAll(text, "|", `\|`) + "`"
}
