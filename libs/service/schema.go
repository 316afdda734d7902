package service

import (
	"cmp"
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
)

// envPrefix begins the environment variable of every option.
const envPrefix = "PRESENCE_"

// The options that Load adds to those of the config struct.
const (
	configOption  = "config"
	helpOption    = "help"
	versionOption = "version"
)

var (
	optionName          = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)
	textUnmarshalerType = reflect.TypeFor[encoding.TextUnmarshaler]()
	secretType          = reflect.TypeFor[Secret]()
)

// option is one settable field of a config struct.
type option struct {
	name     string
	usage    string
	secret   bool // environment only, never printed
	yamlOnly bool // list of structs, YAML file only
	flagOnly bool // of a subcommand, whose configuration is no service's
	field    reflect.Value
}

func (o *option) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(o.name, "-", "_"))
}

// hasFlag says whether the option can be given on the command line. A secret
// cannot: every user of the machine can read the arguments of a process.
func (o *option) hasFlag() bool { return !o.secret && !o.yamlOnly }

func (o *option) hasEnv() bool { return !o.yamlOnly && !o.flagOnly }

func (o *option) hasYAML() bool { return !o.secret && !o.flagOnly }

// optionsOf lists the options of cfg, which must be a pointer to a struct,
// sorted by name.
func optionsOf(cfg any) ([]*option, error) {
	v := reflect.ValueOf(cfg)
	if v.Kind() != reflect.Pointer || v.IsNil() || v.Elem().Kind() != reflect.Struct {
		return nil, fmt.Errorf("read the options of %T: want a non-nil pointer to a struct", cfg)
	}
	options, err := structOptions(v.Elem(), "")
	if err != nil {
		return nil, fmt.Errorf("read the options of %T: %w", cfg, err)
	}
	slices.SortFunc(options, func(a, b *option) int { return cmp.Compare(a.name, b.name) })
	var errs []error
	for i, o := range options {
		if i > 0 && options[i-1].name == o.name {
			errs = append(errs, fmt.Errorf("two fields are tagged %q; rename one or give its struct a prefix", o.name))
		}
	}
	return options, errors.Join(errs...)
}

func structOptions(v reflect.Value, prefix string) ([]*option, error) {
	var options []*option
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, tagged := f.Tag.Lookup("conf")
		switch {
		case name == "-", !f.IsExported() && !f.Anonymous:
			continue
		case !tagged && f.Type.Kind() == reflect.Struct:
			nested, err := structOptions(v.Field(i), prefix+f.Tag.Get("prefix"))
			if err != nil {
				return nil, err
			}
			options = append(options, nested...)
			continue
		case !tagged:
			return nil, fmt.Errorf(`field %s has no conf tag; add one, or conf:"-" if it is no option`, f.Name)
		}
		o := &option{
			name:     prefix + name,
			usage:    f.Tag.Get("usage"),
			secret:   f.Tag.Get("secret") == "true" || f.Type == secretType,
			yamlOnly: f.Tag.Get("yamlonly") == "true",
			flagOnly: f.Tag.Get("flagonly") == "true",
			field:    v.Field(i),
		}
		if err := o.check(f); err != nil {
			return nil, err
		}
		options = append(options, o)
	}
	return options, nil
}

// check reports a mistake in the config struct itself.
func (o *option) check(f reflect.StructField) error {
	switch {
	case !optionName.MatchString(o.name):
		return fmt.Errorf("field %s: conf name %q is not lower case words joined by hyphens", f.Name, o.name)
	case o.name == configOption, o.name == helpOption, o.name == versionOption:
		return fmt.Errorf("field %s: the name %q is taken by Load; choose another", f.Name, o.name)
	case o.usage == "":
		return fmt.Errorf("field %s: option %q has no usage tag; say what it means and its unit", f.Name, o.name)
	case !o.field.CanSet():
		return fmt.Errorf("field %s: option %q cannot be set; export the field", f.Name, o.name)
	case o.yamlOnly && !isStructList(f.Type):
		return fmt.Errorf("field %s: option %q is yamlonly but a %s; want a list of structs", f.Name, o.name, f.Type)
	case !o.yamlOnly && typeName(f.Type) == "":
		return fmt.Errorf("field %s: option %q has the unsupported type %s", f.Name, o.name, f.Type)
	case o.yamlOnly:
		return checkItem(f.Type.Elem())
	}
	return nil
}

// checkItem reports a mistake in the struct of a yamlonly list's items. They have no
// secrets: those do not belong into the file, and an item has no variables.
func checkItem(t reflect.Type) error {
	options, err := optionsOf(reflect.New(t).Interface())
	if err != nil {
		return err
	}
	for _, o := range options {
		if o.secret {
			return fmt.Errorf("option %q of list item %s is a secret, which a file may not hold; take the name of a file with it", o.name, t)
		}
	}
	return nil
}

func isStructList(t reflect.Type) bool {
	return t.Kind() == reflect.Slice && t.Elem().Kind() == reflect.Struct
}

func findOption(options []*option, name string) *option {
	i, ok := slices.BinarySearchFunc(options, name, func(o *option, name string) int { return cmp.Compare(o.name, name) })
	if !ok {
		return nil
	}
	return options[i]
}

// nearest returns the name of the list that is closest to a misspelt one, or ""
// if none is close.
func nearest(name string, names []string) string {
	best, bestDistance := "", 1+len(name)/4
	for _, n := range names {
		if d := editDistance(name, n); d <= bestDistance && (best == "" || d < bestDistance) {
			best, bestDistance = n, d
		}
	}
	return best
}

// editDistance is the Levenshtein distance of a and b in bytes.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			substitute := diagonal
			if a[i] != b[j] {
				substitute++
			}
			diagonal = row[j+1]
			row[j+1] = min(substitute, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
